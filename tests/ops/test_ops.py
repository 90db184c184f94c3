"""Shape rules: what the builders make and refuse, as those of ggml.c do, and what `check` says of foreign nodes."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_rules import ACCEPTED, F16, F32, FOREIGN, I64, REFUSED, t

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.ops import RULES, GluOp, Op, UnaryOp
from pyggml.tensor import Tensor


@pytest.mark.parametrize("index", range(len(ACCEPTED)))
def test_accepted(index: int) -> None:
    build, dtype, ne = ACCEPTED[index]
    node = build()
    assert (node.type, node.ne) == (dtype, ne)
    ops.check(node)


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_refused(index: int) -> None:
    build, message = REFUSED[index]
    with pytest.raises(ShapeError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_every_rule_is_tried_both_ways() -> None:
    def tried(word: str) -> set[str]:
        refused = " ".join(message.split(".")[0] for _, message in REFUSED)
        accepted = " ".join(Op(build().op).name for build, _, _ in ACCEPTED)
        return set((refused if word == "refused" else accepted).split())

    # the rules of ADD, ROPE, DIAG_MASK_INF and SQR
    same = {"SUB", "MUL", "DIV", "ROPE_BACK", "DIAG_MASK_ZERO", "SQRT", "LOG", "SIN", "COS"}
    assert {op.name for op in RULES} - same <= tried("accepted")
    assert {op.name for op in RULES} - same - {"DUP", "FILL", "SUM", "SUM_ROWS", "MEAN"} <= tried("refused")


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(FOREIGN), st.integers(0, 3), st.sampled_from([-1, 1, 7]))
def test_a_foreign_node_of_another_shape_is_refused(build: Callable[[], Tensor], dim: int, more: int) -> None:
    node = build()
    ne = list(node.ne)
    ne[dim] += more
    # those may become many shapes, and TOP_K's length is what is asked for
    if min(ne) < 0 or node.op in (Op.REPEAT, Op.REPEAT_BACK) or (node.op == Op.TOP_K and ne[0] <= 6):
        return
    node.ne = (ne[0], ne[1], ne[2], ne[3])
    with pytest.raises(ShapeError, match=Op(node.op).name):
        ops.check(node)


@pytest.mark.parametrize("index", range(len(FOREIGN)))
def test_a_foreign_node_of_another_type_is_refused(index: int) -> None:
    node = FOREIGN[index]()
    node.type = GGMLType.F64
    if node.op in (Op.CPY,):
        node.src[1].type = F32  # type: ignore[union-attr]
    with pytest.raises(ShapeError, match=f"{Op(node.op).name}.*F64"):
        ops.check(node)


@pytest.mark.parametrize("index", range(len(FOREIGN)))
def test_a_foreign_node_without_a_source_is_refused(index: int) -> None:
    node = FOREIGN[index]()
    two = (
        *(Op.MUL_MAT, Op.OUT_PROD, Op.CPY, Op.ADD, Op.ADD1, Op.MUL, Op.DIV, Op.GET_ROWS),
        *(Op.ROPE, Op.CONCAT, Op.SET, Op.ACC),
    )
    required = 0 if node.op == Op.ARANGE else 2 if node.op in two else 1
    required = 3 if node.op in (Op.SET_ROWS, Op.FLASH_ATTN_EXT, Op.MUL_MAT_ID, Op.ADD_ID) else required
    for i in range(required):
        src = list(node.src)
        src[i] = None
        with pytest.raises(ShapeError, match="sources"):
            ops.check(Tensor(node.type, node.ne, op=node.op, op_params=node.op_params, src=src))
    with pytest.raises(ShapeError, match="sources"):
        ops.check(Tensor(node.type, node.ne, op=node.op, op_params=node.op_params, src=[*node.src, *[t(1)] * 6]))


@pytest.mark.parametrize("op", [Op.CONV_2D, Op.FLASH_ATTN_BACK, 101, -1, 2**31 - 1])
def test_an_op_without_a_rule_is_unsupported(op: int) -> None:
    with pytest.raises(UnsupportedError, match="not implemented"):
        ops.check(Tensor(F32, (1,), op=op, name="odd"))


def test_writes_are_views_of_their_destination() -> None:
    table, b, rows = t(6, 9, dtype=F16), t(6, 2), t(2, dtype=I64)
    part = ops.view(table, (6, 4), (12,), 24)
    node = ops.set_rows(part, b, rows)
    assert node.view_src is table and node.view_offs == 24 and node.nb == part.nb and node.src == (b, rows, part)
    copy = ops.cpy(t(6, 4), part)
    assert copy.view_src is table and copy.view_offs == 24


def test_numbers_are_ggmls() -> None:
    assert (Op.ADD, Op.MUL_MAT, Op.SET_ROWS, Op.FLASH_ATTN_EXT, Op.GLU) == (2, 29, 42, 74, 100)
    assert (UnaryOp.SILU, UnaryOp.TRUNC, GluOp.SWIGLU, GluOp.SWIGLU_CLAMP) == (10, 21, 2, 6)


@pytest.mark.parametrize(
    "ne", [(0, 1, 2**31 + 1), (0, 65536, 65536), (2**32 - 1, 0, 1), (0, 2**32 - 1, 2**32 - 1, 2**32 - 1)]
)
def test_a_tensor_of_no_elements_is_not_as_large_as_it_likes(ne: tuple[int, ...]) -> None:
    a = Tensor(F32, ne, (4, 0, 0, 0))
    node = Tensor(F32, (1,), op=Op.REPEAT_BACK, src=(a,), name="sum")
    with pytest.raises(ShapeError, match=r"^REPEAT_BACK 'sum': '' is empty, but for that \[.*\] is too large"):
        ops.check(node)
    ops.check(Tensor(F32, (1,), op=Op.REPEAT_BACK, src=(Tensor(F32, (0, 2**31), (4, 0, 0, 0)),)))
