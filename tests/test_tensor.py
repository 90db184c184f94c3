"""Tensor: sizes, strides, views."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml import ops
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.errors import ShapeError
from pyggml.tensor import OP_PARAMS_BYTES, Tensor, contiguous_strides, pack_params

F32, F16, Q4_0 = GGMLType.F32, GGMLType.F16, GGMLType.Q4_0

dims = st.integers(1, 4)
shapes = st.tuples(dims, dims, dims, dims)


def test_shape_is_filled_up_to_four_dimensions() -> None:
    t = Tensor(F32, (3, 5))
    assert t.ne == (3, 5, 1, 1) and t.nb == (4, 12, 60, 60)
    assert (t.nelements, t.nrows, t.n_dims, t.nbytes) == (15, 5, 2, 60)
    assert Tensor(F32, (3, 1, 2)).n_dims == 3 and Tensor(F32, (1,)).n_dims == 1


@pytest.mark.parametrize(("dtype", "ne0", "nb1"), [(Q4_0, 64, 36), (GGMLType.Q8_0, 64, 68), (GGMLType.Q4_K, 512, 288)])
def test_rows_of_blocks(dtype: GGMLType, ne0: int, nb1: int) -> None:
    t = Tensor(dtype, (ne0, 3))
    assert t.nb == (SIZES[dtype].type_size, nb1, 3 * nb1, 3 * nb1) and t.nbytes == 3 * nb1
    assert row_size(dtype, ne0) == nb1


@pytest.mark.parametrize("ne", [(), (1, 2, 3, 4, 5), (-1,), (2, -3)])
def test_impossible_shapes_are_refused(ne: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="dimension"):
        Tensor(F32, ne, name="x")


def test_a_row_is_whole_blocks() -> None:
    with pytest.raises(ShapeError, match="row length 33 is not a multiple of the block size 32 of Q4_0"):
        Tensor(Q4_0, (33, 2))


def extent(t: Tensor) -> int:
    """The end of the last byte of any element, by looking at each."""
    size = SIZES[t.type]
    blocks = t.ne[0] // size.block_size
    ends = [
        sum(i * b for i, b in zip(index, t.nb, strict=True)) + size.type_size
        for index in product(range(blocks), *(range(n) for n in t.ne[1:]))
    ]
    return max(ends, default=0)


@settings(deadline=None, max_examples=100)
@given(shapes, st.permutations(range(4)), st.integers(0, 3))
def test_nbytes_reaches_to_the_last_element(ne: tuple[int, ...], axes: list[int], pad: int) -> None:
    whole = Tensor(F16, (ne[0] + pad, *ne[1:]))
    part = ops.permute(ops.view(whole, ne, whole.nb[1:]), *axes)
    assert part.nbytes == extent(part)
    assert part.view_src is whole


def is_dense(t: Tensor) -> bool:
    """Whether elements in order follow each other in memory, looked at one by one."""
    size = SIZES[t.type].type_size
    where = [sum(i * b for i, b in zip(index[::-1], t.nb, strict=True)) for index in product(*map(range, t.ne[::-1]))]
    return where == [size * i for i in range(len(where))]


@settings(deadline=None, max_examples=200)
@given(shapes, st.permutations(range(4)), st.integers(0, 1))
def test_is_contiguous(ne: tuple[int, ...], axes: list[int], pad: int) -> None:
    whole = Tensor(F32, (ne[0], ne[1] + pad, *ne[2:]))
    t = ops.permute(ops.view(whole, ne, whole.nb[1:]), *axes)
    assert t.is_contiguous == is_dense(t)


def test_contiguous_from_one_allows_padded_rows() -> None:
    whole = Tensor(F32, (8, 3, 2))
    padded = ops.view(whole, (6, 3, 2), whole.nb[1:])
    assert padded.is_contiguous_from(1) and not padded.is_contiguous
    swapped = ops.permute(Tensor(F32, (8, 3, 2)), 0, 2, 1, 3)
    assert not swapped.is_contiguous_from(1) and swapped.is_contiguous_from(2)


def test_empty_tensors_have_no_bytes() -> None:
    assert Tensor(F32, (4, 0)).nbytes == 0 and Tensor(Q4_0, (0, 3)).nbytes == 0


def test_a_view_of_a_view_knows_the_root() -> None:
    root = Tensor(F32, (10, 10), name="root")
    first = ops.view(root, (10, 4), (40,), 80)
    second = ops.view(first, (5, 4), (40,), 20)
    assert second.view_src is root and second.view_offs == 100 and second.is_view and not root.is_view
    assert ops.transpose(second).view_offs == 100 and ops.transpose(second).is_transposed


def test_params() -> None:
    t = Tensor(F32, (1,), op_params=pack_params("i2f", -7, 0.5, 3.0))
    assert len(t.op_params) == OP_PARAMS_BYTES
    assert (t.param_i32(0), t.param_f32(1), t.param_f32(2), t.param_i32(3)) == (-7, 0.5, 3.0, 0)


def test_strides_of_wrong_blocks_are_refused() -> None:
    with pytest.raises(ShapeError, match="Q4_0"):
        contiguous_strides(Q4_0, (31, 1, 1, 1))
