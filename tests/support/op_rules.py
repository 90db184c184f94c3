"""Nodes that the rules of ops accept, with what they become, and such that they refuse, with what is said of them; a few of each rule.

Owns the tables; tests/ops/test_ops.py and test_known_forms.py go through them.
"""

from collections.abc import Callable

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.ops import RULES, GluOp, Op, UnaryOp
from pyggml.tensor import Tensor, pack_params

F32, F16, I32, I64, Q4_0 = GGMLType.F32, GGMLType.F16, GGMLType.I32, GGMLType.I64, GGMLType.Q4_0


def t(*ne: int, dtype: GGMLType = F32) -> Tensor:
    return Tensor(dtype, ne)


def padded(*ne: int) -> Tensor:
    whole = t(ne[0] + 2, *ne[1:])
    return ops.view(whole, ne, whole.nb[1:])


def swapped(*ne: int) -> Tensor:
    return ops.permute(t(ne[0], ne[2], ne[1]), 0, 2, 1, 3)


def columns(*ne: int) -> Tensor:
    return ops.transpose(t(ne[1], ne[0]))


def soft_max(a: Tensor, mask: Tensor | None, sinks: Tensor | None) -> None:
    ops.check(Tensor(a.type, a.ne, op=Op.SOFT_MAX, op_params=pack_params("ff", 1, 0), src=(a, mask, sinks)))


def attention(**other: Tensor) -> Tensor:
    fits = {"q": t(64, 5, 6), "k": t(64, 32, 2, dtype=F16), "v": t(64, 32, 2, dtype=F16), "mask": t(32, 5, dtype=F16)}
    return ops.flash_attn_ext(**{**fits, **other}, scale=1.0)


def scan(**other: Tensor) -> Tensor:
    fits = {"s": t(8, 3, 4, 2), "x": t(3, 4, 5, 2), "dt": t(4, 5, 2), "a": t(1, 4), "b": t(8, 2, 5, 2)}
    fits |= {"c": t(8, 2, 5, 2), "ids": t(2, dtype=I32)}
    slots = other.pop("slots", 1)
    return ops.ssm_scan(**{**fits, **other}, slots=slots)  # type: ignore[arg-type]


def delta_net(**other: Tensor) -> Tensor:
    fits = {"q": t(8, 2, 5, 1), "k": t(8, 4, 5, 2), "v": t(8, 4, 5, 2), "g": t(1, 4, 5, 2), "beta": t(1, 4, 5, 2)}
    fits["state"] = t(8, 8, 4, 2)
    slots = other.pop("slots", 1)
    return ops.gated_delta_net(**{**fits, **other}, slots=slots)  # type: ignore[arg-type]


