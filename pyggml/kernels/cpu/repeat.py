"""REPEAT, REPEAT_BACK: tiles of a tensor, and their sum.

Owns the order of the sum; the tiles are laid by pad.py. Sources: ggml-cpu/ops.cpp: ggml_compute_forward_repeat_f32,
ggml_compute_forward_repeat_back_f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import layout_of, refuse_types
from pyggml.kernels.cpu.pad import ROUND, SINGLE, take
from pyggml.ops import Op

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types(SINGLE if node.op == Op.REPEAT else [GGMLType.F32], node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a = node.src[0]
    assert a is not None
    if node.op == Op.REPEAT:
        take(builder, node, (0, 0, 0, 0), ROUND)
    else:
        builder.step(Spec("repeat", "repeat_back", (layout_of(node), layout_of(a))), node, (a,))


def repeat_back(kind_d, kind_a):
    """-> kernel: tiles are added in the order of their places, dimension 0 running fastest."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import convert, record

    n0, n1, n2, n3 = (record.field("dst.ne", i) for i in range(4))
    m0, m1, m2, m3 = (record.field("src0.ne", i) for i in range(4))
    d, a, rows = record.row("dst"), record.element("src0"), record.rows("dst")
    store, load = convert.storer(kind_d), convert.loader(kind_a)
    nbd, nba = record.field("dst.nb"), record.field("src0.nb")

    def kernel(step, ith, nth, thread):
        n, count, sd, sa = n0(step), rows(step), nbd(step), nba(step)
        t0, t1, t2, t3 = m0(step) // n, m1(step) // n1(step), m2(step) // n2(step), m3(step) // n3(step)
        for row in range(count * ith // nth, count * (ith + 1) // nth):
            k1, k2, k3 = row % n1(step), row // n1(step) % n2(step), row // n1(step) // n2(step)
            to = d(step, row)
            for i in range(0, n, 16):
                k = min(16, n - i)
                total = v.zero_f32()
                for i3 in range(t3):
                    for i2 in range(t2):
                        for i1 in range(t1):
                            tile = a(step, 0, i1 * n1(step) + k1, i2 * n2(step) + k2, i3 * n3(step) + k3)
                            for i0 in range(t0):
                                total = total + load(tile, i0 * n + i, k, sa)
                store(to, i, total, k, sd)

    return kernel
