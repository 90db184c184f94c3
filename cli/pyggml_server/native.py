"""llama-server's own routes about the server, its slots and its tokens. Owns their dicts."""

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml_server import FINGERPRINT
from pyggml_server.answers import in_thread
from pyggml_server.chat import chat
from pyggml_server.engine import Counters
from pyggml_server.errors import RequestError, unsupported
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, json_of, served_by
from pyggml_server.requests import one_prompt, scale_of
from pyggml_server.streams import answer, dump
from pyggml_server.telling import generation_settings

TOKENS_WRITTEN = 4096
"""As JSON at a time: the interpreter is kept for as long."""


async def health(request: Request) -> Response:
    """GET /health: whether requests are answered; what they need has been looked at."""
    served = served_by(request)
    if served.trouble:
        raise RequestError(served.trouble, status=503)
    return answer({"status": "ok"})


async def props(request: Request) -> Response:
    """GET /props: what the server is set up with."""
    served = served_by(request)
    settings, tokenizer = served.settings, served.tokenizer

    def name(token: int | None) -> str:
        return "" if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace")

    params = generation_settings(settings.sampling, settings.n_predict, list(settings.stops))
    return answer(
        {
            "default_generation_settings": {"params": params, "n_ctx": served.n_ctx},
            "total_slots": served.engine.n_slots,
            "model_alias": served.name,
            "model_path": served.path.name,
            "modalities": {"vision": False, "audio": False, "video": False},
            "endpoint_slots": settings.slots,
            "endpoint_props": False,
            "endpoint_metrics": settings.metrics,
            "chat_template": served.plain_template.source,
            "bos_token": name(tokenizer.bos),
            "eos_token": name(tokenizer.eos),
            "build_info": FINGERPRINT,
            "is_sleeping": served.sleeping,
        }
    )


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format, under llama-server's names."""
    served = served_by(request)
    if not served.settings.metrics:
        raise unsupported("this server was started without --metrics")
    engine, c = served.engine, served.engine.counters
    lines: list[str] = []
    measured = _measured(c, c.told or Counters())
    c.told = replace(c, told=None)
    for kind, name, about, value in measured:
        lines += [f"# HELP llamacpp:{name} {about}", f"# TYPE llamacpp:{name} {kind}", f"llamacpp:{name} {value:g}"]
    for name, about, value in (
        ("requests_processing", "Texts that are computed now.", engine.n_busy),
        ("requests_deferred", "Texts that wait for a slot.", engine.n_waiting),
    ):
        lines += [f"# HELP llamacpp:{name} {about}", f"# TYPE llamacpp:{name} gauge", f"llamacpp:{name} {value}"]
    made = Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")
    made.raw_headers.append((b"Process-Start-Time-Unix", b"%d" % served.started))  # written as llama-server does
    return made


def _measured(c: Counters, last: Counters) -> list[tuple[str, str, str, float]]:
    return [
        ("counter", "prompt_tokens_total", "Tokens of prompts that were computed.", c.prompt_tokens),
        ("counter", "prompt_tokens_cached_total", "Tokens of prompts that were there already.", c.reused_tokens),
        ("counter", "prompt_seconds_total", "Seconds that prompts took.", c.prompt_seconds),
        ("counter", "tokens_predicted_total", "Tokens of answers.", c.tokens),
        ("counter", "tokens_predicted_seconds_total", "Seconds that answers took.", c.seconds),
        ("counter", "spec_decode_num_drafts_total", "Drafts that were computed.", c.drafts),
        ("counter", "spec_decode_num_draft_tokens_total", "Tokens of drafts.", c.drafted),
        ("counter", "spec_decode_num_accepted_tokens_total", "Tokens of drafts that were chosen.", c.draft_kept),
        ("counter", "n_decode_total", "Steps of computing.", c.steps),
        ("counter", "n_tokens_max", "Tokens of the longest prompt.", c.largest_prompt),
        ("gauge", "n_busy_slots_per_decode", "Slots that a step computed for.", c.busy / c.steps if c.steps else 0.0),
        ("gauge", "prompt_tokens_seconds", "Tokens of prompts a second, since this was asked last.",
         _rate(c.prompt_tokens - last.prompt_tokens, c.prompt_seconds - last.prompt_seconds)),
        ("gauge", "predicted_tokens_seconds", "Tokens of answers a second, since this was asked last.",
         _rate(c.tokens - last.tokens, c.seconds - last.seconds)),
    ]  # fmt: skip


def _rate(n: int, seconds: float) -> float:
    return n / seconds if seconds > 0 else 0.0


async def tokenize(request: Request) -> Response:
    """POST /tokenize: the tokens of `content`, with their texts if `with_pieces`."""
    served = served_by(request)
    fields = await body_of(request)

    def shown(tokens: list[int]) -> list[Any]:
        if not pieces:
            return tokens
        return [{"id": token, "piece": _piece(served.tokenizer.token_bytes(token))} for token in tokens]

    def work() -> bytes:
        if not fields.has("content"):
            return b""
        bos, special = fields.boolean("add_special", False), fields.boolean("parse_special", True)
        tokens = one_prompt(served, fields, "content", fields.raw("content"), special, bos, empty=True)
        parts = (tokens[i : i + TOKENS_WRITTEN] for i in range(0, len(tokens), TOKENS_WRITTEN))
        return b",".join(dump(shown(part))[1:-1] for part in parts)

    pieces = fields.boolean("with_pieces", False)
    return Response(b'{"tokens":[' + await in_thread(work) + b"]}", media_type="application/json")


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(request: Request) -> Response:
    """POST /detokenize: the text of `tokens`."""
    served = served_by(request)
    fields = await body_of(request)

    def work() -> str:
        n, tokens = served.tokenizer.n_vocab, fields.items("tokens", [])
        if not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < n for t in tokens):
            raise fields.wrong("tokens", f"must be tokens from 0 to {n - 1}")
        return served.tokenizer.decode(tokens, special=True)

    return answer({"content": await in_thread(work)})


async def apply_template(request: Request) -> Response:
    """POST /apply-template: the prompt that messages become."""
    served = served_by(request)
    fields = await body_of(request)
    asked = await in_thread(lambda: chat(fields, served))
    return answer({"prompt": asked.text})


async def count_chat(request: Request) -> Response:
    """POST /v1/chat/completions/input_tokens: how long that prompt is."""
    served = served_by(request)
    fields = await body_of(request)
    asked = await in_thread(lambda: chat(fields, served))
    return answer({"object": "response.input_tokens", "input_tokens": len(asked.prompt)})


async def lora_adapters(request: Request) -> Response:
    """GET /lora-adapters: those that were loaded, with their scales; POST: others for the texts that come."""
    served = served_by(request)
    if request.method == "POST":
        assert served.context is not None  # a server of embeddings has none, and says so
        given = await json_of(request)
        fields = Fields({"adapters": given})
        scales: dict[int, float] = {}
        for entry in fields.objects("adapters"):
            scales[entry.integer("id", low=0)] = scale_of(entry, served)
        served.adapters = [(adapter, scales.get(i, 0.0)) for i, (adapter, _) in enumerate(served.adapters)]
        return answer({"success": True})
    listed = [
        {"id": i, "path": str(adapter.path), "scale": scale} for i, (adapter, scale) in enumerate(served.adapters)
    ]
    return answer(listed)
