"""OpenAI's newer route: /v1/responses, whole and as a stream; what was said before comes with each request, nothing is stored.

Owns the step from its items to messages, which chat.py takes, and from an answer's parts to its items.
"""

import json
import time
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
from pyggml_server.chat_parts import all_parts, parts
from pyggml_server.engine import Progress
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, client_of, served_by
from pyggml_server.requests import refuse_unknown, texts
from pyggml_server.streams import PING, answer, begun, event, stream
from pyggml_server.telling import progress, timings

SAME = (
    *("parallel_tool_calls", "stop", "temperature", "top_p", "stream", "chat_template_kwargs", "reasoning_format"),
    *("cache_prompt", "grammar", "logit_bias", "ignore_eos", "seed", "top_k", "min_p", "samplers", "id_slot", "lora"),
    *("return_progress", "timings_per_token"),
)
"""Fields that are passed on as they are; those from `cache_prompt` on are llama-server's."""


def as_chat(fields: Fields) -> Fields:
    """The same request as a chat completion. Raises RequestError."""
    refuse_unknown(fields, ("previous_response_id", "conversation"), "nothing is stored here: send all that was said")
    refuse_unknown(fields, ("background",), "answers are made while the client waits")
    made: dict[str, Any] = {name: fields.data[name] for name in SAME if fields.has(name)}
    if fields.has("max_output_tokens"):
        made["max_tokens"] = fields.integer("max_output_tokens", low=1)
    head = [{"role": "system", "content": fields.text("instructions")}] if fields.has("instructions") else []
    if isinstance(fields.raw("input"), str):
        made["messages"] = [*head, {"role": "user", "content": fields.data["input"]}]
    else:
        made["messages"] = [*head, *_messages(fields)]
    if fields.has("tools"):
        made["tools"] = [_tool(tool) for tool in fields.objects("tools")]
    choice = fields.data.get("tool_choice")
    if isinstance(choice, dict):
        made["tool_choice"] = {"type": "function", "function": {"name": Fields(choice, "tool_choice").text("name")}}
    elif choice is not None:
        made["tool_choice"] = choice
    text = fields.object("text")
    form = text.object("format") if text is not None else None
    if form is not None:
        kind = form.choice("type", ("text", "json_object", "json_schema"))
        named = {"json_schema": {"schema": form.raw("schema")}} if kind == "json_schema" else {}
        made["response_format"] = {"type": kind, **named}
    return Fields(made)


def _tool(tool: Fields) -> dict[str, Any]:
    tool.choice("type", ("function",))
    schema = tool.object("parameters")
    function = {"name": tool.text("name"), "description": tool.text("description", "")}
    return {"type": "function", "function": {**function, "parameters": {} if schema is None else schema.data}}


def _messages(fields: Fields) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for item in fields.objects("input"):
        kind = item.choice("type", ("message", "function_call", "function_call_output", "reasoning"), "message")
        if kind == "message":
            found.append({"role": item.text("role"), "content": _content(item)})
        elif kind == "function_call":
            function = {"name": item.text("name"), "arguments": item.text("arguments")}
            call = {"id": item.text("call_id"), "type": "function", "function": function}
            if found and found[-1].get("tool_calls"):
                found[-1]["tool_calls"].append(call)
            else:
                found.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.raw("output")
            output = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            found.append({"role": "tool", "tool_call_id": item.text("call_id"), "content": output})
    return found


def _content(item: Fields) -> str:
    if isinstance(item.raw("content"), str):
        return str(item.data["content"])
    said = []
    for part in item.objects("content"):
        kind = part.choice(
            "type", ("input_text", "output_text", "text", "refusal", "input_image", "input_file", "input_audio")
        )
        if kind in ("input_image", "input_file", "input_audio"):
            raise RequestError(f"{part.name('type')}: text is all that this model reads", param=part.name("type"))
        said.append(part.text("refusal" if kind == "refusal" else "text"))
    return "\n".join(said)


async def responses(request: Request) -> Response:
    """POST /v1/responses."""
    served = served_by(request)
    fields = await body_of(request)

    def prepare() -> tuple[Chat, list[Text]]:
        asked = chat(as_chat(fields), served)
        return asked, texts(served, [asked.prompt], asked.options)

    asked, made = await in_thread(prepare)
    running = Answer(served.engine, made, client_of(request), asked.options.progress)
    head = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": served.name,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.data.get("instructions"),
        "metadata": fields.data.get("metadata") or {},
        "parallel_tool_calls": fields.boolean("parallel_tool_calls", True),
        "temperature": asked.options.params.temp,
        "top_p": asked.options.params.top_p,
        "tool_choice": fields.data.get("tool_choice") or "auto",
        "tools": fields.data.get("tools") or [],
    }
    if asked.options.stream:
        return stream(await begun(_events(running, asked, head)), _failed)
    return answer(await unless_gone(request, _whole(running, asked, head)))


def _failed(reason: RequestError) -> bytes:
    error = reason.body()["error"]
    return event(
        {"type": "error", "code": str(error["code"]), "message": error["message"], "param": error["param"]}, "error"
    )


