"""OpenAI's routes: what is answered, whole and as a stream, and what decides how."""

import json
import math

import pytest
from serving import Client

from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.slot import Slot
from pyggml.sampler import SamplerChain, SamplerParams
from pyggml.tokenizer import Tokenizer


def greedy(model: Model, prompt: str, n: int) -> bytes:
    """What a text of its own context says."""
    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    context = Context(model, 512)
    chain = SamplerChain(SamplerParams(temp=0.0), model.n_vocab)
    text = Sequence(tokenizer.encode(prompt), chain, tokenizer, max_tokens=n)
    for _ in generate(Slot(context), text):
        pass
    context.close()
    return bytes(text.data)


def joined(events: list, part: str = "text") -> str:
    if part == "text":
        return "".join(c["text"] for e in events for c in e["choices"])
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])


def test_health_and_models(client: Client) -> None:
    assert client.get("/health") == (200, {"status": "ok"})
    status, found = client.get("/v1/models")
    assert status == 200 and [m["id"] for m in found["data"]] == ["text.gguf"]
    assert found["data"][0]["meta"]["n_ctx"] == 512


@pytest.mark.parametrize("prompt", ["hello", "hello world", "a quite long text that goes on and on and on"])
def test_a_completion_is_what_the_text_says_alone_whole_and_streamed(client: Client, model: Model, prompt: str) -> None:
    wanted = greedy(model, prompt, 24).decode("utf-8", "replace")
    body = {"prompt": prompt, "max_tokens": 24}
    whole = client.ok("/v1/completions", body)
    assert whole["choices"][0]["text"] == wanted
    events = client.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert joined(events) == wanted and len(events) > 8
    assert [c["finish_reason"] for e in events for c in e["choices"]][-1] == whole["choices"][0]["finish_reason"]
    assert events[-1]["choices"] == []
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert events[-1]["usage"][key] == whole["usage"][key]


def test_messages_are_answered_by_the_template(client: Client, model: Model) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    wanted = greedy(model, "[system]be[user]hello[assistant]", 16).decode("utf-8", "replace")
    body = {"messages": messages, "max_tokens": 16}
    whole = client.ok("/v1/chat/completions", body)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": wanted}
    events = client.stream("/v1/chat/completions", body)
    assert joined(events, "content") == wanted
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    going_on = [*messages, {"role": "assistant", "content": wanted[:1]}]
    shown = client.ok("/apply-template", {"messages": going_on})["prompt"]
    assert shown == f"[system]be[user]hello[assistant]{wanted[:1]}"


def test_a_stop_text_ends_it_and_is_not_sent(client: Client, model: Model) -> None:
    text = greedy(model, "hello", 40).decode("utf-8", "replace")
    at = next(i for i in range(4, len(text)) if "\ufffd" not in text[i : i + 2] and text.find(text[i : i + 2]) == i)
    body = {"prompt": "hello", "max_tokens": 40, "stop": [text[at : at + 2], "never there"]}
    whole = client.ok("/v1/completions", body)["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (text[:at], "stop")
    assert joined(client.stream("/v1/completions", body)) == text[:at]


def test_seeds_and_parameters_of_each_request(client: Client) -> None:
    body = {
        "prompt": "hello",
        "max_tokens": 20,
        "temperature": 1.5,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "ignore_eos": True,
    }
    said = [client.ok("/v1/completions", {**body, "seed": seed})["choices"][0]["text"] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    two = client.ok("/v1/completions", {**body, "seed": 1, "n": 2})
    assert [c["text"] for c in two["choices"]] == [said[0], said[2]] and [c["index"] for c in two["choices"]] == [0, 1]
    assert two["usage"]["completion_tokens"] == 40 and two["usage"]["prompt_tokens"] == 1
    greedily = client.ok("/v1/completions", {**body, "temperature": 0})["choices"][0]["text"]
    banned = client.ok("/v1/completions", {**body, "temperature": 0, "logit_bias": [[greedily[:1], False]]})
    assert not banned["choices"][0]["text"].startswith(greedily[:1])


def test_log_probabilities(client: Client) -> None:
    body = {"prompt": "hello", "max_tokens": 6, "logprobs": 3}
    found = client.ok("/v1/completions", body)["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 6
    assert all(
        value == max(e["logprob"] for e in entry["top_logprobs"])
        for value, entry in zip(found["token_logprobs"], found["content"], strict=True)
    )
    assert all(len(entry["top_logprobs"]) == 3 for entry in found["content"])
    events = client.stream("/v1/completions", body)
    streamed = [
        value for e in events for c in e["choices"] if c["logprobs"] for value in c["logprobs"]["token_logprobs"]
    ]
    assert all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(streamed, found["token_logprobs"], strict=True))
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    content = client.ok("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    assert len(content) == 4 and all(len(entry["top_logprobs"]) == 2 for entry in content)


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    "held",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
    ],
    ids=["json_schema", "json_object", "own"],
)
def test_answers_held_to_a_schema(client: Client, held: dict) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200, **held}
    choice = client.ok("/v1/chat/completions", body)["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"])["n"], int)
    assert choice["message"]["content"].lstrip().startswith("{")


def test_answers_held_to_a_grammar(client: Client) -> None:
    body = {"prompt": "hello", "max_tokens": 50, "grammar": 'root ::= "yes" | "no"'}
    choice = client.ok("/v1/completions", body)["choices"][0]
    assert choice["text"] in ("yes", "no") and choice["finish_reason"] == "stop"


def test_several_prompts_and_tokens(client: Client) -> None:
    body = {"prompt": ["hello", "world"], "max_tokens": 5}
    both = client.ok("/v1/completions", body)["choices"]
    alone = [client.ok("/v1/completions", {**body, "prompt": p})["choices"][0]["text"] for p in body["prompt"]]
    assert [c["text"] for c in both] == alone
    tokens = client.served.tokenizer.encode("hello")
    assert client.ok("/v1/completions", {**body, "prompt": tokens})["choices"][0]["text"] == alone[0]
    echoed = client.ok("/v1/completions", {"prompt": "hello", "max_tokens": 5, "echo": True})["choices"][0]["text"]
    assert echoed == "hello" + alone[0]
