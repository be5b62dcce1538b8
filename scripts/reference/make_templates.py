#!/usr/bin/env python3
"""Renders the chat template fixtures as Hugging Face transformers does.

Every template in services/tokenizer/tests/fixtures/templates is rendered for every conversation in
conversations.json; the texts (or the fact that rendering fails) go to rendered.json beside them.
Needs: pip install transformers jinja2
"""

import datetime
import json
import pathlib

from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "services/tokenizer/tests/fixtures/templates"
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class FrozenDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 4, 5, 6, 7)


def render(template, conversation):
    [text], _ = chat_template_utils.render_jinja_template(
        conversations=[conversation["messages"]],
        chat_template=template,
        tools=conversation.get("tools"),
        add_generation_prompt=conversation.get("add_generation_prompt", True),
        continue_final_message=conversation.get("continue_final_message", False),
        **{**SPECIAL_TOKENS, **conversation.get("kwargs", {})},
    )
    return text


def main():
    chat_template_utils.datetime = FrozenDatetime
    conversations = json.loads((FOLDER / "conversations.json").read_text())
    rendered = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        texts = rendered[path.stem] = {}
        for conversation in conversations:
            try:
                texts[conversation["name"]] = render(path.read_text(), conversation)
            except Exception as error:  # noqa: BLE001: any failure is the expected outcome
                texts[conversation["name"]] = None
                print(f"{path.stem}: {conversation['name']}: {type(error).__name__}: {str(error)[:90]}")
    (FOLDER / "rendered.json").write_text(json.dumps(rendered, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
