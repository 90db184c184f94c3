"""The reference's own cases of replies (tests/test-chat.cpp, read when the test runs): parts, pieces, grammars."""

import functools
import json

import pytest
from byte_vocabulary import ByteVocabulary, refused_at
from peer_chat_cases import Case, read_cases, tools_of
from peer_programs import source

from pyggml.cachedir import cache_dir
from pyggml.chat import ChatTemplate, Options, Prepared, prepare
from pyggml.grammar.lazy import LazyGrammar

OTHERWISE = {  # a text of a case -> why its parts are others here
    '```json\n"42"\n```': "a fence around JSON that a schema asks for stays",
    "[THINK]I need to output the invoice details in JSON": "the same",
    'Let me calculate.</ifm|think>{"answer":42}': "reasoning that is not told apart stays before JSON too",
    "I need to check the time first.\n<tool_call>get_time": "Ling: reasoning that is not told apart keeps its marker",
    "I'm\nthinking\n[BEGIN FINAL RESPONSE]": "Apriel: its first words are the marker, no part of the reasoning",
    "<|open|>response<|sep|>": "Kimi K3: reasoning that is not told apart keeps the marker that the prompt opened it with",
    '<function name="html"><param name="markup"><![CDATA[': "MiniCPM5: CDATA",
}
FREE = {  # texts that the grammar of their calls refuses here
    "</tool_call>\nThe time has been checked.": "Ling: text after a call",
    "<ifm|arg_type>": "K2 Horizon: types, which only a variable of its template asks for",
    '<ifm|tool_call>{"name"': "K2 Horizon: JSON, which only a variable of its template asks for",
    "<|end|><|start|> assistant to=": "LLM-jp: several calls",
    '<|tool_call_begin|>functions.python:1<|tool_call_argument_begin|>{"code"': "Kimi: several calls where one may be",
    "exllamav3": "Kimi: arguments that end too early",
}
FORMATS = {"COMMON_REASONING_FORMAT_AUTO": "auto", "COMMON_REASONING_FORMAT_DEEPSEEK": "deepseek"}
CHOICES = {"COMMON_CHAT_TOOL_CHOICE_REQUIRED": "required", "COMMON_CHAT_TOOL_CHOICE_NONE": "none"}
USER = {"role": "user", "content": "Hey there!"}


@functools.lru_cache(maxsize=1)
def _cases() -> list[Case]:
    cases, failed = read_cases(source(cache_dir("peer")) / "tests/test-chat.cpp")
    assert len(cases) > 400 and failed < 20, (len(cases), failed)
    return cases


def _prepared(case: Case, **more: object) -> Prepared:
    o = case.options
    messages = []
    for message in o.get("messages", [USER, {"role": "assistant", "content": "", "reasoning": "I'm"}]):
        one = {"role": message["role"], "content": message["content"]}
        messages.append(one | ({"reasoning_content": message["reasoning"]} if message.get("reasoning") else {}))
    go_on = bool(o.get("continue_final_message"))
    options = Options(
        tools=tuple(tools_of(o.get("tools", []))),
        tool_choice=CHOICES.get(o.get("tool_choice", ""), "auto"),
        parallel_tool_calls=bool(o.get("parallel_tool_calls")),
        reasoning_format=FORMATS.get(o.get("reasoning_format", ""), "none"),
        enable_thinking=o.get("enable_thinking", True),
        variables={key: json.loads(value) for key, value in o.get("chat_template_kwargs", [])},
        go_on=go_on,
    )
    template = ChatTemplate((source(cache_dir("peer")) / case.template).read_text(encoding="utf-8"))
    return prepare(template, messages if go_on or "messages" in o else [USER], options)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _parts(case: Case, size: int) -> tuple[object, object]:
    parser = _prepared(case).parser()
    for i in range(0, len(case.text), size):
        parser.feed(case.text[i : i + size])
    partial = bool(case.options.get("is_partial"))
    if not partial:
        parser.finish()
    reply = parser.reply
    wanted = [(call[0], None if partial else _json(call[1])) for call in case.calls]
    found = [(call.name, None if partial else _json(call.arguments)) for call in reply.calls]
    ids = [(call.id, want[2]) for call, want in zip(reply.calls, case.calls, strict=False) if len(want) > 2 and want[2]]
    return (
        (reply.content.strip(), reply.reasoning.strip(), found, [one for one, _ in ids]),
        (case.content.strip(), case.reasoning.strip(), wanted, [other for _, other in ids]),
    )


@pytest.mark.parametrize("size", [1, 5, 1_000_000])
def test_parts_are_those_that_the_reference_expects(size):
    wrong = []
    for case in _cases():
        if any(case.text.startswith(text) for text in OTHERWISE):
            continue
        found, wanted = _parts(case, size)
        if found != wanted:
            wrong.append((case.label, found, wanted))
    assert wrong == []


