"""MUL_MAT, MUL_MAT_ID, OUT_PROD: every type of weights, batches, strides, experts."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    ANY_LAYOUT,
    BF16,
    DENSE_ROWS,
    EDGE_SIZES,
    F16,
    F32,
    FLOATS,
    I32,
    SPECIALS,
    WEIGHTS,
    Case,
    Operands,
    layouts,
    operands,
)
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.reference.matmul import over_batch, refuse
from pyggml.backend.reference.rows import row_numbers
from pyggml.backend.reference.values import read, source, write
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import build_forward
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor, pack_params

# What rounding the second operand to the first one's partner type may cost.
NMSE = {F32: 1e-7, F16: 1e-6, BF16: 2e-5}

ACTIVATIONS = (F32, F32, F32, F16, BF16, GGMLType.Q8_0, GGMLType.Q8_1)


def length(draw: Callable, dtype: GGMLType) -> int:
    """Elements of a row."""
    block = SIZES[dtype].block_size
    if block == 1:
        return int(draw(st.sampled_from(EDGE_SIZES)))
    return block * int(draw(st.sampled_from((1, 2, 3, 7, 8, 9, 16, 17, 18) if block == 32 else (1, 2, 3))))


def make_operands(draw: Callable, dtype: GGMLType) -> Operands:
    # in whole blocks of integers there is no place for infinities
    make: Operands = draw(operands(specials=None if dtype in FLOATS else False))
    make.special_values = SPECIALS[:3]  # a number too small for F16 becomes 0 in ggml, and inf * 0 a NaN
    return make


def activations(draw: Callable, make: Operands, ne: tuple[int, ...]) -> Tensor:
    """Mostly F32 in dense rows."""
    fits = [t for t in ACTIVATIONS if ne[0] % SIZES[t].block_size == 0]
    dtype = F32 if make.specials else draw(st.sampled_from(fits))
    return make.like(draw(layouts(dtype, (*DENSE_ROWS, *ANY_LAYOUT))), dtype, ne)


def limit(dtype: GGMLType, node: Tensor) -> float:
    """A mean over few elements strays: one dot product of 32 may be off by four times what is usual."""
    return NMSE.get(dtype, 5e-4) * (1 + 8 / max(1, node.nelements))


@st.composite
def mul_mat_cases(draw: Callable, dtype: GGMLType) -> Case:
    make, k = make_operands(draw, dtype), length(draw, dtype)
    n = draw(st.sampled_from((1, 2, 15, 16, 17, 33, 0)))
    m = draw(st.sampled_from((1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 21, 25, 32)))
    batch = draw(st.sampled_from((1, 1, 2))), draw(st.sampled_from((1, 1, 3)))
    ratio = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2)))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, (k, n, *batch), scale=k**-0.5)
    node = ops.mul_mat(a, activations(draw, make, (k, m, batch[0] * ratio[0], batch[1] * ratio[1])))
    return Case(node, make.contents, limit(dtype, node), atol=1e-7, size=1.0)  # rows of length 1


@st.composite
def mul_mat_id_cases(draw: Callable, dtype: GGMLType) -> Case:
    make, k = make_operands(draw, dtype), length(draw, dtype)
    n, experts = draw(st.sampled_from((1, 15, 16, 17, 33, 0))), draw(st.sampled_from((1, 2, 3, 8)))
    used, tokens = draw(st.sampled_from((1, 2, 3, 6))), draw(st.sampled_from((1, 2, 5, 13, 33)))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, (k, n, experts), scale=k**-0.5)
    b = activations(draw, make, (k, draw(st.sampled_from([d for d in (1, 2, 3, 6) if used % d == 0])), tokens))
    some = draw(st.integers(1, experts))  # the others get no rows
    whole = make.leaf(I32, (used + 2, tokens), make.rng.integers(0, some, (tokens, used + 2)))
    ids = ops.view(whole, (used, tokens), (whole.nb[1],), draw(st.sampled_from((0, 4))))
    node = ops.mul_mat_id(a, b, ids)
    return Case(node, make.contents, limit(dtype, node), atol=1e-7, size=1.0)


@st.composite
def out_prod_cases(draw: Callable, dtype: GGMLType) -> Case:
    make, n = make_operands(draw, dtype), length(draw, dtype)
    k, m = draw(st.sampled_from((1, 2, 15, 16, 17, 33))), draw(st.sampled_from((1, 3, 4, 13)))
    batch = draw(st.sampled_from((1, 1, 2))), draw(st.sampled_from((1, 1, 3)))
    ratio = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (3, 2))))
    a = make.like(draw(layouts(dtype, DENSE_ROWS)), dtype, (n, k, *batch), scale=k**-0.5)
    b = make.like(draw(layouts(F32)), F32, (m, k, batch[0] * ratio[0], batch[1] * ratio[1]))
    node = ops.out_prod(a, b)
    return Case(node, make.contents, limit(F32, node), atol=1e-7, size=1.0)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
def test_mul_mat(device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=40)
    @given(case=mul_mat_cases(dtype))
    def run(case: Case) -> None:
        check(case, device)

    run()


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
def test_mul_mat_id(device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=20)
    @given(case=mul_mat_id_cases(dtype))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@pytest.mark.parametrize("dtype", [F32, F16, BF16, GGMLType.Q4_0, GGMLType.Q6_K], ids=lambda dtype: dtype.name)
def test_out_prod(device: Device, dtype: GGMLType) -> None:
    @settings(deadline=None, max_examples=25)
    @given(case=out_prod_cases(dtype))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()
    if device.name == "peer" and dtype == BF16:
        pytest.skip("ggml has no OUT_PROD of BF16, and was seen to refuse it")


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("which", ["reference", "cpu", "cuda"])
def test_an_expert_out_of_range_is_named(request: pytest.FixtureRequest, which: str, tokens: int, bad: int) -> None:
    """The error tells op, node, number and limit, and no thread reads or writes outside."""
    device: Device = ReferenceDevice() if which == "reference" else request.getfixturevalue(f"{which}_device")
    make = Operands(np.random.default_rng(0))
    ids = np.zeros((tokens, 2), np.int32)
    ids[-1, 1] = bad
    a, b = make.leaf(GGMLType.Q4_0, (64, 17, 4)), make.leaf(F32, (64, 2, tokens))
    node = ops.mul_mat_id(a, b, make.leaf(I32, (2, tokens), ids), name="experts")
    for n_threads in (1, 2):
        with pytest.raises(ComputeError, match=rf"MUL_MAT_ID .*experts.*{bad}\b.*\b4\b"):
            run(Case(node, make.contents, 0.0), device, n_threads)


def test_each_activation_is_converted_once(cpu_device: Device) -> None:
    """Also where experts share it, and where it is copied first."""
    make = Operands(np.random.default_rng(0))
    ids = make.leaf(I32, (2, 40), make.rng.integers(0, 4, 80))
    for tokens, n_steps in ((1, 4), (40, 5)):
        b = make.leaf(F16, (64, 1, tokens))
        chosen = ops.view(ids, (2, tokens), (ids.nb[1],))
        nodes = [ops.mul_mat_id(make.leaf(GGMLType.Q4_0, (64, 17, 4)), b, chosen) for _ in range(2)]
        assert steps_of(nodes, cpu_device) == n_steps + 1 - (tokens > 1)  # copy, table, planes or panels, two products


def steps_of(nodes: list[Tensor], device: Device) -> int:
    from op_check import every_tensor

    from pyggml.graph import build_forward

    buffer = device.alloc_buffer(1 << 20)
    at = 0
    tensors = list({id(t): t for node in nodes for t in every_tensor(node)}.values())
    for t in tensors:
        if t.view_src is None:
            buffer.place(t, at)
            at += -(-t.nbytes // 64) * 64
    for t in tensors:
        if t.view_src is not None:
            t.buffer, t.data = t.view_src.buffer, t.view_src.data + t.view_offs
    backend = device.open(1)
    try:
        return len(backend.plan(build_forward(nodes)).steps)  # type: ignore[attr-defined]
    finally:
        backend.close()


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.name)
def test_cpu_supports_what_models_need(cpu_device: Device, dtype: GGMLType) -> None:
    """Weights, and (F16, F32) a cache that is multiplied head by head."""
    make = Operands(np.random.default_rng(0))
    k = 768 if SIZES[dtype].block_size > 64 else 576
    a = make.leaf(dtype, (k, 40))
    for b in (make.leaf(F32, (k, 1)), make.leaf(F32, (k, 7, 2)), make.like("rows", F32, (k, 7))):
        assert cpu_device.supports_op(ops.mul_mat(a, b))
    # the pairs of ggml_backend_cpu_device_supports_op; Q8_K, the partner of other types, is made by products alone
    for other in {F32, F16, BF16, QUANTS[dtype].partner} - {GGMLType.Q8_K}:
        assert cpu_device.supports_op(ops.mul_mat(a, make.leaf(other, (k, 3)))), other
    if dtype in (F32, F16):
        k, q = make.like("planes", dtype, (64, 256, 3)), make.like("planes", F32, (64, 5, 9))
        assert cpu_device.supports_op(ops.mul_mat(k, q))


def tiled_batch(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    a = np.tile(a, (b.shape[0] // a.shape[0], b.shape[1] // a.shape[1], 1, 1))
    write(node, b @ a.swapaxes(2, 3))


def last_element_forgotten(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    b[..., -1] = 0
    write(node, b @ over_batch(a, b).swapaxes(2, 3))


def slots_in_blocks(node: Tensor) -> None:
    """Neighbouring slots share a row, where slots should take the rows in turn."""
    a, b = read(source(node, 0))[0], read(source(node, 1))[0]
    numbers = row_numbers(node, source(node, 2), a.shape[0])[0]
    rows = np.repeat(b, numbers.shape[1] // b.shape[1], axis=1)
    write(node, np.einsum("tsnk,tsk->tsn", a[numbers], rows)[None])


def transposed_result(node: Tensor) -> None:
    a, b = read(source(node, 0)), read(source(node, 1))
    product = over_batch(a, b).swapaxes(2, 3) @ b
    write(node, product.reshape(node.ne[::-1]))


@pytest.mark.parametrize("dtype", [F32, GGMLType.Q4_1], ids=lambda dtype: dtype.name)
def test_mutants_are_caught(dtype: GGMLType) -> None:
    for wrong in (tiled_batch, last_element_forgotten):
        assert_caught(mul_mat_cases(dtype), mutant_of(Op.MUL_MAT, (refuse, wrong)))


def test_mutants_of_the_others_are_caught() -> None:
    assert_caught(mul_mat_id_cases(F32), mutant_of(Op.MUL_MAT_ID, (refuse, slots_in_blocks)))
    assert_caught(out_prod_cases(F32), mutant_of(Op.OUT_PROD, (refuse, transposed_result)))


@pytest.mark.parametrize("which", ["cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_elements_of_one_matrix_are_counted_not_those_of_all_experts(
    request: pytest.FixtureRequest, which: str
) -> None:
    """2^31 and more there may be of all: here the experts of each half share their bytes."""
    device: Device = request.getfixturevalue(f"{which}_device")
    make = Operands(np.random.default_rng(0))
    k, n, experts = 64, 32, 1 << 20
    w = make.leaf(GGMLType.Q8_0, (k, n))
    many = Tensor(w.type, (k, n, experts), (*w.nb[:2], 0, 0), view_src=w)
    assert many.nelements > 2**31 - 1024
    x, ids = make.leaf(F32, (k, 1, 3)), make.leaf(I32, (1, 3), np.array([0, experts - 1, 12345]))
    node = ops.mul_mat_id(many, x, ids)
    assert device.why_not(node) is None
    row = make.leaf(F32, (1 << 17,))
    one = Tensor(F32, (1 << 17, 1 << 15), (4, 4, 4, 4), view_src=row)
    assert device.why_not(ops.mul_mat(one, row)) == f"{1 << 32} elements, at most {2**31 - 1024} are supported"
    _, got = run(Case(node, make.contents, 0.0), device)
    _, expected = run(Case(ops.mul_mat(w, ops.reshape(x, k, 3)), make.contents, 0.0), ReferenceDevice())
    assert ((got.reshape(3, n) - expected.reshape(3, n)) ** 2).sum() < 1e-3 * (expected**2).sum()


def test_experts_without_columns_need_no_table(cpu_device: Device) -> None:
    """Their number is bounded by no memory then; a parameter of the product is not what the result is filled with."""
    a, b, ids = Tensor(F32, (0, 3, 1 << 28), (4, 4, 4, 4)), Tensor(F32, (0, 2, 5)), Tensor(I32, (2, 5))
    node = ops.mul_mat_id(a, b, ids)
    node.op_params = pack_params("i", 10)
    buffer = cpu_device.alloc_buffer(4096)
    for i, t in enumerate((a, b, ids, node)):
        buffer.place(t, 1024 * i)
    buffer.clear(0x5A)
    backend = cpu_device.open(2)
    plan = backend.plan(build_forward([node]), max_work=1 << 14)
    backend.compute(plan)
    assert buffer.get(node) == bytes(node.nbytes) and buffer.get(ids) == b"\x5a" * ids.nbytes
    backend.close()
