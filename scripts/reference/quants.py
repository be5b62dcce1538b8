"""Blocks of every GGUF type with the values that the gguf package reads from them."""

import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from paths import FORMATS

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
# Where the f16 scales and minima of a block lie.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ELEMENTS = 512


def make():
    rng = np.random.default_rng(1)
    FORMATS.mkdir(parents=True, exist_ok=True)
    blob, entries = b"", []
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        if name in HALVES:
            blocks = rng.integers(0, 256, (ELEMENTS // length, size), dtype=np.uint8)
            for at in HALVES[name]:
                blocks[:, at : at + 2] = rng.normal(0, 0.05, (len(blocks), 1)).astype("<f2").view(np.uint8)
            stored = blocks.reshape(-1)
        else:
            values = rng.normal(0, 1, ELEMENTS).astype("<f4")
            stored = {
                "F32": values.view(np.uint8),
                "F16": values.astype("<f2").view(np.uint8),
                "BF16": (values.view("<u4") >> 16).astype("<u2").view(np.uint8),
            }[name]
        values = dequantize(stored, kind).astype("<f4").reshape(-1)
        assert len(values) == ELEMENTS
        entries.append(dict(dtype=name, bytes=len(stored), elements=ELEMENTS))
        blob += stored.tobytes() + values.tobytes()
    (FORMATS / "quants.json").write_text(json.dumps(entries, indent=1) + "\n")
    (FORMATS / "quants.bin").write_bytes(blob)
    print(f"   {len(blob)} bytes")
