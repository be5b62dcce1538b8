"""A small SentencePiece model as GGUF metadata holds it, with the ids that the sentencepiece library gives."""

import io
import json

import sentencepiece

from paths import FORMATS
from smollm2 import TEXT

PIECES = 420

TEXTS = [
    "",
    " ",
    "the ship",
    " the ship sails  at   dawn",
    "The first five prime numbers are 2, 3, 5, 7 and 11.",
    "return found[0]\n\tand then\r\n",
    "Le navire part à l'aube. Ünïcödé",
    "日本語 and 😀 emoji",
    "▁ already escaped ▁▁",
    "lighthouses lighthouses LIGHTHOUSES",
]


def make():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def kind(i):
        checks = [(processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6)]
        return next((number for check, number in checks if check(i)), 1)

    ids = range(processor.vocab_size())
    fixture = dict(
        tokens=[processor.id_to_piece(i) for i in ids],
        scores=[processor.get_score(i) for i in ids],
        token_types=[kind(i) for i in ids],
        cases=[dict(text=text, ids=processor.encode(text), decoded=processor.decode(processor.encode(text))) for text in TEXTS],
    )
    (FORMATS / "sentencepiece.json").write_text(json.dumps(fixture, ensure_ascii=False) + "\n")
    print(f"   {len(fixture['tokens'])} pieces, {len(TEXTS)} texts")
