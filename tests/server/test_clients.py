"""Anthropic's and OpenAI's own clients: /v1/messages and /v1/responses, whole and as streams, with tools and thoughts."""

import json
from collections.abc import Iterator

import anthropic
import openai
import pytest
from serving import Client, serving

from pyggml.model.model import Model

TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if think %}<think>\n{% endif %}{# </think> #}{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
ASK = [{"role": "user", "content": "weather"}]
DENSE = {"logit_bias": [[c, -50] for c in " \n\th"]}  # what a random model would fill calls up with, and <think>
THINK = {"chat_template_kwargs": {"think": True}}


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Client]:
    with serving(model, n_slots=2, n_ctx=2 * 1024, template=TEMPLATE) as client:
        yield client


@pytest.fixture
def claude(server: Client) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(server: Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_messages(server: Client, claude: anthropic.Anthropic) -> None:
    wanted = server.ok(
        "/v1/chat/completions", {"messages": [{"role": "system", "content": "be"}, *ASK], "max_tokens": 12}
    )
    options = {"model": "x", "max_tokens": 12, "system": "be", "messages": ASK}
    whole = claude.messages.create(**options)
    assert [block.type for block in whole.content] == ["text"] and whole.stop_reason == "max_tokens"
    assert whole.content[0].text == wanted["choices"][0]["message"]["content"]
    assert whole.usage.output_tokens == 12
    with claude.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == 12
    n = claude.messages.count_tokens(model="x", system="be", messages=ASK).input_tokens
    assert n == wanted["usage"]["prompt_tokens"]
    stops = {**options, "stop_sequences": ["never", "cd"], "extra_body": {"grammar": 'root ::= "abcde"'}}
    stopped = [claude.messages.create(**stops)]
    with claude.messages.stream(**stops) as stream:
        stopped.append(stream.get_final_message())
    for one in stopped:
        assert (one.content[0].text, one.stop_reason, one.stop_sequence) == ("ab", "stop_sequence", "cd")
    blocks = [{"role": "user", "content": [{"type": "text", "text": "weather"}]}]
    assert claude.messages.create(**{**options, "messages": blocks}).content[0].text == whole.content[0].text


def test_messages_with_tools(claude: anthropic.Anthropic) -> None:
    tools = [{"name": "get_weather", "description": "", "input_schema": SCHEMA}]
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    options = {
        "model": "x",
        "max_tokens": 300,
        "messages": ASK,
        "tools": tools,
        "tool_choice": choice,
        "extra_body": DENSE,
    }
    whole = claude.messages.create(**options)
    (call,) = [block for block in whole.content if block.type == "tool_use"]
    assert call.name == "get_weather" and call.input["city"] in ("Rome", "Oslo") and whole.stop_reason == "tool_use"
    with claude.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    assert [(b.name, b.input) for b in streamed.content if b.type == "tool_use"] == [(call.name, call.input)]
    again = [
        *ASK,
        {"role": "assistant", "content": [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    assert (
        claude.messages.create(
            **{**options, "messages": again, "tool_choice": {"type": "none"}, "max_tokens": 3}
        ).usage.output_tokens
        == 3
    )


def test_messages_with_thoughts(claude: anthropic.Anthropic) -> None:
    options = {"model": "x", "max_tokens": 10, "messages": ASK, "extra_body": THINK}
    whole = claude.messages.create(**options)
    assert [block.type for block in whole.content] == ["thinking"]
    with claude.messages.stream(**options) as stream:
        assert [b.thinking for b in stream.get_final_message().content] == [whole.content[0].thinking]


@pytest.mark.parametrize("body", [
    {"max_tokens": 3}, {"messages": []}, {"messages": [{"role": "king", "content": "x"}]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {"messages": [{"role": "user", "content": []}]},
    {"messages": ASK, "max_tokens": "x"}, {"messages": ASK, "tools": [{}]}, {"messages": ASK, "tool_choice": {"type": "odd"}},
    {"messages": ASK, "system": 5}, {"messages": ASK, "thinking": {"type": "odd"}},
], ids=str)  # fmt: skip
def test_messages_that_are_wrong(server: Client, body: dict) -> None:
    status, found = server.post("/v1/messages", body)
    assert status == 400 and found["error"]["param"], found


def test_responses(server: Client, gpt: openai.OpenAI) -> None:
    wanted = server.ok(
        "/v1/chat/completions", {"messages": [{"role": "system", "content": "be"}, *ASK], "max_tokens": 12}
    )
    options = {"model": "x", "instructions": "be", "input": "weather", "max_output_tokens": 12}
    whole = gpt.responses.create(**options)
    text = wanted["choices"][0]["message"]["content"]
    assert whole.output_text == text and whole.usage.output_tokens == 12 and whole.status == "incomplete"
    kinds, said = [], ""
    for event in gpt.responses.create(**options, stream=True):
        kinds.append(event.type)
        said += event.delta if event.type == "response.output_text.delta" else ""
    assert said == text and event.response.output_text == text
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "weather"}]}]
    assert gpt.responses.create(**{**options, "input": parts}).output_text == text


def test_responses_with_tools(server: Client, gpt: openai.OpenAI) -> None:
    tools = [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}]
    options = {
        "model": "x",
        "input": "weather",
        "tools": tools,
        "tool_choice": {"type": "function", "name": "get_weather"},
    }
    options |= {"max_output_tokens": 300, "parallel_tool_calls": False, "extra_body": DENSE}
    (call,) = [item for item in gpt.responses.create(**options).output if item.type == "function_call"]
    assert call.name == "get_weather" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(gpt.responses.create(**options, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
    items = [
        *ASK,
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    again = gpt.responses.create(**{**options, "input": items, "tool_choice": "none", "max_output_tokens": 3})
    assert again.usage.output_tokens == 3
    assert (
        gpt.responses.create(model="x", input="weather", max_output_tokens=4, extra_body=THINK).output[0].type
        == "reasoning"
    )
    assert server.ok("/v1/responses/input_tokens", {"input": "weather"})["input_tokens"] > 0


@pytest.mark.parametrize("body", [
    {}, {"input": 5}, {"input": [{"type": "odd"}]}, {"input": "x", "previous_response_id": "r"}, {"input": "x", "background": True},
    {"input": "x", "max_output_tokens": 0}, {"input": "x", "tools": [{"type": "web_search"}]}, {"input": "x", "text": {"format": {"type": "odd"}}},
], ids=str)  # fmt: skip
def test_responses_that_are_wrong(server: Client, body: dict) -> None:
    status, found = server.post("/v1/responses", body)
    assert status == 400 and found["error"]["param"], found
