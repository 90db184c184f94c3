"""Version 2 of saved states: of a model whose layers remember in different ways, with checkpoints of its text.

A state is HEADER; the tokens, i32 each; for each part of the memory a PART record and what that part dumps (`Memory.pieces`);
for each checkpoint, the oldest first, a CHECKPOINT record, and for each part a size (u64) and as many bytes, 0 where a part can
go back without. Owns this layout; what a part dumps is its own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pyggml.errors import StateError
from pyggml.memory.base import Checkpoint, Memory
from pyggml.memory.blocks import Blocks
from pyggml.memory.encoded import Encoded
from pyggml.memory.kv import KVCache
from pyggml.memory.recurrent import RecurrentState
from pyggml.memory.tokens import Tokens
from pyggml.runtime.state_base import DIGEST, MAGIC, SavedState, check_digest
from pyggml.runtime.state_plain import type_name

if TYPE_CHECKING:
    from pyggml.runtime.context import Context

VERSION = 2
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("n_tokens", "<u4"),
        ("n_parts", "<u4"),
        ("n_checkpoints", "<u4"),
        ("n_adapters", "<u4"),  # in use when the tokens were computed
        ("zero", "<u4"),
        ("fingerprint", "u1", (32,)),
    ]
)
assert HEADER.itemsize == 64
PART = np.dtype(
    [
        ("kind", "<u4"),  # of KINDS
        ("n_layer", "<u4"),
        ("window", "<u4"),  # tokens; 0: all
        ("chunked", "<u4"),
        ("type_k", "<u4"),
        ("type_v", "<u4"),
        ("row", "<u8"),  # bytes of a token in all layers; of all states
        ("size", "<u8"),  # bytes that follow
    ]
)
assert PART.itemsize == 40
CHECKPOINT = np.dtype([("end", "<u4"), ("zero", "<u4")])
assert CHECKPOINT.itemsize == 8
KINDS: dict[int, type[Memory]] = {1: KVCache, 2: RecurrentState, 3: Encoded, 4: Blocks, 5: Tokens}
WORDS = {
    0: "unknown",
    1: "keys and values",
    2: "recurrent states",
    3: "an encoded text",
    4: "blocks of tokens",
    5: "tokens",
}
MOST_PARTS = 1024

Bytes = NDArray[np.uint8]


class Saved(NamedTuple):
    """A checkpoint: the end, and what each part has of it."""

    end: int
    each: list[Bytes]


class _Reader:
    """Pieces of bytes from the first to the last."""

    def __init__(self, raw: Bytes, name: str) -> None:
        self.raw, self.name, self.at = raw, name, 0

    def take(self, n: int) -> Bytes:
        """Raises StateError where there are not so many."""
        if n > self.raw.size - self.at:
            raise StateError(
                f"{self.name}: damaged: {self.raw.size} bytes, at {self.at} it announces {n} more than it has"
            )
        self.at += n
        return self.raw[self.at - n : self.at]

    def record(self, dtype: np.dtype[Any]) -> Any:
        return np.frombuffer(self.take(dtype.itemsize).tobytes(), dtype)[0]


class PartsState(SavedState):
    """`records` and `bodies`: what each part of the memory dumped."""

    def __init__(
        self, name: str, head: Any, tokens: NDArray[np.int32], parts: list[tuple[Any, Bytes]], saved: list[Saved]
    ) -> None:
        super().__init__(name, head, tokens)
        self._parts, self._saved = parts, saved

    @classmethod
    def read(cls, raw: Bytes, name: str) -> Self:
        """Raises StateError."""
        reader = _Reader(raw[:-DIGEST], name)
        head = reader.record(HEADER)
        check_digest(raw, name)
        n_parts = int(head["n_parts"])
        if not 0 < n_parts <= MOST_PARTS:
            raise StateError(f"{name}: damaged: {n_parts} kinds of memory, 1 to {MOST_PARTS} are possible")
        tokens = np.frombuffer(reader.take(4 * int(head["n_tokens"])).tobytes(), "<i4").astype(np.int32)
        parts = []
        for _ in range(n_parts):
            record = reader.record(PART)
            parts.append((record, reader.take(int(record["size"]))))
        saved = []
        for _ in range(int(head["n_checkpoints"])):
            end = int(reader.record(CHECKPOINT)["end"])
            sizes = np.dtype("<u8")
            saved.append(Saved(end, [reader.take(int(reader.record(sizes))) for _ in range(n_parts)]))
        if reader.at != reader.raw.size:
            raise StateError(f"{name}: damaged: {reader.raw.size - reader.at} bytes follow its end")
        return cls(name, head, tokens, parts, saved)

    def check_memory(self, context: Context) -> None:
        parts, n = context.memory.parts, len(self.tokens)
        if len(parts) != len(self._parts):
            raise StateError(f"{self.name}: has {len(self._parts)} kinds of memory, the context has {len(parts)}")
        for number, ((record, _), part) in enumerate(zip(self._parts, parts, strict=True)):
            self._check_record(record, _record(part, 0), number)
        ends = [one.end for one in self._saved]
        if any(not 0 < end <= n for end in ends) or any(b <= a for a, b in pairwise(ends)):
            raise StateError(f"{self.name}: damaged: checkpoints at {ends}, must rise from 1 to {n}")
        for what, end, each in [
            ("sequence", n, [body for _, body in self._parts]),
            *(("checkpoint", one.end, one.each) for one in self._saved),
        ]:
            for part, body in zip(parts, each, strict=True):
                if what == "checkpoint" and not body.size:
                    continue
                try:
                    there = part.loads(body, end)
                except StateError as error:
                    raise StateError(f"{self.name}: damaged: {error}") from None
                if not there:
                    raise StateError(f"{self.name}: damaged: a {what} that does not end at {end}")

    def _check_record(self, there: Any, here: Any, number: int) -> None:
        for field in ("kind", "type_k", "type_v", "window", "chunked", "n_layer", "row"):
            if there[field] == here[field]:
                continue
            a, b = int(there[field]), int(here[field])
            if field == "kind":
                raise StateError(
                    f"{self.name}: damaged: memory {number} is {WORDS.get(a, WORDS[0])}, the context's is {WORDS[b]}"
                )
            if field.startswith("type_"):
                raise StateError(
                    f"{self.name}: its {field[-1].upper()} is {type_name(a)}, the context's is {type_name(b)}"
                )
            if field == "window":
                raise StateError(f"{self.name}: its window has {a} tokens, the context's has {b}")
            raise StateError(f"{self.name}: damaged: {field} of memory {number} is {a}, not {b}")

    def fill(self, context: Context, n: int, seq: int) -> int:
        parts = context.memory.parts
        bodies = [body for _, body in self._parts]
        if all(part.loads(body, n) for part, body in zip(parts, bodies, strict=True)):
            context.memory.load_parts(seq, bodies, n)
            return n
        for one in reversed(self._saved):
            each = [own if own.size else body for own, body in zip(one.each, bodies, strict=True)]
            if one.end <= n and all(part.loads(body, one.end) for part, body in zip(parts, each, strict=True)):
                context.memory.load_parts(seq, each, one.end)
                return one.end
        return 0

    def checkpoints(self, context: Context, n: int) -> list[Checkpoint]:
        return [
            Checkpoint(one.end, [Checkpoint(one.end, body.tobytes()) if body.size else None for body in one.each])
            for one in self._saved
            if one.end <= n
        ]


def _record(part: Memory, size: int) -> Any:
    record = np.zeros(1, PART)
    assert isinstance(part, KVCache | RecurrentState | Encoded | Blocks | Tokens), part
    record["kind"] = next(number for number, kind in KINDS.items() if isinstance(part, kind))
    record["n_layer"], record["row"], record["size"] = len(part.layers), part.row, size
    if isinstance(part, KVCache):
        if part.window is not None:
            record["window"], record["chunked"] = part.window.n, part.window.chunked
        v = next((v for v in part.v if v is not None), part.k[0])
        record["type_k"], record["type_v"] = part.k[0].type, v.type
    if isinstance(part, Encoded):
        record["type_k"] = record["type_v"] = part.k[0].type
    if isinstance(part, Blocks):
        record["window"] = part.ratio
        record["type_k"] = record["type_v"] = part.tensors(0)[0].type
    return record[0]


def pieces(
    context: Context,
    tokens: Sequence[int],
    seq: int,
    fingerprint: bytes,
    n_adapters: int,
    checkpoints: Sequence[Checkpoint],
) -> Iterator[bytes]:
    """A state but for its digest."""
    parts = context.memory.parts
    header = np.zeros(1, HEADER)
    header["magic"], header["version"], header["n_tokens"], header["n_parts"] = MAGIC, VERSION, len(tokens), len(parts)
    header["n_checkpoints"], header["n_adapters"] = len(checkpoints), n_adapters
    header["fingerprint"] = np.frombuffer(fingerprint, np.uint8)
    yield header.tobytes()
    yield np.asarray(tokens, "<i4").tobytes()
    for part in parts:
        yield _record(part, part.dump_size(seq)).tobytes()
        yield from part.pieces(seq)
    for checkpoint in checkpoints:
        yield np.array([(checkpoint.end, 0)], CHECKPOINT).tobytes()
        for one in checkpoint.data:
            data = b"" if one is None else one.data
            yield len(data).to_bytes(8, "little")
            yield data
