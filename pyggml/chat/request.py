"""From a request to converse to what a model is given, and to what reads its reply.

Owns `prepare`: messages as the template wants them, the prompt, and which part of it begins the reply already. After
common_chat_templates_apply_jinja in llama.cpp's common/chat.cpp.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pyggml.chat.capabilities import Capabilities, capabilities
from pyggml.chat.instruction import described
from pyggml.chat.reply import ReplyParser, form_of
from pyggml.chat.reply.calls import Tools
from pyggml.chat.reply.formats import GENERIC, Row
from pyggml.chat.reply.harmony import Harmony
from pyggml.chat.reply.marked import Marked
from pyggml.chat.rewrites import rewritten
from pyggml.chat.sandbox import ChatError
from pyggml.chat.template import ChatTemplate
from pyggml.grammar import ComposedGrammar, Trigger

if TYPE_CHECKING:
    from pyggml.tokenizer import Tokenizer

Json = dict[str, Any]
REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")  # but for the first they are one, as in llama.cpp


class ReasoningTokens(NamedTuple):
    """What begins reasoning, what may end it, and what the prompt has of the reply already."""

    start: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    written: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A prompt, and how its reply is to be drawn and read.

    prompt    the text to tokenise with special tokens read (`prompt_tokens`)
    row       how the model writes replies; `row.name` says which format that is
    tools     those that may be called
    reasoning whether reasoning is told apart
    opened    the end of the prompt that belongs to the reply: reasoning that the template opened, a text to go on with
    grammar   what the reply is held to so that calls are of the tools and by their schemas (SamplerParams.grammar); "":
              nothing
    trigger   when the grammar begins to hold (SamplerParams.grammar_trigger); None: at once
    """

    prompt: str
    row: Row
    tools: tuple[Json, ...] = ()
    reasoning: bool = True
    opened: str = ""
    grammar: str = ""
    trigger: Trigger | None = None

    def parser(self) -> ReplyParser:
        """What reads the reply; it is fed the text with the names of those control tokens that are `shown`."""
        return ReplyParser(self.row.form, self.tools, self.reasoning, self.opened)

    @property
    def after_reasoning(self) -> Trigger | None:
        """When a grammar of the answer itself begins to hold: after reasoning that the prompt has opened; None: at once."""
        think = self.row.form.think if isinstance(self.row.form, Marked) else None
        return Trigger(after=think[1]) if think is not None and self.opened and think[1] not in self.opened else None

    def reasoning_tokens(self, tokenizer: "Tokenizer") -> ReasoningTokens | None:
        """Between which tokens the reply reasons; None where the model has no marks of it."""
        form = self.row.form
        think = form.think if isinstance(form, Marked | Harmony) else None
        if think is None:
            return None
        more = form.calls.openings if isinstance(form, Marked) and form.calls and form.calls.ends_reasoning else ()
        start, written, *ends = (
            tuple(tokenizer.encode(text, add_special=False, parse_special=True))
            for text in (think[0], self.opened, think[1], *more)
        )
        return ReasoningTokens(start, tuple(ends), written)

    def shown(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """The control tokens that are markers, whose names the reply's text must have (`Sequence(special=...)`)."""
        markers = "".join(_texts(self.row.form))
        tokens = tokenizer.encode(markers, add_special=False, parse_special=True)
        return frozenset(token for token in tokens if not tokenizer.token_bytes(token, special=False))


def _texts(form: Any) -> Iterator[str]:
    """All texts of a form and of what it is made of."""
    if isinstance(form, str):
        yield f"{form} "
    elif isinstance(form, tuple):
        for part in form:
            yield from _texts(part)
    elif is_dataclass(form):
        for part in fields(form):
            yield from _texts(getattr(form, part.name))


@dataclass(frozen=True)
class Options:
    """What a request says beside its messages.

    tool_choice       "auto", "none", "required", or the name of a tool
    reasoning_format  "none" leaves reasoning in the text; the others tell it apart
    enable_thinking   what templates are told
    variables         further variables of the template (`chat_template_kwargs`)
    go_on             the last message is the assistant's and is to be continued
    """

    tools: tuple[Json, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    reasoning_format: str = "auto"
    enable_thinking: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    go_on: bool = False


def prepare(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], options: Options | None = None) -> Prepared:
    """The prompt of `messages` (OpenAI's form). Raises ChatError for messages or tools that are none."""
    options = options or Options()
    tools = checked_tools(options.tools)
    names = [tool["function"]["name"] for tool in tools]
    if options.tool_choice not in ("auto", "none", "required", *names):
        known = ", ".join(names) or "none"
        raise ChatError(f"tool_choice {options.tool_choice!r:.60}: there is no such tool; those given: {known}")
    if options.tool_choice == "required" and not tools:
        raise ChatError("tool_choice 'required': the request has no tools")
    if options.reasoning_format not in REASONING_FORMATS:
        raise ChatError(f"reasoning_format {options.reasoning_format!r:.60}: one of {', '.join(REASONING_FORMATS)}")
    row = form_of(template.source)
    reasoning = options.reasoning_format != "none"
    able = capabilities(template.source)
    if row.name == GENERIC.name and not able.tools:
        messages = described(messages, tools)
    fitting = fit_messages(messages, template.source, able)
    variables = _variables(options, tools)
    if row.name == "firefunction-2":
        variables.setdefault("functions", json.dumps(list(tools), indent=2, ensure_ascii=False) if tools else "")
    last: Mapping[str, Any] | None = None
    if options.go_on:
        if not fitting or fitting[-1]["role"] != "assistant":
            raise ChatError("to be continued, the last message must be the assistant's")
        last = fitting.pop()
    wanted = options.add_generation_prompt or options.go_on
    fitting = rewritten(fitting, template.source, variables)
    prompt = template.render(fitting, wanted, True, **variables)
    opened = ""
    if wanted:
        without = template.render(fitting, False, True, **variables)
        opened = row.form.begun(prompt[len(_common(prompt, without)) :])
    if last is not None:
        addition = _continued(last, row, opened, reasoning)
        prompt, opened = prompt + addition, opened + addition
    if options.tool_choice == "none":
        return Prepared(prompt, row, (), reasoning, opened)
    grammar, trigger = _grammar(row, tools, options, opened)
    return Prepared(prompt, row, tools, reasoning, opened, grammar, trigger)


def checked_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Json, ...]:
    """The tools, each with a name, a description and a schema of its parameters. Raises ChatError."""
    out = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if (
            not isinstance(tool, Mapping)
            or tool.get("type", "function") != "function"
            or not isinstance(function, Mapping)
        ):
            raise ChatError(f'tool {i} is not {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}')
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name:
            raise ChatError(f"tool {i} has no name")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ChatError(
                f"tool {i} ({name!r:.60}): its parameters are no JSON schema but a {type(parameters).__name__}"
            )
        described = {"name": name, "description": function.get("description", ""), "parameters": parameters or {}}
        out.append({"type": "function", "function": described})
    return tuple(out)


