"""The state of a sequence, kept in a file or in bytes: its tokens, and what a context remembers of them.

Owns which version a state is of, and that files are the old one or the new one: version 1 (state_plain.py) of a model
whose layers all keep keys and values of all tokens alike, version 2 (state_parts.py) of every other. At the end of
each is the BLAKE2b digest (32 bytes) of all before.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyggml.atomic_file import atomic_file
from pyggml.errors import StateError
from pyggml.regular_file import open_regular
from pyggml.runtime import state_parts, state_plain
from pyggml.runtime.state_base import DIGEST, MAGIC, SavedState, fingerprint
from pyggml.runtime.state_parts import PartsState
from pyggml.runtime.state_plain import PlainState

if TYPE_CHECKING:
    from pyggml.memory.base import Checkpoint
    from pyggml.runtime.context import Context

FOREIGN = {b"nsgg": "llama.cpp's session files are not read here", b"qsgg": "llama.cpp's states are not read here"}
VERSIONS: dict[int, type[PlainState | PartsState]] = {
    state_plain.VERSION: PlainState,
    state_parts.VERSION: PartsState,
}


def parse(data: Any, name: str) -> SavedState:
    """From bytes that `parts` gave; `name` is what errors call them. Raises StateError."""
    raw = np.frombuffer(data, np.uint8)
    if raw.size < 12 + DIGEST or raw[:8].tobytes() != MAGIC:
        why = FOREIGN.get(raw[:4].tobytes())
        raise StateError(f"{name}: not a saved state" + (f": {why}" if why else ""))
    version = int.from_bytes(raw[8:12].tobytes(), "little")
    if version not in VERSIONS:
        raise StateError(f"{name}: a state of version {version}, known are {', '.join(map(str, VERSIONS))}")
    return VERSIONS[version].read(raw, name)


def load(path: str | os.PathLike[str]) -> SavedState:
    """From a file. Raises StateError, OSError."""
    name = os.fspath(path)
    try:
        file = open_regular(name)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise StateError(f"{name}: not a file") from None
        raise
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise StateError(f"{name}: not a saved state: it is empty")
        return parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), name)


def parts(
    context: Context, tokens: Sequence[int], seq: int = 0, checkpoints: Sequence[Checkpoint] = ()
) -> Iterator[bytes]:
    """The bytes of the state of a sequence of `context`, which has decoded `tokens`, piece by piece, with checkpoints of it
    where it cannot go back to any token. Raises StateError."""
    assert len(tokens) == context.memory.end(seq), (len(tokens), context.memory.end(seq))
    adapters = context.computed_with
    if adapters is None:
        raise StateError(
            f"{len(tokens)} tokens were not all computed with the same adapters: their state is no prompt's"
        )
    digest = hashlib.blake2b(digest_size=DIGEST)
    mark = fingerprint(context.model, adapters)
    if state_plain.is_plain(context):
        pieces = state_plain.pieces(context, tokens, seq, mark, len(adapters))
    else:
        pieces = state_parts.pieces(context, tokens, seq, mark, len(adapters), checkpoints)
    for piece in pieces:
        digest.update(piece)
        yield piece
    yield digest.digest()


def save(
    context: Context,
    tokens: Sequence[int],
    path: str | os.PathLike[str],
    seq: int = 0,
    checkpoints: Sequence[Checkpoint] = (),
) -> None:
    """Write the state to a file, which is the old one or the whole new one, whatever happens. Raises StateError, OSError."""
    path = os.path.realpath(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise StateError(f"{path}: not a file")
    with atomic_file(path, "saved state", lambda head: head.startswith(MAGIC)) as (file, finish):
        for part in parts(context, tokens, seq, checkpoints):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        finish()
