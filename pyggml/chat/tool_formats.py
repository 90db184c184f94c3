"""How models write that they call a tool, one class a format: read from the text, and as a grammar that holds them to it.

Owns the formats and which of them a template has. Facts: the models' chat templates, and llama.cpp's common/chat.cpp.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pyggml.chat.answer import Call, held_back
from pyggml.chat.tool_grammar import Tool, call_grammar, json_call, literal, xml_call
from pyggml.chat.unfinished_json import Value, members, skip_space, string, value_at


class Read(NamedTuple):
    """What is said beside the calls, and the calls."""

    content: str
    calls: tuple[Call, ...]


class ToolFormat:
    """special   whether its marks are control tokens, whose names then have to be part of the text
    triggers  regular expressions of what begins a call: from there the grammar holds
    """

    special: ClassVar[bool] = False
    triggers: ClassVar[tuple[str, ...]] = ()

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        """The parts of `text`; where more may come (not `final`), what may become part of a call is left out."""
        raise NotImplementedError

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        """GBNF of one call, or of several."""
        raise NotImplementedError


def _before(text: str, mark: str, final: bool) -> tuple[str, int | None]:
    """What comes before `mark`, and where that ends; None: it is not there."""
    at = text.find(mark)
    if at >= 0:
        return text[:at].rstrip(), at + len(mark)
    held = held_back(text, (mark,), final)
    return held if final else held.rstrip(), None


def _arguments(text: str, value: Value | None, whole: bool) -> str:
    if value is None:
        return "{}" if whole else ""
    raw = text[value.start : value.end]
    return string(raw) if raw.startswith('"') and value.whole else "" if raw.startswith('"') else raw


def _json_call(text: str, at: int, keys: tuple[str, ...] = ("arguments", "parameters")) -> tuple[Call, Value] | None:
    """The call that the object at `at` is, as far as it is written; None while it has no name."""
    found = members(text, at)
    if found is None or "name" not in found[0]:
        return None
    fields, whole = found
    name = fields["name"]
    if not name.whole or text[name.start] != '"':
        return None
    value = next((fields[key] for key in keys if key in fields), None)
    return Call(string(text[name.start : name.end]), _arguments(text, value, whole.whole)), whole


class Hermes(ToolFormat):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3."""

    triggers = ("<tool_call>",)

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        content, at = _before(text, "<tool_call>", final)
        calls: list[Call] = []
        while at is not None:
            found = _json_call(text, skip_space(text, at))
            if found is None:
                return Read(text, ()) if final and not calls else Read(content, tuple(calls))
            call, whole = found
            calls.append(call)
            if not whole.whole:
                break
            following = text.find("<tool_call>", whole.end)
            at = following + len("<tool_call>") if following >= 0 else None
        return Read(content, tuple(calls))

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        before, after = literal("<tool_call>") + " tool-ws", 'tool-ws "</tool_call>" tool-ws'
        return call_grammar([json_call(tool, "arguments") for tool in tools], before, after, parallel)


class QwenCoder(ToolFormat):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>: Qwen3-Coder."""

    triggers = ("<tool_call>", "<function=")

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        start = re.search(r"(<tool_call>\s*)?<function=", text)
        if start is None:
            at = text.find("<tool_call>")
            if at >= 0 and not final:
                return Read(text[:at].rstrip(), ())
            held = held_back(text, ("<tool_call>", "<function="), final)
            return Read(held if final else held.rstrip(), ())
        calls = []
        types = {tool.name: tool.schema.get("properties") or {} for tool in tools}
        for part in re.split(r"<function=", text[start.start() :])[1:]:
            name, mark, body = part.partition(">")
            if not mark:
                break
            end = body.find("</function>")
            known = types.get(name.strip(), {})
            pairs = re.findall(
                r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", body[: end if end >= 0 else None], re.DOTALL
            )
            said = [f"{json.dumps(key)}: {_typed(value, known.get(key))}" for key, value in pairs]
            calls.append(Call(name.strip(), "{" + ", ".join(said) + ("}" if end >= 0 else "")))
        return Read(text[: start.start()].rstrip(), tuple(calls))

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        before, after = '("<tool_call>" tool-ws)?', 'tool-ws ("</tool_call>" tool-ws)?'
        return call_grammar([xml_call(tool) for tool in tools], before, after, parallel)


def _typed(text: str, schema: Any) -> str:
    """A parameter's text as JSON: a string unless the tool says otherwise."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind != "string":
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


