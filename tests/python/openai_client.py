"""Drives a running server with the openai package; the model is served as smollm2."""

import sys

import openai

client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none", max_retries=0)
ask = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def chat(**kwargs):
    return client.chat.completions.create(model="smollm2", messages=kwargs.pop("messages", ask), **kwargs)


def refused(kind, status, param=None, **kwargs):
    try:
        chat(**kwargs)
    except kind as error:
        assert error.status_code == status, error
        assert param is None or error.param == param, (error.param, param)
        return error
    raise AssertionError(f"not refused: {kwargs}")


assert [m.id for m in client.models.list()] == ["smollm2"]
assert client.models.retrieve("smollm2").id == "smollm2"

whole = chat(temperature=0, max_tokens=24)
text = whole.choices[0].message.content
assert "Paris" in text, text
assert whole.usage.prompt_tokens + whole.usage.completion_tokens == whole.usage.total_tokens

chunks = list(chat(temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices

scored = chat(temperature=0, max_tokens=4, logprobs=True, top_logprobs=3)
tokens = scored.choices[0].logprobs.content
assert len(tokens) == 4 and all(len(t.top_logprobs) == 3 for t in tokens)
assert all(t.logprob == max(a.logprob for a in t.top_logprobs) for t in tokens), "greedy takes the most likely"
assert b"".join(bytes(t.bytes) for t in tokens).decode() == scored.choices[0].message.content

several = chat(n=3, seed=5, temperature=1.0, max_tokens=12)
again = chat(n=3, seed=5, temperature=1.0, max_tokens=12)
assert [c.index for c in several.choices] == [0, 1, 2]
assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]

stopped = chat(temperature=0, max_tokens=64, stop=["Paris"])
assert "Paris" not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop"

parts = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France? Answer in one sentence."}]}]
assert chat(messages=parts, temperature=0, max_tokens=24).choices[0].message.content == text

completion = client.completions.create(model="smollm2", prompt="The capital of France is", max_tokens=5, temperature=0, echo=True)
assert completion.choices[0].text.startswith("The capital of France is"), completion.choices[0].text
ids = client.completions.create(model="smollm2", prompt=[504, 3575, 282], max_tokens=2, temperature=0)
assert ids.usage.prompt_tokens == 3
batch = client.completions.create(model="smollm2", prompt=["One, two,", "Red, green,"], max_tokens=3, temperature=0)
assert [c.index for c in batch.choices] == [0, 1]

refused(openai.NotFoundError, 404, messages=ask, extra_body={"model": "nothing"})
refused(openai.BadRequestError, 400, "temperature", temperature=3)
refused(openai.BadRequestError, 400, "max_tokens", max_tokens=0)
refused(openai.BadRequestError, 400, "response_format", response_format={"type": "json_object"})
refused(openai.BadRequestError, 400, messages=[])
long = refused(openai.BadRequestError, 400, messages=[{"role": "user", "content": "word " * 20000}])
assert long.code == "context_length_exceeded", long
print("ok")
