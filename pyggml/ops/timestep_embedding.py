"""TIMESTEP_EMBEDDING: its rule and builder. Not how it is computed."""

from __future__ import annotations

from pyggml.dtypes import GGMLType
from pyggml.ops.numbers import Op
from pyggml.ops.rules import Shape, Srcs, build, need, rule, sources
from pyggml.tensor import Tensor, pack_params


@rule(Op.TIMESTEP_EMBEDDING)
def _timestep_embedding(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.TIMESTEP_EMBEDDING
    (a,) = sources(op, src, 1)
    dim, max_period = node.param_i32(0), node.param_i32(1)
    need(dim > 0 and max_period > 0, op, f"{dim} dimensions, a longest period of {max_period}", a)
    need(a.ne[1:] == (1, 1, 1), op, "the steps are not a vector", a)
    return GGMLType.F32, (dim, a.ne[0], 1, 1)


def timestep_embedding(steps: Tensor, dim: int, max_period: int = 10000, name: str = "") -> Tensor:
    """For each step a row: cosines, then sines of the step times dim / 2 frequencies from 1 down to 1 / max_period."""
    return build(Op.TIMESTEP_EMBEDDING, (steps,), pack_params("ii", dim, max_period), name)
