"""The memory of a model whose layers want different ones: kinds composed, each layer with its own.

Owns the rule that all parts change together or none does; knows what the parts promise and no more.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pyggml.errors import ContextError, StateError
from pyggml.memory.base import Bytes, Checkpoint, Memory, Placement
from pyggml.memory.ubatch import Ubatch

Kind = TypeVar("Kind", bound=Memory)


@dataclass(frozen=True)
class LayeredPlacement(Placement):
    """One placement a part."""

    parts: tuple[Placement, ...]


class Layered(Memory):
    """`parts` in order; `where[il]`: the numbers of the parts that layer il has, each with the layer's number in it. Two
    layers may have the same number in a part: they share what is kept."""

    def __init__(self, parts: Sequence[Memory], where: dict[int, list[tuple[int, int]]]) -> None:
        self.parts = list(parts)
        self.where = where
        self.n_seq_max = max((part.n_seq_max for part in parts), default=1)
        self.n_streams = max((part.n_streams for part in parts), default=1)

    def of(self, il: int, kind: type[Kind]) -> tuple[int, int, Kind]:
        """The number of the part of this kind that layer il has, the layer's number in it, and the part."""
        for part, i in self.where.get(il, []):
            memory = self.parts[part]
            if isinstance(memory, kind):
                return part, i, memory
        raise AssertionError(f"layer {il} has asked for no {kind.__name__}")

    def place(self, ub: Ubatch) -> LayeredPlacement | None:
        found = []
        for part in self.parts:
            placement = part.place(ub)
            if placement is None:
                return None
            found.append(placement)
        return LayeredPlacement(tuple(found))

    def prepare(self, placement: Placement) -> None:
        assert isinstance(placement, LayeredPlacement)
        for part, one in zip(self.parts, placement.parts, strict=True):
            part.prepare(one)

    def commit(self, placement: Placement) -> None:
        assert isinstance(placement, LayeredPlacement)
        for part, one in zip(self.parts, placement.parts, strict=True):
            part.commit(one)

    def shape(self, placement: Placement) -> Hashable:
        assert isinstance(placement, LayeredPlacement)
        return tuple(part.shape(one) for part, one in zip(self.parts, placement.parts, strict=True))

    def begin(self, seq: int) -> int:
        return max((part.begin(seq) for part in self.parts), default=0)

    def end(self, seq: int) -> int:
        return max((part.end(seq) for part in self.parts), default=0)

    def remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """Parts that cannot are asked first: what has been removed from one cannot come back."""
        if not all(part.can_remove(seq, p0, p1) for part in self.parts):
            return False
        for part in self.parts:
            part.remove(seq, p0, p1)
        return True

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        return all(part.can_remove(seq, p0, p1) for part in self.parts)

    @property
    def rewinds(self) -> bool:
        return all(part.rewinds for part in self.parts)

    @property
    def why_no_shift(self) -> str:
        return next((why for part in self.parts if (why := part.why_no_shift)), "")

    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        if why := self.why_not_copy(src, p0, p1):
            raise ContextError(why)
        try:
            for part in self.parts:
                part.copy(src, dst, p0, p1)
        except BaseException:
            self._forget(dst)
            raise

    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        return next((why for part in self.parts if (why := part.why_not_copy(src, p0, p1))), "")

    def branch(self, src: int, dst: int, checkpoint: Checkpoint) -> None:
        """Let `dst`, which is empty, be what `src` was at a checkpoint. Raises ContextError where there is no room; `dst` has
        nothing then."""
        try:
            for part, one in zip(self.parts, checkpoint.data, strict=True):
                if one is None:
                    part.copy(src, dst, 0, checkpoint.end)
                else:
                    part.load(dst, one.data)
        except BaseException:
            self._forget(dst)
            raise

    def _forget(self, seq: int) -> None:
        """In all parts: none goes on without the others."""
        for part in self.parts:
            part.remove(seq)

    def keep(self, seq: int) -> None:
        for part in self.parts:
            part.keep(seq)

    def shift(self, seq: int, p0: int, p1: int | None, by: int) -> None:
        if why := self.why_not_shift(seq, p0, p1, by):
            raise ContextError(why)
        try:
            for part in self.parts:
                part.shift(seq, p0, p1, by)
        except BaseException:
            removed = self.remove(seq, max(0, min(p0, p0 + by)))
            if not removed or len({part.end(seq) for part in self.parts}) > 1:
                self._forget(seq)
            raise

    def why_not_shift(self, seq: int, p0: int, p1: int | None, by: int) -> str:
        return next((why for part in self.parts if (why := part.why_not_shift(seq, p0, p1, by))), "")

    def clear(self) -> None:
        for part in self.parts:
            part.clear()

    def checkpoint(self, seq: int) -> Checkpoint | None:
        found = [part.checkpoint(seq) for part in self.parts]
        return None if all(one is None for one in found) else Checkpoint(self.end(seq), found)

    def restore(self, seq: int, checkpoint: Checkpoint | None, end: int) -> bool:
        """Where a part cannot, the sequence is forgotten in all of them."""
        each = [None] * len(self.parts) if checkpoint is None else checkpoint.data
        if all(part.restore(seq, one, end) for part, one in zip(self.parts, each, strict=True)):
            return True
        self._forget(seq)
        return False

    def pieces(self, seq: int) -> Iterator[bytes]:
        for part in self.parts:
            yield part.dump_size(seq).to_bytes(8, "little")
            yield from part.pieces(seq)

    def dump_size(self, seq: int) -> int:
        return sum(8 + part.dump_size(seq) for part in self.parts)

    def loads(self, data: Bytes, end: int) -> bool:
        return all(part.loads(one, end) for part, one in zip(self.parts, self._cut(data), strict=True))

    def _cut(self, data: Bytes) -> list[Bytes]:
        """What belongs to each part. Raises StateError."""
        at, found = 0, []
        while at < len(data):
            size = int.from_bytes(bytes(data[at : at + 8]), "little")
            found.append(data[at + 8 : at + 8 + size])
            at += 8 + size
        if len(found) != len(self.parts) or at != len(data):
            raise StateError(f"a sequence with {len(found)} kinds of memory, this one has {len(self.parts)}")
        return found

    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        self._forget(seq)
        self.load_parts(seq, self._cut(data), end)

    def load_parts(self, seq: int, each: Sequence[Bytes], end: int | None = None) -> None:
        """As `load`, with what belongs to each part."""
        self._forget(seq)
        try:
            for part, one in zip(self.parts, each, strict=True):
                part.load(seq, one, end)
        except BaseException:
            self._forget(seq)
            raise

    def free(self) -> None:
        for part in self.parts:
            part.free()

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)
