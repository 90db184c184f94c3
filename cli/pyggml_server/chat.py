"""Chat completions: messages in, the parts of an answer out, for every protocol that has messages.

Owns the step from messages to a prompt by the template, and which parts an answer's text is read into.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyggml.chat import ChatError, prompt_tokens
from pyggml.chat.answer import Parse, plain
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.requests import Options, options
from pyggml_server.served import Served

MOST_MESSAGES = 4096
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


def template_variables(fields: Fields, served: Served) -> dict[str, Any]:
    """`chat_template_kwargs`, over those of the command line. Raises RequestError."""
    given = fields.object("chat_template_kwargs")
    return {**served.settings.template_variables, **(given.data if given is not None else {})}


def render(
    served: Served, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], variables: Mapping[str, Any]
) -> str:
    """The prompt's text. Where the last message is the assistant's, the answer goes on with it. Raises RequestError."""
    try:
        template = served.template(bool(tools))
        goes_on = (
            served.settings.prefill_assistant
            and messages[-1]["role"] == "assistant"
            and not messages[-1].get("tool_calls")
        )
        reserved = {
            name: value for name, value in variables.items() if name not in ("messages", "bos_token", "eos_token")
        }
        reserved.pop("add_generation_prompt", None)
        if tools:
            reserved["tools"] = list(tools)
        if not goes_on:
            return template.render(messages, **reserved)
        return template.render(messages[:-1], **reserved) + str(messages[-1]["content"])
    except ChatError as reason:
        raise RequestError(str(reason), param="messages") from None


def chat(fields: Fields, served: Served) -> Chat:
    """A chat completion as OpenAI's protocol asks for it. Raises RequestError."""
    messages = messages_of(fields)
    wanted = options(fields, served)
    if fields.boolean("logprobs", False):
        wanted.n_logprobs = fields.integer("top_logprobs", 0, 0, 20)
    elif fields.has("top_logprobs"):
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    text = render(served, messages, (), template_variables(fields, served))
    return Chat(prompt_tokens(served.tokenizer, text), text, wanted, plain)
