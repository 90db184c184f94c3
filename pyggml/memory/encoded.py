"""Keys and values that a decoder reads of a text which an encoder has read: written once, when the text is encoded.

Owns where they lie, and the mask by which a token reads those of its own sequence alone. llama.cpp keeps the encoder's result
and multiplies it with the decoder's matrices for every token (llama-context.cpp: encode, cross; models/t5.cpp); the products are
the same, so they are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.dtypes import GGMLType
from pyggml.errors import StateError
from pyggml.memory import kv_rows
from pyggml.memory.base import Bytes, Checkpoint, Memory, Placement
from pyggml.memory.kv_tensors import KVLayer, KVShape, KVTensors
from pyggml.memory.ubatch import NOBODY, Ubatch
from pyggml.tensor import Tensor

STEP = 32
"""Graphs see a multiple of this many cells."""


@dataclass(frozen=True)
class EncodedPlacement(Placement):
    """Of a micro-batch that reads; nothing is written by it."""

    ub: Ubatch
    shape: KVShape


class Encoded(KVTensors, Memory):
    """`n_cells_each` tokens of a text at most for each sequence. Where sequences share a stream of cells, sequence s has those
    from s * n_cells_each on.

    texts  the tokens of each sequence's text; none has been encoded where there are none
    """

    def __init__(
        self,
        layers: Sequence[KVLayer],
        n_cells_each: int,
        *,
        transposed_v: bool = False,
        n_seq_max: int = 1,
        n_streams: int = 1,
    ) -> None:
        """Nothing is allocated yet. Types are those in which llama.cpp multiplies them."""
        dtype = GGMLType.F32 if transposed_v else GGMLType.F16
        n_cells_each = -(-n_cells_each // STEP) * STEP
        super().__init__(
            layers, n_cells_each * n_seq_max // n_streams, n_streams, dtype, dtype, transposed_v, "encoded"
        )
        self.n_cells_each = n_cells_each
        self.n_seq_max, self.n_streams = n_seq_max, n_streams
        self.texts: list[tuple[int, ...]] = [()] * n_seq_max

    # ---- inputs

    def cells(self, seq: int, n: int) -> tuple[int, NDArray[np.int64]]:
        """The stream of a sequence, and its first `n` cells there."""
        stream, first = (seq, 0) if self.n_streams > 1 else (0, seq * self.n_cells_each)
        return stream, np.arange(first, first + n, dtype=np.int64)

    def rows_input(self, new: Callable[..., Tensor], n_tokens: int, n_elements: int = 0) -> Tensor:
        """Where the tokens of a text that is encoded come to lie: rows, or, for `n_elements` of a V that lies transposed, one
        row an element. Made by `new(name, dtype, *ne, fill=...)`."""

        def fill(ub: Ubatch, _: Any) -> NDArray[np.int64]:
            stream, cells = self.cells(int(ub.seq[0]), ub.n)
            if not n_elements:
                return cells + stream * self.n_cells
            start = cells + stream * self.n_cells * n_elements
            return (start[:, None] + np.arange(n_elements, dtype=np.int64)[None, :] * self.n_cells).reshape(-1)

        name = f"encoded_rows_{n_elements}" if n_elements else "encoded_rows"
        return new(name, GGMLType.I64, n_tokens * max(1, n_elements), fill=fill)

    def mask_input(self, new: Callable[..., Tensor], n_tokens: int, shape: KVShape, part: int) -> Tensor:
        """0 where a token reads a cell, else -inf: (n_kv, tokens of each stream, 1, n_streams)."""
        dtype = GGMLType.F32 if self.transposed_v else GGMLType.F16

        def fill(_: Ubatch, placement: Any) -> NDArray[Any]:
            return self.mask(placement.parts[part])

        return new("encoded_mask", dtype, shape.n_kv, n_tokens // shape.n_streams, 1, shape.n_streams, fill=fill)

    def mask(self, placement: EncodedPlacement) -> NDArray[Any]:
        ub, n_kv = placement.ub, placement.shape.n_kv
        value = np.full((ub.n, n_kv), -np.inf, np.float32 if self.transposed_v else np.float16)
        for seq in np.unique(ub.seq).tolist():
            if seq == NOBODY:
                value[ub.seq == seq, 0] = 0  # so that it computes numbers
                continue
            _, cells = self.cells(seq, len(self.texts[seq]))
            value[np.ix_(ub.seq == seq, cells)] = 0
        return value

    # ---- sequences

    def place(self, ub: Ubatch) -> EncodedPlacement:
        seqs = np.unique(ub.seq[ub.seq != NOBODY]).tolist()
        return EncodedPlacement(ub, self._shape(seqs, ub.first, ub.n_seqs if self.n_streams > 1 else 1))

    def _shape(self, seqs: Sequence[int], first: int, n_streams: int) -> KVShape:
        seen = 1
        for seq in seqs:
            _, cells = self.cells(seq, len(self.texts[seq]))
            seen = max(seen, int(cells[-1]) + 1 if len(cells) else 1)
        return KVShape(-(-seen // STEP) * STEP, first if self.n_streams > 1 else 0, n_streams)

    def shape_of_first(self, n_seqs: int) -> KVShape:
        """Of a micro-batch of the first `n_seqs` sequences; the largest where nothing is encoded yet."""
        if not any(self.texts):
            return KVShape(self.n_cells, 0, min(n_seqs, self.n_streams))
        return self._shape(range(n_seqs), 0, min(n_seqs, self.n_streams))

    def commit(self, placement: Placement) -> None:
        """Reading changes nothing; see `encoded`."""

    def encoded(self, seq: int, tokens: Sequence[int]) -> None:
        """A text of these tokens is there now, or none."""
        self.texts[seq] = tuple(tokens)

    def shape(self, placement: Placement) -> KVShape:
        assert isinstance(placement, EncodedPlacement)
        return placement.shape

    def begin(self, seq: int) -> int:
        return 0

    def end(self, seq: int) -> int:
        """The text is none of the sequence's own tokens."""
        return 0

    def remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        """Another answer to the same text may begin."""
        return True

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        return True

    @property
    def rewinds(self) -> bool:
        return True

    @property
    def why_no_shift(self) -> str:
        return ""

    def copy(self, src: int, dst: int, p0: int = 0, p1: int | None = None) -> None:
        """All of the text, whichever tokens are wanted: each of them has read all of it."""
        if src != dst:
            self.load(dst, self.dump(src))

    def why_not_copy(self, src: int, p0: int = 0, p1: int | None = None) -> str:
        return ""

    def keep(self, seq: int) -> None:
        self.texts = [text if s == seq else () for s, text in enumerate(self.texts)]

    def shift(self, seq: int, p0: int, p1: int | None, by: int) -> None:
        """The text's tokens have no positions among the sequence's."""

    def why_not_shift(self, seq: int, p0: int, p1: int | None, by: int) -> str:
        return ""

    def clear(self) -> None:
        self.texts = [()] * self.n_seq_max

    # ---- bytes

    def checkpoint(self, seq: int) -> Checkpoint | None:
        return None

    def restore(self, seq: int, checkpoint: Checkpoint | None, end: int) -> bool:
        return True

    @property
    def row(self) -> int:
        """Bytes of a token in all layers."""
        return sum(tensor.nb[1] for tensor in self.kept())

    def pieces(self, seq: int) -> Iterator[bytes]:
        """The number of tokens (u32), the tokens (i32), and for each layer the rows of K and of V, V never transposed."""
        stream, cells = self.cells(seq, len(self.texts[seq]))
        yield np.array([len(cells), *self.texts[seq]], "<u4").tobytes()
        for tensor in self.kept():
            yield kv_rows.read(self, tensor, stream, cells)

    def dump_size(self, seq: int) -> int:
        return 4 + len(self.texts[seq]) * (4 + self.row)

    def loads(self, data: Bytes, end: int) -> bool:
        return len(self._saved(data)) > 0 or not end

    def _saved(self, data: Bytes) -> list[int]:
        """The tokens. Raises StateError."""
        n, each = int.from_bytes(bytes(data[:4]), "little") if len(data) >= 4 else -1, 4 + self.row
        if n < 0 or len(data) != 4 + n * each:
            raise StateError(f"an encoded text of {len(data)} bytes is none of this memory, where a token has {each}")
        tokens: list[int] = np.frombuffer(bytes(data[4 : 4 + 4 * n]), "<i4").tolist()
        return tokens

    def load(self, seq: int, data: Bytes, end: int | None = None) -> None:
        self.texts[seq] = ()
        tokens = self._saved(data)
        n, at = len(tokens), 4 + 4 * len(tokens)
        if n > self.n_cells_each:
            raise StateError(f"an encoded text of {n} tokens does not fit into {self.n_cells_each} cells")
        raw = np.frombuffer(data, np.uint8)
        stream, cells = self.cells(seq, n)
        for tensor in self.kept():
            size = n * tensor.nb[1]
            kv_rows.write(self, tensor, stream, cells, raw[at : at + size])
            at += size
        self.texts[seq] = tuple(tokens)
