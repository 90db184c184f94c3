"""MUL_MAT, MUL_MAT_ID: which kernel takes a product. Knows shapes, types and addresses.

Few columns: rows of weights are read once, straight from their blocks (matvec.py). More: tensor cores (mma.py), where the
GPU has those that are used here. What is left, odd strides above all: `tile.py`, which reads element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pyggml.kernels.cuda import matvec, matvec_one, mma, tile
from pyggml.kernels.cuda.activations import wanted
from pyggml.kernels.cuda.blocks import READ
from pyggml.kernels.cuda.layout import F32, FLOATS, apart, disjoint, option, refuse, refuse_types, source
from pyggml.kernels.cuda.norm import threads_for
from pyggml.kernels.cuda.normed import normed
from pyggml.ops import GluOp, Op

if TYPE_CHECKING:
    from pyggml.lowering.cuda import Builder
    from pyggml.tensor import Tensor

Inside: TypeAlias = "Callable[[list[Tensor]], bool]"
"""Whether all results of some nodes but the last are read among them alone."""
GATES = (GluOp.REGLU, GluOp.GEGLU, GluOp.SWIGLU)
"""The GLUs that a product does by itself."""


def why_not(node: Tensor) -> str | None:
    a, b = source(node, 0), source(node, 1)
    if node.nelements and a.ne[0] == 0:
        return "rows are empty"
    if node.op == Op.MUL_MAT_ID:
        if node.nelements and a.ne[2] == 0:
            return "there are no matrices"
        reason = refuse(source(node, 2))
        if reason is not None:
            return reason
    return refuse_types(READ, a, by_matrix=True) or refuse_types(FLOATS, b) or refuse_types([F32], node)


def lower(builder: Builder, node: Tensor) -> None:
    a, b = source(node, 0), source(node, 1)
    many = b.type == F32 and mma.takes(builder.cc, node, a, b)
    if many and node.op == Op.MUL_MAT_ID:
        mma.lower(builder, node, a, b)
    elif is_alone(node) and matvec.takes(node, a, b):
        matvec_one.lower_products(builder, b, [(a, node, 0)])
    elif b.type == F32 and matvec.takes(node, a, b):
        matvec.lower(builder, node, a, b, node)
    elif many:
        mma.lower(builder, node, a, b)
    else:
        tile.lower(builder, node, a, b)


def is_alone(node: Tensor) -> bool:
    """Whether the product is that of one matrix with one column of F32, and lands in a dense one."""
    a, b = source(node, 0), source(node, 1)
    return node.op == Op.MUL_MAT and b.type == F32 and b.nelements == b.ne[0] and node.nelements == a.ne[1]


def take(builder: Builder, nodes: list[Tensor], inside: Inside) -> int:
    """Products with one column from nodes[0] on and what follows them, in one launch; -> so many nodes, 0: none."""
    first = nodes[0]
    if not is_alone(first) or not matvec.takes(first, source(first, 0), source(first, 1)):
        return 0
    if [n.op for n in nodes[1:3]] == [Op.MUL_MAT, Op.GLU] and inside(nodes[:3]) and with_gate(builder, *nodes[:3]):
        return 3
    found: list[Unit] = []
    b, end = source(first, 1), 0
    while end < len(nodes) and len(found) < matvec_one.MOST:
        unit = one_of(nodes[end:], inside)
        if unit is None or source(unit.product, 1) is not b or any(not may_join(unit, other) for other in found):
            break
        found.append(unit)
        end += unit.nodes
    if not found:
        return 0
    norm, more = None, 0
    if len(found) == 1 and found[0].nodes == 2:
        norm, more = norm_behind(builder, found[0].result, nodes[end : end + 2], inside)
    matvec_one.lower_products(builder, b, [(source(u.product, 0), u.result, u.address) for u in found], norm)
    return end + more


class Unit(NamedTuple):
    """A product, where it lands, what is added, and so many nodes."""

    product: Tensor
    result: Tensor
    added: Tensor | None
    nodes: int

    @property
    def address(self) -> int:
        return 0 if self.added is None else self.added.data


def one_of(nodes: list[Tensor], inside: Inside) -> Unit | None:
    """The product that nodes begin with, and an ADD behind it."""
    product = nodes[0]
    if product.op != Op.MUL_MAT or not is_alone(product):
        return None
    if len(nodes) > 1 and nodes[1].op == Op.ADD and inside(nodes[:2]):
        added = addend(product, nodes[1])
        if added is not None:
            return Unit(product, nodes[1], added, 2)
    return Unit(product, product, None, 1) if fits(product, product) else None


def may_join(unit: Unit, other: Unit) -> bool:
    """Whether two products may be made at once: of matrices alike, neither writes what the other reads or writes."""
    a, c = source(unit.product, 0), source(other.product, 0)
    apart_from = [t for t in (other.result, other.added) if t is not None]
    alike = (a.type, a.ne[0], a.nb[1]) == (c.type, c.ne[0], c.nb[1])
    return alike and disjoint(unit.result, *apart_from) and (unit.added is None or disjoint(other.result, unit.added))


def norm_behind(
    builder: Builder, total: Tensor, nodes: list[Tensor], inside: Inside
) -> tuple[matvec_one.Normed | None, int]:
    """RMS_NORM of the result and the MUL behind it, where the last block can make them: its arguments, and 2; None, 0."""
    if [n.op for n in nodes] != [Op.RMS_NORM, Op.MUL] or not inside(nodes):
        return None, 0
    norm, product = nodes
    w = source(product, 1)
    if source(norm, 0) is not total or product.src[0] is not norm or w is norm or refuse_types([F32], product, w):
        return None, 0
    dense = w.nb[0] == 4 and product.nb[0] == 4 and total.ne == product.ne and w.ne == (total.ne[0], 1, 1, 1)
    if not dense or not disjoint(product, w) or not apart(product, total):
        return None, 0
    made = wanted(builder, product)
    return normed(product.data, w.data, norm.param_f32(0), threads_for(total.ne[0]), made), 2


def lower_fused(builder: Builder, nodes: list[Tensor]) -> bool:
    """Few columns, then ADD; or two products with the same columns, then their GLU. The bits are those of single launches."""
    return with_sum(builder, *nodes) if len(nodes) == 2 else with_gate(builder, *nodes)


def fits(product: Tensor, result: Tensor) -> bool:
    """Whether matvec.py takes the product, without batches, and may put what is made of it there."""
    a, b = source(product, 0), source(product, 1)
    plain = b.type == F32 and result.type == F32 and result.ne == product.ne and product.ne[2:] == (1, 1)
    # blocks meet a copy of b, in bytes; the place of b itself may have been given to the result
    return plain and result.nb[0] == 4 and matvec.takes(product, a, b) and (a.type not in FLOATS or disjoint(result, b))


def with_sum(builder: Builder, product: Tensor, total: Tensor) -> bool:
    """A bias, or the other side of a residual."""
    added = addend(product, total)
    if added is None:
        return False
    ending = matvec.Ending(added.data, added.nb[1] if added.ne == product.ne else 0)
    matvec.lower(builder, product, source(product, 0), source(product, 1), total, ending)
    return True


def addend(product: Tensor, total: Tensor) -> Tensor | None:
    """What is added to the product, where the kernel that makes the product can add it; None where not."""
    if not fits(product, total):
        return None
    x, y = source(total, 0), source(total, 1)
    added = y if x is product else x
    row = (product.ne[0], 1, 1, 1)
    if added is product or added.type != F32 or added.nb[0] != 4 or refuse(added):
        return None
    if (
        added.ne == product.ne
        and not disjoint(total, added)
        and not (total.data == added.data and total.nb == added.nb)
    ):
        return None
    if added.ne != product.ne and (added.ne != row or added is x or not disjoint(total, added)):
        return None
    return added


def with_gate(builder: Builder, first: Tensor, second: Tensor, result: Tensor) -> bool:
    gate, up = source(result, 0), option(result, 1)
    if up is None or {id(gate), id(up)} != {id(first), id(second)} or result.param_i32(0) not in GATES:
        return False
    a, b, c = source(gate, 0), source(gate, 1), source(up, 0)
    if source(up, 1) is not b or (c.type, c.ne) != (a.type, a.ne) or not fits(gate, result) or not fits(up, result):
        return False
    if is_alone(gate):
        made = wanted(builder, result) if result.ne[0] % matvec_one.GROUP == 0 else None
        matvec_one.lower_glu(builder, a, c, b, result, result.param_i32(0), made)
        return True
    ending = matvec.Ending(up=c.data, up1=c.nb[1], glu=result.param_i32(0))
    matvec.lower(builder, gate, a, b, result, ending)
    return True
