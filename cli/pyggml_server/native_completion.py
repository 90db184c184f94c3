"""llama-server's own completions: /completion and /infill. Owns their dicts (server-task.cpp: to_json_non_oaicompat)."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml_server import logprobs
from pyggml_server.answers import Answer, in_thread, unless_gone
from pyggml_server.engine import Update
from pyggml_server.errors import unsupported
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, client_of, served_by
from pyggml_server.native import generation_settings
from pyggml_server.openai import MOST_PROMPTS, timings
from pyggml_server.requests import MOST_LOGPROBS, Options, options, prompt_tokens, texts
from pyggml_server.served import Served
from pyggml_server.streams import PING, answer, begun, event, stream

STOPS = {Finish.EOG: "eos", Finish.STOP: "word", Finish.LENGTH: "limit", Finish.FULL: "limit", Finish.CANCELLED: "none"}
WINDOW = 2048  # tokens around the gap that /infill shows the model, of them three quarters before it


async def completion(request: Request) -> Response:
    """POST /completion: a text, or several, are continued."""
    served = served_by(request)
    fields = await body_of(request)
    return await _answered(request, served, fields, lambda: prompt_tokens(served, fields))


async def infill(request: Request) -> Response:
    """POST /infill: what comes between `input_prefix` and `input_suffix`."""
    served = served_by(request)
    tokenizer = served.tokenizer
    missing = [name for name in ("fim_pre", "fim_suf", "fim_mid") if getattr(tokenizer, name) is None]
    if missing:
        raise unsupported(f"this model fills in nothing: its vocabulary has no {', '.join(missing)} token")
    fields = await body_of(request)
    return await _answered(request, served, fields, lambda: [_infill_prompt(served, fields)])


def _infill_prompt(served: Served, fields: Fields) -> list[int]:
    """As format_prompt_infill in tools/server/server-common.cpp, with its shares of a batch."""
    tokenizer = served.tokenizer

    def tokens(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False, parse_special=False)

    before, after = tokens(fields.text("input_prefix")), tokens(fields.text("input_suffix"))
    more = tokens(fields.text("prompt", ""))
    before = before[-max(1, 3 * WINDOW // 4) :]
    after = after[: max(0, WINDOW // 4 - (2 + len(more)))]
    extra: list[int] = []
    for entry in fields.objects("input_extra"):
        name, text = entry.text("filename", "tmp"), entry.text("text")
        if tokenizer.fim_sep is not None:
            extra += [tokenizer.fim_sep, *tokens(f"{name}\n")]
        else:
            extra += tokens(f"--- snippet ---\n\n{name}\n")
        extra += tokens(text)
    if extra and tokenizer.fim_rep is not None:
        extra = [tokenizer.fim_rep, *tokens("myproject\n"), *extra]
    if extra and tokenizer.fim_sep is not None:
        extra += [tokenizer.fim_sep, *tokens("filename\n")]
    room = served.n_ctx - len(before) - len(after) - len(more) - 8
    extra = extra[max(0, len(extra) - max(0, room)) :]
    head = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    first, second = [tokenizer.fim_pre, *before], [tokenizer.fim_suf, *after]
    around = [*second, *first] if served.settings.spm_infill else [*first, *second]
    return [t for t in [*head, *extra, *around, tokenizer.fim_mid, *more] if t is not None]


async def _answered(request: Request, served: Served, fields: Fields, prompts: Any) -> Response:
    def prepare() -> tuple[Options, list[Text]]:
        wanted = options(fields, served)
        n_probs = fields.integer(fields.first("n_probs", "logprobs"), 0, 0, MOST_LOGPROBS)
        wanted.n_logprobs = n_probs or None
        fields.integer("id_slot", -1, -1, served.engine.n_slots - 1)
        found = prompts()
        if len(found) > MOST_PROMPTS:
            raise fields.wrong("prompt", f"has {len(found)} prompts, at most {MOST_PROMPTS} are taken")
        return wanted, [text for i, prompt in enumerate(found) for text in texts(served, prompt, wanted, i * wanted.n)]

    wanted, made = await in_thread(prepare)
    running = Answer(served.engine, made, client_of(request))
    keep_tokens = fields.boolean("return_tokens", False)
    chosen = fields.texts("response_fields", 64)
    if wanted.stream:
        return stream(await begun(_chunks(served, running, wanted, keep_tokens, chosen)))
    found = await unless_gone(request, _whole(served, running, wanted, keep_tokens, chosen))
    return answer(found[0] if len(found) == 1 else found)


def _last(
    served: Served, running: Answer, i: int, wanted: Options, content: str, tokens: list[int], chosen: list[str]
) -> dict[str, Any]:
    text, task = running.texts[i], running.tasks[i]
    made = {
        "index": i,
        "content": content,
        "tokens": tokens,
        "id_slot": task.slot,
        "stop": True,
        "model": served.name,
        "tokens_predicted": len(text.ends),
        "tokens_evaluated": text.n_prompt,
        "generation_settings": generation_settings(
            wanted.params, wanted.max_tokens, wanted.stops, wanted.n_logprobs or 0
        ),
        "prompt": served.tokenizer.decode(text.tokens[: text.n_prompt], special=True),
        "has_new_line": b"\n" in text.data,
        "truncated": text.finish is Finish.FULL,
        "stop_type": STOPS[text.finish or Finish.LENGTH],
        "stopping_word": _word(text, wanted),
        "tokens_cached": len(text.tokens) - 1,
        "timings": timings(text),
    }
    return made if not chosen else _picked(made, chosen)


def _word(text: Text, wanted: Options) -> str:
    """The stop text that ended it: what was cut off is the beginning of one."""
    if text.finish is not Finish.STOP:
        return ""
    data = b"".join(text.vocabulary.token_bytes(t, text.shows(t)) for t in text.answer) if text.vocabulary else b""
    rest = data[len(text.data) :]
    return next((stop for stop in wanted.stops if rest.startswith(stop.encode())), "")


def _picked(made: dict[str, Any], chosen: list[str]) -> dict[str, Any]:
    """`response_fields`: of what is answered these alone; a/b is b of a."""
    found = {}
    for path in chosen:
        value: Any = made
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[path.split("/")[-1]] = value
    return found


async def _whole(
    served: Served, running: Answer, wanted: Options, keep_tokens: bool, chosen: list[str]
) -> list[dict[str, Any]]:
    content = [""] * len(running.texts)
    tokens: list[list[int]] = [[] for _ in content]
    async with running:
        async for i, update in running.each():
            content[i] += update.data.decode("utf-8", "replace")
            tokens[i] += update.tokens
    found = []
    for i, text in enumerate(running.texts):
        made = _last(served, running, i, wanted, content[i], tokens[i] if keep_tokens else [], chosen)
        if wanted.n_logprobs:
            made["completion_probabilities"] = logprobs.content(served.tokenizer, tokens[i], text.logprobs)
        found.append(made)
    return found


async def _chunks(
    served: Served, running: Answer, wanted: Options, keep_tokens: bool, chosen: list[str]
) -> AsyncIterator[bytes]:
    n = [0] * len(running.texts)
    async with running:
        async for got in running.each_or_pause(served.settings.ping):
            if got is None:
                yield PING
                continue
            i, update = got
            n[i] += len(update.tokens)
            if update.data or update.logprobs:
                yield event(_part(served, running, i, update, n[i]))
            if update.finish is not None:
                yield event(_last(served, running, i, wanted, "", [], chosen))


def _part(served: Served, running: Answer, i: int, update: Update, n: int) -> dict[str, Any]:
    made = {
        "index": i,
        "content": update.data.decode("utf-8", "replace"),
        "tokens": update.tokens,
        "stop": False,
        "id_slot": running.tasks[i].slot,
        "tokens_predicted": n,
        "tokens_evaluated": running.texts[i].n_prompt,
    }
    if update.logprobs:
        made["completion_probabilities"] = logprobs.content(served.tokenizer, update.tokens, update.logprobs)
    return made
