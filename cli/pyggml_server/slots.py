"""llama-server's routes about slots: what each does, and what it has saved to a file, brought back, or forgotten.

Owns these; a request names a file of the folder that the command line gave, never a path.
"""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyggml.atomic_file import atomic_file
from pyggml.errors import ContextError, PyggmlError, StateError
from pyggml.runtime import state
from pyggml.runtime.places import Place
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.state_base import MAGIC, SavedState
from pyggml.runtime.timings import clock
from pyggml_server.answers import in_thread
from pyggml_server.errors import RequestError, unsupported
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, served_by
from pyggml_server.served import Served
from pyggml_server.streams import answer
from pyggml_server.telling import shown

LONGEST_NAME = 255  # bytes


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
        speculative = place.drafter is not None
        made = {"id": place.seq, "n_ctx": served.n_ctx, "speculative": speculative, "is_processing": text is not None}
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
        "prompt": shown(served, text.prompt),
        "generated": bytes(text.data).decode("utf-8", "replace"),
    }


async def slot_action(request: Request) -> Response:
    """POST /slots/N?action=save, restore or erase; of a slot that is computing an answer once that has ended."""
    served = served_by(request)
    number, action = _number(request.path_params["slot"]), request.query_params.get("action", "")
    if action not in ("save", "restore", "erase"):
        raise RequestError(f"action is {action[:60]!r}: must be save, restore or erase", param="action")
    if not served.settings.slots and served.settings.slot_folder is None:
        raise unsupported("this server was started with --no-slots, and without --slot-save-path")
    if action != "erase" and served.settings.slot_folder is None:
        raise unsupported("slots are saved where the server was started with --slot-save-path")
    if not 0 <= number < served.engine.n_slots:
        raise RequestError(f"slot {number}: there are {served.engine.n_slots}, numbered from 0", param="id_slot")
    place = served.engine.places[number]
    if action == "erase":
        n = await asyncio.wrap_future(served.engine.call(lambda: _erase(place), free=place))
        return answer({"id_slot": number, "n_erased": n})
    path = _file(served, await body_of(request))
    start = clock()
    n, n_bytes = await (_save(served, place, path) if action == "save" else _restore(served, place, path))
    took = {f"{action}_ms": (clock() - start) * 1e3}
    told = {"n_saved": n, "n_written": n_bytes} if action == "save" else {"n_restored": n, "n_read": n_bytes}
    return answer({"id_slot": number, "filename": path.name, **told, "timings": took})


def _number(path: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", path):
        raise RequestError(f"there is no slot {path[:60]}: they are numbered from 0", status=404, param="id_slot")
    return int(path)


def _file(served: Served, fields: Fields) -> Path:
    """The file that a request names. Raises RequestError for what is not a plain name."""
    name = str(fields.text("filename"))
    wrong = re.search(r'[\x00-\x1f\x7f/\\:*?"<>|]', name) or name.startswith(".") or name.strip() != name
    if not name or wrong or name.endswith(".") or len(name.encode()) > LONGEST_NAME:
        raise fields.wrong("filename", f"must be the name of a file, without a folder, of at most {LONGEST_NAME} bytes")
    assert served.settings.slot_folder is not None
    return Path(served.settings.slot_folder) / name


def _erase(place: Place) -> int:
    n = len(place.slot.tokens)
    place.slot.go_back(0)
    return n


async def _save(served: Served, place: Place, path: Path) -> tuple[int, int]:
    """Tokens, and bytes of the file. The state is taken between two steps, and written on a thread of the request."""

    def take() -> tuple[int, bytes]:
        slot, context = place.slot, served.context
        if not slot.tokens or slot.forgotten:
            what = "has forgotten the beginning of its text" if slot.tokens else "has no tokens"
            raise RequestError(f"slot {place.seq} {what}: there is nothing to save")
        before = context.computed_with
        if place.adapters is not None:
            context.computed_with = place.adapters
        try:
            parts = state.parts(context, slot.tokens, place.seq, slot.checkpoints.kept)
            return len(slot.tokens), b"".join(parts)
        except StateError as reason:
            raise RequestError(str(reason)) from None
        finally:
            context.computed_with = before

    n, data = await asyncio.wrap_future(served.engine.call(take, free=place))

    def write() -> None:
        try:
            with atomic_file(str(path), "saved state", lambda head: head.startswith(MAGIC)) as (file, finish):
                file.write(data)
                file.flush()
                finish()
        except (OSError, PyggmlError) as reason:
            why = reason.strerror if isinstance(reason, OSError) else str(reason).replace(str(path), path.name)
            raise RequestError(f"{path.name} cannot be written: {why}") from None

    await in_thread(write)
    return n, len(data)


async def _restore(served: Served, place: Place, path: Path) -> tuple[int, int]:
    """Tokens, and bytes of the file, which is read and checked on a thread of the request."""

    def read() -> tuple[SavedState, int]:
        try:
            return state.load(path), os.path.getsize(path)
        except (OSError, StateError) as reason:
            why = reason.strerror if isinstance(reason, OSError) else str(reason).replace(str(path), path.name)
            raise RequestError(f"{path.name} cannot be read: {why}") from None

    saved, size = await in_thread(read)

    def bring() -> int:
        slot, context, n = place.slot, served.context, len(saved.tokens)
        if n > context.n_ctx_seq - 1:
            raise RequestError(f"{path.name} has {n} tokens; a context of {context.n_ctx_seq} has no room for them")
        adapters = served.applied()
        if adapters is not None:
            context.set_adapters([(one.adapter, one.scale) for one in adapters])
        slot.go_back(0)
        try:
            reached = saved.restore(context, n, place.seq)
        except (StateError, ContextError) as reason:
            raise RequestError(str(reason).replace(str(path), path.name)) from None
        slot.tokens = saved.tokens[:reached].tolist()
        slot.checkpoints.take(saved.checkpoints(context, reached))
        place.adapters = adapters
        return reached

    return await asyncio.wrap_future(served.engine.call(bring, free=place)), size
