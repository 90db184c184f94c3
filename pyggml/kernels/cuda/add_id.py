"""ADD_ID: to each row the row of a table that its number says, which the kernel checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyggml.kernels.cuda.launch_args import Place, entry, place
from pyggml.kernels.cuda.layout import F32, blocks, refuse, refuse_types, source
from pyggml.kernels.cuda.spec import Spec, i32, i64

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

THREADS = 128


def why_not(node: Tensor) -> str | None:
    return refuse_types([F32], node, source(node, 0), source(node, 1)) or refuse(source(node, 2))


def lower(builder: Builder, node: Tensor) -> None:
    a, b, ids = (source(node, i) for i in range(3))
    args = AddIdArgs(
        y=place(node), a=place(a), b=b.data, b0=b.nb[0], b1=b.nb[1], ids=ids.data, ids0=ids.nb[0], ids1=ids.nb[1],
        n=a.ne[0], used=a.ne[1], limit=b.ne[1], number=builder.number + 1, status=builder.status(),
    )  # fmt: skip
    builder.launch(Spec("add_id", "add_id"), (a.nrows, min(blocks(a.ne[0], THREADS), 64)), THREADS, args)


class AddIdArgs(NamedTuple):
    y: Place
    a: Place
    b: i64
    b0: i64
    b1: i64
    ids: i64
    ids0: i64
    ids1: i64
    n: i32
    used: i32
    limit: i32
    number: i32
    status: i64


def add_id():
    from pyggml.kernels.cuda import device as d

    @entry(AddIdArgs, THREADS)
    def kernel(
        y, y0, y1, y2, y3, a, a0, a1, a2, a3, b, b0, b1, ids, ids0, ids1, n, used, limit, number, status,
    ):  # fmt: skip
        token = d.udiv(d.block_x(), used)
        slot = d.i32(d.block_x() - token * used)
        which = d.ld_i32(ids + slot * ids0 + token * ids1)
        if which < 0 or which >= limit:
            if d.thread() == 0:
                d.st_i32x4(status, number, which, which >> 31, limit)
        else:
            to, at, more = y + slot * y1 + token * y2, a + slot * a1 + token * a2, b + which * b1
            i = d.i32(d.block_y() * d.threads() + d.thread())
            while i < n:
                d.st_f32(to + i * y0, d.ld_f32(at + i * a0) + d.ld_f32(more + i * b0))
                i = d.i32(i + d.blocks_y() * d.threads())

    return kernel
