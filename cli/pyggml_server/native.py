"""llama-server's own routes about the server, its slots and its tokens. Owns their dicts."""

import asyncio
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml.errors import ContextError, PyggmlError
from pyggml.runtime.sequence import Sequence as Text
from pyggml.sampler import SamplerParams
from pyggml_server import FINGERPRINT
from pyggml_server.answers import in_thread
from pyggml_server.chat import chat
from pyggml_server.engine import Counters
from pyggml_server.errors import RequestError, unsupported
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, json_of, served_by
from pyggml_server.requests import one_prompt
from pyggml_server.served import Served
from pyggml_server.streams import answer

NAMES = {
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "penalty_freq": "frequency_penalty",
    "penalty_present": "presence_penalty",
    "typ_p": "typical_p",
}
"""SamplerParams' names -> those of requests."""


async def health(request: Request) -> Response:
    """GET /health: whether requests are answered."""
    served_by(request)
    return answer({"status": "ok"})


def generation_settings(params: SamplerParams, max_tokens: int, stops: list[str], n_probs: int = 0) -> dict[str, Any]:
    """What an answer is made with, under the names of requests."""
    made = {NAMES.get(name, name): value for name, value in asdict(params).items()}
    made["logit_bias"] = [[token, False if bias == float("-inf") else bias] for token, bias in made["logit_bias"]]
    return {**made, "n_predict": max_tokens, "max_tokens": max_tokens, "stop": stops, "n_probs": n_probs}


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
            "is_sleeping": False,
        }
    )


async def slots(request: Request) -> Response:
    """GET /slots: what each slot does; with ?fail_on_no_slot=1 an error where none is free."""
    served = served_by(request)
    if not served.settings.slots:
        raise unsupported("this server was started with --no-slots")
    found = await asyncio.wrap_future(served.engine.call(lambda: _slots(served)))
    if request.query_params.get("fail_on_no_slot") and all(slot["is_processing"] for slot in found):
        raise RequestError("no slot is free", status=503)
    return answer(found)


def _slots(served: Served) -> list[dict[str, Any]]:
    found = []
    for place in served.engine.places:
        text = place.sequence
        made = {"id": place.seq, "n_ctx": served.n_ctx, "speculative": False, "is_processing": text is not None}
        made["n_prompt_tokens_cache"] = len(place.slot.tokens)
        if text is not None:
            made |= _under_way(served, text)
        found.append(made)
    return found


def _under_way(served: Served, text: Text) -> dict[str, Any]:
    left = -1 if text.max_tokens < 0 else text.max_tokens - len(text.ends)
    return {
        "n_prompt_tokens": text.n_prompt,
        "n_prompt_tokens_processed": text.n_prompt - text.n_reused - (len(text.pending) if not text.ends else 0),
        "n_prompt_tokens_cache": text.n_reused,
        "next_token": [{"has_next_token": True, "n_remain": left, "n_decoded": len(text.ends)}],
        "prompt": served.tokenizer.decode(text.tokens[: text.n_prompt], special=True),
        "generated": bytes(text.data).decode("utf-8", "replace"),
    }


