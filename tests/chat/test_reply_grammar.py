"""Grammars of calls: every format's own calls fit, to the end alone; names and arguments that are none do not."""

import json

import pytest
from byte_vocabulary import ByteVocabulary, refused_at
from reply_cases import CASES, TOOLS

from pyggml.chat import ChatError, ChatTemplate, Options, prepare
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.formats import GENERIC, ROWS, Row
from pyggml.grammar import ComposedGrammar
from pyggml.grammar.lazy import LazyGrammar
from pyggml.grammar.vocabulary import GrammarState

VOCABULARY = ByteVocabulary()


def _row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


NAMES = [name for name in CASES if name not in ("gpt-oss", "functionary-3.2", "llama-3")]


def _required(name: str, several: bool = True, begun: str = "") -> GrammarState:
    out = ComposedGrammar()
    return GrammarState(out.text(_row(name).form.grammar(out, Tools(TOOLS), several, begun)), VOCABULARY)


def _lazy(name: str) -> LazyGrammar:
    out = ComposedGrammar()
    found = _row(name).form.trigger(out, Tools(TOOLS), True, "")
    assert found is not None
    return LazyGrammar(out.text(found[0]), VOCABULARY, found[1])


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_each_format_fit_and_nothing_else_does(name):
    marks, first, second = CASES[name]
    text = first + second
    assert refused_at(_required(name), text) is None
    assert refused_at(_lazy(name), f"Well. {text}") is None
    if marks:
        assert refused_at(_required(name), f"{marks[0]}So.{marks[1]}{text}") is None
        assert refused_at(_required(name, begun=marks[0].strip()), f"So.{marks[1]}{text}") is None
    wrong = {
        "another tool": text.replace("find", "fine"),
        "text after it": f"{text}!",
        "half of it": text[: len(text) // 3],
        "an argument of another kind": text.replace("12", '"12"') if '"12"' not in text else "",
        "an unknown argument": text.replace("tags", "bags"),
    }
    for what, other in wrong.items():
        assert refused_at(_required(name), other) is not None, what
        if what != "half of it":
            assert refused_at(_lazy(name), other) is not None, what
    assert refused_at(_required(name), "Well.") is not None
    assert refused_at(_lazy(name), "Well. I found <nothing> {}") is None


def test_harmony_calls_fit():
    _, first, _ = CASES["gpt-oss"]
    call = first.replace("<|start|>assistant", "").replace("<|call|>", "")
    assert refused_at(_required("gpt-oss"), call) is None
    assert refused_at(_required("gpt-oss"), f"<|channel|>analysis<|message|>So.<|end|><|start|>assistant{call}") is None
    assert refused_at(_lazy("gpt-oss"), f"<|channel|>analysis<|message|>to=functions.<|end|>{call}") is None
    for state in (_required("gpt-oss"), _lazy("gpt-oss")):
        assert refused_at(state, call.replace(": 12", ': "12"')) is not None


@pytest.mark.parametrize("name", ["functionary-3.2", "llama-3"])
def test_calls_at_the_beginning_fit(name):
    first = CASES[name][1]
    assert refused_at(_lazy(name), first) is None
    assert refused_at(_lazy(name), first.replace(": 12", ': "12"')) is not None
    assert refused_at(_lazy(name), "Well, {") is None


def test_several_calls_only_where_they_are_wanted():
    _, first, second = CASES["hermes"]
    assert refused_at(_required("hermes", several=False), first) is None
    assert refused_at(_required("hermes", several=False), first + second) is not None


@pytest.mark.parametrize("row", [*ROWS, GENERIC], ids=lambda row: row.name)
def test_every_row_makes_a_grammar(row):
    schema = {
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/one"},
            "b c": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "d": {"enum": ["x", "y"]},
            "e": {"type": "array", "items": {"type": "object", "properties": {"f": {"type": "boolean"}}}},
        },
        "required": ["a"],
        "$defs": {"one": {"type": "object", "properties": {"self": {"$ref": "#/$defs/one"}}}},
    }
    tools = [{"function": {"name": name, "parameters": schema}} for name in ("one.two", "three-4")]
    for several in (False, True):
        out = ComposedGrammar()
        assert "root ::= " in out.text(row.form.grammar(out, Tools(tools), several, ""))
        out = ComposedGrammar()
        found = row.form.trigger(out, Tools(tools), several, "")
        assert found is not None and "root ::= " in out.text(found[0])


@pytest.mark.parametrize("marker", ["</a>", "\n</b>", "aab", "]]>", '"'])
def test_text_until_a_marker(marker):
    out = ComposedGrammar()
    grammar = out.text(f"{out.until(marker)} {json.dumps(marker)}")
    for text in ("", "x", marker[:-1], marker[:1] * 3, f"é{marker[1:]}"):
        fits = marker not in (text + marker)[:-1]
        assert (refused_at(GrammarState(grammar, VOCABULARY), text + marker) is None) == fits, text
    assert refused_at(GrammarState(grammar, VOCABULARY), marker + marker) is not None


def test_a_wrong_machine_is_noticed():
    """The one that begins anew at each mismatch forgets that "aa" may begin "aab" again."""
    out = ComposedGrammar()
    name = out.until("aab")
    out.instead("until-61-61-62-2", "([^ab] until-61-61-62-0)?")
    assert refused_at(GrammarState(out.text(f'{name} "aab"'), VOCABULARY), "aaaaab") is not None


def test_what_tool_choice_asks_for():
    template = ChatTemplate("{{ tools }}{{ messages[0].content }}<tool_call>")
    messages = [{"role": "user", "content": "Hi"}]
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    auto, none, required, named = (
        prepare(template, messages, Options(tools=tuple(TOOLS), tool_choice=choice))
        for choice in ("auto", "none", "required", "find")
    )
    assert auto.trigger is not None and auto.grammar and not none.grammar and none.tools == ()
    assert required.trigger is None and named.trigger is None
    assert refused_at(GrammarState(required.grammar, VOCABULARY), call) is None
    assert refused_at(GrammarState(named.grammar, VOCABULARY), call) is not None
    for choice, tools in (("other", TOOLS), ("required", []), ("find", [])):
        with pytest.raises(ChatError, match="tool_choice"):
            prepare(template, messages, Options(tools=tuple(tools), tool_choice=choice))
    with pytest.raises(ChatError, match="no JSON schema"):
        prepare(template, messages, Options(tools=({"function": {"name": "a", "parameters": 1}},)))


def test_tools_are_described_to_templates_that_know_none():
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    call = {"id": "1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    prompt = prepare(template, messages, Options(tools=tuple(TOOLS))).prompt
    for text in ('"name": "find"', "<tool_call>", '{"name": "stop", "arguments": {}}', "<tool_response>\ndone"):
        assert text in prompt, text
