"""Llama.create_chat_completion: what llama_cpp.Llama's users rely on, on a small model and the reference backend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_model import EOT

from pyggml import Llama
from pyggml.api.arguments import ParameterError
from pyggml.chat import ChatError
from pyggml.errors import ContextError, GrammarError

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if tools %}[{{ tools[0].function.name }}]{% endif %}{% if add_generation_prompt %}a:{% endif %}"
)
MODEL = {"n_ctx": 128, "template": TEMPLATE}
LLAMA = {"n_ctx": 128, "logits_all": True}
HELLO = [{"role": "user", "content": "hello"}]
CLOCK = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
WEEK = {
    "type": "function",
    "function": {
        "name": "week",
        "parameters": {"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"]},
    },
}
CALL = b'<tool_call>{"name":"week","arguments":{"even":true}}</tool_call>'


class Script:
    """A logits processor that has the model say given bytes and then end."""

    def __init__(self, data: bytes) -> None:
        self.tokens = iter([*data, EOT])

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:] = -50
        logits[next(self.tokens)] = 50
        return logits


def say(llm: Llama, data: bytes, messages: list[dict[str, Any]] = HELLO, **options: Any) -> Any:
    return llm.create_chat_completion(messages, logits_processor=Script(data), temperature=0, **options)


def test_equal_to_the_peer(llm: Llama, path: Path, peer: Any) -> None:
    calls: list[dict[str, Any]] = [
        {"messages": HELLO, "max_tokens": 8},
        {"messages": HELLO, "max_tokens": 5, "logprobs": True, "top_logprobs": 2},
        {"messages": HELLO, "max_tokens": 6, "stream": True, "model": "named"},
        {
            "messages": [{"role": "system", "content": "s"}, *HELLO, {"role": "assistant", "content": "x"}, *HELLO],
            "max_tokens": 2,
            "stop": "e",
        },
        {"messages": HELLO, "max_tokens": 4, "tools": [{"type": "function", "function": {"name": "now"}}]},
    ]
    script = """
import json, sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=128, logits_all=True, verbose=False)
out = []
for call in json.loads(sys.argv[2]):
    answer = llm.create_chat_completion(temperature=0, **call)
    out.append(list(answer) if call.get("stream") else answer)
