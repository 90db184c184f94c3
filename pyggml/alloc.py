"""Where intermediate tensors lie: their lifetimes become offsets in one buffer for each device (an arena).

Owns lifetimes and the free list; knows no device (an arena is a number, its bytes are somebody else's) and no kernel.
The method is that of ggml-alloc.c: the best-fitting hole, holes that touch become one, an op that allows it writes over
a source that nobody reads any more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pyggml.ops import VIEW_OPS, Op
from pyggml.tensor import Flag, Tensor

INPLACE_OPS = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.SCALE, Op.UNARY, Op.ROPE, Op.RMS_NORM, Op.SOFT_MAX})
"""Ops whose result may lie on a source of the same layout (ggml-alloc.c: ggml_op_can_inplace)."""


INPUT = int(Flag.INPUT)
STAYS = int(Flag.INPUT) | int(Flag.OUTPUT)


class Arena:
    """Holes and their sizes, all multiples of `alignment` (a power of two). `size` is the most that was ever in use."""

    def __init__(self, alignment: int) -> None:
        assert alignment > 0 and alignment & (alignment - 1) == 0, alignment
        self.alignment = alignment
        self.size = 0
        self._offsets: list[int] = []  # of the holes below `_top`, ascending, no two touching
        self._sizes: list[int] = []
        self._top = 0  # everything from here on is free

    def round_up(self, size: int) -> int:
        """Bytes as a multiple of the alignment."""
        return -(-size // self.alignment) * self.alignment

    def state(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """All that the next `alloc` and `free` depend on."""
        return tuple(self._offsets), tuple(self._sizes), self._top

    def alloc(self, size: int) -> int:
        """Offset of `size` bytes: the smallest hole that holds them, else the end."""
        size = self.round_up(size)
        best, least = -1, 0
        for i, hole in enumerate(self._sizes):
            if hole >= size and (best < 0 or hole < least):
                best, least = i, hole
        if best < 0:
            offset = self._top
            self._top += size
            self.size = max(self.size, self._top)
            return offset
        offset = self._offsets[best]
        if least == size:
            del self._offsets[best], self._sizes[best]
        else:
            self._offsets[best] += size
            self._sizes[best] -= size
        return offset

    def free(self, offset: int, size: int) -> None:
        """Give back what `alloc` gave, or an aligned part of it."""
        size = self.round_up(size)
        if not size:
            return
        i = bisect_left(self._offsets, offset)
        assert offset + size <= self._top, (offset, size, self._top)
        assert i == 0 or self._offsets[i - 1] + self._sizes[i - 1] <= offset, "freed twice"
        assert i == len(self._offsets) or offset + size <= self._offsets[i], "freed twice"
        if i < len(self._offsets) and offset + size == self._offsets[i]:
            size += self._sizes[i]
            del self._offsets[i], self._sizes[i]
        if i > 0 and self._offsets[i - 1] + self._sizes[i - 1] == offset:
            offset = self._offsets[i - 1]
            size += self._sizes[i - 1]
            i -= 1
            del self._offsets[i], self._sizes[i]
        if offset + size == self._top:
            self._top = offset
        else:
            self._offsets.insert(i, offset)
            self._sizes.insert(i, size)


class Step(NamedTuple):
    """`result` comes into being and `reads` are needed for it. A copy from device to device reads its original."""

    result: Tensor
    reads: tuple[Tensor, ...]


class Allocation(NamedTuple):
    """Where a tensor lies: number of the arena, and bytes."""

    arena: int
    offset: int
    size: int


def steps_of(nodes: Iterable[Tensor]) -> list[Step]:
    """One step a node, as it stands in a graph."""
    return [Step(node, node.src if None not in node.src else tuple([s for s in node.src if s])) for node in nodes]  # type: ignore[arg-type]


def root_of(tensor: Tensor) -> Tensor:
    """The tensor whose bytes these are."""
    return tensor.view_src or tensor


def place_tensors(
    steps: Sequence[Step],
    arenas: Sequence[Arena],
    arena_of: Callable[[Tensor], int],
    size_of: Callable[[Tensor], int] = lambda tensor: tensor.nbytes,
    after: Mapping[int, Callable[[], None]] = MappingProxyType({}),
) -> dict[int, Allocation]:
    """id(root) -> Allocation, for each root in `steps` that has no buffer yet; views lie in their root.

    Tensors flagged INPUT lie apart from all others from the first step to the last: they are written before the first
    step and the next run may write only some of them. Those flagged OUTPUT are kept to the end. `after`, by id() of results:
    what is called when the memory of the step that makes one is settled.
    """
    last_use = _last_uses(steps)
    places: dict[int, Allocation] = {}

    def add(tensor: Tensor) -> None:
        if tensor.buffer is None and id(tensor) not in places:
            arena, size = arena_of(tensor), size_of(tensor)
            places[id(tensor)] = Allocation(arena, arenas[arena].alloc(size), size)

    ends: list[list[Tensor]] = [[] for _ in steps]
    for index, root in last_use.values():  # in the order in which they are met
        if root.flags & INPUT:
            add(root)
        elif not root.flags & STAYS:
            ends[index].append(root)
    for index, step in enumerate(steps):
        result, dying = step.result, None
        if result.view_src is not None and result.op in VIEW_OPS:
            continue
        for tensor in step.reads:
            root = tensor.view_src or tensor
            if root.buffer is None and id(root) not in places:
                add(root)
        root = result.view_src or result
        if root.buffer is None and id(root) not in places:
            if result.op in INPLACE_OPS and root is result:
                dying = _reusable(step, index, last_use, places, arena_of(result))
                kept = size_of(result) if dying is not None else 0
                if dying is not None and kept > places[id(dying)].size:
                    dying = None
            if dying is None:
                add(root)
            else:
                arena, offset, size = places[id(dying)]
                places[id(root)] = Allocation(arena, offset, kept)
                tail = arenas[arena].round_up(kept)
                arenas[arena].free(offset + tail, max(arenas[arena].round_up(size) - tail, 0))
        for root in ends[index]:
            if root is not dying and id(root) in places:
                arena, offset, size = places[id(root)]
                arenas[arena].free(offset, size)
        if id(result) in after:
            after[id(result)]()
    return places


def _last_uses(steps: Sequence[Step]) -> dict[int, tuple[int, Tensor]]:
    """id(root) -> (index of the last step that writes or reads it, directly or through a view; the root), of roots that
    have no buffer yet; inputs that are only named too."""
    last: dict[int, tuple[int, Tensor]] = {}
    for index, step in enumerate(steps):
        result = step.result
        named = result.view_src is not None and result.op in VIEW_OPS  # which touches no byte
        for tensor in (*step.reads, result):
            root = tensor.view_src or tensor
            if root.buffer is None and (not named or root.flags & INPUT):
                last[id(root)] = index, root
    return last


def _reusable(
    step: Step, index: int, last_use: dict[int, tuple[int, Tensor]], places: dict[int, Allocation], arena: int
) -> Tensor | None:
    """The root of a source that the result may overwrite, if there is one (ggml_gallocr_allocate_node)."""
    node = step.result
    for source in step.reads:
        root = source.view_src or source
        if (
            root.flags & STAYS == 0
            and id(root) in places
            and places[id(root)].arena == arena
            and (source.view_offs == 0 or source.view_src is None)
            and (source.type, source.ne, source.nb) == (node.type, node.ne, node.nb)
            and last_use[id(root)][0] == index
            and [other.view_src or other for other in step.reads].count(root) == 1
        ):
            return root
    return None
