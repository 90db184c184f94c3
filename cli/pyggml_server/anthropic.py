"""Anthropic's routes: /v1/messages, whole and as a stream, and /v1/messages/count_tokens.

Owns the step from its messages to OpenAI's, which chat.py takes, and from an answer's parts to its blocks.
"""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml.chat import Delta
from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml_server.answers import Answer, in_thread, unless_gone
from pyggml_server.chat import Chat, chat
from pyggml_server.chat_parts import all_parts, cached, parts
from pyggml_server.engine import Progress
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, client_of, served_by
from pyggml_server.requests import Options, texts
from pyggml_server.streams import answer, begun, event, stream
from pyggml_server.telling import stopping_word

SAME = (
    *("max_tokens", "temperature", "top_p", "stream", "chat_template_kwargs", "reasoning_format"),
    *("cache_prompt", "grammar", "logit_bias", "ignore_eos", "seed", "top_k", "min_p", "samplers", "id_slot", "lora"),
    "sse_ping_interval",
)
"""Fields that are passed on as they are; those from `cache_prompt` on are llama-server's."""
MOST = 4096  # tokens of an answer where a request does not say


def as_openai(fields: Fields) -> Fields:
    """The same request in OpenAI's form. Raises RequestError."""
    made: dict[str, Any] = {name: fields.data[name] for name in SAME if fields.has(name)}
    made.setdefault("max_tokens", MOST)
    made["messages"] = [*_system(fields), *(m for message in fields.objects("messages") for m in _messages(message))]
    if not fields.items("messages"):
        raise fields.wrong("messages", "must have at least one message")
    if fields.has("stop_sequences"):
        made["stop"] = fields.texts("stop_sequences", 64)
    if fields.has("tools"):
        made["tools"] = [_tool(tool) for tool in fields.objects("tools")]
    choice = fields.object("tool_choice")
    if choice is not None:
        kind = choice.choice("type", ("auto", "any", "tool", "none"))
        named = {"type": "function", "function": {"name": choice.text("name")}} if kind == "tool" else None
        made["tool_choice"] = named or {"auto": "auto", "any": "required", "none": "none"}[kind]
        made["parallel_tool_calls"] = not choice.boolean("disable_parallel_tool_use", False)
    thinking = fields.object("thinking")
    if thinking is not None:
        kind = thinking.choice("type", ("enabled", "disabled", "adaptive"))
        given = made.get("chat_template_kwargs")
        made["chat_template_kwargs"] = {
            **(given if isinstance(given, dict) else {}),
            "enable_thinking": kind != "disabled",
        }
        if kind == "enabled":  # tools/server/server-chat.cpp: server_chat_convert_anthropic_to_oai
            made["thinking_budget_tokens"] = thinking.integer("budget_tokens", 10000, low=-1)
    return Fields(made)


def _system(fields: Fields) -> list[dict[str, Any]]:
    if not fields.has("system"):
        return []
    if isinstance(fields.data["system"], str):
        return [{"role": "system", "content": fields.data["system"]}]
    return [{"role": "system", "content": "\n".join(part.text("text") for part in fields.objects("system"))}]


def _tool(tool: Fields) -> dict[str, Any]:
    schema = tool.object("input_schema")
    function = {"name": tool.text("name"), "description": tool.text("description", "")}
    return {"type": "function", "function": {**function, "parameters": {} if schema is None else schema.data}}


