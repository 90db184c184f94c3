"""Calls of tools through the server: forced, free and forbidden; as a stream; reasoning; what templates are given."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pyggml_server.chat import chat
from pyggml_server.fields import Fields
from pyggml_server.requests import texts
from serving import Client, serving

from pyggml.model.model import Model

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "boolean"}},
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
HERMES = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if think %}<think>\n{% endif %}{# </think> #}{% endif %}"
)
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "weather"}],
    "tools": [WEATHER, CLOCK],
    "max_tokens": 400,
    "logit_bias": [[c, -50] for c in " \n\th"],  # what a random model would fill it up with, and <think>
}


@pytest.fixture(scope="module")
def hermes(model: Model) -> Iterator[Client]:
    with serving(model, n_slots=2, n_ctx=2 * 1024, template=HERMES) as client:
        yield client


@pytest.mark.parametrize("name", ["get_weather", "clock"])
def test_a_call_that_is_demanded_comes_whole_and_streamed(hermes: Client, name: str) -> None:
    body = {**ASK, "tool_choice": {"type": "function", "function": {"name": name}}, "parallel_tool_calls": False}
    choice = hermes.ok("/v1/chat/completions", body)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["type"] == "function" and call["id"] and call["function"]["name"] == name
    arguments = json.loads(call["function"]["arguments"])
    assert arguments == {} if name == "clock" else arguments["city"] in ("Rome", "Oslo")
    deltas = [c["delta"] for e in hermes.stream("/v1/chat/completions", body) for c in e["choices"]]
    calls = [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert calls[0]["function"]["name"] == name and calls[0]["id"] and {part["index"] for part in calls} == {0}
    assert "".join(part["function"]["arguments"] for part in calls) == call["function"]["arguments"]
    assert len(calls) > 3 or name == "clock"


def test_a_call_in_the_midst_of_text_is_held_to_its_schema(hermes: Client) -> None:
    """Any token may come until the mark of a call; after it only what begins one of a tool that there is."""
    served = hermes.served
    asked = chat(Fields(ASK), served)
    (text,) = texts(served, [asked.prompt], asked.options)
    grammar = text.sampler.grammar
    assert grammar.mask().all()
    for token in served.tokenizer.encode('Hm. <tool_call>{"name":"', add_special=False):
        assert grammar.allows(token)
        grammar.accept(token)
    allowed = {served.tokenizer.token_bytes(int(i)) for i in np.flatnonzero(grammar.mask())}
    assert allowed == {b"g", b"c"}


def test_none_is_called_where_none_may(hermes: Client) -> None:
    for body in ({**ASK, "tool_choice": "none"}, {"messages": ASK["messages"]}):
        choice = hermes.ok("/v1/chat/completions", {**body, "max_tokens": 8})["choices"][0]
        assert "tool_calls" not in choice["message"] and choice["finish_reason"] in ("stop", "length")


@pytest.fixture(scope="module")
def roomy(model: Model) -> Iterator[Client]:
    with serving(model, n_slots=1, n_ctx=2048) as client:
        yield client


def test_a_template_that_knows_no_tools(roomy: Client) -> None:
    client = roomy
    body = {**ASK, "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.ok("/v1/chat/completions", body)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in ("get_weather", "clock")
    again = [*ASK["messages"], {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]  # fmt: skip
    assert client.ok("/v1/chat/completions", {**ASK, "messages": again, "max_tokens": 4})["choices"]


def test_thoughts_are_told_apart(hermes: Client) -> None:
    body = {"messages": ASK["messages"], "max_tokens": 12, "chat_template_kwargs": {"think": True}}
    message = hermes.ok("/v1/chat/completions", body)["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"] == ""
    deltas = [c["delta"] for e in hermes.stream("/v1/chat/completions", body) for c in e["choices"]]
    assert "".join(d.get("reasoning_content", "") for d in deltas).strip() == message["reasoning_content"]
    plain = hermes.ok("/v1/chat/completions", {**body, "reasoning_format": "none"})["choices"][0]["message"]
    assert plain["content"].strip() == message["reasoning_content"] and "reasoning_content" not in plain


@pytest.mark.parametrize(("wrong", "param"), [
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tools": "x"}, "tools"),
    ({"tool_choice": "maybe"}, "tool_choice"),
    ({"tool_choice": {"function": {"name": "nothing"}}}, "tool_choice.function.name"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "tools"),
    ({"functions": [1]}, "functions"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "odd"}}}}}]}, "tools"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_what_is_wrong_with_tools_is_named(hermes: Client, wrong: dict, param: str) -> None:
    status, found = hermes.post("/v1/chat/completions", {**ASK, **wrong})
    assert status == 400 and found["error"]["param"] == param, found


def test_a_budget_of_reasoning(model: Model) -> None:
    body = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 30, "logit_bias": [[ord("x"), 100]]}
    thinks = {**body, "chat_template_kwargs": {"think": True}}
    more = {"reasoning_budget": 4, "reasoning_budget_message": "So."}
    with serving(model, n_slots=1, n_ctx=512, template=HERMES, **more) as client:
        message = client.ok("/v1/chat/completions", thinks)["choices"][0]["message"]
        assert message["reasoning_content"] == "xxxxSo."
        assert message["content"] and set(message["content"]) == {"x"}
        deltas = [c["delta"] for e in client.stream("/v1/chat/completions", thinks) for c in e["choices"]]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "xxxxSo."
        message = client.ok("/v1/chat/completions", body)["choices"][0]["message"]
        assert "reasoning_content" not in message and message["content"] == 30 * "x"


def test_a_request_brings_its_own_budget(hermes: Client) -> None:
    """By every protocol's name for it; over the server's, which has none here."""
    body = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 30, "logit_bias": [[ord("x"), 100]]}
    thinks = {**body, "chat_template_kwargs": {"think": True}}

    def thought(**more: Any) -> str:
        found = hermes.ok("/v1/chat/completions", {**thinks, **more})["choices"][0]["message"]
        return str(found["reasoning_content"])

    assert thought() == thought(reasoning_budget_tokens=-1) == 30 * "x"
    assert thought(reasoning_budget_tokens=4, reasoning_budget_message="So.") == "xxxxSo."
    assert thought(thinking_budget_tokens=3) == "xxx"
    assert thought(reasoning_budget_tokens=2, thinking_budget_tokens=5) == "xx"
    asked = {**thinks, "thinking": {"type": "enabled", "budget_tokens": 3}}
    assert hermes.ok("/v1/messages", asked)["content"][0]["thinking"] == "xxx"
    plain = {"prompt": "q", "n_predict": 8, "logit_bias": [[ord("x"), 100]]}
    own = {"reasoning_budget_tokens": 2, "reasoning_budget_start_tag": "xx", "reasoning_budget_end_tags": ["!", "?"]}
    assert hermes.ok("/completion", {**plain, **own})["content"] == "xxxx!xxx"
    own = {"reasoning_budget_tokens": 0, "reasoning_budget_start_tag": "xx", "reasoning_budget_end_tag": "?"}
    assert hermes.ok("/completion", {**plain, **own, "reasoning_budget_message": "So"})["content"] == "xxSo?xxS"
    assert hermes.ok("/completion", {**plain, "reasoning_budget_tokens": 2})["content"] == 8 * "x"


def test_the_reasoning_of_an_answer_under_way_is_ended(hermes: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, of all its choices; told apart: an id that nobody has, one that was not to be controlled, one without reasoning."""
    path = "/v1/chat/completions/control"
    batcher = hermes.served.engine.batcher
    step = batcher.step
    monkeypatch.setattr(batcher, "step", lambda: time.sleep(0.005) or step())
    body = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 900, "logit_bias": [[ord("x"), 100]]}
    thinks = {**body, "chat_template_kwargs": {"think": True}, "reasoning_control": True}

    def control(event: Any) -> Any:
        return hermes.ok(path, {"id": event["id"], "action": "reasoning_end"})

    with hermes.open_stream("/v1/chat/completions", {**thinks, "n": 2, "reasoning_budget_message": "So."}) as events:
        thoughts, said, asked = ["", ""], [False, False], False
        for event in events:
            for choice in event["choices"]:
                thoughts[choice["index"]] += choice["delta"].get("reasoning_content") or ""
                said[choice["index"]] |= bool(choice["delta"].get("content"))
            if all(thoughts) and not asked:
                asked = True
                assert control(event) == {"success": True}
            if all(said):
                break
        assert all(said) and all(text.endswith("xSo.") for text in thoughts), "both have an answer"
        assert control(event) == {"success": True}, "there is nothing to end any more"
    found = hermes.ok(path, {"id": event["id"], "action": "reasoning_end"})
    assert found["success"] is False and found["message"] == "no active completion for this id", "it has ended"
    for more, answer in (
        (
            {"reasoning_control": False},
            {"success": False, "message": "reasoning control not enabled for this completion"},
        ),
        ({"chat_template_kwargs": {}}, {"success": True}),
    ):
        with hermes.open_stream("/v1/chat/completions", {**thinks, **more}) as events:
            assert control(next(events)) == answer
            kind = "content" if "chat_template_kwargs" in more else "reasoning_content"
            for _, event in zip(range(9), events, strict=False):
                assert set(event["choices"][0]["delta"]) == {kind}, "it goes on as it was"
