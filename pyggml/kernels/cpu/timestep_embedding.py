"""TIMESTEP_EMBEDDING: cosines and sines of steps times frequencies. Knows nothing of models that use it.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_timestep_embedding_f32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.jit import Spec
from pyggml.kernels.cpu.layout import refuse_types

if TYPE_CHECKING:
    from pyggml.lowering.cpu import Builder
    from pyggml.tensor import Tensor


def why_not(node: Tensor) -> str | None:
    return refuse_types([GGMLType.F32], node, node.src[0])


def lower(builder: Builder, node: Tensor) -> None:
    a, half = node.src[0], node.param_i32(0) // 2
    ratio = math.exp(-math.log(node.param_i32(1)) / max(half, 1))  # of a frequency to the one before
    builder.step(Spec("timestep_embedding", "timestep_embedding"), node, (a,), args=TimestepArgs(ratio))


class TimestepArgs(NamedTuple):
    """ratio: of a frequency to the one before."""

    ratio: float


def timestep_embedding():
    """-> kernel. Takes TimestepArgs."""
    from pyggml import simd as v
    from pyggml.kernels.cpu import record, step_args

    U = v.U
    d, n0, count, nbd = record.element("dst"), record.field("dst.ne"), record.field("dst.ne", 1), record.field("dst.nb")
    a, nba, ratio_of = record.field("src0.data"), record.field("src0.nb"), step_args.readers(TimestepArgs).ratio

    def kernel(step, ith, nth, thread):
        half, sd, ratio = n0(step) // 2, nbd(step), ratio_of(step)
        for i in range(count(step) * ith // nth, count(step) * (ith + 1) // nth):
            to = d(step, 0, i, 0, 0)
            moment, frequency = v.f32_at(a(step) + U(i * nba(step))), 1.0
            for j in range(half):
                angle = v.np.float64(moment * v.np.float32(frequency))
                v.put_f32(to + U(j * sd), v.np.float32(math.cos(angle)))
                v.put_f32(to + U((j + half) * sd), v.np.float32(math.sin(angle)))
                frequency *= ratio
            if n0(step) % 2 != 0:
                v.put_f32(to + U(2 * half * sd), v.np.float32(0))

    return kernel
