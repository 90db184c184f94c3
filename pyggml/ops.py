"""Every op: its number, the shape rule of those that can be computed here, and one builder each.

Owns what makes a node well-formed, for nodes that are built here and for nodes that come from a peer (`check`); knows
nothing of how a node is computed. Numbers follow `enum ggml_op`, `ggml_unary_op`, `ggml_glu_op` (ggml.h); the rules and
the use of op_params follow the builder of the same name in ggml.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.tensor import NO_PARAMS, Tensor, contiguous_strides, pack_params


class Op(IntEnum):
    NONE = 0
    DUP = 1
    ADD = 2
    ADD_ID = 3
    ADD1 = 4
    ACC = 5
    SUB = 6
    MUL = 7
    DIV = 8
    SQR = 9
    SQRT = 10
    LOG = 11
    SIN = 12
    COS = 13
    SUM = 14
    SUM_ROWS = 15
    CUMSUM = 16
    MEAN = 17
    ARGMAX = 18
    COUNT_EQUAL = 19
    REPEAT = 20
    REPEAT_BACK = 21
    CONCAT = 22
    SILU_BACK = 23
    NORM = 24
    RMS_NORM = 25
    RMS_NORM_BACK = 26
    GROUP_NORM = 27
    L2_NORM = 28
    MUL_MAT = 29
    MUL_MAT_ID = 30
    OUT_PROD = 31
    SCALE = 32
    SET = 33
    CPY = 34
    CONT = 35
    RESHAPE = 36
    VIEW = 37
    PERMUTE = 38
    TRANSPOSE = 39
    GET_ROWS = 40
    GET_ROWS_BACK = 41
    SET_ROWS = 42
    DIAG = 43
    DIAG_MASK_INF = 44
    DIAG_MASK_ZERO = 45
    SOFT_MAX = 46
    SOFT_MAX_BACK = 47
    ROPE = 48
    ROPE_BACK = 49
    CLAMP = 50
    CONV_TRANSPOSE_1D = 51
    IM2COL = 52
    IM2COL_BACK = 53
    IM2COL_3D = 54
    COL2IM_1D = 55
    CONV_2D = 56
    CONV_3D = 57
    CONV_2D_DW = 58
    CONV_TRANSPOSE_2D = 59
    POOL_1D = 60
    POOL_2D = 61
    POOL_2D_BACK = 62
    UPSCALE = 63
    PAD = 64
    PAD_REFLECT_1D = 65
    ROLL = 66
    ARANGE = 67
    TIMESTEP_EMBEDDING = 68
    ARGSORT = 69
    TOP_K = 70
    LEAKY_RELU = 71
    TRI = 72
    FILL = 73
    FLASH_ATTN_EXT = 74
    FLASH_ATTN_BACK = 75
    SSM_CONV = 76
    SSM_SCAN = 77
    WIN_PART = 78
    WIN_UNPART = 79
    GET_REL_POS = 80
    ADD_REL_POS = 81
    RWKV_WKV6 = 82
    GATED_LINEAR_ATTN = 83
    RWKV_WKV7 = 84
    SOLVE_TRI = 85
    GATED_DELTA_NET = 86
    LIGHTNING_INDEXER = 87
    DSV4_HC_COMB = 88
    DSV4_HC_PRE = 89
    DSV4_HC_POST = 90
    UNARY = 91
    MAP_CUSTOM1 = 92
    MAP_CUSTOM2 = 93
    MAP_CUSTOM3 = 94
    CUSTOM = 95
    CROSS_ENTROPY_LOSS = 96
    CROSS_ENTROPY_LOSS_BACK = 97
    OPT_STEP_ADAMW = 98
    OPT_STEP_SGD = 99
    GLU = 100


assert len(Op) == 101


class UnaryOp(IntEnum):
    """Sub-op of Op.UNARY, in op_params[0]."""

    ABS = 0
    SGN = 1
    NEG = 2
    STEP = 3
    TANH = 4
    ELU = 5
    RELU = 6
    SIGMOID = 7
    GELU = 8
    GELU_QUICK = 9
    SILU = 10
    HARDSWISH = 11
    HARDSIGMOID = 12
    EXP = 13
    EXPM1 = 14
    SOFTPLUS = 15
    GELU_ERF = 16
    XIELU = 17
    FLOOR = 18
    CEIL = 19
    ROUND = 20
    TRUNC = 21


assert len(UnaryOp) == 22


class GluOp(IntEnum):
    """Sub-op of Op.GLU, in op_params[0]."""

    REGLU = 0
    GEGLU = 1
    SWIGLU = 2
    SWIGLU_OAI = 3
    GEGLU_ERF = 4
    GEGLU_QUICK = 5
    SWIGLU_CLAMP = 6


assert len(GluOp) == 7


VIEW_OPS = frozenset({Op.NONE, Op.RESHAPE, Op.VIEW, Op.PERMUTE, Op.TRANSPOSE})
"""Ops that compute nothing: they only name bytes that another tensor holds."""

ROPE_NORMAL = 0
ROPE_NEOX = 2

Shape = tuple[int, int, int, int]
Srcs = Sequence[Tensor | None]
Rule = Callable[[Srcs, Tensor], tuple[GGMLType, Shape]]

RULES: dict[Op, Rule] = {}
"""For each op that is known here: (sources, node for its op_params) -> type and ne of the result, or ShapeError."""


def check(node: Tensor) -> None:
    """Hold a node against its op's rule. Raises UnsupportedError (no such op here) or ShapeError (names the op)."""
    if node.op in VIEW_OPS:
        return
    rule = RULES.get(Op(node.op)) if 0 <= node.op < len(Op) else None
    if rule is None:
        name = Op(node.op).name if 0 <= node.op < len(Op) else f"number {node.op}"
        raise UnsupportedError(f"op {name} is not implemented (node {node.name!r})")
    dtype, ne = rule(node.src, node)
    if node.type != dtype or node.ne != ne:
        raise ShapeError(
            f"{Op(node.op).name} {node.name!r}: result is {node.type.name} {list(node.ne)}, must be {dtype.name} {list(ne)}"
        )


