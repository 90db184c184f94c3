"""GET_ROWS and SET_ROWS."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DENSE_ROWS, F16, F32, I32, I64, MADE, READ_ONLY, SIZES, WEIGHTS, Case, Operands, layouts, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.host import view_of
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference import rows as reference
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.kernels.cuda.blocks import SIMPLE
from pyggml.kernels.cuda.layout import FLOATS
from pyggml.ops import Op
from pyggml.tensor import Tensor

Q8_0 = GGMLType.Q8_0


def row_length(draw: Callable, dtype: GGMLType) -> int:
    block = SIZES[dtype].block_size
    return block * draw(st.sampled_from((1, 2, 9))) if block > 1 else draw(st.sampled_from((1, 31, 32, 65, 257)))


@st.composite
def get_rows_cases(draw: Callable, dtype: GGMLType) -> Case:
    make = draw(operands(specials=dtype != I32 and SIZES[dtype].block_size == 1 and draw(st.booleans())))
    ne = (row_length(draw, dtype), draw(st.sampled_from((1, 2, 33))), *(draw(st.sampled_from((1, 2, 3))) for _ in "ab"))
    if dtype == I32:
        a = make.leaf(I32, ne, make.rng.integers(-(2**31), 2**31, ne[::-1]))
    else:
        a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, ne)
    n = draw(st.sampled_from((1, 2, 7, 40, 0)))
    numbers = make.rng.integers(0, ne[1], (ne[3], ne[2], n))
    return Case(ops.get_rows(a, make.leaf(I32, (n, ne[2], ne[3]), numbers)), make.contents, 0.0)


@st.composite
def set_rows_cases(draw: Callable, dtype: GGMLType) -> Case:
    """No row twice: which one would win depends on the order of threads."""
    plain = SIZES[dtype].block_size == 1
    make = draw(operands(specials=plain and draw(st.booleans())))
    n_rows, ne0 = draw(st.sampled_from((1, 2, 33))), row_length(draw, dtype)
    ne2, ne3 = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((1, 2)))
    n = min(n_rows, draw(st.sampled_from((1, 2, 7, 33, 0))))
    tiles = draw(st.sampled_from((1, ne2))), draw(st.sampled_from((1, ne3)))
    table = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, (ne0, n_rows, ne2, ne3))
    source = draw(st.sampled_from((F32, F32, F16)))
    b = make.like(draw(layouts(source, DENSE_ROWS)), source, (ne0, n, ne2, ne3))
    index = draw(st.sampled_from((I64, I32)))
    numbers = np.array([make.rng.permutation(n_rows)[:n] for _ in range(tiles[0] * tiles[1])], np.int64)
    rows = make.leaf(index, (n, tiles[0], tiles[1]), numbers)
    # ggml's vectorised Q8_0 rounds halves another way than the code that writes files
    return Case(ops.set_rows(table, b, rows), make.contents, 0.0, peer_nmse=0.0 if plain else 5e-4)


@pytest.mark.parametrize("dtype", (*WEIGHTS, I32), ids=lambda dtype: dtype.name)
def test_get_rows(device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=15)
    @given(case=get_rows_cases(dtype))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@pytest.mark.parametrize("dtype", MADE, ids=lambda dtype: dtype.name)
def test_set_rows(device: Device, dtype: GGMLType) -> None:
    if device.name.startswith("CUDA") and dtype not in (*FLOATS, *SIMPLE):
        make = Operands(np.random.default_rng(0))
        table, new = make.leaf(dtype, (512, 3)), make.leaf(F32, (512, 1))
        assert not device.supports_op(ops.set_rows(table, new, make.leaf(I32, (1,), np.array([0]))))
        pytest.skip(f"blocks of {dtype.name} are not made on a GPU")

    @settings(deadline=None, max_examples=25)
    @given(case=set_rows_cases(dtype))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


def test_cpu_supports_what_models_need(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    rows = make.leaf(I32, (2,), np.array([0, 1]))
    for dtype in WEIGHTS:
        assert cpu_device.supports_op(ops.get_rows(make.leaf(dtype, (768, 3)), rows)), dtype
    for dtype in (F16, F32):
        for index in (make.leaf(I64, (2,), np.array([0, 1])), rows):
            assert cpu_device.supports_op(ops.set_rows(make.leaf(dtype, (192, 9)), make.leaf(F32, (192, 2)), index)), (
                dtype
            )


def test_types_that_are_not_made_are_not_written(cpu_device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    for dtype in READ_ONLY:
        table, rows = make.leaf(dtype, (256, 3)), make.leaf(I32, (1,), np.array([0]))
        for node in (ops.set_rows(table, make.leaf(F32, (256, 1)), rows), ops.cpy(make.leaf(F32, (256, 3)), table)):
            for device in (cpu_device, ReferenceDevice()):
                assert str(device.why_not(node)).startswith(f"type {dtype.name} is not supported")


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("which", ["reference", "cpu", "cuda"])
def test_a_row_out_of_range_is_named(request: pytest.FixtureRequest, which: str, bad: int) -> None:
    """The error tells op, node, row and limit, and nothing is written (or read) outside."""
    device: Device = ReferenceDevice() if which == "reference" else request.getfixturevalue(f"{which}_device")
    make = Operands(np.random.default_rng(0))
    table, rows = make.leaf(F32, (32, 5)), make.leaf(I32, (3,), np.array([4, bad, 0]))
    get = ops.get_rows(table, rows, name="embeddings")
    put = ops.set_rows(table, make.leaf(F32, (32, 3)), rows, name="cache")
    for node in (get, put):
        with pytest.raises(ComputeError, match=rf"{Op(node.op).name} .*{node.name}.*{bad}\b.*\b5\b"):
            run(Case(node, make.contents, 0.0), device)


def next_row(node: Tensor) -> None:
    a, rows = node.src[0], node.src[1]
    assert a is not None and rows is not None
    numbers = (view_of(rows)[0] + 1) % a.ne[1]
    i3, i2, _ = np.indices(numbers.shape)
    reference.write(node, reference.decode(a.type, view_of(a)[i3, i2, numbers]))


def same_rows_in_every_plane(node: Tensor) -> None:
    b, rows = node.src[0], node.src[1]
    assert b is not None and rows is not None
    raw, table = reference.encode(node.type, reference.read(b)), view_of(node)
    for i3, i2, i in np.ndindex(b.ne[3], b.ne[2], b.ne[1]):
        table[i3, i2, view_of(rows)[0, 0, 0, i]] = raw[i3, i2, i]


def test_mutants_are_caught() -> None:
    assert_caught(get_rows_cases(Q8_0), mutant_of(Op.GET_ROWS, (reference.refuse_get, next_row)))
    assert_caught(set_rows_cases(F16), mutant_of(Op.SET_ROWS, (reference.refuse_set, same_rows_in_every_plane)))
