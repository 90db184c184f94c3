"""What replies mean: reasoning, answer and calls of each format, whole and in pieces of every size."""

import json

import pytest
from reply_cases import ARGUMENTS, CASES, TOOLS

from pyggml.chat import ReplyParser
from pyggml.chat.reply import Delta, Reply, form_of
from pyggml.chat.reply.formats import ROWS


def _row(name: str):
    return next(row for row in ROWS if row.name == name)


def _text(name: str, reasoning: bool, content: str) -> str:
    marks, first, second = CASES[name]
    before = f"{marks[0]}I think.{marks[1]}" if marks and reasoning else ""
    if name == "gpt-oss":
        content = f"<|channel|>final<|message|>{content}<|end|>" if content else ""
    if name == "muse-glimmer":
        content = f" to=user<|message|>{content}<|eom|><|start|>assistant" if content else ""
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


@pytest.mark.parametrize("name", sorted(set(CASES) - {"gpt-oss", "functionary-3.2", "muse-glimmer"}))
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


def test_values_of_python_become_json():
    parser = ReplyParser(_row("lfm2").form, TOOLS)
    parser.feed(
        "<|tool_call_start|>[find(where='it\\'s \"so\"', tags=[True, None, false, {'a': 1}], n=-1.5)]<|tool_call_end|>"
    )
    expected = {"where": 'it\'s "so"', "tags": [True, None, False, {"a": 1}], "n": -1.5}
    assert json.loads(parser.reply.calls[0].arguments) == expected


DEEP = 5000
_M3 = "]<]minimax[>["


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gemma4", "<|tool_call>call:find" + DEEP * "{a:"),
        ("gemma4", "<|tool_call>call:find" + "{a:" + DEEP * "["),
        ("minimax-m3", f'{_M3}<tool_call>{_M3}<invoke name="find">' + DEEP * f"{_M3}<a>"),
        ("minimax-m3", f'{_M3}<tool_call>{_M3}<invoke name="find">{_M3}<tags>' + DEEP * f"{_M3}<item>"),
        ("hermes", '<tool_call>{"name": "find", "arguments": ' + DEEP * '{"a":['),
        ("hermes", "<tool_call>" + DEEP * '{"function":'),
        ("lfm2", "<|tool_call_start|>[find(a=" + DEEP * "["),
        ("qwen3-coder", "<tool_call><function=find><parameter=n>" + DEEP * "["),
    ],
)
def test_values_within_values_without_end_are_no_error(name, text):
    for end in ("", ")" + "</parameter></function></tool_call>"):
        reply, _ = _read(name, text + end, 997)
        assert len(reply.calls) <= 1


def test_elements_become_what_the_schema_says():
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": ["string", "null"]},
            "n": {"type": ["integer", "null"]},
            "tree": {"$ref": "#/$defs/tree"},
            "rows": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            "free": {},
            "kind": {"enum": ["a", "b"]},
            "map": {"type": "object"},
            "item": {"type": "object", "properties": {"item": {"type": "boolean"}}},
        },
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                },
                "required": ["name"],
            }
        },
    }
    elements = {
        "M<text>12M</text>": {"text": "12"},
        "M<text> a\nM<b>M</text>": {"text": f" a\n{_M3}<b>"},
        "M<n>12M</n>M<n>nullM</n>": {"n": None},
        "M<tree>M<name>aM</name>M<kids>M<item>M<name>1M</name>M</item>M</kids>M</tree>": {
            "tree": {"name": "a", "kids": [{"name": "1"}]}
        },
        "M<rows>M<item>M<item>1M</item>M<item>2.5M</item>M</item>M<item>M</item>M</rows>": {"rows": [[1, 2.5], []]},
        "M<rows>[[1], []]M</rows>": {"rows": [[1], []]},
        "M<rows>M</rows>M<map>M</map>": {"rows": [], "map": {}},
        "M<free>M<item>1M</item>M<item>xM</item>M</free>": {"free": [1, "x"]},
        "M<free>M<a>trueM</a>M</free>": {"free": {"a": True}},
        "M<map>M<item>1M</item>M</map>": {"map": {"item": 1}},
        'M<map>{"a": [1]}M</map>': {"map": {"a": [1]}},
        "M<item>M<item>falseM</item>M</item>": {"item": {"item": False}},
        "M<kind>aM</kind>\nM<other>xM</other>": {"kind": "a", "other": "x"},
        "": {},
    }
    tools = [{"function": {"name": "grow", "parameters": schema}}]
    for inside, expected in elements.items():
        text = f'M<tool_call>M<invoke name="grow">{inside}M</invoke>M</tool_call>after'.replace("M", _M3)
        for size in (1, 3, 1000):
            reply, _ = _read("minimax-m3", text, size, tools)
            assert (reply.content, len(reply.calls)) == ("after", 1), inside
            assert json.loads(reply.calls[0].arguments) == expected, inside
