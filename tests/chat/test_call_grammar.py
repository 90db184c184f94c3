"""Grammars of calls allow what models write, which is read back as the same calls, and nothing else; every format's parses."""

import json

import pytest

from pyggml.chat.call_grammar import after_reasoning, call_grammar
from pyggml.chat.instruction import described
from pyggml.chat.reply import ReplyParser
from pyggml.chat.reply.formats import GENERIC, ROWS
from pyggml.grammar import Matcher, parse

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = '{"city": "Paris \\"x\\" }", "days": 3}'
DS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
OF = {row.name: row for row in [*ROWS, GENERIC]}
XML = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
WRITTEN = {  # a call of get_weather, and one of clock after it where there may be several
    "hermes": (f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>', '\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'),
    "generic": (f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>', ""),
    "qwen3-coder": (f"<tool_call>\n{XML}\n</tool_call>", "\n<tool_call>\n<function=clock>\n</function>\n</tool_call>"),
    "llama-3": (f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}', '; {"name": "clock", "parameters": {}}'),
    "mistral-nemo": (f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}', ', {"name": "clock", "arguments": {}}]'),
    "mistral": (f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}", "[TOOL_CALLS]clock[ARGS]{}"),
    "deepseek-r1": (f"{DS[0]}{DS[1]}function{DS[2]}get_weather\n```json\n{ARGUMENTS}\n```{DS[3]}", f"\n{DS[1]}function{DS[2]}clock\n```json\n{{}}\n```{DS[3]}{DS[4]}"),
    "deepseek-v3.1": (f"{DS[0]}{DS[1]}get_weather{DS[2]}{ARGUMENTS}{DS[3]}", f"{DS[1]}clock{DS[2]}{{}}{DS[3]}{DS[4]}"),
    "kimi-k2": (f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>",
                "<|tool_call_begin|>functions.clock:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"),
    "command-r7b": (f'<|START_ACTION|>[\n  {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {ARGUMENTS}}}',
                    ',\n  {"tool_call_id": "1", "tool_name": "clock", "parameters": {}}\n]<|END_ACTION|>'),
    "granite-3": (f'<|tool_call|>[{{"name": "get_weather", "arguments": {ARGUMENTS}}}', ', {"name": "clock", "arguments": {}}]'),
    "apertus": (f'<|tools_prefix|>[{{"get_weather": {ARGUMENTS}}}', ', {"clock": {}}]<|tools_suffix|>'),
    "firefunction-2": (f' functools[{{"name": "get_weather", "arguments": {ARGUMENTS}}}', ', {"name": "clock", "arguments": {}}]'),
    "functionary-3.1": (f"<function=get_weather>{ARGUMENTS}</function>", "<function=clock>{}</function>"),
    "gpt-oss": (f" to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{ARGUMENTS}", ""),
    "glm-4.5": ("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>", ""),
}  # fmt: skip


def fits(grammar: str, text: str) -> bool:
    matcher = Matcher(parse(grammar, token_of=lambda text: [0]))
    state = matcher.start
    for c in text:
        following = matcher.advance(state, ord(c))
        if following is None:
            return False
        state = following
    return state.may_end


@pytest.mark.parametrize("name", WRITTEN)
def test_what_models_write_fits_and_is_read_back(name: str) -> None:
    first, second = WRITTEN[name]
    made = call_grammar(OF[name], TOOLS, parallel=bool(second))
    assert made is not None and fits(made.text, first + second)
    parser = ReplyParser(OF[name].form, TOOLS)
    parser.feed(first + second)
    parser.finish()
    assert [call.name for call in parser.reply.calls] == ["get_weather", "clock"][: 1 + bool(second)]
    arguments = json.loads(parser.reply.calls[0].arguments)
    assert arguments["days"] == 3 and arguments["city"].startswith("Paris")
    wrong = [first.replace("get_weather", "get_wealth"), first + second + "!", "Hello", first[: len(first) // 2]]
    if '"days"' in first:
        wrong += [(first + second).replace('"days": 3', days) for days in ('"days": "3"', '"day": 3', '"days": 3.5')]
    for text in wrong:
        assert not fits(made.text, text), text


@pytest.mark.parametrize("name", WRITTEN)
def test_one_call_is_one(name: str) -> None:
    first, second = WRITTEN[name]
    made = call_grammar(OF[name], TOOLS, parallel=False)
    assert made is not None
    assert name in ("gpt-oss", "generic", "glm-4.5") or not fits(made.text, first + second)


@pytest.mark.parametrize("row", [*ROWS, GENERIC], ids=lambda row: row.name)
def test_every_format_has_a_grammar_that_parses_or_says_that_it_has_none(row) -> None:
    for parallel in (True, False):
        made = call_grammar(row, TOOLS, parallel)
        assert (made is None) == (
            row.name in ("lfm2", "lfm2.5", "gemma4", "functionary-3.2", "deepseek-v3.2", "deepseek-v4")
        )
        if made is not None:
            parse(made.text, token_of=lambda text: [0])
            assert made.triggers


def test_a_grammar_waits_for_the_end_of_reasoning_that_is_open() -> None:
    assert after_reasoning(OF["hermes"], "<think>\n") == [r"</think>\s*()"]
    assert after_reasoning(OF["hermes"], "<think>\n\n</think>\n\n") == [] == after_reasoning(OF["hermes"], "")


def test_tools_are_described_where_a_template_knows_none() -> None:
    call = {"function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
    ]
    made = described(messages, TOOLS)
    assert [m["role"] for m in made] == ["system", "user", "assistant", "user"]
    assert '"get_weather"' in made[0]["content"] and "noon" in made[3]["content"] and "tool_calls" not in made[2]
    assert fits(call_grammar(GENERIC, TOOLS, False).text, made[2]["content"])
    assert described(messages[:1], []) == messages[:1]
    assert described([{"role": "system", "content": "Be."}], TOOLS)[0]["content"].startswith("Be.\n\nYou can")
