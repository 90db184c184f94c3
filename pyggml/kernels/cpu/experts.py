"""MUL_MAT_ID: which rows of activations meet which expert's weights. Knows no product: those are done by the kernels of
MUL_MAT, which are called with records of one expert.

Owns the table that says so, made anew in each run from the ids, each of which is read once, checked and kept. Its words,
i64:
  0: experts that have rows at all ("active")   1: panels of `width` rows, no two experts in one
  from 2, four an active expert: its number, its first pair, its pairs, its first panel
  then two a panel: its first pair, its pairs
  then two a pair, sorted by expert: slot (column of the ids), token (row of the ids)
  then, while it is made, one an expert, and one a pair: the id as it was read
Source: ggml-cpu/ggml-cpu.c: ggml_compute_forward_mul_mat_id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec, inline
from pyggml.kernels.cpu.product_args import ProductArgs
from pyggml.steps import STEP

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder, WorkTensor
    from pyggml.tensor import Tensor

HEAD = 2
ROWS = 16
"""Rows of weights that stay in cache while all their columns are computed."""
RECORD = STEP.itemsize


def most_panels(ids: Tensor, n_experts: int, width: int) -> int:
    """As many panels of `width` as these ids may ask for."""
    pairs = ids.ne[0] * ids.ne[1]
    return pairs // width + min(n_experts, pairs)


def table(builder: Builder, ids: Tensor, n_experts: int, width: int) -> tuple[WorkTensor, tuple[int, int]]:
    """The table of `ids` (used, tokens), once for all products that need it, and the words (of panels, of pairs) where
    its parts begin."""
    pairs = ids.ne[0] * ids.ne[1]
    panels = HEAD + 4 * min(n_experts, pairs)
    lists = panels + 2 * most_panels(ids, n_experts, width)
    key = ("experts", ids.data, ids.ne, ids.nb, n_experts, width)
    found: WorkTensor | None = builder.remembered(key)
    if found is None:
        counts = lists + 2 * pairs
        found = builder.work_tensor(GGMLType.I64, (counts + n_experts + pairs,))
        builder.step(Spec("experts", "gather"), found, [ids], args=GatherArgs(n_experts, width, panels, lists, counts))
        builder.remember(key, found, ids)
    return found, (panels, lists)


class GatherArgs(NamedTuple):
    """panels_from, pairs_from, counts_from: words of the table where its parts begin."""

    experts: int
    width: int
    panels_from: int
    pairs_from: int
    counts_from: int


def gather():
    """-> kernel: dst, the table of src0. Takes GatherArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    ids, used, tokens = record.element("src0"), record.field("src0.ne"), record.field("src0.ne", 1)
    to, (experts, width_of, panels_from, pairs_from, counts_from) = (
        record.field("dst.data"),
        step_args.readers(GatherArgs),
    )
    fault, aborted = record.fault(), record.aborted()

    def kernel(step, ith, nth, thread):
        if ith > 0:
            return
        n, width, head = experts(step), width_of(step), to(step)
        panels, pairs = head + U(8 * panels_from(step)), head + U(8 * pairs_from(step))
        counts = head + U(8 * counts_from(step))
        kept = counts + U(8 * n)
        for e in range(n):
            v.put_i64(counts + U(8 * e), 0)
        for token in range(tokens(step)):
            if aborted(step):
                return
            for slot in range(used(step)):
                e = v.np.int64(v.i32_once(ids(step, slot, token, 0, 0)))
                if e < 0 or e >= n:
                    fault(step, e, n)
                    return
                v.put_i64(kept, e)
                kept += U(8)
                at = counts + U(8 * e)
                v.put_i64(at, v.i64_at(at) + 1)
        active, n_panels, first = 0, 0, 0
        for e in range(n):
            count = v.i64_at(counts + U(8 * e))
            v.put_i64(counts + U(8 * e), first)
            if count == 0:
                continue
            entry = head + U(8 * HEAD + 32 * active)
            v.put_i64(entry, e)
            v.put_i64(entry + U(8), first)
            v.put_i64(entry + U(16), count)
            v.put_i64(entry + U(24), n_panels)
            active += 1
            for _ in range((count + width - 1) // width):
                have = min(width, count)
                v.put_i64(panels + U(16 * n_panels), first)
                v.put_i64(panels + U(16 * n_panels + 8), have)
                n_panels += 1
                first += have
                count -= have
        v.put_i64(head, active)
        v.put_i64(head + U(8), n_panels)
        kept = counts + U(8 * n)
        for token in range(tokens(step)):
            if aborted(step):
                return
            for slot in range(used(step)):
                at = counts + U(8 * v.i64_at(kept))
                kept += U(8)
                place = v.i64_at(at)
                v.put_i64(at, place + 1)
                v.put_i64(pairs + U(16 * place), slot)
                v.put_i64(pairs + U(16 * place + 8), token)

    return kernel


class reader:
    """Words that read the table which the step has as operand `name`; `args`: readers of `panels_from` and `pairs_from`,
    which say where its panels and pairs begin."""

    def __init__(self, name, args):
        from pyggml import simd as v
        from pyggml.kernels.cpu import record

        U = v.U
        head = record.field(f"{name}.data")
        panels_from, pairs_from = args.panels_from, args.pairs_from

        @inline
        def n_active(step):
            return v.i64_at(head(step))

        @inline
        def n_panels(step):
            return v.i64_at(head(step) + U(8))

        @inline
        def active(step, j):
            """(number, first pair, pairs, first panel) of the j-th expert that has any."""
            at = head(step) + U(8 * HEAD + 32 * j)
            return v.i64_at(at), v.i64_at(at + U(8)), v.i64_at(at + U(16)), v.i64_at(at + U(24))

        @inline
        def panel(step, p):
            """(first pair, pairs)."""
            at = head(step) + U(8 * panels_from(step) + 16 * p)
            return v.i64_at(at), v.i64_at(at + U(8))

        @inline
        def pair(step, i):
            """(slot, token)."""
            at = head(step) + U(8 * pairs_from(step) + 16 * i)
            return v.i64_at(at), v.i64_at(at + U(8))

        self.n_active, self.n_panels, self.active, self.panel, self.pair = n_active, n_panels, active, panel, pair


BATCH = (("src0.ne", 2), ("src0.ne", 3), ("dst.ne", 2), ("dst.ne", 3))


def matvec():
    """-> kernel: dst = the rows that src2, a table, lists, each times its expert, row by row of src0. calls: matvec.rows,
    whose arguments and planes these are; scratch: of each thread a record and what a kernel without planes needs; planes. The
    threads share the rows. Takes ProductArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    args = step_args.readers(ProductArgs)
    n1, slots, plane_bytes = record.field("src0.ne", 1), record.field("src1.ne", 1), args.column_bytes
    weights, plain, output = record.element("src0"), record.element("src1"), record.element("dst")
    work, planes, room = record.field("scratch", 0), record.field("scratch", 1), record.field("thread_bytes")
    product = record.field("calls")
    read = reader("src2", args)
    n_active, active, pair = read.n_active, read.active, read.pair
    copy, put = record.copier(*BATCH), record.writer
    put_x, put_rows, put_y, put_plane = put("src0.data"), put("src0.ne", 1), put("src1.data"), put("scratch")
    put_out, put_columns = put("dst.data"), put("dst.ne", 1)

    def kernel(step, ith, nth, thread):
        own = work(step) + U(thread * room(step))
        copy(step, own)
        put_columns(own, 1)
        put_plane(own, own + U(RECORD))
        begin, end = n1(step) * ith // nth, n1(step) * (ith + 1) // nth
        for j in range(n_active(step)):
            expert, number, pairs, _ = active(step, j)
            for first in range(begin, end, ROWS):
                put_x(own, weights(step, 0, first, expert, 0))
                put_rows(own, min(ROWS, end - first))
                for i in range(number, number + pairs):
                    slot, token = pair(step, i)
                    i1 = slot % slots(step)
                    put_y(own, plain(step, 0, i1, token, 0))
                    if plane_bytes(step):
                        put_plane(own, planes(step) + U((token * slots(step) + i1) * plane_bytes(step)))
                    put_out(own, output(step, first, slot, token, 0))
                    v.call_step(product(step), own, 0, 1, 0)

    return kernel


def gemm():
    """-> kernel: the same in tiles. calls: tile.rows, whose arguments these are; scratch: of each thread a record,
    its work_bytes, results; the panels. A thread has a share of every expert's rows, since some have more tokens than
    others. Takes ProductArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    args = step_args.readers(ProductArgs)
    n1, panel_bytes, tile_bytes = record.field("src0.ne", 1), args.column_bytes, args.work_bytes
    weights, output = record.element("src0"), record.element("dst")
    work, panels, room = record.field("scratch", 0), record.field("scratch", 1), record.field("thread_bytes")
    product = record.field("calls")
    read = reader("src2", args)
    n_active, active, pair = read.n_active, read.active, read.pair
    copy, put = record.copier(*BATCH), record.writer
    put_x, put_rows, put_tile, put_panels = put("src0.data"), put("src0.ne", 1), put("scratch"), put("scratch", 1)
    put_out, put_columns, put_stride = put("dst.data"), put("dst.ne", 1), put("dst.nb", 1)

    def kernel(step, ith, nth, thread):
        own = work(step) + U(thread * room(step))
        results = own + U(RECORD + tile_bytes(step))
        copy(step, own)
        put_tile(own, own + U(RECORD))
        put_out(own, results)
        put_stride(own, 4 * ROWS)
        experts = n_active(step)
        total = (n1(step) + ROWS - 1) // ROWS * experts
        for w in range(total * ith // nth, total * (ith + 1) // nth):
            first = w // experts * ROWS
            rows = min(ROWS, n1(step) - first)
            expert, number, pairs, first_panel = active(step, w % experts)
            put_x(own, weights(step, 0, first, expert, 0))
            put_rows(own, rows)
            put_panels(own, panels(step) + U(first_panel * panel_bytes(step)))
            put_columns(own, pairs)
            v.call_step(product(step), own, 0, 1, 0)
            at = results
            for i in range(number, number + pairs):
                slot, token = pair(step, i)
                v.store_part(output(step, first, slot, token, 0), v.load_f32_part(at, rows), rows)
                at += U(4 * ROWS)

    return kernel