class Llama3(ToolFormat):
    """{"name": ..., "parameters": {...}} and nothing else: Llama 3.1 to 3.3."""

    special = True
    triggers = (r'^\s*(?:<\|python_tag\|>)?\s*\{\s*"(?:name|type)"',)
    TAG = "<|python_tag|>"

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        at = skip_space(text, 0)
        if text.startswith(self.TAG, at):
            at = skip_space(text, at + len(self.TAG))
        elif not final and self.TAG.startswith(text[at:]):
            return Read("", ())
        if at >= len(text) and not final:
            return Read("", ())
        calls: list[Call] = []
        while text[at : at + 1] == "{":
            found = _json_call(text, at, ("parameters", "arguments"))
            if found is None:
                object_ = members(text, at)
                if (object_ is not None and object_[1].whole) or final:
                    break
                return Read("", tuple(calls))
            call, whole = found
            calls.append(call)
            at = skip_space(text, whole.end)
            if text[at : at + 1] in (";", ","):
                at = skip_space(text, at + 1)
        return Read("", tuple(calls)) if calls else Read(text, ())

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        before = 'tool-ws ("<|python_tag|>")? tool-ws'
        return call_grammar(
            [json_call(tool, "parameters") for tool in tools], before, '(tool-ws ";")? tool-ws', parallel
        )


