#!/usr/bin/env python3
"""Makes the reference data that Rust tests compare with, using Hugging Face transformers and the gguf package.

    python3 -m venv venv && venv/bin/pip install -r scripts/reference/requirements.txt
    venv/bin/python scripts/reference/make_fixtures.py [checkpoints] [rope] [quants] [tokenizers] [smollm2=FILE.gguf]

Without arguments everything that needs no model file is made. The output is deterministic for given package versions.
"""

import sys

import checkpoints
import quants
import rope
import smollm2
import tokenizer_cases

MAKERS = {
    "checkpoints": lambda _: checkpoints.make(),
    "rope": lambda _: rope.make(),
    "quants": lambda _: quants.make(),
    "tokenizers": lambda _: tokenizer_cases.make(),
    "smollm2": smollm2.make,
}


def main() -> None:
    wanted = sys.argv[1:] or ["checkpoints", "rope", "quants", "tokenizers"]
    for argument in wanted:
        name, _, value = argument.partition("=")
        print(f"== {name}", flush=True)
        MAKERS[name](value)


if __name__ == "__main__":
    main()
