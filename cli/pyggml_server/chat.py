"""Chat completions: messages in, the parts of an answer out, for every protocol that has messages.

Owns the step from messages to a prompt by the template, and which parts an answer's text is read into.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyggml.chat import ChatError, Delta, Reply, ReplyParser, prepare, prompt_tokens
from pyggml.chat import Options as ChatOptions
from pyggml.chat.request import REASONING_FORMATS
from pyggml.errors import GrammarError
from pyggml.prefix import common_prefix
from pyggml_server.budget import budget
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.requests import Options, options, refuse_unknown
from pyggml_server.served import Served

MOST_MESSAGES = 4096
MOST_TOOLS = 256
LAST_MESSAGES = 6  # of whose beginnings checkpoints may be made
OWN_VARIABLES = ("messages", "bos_token", "eos_token", "add_generation_prompt", "tools")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass
class Chat:
    """A conversation that is to be answered; `parser` makes what reads an answer."""

    prompt: list[int]
    text: str
    options: Options
    parser: "Callable[[], ReplyParser | _Plain]"


def messages_of(fields: Fields, name: str = "messages") -> list[dict[str, Any]]:
    """OpenAI's messages, checked. Raises RequestError."""
    if not fields.items(name):
        raise fields.wrong(name, "must have at least one message")
    found: list[dict[str, Any]] = []
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
            last = message.data["role"] == "assistant" and len(found) == len(fields.data[name]) - 1
            content = ("\n\n" if last else "\n").join(str(part.get("text", part.get("refusal"))) for part in content)
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


def choice_of(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> str:
    """`tool_choice`: none, auto, required, or the name of a tool. Raises RequestError."""
    value = fields.data.get("tool_choice")
    if value is None or isinstance(value, str):
        kind = fields.choice("tool_choice", ("none", "auto", "required"), "auto")
        if kind == "required" and not tools:
            raise fields.wrong("tool_choice", "there are no tools")
        return str(kind)
    asked = fields.object("tool_choice")
    function = asked and asked.object("function")
    if function is None:
        raise fields.wrong("tool_choice", "must be none, auto, required, or an object with a function")
    name = str(function.text("name"))
    if not any(tool["function"]["name"] == name for tool in tools):
        raise function.wrong("name", "there is no such tool")
    return name


def template_variables(fields: Fields, served: Served) -> dict[str, Any]:
    """`chat_template_kwargs`, over those of the command line. Raises RequestError."""
    given = fields.object("chat_template_kwargs")
    found = {**served.settings.template_variables, **(given.data if given is not None else {})}
    return {name: value for name, value in found.items() if name not in OWN_VARIABLES}


def _goes_on(fields: Fields, messages: Sequence[Mapping[str, Any]], prefills: bool) -> bool:
    """Whether the last message is to be continued: as `continue_final_message` says, or where it is the assistant's
    (tools/server/server-common.cpp: oaicompat_chat_params_parse). Raises RequestError."""
    last, given = messages[-1], fields.data.get("continue_final_message")
    if isinstance(given, str):
        fields.choice("continue_final_message", ("content", "reasoning_content"))
    elif given is not None:
        fields.boolean("continue_final_message", False)
    if given:
        if fields.boolean("add_generation_prompt", True):
            raise fields.wrong("continue_final_message", "must not be set together with add_generation_prompt")
        if last["role"] != "assistant":
            raise fields.wrong("continue_final_message", "the last message must be the assistant's")
        if last.get("tool_calls"):
            raise fields.wrong("continue_final_message", "a message that calls tools cannot be continued")
        return True
    if not prefills or last["role"] != "assistant" or last.get("tool_calls"):
        return False
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise RequestError("messages must not end with two of the assistant", param="messages")
    return True


def chat(fields: Fields, served: Served) -> Chat:
    """A chat completion as OpenAI's protocol asks for it. Raises RequestError."""
    messages = messages_of(fields)
    tools = tools_of(fields)
    refuse_unknown(fields, ("functions", "function_call"), "tools and tool_choice have taken their place")
    choice = choice_of(fields, tools)
    tools = [] if choice == "none" else tools  # what is not to be called is not shown either
    settings = served.settings
    variables = template_variables(fields, served)
    generates = fields.boolean("add_generation_prompt", True)
    goes_on = _goes_on(fields, messages, settings.prefill_assistant)
    try:
        asked = ChatOptions(
            tools=tuple(tools),
            tool_choice=choice,
            parallel_tool_calls=fields.boolean("parallel_tool_calls", True),
            reasoning_format=fields.choice("reasoning_format", REASONING_FORMATS, settings.reasoning_format),
            enable_thinking=bool(variables.pop("enable_thinking", True)),
            variables=variables,
            add_generation_prompt=generates,
            go_on=goes_on,
        )
        prepared = prepare(served.template(bool(tools)), messages, asked)
    except GrammarError as reason:
        raise RequestError(f"tools: {reason}", param="tools") from None
    except ChatError as reason:
        raise RequestError(str(reason), param="messages") from None
    wanted = options(fields, served)
    if prepared.grammar and wanted.params.grammar:
        raise RequestError("an answer is held to a grammar or calls tools, not both", param="tools")
    if prepared.grammar:
        wanted.params = replace(wanted.params, grammar=prepared.grammar, grammar_trigger=prepared.trigger)
    elif wanted.params.grammar:
        wanted.params = replace(wanted.params, grammar_trigger=prepared.after_reasoning)
    reasons = prepared.reasoning_tokens(served.tokenizer)
    wanted.params = replace(wanted.params, budget=budget(fields, served, reasons))
    if fields.boolean("logprobs", False):
        wanted.n_logprobs = fields.integer("top_logprobs", 0, 0, 20)
    elif fields.has("top_logprobs"):
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    wanted.shown = prepared.shown(served.tokenizer)
    parser = _Plain if settings.skip_parsing else prepared.parser
    tokens = prompt_tokens(served.tokenizer, prepared.prompt)
    if not served.rewinds:
        wanted.messages = _user_messages(served, messages, asked, tokens)
    return Chat(tokens, prepared.prompt, wanted, parser)


def _user_messages(
    served: Served, messages: Sequence[Mapping[str, Any]], asked: ChatOptions, tokens: list[int]
) -> tuple[int, ...]:
    """Which tokens of a prompt begin the user's last messages: there what comes in the next turn may differ, so that a memory which
    cannot go back anywhere has to be able to go back there."""
    begins = []
    for i, message in list(enumerate(messages))[-LAST_MESSAGES:]:
        if message["role"] != "user" or not i:
            continue
        try:
            before = prepare(
                served.template(bool(asked.tools)),
                messages[:i],
                replace(asked, add_generation_prompt=False, go_on=False),
            )
        except (ChatError, GrammarError):  # a template that wants other messages
            continue
        begins.append(common_prefix(tokens, prompt_tokens(served.tokenizer, before.prompt)))
    return tuple(sorted({n for n in begins if n}))


class _Plain:
    """Stands in for a ReplyParser where answers are left as they are."""

    def __init__(self) -> None:
        self.reply = Reply()

    def feed(self, text: str) -> list[Delta]:
        """All of it is said."""
        self.reply.content += text
        return [Delta(content=text)] if text else []

    def finish(self) -> list[Delta]:
        """Nothing is left."""
        return []
