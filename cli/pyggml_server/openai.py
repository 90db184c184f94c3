"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions.

Owns the dicts of these answers, whole and as streams.
"""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml.chat import Delta, Reply
from pyggml.runtime.logprobs import TokenLogprobs
from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml_server import logprobs
from pyggml_server.answers import Answer, in_thread, unless_gone
from pyggml_server.chat import Chat, chat
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, client_of, served_by
from pyggml_server.requests import MOST_LOGPROBS, Options, options, prompt_tokens, refuse_unknown, texts
from pyggml_server.served import Served
from pyggml_server.streams import DONE, PING, answer, begun, event, stream
from pyggml_server.telling import progress, timings, verbose

REASONS = {
    Finish.EOG: "stop",
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.FULL: "length",
    Finish.CANCELLED: "stop",
}
MOST_PROMPTS = 64


def usage(made: list[Text]) -> dict[str, Any]:
    """Tokens of prompts and answers; choices of one prompt share it."""
    prompts = {tuple(text.tokens[: text.n_prompt]): text for text in made}
    prompt = sum(text.n_prompt for text in prompts.values())
    completion = sum(text.n_chosen for text in made)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(text.n_reused for text in prompts.values())},
    }


def _head(prefix: str, kind: str, served: Served) -> dict[str, Any]:
    from pyggml_server import FINGERPRINT

    made = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
    return {**made, "model": served.name, "system_fingerprint": FINGERPRINT}


def described(served: Served) -> dict[str, Any]:
    """A model's `meta`."""
    return {
        "n_vocab": served.model.n_vocab,
        "n_ctx": served.n_ctx,
        "n_ctx_train": served.model.config.n_ctx_train,
        "n_embd": served.model.config.n_embd,
        "size": served.n_bytes,
    }


async def models(request: Request) -> Response:
    """GET /v1/models: the one that is loaded."""
    served = served_by(request)
    made = {"object": "model", "created": served.started, "owned_by": "pyggml", "meta": described(served)}
    one = {"id": served.name, **made, "aliases": sorted(served.settings.alias), "tags": sorted(served.settings.tags)}
    return answer({"object": "list", "data": [one]})


# ---- completions


async def completions(request: Request) -> Response:
    """POST /v1/completions: texts are continued."""
    served = served_by(request)
    fields = await body_of(request)

    def prepare() -> tuple[Options, list[Text], list[str]]:
        refuse_unknown(fields, ("suffix",), "texts are filled in by /infill")
        wanted = options(fields, served)
        wanted.n_logprobs = fields.integer("logprobs", None, 0, MOST_LOGPROBS)
        if fields.has("best_of") and fields.integer("best_of") != wanted.n:
            raise fields.wrong("best_of", "must be n, or not given: no answers are made to be thrown away")
        prompts = prompt_tokens(served, fields)
        if len(prompts) > MOST_PROMPTS:
            raise fields.wrong("prompt", f"has {len(prompts)} prompts, at most {MOST_PROMPTS} are taken")
        made = texts(served, prompts, wanted)
        shown = [""] * len(made)
        if fields.boolean("echo", False):
            shown = [served.tokenizer.decode(text.tokens) for text in made]
        return wanted, made, shown

    wanted, made, shown = await in_thread(prepare)
    head = _head("cmpl", "text_completion", served)
    running = Answer(served.engine, made, client_of(request), wanted.progress, head["id"], wanted.controlled)
    if wanted.stream:
        return stream(await begun(_completion_chunks(served, running, head, wanted, shown)))
    return answer(await unless_gone(request, _completion(served, running, head, wanted, shown)))


async def _completion(
    served: Served, running: Answer, head: dict[str, Any], wanted: Options, shown: list[str]
) -> dict[str, Any]:
    parts: list[list[str]] = [[text] for text in shown]
    tokens: list[list[int]] = [[] for _ in shown]
    async with running:
        async for i, update in running.each():
            parts[i].append(update.data.decode("utf-8", "replace"))
            tokens[i] += update.tokens
    choices = [
        {
            "text": "".join(parts[i]),
            "index": i,
            "logprobs": None
            if wanted.n_logprobs is None
            else logprobs.columns(served.tokenizer, tokens[i], text.logprobs, len(shown[i])),
            "finish_reason": REASONS[text.finish or Finish.LENGTH],
        }
        for i, text in enumerate(running.texts)
    ]
    made = list(running.texts)
    more = verbose(served, running, 0, wanted, "".join(parts[0]), tokens[0])
    return {**head, "choices": choices, "usage": usage(made), "timings": timings(made[0]), **more}


async def _completion_chunks(
    served: Served, running: Answer, head: dict[str, Any], wanted: Options, shown: list[str]
) -> AsyncIterator[bytes]:
    offsets = [0] * len(shown)
    async with running:
        async for got in running.each_or_pause(wanted.ping):
            if got is None:
                yield PING
                continue
            i, update = got
            if update.progress is not None:
                choice = {"text": "", "index": i, "logprobs": None, "finish_reason": None}
                yield event({**head, "choices": [choice], **progress(update.progress, wanted.timings_per_token)})
                continue
            text = update.data.decode("utf-8", "replace")
            found = None
            if wanted.n_logprobs is not None and update.tokens:
                found = logprobs.columns(served.tokenizer, update.tokens, update.logprobs, offsets[i])
            if shown[i]:
                text, shown[i] = shown[i] + text, ""
            offsets[i] += len(text)
            reason = None if update.finish is None else REASONS[update.finish]
            if text or found:
                choice = {"text": text, "index": i, "logprobs": found, "finish_reason": None}
                more = {"timings": timings(running.texts[i])} if wanted.timings_per_token else {}
                yield event({**head, "choices": [choice], **more})
            if reason:  # in an event of its own: clients stop reading there
                choice = {"text": "", "index": i, "logprobs": None, "finish_reason": reason}
                more = {} if wanted.include_usage else {"timings": timings(running.texts[i])}
                more |= verbose(served, running, i, wanted, "", [])
                yield event({**head, "choices": [choice], **more})
    if wanted.include_usage:
        made = list(running.texts)
        yield event({**head, "choices": [], "usage": usage(made), "timings": timings(made[0])})
    yield DONE