def _need(ok: bool, op: Op, why: str, *tensors: Tensor | None) -> None:
    if not ok:
        shapes = ", ".join(f"{t.type.name} {list(t.ne)}" for t in tensors if t is not None)
        raise ShapeError(f"{op.name}: {why}" + (f" ({shapes})" if shapes else ""))


def _sources(op: Op, src: Srcs, required: int, optional: int = 0) -> tuple[Tensor, ...]:
    """The required sources; any beyond required + optional must be absent."""
    have = [s for s in src[:required] if s is not None]
    _need(len(have) == required, op, f"{len(have)} of {required} sources given")
    _need(all(s is None for s in src[required + optional :]), op, f"more than {required + optional} sources given")
    return tuple(have)


def _option(src: Srcs, index: int) -> Tensor | None:
    return src[index] if index < len(src) else None


def can_repeat(a: Tensor, b: Tensor) -> bool:
    """Whether `a` tiles `b` in every dimension (ggml.c: ggml_can_repeat)."""
    if 0 in a.ne:
        return 0 in b.ne
    return all(nb % na == 0 for na, nb in zip(a.ne, b.ne, strict=True))


def _node(op: Op, src: Srcs, params: bytes = NO_PARAMS, name: str = "", view_of: Tensor | None = None) -> Tensor:
    """Build a node whose type and shape its rule gives; `view_of` makes it a view of that source's bytes."""
    probe = Tensor(GGMLType.F32, (0,), op=op, op_params=params, src=src)
    dtype, ne = RULES[op](src, probe)
    if view_of is None:
        return Tensor(dtype, ne, op=op, op_params=params, src=src, name=name)
    return Tensor(
        dtype, ne, view_of.nb, op=op, op_params=params, src=src, name=name,
        view_src=view_of.view_src or view_of, view_offs=view_of.view_offs,
    )  # fmt: skip


def rule(op: Op) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES[op] = function
        return function

    return register


# ---- views: new names for old bytes


def _view(op: Op, a: Tensor, ne: Sequence[int], nb: Shape, offset: int, name: str, params: bytes = NO_PARAMS) -> Tensor:
    return Tensor(
        a.type, ne, nb, op=op, op_params=params, src=(a,), name=name or a.name,
        view_src=a.view_src or a, view_offs=a.view_offs + offset,
    )  # fmt: skip


