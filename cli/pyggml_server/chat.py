"""Chat completions: messages in, the parts of an answer out, for every protocol that has messages.

Owns the step from messages to a prompt by the template, and which parts an answer's text is read into.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyggml.chat import ChatError, ChatTemplate, prompt_tokens
from pyggml.chat.answer import Parse, plain
from pyggml.chat.reading import Reader
from pyggml.chat.tool_formats import Generic
from pyggml.errors import GrammarError
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.requests import Options, options, refuse_unknown
from pyggml_server.served import Served

MOST_MESSAGES = 4096
MOST_TOOLS = 256
OWN_VARIABLES = ("messages", "bos_token", "eos_token", "add_generation_prompt", "tools")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass
class Chat:
    """A conversation that is to be answered."""

    prompt: list[int]
    text: str
    options: Options
    parse: Parse


def messages_of(fields: Fields, name: str = "messages") -> list[dict[str, Any]]:
    """OpenAI's messages, checked. Raises RequestError."""
    if not fields.items(name):
        raise fields.wrong(name, "must have at least one message")
    found = []
    for message in fields.objects(name):
        message.choice("role", ROLES)
        content = message.data.get("content")
        if isinstance(content, list):
            for part in message.objects("content"):
                if part.choice("type", ("text", "refusal", "image_url", "input_audio", "file")) not in (
                    "text",
                    "refusal",
                ):
                    raise RequestError(
                        f"{part.name('type')}: text is all that this model reads", param=part.name("type")
                    )
                part.text("text" if part.data["type"] == "text" else "refusal")
            content = "\n".join(str(part.get("text", part.get("refusal"))) for part in content)
        elif content is not None and not isinstance(content, str):
            raise message.wrong("content", "must be a string, or an array of parts")
        for call in message.objects("tool_calls"):
            function = call.object("function")
            if function is None:
                raise RequestError(f"{call.name('function')} is missing", param=call.name("function"))
            function.text("name")
        if content is None and not message.has("tool_calls") and message.data["role"] != "assistant":
            raise RequestError(f"{message.name('content')} is missing", param=message.name("content"))
        found.append({**message.data, "content": content if content is not None or message.has("tool_calls") else ""})
    if len(found) > MOST_MESSAGES:
        raise RequestError(f"{name} has {len(found)} messages, at most {MOST_MESSAGES} are taken", param=name)
    return found


def tools_of(fields: Fields) -> list[dict[str, Any]]:
    """OpenAI's descriptions of tools, checked. Raises RequestError."""
    found = []
    for tool in fields.objects("tools"):
        tool.choice("type", ("function",))
        function = tool.object("function")
        if function is None:
            raise RequestError(f"{tool.name('function')} is missing", param=tool.name("function"))
        if not re.fullmatch(r"[\w.:/-]{1,128}", function.text("name")):
            raise function.wrong("name", "must be 1 to 128 letters, digits, or any of _ . : / -")
        parameters = function.object("parameters")
        if parameters is not None:
            parameters.object("properties")
        found.append(tool.data)
    names = [tool["function"]["name"] for tool in found]
    if len(found) > MOST_TOOLS or len(set(names)) < len(names):
        raise RequestError(f"tools has {len(found)}, at most {MOST_TOOLS} of different names are taken", param="tools")
    return found


