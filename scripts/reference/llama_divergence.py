"""How far a llama-server's distributions are from the f32 reference of SmolLM2: the measure of
`gpu/models/src/fixtures/smollm2.rs`, on the same positions. Needs no packages.

usage: llama_divergence.py URL
"""

import json
import math
import struct
import sys
import urllib.request

from paths import MODELS

# Alternatives to ask for; where these do not hold all tokens of the reference, the whole vocabulary.
USUAL, ALL = 4096, 1 << 20
# Leads of the reference in nats; a flip is another best token although the lead is at least this.
LEADS = (0.3, 0.1, 0.0)
LEAST = 1e-30


def positions():
    """For each prompt of the fixture: the prompt, {token: log probability} best first, probability of the rest."""
    header = json.loads((MODELS / "smollm2" / "reference.json").read_text())
    top, tokens = header["top"], header["tokens"]
    record = struct.Struct(f"<{top}H{top}ff")
    records = record.iter_unpack((MODELS / "smollm2" / "reference.bin").read_bytes())
    for length, (*numbers, rest) in enumerate(records, start=1):
        yield tokens[:length], dict(zip(numbers[:top], numbers[top:])), rest


def ask(url, prompt, alternatives):
    """{token: log probability} after `prompt`, best first."""
    question = dict(prompt=prompt, n_predict=1, n_probs=alternatives, temperature=0, cache_prompt=True)
    request = urllib.request.Request(f"{url}/completion", json.dumps(question).encode())
    with urllib.request.urlopen(request) as answer:
        best = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    return {token["id"]: token["logprob"] for token in best}


def divergence(reference, rest, other):
    """KL divergence in nats over the tokens of the reference and "any other"."""
    total, others = 0.0, 1.0
    for token, logprob in reference.items():
        others -= math.exp(other[token])
        total += math.exp(logprob) * (logprob - max(other[token], math.log(LEAST)))
    return total + (rest * (math.log(rest) - math.log(max(others, LEAST))) if rest > LEAST else 0.0)


def main(url):
    total, count, flips = 0.0, 0, dict.fromkeys(LEADS, 0)
    for prompt, reference, rest in positions():
        other = ask(url, prompt, USUAL)
        if not reference.keys() <= other.keys():
            other = ask(url, prompt, ALL)
        total += divergence(reference, rest, other)
        count += 1
        first, second = list(reference)[:2]
        if next(iter(other)) != first:
            for lead in LEADS:
                flips[lead] += reference[first] - reference[second] >= lead
    found = ", ".join(f"{flips[lead]} at a lead of {lead} nats or more" for lead in LEADS)
    print(f"mean divergence {total / count:.6f} nats over {count} positions; flips: {found}")


main(sys.argv[1])