print(json.dumps(out, default=float))
"""
    theirs = json.loads(peer.run(script, str(path), json.dumps(calls)).stdout.splitlines()[-1])
    for call, wanted in zip(calls, theirs, strict=True):
        ours = llm.create_chat_completion(temperature=0, **call)
        pairs = zip(list(ours), wanted, strict=True) if call.get("stream") else [(ours, wanted)]
        for mine, other in pairs:
            for answer in (mine, other):
                assert answer.pop("id").startswith("chatcmpl-")
                assert answer.pop("created") > 0
            numbers = [answer["choices"][0].pop("logprobs") for answer in (mine, other)]
            assert mine == other
            if numbers[1] is None:
                assert numbers[0] is None
                continue
            assert numbers[0].keys() == numbers[1].keys()
            for a, b in zip(numbers[0]["content"], numbers[1]["content"], strict=True):
                assert a["token"] == b["token"] and a["logprob"] == pytest.approx(b["logprob"], abs=1e-3)
                assert [t["token"] for t in a["top_logprobs"]] == [t["token"] for t in b["top_logprobs"]]


def test_an_answer(llm: Llama) -> None:
    answer = say(llm, "grüß".encode())
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "grüß"}
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 6


def test_a_stream(llm: Llama) -> None:
    chunks = list(say(llm, "aé!".encode(), stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant"}, {"content": "a"}, {"content": "é"}, {"content": "!"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]


def test_the_end_as_text_ends_too(llm: Llama) -> None:
    assert say(llm, b"ab<|end|>c")["choices"][0]["message"]["content"] == "ab"


def test_the_history_is_not_computed_again(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.reset()
    decoded: list[int] = []
    decode = llm.context.decode

    def counting(tokens: list[int], **options: Any) -> Any:
        decoded.append(len(tokens))
        return decode(tokens, **options)

    monkeypatch.setattr(llm.context, "decode", counting)
    say(llm, b"xyz")
    first = sum(decoded)
    decoded.clear()
    say(llm, b"!", [*HELLO, {"role": "assistant", "content": "xyz"}, {"role": "user", "content": "q"}])
    assert decoded[0] == len("|u:q|a:") and decoded[0] < first  # "|" is the token that ends a message


def test_formats_by_name(path: Path) -> None:
    with Llama(path, n_ctx=128, verbose=False, chat_format="vicuna-orca") as llm:
        say(llm, b"x")
        assert llm.detokenize(llm._input_ids).startswith(b"USER: hello\nASSISTANT:")
    with pytest.raises(ParameterError, match="chat_format='none such' is not known; known: alpaca"):
        Llama(path, verbose=False, chat_format="none such")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tool_choice": {"function": {"name": "f"}}}, ChatError, "tool_choice 'f': there is no such tool"),
        ({"function_call": {"name": "f"}}, ChatError, "tool_choice 'f': there is no such tool"),
        ({"tool_choice": {"name": "f"}, "tools": [CLOCK]}, ParameterError, "tool_choice must be"),
        ({"tool_choice": "never", "tools": [CLOCK]}, ChatError, "tool_choice 'never'"),
        ({"grammar": 'root ::= "a"', "tools": [CLOCK]}, ParameterError, "not both"),
        ({"response_format": {"type": "xml"}}, ParameterError, "response_format of type 'xml'"),
        ({"response_format": {"type": "json_object", "schema": {"type": "x"}}}, GrammarError, "unknown type 'x'"),
        ({"grammar": "root ::= b"}, GrammarError, "rule 'b'"),
        ({"messages": [{"role": "user"}]}, ChatError, "message 0 has no content"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, ContextError, "exceed context window of 128"),
    ],
)
def test_what_cannot_be_done_is_named(llm: Llama, options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        llm.create_chat_completion(**{"messages": HELLO, **options})


def test_an_answer_held_to_json(llm: Llama) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    answer = llm.create_chat_completion(HELLO, response_format={"type": "json_object", "schema": schema}, seed=1)
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert list(value) == ["yes"] and isinstance(value["yes"], bool)


@pytest.mark.parametrize("choice", [None, "auto", "required", {"type": "function", "function": {"name": "week"}}])
def test_calls_of_tools_are_read_whole_and_streamed(llm: Llama, choice: Any) -> None:
    options = {"tools": [WEEK], "tool_choice": choice, "max_tokens": 90}
    answer = say(llm, CALL, [{"role": "user", "content": ""}], **options)["choices"][0]
    assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
    (call,) = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "week", "arguments": '{"even":true}'} == answer["message"]["function_call"]
    chunks = [c["choices"][0] for c in say(llm, CALL, [{"role": "user", "content": ""}], stream=True, **options)]
    parts = [part for chunk in chunks for part in chunk["delta"].get("tool_calls", [])]
    assert parts[0]["function"]["name"] == "week" and parts[0]["id"] and not any(part["id"] for part in parts[1:])
    assert "".join(part["function"]["arguments"] for part in parts) == '{"even":true}' and len(parts) > 3
    assert chunks[-1] == {**chunks[-1], "delta": {}, "finish_reason": "tool_calls"}
    assert chunks[0]["delta"]["role"] == "assistant"


def test_an_answer_that_must_call_does(llm: Llama) -> None:
    """The model would say something else; its text is held to the call, whose argument it chooses."""
    options = {"tools": [WEEK, CLOCK], "tool_choice": {"function": {"name": "week"}}, "max_tokens": 100}
    bias = dict.fromkeys(b" \n\t", -60.0)
    answer = llm.create_chat_completion([{"role": "user", "content": ""}], seed=1, logit_bias=bias, **options)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "week" and list(json.loads(call["function"]["arguments"])) == ["even"]


def test_text_beside_calls_and_without_them(llm: Llama) -> None:
    both = say(llm, b"So: " + CALL, [{"role": "user", "content": ""}], tools=[WEEK], max_tokens=90)["choices"][0]
    assert both["message"]["content"] == "So:" and len(both["message"]["tool_calls"]) == 1
    plain = say(llm, b"No <call>.", [{"role": "user", "content": ""}], tools=[WEEK])["choices"][0]
    assert plain["message"] == {"role": "assistant", "content": "No <call>."} and plain["finish_reason"] == "stop"
