"""Tiny checkpoints with reference logits and greedy continuations, one folder for each decoder family and scaling.

Weights are scaled so that attention is sharp, normalisation epsilons matter and the best token leads clearly: with
default initialisation most mistakes would drown in the tolerance. Each checkpoint is shown to notice a list of
mistakes before it is written.
"""

import copy
import json
import shutil

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from paths import MODELS

GREEDY = 24
VOCAB = 320
# Tests accept this much of the largest logit.
BOUND = 5e-5
# A checkpoint is good when the best token of each greedy step leads by this share of the largest logit.
GAP = 0.005
# A mistake is noticed when it moves some logit by this multiple of the bound.
NOTICED = 20

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=0,
)


def rope(kind="default", theta=10_000.0, **rest):
    return dict(rope_type=kind, rope_theta=theta, **rest)


CHECKPOINTS = {
    # head_dim follows from hidden_size, separate head
    "llama": (LlamaConfig, dict(num_attention_heads=6, num_key_value_heads=2, rope_parameters=rope())),
    "llama3_rope": (
        LlamaConfig,
        dict(
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=rope(
                "llama3",
                500_000.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "linear_rope": (
        LlamaConfig,
        dict(head_dim=16, tie_word_embeddings=True, rope_parameters=rope("linear", factor=4.0)),
    ),
    "yarn_rope": (
        LlamaConfig,
        dict(
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32),
        ),
    ),
    "qwen2": (Qwen2Config, dict(tie_word_embeddings=True, rope_parameters=rope(theta=1_000_000.0))),
    # heads are wider than hidden_size / heads
    "qwen3": (
        Qwen3Config,
        dict(head_dim=16, rms_norm_eps=1e-4, tie_word_embeddings=True, rope_parameters=rope(theta=1_000_000.0)),
    ),
    "mistral": (MistralConfig, dict(head_dim=16, sliding_window=12, tie_word_embeddings=True, rope_parameters=rope())),
}

PROMPT_LENGTHS = (5, 40)


def fill(model, generator):
    """Draws all weights. Scores have a standard deviation near 3, logits near 4."""

    def normal(parameter, deviation):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)

    def around(parameter, value):
        parameter.copy_((0.6 + 0.8 * torch.rand(parameter.shape, generator=generator)) * value)

    embedding = 0.05
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                normal(parameter, embedding)
            elif name == "lm_head.weight":
                normal(parameter, 4 / parameter.shape[1] ** 0.5)
            elif name == "model.norm.weight":
                tied = model.config.tie_word_embeddings
                around(parameter, 4 / (embedding * parameter.shape[0] ** 0.5) if tied else 1.0)
            elif "q_norm" in name or "k_norm" in name:
                around(parameter, 1.7)
            elif "norm" in name:
                around(parameter, 1.0)
            elif name.endswith(".bias"):
                normal(parameter, 0.7)
            else:
                gain = 1.7 if "q_proj" in name or "k_proj" in name else 1.0
                normal(parameter, gain / parameter.shape[1] ** 0.5)


def build(name, seed):
    kind, settings = CHECKPOINTS[name]
    config = kind(**(COMMON | settings))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    fill(model, torch.Generator().manual_seed(seed))
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].to(torch.float32)


def reference(model, seed):
    """Prompts, their greedy continuations, and the logits at every position that predicts a known token."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for length in PROMPT_LENGTHS:
        prompt = torch.randint(1, VOCAB, (length,), generator=generator).tolist()
        tokens = list(prompt)
        for _ in range(GREEDY):
            tokens.append(int(logits(model, tokens)[-1].argmax()))
        cases.append((prompt, tokens[length:], logits(model, tokens[:-1])))
    return cases


def clear(cases):
    for prompt, _, table in cases:
        best = table[len(prompt) - 1 :].topk(2).values
        if (best[:, 0] - best[:, 1]).min() < GAP * table.abs().max():
            return False
    # A continuation that repeats one token tests little.
    return all(len(set(greedy)) > 3 for _, greedy, _ in cases)


def mistakes(name, model):
    """Models that make one mistake each."""

    def reconfigured(label, change):
        config = copy.deepcopy(model.config)
        change(config)
        wrong = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
        wrong.load_state_dict(model.state_dict(), strict=False)
        return label, wrong

    def reweighted(label, change):
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            change(wrong)
        return label, wrong

    def swap_kv(wrong):
        for layer in wrong.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                heads = wrong.config.num_key_value_heads
                for parameter in projection.parameters():
                    parameter.copy_(parameter.reshape(heads, -1).flip(0).reshape(parameter.shape))

    yield reconfigured("rope base", lambda c: c.rope_parameters.update(rope_theta=c.rope_parameters["rope_theta"] * 1.1))
    # The epsilon transformers assumes when a config has none, so also what a reader without the field would use.
    yield reconfigured("eps", lambda c: setattr(c, "rms_norm_eps", 1e-6))
    yield reweighted("swapped kv heads", swap_kv)
    if model.config.rope_parameters["rope_type"] != "default":
        theta = model.config.rope_parameters["rope_theta"]
        yield reconfigured("no scaling", lambda c: setattr(c, "rope_parameters", rope(theta=theta)))
    if name == "mistral":
        yield reconfigured("window off by one", lambda c: setattr(c, "sliding_window", c.sliding_window + 1))
    if name == "qwen3":
        yield reweighted(
            "no qk norm weight",
            lambda w: [n.weight.fill_(1.0) for l in w.model.layers for n in (l.self_attn.q_norm, l.self_attn.k_norm)],
        )
    if name == "qwen2":
        yield reweighted("no bias", lambda w: [p.zero_() for n, p in w.named_parameters() if n.endswith("bias")])


def check_mistakes(name, model, cases):
    for label, wrong in mistakes(name, model):
        moved = max(
            float((logits(wrong, prompt + greedy[:-1]) - table).abs().max() / table.abs().max())
            for prompt, greedy, table in cases
        )
        print(f"   {label}: moves logits by {moved / BOUND:.0f} bounds")
        assert moved > NOTICED * BOUND, f"{name} would not notice: {label}"


def write(name, model, cases):
    folder = MODELS / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    described = [dict(prompt=prompt, greedy=greedy) for prompt, greedy, _ in cases]
    (folder / "reference.json").write_text(json.dumps(dict(vocab_size=VOCAB, cases=described)) + "\n")
    tables = [table.numpy().astype("<f4").tobytes() for _, _, table in cases]
    (folder / "reference.bin").write_bytes(b"".join(tables))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"   {size / 1000:.0f} kB")
    assert size < 400_000


def make():
    torch.set_num_threads(1)
    for name in CHECKPOINTS:
        for seed in range(1, 2000):
            model = build(name, seed)
            cases = reference(model, seed)
            if clear(cases):
                break
        else:
            raise SystemExit(f"no seed makes {name} clear")
        print(f"{name}: seed {seed}, largest logit {max(float(t.abs().max()) for _, _, t in cases):.1f}", flush=True)
        check_mistakes(name, model, cases)
        write(name, model, cases)
