"""Copies between two layouts of one shape: short rows, and rows that become columns; alone and as parts of CONCAT."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, I32, Case, operands
from op_check import check

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.dtypes import GGMLType
from pyggml.kernels.cpu.rows_columns import kernel_for
from pyggml.tensor import Tensor, contiguous_strides


def tensor(ne: tuple[int, ...], nb: tuple[int, ...] | None = None, dtype: GGMLType = F32) -> Tensor:
    full = (*ne, 1, 1, 1)[:4]
    return Tensor(dtype, full, nb or contiguous_strides(dtype, full))


@pytest.mark.parametrize(
    ("target", "source", "kernel"),
    [
        (tensor((512, 40)), tensor((512, 40), (160, 4, 20480, 20480)), "columns"),
        (tensor((1, 40), (16, 16, 640, 640)), tensor((1, 40)), "rows"),
        (tensor((3, 40), (4, 2060, 82400, 82400)), tensor((3, 40)), "rows"),
        (tensor((17, 40), (4, 2060, 82400, 82400)), tensor((17, 40)), None),
        (tensor((3, 40)), tensor((3, 40)), None),
        (tensor((512, 1)), tensor((512, 1)), None),
        (tensor((3, 40), (2, 100, 4000, 4000), F16), tensor((3, 40), None, F16), None),
    ],
)
def test_which_kernel(target: Tensor, source: Tensor, kernel: str | None) -> None:
    found = kernel_for(target, source)
    assert (None if found is None else found[0].factory) == kernel


@st.composite
def moved(draw: Callable) -> Case:
    """A part of a tensor turned over, or with other rows between its own, made dense, or put in front of or behind another."""
    make, dtype = draw(operands(specials=False)), draw(st.sampled_from((F32, F32, I32)))
    n0, n1 = draw(st.sampled_from((1, 2, 3, 15, 16, 17, 600))), draw(st.sampled_from((1, 2, 15, 16, 17, 40)))
    n2, n3 = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    turned, apart = draw(st.booleans()), draw(st.sampled_from((0, 3)))
    ne = (n1, n0, n2, n3) if turned else (n0, n1, n2, n3)
    whole_ne = (ne[0] + apart, *ne[1:])
    values = make.rng.integers(-(2**31), 2**31, whole_ne[::-1]) if dtype == I32 else None
    whole = make.leaf(dtype, whole_ne, values)
    part = ops.view(whole, ne, whole.nb[1:], 4 * apart)
    part = ops.transpose(part) if turned else part
    kind = draw(st.sampled_from(("cont", "other shape", "first", "second")))
    if kind == "cont":
        return Case(ops.cont(part), make.contents, 0.0)
    if kind == "other shape":
        return Case(ops.cont(part, n0 * n1, n2 * n3), make.contents, 0.0)
    other_ne = (draw(st.sampled_from((1, 3, 20))), n1, n2, n3)
    other = make.leaf(dtype, other_ne, np.arange(np.prod(other_ne)).reshape(other_ne[::-1]))
    pair = (part, other) if kind == "first" else (other, part)
    return Case(ops.concat(*pair, 0), make.contents, 0.0)


@settings(deadline=None, max_examples=150)
@given(case=moved())
def test_moved(device: Device, case: Case) -> None:
    check(case, device)