def test_what_is_said_to_differ_does():
    for text in OTHERWISE:
        cases = [case for case in _cases() if case.text.startswith(text)]
        assert cases, text
        assert any(found != wanted for found, wanted in (_parts(case, 1_000_000) for case in cases)), text


def _called(text: str = "") -> list[Case]:
    return [
        case
        for case in _cases()
        if case.calls and not case.options.get("is_partial") and "tool_choice" not in case.options and text in case.text
        if not any(case.text.startswith(other) for other in OTHERWISE)
    ]


def _refused(case: Case) -> int | None:
    prepared = _prepared(case)
    assert prepared.trigger is not None
    state = LazyGrammar(prepared.grammar, ByteVocabulary(), prepared.trigger)
    place = refused_at(state, case.text)
    assert state.triggered, case.label
    return place


def test_grammars_let_the_references_calls_pass():
    wrong = {}
    for case in _called():
        if not any(text in case.text for text in FREE) and (place := _refused(case)) is not None:
            wrong[case.label] = case.text.encode()[:place][-60:]
    assert wrong == {}


def test_what_grammars_are_said_to_refuse_they_refuse():
    for text in FREE:
        assert any(_refused(case) is not None for case in _called(text)), text


ARGUMENTS = {"where": 'a "b"\n<c>', "n": 12, "tags": ["x", {"y": None}]}


def test_what_hys_own_template_writes_is_read():
    """The reference has no cases of it: its template writes a message, which is read again."""
    template = ChatTemplate(
        (source(cache_dir("peer")) / "models/templates/tencent-Hy3.jinja").read_text(encoding="utf-8")
    )
    call = {"type": "function", "function": {"name": "find", "arguments": json.dumps(ARGUMENTS)}}
    tools = (
        {
            "type": "function",
            "function": {"name": "find", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}}},
        },
    )
    said = {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": [call, call]}
    options = Options(tools=tools, variables={"reasoning_effort": "high"})
    asked = prepare(template, [USER], options)
    assert asked.row.name == "hy3" and asked.opened == "<think:opensource>"
    written = prepare(template, [USER, said], Options(tools=tools, add_generation_prompt=False)).prompt
    begins = written.rindex(asked.opened) + len(asked.opened)
    for size in (1, 7, 10_000):
        parser = asked.parser()
        for i in range(begins, len(written), size):
            parser.feed(written[i : i + size])
        parser.finish()
        assert (parser.reply.reasoning, parser.reply.content.split("<")[0]) == ("Hm.", "Well.")
        assert [(c.name, json.loads(c.arguments)) for c in parser.reply.calls] == 2 * [("find", ARGUMENTS)]


def test_solar_open() -> None:
    """The reference has no cases of its replies. A reply is read, and its message rendered as the reply was; what is prefilled goes
    on as the template would have written it; with little effort reasoning is closed before it begins."""
    path = source(cache_dir("peer")) / "models/templates/upstage-Solar-Open-100B.jinja"
    template = ChatTemplate(path.read_text(encoding="utf-8"))
    tools = (
        {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
    )
    prepared = prepare(template, [USER], Options(tools=tools))
    assert prepared.row.name == "solar-open" and prepared.prompt.endswith("<|end|><|begin|>assistant")
    call = "<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_time<|tool_call:args|>{}<|tool_call:end|><|calls|>"
    text = f"<|think|>What time?<|end|><|begin|>assistant<|tool_calls|>{call}"
    parser = prepared.parser()
    parser.feed(text), parser.finish()
    reply = parser.reply
    assert (reply.reasoning, reply.content) == ("What time?", "")
    (made,) = reply.calls
    assert (made.name, made.arguments, made.id) == ("get_time", "{}", "a1b2c3d4e5")
    function = {"name": made.name, "arguments": made.arguments}
    said = {
        "role": "assistant", "content": "", "reasoning_content": reply.reasoning,
        "tool_calls": [{"id": made.id, "type": "function", "function": function}],
    }  # fmt: skip
    result = {"role": "tool", "content": "12:00", "tool_call_id": made.id}
    again = prepare(template, [USER, said, result], Options(tools=tools)).prompt
    assert f"<|begin|>assistant{text}<|begin|>tool<|tool_response|>" in again
    parser = prepared.parser()
    parser.feed("<|think|>Hm<|end|><|begin|>assistant<|content|>Noon.<|end|>"), parser.finish()
    assert (parser.reply.reasoning, parser.reply.content) == ("Hm", "Noon.")
    begun = {"role": "assistant", "content": "It is", "reasoning_content": "Hm"}
    prompt = prepare(template, [USER, begun], Options(go_on=True)).prompt
    assert prompt.endswith("<|begin|>assistant<|think|>Hm<|end|><|begin|>assistant<|content|>It is")
    quick = prepare(
        template, [USER], Options(tools=tools, tool_choice="required", variables={"reasoning_effort": "low"})
    )
    assert quick.prompt.endswith("<|begin|>assistant<|think|><|end|><|begin|>assistant")