def choice_of(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """`tool_choice`: none, auto or required, and the tools that may be called. Raises RequestError."""
    value = fields.data.get("tool_choice")
    if value is None or isinstance(value, str):
        kind = fields.choice("tool_choice", ("none", "auto", "required"), "auto")
        if kind == "required" and not tools:
            raise fields.wrong("tool_choice", "there are no tools")
        return kind, [] if kind == "none" else list(tools)
    asked = fields.object("tool_choice")
    function = asked and asked.object("function")
    if function is None:
        raise fields.wrong("tool_choice", "must be none, auto, required, or an object with a function")
    chosen = [tool for tool in tools if tool["function"]["name"] == function.text("name")]
    if not chosen:
        raise function.wrong("name", "there is no such tool")
    return "required", chosen


def template_variables(fields: Fields, served: Served) -> dict[str, Any]:
    """`chat_template_kwargs`, over those of the command line. Raises RequestError."""
    given = fields.object("chat_template_kwargs")
    return {**served.settings.template_variables, **(given.data if given is not None else {})}


def render(
    served: Served,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    variables: Mapping[str, Any],
    reader: Reader,
) -> str:
    """The prompt's text. Where the last message is the assistant's, the answer goes on with it. Raises RequestError."""
    try:
        template = served.template(bool(tools))
        last = messages[-1]
        goes_on = served.settings.prefill_assistant and last["role"] == "assistant" and not last.get("tool_calls")
        given = {name: value for name, value in variables.items() if name not in OWN_VARIABLES}
        shown = [_shown(message, reader) for message in (messages[:-1] if goes_on else messages)]
        if reader.generic:
            instruction = Generic.instruction(tools, parallel=False)
            return _with_instruction(template, shown, instruction, given) + (str(last["content"]) if goes_on else "")
        if tools:
            given["tools"] = list(tools)
        return template.render(shown, **given) + (str(last["content"]) if goes_on else "")
    except ChatError as reason:
        raise RequestError(str(reason), param="messages") from None


def _with_instruction(
    template: ChatTemplate, messages: list[dict[str, Any]], instruction: str, variables: Mapping[str, Any]
) -> str:
    """By the system's message, or, where a template has none, by the first one."""
    first = messages[0] if messages else {"role": "user", "content": ""}
    joined = [{**first, "content": f"{instruction}\n\n{first['content'] or ''}"}, *messages[1:]]
    if first["role"] in ("system", "developer"):
        return template.render(joined, **variables)
    try:
        return template.render([{"role": "system", "content": instruction}, *messages], **variables)
    except ChatError:
        return template.render(joined, **variables)


def _shown(message: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """A message as the template wants it: arguments as text or as an object; calls as text where it knows none."""
    calls = message.get("tool_calls") or ()
    if not reader.knows_tools and message["role"] == "tool":
        return {"role": "user", "content": json.dumps({"tool_response": message["content"]}, ensure_ascii=False)}
    if not calls:
        return dict(message)
    made = [_call(call, reader.objects) for call in calls]
    if not reader.knows_tools:
        called = [{"name": call["function"]["name"], "arguments": call["function"]["arguments"]} for call in made]
        key, value = ("tool_call", called[0]) if len(called) == 1 else ("tool_calls", called)
        return {"role": "assistant", "content": json.dumps({key: value}, ensure_ascii=False)}
    return {**message, "tool_calls": made}


def _call(call: Mapping[str, Any], objects: bool) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if objects and isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}")
    elif not objects and not isinstance(arguments, str):
        arguments = json.dumps(arguments if arguments is not None else {}, ensure_ascii=False)
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def chat(fields: Fields, served: Served) -> Chat:
    """A chat completion as OpenAI's protocol asks for it. Raises RequestError."""
    messages = messages_of(fields)
    tools = tools_of(fields)
    refuse_unknown(fields, ("functions", "function_call"), "tools and tool_choice have taken their place")
    choice, callable_tools = choice_of(fields, tools)
    settings = served.settings
    form = fields.choice("reasoning_format", ("none", "auto", "deepseek"), settings.reasoning_format)
    try:
        source = served.template(bool(callable_tools)).source
    except ChatError as reason:
        raise RequestError(str(reason)) from None
    reader = Reader(source, callable_tools, form != "none")
    text = render(served, messages, tools if callable_tools else (), template_variables(fields, served), reader)
    reader.prompt(text)
    wanted = options(fields, served)
    if callable_tools:
        if wanted.params.grammar:
            raise RequestError("an answer is held to a grammar or calls tools, not both", param="tools")
        parallel = fields.boolean("parallel_tool_calls", True) and not reader.generic
        try:
            grammar, wanted.triggers = reader.grammar(choice == "required", parallel)
        except GrammarError as reason:
            raise RequestError(f"tools: {reason}", param="tools") from None
        wanted.params = replace(wanted.params, grammar=grammar)
    elif wanted.params.grammar:
        wanted.triggers = reader.after_thinking
    if fields.boolean("logprobs", False):
        wanted.n_logprobs = fields.integer("top_logprobs", 0, 0, 20)
    elif fields.has("top_logprobs"):
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    wanted.special = wanted.special or reader.special
    parse = plain if settings.skip_parsing else reader.read
    return Chat(prompt_tokens(served.tokenizer, text), text, wanted, parse)