def _messages(message: Fields) -> list[dict[str, Any]]:
    """A message of blocks is one of the assistant's with calls, or results of tools and what the user says after them."""
    role = message.choice("role", ("user", "assistant", "system"))
    if isinstance(message.raw("content"), str):
        return [{"role": role, "content": message.data["content"]}]
    said, thought, calls, results = [], [], [], []
    for block in message.objects("content"):
        kind = block.choice(
            "type", ("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image", "document")
        )
        if kind == "text":
            said.append(block.text("text"))
        elif kind == "thinking":
            thought.append(block.text("thinking"))
        elif kind == "tool_use":
            given = block.object("input")
            function = {"name": block.text("name"), "arguments": json.dumps({} if given is None else given.data)}
            calls.append({"id": block.text("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            results.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": _result(block)})
        elif kind != "redacted_thinking":
            raise RequestError(f"{block.name('type')}: text is all that this model reads", param=block.name("type"))
    if not (said or thought or calls or results):
        raise message.wrong("content", "must have at least one block")
    made: dict[str, Any] = {"role": role, "content": "\n".join(said)}
    if thought:
        made["reasoning_content"] = "".join(thought)
    if calls:
        made["tool_calls"] = calls
    return [*results, *([made] if said or thought or calls else [])]


def _result(block: Fields) -> str:
    if not block.has("content"):
        return ""
    if isinstance(block.data["content"], str):
        return block.data["content"]
    return "\n".join(part.text("text") for part in block.objects("content"))


async def messages(request: Request) -> Response:
    """POST /v1/messages: messages are answered."""
    served = served_by(request)
    fields = await body_of(request)

    def prepare() -> tuple[Chat, list[Text]]:
        asked = chat(as_openai(fields), served)
        return asked, texts(served, [asked.prompt], asked.options)

    asked, made = await in_thread(prepare)
    running = Answer(served.engine, made, client_of(request))
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": served.name}
    if asked.options.stream:
        return stream(await begun(_events(running, asked, head)), _failed)
    return answer(await unless_gone(request, _whole(running, asked, head)))


def _failed(reason: RequestError) -> bytes:
    return event({"type": "error", **reason.body()}, "error")


def _end(text: Text, wanted: Options, calls: bool) -> dict[str, Any]:
    if text.finish in (Finish.LENGTH, Finish.FULL):
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if word := stopping_word(text, wanted):
        return {"stop_reason": "stop_sequence", "stop_sequence": word}
    return {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}


def _usage(text: Text) -> dict[str, int]:
    fresh, reused = cached(text)
    return {"input_tokens": fresh, "cache_read_input_tokens": reused, "output_tokens": text.n_chosen}


async def _whole(running: Answer, asked: Chat, head: dict[str, Any]) -> dict[str, Any]:
    blocks = [_block(delta) for delta in await all_parts(running, asked)]
    text = running.texts[0]
    calls = any(block["type"] == "tool_use" for block in blocks)
    return {**head, "content": blocks, **_end(text, asked.options, calls), "usage": _usage(text)}


def _block(delta: Delta) -> dict[str, Any]:
    if delta.call is not None:
        try:
            given = json.loads(delta.arguments or "{}")
        except ValueError:  # cut off in its midst
            given = {}
        return {"type": "tool_use", "id": delta.id, "name": delta.name, "input": given}
    if delta.reasoning:
        return {"type": "thinking", "thinking": delta.reasoning, "signature": ""}
    return {"type": "text", "text": delta.content}


async def _events(running: Answer, asked: Chat, head: dict[str, Any]) -> AsyncIterator[bytes]:
    text = running.texts[0]
    kind: tuple[str, int | None] | None = None
    index, calls, begins = -1, False, True

    def opening() -> bytes:
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return event({"type": "message_start", "message": {**head, **nothing, "usage": _usage(text)}}, "message_start")

    async for new in parts(running, asked):
        if begins:
            begins = False
            yield opening()
        if new is None or isinstance(new, Progress):
            yield event({"type": "ping"}, "ping")
            continue
        for delta in new:
            its = ("thinking" if delta.reasoning else "text", None) if delta.call is None else ("tool_use", delta.call)
            if its != kind:
                if kind is not None:
                    for part in _closing(index, kind[0]):
                        yield part
                index, kind, calls = index + 1, its, calls or delta.call is not None
                empty = {
                    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
                    "text": {"type": "text", "text": ""},
                    "tool_use": {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}},
                }[its[0]]
                yield event(
                    {"type": "content_block_start", "index": index, "content_block": empty}, "content_block_start"
                )
            if (said := _said(delta)) is not None:
                yield event({"type": "content_block_delta", "index": index, "delta": said}, "content_block_delta")
    if kind is not None:
        for part in _closing(index, kind[0]):
            yield part
    yield event(
        {"type": "message_delta", "delta": _end(text, asked.options, calls), "usage": _usage(text)}, "message_delta"
    )
    yield event({"type": "message_stop"}, "message_stop")


def _said(delta: Delta) -> dict[str, str] | None:
    if delta.call is None:
        if delta.reasoning:
            return {"type": "thinking_delta", "thinking": delta.reasoning}
        return {"type": "text_delta", "text": delta.content}
    return {"type": "input_json_delta", "partial_json": delta.arguments} if delta.arguments else None


def _closing(index: int, kind: str) -> list[bytes]:
    made = []
    if kind == "thinking":
        signed = {"type": "signature_delta", "signature": ""}
        made.append(event({"type": "content_block_delta", "index": index, "delta": signed}, "content_block_delta"))
    return [*made, event({"type": "content_block_stop", "index": index}, "content_block_stop")]


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens: how long the prompt of messages is."""
    served = served_by(request)
    fields = await body_of(request)
    asked = await in_thread(lambda: chat(as_openai(fields), served))
    return answer({"input_tokens": len(asked.prompt)})
