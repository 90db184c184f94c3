"""What replies mean: reasoning, answer and calls of each format, whole and in pieces of every size."""

import json

import pytest

from pyggml.chat import ReplyParser
from pyggml.chat.reply import Delta, Reply, form_of
from pyggml.chat.reply.formats import ROWS

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {"where": {"type": "string"}, "n": {"type": "integer"}, "tags": {"type": "array"}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = {"where": 'a "b"\n<c>}', "n": 12, "tags": ["x", {"y": None}]}
AS_JSON = json.dumps(ARGUMENTS)


def _tags(call: str, key: str, end: str, close: str, newline: str = "\n") -> str:
    values = [ARGUMENTS["where"], json.dumps(ARGUMENTS["n"]), json.dumps(ARGUMENTS["tags"])]
    pairs = zip(ARGUMENTS, values, strict=True)
    inside = "".join(f"{key.format(name)}{newline}{value}{newline}{end}\n" for name, value in pairs)
    return f"{call}\n{inside}{close}"


CASES = {  # format -> reasoning's marks, a call of find with ARGUMENTS, one of stop without, or None if the form has one
    "hermes": (
        ("<think>", "</think>\n\n"),
        f'<tool_call>\n{{"name": "find", "arguments": {AS_JSON}}}\n</tool_call>',
        '\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    ),
    "qwen3-coder": (
        ("<think>\n", "\n</think>\n\n"),
        f"<tool_call>\n{_tags('<function=find>', '<parameter={}>', '</parameter>', '</function>')}\n</tool_call>",
        "\n<tool_call>\n<function=stop>\n</function>\n</tool_call>",
    ),
    "minimax-m2": (
        ("<think>\n", "\n</think>\n\n"),
        "<minimax:tool_call>\n"
        + _tags('<invoke name="find">', '<parameter name="{}">', "</parameter>", "</invoke>", ""),
        '\n<invoke name="stop">\n</invoke>\n</minimax:tool_call>',
    ),
    "glm-4.5": (
        ("<think>", "</think>\n"),
        f"<tool_call>{_tags('find', '<arg_key>{}</arg_key><arg_value>', '</arg_value>', '</tool_call>', '')}",
        "\n<tool_call>stop\n</tool_call>",
    ),
    "kimi-k2": (
        ("<think>", "</think>"),
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.find:0<|tool_call_argument_begin|>"
        f"{AS_JSON}<|tool_call_end|>",
        "<|tool_call_begin|>functions.stop:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "deepseek-v3.1": (
        ("<think>", "</think>"),
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>{AS_JSON}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>stop<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-r1": (
        ("<think>", "</think>"),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n"
        f"{AS_JSON}\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>stop\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "mistral": (("[THINK]", "[/THINK]"), f"[TOOL_CALLS]find[ARGS]{AS_JSON}", "[TOOL_CALLS]stop[ARGS]{}"),
    "mistral-nemo": (
        None,
        f'[TOOL_CALLS][{{"name": "find", "arguments": {AS_JSON}, "id": "abcdefghi"}}',
        ', {"name": "stop", "arguments": {}, "id": "123456789"}]',
    ),
    "gpt-oss": (
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        f"<|start|>assistant<|channel|>commentary to=functions.find <|constrain|>json<|message|>{AS_JSON}<|call|>",
        "<|start|>assistant to=functions.stop<|channel|>commentary json<|message|>{}<|call|>",
    ),
    "command-r7b": (
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        f'<|START_ACTION|>[\n  {{"tool_call_id": "0", "tool_name": "find", "parameters": {AS_JSON}}}',
        ',\n  {"tool_call_id": "1", "tool_name": "stop", "parameters": {}}\n]<|END_ACTION|>',
    ),
    "lfm2": (
        ("<think>", "</think>"),
        f"<|tool_call_start|>[find(where={ARGUMENTS['where']!r}, n=12, tags={ARGUMENTS['tags']!r})",
        ", stop()]<|tool_call_end|>",
    ),
    "gemma4": (
        ("<|channel>thought\n", "<channel|>"),
        '<|tool_call>call:find{where:<|"|>a "b"\n<c>}<|"|>,n:12,tags:[<|"|>x<|"|>,{y:null}]}<tool_call|>',
        "<|tool_call>call:stop{}<tool_call|>",
    ),
    "granite-3": (
        ("<think>", "</think>"),
        f'<|tool_call|>[{{"name": "find", "arguments": {AS_JSON}}}',
        ', {"name": "stop", "arguments": {}}]',
    ),
    "functionary-3.1": (None, f"<function=find>{AS_JSON}</function>", "<function=stop>{}</function>"),
    "functionary-3.2": (None, f">>>find\n{AS_JSON}", ">>>stop\n{}"),
    "firefunction-2": (
        None,
        f' functools[{{"name": "find", "arguments": {AS_JSON}}}',
        ', {"name": "stop", "arguments": {}}]',
    ),
    "llama-3": (None, f'{{"name": "find", "parameters": {AS_JSON}}}', '; {"name": "stop", "parameters": {}}'),
}


def _row(name: str):
    return next(row for row in ROWS if row.name == name)


def _text(name: str, reasoning: bool, content: str) -> str:
    marks, first, second = CASES[name]
    before = f"{marks[0]}I think.{marks[1]}" if marks and reasoning else ""
    if name == "gpt-oss":
        content = f"<|channel|>final<|message|>{content}<|end|>" if content else ""
    if name == "functionary-3.2":
        content = f"all\n{content}" if content else ""
    return before + content + first + second


def _read(name: str, text: str, size: int, tools=TOOLS, reasoning: bool = True) -> tuple[Reply, list[Delta]]:
    parser = ReplyParser(_row(name).form, tools, reasoning, make_id=lambda: "made")
    deltas: list[Delta] = []
    for i in range(0, len(text), size):
        deltas += parser.feed(text[i : i + size])
    return parser.reply, deltas + parser.finish()


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("name", CASES)
def test_reasoning_answer_and_calls_of_every_format_in_pieces_of_any_size(name, size):
    content = "" if name == "llama-3" else "Well."
    reply, deltas = _read(name, _text(name, True, content), size)
    assert reply.content.strip() == content
    assert reply.reasoning.strip() == ("I think." if CASES[name][0] else "")
    assert [call.name for call in reply.calls] == ["find", "stop"]
    assert [json.loads(call.arguments) for call in reply.calls] == [ARGUMENTS, {}]
    assert all(call.id for call in reply.calls)
    assert "".join(delta.content for delta in deltas) == reply.content
    assert "".join(delta.reasoning for delta in deltas) == reply.reasoning
    for i, call in enumerate(reply.calls):
        own = [delta for delta in deltas if delta.call == i]
        assert own[0].name == call.name and own[0].id and not any(delta.name or delta.id for delta in own[1:])
        assert "".join(delta.arguments for delta in own) == call.arguments


@pytest.mark.parametrize("name", CASES)
def test_every_beginning_of_a_reply_says_what_the_whole_one_goes_on_from(name):
    text = _text(name, True, "" if name == "llama-3" else "Well.")
    whole, _ = _read(name, text, len(text))
    parser = ReplyParser(_row(name).form, TOOLS, make_id=lambda: "made")
    for char in text:
        parser.feed(char)
        so_far = parser.reply
        assert whole.content.startswith(so_far.content) and whole.reasoning.startswith(so_far.reasoning)
        assert len(so_far.calls) <= len(whole.calls)
        for mine, full in zip(so_far.calls, whole.calls, strict=False):
            assert mine.name == full.name and full.arguments.startswith(mine.arguments)


@pytest.mark.parametrize("name", CASES)
def test_a_reply_that_is_cut_off_anywhere_is_no_error(name):
    text = _text(name, True, "" if name == "llama-3" else "Well.")
    for n in range(len(text)):
        _read(name, text[:n], 3)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"gpt-oss", "functionary-3.2"}))
def test_calls_are_text_where_no_tool_may_be_called(name):
    text = f"Well.{CASES[name][1]}"
    reply, _ = _read(name, text, 5, tools=())
    assert reply.calls == [] and CASES[name][1].strip() in reply.content


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0]])
def test_reasoning_stays_in_the_text_where_it_is_not_told_apart(name):
    marks = CASES[name][0]
    reply, _ = _read(name, _text(name, True, "Well."), 4, reasoning=False)
    assert reply.reasoning == "" and f"{marks[0].strip()}" in reply.content and "I think." in reply.content


def test_text_that_only_looks_like_a_marker_is_not_held_back_forever():
    parser = ReplyParser(_row("hermes").form, TOOLS)
    assert parser.feed("a <too") == [Delta(content="a")]
    assert parser.feed("l> b") == [Delta(content=" <tool> b")]


def test_reasoning_that_the_prompt_opened():
    parser = ReplyParser(_row("hermes").form, TOOLS, opened="<think>\n")
    parser.feed("so\n</think>\n\nHi")
    assert (parser.reply.reasoning, parser.reply.content) == ("so", "Hi")


def test_a_template_without_marks_of_its_own_is_read_in_the_generic_way():
    assert form_of("{{ messages }}").name == "generic"