class Mistral(ToolFormat):
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}]: Mistral Nemo and what came before it."""

    special = True
    triggers = (r"\[TOOL_CALLS\]",)
    MARK = "[TOOL_CALLS]"

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        content, at = _before(text, self.MARK, final)
        if at is None:
            return Read(content, ())
        at = skip_space(text, at)
        calls: list[Call] = []
        if text[at : at + 1] == "[":
            at = skip_space(text, at + 1)
            while (found := _json_call(text, at)) is not None:
                calls.append(found[0])
                at = skip_space(text, found[1].end)
                if not found[1].whole or text[at : at + 1] != ",":
                    break
                at = skip_space(text, at + 1)
        return Read(content, tuple(calls))

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        rules = call_grammar([json_call(tool, "arguments", ids=True) for tool in tools], "", "", False, root="tool-one")
        more = ' (tool-ws "," tool-ws tool-one)*' if parallel else ""
        return f'root ::= "[TOOL_CALLS]" tool-ws "[" tool-ws tool-one{more} tool-ws "]"\n{rules}'


class MistralArgs(ToolFormat):
    """[TOOL_CALLS]name[ARGS]{...}: Mistral Small 3.2, Devstral, Magistral."""

    special = True
    triggers = (r"\[TOOL_CALLS\]",)

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        content, at = _before(text, Mistral.MARK, final)
        calls: list[Call] = []
        while at is not None:
            head = re.compile(r"\s*([^\[{\s]+)(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)").match(text, at)
            if head is None:
                break
            value = value_at(text, head.end())
            calls.append(Call(head[1], text[value.start : value.end]))
            following = text.find(Mistral.MARK, value.end)
            at = following + len(Mistral.MARK) if following >= 0 else None
        return Read(content, tuple(calls))

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        calls = [(tool, literal(f"{tool.name}[ARGS]") + " {args}") for tool in tools]
        return call_grammar(calls, literal(Mistral.MARK), "", parallel)


class DeepSeek(ToolFormat):
    """Marks of its own around "function", a name and JSON in a fence (V3, R1), or a name and JSON (V3.1)."""

    special = True
    BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    ONE, SEP, DONE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    triggers = (re.escape(BEGIN),)

    def __init__(self, fenced: bool) -> None:
        self.fenced = fenced

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        content, at = _before(text, self.BEGIN, final)
        if at is None:
            return Read(content, ())
        calls = []
        for part in text[at:].split(self.ONE)[1:]:
            head, sep, body = part.partition(self.SEP)
            if not sep:
                break
            if self.fenced:
                name, fence, body = body.partition("```json\n")
                if not fence:
                    break
            else:
                name = head
            value = value_at(body, skip_space(body, 0))
            calls.append(Call(name.strip(), body[value.start : value.end]))
        return Read(content, tuple(calls))

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        calls = []
        for tool in tools:
            if self.fenced:
                head, tail = f"{self.ONE}function{self.SEP}{tool.name}\n```json\n", f"\n```{self.DONE}"
            else:
                head, tail = f"{self.ONE}{tool.name}{self.SEP}", self.DONE
            calls.append((tool, literal(head) + " {args} " + literal(tail)))
        rules = call_grammar(calls, "tool-ws", "", parallel, root="tool-calls")
        return f"root ::= {literal(self.BEGIN)} tool-calls tool-ws {literal(self.END)}\n{rules}"


class Generic(ToolFormat):
    """For templates that know no tools: the answer is one JSON object, a call or a response (llama.cpp: Generic)."""

    triggers = ("^",)

    def read(self, text: str, final: bool, tools: Sequence[Tool]) -> Read:
        found = members(text, skip_space(text, 0))
        if found is None:
            return Read(text if final else "", ())
        fields, _ = found
        if "response" in fields:
            value = fields["response"]
            raw = text[value.start : value.end]
            return Read(string(raw) if raw.startswith('"') else raw, ())
        calls = []
        if "tool_call" in fields and (one := _json_call(text, fields["tool_call"].start)):
            calls.append(one[0])
        at = skip_space(text, fields["tool_calls"].start + 1) if "tool_calls" in fields else len(text)
        while (several := _json_call(text, at)) is not None:
            calls.append(several[0])
            at = skip_space(text, several[1].end)
            if not several[1].whole or text[at : at + 1] != ",":
                break
            at = skip_space(text, at + 1)
        return Read("" if calls or not final else text, tuple(calls))

    def grammar(self, tools: Sequence[Tool], parallel: bool) -> str:
        calls = [json_call(tool, "arguments") for tool in tools]
        if not parallel:
            return call_grammar(calls, 'tool-ws "{" tool-ws "\\"tool_call\\":" tool-ws', 'tool-ws "}"', False)
        rules = call_grammar(calls, "", "", False, root="tool-one")
        head = 'tool-ws "{" tool-ws "\\"tool_calls\\":" tool-ws "[" tool-ws tool-one (tool-ws "," tool-ws tool-one)*'
        return f'root ::= {head} tool-ws "]" tool-ws "}}"\n{rules}'

    @staticmethod
    def instruction(tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        """What to tell a model whose template says nothing of tools."""
        one = '{"name": NAME, "arguments": {...}}'
        call = f'{{"tool_calls": [{one}, ...]}}' if parallel else f'{{"tool_call": {one}}}'
        listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
        return (
            f"You can call these tools:\n{listed}\n"
            f'Answer with one JSON object: either {call} to call, or {{"response": TEXT}} to answer the user.'
        )


def format_of(source: str) -> ToolFormat | None:
    """The format that a template's text has; None: gpt-oss's, whose channels are all of an answer (channels.py)."""
    if "<|channel|>" in source:
        return None
    if DeepSeek.BEGIN in source:
        return DeepSeek("```json" in source)
    if Mistral.MARK in source:
        return MistralArgs() if "[ARGS]" in source else Mistral()
    if "<function=" in source and "<parameter=" in source:
        return QwenCoder()
    if "<tool_call>" in source:
        return Hermes()
    if "tools" in source and (
        "<|python_tag|>" in source or ('"parameters"' in source and "<|start_header_id|>" in source)
    ):
        return Llama3()
    return Generic()
