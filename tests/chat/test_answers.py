"""What models write, read back: reasoning, text and calls of tools in every format, whole and piece by piece; and grammars that
allow just what is read."""

import json

import pytest

from pyggml.chat.answer import AnswerParser, Call, Message
from pyggml.chat.reading import Reader
from pyggml.grammar import Matcher, parse

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, CLOCK]
ARGUMENTS = '{"city": "Par\\u00eds \\"x\\" }", "days": 3}'
PARIS = Call("get_weather", ARGUMENTS)
DS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)

SOURCES = {
    "hermes": "{{ tools }}<tool_call></tool_call>",
    "qwen-coder": "{{ tools }}<tool_call><function=x><parameter=y>",
    "llama3": "{{ tools }}<|start_header_id|><|python_tag|>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "mistral-args": "{{ tools }}[TOOL_CALLS][ARGS]",
    "deepseek": "{{ tools }}" + "".join(DS) + "```json</think>",
    "deepseek-3.1": "{{ tools }}" + "".join(DS) + "</think>",
    "harmony": "{{ tools }}<|start|><|channel|><|message|>",
    "generic": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
WRITTEN: list[tuple[str, str, Message]] = [
    ("hermes", f'Let me see.\n<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>', Message("Let me see.", "", (PARIS,))),
    ("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>',
     Message("", "", (PARIS, Call("clock", "{}")))),
    ("hermes", "No <b>tools</b> are needed: a < b.", Message("No <b>tools</b> are needed: a < b.")),
    ("hermes", "<tool_call> is what I would write", Message("<tool_call> is what I would write")),
    ("qwen-coder", "Well.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
     Message("Well.", "", (Call("get_weather", '{"city": "Paris", "days": 3}'),))),
    ("llama3", f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}', Message("", "", (PARIS,))),
    ("llama3", f'<|python_tag|>{{"type": "function", "name": "clock", "parameters": {{}}}}; {{"name": "get_weather", "parameters": {ARGUMENTS}}}',
     Message("", "", (Call("clock", "{}"), PARIS))),
    ("llama3", '{"answer": 5}', Message('{"answer": 5}')),
    ("llama3", "It is 5.", Message("It is 5.")),
    ("mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}, {{"name": "clock", "arguments": {{}}}}]',
     Message("", "", (PARIS, Call("clock", "{}")))),
    ("mistral-args", f"Hm. [TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}[TOOL_CALLS]clock[ARGS]{{}}", Message("Hm.", "", (PARIS, Call("clock", "{}")))),
    ("deepseek", f"<think>\nwhich?\n</think>\n\nSo:\n{DS[0]}{DS[1]}function{DS[2]}get_weather\n```json\n{ARGUMENTS}\n```{DS[3]}{DS[4]}",
     Message("So:", "which?", (PARIS,))),
    ("deepseek-3.1", f"{DS[0]}{DS[1]}get_weather{DS[2]}{ARGUMENTS}{DS[3]}{DS[1]}clock{DS[2]}{{}}{DS[3]}{DS[4]}", Message("", "", (PARIS, Call("clock", "{}")))),
    ("deepseek", "<think>a</think>b", Message("b", "a")),
    ("deepseek", "plain", Message("plain")),
    ("harmony", f"<|channel|>analysis<|message|>which?<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}",
     Message("", "which?", (PARIS,))),
    ("harmony", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>It is 5.", Message("It is 5.", "hm")),
    ("harmony", f" to=functions.get_weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>", Message("", "", (PARIS,))),
    ("generic", f'{{"tool_call": {{"name": "get_weather", "arguments": {ARGUMENTS}}}}}', Message("", "", (PARIS,))),
    ("generic", '{"response": "It is \\"5\\" \\ud83d\\ude00\\n."}', Message('It is "5" \U0001f600\n.')),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "wanted"), WRITTEN, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRITTEN)])
def test_answers_are_read_whole_and_piece_by_piece(name: str, text: str, wanted: Message) -> None:
    reader = Reader(SOURCES[name], TOOLS)
    assert reader.read(text, True) == wanted
    for size in (1, 3, 7):
        parser = AnswerParser(reader.read)
        sent: list = []
        for at in range(0, len(text), size):
            sent += parser.push(text[at : at + size])
        sent += parser.push("", final=True)
        assert "".join(d.content for d in sent) == wanted.content
        assert "".join(d.reasoning for d in sent) == wanted.reasoning
        for i, call in enumerate(wanted.calls):
            assert [d.name for d in sent if d.call == i and d.name] == [call.name]
            assert "".join(d.arguments for d in sent if d.call == i) == call.arguments
            json.loads(call.arguments)
        assert max((d.call for d in sent if d.call is not None), default=-1) == len(wanted.calls) - 1


def test_arguments_are_streamed_while_they_are_written() -> None:
    parser = AnswerParser(Reader(SOURCES["hermes"], TOOLS).read)
    parser.push('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par')
    assert parser.message.calls == (Call("get_weather", '{"city": "Par'),)


def fits(grammar: str, text: str) -> bool:
    matcher = Matcher(parse(grammar, token_of=lambda text: [0]))
    state = matcher.start
    for c in text:
        following = matcher.advance(state, ord(c))
        if following is None:
            return False
        state = following
    return state.may_end


CALLS = [(name, text) for name, text, wanted in WRITTEN if wanted.calls and not wanted.content and not wanted.reasoning]


@pytest.mark.parametrize(("name", "text"), CALLS, ids=[f"{i}-{c[0]}" for i, c in enumerate(CALLS)])
def test_a_grammar_allows_what_models_write_and_nothing_else(name: str, text: str) -> None:
    grammar, waits = Reader(SOURCES[name], TOOLS).grammar(required=True, parallel=name != "generic")
    text = text.removesuffix("<|call|>").replace("\\u00ed", "\\u00ED") if name == "harmony" else text
    if '"type": "function"' in text:
        pytest.skip("read, but not what the grammar makes a model write")
    assert waits == [] and fits(grammar, text)
    for wrong in (text.replace("get_weather", "get_wealth"), text.replace('"days": 3', '"days": "3"'), text[:-3]):
        assert wrong == text or not fits(grammar, wrong)
    assert not fits(grammar, "Hello")


@pytest.mark.parametrize("name", SOURCES)
def test_every_format_has_a_grammar_that_parses(name: str) -> None:
    for required in (True, False):
        for parallel in (True, False):
            grammar, _ = Reader(SOURCES[name], TOOLS).grammar(required, parallel)
            parse(grammar, token_of=lambda text: [0])


def test_thoughts_that_the_prompt_has_begun() -> None:
    reader = Reader("...</think>...")
    reader.prompt("<|assistant|><think>\n")
    assert reader.read("hm\n</think>\n\nYes", True) == Message("Yes", "hm")
    assert reader.read("hm</thi", False) == Message("", "hm")
    assert reader.after_thinking and Reader("...").after_thinking == []
    assert Reader("...</think>...", reasoning=False).read("<think>a</think>b", True) == Message("<think>a</think>b")