async def slot_action(request: Request) -> Response:
    """POST /slots/N?action=erase: forget what an idle slot has."""
    served = served_by(request)
    if not served.settings.slots:
        raise unsupported("this server was started with --no-slots")
    number, action = request.path_params["slot"], request.query_params.get("action", "")
    if action in ("save", "restore"):
        raise unsupported("slots are not saved to files here")
    if action != "erase":
        raise RequestError(f"action is {action[:60]!r}: must be erase", param="action")
    if not 0 <= number < served.engine.n_slots:
        raise RequestError(f"slot {number}: there are {served.engine.n_slots}, numbered from 0", param="id_slot")

    def erase() -> int:
        place = served.engine.places[number]
        if place.sequence is not None:
            raise RequestError(f"slot {number} is computing an answer", status=503)
        n = len(place.slot.tokens)
        place.slot.go_back(0)
        return n

    n = await asyncio.wrap_future(served.engine.call(erase))
    return answer({"id_slot": number, "n_erased": n})


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format, under llama-server's names."""
    served = served_by(request)
    if not served.settings.metrics:
        raise unsupported("this server was started without --metrics")
    engine, c = served.engine, served.engine.counters
    lines: list[str] = []
    for kind, name, about, value in _measured(c):
        lines += [f"# HELP llamacpp:{name} {about}", f"# TYPE llamacpp:{name} {kind}", f"llamacpp:{name} {value:g}"]
    for name, about, value in (
        ("requests_processing", "Texts that are computed now.", engine.n_busy),
        ("requests_deferred", "Texts that wait for a slot.", engine.n_waiting),
    ):
        lines += [f"# HELP llamacpp:{name} {about}", f"# TYPE llamacpp:{name} gauge", f"llamacpp:{name} {value}"]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _measured(c: Counters) -> list[tuple[str, str, str, float]]:
    return [
        ("counter", "prompt_tokens_total", "Tokens of prompts that were computed.", c.prompt_tokens),
        ("counter", "prompt_tokens_cached_total", "Tokens of prompts that were there already.", c.reused_tokens),
        ("counter", "prompt_seconds_total", "Seconds that prompts took.", c.prompt_seconds),
        ("counter", "tokens_predicted_total", "Tokens of answers.", c.tokens),
        ("counter", "tokens_predicted_seconds_total", "Seconds that answers took.", c.seconds),
        ("counter", "n_decode_total", "Steps of computing.", c.steps),
        ("gauge", "n_tokens_max", "Tokens of the longest prompt.", c.largest_prompt),
        ("gauge", "n_busy_slots_per_decode", "Slots that a step computed for.", c.busy / c.steps if c.steps else 0.0),
        ("gauge", "prompt_tokens_seconds", "Tokens of prompts a second.", c.prompt_tokens / c.prompt_seconds if c.prompt_seconds else 0.0),
        ("gauge", "predicted_tokens_seconds", "Tokens of answers a second.", c.tokens / c.seconds if c.seconds else 0.0),
    ]  # fmt: skip


async def tokenize(request: Request) -> Response:
    """POST /tokenize: the tokens of `content`, with their texts if `with_pieces`."""
    served = served_by(request)
    fields = await body_of(request)

    def work() -> list[Any]:
        if not fields.has("content"):
            return []
        bos, special = fields.boolean("add_special", False), fields.boolean("parse_special", True)
        tokens = one_prompt(served, fields, "content", fields.raw("content"), special, bos, empty=True)
        if not fields.boolean("with_pieces", False):
            return tokens
        return [{"id": token, "piece": _piece(served.tokenizer.token_bytes(token))} for token in tokens]

    return answer({"tokens": await in_thread(work)})


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(request: Request) -> Response:
    """POST /detokenize: the text of `tokens`."""
    served = served_by(request)
    fields = await body_of(request)
    tokens = fields.items("tokens", [])
    if not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < served.tokenizer.n_vocab for t in tokens):
        raise fields.wrong("tokens", f"must be tokens from 0 to {served.tokenizer.n_vocab - 1}")
    return answer({"content": await in_thread(lambda: served.tokenizer.decode(tokens, special=True))})


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
    """GET /lora-adapters: those that were loaded, with their scales; POST: others for them, from the next step on."""
    served = served_by(request)
    if request.method == "POST":
        assert served.context is not None  # a server of embeddings has none, and says so
        given = await json_of(request)
        fields = Fields({"adapters": given})
        scales: dict[int, float] = {}
        for entry in fields.objects("adapters"):
            number = entry.integer("id", low=0)
            if number >= len(served.adapters):
                raise entry.wrong("id", f"there are {len(served.adapters)} adapters, numbered from 0")
            scales[number] = entry.number("scale")
        wanted = [(adapter, scales.get(i, 0.0)) for i, (adapter, _) in enumerate(served.adapters)]
        await _apply(served, wanted)
        return answer({"success": True})
    listed = [
        {"id": i, "path": str(adapter.path), "scale": scale} for i, (adapter, scale) in enumerate(served.adapters)
    ]
    return answer(listed)


async def _apply(served: Served, wanted: list[Any]) -> None:
    """What slots have was computed with other scales: it is forgotten."""

    def apply() -> None:
        kept = [
            (a.adapter, a.scale) for a in served.context.adapters if a.adapter not in [x for x, _ in served.adapters]
        ]
        served.context.set_adapters([*wanted, *kept])
        for place in served.engine.places:
            if place.sequence is None:
                place.slot.go_back(0)

    try:
        await asyncio.wrap_future(served.engine.call(apply))
    except ContextError as reason:
        raise RequestError(str(reason)) from None
    except PyggmlError as reason:
        raise RequestError(str(reason), status=500) from None
    served.adapters = wanted
