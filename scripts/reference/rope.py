"""RoPE frequencies as transformers computes them, beside the config.json fields they come from."""

import json

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paths import MODELS

CASES = [
    # (head_dim, max_position_embeddings, fields of config.json, sequence length)
    (64, 8192, {"rope_theta": 100000.0}, 8192),
    (128, 40960, {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000}}, 100),
    (80, 4096, {}, 100),
    (128, 16384, {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}, 100),
    (64, 2048, {"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2048),
    (64, 2048, {"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 5000),
    (
        128,
        131072,
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        100,
    ),
    (
        64,
        131072,
        {
            "rope_parameters": {
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        100,
    ),
    (
        128,
        131072,
        {
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        100,
    ),
    (
        128,
        4096,
        {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 256,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "truncate": False,
                "attention_factor": 1.5,
            },
        },
        100,
    ),
    (
        64,
        163840,
        {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "mscale": 1.0,
                "mscale_all_dim": 0.8,
            },
        },
        100,
    ),
    (
        64,
        4096,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.5}},
        100,
    ),
]


def make():
    made = []
    for head_dim, positions, fields, length in CASES:
        fields = dict(fields, head_dim=head_dim, hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=positions)
        config = LlamaConfig(**json.loads(json.dumps(fields)))
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            embedding = LlamaRotaryEmbedding(config)
            frequencies, attention = embedding.inv_freq, embedding.attention_scaling
        else:
            frequencies, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
        made.append(
            dict(
                config=dict(fields, model_type="llama"),
                sequence_length=length,
                inverse_frequencies=[float(f) for f in frequencies],
                attention_factor=float(attention),
            )
        )
        print("  ", kind, frequencies[:3].tolist(), attention)
    (MODELS / "rope.json").write_text(json.dumps(made, indent=1) + "\n")
