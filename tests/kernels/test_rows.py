"""Rows that are copied and converted: bytes as quants/ writes them, the last of equal row numbers, long single rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import F16, F32, I32, I64, SPECIALS, Case, Operands
from op_check import run

from pyggml import ops
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.kernels.cpu.formats import QUANTIZABLE
from pyggml.quants import QUANTS

BLOCKS = [t for t in QUANTIZABLE if QUANTS[t].block_size > 1]


@pytest.mark.parametrize("dtype", BLOCKS, ids=lambda dtype: dtype.name)
def test_blocks_are_written_to_the_byte(dtype: GGMLType) -> None:
    """Ordinary blocks, blocks of one value, ties, halves, denormals and both zeros; of blocks of 32 NaNs and infinities
    too, which the searches of the others order in another way than C."""
    block = QUANTS[dtype].block_size
    kinds = ["normal", "steps", "one value", "some zeros", "tiny", "zeros", *["specials"] * (block == 32)]

    @settings(deadline=None, max_examples=60 if block == 32 else 25)
    @given(st.integers(0, 2**32 - 1), st.sampled_from(kinds), st.sampled_from((F32, F32, F16)))
    def attempt(seed: int, what: str, source: GGMLType) -> None:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(block * 9).astype(np.float32) * np.float32(10.0 ** rng.integers(-5, 5))
        if what == "specials":
            where = rng.integers(0, x.size, 30)
            x[where] = rng.choice(SPECIALS, where.size)
        elif what == "steps":
            x = rng.integers(-16, 17, x.size).astype(np.float32) / np.float32(2)
        elif what == "one value":
            x = np.repeat(x[::32], 32)
        elif what == "some zeros":
            x[: block * 3] = 0
            x[block * 4 : block * 4 + 80] = 0
        elif what == "tiny":
            x *= np.float32(1e-38)
        elif what == "zeros":
            x = rng.choice(np.array([0.0, -0.0], np.float32), x.size)
        make = Operands(rng)
        with np.errstate(over="ignore"):
            a = make.leaf(source, (3 * block, 3), x)
            x = x if source == F32 else x.astype(np.float16).astype(np.float32)
        node = ops.cpy(a, make.leaf(dtype, (9 * block,), np.zeros(9 * block)))
        actual = np.frombuffer(run(Case(node, make.contents, 0.0), CPUDevice())[0], np.uint8).reshape(9, -1)
        expected = QUANTS[dtype].convert(x.reshape(9, block))
        different = np.flatnonzero((actual != expected).any(axis=1))
        assert not different.size, (x.reshape(9, block)[different[0]], actual[different[0]], expected[different[0]])

    attempt()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 2, 65]))
def test_of_equal_row_numbers_the_last_one_counts(seed: int, n_threads: int, ne0: int) -> None:
    make = Operands(np.random.default_rng(seed))
    numbers = make.leaf(I64, (40, 2), make.rng.integers(0, 6, (2, 40)))
    node = ops.set_rows(make.leaf(F16, (ne0, 6, 2)), make.leaf(F32, (ne0, 40, 2)), numbers)
    case = Case(node, make.contents, 0.0)
    assert run(case, CPUDevice(), n_threads)[0] == run(case, ReferenceDevice(), guarded=False)[0]


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("bad", [-1, 6, 2**40])
@pytest.mark.parametrize(("dtype", "ne0"), [(F16, 64), (F16, 1), (GGMLType.Q8_0, 64)])
def test_a_row_out_of_range_leaves_the_table_as_it_was(n_threads: int, bad: int, dtype: GGMLType, ne0: int) -> None:
    make = Operands(np.random.default_rng(0))
    numbers = np.arange(40) % 6
    numbers[37] = bad
    table = make.leaf(dtype, (ne0, 6))
    node = ops.set_rows(table, make.leaf(F32, (ne0, 40)), make.leaf(I64, (40,), numbers))
    node.name = "cache"
    device = CPUDevice()
    buffer = device.alloc_buffer(1 << 16)
    at = 0
    for t in (table, *(s for s in node.src[:2] if s is not None)):
        buffer.place(t, at)
        buffer.set(t, make.contents[id(t)][1])
        at += (t.nbytes + 63) // 64 * 64
    node.buffer, node.data = buffer, table.data
    backend = device.open(n_threads)
    plan = backend.plan(build_forward([node]))
    with pytest.raises(ComputeError, match=f"SET_ROWS 'cache': row index {bad}, there are 6 rows"):
        backend.compute(plan)
    assert buffer.get(table) == make.contents[id(table)][1]
    buffer.set(node.src[1], (np.arange(40) % 6).astype(np.int64).tobytes())  # type: ignore[arg-type]
    backend.compute(plan)  # the backend is none the worse
    assert buffer.get(table) != make.contents[id(table)][1]
    backend.close()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
def test_one_long_row_is_shared(n_threads: int) -> None:
    """Fewer rows than threads: columns are shared, and none is forgotten where the cuts are odd."""
    make = Operands(np.random.default_rng(0))
    for ne0 in (4095, 4096, 4097, 5003):
        a = make.leaf(F32, (ne0, 2))
        for node in (ops.add(a, make.leaf(F32, (ne0,))), ops.scale(a, 3.0), ops.cpy(a, make.leaf(F16, (ne0, 2)))):
            case = Case(node, make.contents, 0.0)
            expected = run(case, ReferenceDevice(), guarded=False)[1]
            np.testing.assert_allclose(run(case, CPUDevice(), n_threads)[1], expected, rtol=1e-6)


def test_rows_of_integers_keep_every_bit() -> None:
    make = Operands(np.random.default_rng(0))
    values = make.rng.integers(-(2**31), 2**31, (7, 33))
    node = ops.get_rows(make.leaf(I32, (33, 7), values), make.leaf(I32, (3,), np.array([6, 0, 6])))
    actual = np.frombuffer(run(Case(node, make.contents, 0.0), CPUDevice())[0], np.int32).reshape(3, 33)
    assert np.array_equal(actual, values[[6, 0, 6]])
