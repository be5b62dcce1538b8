"""Reference distributions of SmolLM2-135M-Instruct over one text, from the dequantised GGUF file in f32.

`transformers` reads and dequantises the file by itself, so this also checks our reading of it: names, row order of
queries and keys, block formats.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paths import MODELS

POSITIONS = 500
TOP = 64

TEXT = """<|im_start|>system
You answer questions about ships, numbers and code.<|im_end|>
<|im_start|>user
Why do lighthouses flash instead of shining steadily? Please explain it in a few sentences.<|im_end|>
<|im_start|>assistant
A steady light on a dark coast can be mistaken for a star, a house or another ship. A flashing light cannot. Each
lighthouse has its own rhythm, called its characteristic, which is printed on nautical charts: for example, two white
flashes every ten seconds. A sailor who counts the seconds between flashes knows which lighthouse it is, and so where
the ship is. Rotating lenses also gather the light of a small lamp into narrow beams that reach much further than the
lamp alone could.<|im_end|>
<|im_start|>user
Write a Python function that returns the first n prime numbers, and tell me the sum of the first five.<|im_end|>
<|im_start|>assistant
```python
def primes(n):
    found = []
    candidate = 2
    while len(found) < n:
        if all(candidate % p != 0 for p in found if p * p <= candidate):
            found.append(candidate)
        candidate += 1
    return found

print(sum(primes(5)))
```

The first five prime numbers are 2, 3, 5, 7 and 11, so their sum is 28. The function tries each number in turn and
keeps it if no smaller prime divides it. Only primes up to the square root of the candidate have to be tried, because a
larger factor always comes together with a smaller one.<|im_end|>
<|im_start|>user
Translate "the ship sails at dawn" into French, Spanish and German.<|im_end|>
<|im_start|>assistant
French: Le navire part à l'aube.
Spanish: El barco zarpa al amanecer.
German: Das Schiff legt im Morgengrauen ab.

In each language the verb for leaving a harbour differs from the everyday verb for going. Sailors in 1850 would have
said much the same, though a steamship of 3,400 tons did not have to wait for the wind or the tide in the same way as
a schooner. When the captain gives the order, the crew casts off the lines, the engine turns slowly, and the ship moves
away from the quay into the open water of the bay, past the red and green buoys that mark the channel.<|im_end|>
"""


def make(path):
    file = Path(path)
    settings = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name)
    tokens = AutoTokenizer.from_pretrained(**settings).encode(TEXT, add_special_tokens=False)
    print(f"   {len(tokens)} tokens in the text")
    tokens = tokens[:POSITIONS]
    assert len(tokens) == POSITIONS
    model = AutoModelForCausalLM.from_pretrained(**settings, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    best = logprobs.topk(TOP, dim=-1)
    rest = (1 - best.values.exp().sum(-1)).clamp(min=0)
    predicted = logprobs[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
    print(f"   mean log probability of the text {predicted.mean():.3f}, mean rest {rest.mean():.4f}")

    record = np.dtype([("ids", "<u2", TOP), ("logprobs", "<f4", TOP), ("rest", "<f4")])
    records = np.zeros(POSITIONS, record)
    records["ids"], records["logprobs"], records["rest"] = best.indices, best.values, rest
    folder = MODELS / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reference.bin").write_bytes(records.tobytes())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "reference.json").write_text(json.dumps(dict(sha256=sha256, top=TOP, tokens=tokens)) + "\n")
    print(f"   {records.nbytes} bytes")