# ---- chat


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions: messages are answered."""
    served = served_by(request)
    fields = await body_of(request)
    asked, made = await in_thread(lambda: _prepared_chat(fields, served))
    head = _head("chatcmpl", "chat.completion.chunk" if asked.options.stream else "chat.completion", served)
    wanted = asked.options
    running = Answer(served.engine, made, client_of(request), wanted.progress, head["id"], wanted.controlled)
    if asked.options.stream:
        return stream(await begun(_chat_chunks(served, running, head, asked)))
    return answer(await unless_gone(request, _chat_answer(served, running, head, asked)))


def _prepared_chat(fields: Fields, served: Served) -> tuple[Chat, list[Text]]:
    asked = chat(fields, served)
    return asked, texts(served, [asked.prompt], asked.options)


def finish_reason(finish: Finish | None, calls: bool) -> str:
    """Why an answer with or without calls of tools ended."""
    reason = REASONS[finish or Finish.LENGTH]
    return "tool_calls" if calls and reason == "stop" else reason


async def _chat_answer(served: Served, running: Answer, head: dict[str, Any], asked: Chat) -> dict[str, Any]:
    parsers = [asked.parser() for _ in running.texts]
    whole = [""] * len(parsers)
    tokens: list[list[int]] = [[] for _ in parsers]
    async with running:
        async for i, update in running.each():
            whole[i] += update.text
            tokens[i] += update.tokens
    choices = []
    for i, (text, parser) in enumerate(zip(running.texts, parsers, strict=True)):
        new = [*parser.feed(whole[i]), *parser.finish()]  # without what the prompt had begun
        said = Reply("".join(d.content for d in new), "".join(d.reasoning for d in new), parser.reply.calls)
        message: dict[str, Any] = {"role": "assistant", "content": said.content or (None if said.calls else "")}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in said.calls
            ]
        choices.append(
            {
                "index": i,
                "message": message,
                "logprobs": _chat_logprobs(served, asked, tokens[i], text.logprobs),
                "finish_reason": finish_reason(text.finish, bool(said.calls)),
            }
        )
    made = list(running.texts)
    more = verbose(served, running, 0, asked.options, whole[0], tokens[0])
    return {**head, "choices": choices, "usage": usage(made), "timings": timings(made[0]), **more}


def _chat_logprobs(served: Served, asked: Chat, tokens: list[int], found: list[TokenLogprobs]) -> dict[str, Any] | None:
    if asked.options.n_logprobs is None:
        return None
    return {"content": logprobs.content(served.tokenizer, tokens, found), "refusal": None}


async def _chat_chunks(served: Served, running: Answer, head: dict[str, Any], asked: Chat) -> AsyncIterator[bytes]:
    parsers = [asked.parser() for _ in running.texts]

    def chunk(i: int, delta: dict[str, Any], found: Any = None, reason: str | None = None, **more: Any) -> bytes:
        return event(
            {**head, "choices": [{"index": i, "delta": delta, "logprobs": found, "finish_reason": reason}], **more}
        )

    wanted = asked.options
    first: dict[int, dict[str, Any]] = {i: {"role": "assistant", "content": None} for i in range(len(parsers))}
    async with running:
        async for got in running.each_or_pause(wanted.ping):
            if got is None:
                yield PING
                continue
            i, update = got
            if update.progress is not None:
                yield chunk(i, first.pop(i, {}), **progress(update.progress, wanted.timings_per_token))
                continue
            if i in first:
                yield chunk(i, first.pop(i))
            new = parsers[i].feed(update.text)
            if update.finish is not None:
                new += parsers[i].finish()
            found = _chat_logprobs(served, asked, update.tokens, update.logprobs) if update.tokens else None
            more: dict[str, Any] = {"timings": timings(running.texts[i])} if wanted.timings_per_token else {}
            for delta in new:
                yield chunk(i, _delta(delta), found, **more)
                found = None
            if found:
                yield chunk(i, {"content": ""}, found, **more)
            if update.finish is not None:
                reason = finish_reason(update.finish, bool(parsers[i].reply.calls))
                more = {} if wanted.include_usage else {"timings": timings(running.texts[i])}
                more |= verbose(served, running, i, wanted, "", [])
                yield chunk(i, {}, None, reason, **more)
    if wanted.include_usage:
        made = list(running.texts)
        yield event({**head, "choices": [], "usage": usage(made), "timings": timings(made[0])})
    yield DONE


def _delta(delta: Delta) -> dict[str, Any]:
    if delta.call is None:
        return {"reasoning_content": delta.reasoning} if delta.reasoning else {"content": delta.content}
    if delta.name:
        function = {"name": delta.name, "arguments": ""}
        return {"tool_calls": [{"index": delta.call, "id": delta.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": delta.call, "function": {"arguments": delta.arguments}}]}