async def count(request: Request) -> Response:
    """POST /v1/responses/input_tokens: how long the prompt is."""
    served = served_by(request)
    fields = await body_of(request)
    asked = await in_thread(lambda: chat(as_chat(fields), served))
    return answer({"object": "response.input_tokens", "input_tokens": len(asked.prompt)})


def _item(delta: Delta, complete: bool = True) -> dict[str, Any]:
    status = "completed" if complete else "in_progress"
    if delta.call is not None:
        called = {"call_id": delta.id, "name": delta.name, "arguments": delta.arguments}
        return {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", **called, "status": status}
    if delta.reasoning:
        said = [{"type": "reasoning_text", "text": delta.reasoning}] if complete else []
        return {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": [], "content": said, "status": status}
    said = [_part(delta.content)] if complete else []
    return {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant", "content": said, "status": status}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _done(head: dict[str, Any], items: list[dict[str, Any]], text: Text) -> dict[str, Any]:
    cut = text.finish in (Finish.LENGTH, Finish.FULL)
    usage = {
        "input_tokens": text.n_prompt,
        "input_tokens_details": {"cached_tokens": text.n_reused},
        "output_tokens": text.n_chosen,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": text.n_prompt + text.n_chosen,
    }
    made = {**head, "status": "incomplete" if cut else "completed", "output": items, "usage": usage}
    return {**made, "incomplete_details": {"reason": "max_output_tokens"}} if cut else made


async def _whole(running: Answer, asked: Chat, head: dict[str, Any]) -> dict[str, Any]:
    items = [_item(delta) for delta in await all_parts(running, asked)]
    return _done(head, items, running.texts[0])


class _Writer:
    """Events in their order, each with its number; and the items that they tell of."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._n = -1
        self._kind: tuple[str, int | None] | None = None
        self._said = ""
        self.more: dict[str, Any] = {}  # what deltas tell besides

    def event(self, kind: str, **fields: Any) -> bytes:
        self._n += 1
        return event({"type": kind, "sequence_number": self._n, **fields}, kind)

    def add(self, delta: Delta) -> list[bytes]:
        """What is told of a delta."""
        its = ("call", delta.call) if delta.call is not None else ("reasoning" if delta.reasoning else "message", None)
        made: list[bytes] = []
        if its != self._kind:
            made += self.close()
            self._kind, self._said = its, ""
            self.items.append(
                _item(
                    delta if delta.call is None else Delta(call=delta.call, id=delta.id, name=delta.name),
                    complete=False,
                )
            )
            made.append(
                self.event("response.output_item.added", output_index=len(self.items) - 1, item=dict(self.items[-1]))
            )
            if its[0] == "message":
                made.append(self.event("response.content_part.added", **self._where, content_index=0, part=_part("")))
        new = delta.arguments if delta.call is not None else delta.content or delta.reasoning
        self._said += new
        if new:
            more = {} if its[0] == "call" else {"content_index": 0}
            made.append(
                self.event(
                    f"response.{self._name}.delta", **self._where, **more, delta=new, **self._logprobs, **self.more
                )
            )
        return made

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    @property
    def _name(self) -> str:
        assert self._kind is not None
        return {"call": "function_call_arguments", "message": "output_text", "reasoning": "reasoning_text"}[
            self._kind[0]
        ]

    @property
    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []} if self._kind == ("message", None) else {}

    def close(self) -> list[bytes]:
        """The last item is complete."""
        if self._kind is None:
            return []
        item, kind = self.items[-1], self._kind[0]
        item["status"] = "completed"
        if kind == "call":
            item["arguments"] = self._said
            made = [self.event(f"response.{self._name}.done", **self._where, arguments=self._said, name=item["name"])]
        else:
            made = [
                self.event(
                    f"response.{self._name}.done", **self._where, content_index=0, text=self._said, **self._logprobs
                )
            ]
            item["content"] = [
                _part(self._said) if kind == "message" else {"type": "reasoning_text", "text": self._said}
            ]
            if kind == "message":
                made.append(
                    self.event("response.content_part.done", **self._where, content_index=0, part=item["content"][0])
                )
        self._kind = None
        return [*made, self.event("response.output_item.done", output_index=len(self.items) - 1, item=item)]


async def _events(running: Answer, asked: Chat, head: dict[str, Any]) -> AsyncIterator[bytes]:
    writer, begins = _Writer(), True
    async for new in parts(running, asked):
        if begins:
            begins = False
            for name in ("response.created", "response.in_progress"):
                yield writer.event(name, response={**head, "status": "in_progress", "output": []})
        if new is None:
            yield PING
            continue
        if isinstance(new, Progress):
            response = {**head, "status": "in_progress", "output": []}
            told = progress(new, asked.options.timings_per_token)
            yield writer.event("response.in_progress", response=response, **told)
            continue
        writer.more = {"timings": timings(running.texts[0])} if asked.options.timings_per_token else {}
        for delta in new:
            for part in writer.add(delta):
                yield part
    for part in writer.close():
        yield part
    done = _done(head, writer.items, running.texts[0])
    name = "response.incomplete" if done["status"] == "incomplete" else "response.completed"
    yield writer.event(name, response=done, timings=timings(running.texts[0]))