def reshape(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """The same elements in another shape. `a` must be contiguous."""
    full: Shape = (*ne, 1, 1, 1)[:4]  # type: ignore[assignment]
    count = full[0] * full[1] * full[2] * full[3]
    _need(a.is_contiguous, Op.RESHAPE, "the source is not contiguous", a)
    _need(count == a.nelements, Op.RESHAPE, f"{a.nelements} elements do not make {list(full)}", a)
    return _view(Op.RESHAPE, a, full, contiguous_strides(a.type, full), 0, name)


def view(a: Tensor, ne: Sequence[int], strides: Sequence[int] = (), offset: int = 0, name: str = "") -> Tensor:
    """A part of `a`: shape `ne`, `strides` = nb[1:] in bytes (dense where not given), `offset` in bytes."""
    full: Shape = (*ne, 1, 1, 1)[:4]  # type: ignore[assignment]
    nb = list(contiguous_strides(a.type, full))
    nb[0] = a.nb[0] if not strides else nb[0]
    for i in range(1, 4):
        nb[i] = strides[i - 1] if i - 1 < len(strides) else nb[i - 1] * full[i - 1] if i > 1 else nb[i]
    result = _view(Op.VIEW, a, full, (nb[0], nb[1], nb[2], nb[3]), offset, name, pack_params("q", offset))
    root = a.view_src or a
    _need(
        result.view_offs + result.nbytes <= root.nbytes,
        Op.VIEW,
        f"{result.nbytes} bytes at {result.view_offs} lie outside the {root.nbytes} of the source",
        result,
        a,
    )
    return result


def permute(a: Tensor, *axes: int, name: str = "") -> Tensor:
    """Dimension i of `a` becomes dimension axes[i] (ggml.c: ggml_permute)."""
    _need(sorted(axes) == [0, 1, 2, 3], Op.PERMUTE, f"axes {list(axes)} are no permutation of 0 to 3", a)
    ne, nb = [0] * 4, [0] * 4
    for i, axis in enumerate(axes):
        ne[axis], nb[axis] = a.ne[i], a.nb[i]
    return _view(Op.PERMUTE, a, ne, (nb[0], nb[1], nb[2], nb[3]), 0, name, pack_params("4i", *axes))


def transpose(a: Tensor, name: str = "") -> Tensor:
    """Rows become columns."""
    return _view(
        Op.TRANSPOSE, a, (a.ne[1], a.ne[0], a.ne[2], a.ne[3]), (a.nb[1], a.nb[0], a.nb[2], a.nb[3]), 0, name
    )  # fmt: skip


# ---- arithmetic


def _binary_rule(op: Op) -> Rule:
    def binary(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
        a, b = _sources(op, src, 2)
        _need(can_repeat(b, a), op, "the second operand does not tile the first", a, b)
        return a.type, a.ne

    return binary


for _op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV):
    RULES[_op] = _binary_rule(_op)


def add(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a + b; b is repeated over a."""
    return _node(Op.ADD, (a, b), name=name)


def sub(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a - b; b is repeated over a."""
    return _node(Op.SUB, (a, b), name=name)


def mul(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a * b elementwise; b is repeated over a."""
    return _node(Op.MUL, (a, b), name=name)


def div(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a / b elementwise; b is repeated over a."""
    return _node(Op.DIV, (a, b), name=name)


@rule(Op.SCALE)
def _scale(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.SCALE, src, 1)
    _need(a.nb[0] == SIZES[a.type].type_size, Op.SCALE, "the source's rows are not dense", a)
    return a.type, a.ne


def scale(a: Tensor, s: float, bias: float = 0.0, name: str = "") -> Tensor:
    """a * s + bias."""
    return _node(Op.SCALE, (a,), pack_params("ff", s, bias), name)


def _dense_rows(a: Tensor) -> bool:
    """ggml.c: ggml_is_contiguous_rows."""
    size = SIZES[a.type]
    return a.ne[0] == size.block_size or a.nb[0] == size.type_size


@rule(Op.UNARY)
def _unary(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.UNARY, src, 1)
    kind = node.param_i32(0)
    _need(0 <= kind < len(UnaryOp), Op.UNARY, f"unknown function number {kind}", a)
    _need(_dense_rows(a), Op.UNARY, "the source's rows are not dense", a)
    return a.type, a.ne


def unary(a: Tensor, kind: UnaryOp, name: str = "") -> Tensor:
    """A function of each element."""
    return _node(Op.UNARY, (a,), pack_params("i", kind), name)


@rule(Op.GLU)
def _glu(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.GLU, src, 1, 1)
    kind, b = node.param_i32(0), _option(src, 1)
    _need(0 <= kind < len(GluOp), Op.GLU, f"unknown function number {kind}", a)
    _need(a.is_contiguous_from(1), Op.GLU, "the source's rows are not dense", a)
    if b is None:
        _need(a.ne[0] % 2 == 0, Op.GLU, "an odd row cannot be halved", a)
        return a.type, (a.ne[0] // 2, *a.ne[1:])
    _need(b.is_contiguous_from(1), Op.GLU, "the gate's rows are not dense", b)
    _need(a.ne == b.ne and a.type == b.type, Op.GLU, "the halves differ", a, b)
    return a.type, a.ne


def glu(a: Tensor, b: Tensor | None, kind: GluOp, swapped: bool = False, name: str = "") -> Tensor:
    """f(a) * b; without `b` the halves of each row of `a` (`swapped`: the second half goes through f)."""
    return _node(Op.GLU, (a,) if b is None else (a, b), pack_params("ii", kind, swapped), name)


def swiglu(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """silu(a) * b."""
    return glu(a, b, GluOp.SWIGLU, name=name)


# ---- norms, soft max, rope


@rule(Op.RMS_NORM)
def _rms_norm(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.RMS_NORM, src, 1)
    eps = node.param_f32(0)
    _need(eps >= 0.0, Op.RMS_NORM, f"eps is {eps}", a)
    return a.type, a.ne


def rms_norm(a: Tensor, eps: float, name: str = "") -> Tensor:
    """Each row over its root mean square: a / sqrt(mean(a*a) + eps)."""
    return _node(Op.RMS_NORM, (a,), pack_params("f", eps), name)


@rule(Op.SOFT_MAX)
def _soft_max(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.SOFT_MAX, src, 1, 2)
    mask, sinks = _option(src, 1), _option(src, 2)
    _need(a.is_contiguous, Op.SOFT_MAX, "the source is not contiguous", a)
    if mask is not None:
        _need(mask.type in (GGMLType.F16, GGMLType.F32), Op.SOFT_MAX, "the mask is neither F16 nor F32", mask)
        _need(mask.is_contiguous, Op.SOFT_MAX, "the mask is not contiguous", mask)
        _need(
            mask.ne[0] == a.ne[0] and mask.ne[1] >= a.ne[1], Op.SOFT_MAX, "the mask is smaller than the source", a, mask
        )
        _need(
            _divides(mask.ne[2], a.ne[2]) and _divides(mask.ne[3], a.ne[3]),
            Op.SOFT_MAX,
            "the mask does not tile",
            a,
            mask,
        )
    _need(node.param_f32(1) <= 0.0 or mask is not None, Op.SOFT_MAX, "ALiBi needs a mask", a)
    if sinks is not None:
        _need(
            sinks.type == GGMLType.F32 and sinks.ne == (a.ne[2], 1, 1, 1), Op.SOFT_MAX, "one F32 sink a head", a, sinks
        )
    return a.type, a.ne


def soft_max(
    a: Tensor, mask: Tensor | None = None, scale: float = 1.0, max_bias: float = 0.0, name: str = ""
) -> Tensor:
    """softmax(a * scale + mask) of each row; mask (ne0, rows), F16 or F32, repeated over dimensions 2 and 3."""
    return _node(Op.SOFT_MAX, (a,) if mask is None else (a, mask), pack_params("ff", scale, max_bias), name)


def _divides(a: int, b: int) -> bool:
    return a > 0 and b % a == 0


@rule(Op.ROPE)
def _rope(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, positions = _sources(Op.ROPE, src, 2, 1)
    factors, n_dims, mode = _option(src, 2), node.param_i32(1), node.param_i32(2)
    _need(positions.type == GGMLType.I32, Op.ROPE, "positions are not I32", positions)
    per_token = 4 if mode & 8 else 1
    _need(
        positions.ne == (a.ne[2] * per_token, 1, 1, 1),
        Op.ROPE,
        f"{per_token} position(s) for each token needed",
        a,
        positions,
    )
    _need(0 < n_dims <= a.ne[0] and n_dims % 2 == 0, Op.ROPE, f"{n_dims} rotated dimensions", a)
    if factors is not None:
        _need(
            factors.type == GGMLType.F32 and factors.ne[0] >= n_dims // 2, Op.ROPE, "too few frequency factors", factors
        )
    return a.type, a.ne


def rope(
    a: Tensor, positions: Tensor, n_dims: int, mode: int = ROPE_NORMAL, *, factors: Tensor | None = None,
    n_ctx_orig: int = 0, freq_base: float = 10000.0, freq_scale: float = 1.0, ext_factor: float = 0.0,
    attn_factor: float = 1.0, beta_fast: float = 32.0, beta_slow: float = 1.0, name: str = "",
) -> Tensor:  # fmt: skip
    """Rotate pairs of the first `n_dims` elements of (n_dims.., n_head, n_tokens) by position x frequency.

    Pairs are neighbours (normal) or n_dims/2 apart (neox); `factors` divide the frequencies; yarn through ext_factor.
    """
    params = pack_params(
        "5i6f", 0, n_dims, mode, 0, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
    )
    return _node(Op.ROPE, (a, positions) if factors is None else (a, positions, factors), params, name)


# ---- products


@rule(Op.MUL_MAT)
def _mul_mat(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, b = _sources(Op.MUL_MAT, src, 2)
    _need(a.ne[0] == b.ne[0], Op.MUL_MAT, "rows differ in length", a, b)
    _need(
        _divides(a.ne[2], b.ne[2]) and _divides(a.ne[3], b.ne[3]), Op.MUL_MAT, "the first does not tile the batch", a, b
    )
    _need(not a.is_transposed, Op.MUL_MAT, "the first operand is transposed", a)
    return GGMLType.F32, (a.ne[1], b.ne[1], b.ne[2], b.ne[3])


def mul_mat(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """a (k, n), b (k, m) -> (n, m): the dot product of each row of a with each row of b, in F32; a tiles b's batch."""
    return _node(Op.MUL_MAT, (a, b), name=name)


@rule(Op.FLASH_ATTN_EXT)
def _flash_attn_ext(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.FLASH_ATTN_EXT
    q, k, v = _sources(op, src, 3, 2)
    mask, sinks = _option(src, 3), _option(src, 4)
    _need(q.type == GGMLType.F32, op, "q is not F32", q)
    _need(q.ne[0] == k.ne[0], op, "q and k differ in head size", q, k)
    _need(k.ne[1] == v.ne[1], op, "k and v differ in length", k, v)
    _need(
        _divides(k.ne[2], q.ne[2]) and _divides(v.ne[2], q.ne[2]),
        op,
        "the heads of k and v do not tile those of q",
        q,
        k,
        v,
    )
    _need(q.ne[3] == k.ne[3] == v.ne[3], op, "batches differ", q, k, v)
    if mask is not None:
        _need(mask.type == GGMLType.F16 and mask.is_contiguous, op, "the mask is not contiguous F16", mask)
        _need(mask.ne[0] >= k.ne[1] and mask.ne[1] >= q.ne[1], op, "the mask is smaller than q x k", q, k, mask)
        _need(_divides(mask.ne[2], q.ne[2]) and _divides(mask.ne[3], q.ne[3]), op, "the mask does not tile", q, mask)
    _need(node.param_f32(1) <= 0.0 or mask is not None, op, "ALiBi needs a mask", q)
    if sinks is not None:
        _need(sinks.type == GGMLType.F32 and sinks.ne == (q.ne[2], 1, 1, 1), op, "one F32 sink a head", q, sinks)
    return GGMLType.F32, (v.ne[0], q.ne[2], q.ne[1], q.ne[3])


def flash_attn_ext(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, max_bias: float = 0.0, softcap: float = 0.0,
    name: str = "",
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale + mask) v, fused.

    q (head, n_tokens, n_head), k (head, n_kv, n_head_kv), v (head_v, n_kv, n_head_kv), mask F16 (n_kv, >= n_tokens)
    -> F32 (head_v, n_head, n_tokens).
    """
    src = (q, k, v) if mask is None else (q, k, v, mask)
    return _node(Op.FLASH_ATTN_EXT, src, pack_params("3f", scale, max_bias, softcap), name)


# ---- moving


@rule(Op.CPY)
def _cpy(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, b = _sources(Op.CPY, src, 2)
    _need(a.nelements == b.nelements, Op.CPY, "source and destination differ in size", a, b)
    return b.type, b.ne


def cpy(a: Tensor, b: Tensor, name: str = "") -> Tensor:
    """Write a's elements into b (which may differ in type and shape); the result is a view of b."""
    return _node(Op.CPY, (a, b), name=name, view_of=b)


@rule(Op.CONT)
def _cont(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.CONT, src, 1)
    _need(
        a.nelements == node.nelements or node.nelements == 0, Op.CONT, "the shape holds another number of elements", a
    )
    return a.type, node.ne if node.nelements else a.ne


def cont(a: Tensor, *ne: int, name: str = "") -> Tensor:
    """A dense copy of `a`, in the shape `ne` if one is given."""
    shape = (*ne, 1, 1, 1)[:4] if ne else a.ne
    node = Tensor(a.type, shape, op=Op.CONT, src=(a,), name=name)
    check(node)
    return node


@rule(Op.DUP)
def _dup(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    (a,) = _sources(Op.DUP, src, 1)
    return a.type, a.ne


def dup(a: Tensor, name: str = "") -> Tensor:
    """A dense copy of `a`."""
    return _node(Op.DUP, (a,), name=name)


@rule(Op.GET_ROWS)
def _get_rows(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    a, rows = _sources(Op.GET_ROWS, src, 2)
    _need(a.ne[2] == rows.ne[1] and a.ne[3] == rows.ne[2] and rows.ne[3] == 1, Op.GET_ROWS, "batches differ", a, rows)
    _need(rows.type == GGMLType.I32, Op.GET_ROWS, "row numbers are not I32", rows)
    dtype = GGMLType.I32 if a.type == GGMLType.I32 else GGMLType.F32
    return dtype, (a.ne[0], rows.ne[0], rows.ne[1], rows.ne[2])


def get_rows(a: Tensor, rows: Tensor, name: str = "") -> Tensor:
    """Rows `rows` (I32) of a (any type), converted to F32."""
    return _node(Op.GET_ROWS, (a, rows), name=name)


@rule(Op.SET_ROWS)
def _set_rows(src: Srcs, node: Tensor) -> tuple[GGMLType, Shape]:
    op = Op.SET_ROWS
    b, rows, a = _sources(op, src, 3)
    _need(a.ne[0] == b.ne[0] and a.ne[2:] == b.ne[2:], op, "source and destination differ in shape", a, b)
    _need(b.ne[1] == rows.ne[0] and rows.ne[3] == 1, op, "one row number for each row needed", b, rows)
    _need(
        _divides(rows.ne[1], b.ne[2]) and _divides(rows.ne[2], b.ne[3]),
        op,
        "row numbers do not tile the batch",
        b,
        rows,
    )
    _need(_dense_rows(a) and _dense_rows(b), op, "rows are not dense", a, b)
    _need(b.type in (GGMLType.F32, GGMLType.F16), op, "rows are neither F32 nor F16", b)
    _need(rows.type in (GGMLType.I32, GGMLType.I64), op, "row numbers are neither I32 nor I64", rows)
    _need(node.nb == a.nb, op, "the result is not laid out as the destination", node, a) if node.nelements else None
    return a.type, a.ne


def set_rows(a: Tensor, b: Tensor, rows: Tensor, name: str = "") -> Tensor:
    """Write the rows of b (F32) to rows `rows` (I32 or I64) of a, converted to a's type; the result is a view of a."""
    return _node(Op.SET_ROWS, (b, rows, a), name=name, view_of=a)