def fit_messages(messages: Sequence[Mapping[str, Any]], source: str, able: Capabilities) -> list[Json]:
    """The messages as this template can take them. Raises ChatError."""
    out = [dict(message) for message in messages if isinstance(message, Mapping)]
    if len(out) != len(messages):
        raise ChatError("a message is not a dict with a role and a content")
    for message in out:
        if message.get("role") == "developer" and "<|channel|>" not in source:
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [_fit_call(call, able) for call in message["tool_calls"]]
            if message.get("content") is None:
                message["content"] = ""
    if not able.system and out and out[0].get("role") == "system":
        first = out.pop(0)
        if out and isinstance(out[0].get("content"), str) and isinstance(first.get("content"), str):
            out[0]["content"] = f"{first['content']}\n{out[0]['content']}"
    for message in out:
        if "content" in message:
            message["content"] = _fit_content(message["content"], able)
    return out


def _fit_content(content: Any, able: Capabilities) -> Any:
    if isinstance(content, str) and able.parts and not able.text:
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        odd = next((kind for kind in kinds if kind != "text"), "text")
        if odd != "text":
            raise ChatError(f"a content has a part of type {odd!r:.60}, only text is known here")
        if not able.parts:
            return "\n".join(str(part.get("text", "")) for part in content)
    return content


def _fit_call(call: Any, able: Capabilities) -> Json:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatError("a tool call is not a dict with a function and its name")
    arguments = function.get("arguments", "{}")
    if able.object_arguments and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as reason:
            raise ChatError(f"the arguments of the call of {function['name']!r:.60} are not JSON: {reason}") from None
    elif not able.object_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _variables(options: Options, tools: tuple[Json, ...]) -> Json:
    now = datetime.now()
    out: Json = {
        "enable_thinking": options.enable_thinking,
        "datetime": now.strftime("%b %d %Y"),
        "date_string": now.strftime("%d %b %Y"),
        "preserve_reasoning": True,  # as llama.cpp's commands have it
    }
    if tools:
        out["tools"] = list(tools)
    out.update(options.variables)
    keep = out.get("preserve_reasoning")
    if isinstance(keep, bool):
        out.update(preserve_thinking=keep, clear_thinking=not keep)
        out.update(truncate_history_thinking=not keep, drop_thinking=not keep)
    if isinstance(out.get("reasoning_effort"), str):
        out.setdefault("reasoning_strength", out["reasoning_effort"])
    return out


def _grammar(row: Row, tools: tuple[Json, ...], options: Options, opened: str) -> tuple[str, Trigger | None]:
    """What holds the reply to calls of these tools; amid free text from their beginning on."""
    if not tools:
        return "", None
    offered, out = Tools(tools), ComposedGrammar()
    if options.tool_choice == "auto":
        found = row.form.trigger(out, offered, options.parallel_tool_calls, opened)
        return ("", None) if found is None else (out.text(found[0]), found[1])
    if options.tool_choice != "required":
        offered = offered.only(options.tool_choice)
    several = options.parallel_tool_calls and options.tool_choice == "required"
    return out.text(row.form.grammar(out, offered, several, opened)), None


def _common(one: str, other: str) -> str:
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:n]


def _continued(last: Mapping[str, Any], row: Row, opened: str, told_apart: bool) -> str:
    """The text that goes on from `opened` as the assistant's message does."""
    reasoning, content = last.get("reasoning_content") or "", last.get("content") or ""
    if isinstance(content, list):
        content = "\n\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise ChatError("the message to be continued must have a text as its content")
    return row.form.going_on(reasoning if told_apart or not content else "", content, opened)
