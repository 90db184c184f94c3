"""llama-server's own completions: /completion and /infill. Owns their dicts (server-task.cpp: to_json_non_oaicompat)."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml.runtime.logprobs import TokenLogprobs
from pyggml.runtime.sequence import Sequence as Text
from pyggml_server import logprobs
from pyggml_server.answers import Answer, in_thread, unless_gone
from pyggml_server.engine import Update
from pyggml_server.errors import unsupported
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, client_of, served_by
from pyggml_server.openai import MOST_PROMPTS
from pyggml_server.requests import MOST_LOGPROBS, Options, encoded, options, prompt_tokens, texts
from pyggml_server.served import Served
from pyggml_server.streams import PING, answer, begun, event, stream
from pyggml_server.telling import final, progress, timings


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

    def tokens(text: str, name: str) -> list[int]:
        return encoded(served, name, text, parse_special=False)

    before = tokens(fields.text("input_prefix"), "input_prefix")
    after = tokens(fields.text("input_suffix"), "input_suffix")
    more = tokens(fields.text("prompt", ""), "prompt")
    settings = served.settings
    quarter = settings.n_batch // 4
    before = before[-max(1, 3 * quarter) :]
    after = after[: max(0, quarter - (2 + len(more)))]
    extra: list[int] = [] if tokenizer.fim_rep is None else [tokenizer.fim_rep, *tokens("myproject\n", "")]
    for entry in fields.objects("input_extra"):
        name, text = entry.text("filename", "tmp"), entry.text("text")
        if tokenizer.fim_sep is not None:
            extra += [tokenizer.fim_sep, *tokens(f"{name}\n", entry.name("filename"))]
        else:
            extra += tokens("\n\n--- snippet ---\n\n", "")
        extra += tokens(text, entry.name("text"))
    if tokenizer.fim_sep is not None:
        extra += [tokenizer.fim_sep, *tokens("filename\n", "")]
    extra = extra[max(0, len(extra) - max(0, served.n_ctx - settings.n_batch - 2 * settings.n_predict)) :]
    head = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    first, second = [tokenizer.fim_pre, *before, *more], [tokenizer.fim_suf, *after]
    around = [*second, *first] if settings.spm_infill else [*first, *second]
    return [t for t in [*extra, *head, *around, tokenizer.fim_mid] if t is not None]


async def _answered(request: Request, served: Served, fields: Fields, prompts: Any) -> Response:
    def prepare() -> tuple[Options, list[Text]]:
        wanted = options(fields, served)
        n_probs = fields.integer(fields.first("n_probs", "logprobs"), 0, 0, MOST_LOGPROBS)
        wanted.n_logprobs = n_probs or None
        found = prompts()
        if len(found) > MOST_PROMPTS:
            raise fields.wrong("prompt", f"has {len(found)} prompts, at most {MOST_PROMPTS} are taken")
        return wanted, texts(served, found, wanted)

    wanted, made = await in_thread(prepare)
    running = Answer(served.engine, made, client_of(request), wanted.progress)
    keep_tokens = fields.boolean("return_tokens", False)
    chosen = fields.texts("response_fields", 64)
    if wanted.stream:
        return stream(await begun(_chunks(served, running, wanted, keep_tokens, chosen)))
    found = await unless_gone(request, _whole(served, running, wanted, keep_tokens, chosen))
    return answer(found[0] if len(found) == 1 else found)


def _picked(made: dict[str, Any], chosen: list[str]) -> dict[str, Any]:
    """`response_fields`: of what is answered these alone; a/b is b of a, and keeps that name."""
    found = {}
    for path in chosen:
        value: Any = made
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
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
        made = final(served, running, i, wanted, content[i], tokens[i] if keep_tokens else [])
        if wanted.n_logprobs:
            made["completion_probabilities"] = _probabilities(served, wanted, tokens[i], text.logprobs)
        found.append(_picked(made, chosen) if chosen else made)
    return found


async def _chunks(
    served: Served, running: Answer, wanted: Options, keep_tokens: bool, chosen: list[str]
) -> AsyncIterator[bytes]:
    n = [0] * len(running.texts)
    unsaid: list[list[int]] = [[] for _ in n]  # tokens whose text is not complete
    async with running:
        async for got in running.each_or_pause(wanted.ping):
            if got is None:
                yield PING
                continue
            i, update = got
            n[i] += len(update.tokens)
            unsaid[i] += update.tokens
            told = update.data or update.logprobs or update.progress is not None
            if told or (update.finish is not None and unsaid[i]):
                yield event(_part(served, running, i, wanted, update, n[i], unsaid[i]))
                unsaid[i] = []
            if update.finish is not None:
                made = final(served, running, i, wanted, "", [])
                yield event(_picked(made, chosen) if chosen else made)


def _probabilities(
    served: Served, wanted: Options, tokens: list[int], found: list[TokenLogprobs]
) -> list[dict[str, Any]]:
    make = logprobs.probabilities if wanted.post_probs else logprobs.content
    return make(served.tokenizer, tokens, found)


def _part(
    served: Served, running: Answer, i: int, wanted: Options, update: Update, n: int, tokens: list[int]
) -> dict[str, Any]:
    made = {
        "index": i,
        "content": update.data.decode("utf-8", "replace"),
        "tokens": tokens,
        "stop": False,
        "id_slot": running.texts[i].seq,
        "tokens_predicted": n,
        "tokens_evaluated": running.texts[i].n_prompt,
    }
    if update.progress is not None:
        made |= progress(update.progress, wanted.timings_per_token)
    elif wanted.timings_per_token:
        made["timings"] = timings(running.texts[i])
    if update.logprobs:
        made["completion_probabilities"] = _probabilities(served, wanted, update.tokens, update.logprobs)
    return made
