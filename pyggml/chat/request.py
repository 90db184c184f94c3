"""From a request to converse to what a model is given, and to what reads its reply.

Owns `prepare`: messages as the template wants them, the prompt, and which part of it begins the reply already. After
common_chat_templates_apply_jinja in llama.cpp's common/chat.cpp.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pyggml.chat.capabilities import Capabilities, capabilities
from pyggml.chat.reply import ReplyParser, form_of
from pyggml.chat.reply.formats import Row
from pyggml.chat.reply.marked import Marked
from pyggml.chat.sandbox import ChatError
from pyggml.chat.template import ChatTemplate

Json = dict[str, Any]
REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")


@dataclass(frozen=True)
class Prepared:
    """A prompt, and how its reply is to be drawn and read.

    prompt    the text to tokenise with special tokens read (`prompt_tokens`)
    row       how the model writes replies; `row.name` says which format that is
    tools     those that may be called
    reasoning whether reasoning is told apart
    opened    the end of the prompt that belongs to the reply: reasoning that the template opened, a text to go on with
    """

    prompt: str
    row: Row
    tools: tuple[Json, ...] = ()
    reasoning: bool = True
    opened: str = ""

    def parser(self) -> ReplyParser:
        """What reads the reply; it is fed the text with the names of control tokens (`Sequence(special=True)`)."""
        return ReplyParser(self.row.form, self.tools, self.reasoning, self.opened)


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
    fitting = fit_messages(messages, template.source, able)
    variables = _variables(options, tools if options.tool_choice != "none" or able.tools else ())
    last: Mapping[str, Any] | None = None
    if options.go_on:
        if not fitting or fitting[-1]["role"] != "assistant":
            raise ChatError("to be continued, the last message must be the assistant's")
        last = fitting.pop()
    wanted = options.add_generation_prompt or options.go_on
    prompt = template.render(fitting, add_generation_prompt=wanted, **variables)
    opened = ""
    if wanted:
        without = template.render(fitting, add_generation_prompt=False, **variables)
        opened = _reply_part(prompt[len(_common(prompt, without)) :], row)
    if last is not None:
        addition = _continued(last, row, opened)
        prompt, opened = prompt + addition, opened + addition
    callable_tools = () if options.tool_choice == "none" else tools
    return Prepared(prompt, row, callable_tools, reasoning, opened)


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
    return out


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


def _common(one: str, other: str) -> str:
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:n]


def _reply_part(generation_prompt: str, row: Row) -> str:
    """What of the prompt's end belongs to the reply: reasoning that is opened there."""
    think = row.form.think if isinstance(row.form, Marked) else None
    at = generation_prompt.rfind(think[0]) if think is not None else -1
    return generation_prompt[at:] if at >= 0 else ""


def _continued(last: Mapping[str, Any], row: Row, opened: str) -> str:
    """The text that goes on from `opened` as the assistant's message does."""
    think = row.form.think if isinstance(row.form, Marked) else None
    reasoning, content = last.get("reasoning_content") or "", last.get("content") or ""
    if not isinstance(content, str):
        raise ChatError("the message to be continued must have a text as its content")
    out = ""
    if think is not None and (reasoning or opened):
        out = reasoning if think[0] in opened and think[1] not in opened else f"{think[0]}\n{reasoning}"
        if think[1] in opened:
            out = ""
        elif content or not reasoning:
            out += f"\n{think[1]}\n\n"
    return out + content
