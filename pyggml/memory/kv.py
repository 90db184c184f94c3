"""Keys and values of the tokens so far.

Owns where the tokens of a micro-batch come to lie, and what becomes of sequences. Which token lies in which cell is kept by
cells.py, how a cell lies in memory is known to kv_tensors.py, what tokens see is computed by kv_mask.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError, StateError
from pyggml.memory import kv_rows
from pyggml.memory.base import Bytes, Checkpoint, Compute, Memory, Placement
from pyggml.memory.cells import FREE, Cells
from pyggml.memory.kv_mask import KVPlacement, mask_of, positions_of
from pyggml.memory.kv_tensors import CELL_STEP, KVLayer, KVShape, KVTensors, pad_cells
from pyggml.memory.shift import move_graph, turn_graph
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.memory.window import Window
from pyggml.tensor import Tensor


class KVInputs(NamedTuple):
    """Inputs of the nodes of all layers; v_rows[i] is of layer number i, and `k_rows` unless V lies transposed."""

    k_rows: Tensor
    v_rows: tuple[Tensor, ...]
    mask: Tensor


class KVCache(KVTensors, Memory):
    """Keys and values of all tokens, or of those that a window still sees."""

    def __init__(
        self,
        layers: Sequence[KVLayer],
        n_ctx: int,
        *,
        type_k: GGMLType = GGMLType.F16,
        type_v: GGMLType = GGMLType.F16,
        transposed_v: bool = False,
        n_seq_max: int = 1,
        n_streams: int = 1,
        window: Window | None = None,
        n_ctx_seen: int | None = None,
        alibi: bool = False,
    ) -> None:
        """n_ctx   tokens in a stream
        alibi   masks hold distances
        n_ctx_seen  tokens of a sequence, where a window keeps fewer: what positions are scaled for
        window  what a token sees; what none will see any more is given up when there is no other room

        Nothing is allocated yet. Raises UnsupportedError.
        """
        super().__init__(layers, pad_cells(n_ctx), n_streams, type_k, type_v, transposed_v)
        self.n_seq_max, self.n_streams = n_seq_max, n_streams
        if n_ctx_seen is not None:
            self.n_ctx = pad_cells(n_ctx_seen)
        self.window = window
        self.alibi = alibi
        self.compute: Compute | None = None
        """How a graph that moves or turns cells is run; the context's."""

    @cached_property
    def cells(self) -> Cells:
        """Made when they are first asked for, so that a context whose tensors find no room takes no time for them."""
        return Cells(self.n_cells, self.n_streams, self.n_seq_max)

    def n_kv(self, n_used: int) -> int:
        """Cells that a graph looks at when the last token lies in cell n_used - 1 (llama_kv_cache::get_n_kv)."""
        few_shapes = all(t.buffer is not None and t.buffer.device.few_shapes for t in self.k)
        return min(self.n_cells, max(CELL_STEP, pad_cells(n_used, few_shapes)))

    # ---- inputs

    def inputs(self, new: Callable[..., Tensor], n_tokens: int, shape: KVShape, part: int = 0) -> KVInputs:
        """Made by `new(name, dtype, *ne, fill=...)`; this cache's placement is number `part` of the memory's."""
        suffix = "" if self.window is None else "_swa"

        def mine(fill: Callable[[KVPlacement], NDArray[Any]]) -> Callable[[Ubatch, Any], NDArray[Any]]:
            return lambda ub, placement: fill(placement.parts[part])

        k_rows = new(f"k_rows{suffix}", GGMLType.I64, n_tokens, fill=mine(self.rows))
        v_rows = [k_rows] * len(self.layers)
        if self.transposed_v:
            sizes = [0 if v is None else v.ne[0] for v in self.v]
            made = {
                n: new(f"v_rows{suffix}", GGMLType.I64, n_tokens * n, fill=mine(partial(self.v_rows, n_elements=n)))
                for n in dict.fromkeys(sizes)
                if n
            }
            v_rows = [made.get(n, k_rows) for n in sizes]
        mask_type = GGMLType.F32 if self.transposed_v else GGMLType.F16
        ne = (shape.n_kv, n_tokens) if shape.n_streams == 1 else (
            shape.n_kv, n_tokens // shape.n_streams, 1, shape.n_streams
        )  # fmt: skip
        return KVInputs(k_rows, tuple(v_rows), new(f"mask{suffix}", mask_type, *ne, fill=mine(self.mask)))

    def rows(self, placement: KVPlacement) -> NDArray[np.int64]:
        """The cells of a micro-batch, counted through all streams."""
        if self.n_streams == 1:
            return placement.cells
        return placement.cells + self.n_cells * _streams(placement.ub)

    def v_rows(self, placement: KVPlacement, n_elements: int) -> NDArray[np.int64]:
        """One row an element where V lies transposed, of a layer whose cells have so many of them
        (llama_kv_cache::set_input_v_idxs)."""
        start = placement.cells
        if self.n_streams > 1:
            start = start + self.n_cells * n_elements * _streams(placement.ub)
        return (start[:, None] + np.arange(n_elements, dtype=np.int64)[None, :] * self.n_cells).reshape(-1)

    def mask(self, placement: KVPlacement) -> NDArray[Any]:
        """What tokens see (kv_mask.mask_of): F16 for flash attention, F32 for soft max."""
        dtype = np.dtype(np.float32 if self.transposed_v else np.float16)
        return mask_of(self.cells, placement, dtype, self.window, self.alibi)

    def positions(self, placement: KVPlacement) -> NDArray[np.int32]:
        """Of the cells that a micro-batch looks at, once its tokens are there (kv_mask.positions_of): (n_streams, n_kv)."""
        return positions_of(self.cells, placement)

    # ---- sequences

    def place(self, ub: Ubatch) -> KVPlacement | None:
        first, n_seqs = self._streams_of(ub)
        if ub.n == n_seqs and (cells := self.cells.next(first, ub.n)) is not None:
            return KVPlacement(ub, cells, KVShape(self.n_kv(int(cells.max()) + 1), first, ub.n))
        high = 0
        found: list[NDArray[np.int64]] = []
        dropped: list[tuple[int, NDArray[np.int64]]] = []
        each = ub.n // n_seqs
        for i in range(n_seqs):
            stream = first + i
            part = slice(i * each, (i + 1) * each)
            cells = self.cells.free(stream, each)
            if cells is None and self.window is not None:
                seqs = np.unique(ub.seq[part][ub.seq[part] != NOBODY]).tolist()
                gone = self._gone(stream, {s: int(ub.pos[part][ub.seq[part] == s].min()) for s in seqs})
                cells = self._with_dropped(stream, each, gone)
                dropped.append((stream, gone))
            if cells is None:
                return None
            found.append(cells)
            high = max(high, int(self.cells.high[stream]), int(cells.max()) + 1)
        shape = KVShape(self.n_kv(high), first, n_seqs)
        cells = found[0] if len(found) == 1 else np.concatenate(found)
        return KVPlacement(ub, cells, shape, tuple(dropped))

    def _streams_of(self, ub: Ubatch) -> tuple[int, int]:
        """(first, number) of the streams that a micro-batch is in. Sequences that share one may still be separate in a
        micro-batch, for the sake of states in other layers."""
        return (ub.first, ub.n_seqs) if self.n_streams > 1 else (0, 1)

    def _gone(self, stream: int, coming: dict[int, int]) -> NDArray[np.int64]:
        """Cells of a stream that no token sees any more. `coming`: the first position of the tokens that a sequence is about
        to have; others go on at their ends."""
        assert self.window is not None
        found = [
            self.cells.of(seq, 0, self.window.kept(coming.get(seq, self.end(seq))))
            for seq in (range(self.n_seq_max) if self.cells.shared else (stream,))
        ]
        gone, n = np.unique(np.concatenate(found), return_counts=True)
        return gone[n == self.cells.owners(gone)] if self.cells.shared else gone

    def _drop(self, stream: int, cells: NDArray[np.int64]) -> None:
        """Whoever has these cells gives them up, and all tokens before them, which others may keep: so what a sequence still
        has begins at `begin`, without a gap behind."""
        for seq in range(self.n_seq_max) if self.cells.shared else (stream,):
            lost = np.intersect1d(self.cells.of(seq), cells)
            if len(lost):
                self.cells.take(seq, self.cells.of(seq, 0, int(self.cells.pos[stream, lost].max()) + 1))

    def _with_dropped(self, stream: int, n: int, gone: NDArray[np.int64]) -> NDArray[np.int64] | None:
        free = np.setdiff1d(np.arange(self.n_cells), self._occupied(stream))
        cells = np.union1d(free, gone)[:n]
        return cells if len(cells) == n else None

    def _occupied(self, stream: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.cells.pos[stream] != FREE)

    def commit(self, placement: Placement) -> None:
        assert isinstance(placement, KVPlacement)
        ub, cells = placement.ub, placement.cells
        for stream, dropped in placement.dropped:
            self._drop(stream, dropped)
        first, n_seqs = self._streams_of(ub)
        each = ub.n // n_seqs
        alone = each == 1 and not ub.filled and not self.cells.shared and not placement.dropped
        if alone and (cells == self.cells.high[first : first + ub.n]).all():
            self.cells.put_next(first, cells, ub.pos)
            return
        for i in range(n_seqs):
            part = slice(i * each, (i + 1) * each)
            real = ub.seq[part] != NOBODY
            if real.any():
                self.cells.put(first + i, cells[part][real], ub.pos[part][real], ub.seq[part][real])

    def shape(self, placement: Placement) -> KVShape:
        assert isinstance(placement, KVPlacement)
        return placement.shape

    def begin(self, seq: int) -> int:
        return self.cells.first(seq)

    def end(self, seq: int) -> int:
        return self.cells.end(seq)

    def remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        if not self.can_remove(seq, p0, p1):
            return False
        self.cells.take(seq, self.cells.of(seq, p0, p1))
        return True

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """Where the sequence would end at p0, all that a token there sees must still be kept."""
        end = self.end(seq)
        if self.window is None or p0 == 0 or p0 >= end or (p1 is not None and p1 < end):
            return True
        return self.begin(seq) <= self.window.kept(p0)

    def keep(self, seq: int) -> None:
        for other in range(self.n_seq_max):
            if other != seq:
                self.cells.take(other, self.cells.of(other))

    def clear(self) -> None:
        self.cells.clear()

    @property
    def rewinds(self) -> bool:
        """A window that has room for as many tokens as a sequence can have gives up none."""
        return self.window is None or self.n_cells >= self.n_ctx

    @property
    def why_no_shift(self) -> str:
        """As llama_kv_cache::get_can_shift."""
        n_pos = max(layer.n_pos for layer in self.layers)
        return f"a token has {n_pos} positions, of which no one alone can change" if n_pos > 1 else ""

    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        """A sequence that ends where the window was once must still have what its next token sees."""
        if p1 is None or self.can_remove(src, p1):
            return ""
        return f"tokens {p0} to {p1 - 1} of sequence {src} cannot be copied: what the next one sees is kept no more"

    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        if src == dst:
            return
        if why := self.why_not_copy(src, p0, p1):
            raise ContextError(why)
        cells = self.cells.of(src, p0, p1)
        self.cells.take(dst, self.cells.of(dst, p0, p1))
        if self.cells.shared:
            self.cells.share(dst, cells)
            return
        to = self.cells.free(dst, len(cells))
        if to is None:
            raise ContextError(f"no room for {len(cells)} tokens of sequence {src} in sequence {dst}")
        if len(cells):
            self._run(*kv_rows.copy_graph(self, src, cells, dst, to))
            pos = self.cells.pos[src, cells]
            self.cells.put(dst, to, pos, np.full(len(to), dst, np.int32))

    def shift(self, seq: int, p0: int, p1: int | None, by: int) -> None:
        cells = self.cells.of(seq, p0, p1)
        if not by or not len(cells):
            return
        if why := self.why_not_shift(seq, p0, p1, by):
            raise ContextError(why)
        stream = self.cells.stream_of(seq)
        pos = self.cells.pos[stream, cells]
        self.cells.take(seq, cells)  # all that is left of a run that breaks off
        gone = pos + by < 0
        cells, pos = cells[~gone], pos[~gone] + np.int32(by)
        if not len(cells):
            return
        if not self.cells.shared and self._moves(stream, cells, by):
            graph, turns, n = move_graph(self, stream, int(cells[0]), len(cells), -by)
            self._run(graph, [(turns, np.full(n, by, np.int32))] if self.turns else [])
            cells = cells + by
        elif self.turns:
            first, end = int(cells.min()), int(cells.max()) + 1
            graph, turns, n = turn_graph(self, stream, first, end)
            each = np.zeros(n, np.int32)
            each[cells - first] = by
            self._run(graph, [(turns, each)])
        self.cells.put(stream, cells, pos, np.full(len(cells), seq, np.int32))

    def why_not_shift(self, seq: int, p0: int, p1: int | None, by: int) -> str:
        if by and self.cells.shared and (self.cells.owners(self.cells.of(seq, p0, p1)) > 1).any():
            return f"tokens of sequence {seq} that another one shares cannot be given other positions"
        return ""

    @property
    def turns(self) -> bool:
        """Whether keys of any layer know positions."""
        return any(layer.turn is not None for layer in self.layers)

    def _moves(self, stream: int, cells: NDArray[np.int64], by: int) -> bool:
        """Whether the cells lie in a row and those that their positions would be in are free: then they move there."""
        first, n = int(cells[0]), len(cells)
        if by > 0 or first + by < 0 or int(cells[-1]) != first + n - 1 or (np.diff(cells) != 1).any():
            return False
        return bool((self.cells.pos[stream, first + by : first] == FREE).all())

    def _run(self, graph: Any, inputs: Any) -> None:
        assert self.compute is not None, "the cache has no context"
        self.compute(graph, inputs)

    # ---- bytes

    def checkpoint(self, seq: int) -> Checkpoint | None:
        return None if self.rewinds else Checkpoint(self.end(seq), self.dump(seq))

    def restore(self, seq: int, checkpoint: Checkpoint | None, end: int) -> bool:
        if self.remove(seq, end):
            return self.end(seq) == end
        if checkpoint is None or checkpoint.end != end:
            return False
        self.load(seq, checkpoint.data)
        return True

    def pieces(self, seq: int) -> Iterator[bytes]:
        """The number of tokens (u32), their positions (i32), their rows as `rows_of` gives them."""
        cells = self._wanted(seq)
        yield np.array([len(cells)], "<u4").tobytes()
        yield self.cells.pos[self.cells.stream_of(seq), cells].astype("<i4").tobytes()
        yield from self.rows_of(seq, cells)

    def dump_size(self, seq: int) -> int:
        return 4 + len(self._wanted(seq)) * (4 + self.row)

    def _wanted(self, seq: int) -> NDArray[np.int64]:
        """The cells of all tokens, of a window that gives up tokens what the next one sees."""
        return self.cells.of(seq, 0 if self.window is None or self.rewinds else self.window.kept(self.end(seq)))

    def rows_of(self, seq: int, cells: NDArray[np.int64]) -> Iterator[bytes]:
        """For each layer the rows of K and the rows of V of these cells, V never transposed."""
        stream = self.cells.stream_of(seq)
        for tensor in self.kept():
            yield kv_rows.read(self, tensor, stream, cells)

    @property
    def row(self) -> int:
        """Bytes of a token in all layers."""
        return sum(tensor.nb[1] for tensor in self.kept())

    def loads(self, data: Bytes, end: int) -> bool:
        pos = self._unpack(data)[0]
        pos = pos[pos < end]
        first = 0 if self.window is None else self.window.kept(end)
        if not end or not len(pos):
            return not end
        return bool(pos[0] <= first and pos[-1] == end - 1 and pos[-1] - pos[0] == len(pos) - 1)

    def _unpack(self, data: Bytes) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Positions, and all rows. Raises StateError."""
        raw = np.frombuffer(data, np.uint8)
        row = self.row
        n = int(raw[:4].view("<u4")[0]) if raw.size >= 4 else -1
        if n < 0 or raw.size != 4 + n * (4 + row):
            raise StateError(f"a sequence of {raw.size} bytes is none of this cache, where a token has {4 + row}")
        pos = np.frombuffer(raw[4 : 4 + 4 * n].tobytes(), "<i4").astype(np.int32)
        before = np.concatenate([np.array([-1], np.int32), pos[:-1]])
        if (bad := np.flatnonzero(pos <= before)).size:
            i = int(bad[0])
            raise StateError(f"position {pos[i]} of token {i} of a saved sequence must be above {before[i]}")
        return pos, raw[4 + 4 * n :]

    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        self.cells.take(seq, self.cells.of(seq))
        pos, raw = self._unpack(data)
        stop = len(pos) if end is None else int(np.searchsorted(pos, end))
        last = int(pos[stop - 1]) + 1 if stop else 0
        start = 0 if self.window is None or self.rewinds else int(np.searchsorted(pos, self.window.kept(last)))
        if stop - start > self.n_cells:
            raise StateError(f"a sequence of {stop - start} tokens does not fit into {self.n_cells} cells")
        at, rows = 0, []
        for tensor in self.kept():
            size = tensor.nb[1]
            rows.append(raw[at + start * size : at + stop * size])
            at += len(pos) * size
        self.fill(seq, pos[start:stop], rows)

    def fill(self, seq: int, pos: NDArray[np.int32], rows: Sequence[NDArray[np.uint8]]) -> None:
        """Let the sequence be tokens at these positions with these rows, as `rows_of` gives them. Raises ContextError."""
        self.cells.take(seq, self.cells.of(seq))
        stream = self.cells.stream_of(seq)
        cells = self.cells.free(stream, len(pos))
        if cells is None and self.window is not None:
            self._drop(stream, self._gone(stream, {}))
            cells = self.cells.free(stream, len(pos))
        if cells is None:
            raise ContextError(f"{len(pos)} tokens do not fit into {self.n_cells} cells")
        if not len(pos):
            return
        for tensor, data in zip(self.kept(), rows, strict=True):
            kv_rows.write(self, tensor, stream, cells, data)
        self.cells.put(stream, cells, pos, np.full(len(pos), seq, np.int32))


def _streams(ub: Ubatch) -> NDArray[np.int64]:
    """The stream of each row."""
    return ub.first + np.arange(ub.n, dtype=np.int64) // (ub.n // ub.n_seqs)