ACCEPTED: list[tuple[Callable[[], Tensor], GGMLType, tuple[int, ...]]] = [
    (lambda: ops.add(t(6, 4, 2), t(3, 1, 2)), F32, (6, 4, 2, 1)),
    (lambda: ops.mul(t(6, 4, dtype=F16), t(6)), F16, (6, 4, 1, 1)),
    (lambda: ops.div(t(0, 4), t(0, 2)), F32, (0, 4, 1, 1)),
    (lambda: ops.scale(padded(6, 4), 2.0), F32, (6, 4, 1, 1)),
    (lambda: ops.unary(swapped(6, 4, 2), UnaryOp.SILU), F32, (6, 4, 2, 1)),
    (lambda: ops.unary(padded(6, 4), UnaryOp.SILU), F32, (6, 4, 1, 1)),
    (lambda: ops.sqr(swapped(6, 4, 2)), F32, (6, 4, 2, 1)),
    (lambda: ops.clamp(t(6, 4, dtype=F16), -1.0, 1.0), F16, (6, 4, 1, 1)),
    (lambda: ops.leaky_relu(padded(6, 4), 0.1), F32, (6, 4, 1, 1)),
    (lambda: ops.sum_all(t(6, 4, dtype=F16)), F16, (1, 1, 1, 1)),
    (lambda: ops.sum_rows(t(6, 4, 2)), F32, (1, 4, 2, 1)),
    (lambda: ops.mean(columns(6, 4)), F32, (1, 4, 1, 1)),
    (lambda: ops.cumsum(t(6, 4, 2)), F32, (6, 4, 2, 1)),
    (lambda: ops.argmax(t(6, 4)), I32, (4, 1, 1, 1)),
    (lambda: ops.count_equal(t(6, 4, dtype=I32), columns(6, 4)), I64, (1, 1, 1, 1)),
    (lambda: ops.norm(columns(6, 4), 1e-5), F32, (6, 4, 1, 1)),
    (lambda: ops.l2_norm(columns(6, 4), 1e-5), F32, (6, 4, 1, 1)),
    (lambda: ops.group_norm(padded(6, 4, 5), 2, 1e-5), F32, (6, 4, 5, 1)),
    (lambda: ops.glu(t(6, 4), None, GluOp.SWIGLU), F32, (3, 4, 1, 1)),
    (lambda: ops.ssm_conv(t(9, 5, 2), t(4, 5)), F32, (5, 6, 2, 1)),
    (scan, F32, (3 * 4 * 5 * 2 + 8 * 3 * 4 * 2, 1, 1, 1)),
    (lambda: scan(a=t(8, 4)), F32, (312, 1, 1, 1)),
    (delta_net, F32, (32, 5 * 2 + 8 * 2, 1, 1)),
    (lambda: delta_net(g=t(8, 4, 5, 2), slots=3), F32, (32, 10 + 48, 1, 1)),
    (lambda: ops.solve_tri(t(5, 5, 2), t(3, 5, 2)), F32, (3, 5, 2, 1)),
    (lambda: ops.pool_1d(t(9, 4, dtype=F16), ops.PoolOp.AVG, 3, 2, 1), F32, (5, 4, 1, 1)),
    (lambda: ops.pool_2d(t(9, 4, 2), ops.PoolOp.MAX, (3, 2), (3, 1), (0, 1)), F32, (3, 5, 2, 1)),
    (
        lambda: ops.lightning_indexer(t(64, 3, 5, 2), t(64, 1, 9, 2, dtype=Q4_0), t(3, 5, 1, 2), t(9, 5, dtype=F16)),
        F32,
        (9, 5, 1, 2),
    ),
    (lambda: ops.dsv4_hc_comb(t(24, 5), t(3), t(24), 1e-6, 4), F32, (4, 4, 5, 1)),
    (lambda: ops.dsv4_hc_pre(swapped(6, 4, 5), t(4, 5)), F32, (6, 5, 1, 1)),
    (lambda: ops.dsv4_hc_pre_gated(t(6, 4, 5), t(6, 4, 5), 0.5), F32, (6, 5, 1, 1)),
    (lambda: ops.dsv4_hc_post(t(6, 5), t(6, 4, 5), t(4, 5)), F32, (6, 4, 5, 1)),
    (lambda: ops.dsv4_hc_post(t(6, 5), t(6, 4, 5), t(4, 5), t(4, 4, 5)), F32, (6, 4, 5, 1)),
    (lambda: ops.gated_linear_attn(*[t(8, 4, 6)] * 4, t(256, 2), 0.5), F32, (32, 6 + 16, 1, 1)),
    (lambda: ops.rwkv_wkv6(*[t(8, 4, 6)] * 3, t(8, 4), t(8, 4, 6), t(256, 2)), F32, (32, 22, 1, 1)),
    (lambda: ops.rwkv_wkv7(*[t(8, 4, 6)] * 6, t(256, 2)), F32, (32, 22, 1, 1)),
    (lambda: ops.glu(t(7, 4), None, GluOp.SWIGLU), F32, (3, 4, 1, 1)),
    (lambda: ops.swiglu(padded(6, 4), t(6, 4)), F32, (6, 4, 1, 1)),
    (lambda: ops.rms_norm(columns(6, 4), 1e-5), F32, (6, 4, 1, 1)),
    (lambda: ops.soft_max(t(8, 4, 6, 2), t(8, 5, 3, 1, dtype=F16)), F32, (8, 4, 6, 2)),
    (lambda: ops.soft_max_back(t(8, 4), t(8, 4)), F32, (8, 4, 1, 1)),
    (lambda: ops.diag_mask_inf(t(8, 4), 3), F32, (8, 4, 1, 1)),
    (lambda: ops.rope(t(8, 4, 3), t(3, dtype=I32), 6, factors=t(3)), F32, (8, 4, 3, 1)),
    (lambda: ops.mul_mat(t(8, 5, 2, dtype=F16), t(8, 3, 6, 4)), F32, (5, 3, 6, 4)),
    (lambda: ops.mul_mat(t(64, 5, dtype=Q4_0), padded(64, 3)), F32, (5, 3, 1, 1)),
    (lambda: ops.mul_mat(swapped(8, 5, 2), t(8, 3, 2)), F32, (5, 3, 2, 1)),
    (lambda: ops.mul_mat_id(t(8, 5, 4), t(8, 2, 3), t(6, 3, dtype=I32)), F32, (5, 6, 3, 1)),
    (lambda: ops.out_prod(t(5, 8, 2, dtype=F16), t(3, 8, 6, 4)), F32, (5, 3, 6, 4)),
    (lambda: ops.out_prod(t(5, 8), columns(3, 8)), F32, (5, 3, 1, 1)),
    (lambda: ops.add_id(t(8, 2, 3), t(8, 5), t(2, 3, dtype=I32)), F32, (8, 2, 3, 1)),
    (lambda: ops.argsort(columns(6, 4)), I32, (6, 4, 1, 1)),
    (lambda: ops.top_k(t(6, 4, 2), 6), I32, (6, 4, 2, 1)),
    (attention, F32, (64, 6, 5, 1)),
    (lambda: attention(v=t(32, 32, 2, dtype=Q4_0)), F32, (32, 6, 5, 1)),
    (lambda: ops.add1(t(6, 4, dtype=F16), t(1)), F16, (6, 4, 1, 1)),
    (lambda: ops.concat(t(64, 4, dtype=Q4_0), t(32, 4, dtype=Q4_0), 0), Q4_0, (96, 4, 1, 1)),
    (lambda: ops.repeat(t(3, 2), 6, 2, 5), F32, (6, 2, 5, 1)),
    (lambda: ops.repeat_back(t(6, 2, 5), 3, 2), F32, (3, 2, 1, 1)),
    (lambda: ops.pad(t(6, 4), (1, 0, 2), (3,)), F32, (10, 4, 3, 1)),
    (lambda: ops.pad_reflect_1d(t(6, 4), 5, 2), F32, (13, 4, 1, 1)),
    (lambda: ops.roll(t(6, 4), -5, 3), F32, (6, 4, 1, 1)),
    (lambda: ops.set_part(t(6, 4, dtype=I32), t(2, 2, dtype=I32), (4, 24, 96, 96), 16), I32, (6, 4, 1, 1)),
    (lambda: ops.acc(t(6, 4), t(2, 2), (4, 24, 96, 96), 16, inplace=True), F32, (6, 4, 1, 1)),
    (lambda: ops.fill(t(6, 4, dtype=F16), 2.0), F16, (6, 4, 1, 1)),
    (lambda: ops.arange(0.0, 2.1, 0.5), F32, (5, 1, 1, 1)),
    (lambda: ops.tri(t(6, 6, 2), ops.TriType.LOWER), F32, (6, 6, 2, 1)),
    (lambda: ops.diag(t(6, 1, 2)), F32, (6, 6, 2, 1)),
    (lambda: ops.timestep_embedding(t(5), 33), F32, (33, 5, 1, 1)),
    (lambda: ops.cpy(t(6, 4), t(8, 3, dtype=F16)), F16, (8, 3, 1, 1)),
    (lambda: ops.cont(swapped(6, 4, 2), 24, 2), F32, (24, 2, 1, 1)),
    (lambda: ops.dup(columns(6, 4)), F32, (6, 4, 1, 1)),
    (lambda: ops.get_rows(t(64, 9, 2, dtype=Q4_0), t(4, 2, dtype=I32)), F32, (64, 4, 2, 1)),
    (lambda: ops.get_rows(t(6, 9, dtype=I32), t(4, dtype=I32)), I32, (6, 4, 1, 1)),
    (lambda: ops.set_rows(t(6, 9, 4, dtype=F16), t(6, 2, 4), t(2, 2, dtype=I64)), F16, (6, 9, 4, 1)),
    (lambda: ops.reshape(t(6, 4), 3, 8), F32, (3, 8, 1, 1)),
    (lambda: ops.permute(t(2, 3, 4, 5), 2, 0, 1, 3), F32, (3, 4, 2, 5)),
    (lambda: ops.transpose(t(2, 3)), F32, (3, 2, 1, 1)),
    (lambda: ops.view(t(6, 4), (2, 4), (24,), 16), F32, (2, 4, 1, 1)),
]

REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: ops.add(t(6, 4), t(4, 4)), "ADD.*repeated"),
    (lambda: ops.sub(t(6), t(6, 2)), "SUB.*repeated"),
    (lambda: ops.mul(t(6), t(0)), "MUL.*repeated"),
    (lambda: ops.scale(columns(6, 4), 2.0), "SCALE.*not contiguous"),
    (lambda: ops.unary(columns(6, 4), UnaryOp.EXP), "UNARY.*not contiguous"),
    (lambda: ops.ssm_conv(t(3, 5, 2), t(5, 5)), "SSM_CONV.*fewer"),
    (lambda: ops.ssm_conv(t(9, 4, 2), t(4, 5)), "SSM_CONV.*channels differ"),
    (lambda: ops.ssm_conv(padded(9, 5, 2), t(4, 5)), "SSM_CONV.*not contiguous"),
    (lambda: ops.ssm_conv(t(9, 5, 2), t(4, 5, 2)), "SSM_CONV.*dimensions"),
    (lambda: scan(slots=0), "SSM_SCAN.*0 states"),
    (lambda: scan(slots=2, a=t(8, 4)), "SSM_SCAN.*one decay"),
    (lambda: scan(a=t(7, 4)), "SSM_SCAN.*decay"),
    (lambda: scan(ids=t(3, dtype=I32)), "SSM_SCAN.*one I32"),
    (lambda: scan(b=t(8, 3, 5, 2), c=t(8, 3, 5, 2)), "SSM_SCAN.*groups"),
    (lambda: scan(c=t(8, 4, 5, 2)), "SSM_SCAN.*B and C"),
    (lambda: scan(s=t(8, 2, 4, 2)), "SSM_SCAN.*size of heads"),
    (lambda: scan(dt=t(4, 4, 2)), "SSM_SCAN.*one step"),
    (lambda: scan(x=padded(3, 4, 5, 2)), "SSM_SCAN.*not contiguous"),
    (lambda: delta_net(slots=0), "GATED_DELTA_NET.*0 states"),
    (lambda: delta_net(q=t(7, 4, 5, 2)), "GATED_DELTA_NET.*fit"),
    (lambda: delta_net(k=t(8, 4, 5, 3)), "GATED_DELTA_NET.*divide"),
    (lambda: delta_net(g=t(2, 4, 5, 2)), "GATED_DELTA_NET.*gate"),
    (lambda: delta_net(beta=t(1, 4, 5)), "GATED_DELTA_NET.*beta"),
    (lambda: delta_net(state=t(8, 8, 4, 3)), "GATED_DELTA_NET.*size of heads"),
    (lambda: delta_net(v=t(8, 4, 5, 2, dtype=F16)), "GATED_DELTA_NET.*F32"),
    (lambda: ops.solve_tri(t(5, 4), t(3, 5)), "SOLVE_TRI.*square"),
    (lambda: ops.pool_1d(t(9, dtype=I32), ops.PoolOp.MAX, 3, 1), "POOL_1D.*neither F32 nor F16"),
    (lambda: ops.pool_2d(t(9, 4), ops.PoolOp.MAX, (3, 5), (1, 1)), "POOL_2D.*does not fit into dimension 1"),
    (lambda: ops.pool_1d(t(9), ops.PoolOp.MAX, 12, 1, 1), "POOL_1D.*a window of 12 does not fit"),
    (
        lambda: ops.lightning_indexer(t(8, 3, 5), t(8, 2, 9), t(3, 5), t(9, 5, dtype=F16)),
        "LIGHTNING_INDEXER.*one key a cell",
    ),
    (
        lambda: ops.lightning_indexer(t(8, 3, 5), t(8, 1, 9), t(5, 3), t(9, 5, dtype=F16)),
        "LIGHTNING_INDEXER.*one weight a query",
    ),
    (
        lambda: ops.lightning_indexer(t(8, 3, 5), t(8, 1, 9), t(3, 5), t(8, 5, dtype=F16)),
        "LIGHTNING_INDEXER.*a number a cell",
    ),
    (lambda: ops.lightning_indexer(t(8, 3, 5), t(8, 1, 9), t(3, 5), t(9, 5)), "LIGHTNING_INDEXER.*the mask is not F16"),
    (
        lambda: ops.lightning_indexer(t(8, 3, 5, 3), t(8, 1, 9, 3), t(3, 5, 1, 3), t(9, 5, 1, 2, dtype=F16)),
        "LIGHTNING_INDEXER.*number of masks",
    ),
    (lambda: ops.dsv4_hc_comb(t(25, 5), t(3), t(24), 1e-6, 4), "DSV4_HC_COMB.*there must be 24 numbers a token"),
    (lambda: ops.dsv4_hc_comb(t(24, 5), t(2), t(24), 1e-6, 4), "DSV4_HC_COMB.*there must be three factors"),
    (lambda: ops.dsv4_hc_comb(t(24, 5), t(3), t(23), 1e-6, 4), "DSV4_HC_COMB.*there must be 24 numbers to add"),
    (lambda: ops.dsv4_hc_comb(t(24, 5), t(3), t(24), 1e-6, 0), "DSV4_HC_COMB.*0 rounds"),
    (lambda: ops.dsv4_hc_pre(t(6, 4, 5), t(5, 4)), "DSV4_HC_PRE.*there must be one weight a stream"),
    (lambda: ops.dsv4_hc_pre_gated(t(6, 4, 5), t(4, 5), 1.0), "DSV4_HC_PRE.*there must be one weight a stream"),
    (lambda: ops.dsv4_hc_pre(t(6, 4, 5, 2), t(4, 5)), "DSV4_HC_PRE.*the source has a fourth dimension"),
    (lambda: ops.dsv4_hc_post(t(6, 5), t(6, 4, 4), t(4, 5)), "DSV4_HC_POST.*the streams do not fit"),
    (lambda: ops.dsv4_hc_post(t(6, 5), t(6, 4, 5), t(5, 5)), "DSV4_HC_POST.*there must be one weight a stream"),
    (
        lambda: ops.dsv4_hc_post(t(6, 5), t(6, 4, 5), t(4, 5), t(4, 5, 5)),
        "DSV4_HC_POST.*there must be one weight a result",
    ),
    (lambda: ops.dsv4_hc_post(t(6, 5), t(6, 4, 5), t(4, 5, dtype=F16)), "DSV4_HC_POST.*a source is not F32"),
    (lambda: ops.gated_linear_attn(*[t(8, 4, 6)] * 4, t(256, 4), 0.5), "GATED_LINEAR_ATTN.*4 sequences"),
    (lambda: ops.rwkv_wkv6(*[t(8, 4, 6)] * 3, t(8, 3), t(8, 4, 6), t(256, 2)), "RWKV_WKV6.*bonus"),
    (lambda: ops.rwkv_wkv7(*[t(8, 4, 6)] * 5, t(8, 4, 5), t(256, 2)), "RWKV_WKV7.*shapes"),
    (lambda: ops.solve_tri(t(5, 5, 2), t(3, 5)), "SOLVE_TRI.*batches"),
    (lambda: ops.solve_tri(t(5, 5), padded(3, 5)), "SOLVE_TRI.*contiguous"),
    (lambda: ops.sqr(columns(6, 4)), "SQR.*not contiguous"),
    (lambda: ops.clamp(columns(6, 4), 0.0, 1.0), "CLAMP.*not contiguous"),
    (lambda: ops.leaky_relu(columns(6, 4), 0.1), "LEAKY_RELU.*not contiguous"),
    (lambda: ops.cumsum(t(6, 4, dtype=F16)), "CUMSUM.*F32"),
    (lambda: ops.argmax(t(6, 4, 2)), "ARGMAX.*matrix"),
    (lambda: ops.count_equal(t(6, 4), t(6, 5)), "COUNT_EQUAL.*shape"),
    (lambda: ops.norm(t(6), -1e-5), "NORM.*eps"),
    (lambda: ops.l2_norm(t(6), float("nan")), "L2_NORM.*eps"),
    (lambda: ops.group_norm(t(6, 4, 5), 0, 1e-5), "GROUP_NORM.*0 groups"),
    (lambda: ops.group_norm(t(6, 4, 5), 2, -1e-5), "GROUP_NORM.*eps"),
    (lambda: ops.group_norm(columns(6, 4), 2, 1e-5), "GROUP_NORM.*not contiguous"),
    (lambda: ops.unary(t(4), 22), "UNARY.*22"),  # type: ignore[arg-type]
    (lambda: ops.glu(t(4), None, 7), "GLU.*7"),  # type: ignore[arg-type]
    (lambda: ops.swiglu(t(6), t(6, 2)), "GLU.*differ"),
    (lambda: ops.swiglu(t(6), t(6, dtype=F16)), "GLU.*differ"),
    (lambda: ops.swiglu(swapped(6, 4, 2), t(6, 4, 2)), "GLU.*not contiguous"),
    (lambda: ops.rms_norm(t(6), -1e-5), "RMS_NORM.*eps"),
    (lambda: ops.rms_norm(t(6), float("nan")), "RMS_NORM.*eps"),
    (lambda: ops.soft_max(padded(8, 4)), "SOFT_MAX.*contiguous"),
    (lambda: ops.soft_max(t(8, 4), t(8, 3)), "SOFT_MAX.*smaller"),
    (lambda: ops.soft_max(t(8, 4), t(9, 4)), "SOFT_MAX.*smaller"),
    (lambda: ops.soft_max(t(8, 4, 3), t(8, 4, 2)), "SOFT_MAX.*divide"),
    (lambda: ops.soft_max(t(8, 4), t(8, 4, dtype=I32)), "SOFT_MAX.*F16 nor F32"),
    (lambda: ops.soft_max(t(8, 4), None, 1.0, 8.0), "SOFT_MAX.*ALiBi"),
    (lambda: soft_max(t(8, 4, 3), None, t(4)), "SOFT_MAX.*sink"),
    (lambda: ops.soft_max_back(t(8, 4), t(8, 5)), "SOFT_MAX_BACK.*differ"),
    (lambda: ops.diag_mask_inf(t(8, 4), -1), "DIAG_MASK_INF.*-1"),
    (lambda: ops.rope(t(8, 4, 3), t(2, dtype=I32), 8), "ROPE.*position"),
    (lambda: ops.rope(t(8, 4, 3), t(3), 8), "ROPE.*I32"),
    (lambda: ops.rope(t(8, 4, 3), t(3, dtype=I32), 10), "ROPE.*10"),
    (lambda: ops.rope(t(8, 4, 3), t(3, dtype=I32), 7), "ROPE.*7"),
    (lambda: ops.rope(t(8, 4, 3), t(3, dtype=I32), 0), "ROPE.*0"),
    (lambda: ops.rope(t(8, 4, 3), t(3, dtype=I32), 8, factors=t(3)), "ROPE.*factors"),
    (lambda: ops.rope(t(8, 4, 3), t(3, dtype=I32), 8, mode=8), "ROPE.*4 position"),
    (lambda: ops.mul_mat(t(8, 5), t(9, 5)), "MUL_MAT.*length"),
    (lambda: ops.mul_mat(t(8, 5, 2), t(8, 5, 3)), "MUL_MAT.*divide"),
    (lambda: ops.mul_mat(t(8, 5, 2), t(8, 5)), "MUL_MAT.*divide"),
    (lambda: ops.mul_mat(t(8, 5, 0), t(8, 5)), "MUL_MAT.*divide"),
    (lambda: ops.mul_mat(columns(8, 5), t(8, 3)), "MUL_MAT.*transposed"),
    (lambda: ops.mul_mat_id(t(8, 5, 4), t(9, 2, 3), t(2, 3, dtype=I32)), "MUL_MAT_ID.*length"),
    (lambda: ops.mul_mat_id(t(8, 5, 4), t(8, 2, 3), t(3, 3, dtype=I32)), "MUL_MAT_ID.*divide"),
    (lambda: ops.mul_mat_id(t(8, 5, 4), t(8, 2, 3), t(2, 4, dtype=I32)), "MUL_MAT_ID.*token"),
    (lambda: ops.mul_mat_id(t(8, 5, 4), t(8, 2, 3), t(2, 3)), "MUL_MAT_ID.*I32"),
    (lambda: ops.mul_mat_id(t(8, 5, 4, 2), t(8, 2, 3), t(2, 3, dtype=I32)), "MUL_MAT_ID.*dimensions"),
    (lambda: ops.mul_mat_id(columns(8, 5), t(8, 2, 3), t(2, 3, dtype=I32)), "MUL_MAT_ID.*transposed"),
    (lambda: ops.out_prod(t(5, 8), t(5, 9)), "OUT_PROD.*length"),
    (lambda: ops.out_prod(t(5, 8, 2), t(5, 8, 3)), "OUT_PROD.*divide"),
    (lambda: ops.out_prod(columns(5, 8), t(3, 8)), "OUT_PROD.*transposed"),
    (lambda: ops.add_id(t(8, 2, 3), t(9, 5), t(2, 3, dtype=I32)), "ADD_ID.*length"),
    (lambda: ops.add_id(t(8, 2, 3), t(8, 5), t(3, 3, dtype=I32)), "ADD_ID.*row ind"),
    (lambda: ops.add_id(t(8, 2, 3), t(8, 5, 2), t(2, 3, dtype=I32)), "ADD_ID.*dimensions"),
    (lambda: ops.add_id(t(8, 2, 3), t(8, 5), t(2, 3)), "ADD_ID.*I32"),
    (lambda: ops.add_id(t(8, 2, 3), t(8, 5, dtype=F16), t(2, 3, dtype=I32)), "ADD_ID.*F32"),
    (lambda: ops.argsort(t(6, dtype=F16)), "ARGSORT.*F32"),
    (lambda: ops.argsort(t(6), 2), "ARGSORT.*2"),  # type: ignore[arg-type]
    (lambda: ops.argsort_top_k(t(6), 7), "ARGSORT.*7"),
    (lambda: ops.top_k(t(6), 7), "TOP_K.*7"),
    (lambda: attention(q=t(64, 5, 6, dtype=F16)), "FLASH_ATTN_EXT.*q is not F32"),
    (lambda: attention(q=t(32, 5, 6)), "FLASH_ATTN_EXT.*head size"),
    (lambda: attention(v=t(64, 31, 2, dtype=F16)), "FLASH_ATTN_EXT.*length"),
    (lambda: attention(q=t(64, 5, 5)), "FLASH_ATTN_EXT.*divide"),
    (lambda: attention(q=t(64, 5, 6, 2)), "FLASH_ATTN_EXT.*batches"),
    (lambda: attention(mask=t(32, 5)), "FLASH_ATTN_EXT.*F16"),
    (lambda: attention(mask=t(32, 4, dtype=F16)), "FLASH_ATTN_EXT.*smaller"),
    (lambda: attention(mask=t(31, 5, dtype=F16)), "FLASH_ATTN_EXT.*smaller"),
    (lambda: attention(mask=t(32, 5, 4, dtype=F16)), "FLASH_ATTN_EXT.*divide"),
    (lambda: ops.add1(t(6, 4), t(6)), "ADD1.*one number"),
    (lambda: ops.concat(t(6, 4), t(6, 4), 4), "CONCAT.*4"),
    (lambda: ops.concat(t(6, 4), t(6, 3), 0), "CONCAT.*differ"),
    (lambda: ops.concat(t(6, 4), t(6, 4, dtype=F16), 0), "CONCAT.*differ"),
    (lambda: ops.repeat(t(3, 2), 6, 3), "REPEAT.*repeated"),
    (lambda: ops.repeat_back(t(6, 3), 3, 2), "REPEAT_BACK.*repeated"),
    (lambda: ops.pad(t(6), (-1,), (3,)), "PAD.*negative"),
    (lambda: ops.pad(t(0, 4), (1,), (0,), circular=True), "PAD.*circular padding of an empty"),
    (lambda: ops.pad_reflect_1d(t(6), 0, 6), "PAD_REFLECT_1D.*smaller than the row"),
    (lambda: ops.pad_reflect_1d(t(6), -1, 0), "PAD_REFLECT_1D.*negative"),
    (lambda: ops.roll(t(6, 4), 6), "ROLL.*round"),
    (lambda: ops.set_part(t(6, 4), t(2, 2, dtype=I32), (4, 24, 96, 96), 0), "SET.*differ"),
    (lambda: ops.set_part(t(6, 4), t(6, 4), (4, 24, 96, 96), 4), "SET.*ends"),
    (lambda: ops.acc(t(6, 4), t(2, 2), (4, -24, 96, 96), 24), "ACC.*negative"),
    (lambda: ops.acc(padded(6, 4), t(2, 2), (4, 24, 96, 96), 0), "ACC.*contiguous"),
    (lambda: ops.arange(0.0, 1.0, -1.0), "ARANGE.*steps"),
    (lambda: ops.tri(t(6, 5), ops.TriType.LOWER), "TRI.*square"),
    (lambda: ops.tri(t(6, 6), 4), "TRI.*4"),  # type: ignore[arg-type]
    (lambda: ops.diag(t(6, 2)), "DIAG.*row"),
    (lambda: ops.timestep_embedding(t(5), 0), "TIMESTEP_EMBEDDING.*0"),
    (lambda: ops.timestep_embedding(t(5, 2), 8), "TIMESTEP_EMBEDDING.*vector"),
    (lambda: ops.cpy(t(6, 4), t(5, 5)), "CPY.*size"),
    (lambda: ops.cont(t(6, 4), 5, 5), "CONT.*number"),
    (lambda: ops.get_rows(t(6, 9), t(4, dtype=I64)), "GET_ROWS.*I32"),
    (lambda: ops.get_rows(t(6, 9, 2), t(4, dtype=I32)), "GET_ROWS.*batches"),
    (lambda: ops.set_rows(t(6, 9), t(5, 2), t(2, dtype=I64)), "SET_ROWS.*shape"),
    (lambda: ops.set_rows(t(6, 9), t(6, 2), t(3, dtype=I64)), "SET_ROWS.*row ind"),
    (lambda: ops.set_rows(t(6, 9, 4), t(6, 2, 4), t(2, 3, dtype=I64)), "SET_ROWS.*divide"),
    (lambda: ops.set_rows(t(6, 9), t(6, 2, dtype=I32), t(2, dtype=I64)), "SET_ROWS.*F16"),
    (lambda: ops.set_rows(t(6, 9), t(6, 2), t(2)), "SET_ROWS.*I64"),
    (lambda: ops.set_rows(columns(6, 9), t(6, 2), t(2, dtype=I64)), "SET_ROWS.*not contiguous"),
    (lambda: ops.set_rows(t(6, 9), columns(6, 2), t(2, dtype=I64)), "SET_ROWS.*not contiguous"),
    (lambda: ops.reshape(t(6, 4), 5, 5), "RESHAPE.*24"),
    (lambda: ops.reshape(columns(6, 4), 24), "RESHAPE.*contiguous"),
    (lambda: ops.view(t(6, 4), (6, 4), (24,), 4), "VIEW.*outside"),
    (lambda: ops.permute(t(6, 4), 0, 0, 2, 3), "PERMUTE.*permutation"),
]

FOREIGN = [build for build, _, _ in ACCEPTED if build().op in RULES]
"""Those that a peer may send: not what is a view alone."""
