"""DSV4_HC_COMB, DSV4_HC_PRE, DSV4_HC_POST: several streams of embeddings a token."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import ANY_LAYOUT, F32, SPECIALS, Case, Operands, operands
from op_check import assert_caught, check, mutant_of, run

from pyggml import ops
from pyggml.backend.base import Device
from pyggml.backend.reference import dsv4_hc as reference
from pyggml.errors import ShapeError
from pyggml.ops import Op
from pyggml.ops.dsv4_hc import MAX_ROUNDS
from pyggml.tensor import Tensor

OPS = (Op.DSV4_HC_COMB, Op.DSV4_HC_PRE, Op.DSV4_HC_POST)
SIZES = (1, 3, 16, 31, 33, 128, 515)
TOKENS = (1, 2, 5, 17)
GATES = np.where(np.abs(SPECIALS) == 100, SPECIALS * 0.8, SPECIALS).astype(np.float32)
"""Beyond 88 a sigmoid is 0 in F32, and 0 times infinity NaN."""


@st.composite
def cases(draw: Callable, op: Op, gated: bool | None = None, mixed: bool | None = None) -> Case:
    make = draw(operands())
    n, tokens, streams = (draw(st.sampled_from(s)) for s in (SIZES, TOKENS, (1, 2, 4, 5)))

    def like(*ne: int, scale: float = 1.0) -> Tensor:
        allowed = ANY_LAYOUT if len(ne) == 3 else ("dense", "padded", "rows", "transposed")
        return make.like(draw(st.sampled_from(("dense", *allowed))), F32, ne, scale)

    if op == Op.DSV4_HC_COMB:
        eps = draw(st.sampled_from((1e-6, 1e-2) if make.specials else (1e-6, 0.0)))
        n_iter = draw(st.sampled_from((1, 2, 4, 20)))
        scale = make.leaf(F32, (draw(st.sampled_from((3, 5))),))
        node = ops.dsv4_hc_comb(like(24, tokens), scale, like(24), eps, n_iter)
    elif op == Op.DSV4_HC_PRE:
        gated = draw(st.booleans()) if gated is None else gated
        if gated:
            make.special_values = GATES
            node = ops.dsv4_hc_pre_gated(like(n, streams, tokens), like(n, streams, tokens, scale=3.0), 1 / streams)
        else:
            node = ops.dsv4_hc_pre(like(n, streams, tokens), like(streams, tokens))
    else:
        mixed = draw(st.booleans()) if mixed is None else mixed
        comb = like(streams, streams, tokens) if mixed else None
        node = ops.dsv4_hc_post(like(n, tokens), like(n, streams, tokens), like(streams, tokens), comb)
    return Case(node, make.contents, 1e-9, atol=1e-6, peer_nmse=1e-8)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_streams(device: Device, op: Op) -> None:
    @settings(deadline=None, max_examples=100)
    @given(case=cases(op))
    def attempt(case: Case) -> None:
        check(case, device)

    attempt()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_one_token_is_cut_between_threads(cpu_device: Device, n_threads: int) -> None:
    make = Operands(np.random.default_rng(n_threads))
    x, weights = make.leaf(F32, (20_011, 4)), make.leaf(F32, (4,))
    for node in (
        ops.dsv4_hc_pre(x, weights),
        ops.dsv4_hc_pre_gated(x, make.leaf(F32, (20_011, 4)), 0.25),
        ops.dsv4_hc_post(make.leaf(F32, (20_011,)), x, weights, make.leaf(F32, (4, 4))),
        ops.dsv4_hc_post(make.leaf(F32, (20_011,)), x, weights),
    ):
        check(Case(node, make.contents, 1e-9), cpu_device, n_threads)


def test_columns_add_up_to_one(device: Device) -> None:
    make = Operands(np.random.default_rng(0))
    mixes, scale = make.leaf(F32, (24, 9)), make.leaf(F32, (3,), np.array([np.nan, np.nan, 1.0]))
    node = ops.dsv4_hc_comb(mixes, scale, make.leaf(F32, (24,)), 0.0, 20)
    _, result = run(Case(node, make.contents, 0.0), device)
    np.testing.assert_allclose(result.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(result.sum(axis=3), 1, atol=1e-2)


@pytest.mark.parametrize("mixed", [False, True], ids=["as they are", "mixed"])
def test_streams_of_no_elements(device: Device, mixed: bool) -> None:
    make = Operands(np.random.default_rng(0))
    comb = make.leaf(F32, (0, 0, 3)) if mixed else None
    node = ops.dsv4_hc_post(make.leaf(F32, (5, 3)), make.leaf(F32, (5, 0, 3)), make.leaf(F32, (0, 3)), comb)
    assert node.ne == (5, 0, 3, 1)
    check(Case(node, make.contents, 0.0), device)


def with_sources(
    compute: Callable[[Tensor], None], change: Callable[[list[np.ndarray]], None]
) -> Callable[[Tensor], None]:
    def wrong(node: Tensor) -> None:
        read = reference.read
        arrays = [read(s) for s in node.src if s is not None]
        change(arrays)
        found = iter(arrays)
        reference.read = lambda _: next(found)
        try:
            compute(node)
        finally:
            reference.read = read

    return wrong


def rows_for_columns(a: list[np.ndarray]) -> None:
    a[0] = np.concatenate([a[0][..., :8], a[0][..., 8:].reshape(*a[0].shape[:-1], 4, 4).swapaxes(-1, -2).reshape(*a[0].shape[:-1], 16)], -1)  # fmt: skip


def first_factor(a: list[np.ndarray]) -> None:
    a[1] = a[1][..., ::-1] if a[1].shape[-1] == 5 else np.roll(a[1], 1, axis=-1)


def weights_of_another_stream(a: list[np.ndarray]) -> None:
    a[1] = np.flip(a[1], axis=-2 if a[1].shape[-3] > 1 and a[1].ndim == 4 and a[1].shape == a[0].shape else -1)


def mixed_the_other_way(a: list[np.ndarray]) -> None:
    a[3] = a[3].swapaxes(-1, -2)


def post_of_another_stream(a: list[np.ndarray]) -> None:
    a[2] = a[2][..., ::-1]


def without_what_is_added(a: list[np.ndarray]) -> None:
    a[0] = a[0] * 0


@pytest.mark.parametrize(
    ("op", "which", "compute", "change"),
    [
        (Op.DSV4_HC_COMB, {}, reference.comb, rows_for_columns),
        (Op.DSV4_HC_COMB, {}, reference.comb, first_factor),
        (Op.DSV4_HC_PRE, {"gated": False}, reference.pre, weights_of_another_stream),
        (Op.DSV4_HC_PRE, {"gated": True}, reference.pre, weights_of_another_stream),
        (Op.DSV4_HC_POST, {"mixed": True}, reference.post, mixed_the_other_way),
        (Op.DSV4_HC_POST, {"mixed": False}, reference.post, post_of_another_stream),
        (Op.DSV4_HC_POST, {"mixed": False}, reference.post, without_what_is_added),
    ],
)
def test_mutants_are_caught(op: Op, which: dict[str, bool], compute: Callable, change: Callable) -> None:
    assert_caught(cases(op, **which), mutant_of(op, (reference.refuse, with_sources(compute, change))))


@pytest.mark.parametrize("op", [Op.DSV4_HC_COMB, Op.DSV4_HC_PRE], ids=lambda op: op.name)
def test_parameters_count(op: Op) -> None:
    def without(node: Tensor) -> None:
        right, node.op_params = node.op_params, bytes(4) + b"\x01" + bytes(59)
        try:
            (reference.comb if op == Op.DSV4_HC_COMB else reference.pre)(node)
        finally:
            node.op_params = right

    assert_caught(cases(op, gated=True), mutant_of(op, (reference.refuse, without)))


@pytest.mark.parametrize("rounds", [-1, 0, MAX_ROUNDS + 1, (1 << 31) - 1])
def test_rounds_are_bounded(rounds: int) -> None:
    """Time goes by a parameter there, which a client of a server chooses."""
    mixes, scale, base = (Tensor(F32, ne) for ne in ((24, 1), (3,), (24,)))
    assert ops.dsv4_hc_comb(mixes, scale, base, 1e-6, MAX_ROUNDS).ne == (4, 4, 1, 1)
    with pytest.raises(ShapeError, match=f"{rounds} rounds, must be 1 to {MAX_ROUNDS}"):
        ops.dsv4_hc_comb(mixes, scale, base, 1e-6, rounds)
