"""Random nodes of every op that is computed here: what a graph of one op may look like."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pyggml import ops
from pyggml.dtypes import SIZES, GGMLType
from pyggml.ops import GluOp, Op, TriType, UnaryOp
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

T = GGMLType
ROWS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 128, 130)
BLOCKS = tuple(t for t in QUANTS if SIZES[t].block_size > 1)
BLOCKS_EACH = 5
"""Types of blocks that the graphs of one seed have, so that a run compiles few kernels and many runs meet all types."""
COPIES = (
    (T.F32, T.F32), (T.F32, T.F16), (T.F16, T.F32), (T.F32, T.Q8_0), (T.Q8_0, T.F32), (T.F32, T.I32), (T.I32, T.F32),
    (T.F16, T.F16), (T.Q4_0, T.Q4_0), (T.F32, T.Q4_K), (T.MXFP4, T.F32),
)  # fmt: skip


@dataclass
class Draw:
    """What a maker of one node asks for. `limits`, by id(): a tensor, and what the numbers in it are below."""

    rng: random.Random
    blocks: Sequence[GGMLType]
    limits: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def of(self, *options: int) -> int:
        return self.rng.choice(options or (1, 1, 2, 3, 4, 5, 7, 8))

    def shape(self) -> tuple[int, int, int, int]:
        return self.of(*ROWS), self.of(), self.of(1, 1, 2, 3), self.of(1, 1, 1, 2)

    def divisor(self, n: int) -> int:
        return self.of(*(d for d in range(1, n + 1) if n % d == 0))

    def row(self, dtype: GGMLType) -> int:
        block = SIZES[dtype].block_size
        return block * self.of(1, 2, 3) if block > 1 else self.of(*ROWS)

    def type(self, *options: GGMLType) -> GGMLType:
        return self.rng.choice(options)

    def weights(self) -> GGMLType:
        return self.type(T.F32, T.F16, T.BF16, *self.blocks)

    def leaf(self, dtype: GGMLType, ne: Sequence[int], dense: bool = False) -> Tensor:
        t = Tensor(dtype, ne)
        size, nb, how = SIZES[dtype], list(t.nb), self.rng.random()
        if dense or how < 0.5:
            pass
        elif how < 0.75:  # rows with something behind each, and matrices
            nb[1] += size.type_size * self.of(1, 2, 16)
            nb[2] = nb[1] * t.ne[1] + size.type_size * self.of(0, 4)
            nb[3] = nb[2] * t.ne[2]
        elif how < 0.8 and size.block_size == 1:  # columns
            nb[0], nb[1] = nb[0] * t.ne[1], nb[0]
        elif how < 0.95:  # dimensions 1 and 2 change places
            nb[1], nb[2] = nb[1] * t.ne[2], nb[1]
            nb[3] = nb[1] * t.ne[1]
        if not dense and self.rng.random() < 0.35:  # what is there once may have any stride
            for i in range(1, 4):
                if t.ne[i] == 1:
                    nb[i] = self.of(0, 4, 64, 4096, 2**20, 2**32 - 4, 2**32 - 1, nb[i])
            if t.ne[0] == 1 and size.block_size == 1:
                nb[0] = self.of(nb[0], 0, 4096, 2**31)
        t.nb = (nb[0], nb[1], nb[2], nb[3])
        return t

    def f32(self, *ne: int, dense: bool = False) -> Tensor:
        return self.leaf(T.F32, ne, dense)

    def numbers(self, dtype: GGMLType, ne: Sequence[int], limit: int) -> Tensor:
        t = self.leaf(dtype, ne)
        self.limits[id(t)] = t, limit
        return t


Maker = Callable[[Draw], Tensor]


def _binary(build: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    def make(d: Draw) -> Tensor:
        ne = d.shape()
        tiles = tuple(d.divisor(n) for n in ne) if d.of(0, 1) else (ne[0], *(d.divisor(n) for n in ne[1:]))
        return build(d.f32(*ne), d.f32(*tiles))

    return make


def _of_one(build: Callable[[Tensor], Tensor], dense: bool = False) -> Maker:
    return lambda d: build(d.f32(*d.shape(), dense=dense))


def _mul_mat(d: Draw) -> Tensor:
    dtype = d.weights()
    k, batch = d.row(dtype), (d.of(1, 2, 4), d.of(1, 1, 2))
    a = d.leaf(dtype, (k, d.of(1, 2, 3, 5, 8, 16, 17, 33), d.divisor(batch[0]), d.divisor(batch[1])))
    return ops.mul_mat(a, d.leaf(d.type(T.F32, T.F32, T.F32, T.F16), (k, d.of(1, 1, 2, 3, 4, 5, 9, 13), *batch)))


def _mul_mat_id(d: Draw) -> Tensor:
    dtype = d.weights()
    k, experts, used, tokens = d.row(dtype), d.of(1, 2, 3, 4), d.of(1, 2, 3, 4), d.of(1, 2, 3, 5, 9)
    a = d.leaf(dtype, (k, d.of(1, 2, 3, 5, 8, 17, 33), experts))
    return ops.mul_mat_id(a, d.f32(k, d.divisor(used), tokens), d.numbers(T.I32, (used, tokens), experts))


def _out_prod(d: Draw) -> Tensor:
    k, batch = d.of(), d.of(1, 2)
    return ops.out_prod(d.f32(d.of(1, 3, 8, 17), k, d.divisor(batch)), d.f32(d.of(1, 3, 5, 8), k, batch))


def _cpy(d: Draw) -> Tensor:
    a, b = d.rng.choice(COPIES)
    ne = (d.row(max(a, b, key=lambda t: SIZES[t].block_size)), *d.shape()[1:])
    return ops.cpy(d.leaf(a, ne), d.leaf(b, ne if d.of(0, 1) else (ne[0] * ne[1], 1, *ne[2:])))


def _get_rows(d: Draw) -> Tensor:
    dtype = d.type(T.I32, d.weights(), *d.blocks)
    n, batch = d.of(1, 2, 5, 9), (d.of(1, 1, 2), d.of(1, 1, 2))
    return ops.get_rows(d.leaf(dtype, (d.row(dtype), n, *batch)), d.numbers(T.I32, (d.of(1, 2, 3, 8), *batch), n))


def _set_rows(d: Draw) -> Tensor:
    dtype = d.type(T.F32, T.F16, T.Q8_0, T.Q4_0)
    k, n, m, batch = d.row(dtype), d.of(1, 2, 5, 9), d.of(1, 2, 3, 8), (d.of(1, 1, 2), d.of(1, 1, 2))
    numbers = d.numbers(d.type(T.I64, T.I32), (m, d.divisor(batch[0]), d.divisor(batch[1])), n)
    return ops.set_rows(d.leaf(dtype, (k, n, *batch)), d.leaf(d.type(T.F32, T.F16), (k, m, *batch)), numbers)


def _add_id(d: Draw) -> Tensor:
    n, used, tokens, rows = d.of(*ROWS), d.of(), d.of(), d.of()
    return ops.add_id(d.f32(n, used, tokens), d.f32(n, rows), d.numbers(T.I32, (used, tokens), rows))


def _part(build: Callable[..., Tensor]) -> Maker:
    def make(d: Draw) -> Tensor:
        a = d.f32(*d.shape(), dense=True)
        part = tuple(d.of(*range(1, n + 1)) for n in a.ne)
        at = sum(d.of(*range(n - m + 1)) * nb for n, m, nb in zip(a.ne, part, a.nb, strict=True))
        return build(a, d.f32(*part), a.nb, at, bool(d.of(0, 1)))  # type: ignore[no-any-return]

    return make


def _concat(d: Draw) -> Tensor:
    dtype, a, dim = d.type(T.F32, T.F16, T.I32), list(d.shape()), d.of(0, 1, 2, 3)
    b = [d.of() if i == dim else n for i, n in enumerate(a)]
    return ops.concat(d.leaf(dtype, a), d.leaf(dtype, b), dim)


def _soft_max(d: Draw) -> Tensor:
    ne = d.shape()
    mask = (ne[0], ne[1] + d.of(0, 0, 1, 5), d.divisor(ne[2]), d.divisor(ne[3]))
    masked = d.of(0, 1)
    return ops.soft_max(
        d.f32(*ne, dense=True), d.leaf(d.type(T.F16, T.F32), mask, dense=True) if masked else None, 0.5,
        float(d.of(0, 0, 8)) * masked, inplace=bool(d.of(0, 0, 1)),
    )  # fmt: skip


def _rope(d: Draw) -> Tensor:
    mode = d.of(*ops.ROPE_MODES)
    n = d.of(4, 8, 16, 32, 64)
    n_dims = n // 2 if mode == ops.ROPE_VISION else d.of(2, n // 2, n)
    a = d.leaf(d.type(T.F32, T.F32, T.F16), (n, d.of(), d.of(1, 2, 3, 5), d.of(1, 1, 2)))
    positions = d.numbers(T.I32, (a.ne[2] * (4 if mode & ops.ROPE_MROPE else 1),), 1000)
    quarter = max(1, n // 8)
    return ops.rope(
        a, positions, n_dims, mode, factors=d.f32(n_dims) if d.of(0, 0, 1) else None, offset=d.of(0, 0, 0, 2),
        sections=(quarter, quarter, quarter, 0), n_ctx_orig=d.of(0, 2048), ext_factor=float(d.of(0, 0, 1)),
        back=bool(d.of(0, 1)), in_place=bool(d.of(0, 1)),
    )  # fmt: skip


def _flash_attn_ext(d: Draw) -> Tensor:
    keys, values = d.rng.choice(((T.F16, T.F16), (T.F16, T.F16), (T.F32, T.F32), (T.Q8_0, T.Q8_0), (T.Q4_0, T.Q4_0)))
    head = 32 * d.of(1, 2) if SIZES[keys].block_size > 1 else d.of(8, 16, 32, 64)
    v_head = head if d.of(0, 1) or SIZES[keys].block_size > 1 else d.of(8, 32, 64)
    tokens, n_kv, heads, batch = d.of(1, 1, 2, 5, 9), d.of(1, 3, 16, 17, 33, 64, 100), d.of(1, 2, 4), d.of(1, 1, 2)
    q, k = d.f32(head, tokens, heads, batch), d.leaf(keys, (head, n_kv, d.divisor(heads), batch))
    v = d.leaf(values, (v_head, n_kv, d.divisor(heads), batch))
    mask = d.leaf(
        T.F16, (n_kv + d.of(0, 0, 1, 31), tokens + d.of(0, 0, 3), d.divisor(heads), d.divisor(batch)), dense=True
    )
    masked = d.of(0, 1, 1)
    return ops.flash_attn_ext(
        q, k, v, mask if masked else None, 0.125, float(d.of(0, 0, 8)) * masked, float(d.of(0, 0, 10))
    )


def _ssm_conv(d: Draw) -> Tensor:
    width, channels = d.of(1, 2, 4), d.of(1, 3, 8, 17)
    x = d.f32(width - 1 + d.of(1, 2, 5, 16, 17), channels, d.of(1, 2), dense=True)
    return ops.ssm_conv(x, d.f32(width, channels, dense=True))


def _ssm_scan(d: Draw) -> Tensor:
    state, dim, heads, tokens, seqs, states = (
        d.of(1, 4, 16, 17),
        d.of(1, 2, 4),
        d.of(1, 2, 4),
        d.of(1, 2, 3),
        d.of(1, 2),
        3,
    )
    slots, b = d.of(1, 1, 2), (state, d.divisor(heads), tokens, seqs)
    decay = d.f32(1 if slots > 1 else d.of(1, state), heads, dense=True)
    return ops.ssm_scan(
        d.f32(state, dim, heads, states, dense=True), d.f32(dim, heads, tokens, seqs, dense=True),
        d.f32(heads, tokens, seqs, dense=True), decay, d.f32(*b, dense=True), d.f32(*b, dense=True),
        d.numbers(T.I32, (seqs,), states), slots,
    )  # fmt: skip


def _recurrent(build: Callable[..., Tensor], n: int, bonus: bool = False) -> Maker:
    def make(d: Draw) -> Tensor:
        size, heads, seqs = d.of(1, 4, 8, 16, 32), d.of(1, 2), d.of(1, 2)
        tokens = seqs * d.of(1, 2, 3)
        sources = [d.f32(size, heads, tokens, dense=True) for _ in range(n)]
        if bonus:
            sources[3] = d.f32(size, heads, dense=True)
        return build(*sources, d.f32(size * size * heads, seqs, dense=True))

    return make


def _gated_delta_net(d: Draw) -> Tensor:
    size, heads, tokens, seqs = d.of(1, 4, 8, 16, 17), d.of(1, 2, 4), d.of(1, 2, 3), d.of(1, 2)
    keys = (size, d.divisor(heads), tokens, d.divisor(seqs))
    return ops.gated_delta_net(
        d.f32(*keys, dense=True), d.f32(*keys, dense=True), d.f32(size, heads, tokens, seqs, dense=True),
        d.f32(d.of(1, size), heads, tokens, seqs, dense=True), d.f32(1, heads, tokens, seqs, dense=True),
        d.f32(size, size, heads, seqs, dense=True),
    )  # fmt: skip


def _pool_1d(d: Draw) -> Tensor:
    a, p = d.leaf(d.type(T.F32, T.F16), d.shape()), d.of(0, 0, 1, 5)
    k = d.of(*range(1, a.ne[0] + 2 * p + 1))
    return ops.pool_1d(a, ops.PoolOp(d.of(0, 1)), k, d.of(1, 2, k), p)


def _pool_2d(d: Draw) -> Tensor:
    a, p = d.leaf(d.type(T.F32, T.F16), d.shape()), (d.of(0, 0, 1, 5), d.of(0, 0, 1, 5))
    k0, k1 = (d.of(*range(1, n + 2 * q + 1)) for n, q in zip(a.ne[:2], p, strict=True))
    return ops.pool_2d(a, ops.PoolOp(d.of(0, 1)), (k0, k1), (d.of(1, 2, k0), d.of(1, 2, k1)), p)


def _lightning_indexer(d: Draw) -> Tensor:
    dtype = d.type(T.F32, T.F16, T.F16, T.BF16, T.Q8_0, T.Q4_0)
    size, heads, tokens, streams = d.row(dtype), d.of(1, 2, 3, 4, 5, 8), d.of(1, 2, 3, 33), d.of(1, 1, 2, 4)
    cells = d.of(*ROWS)
    return ops.lightning_indexer(
        d.f32(size, heads, tokens, streams), d.leaf(dtype, (size, 1, cells, streams)), d.f32(heads, tokens, 1, streams),
        d.leaf(T.F16, (cells, tokens, 1, d.divisor(streams))),
    )  # fmt: skip


def _dsv4_hc_comb(d: Draw) -> Tensor:
    return ops.dsv4_hc_comb(d.f32(24, d.of()), d.f32(d.of(3, 4)), d.f32(24), 1e-6, d.of(1, 2, 20))


def _dsv4_hc_pre(d: Draw) -> Tensor:
    n, streams, tokens = d.of(*ROWS), d.of(1, 2, 4, 5), d.of()
    if d.of(0, 1):
        return ops.dsv4_hc_pre_gated(d.f32(n, streams, tokens), d.f32(n, streams, tokens), 0.25)
    return ops.dsv4_hc_pre(d.f32(n, streams, tokens), d.f32(streams, tokens))


def _dsv4_hc_post(d: Draw) -> Tensor:
    n, streams, tokens = d.of(*ROWS), d.of(1, 2, 4, 5), d.of()
    comb = d.f32(streams, streams, tokens) if d.of(0, 1) else None
    return ops.dsv4_hc_post(d.f32(n, tokens), d.f32(n, streams, tokens), d.f32(streams, tokens), comb)


def _glu(d: Draw) -> Tensor:
    ne, kind = d.shape(), GluOp(d.of(*range(len(GluOp))))
    if d.of(0, 1):
        return ops.glu(d.f32(*ne, dense=True), d.f32(*ne, dense=True), kind)
    return ops.glu(d.f32(ne[0] * 2, *ne[1:], dense=True), None, kind, bool(d.of(0, 1)))


def _repeat(d: Draw) -> Tensor:
    a = d.f32(*d.shape())
    return ops.repeat(a, *(n * d.of(1, 1, 2, 3) for n in a.ne))


def _repeat_back(d: Draw) -> Tensor:
    ne = d.shape()
    return ops.repeat_back(d.f32(*(n * d.of(1, 1, 2, 3) for n in ne)), *ne)


def _pad(d: Draw) -> Tensor:
    a = d.leaf(d.type(T.F32, T.F16, T.I32), d.shape())
    before, behind = ([d.of(0, 0, 1, 3) for _ in range(4)] for _ in "ab")
    return ops.pad(a, before, behind, bool(d.of(0, 1)) and all(b <= n for b, n in zip(before, a.ne, strict=True)))


def _pad_reflect_1d(d: Draw) -> Tensor:
    a = d.f32(*d.shape())
    return ops.pad_reflect_1d(a, d.of(*range(a.ne[0])), d.of(*range(a.ne[0])))


def _roll(d: Draw) -> Tensor:
    a = d.f32(*d.shape())
    return ops.roll(a, *(d.of(*range(1 - n, n)) for n in a.ne))


def _argsort(d: Draw) -> Tensor:
    ne = (d.of(*ROWS, 200), *d.shape()[1:])
    order = ops.SortOrder(d.of(0, 1))
    return ops.top_k(d.f32(*ne), d.of(*range(1, ne[0] + 1))) if d.of(0, 1) else ops.argsort(d.f32(*ne), order)


def _square(d: Draw) -> Tensor:
    n = d.of(1, 3, 8, 17)
    return ops.tri(d.f32(n, n, d.of(1, 2)), TriType(d.of(0, 1, 2, 3)))


def _solve_tri(d: Draw) -> Tensor:
    n, batch = d.of(1, 3, 8, 17), d.of(1, 2)
    return ops.solve_tri(d.f32(n, n, batch, dense=True), d.f32(d.of(1, 3, 17), n, batch, dense=True))


def _count_equal(d: Draw) -> Tensor:
    ne = d.shape()
    return ops.count_equal(d.numbers(T.I32, ne, 3), d.numbers(T.I32, ne, 3))


MAKERS: dict[Op, Maker] = {
    Op.ADD: _binary(ops.add), Op.SUB: _binary(ops.sub), Op.MUL: _binary(ops.mul), Op.DIV: _binary(ops.div),
    Op.ADD1: lambda d: ops.add1(d.f32(*d.shape()), d.f32(1)),
    Op.ADD_ID: _add_id, Op.ACC: _part(ops.acc), Op.SET: _part(ops.set_part),
    Op.SQR: _of_one(ops.sqr), Op.SQRT: _of_one(ops.sqrt), Op.LOG: _of_one(ops.log), Op.SIN: _of_one(ops.sin),
    Op.COS: _of_one(ops.cos), Op.CLAMP: _of_one(lambda a: ops.clamp(a, -0.5, 0.5)),
    Op.LEAKY_RELU: _of_one(lambda a: ops.leaky_relu(a, 0.1)), Op.SCALE: _of_one(lambda a: ops.scale(a, 2.0, 1.0)),
    Op.UNARY: lambda d: ops.unary(d.f32(*d.shape()), UnaryOp(d.of(*range(len(UnaryOp))))),
    Op.SUM: _of_one(ops.sum_all), Op.SUM_ROWS: _of_one(ops.sum_rows), Op.CUMSUM: _of_one(ops.cumsum),
    Op.MEAN: _of_one(ops.mean), Op.ARGMAX: lambda d: ops.argmax(d.f32(*d.shape()[:2])), Op.COUNT_EQUAL: _count_equal,
    Op.REPEAT: _repeat, Op.REPEAT_BACK: _repeat_back, Op.CONCAT: _concat,
    Op.NORM: _of_one(lambda a: ops.norm(a, 1e-5)), Op.RMS_NORM: _of_one(lambda a: ops.rms_norm(a, 1e-5)),
    Op.L2_NORM: _of_one(lambda a: ops.l2_norm(a, 1e-5)),
    Op.GROUP_NORM: lambda d: ops.group_norm(d.f32(*d.shape()), d.of(1, 2, 3, 8, 100), 1e-5),
    Op.MUL_MAT: _mul_mat, Op.MUL_MAT_ID: _mul_mat_id, Op.OUT_PROD: _out_prod, Op.CPY: _cpy,
    Op.CONT: lambda d: ops.cont(d.leaf(d.type(T.F32, T.F16, T.I32), d.shape())),
    Op.DUP: lambda d: ops.dup(d.leaf(d.type(T.F32, T.F16, T.I32), d.shape())),
    Op.GET_ROWS: _get_rows, Op.SET_ROWS: _set_rows, Op.DIAG: lambda d: ops.diag(d.f32(d.of(1, 3, 8, 17), 1, d.of(1, 2))),
    Op.DIAG_MASK_INF: _of_one(lambda a: ops.diag_mask_inf(a, 3)), Op.DIAG_MASK_ZERO: _of_one(lambda a: ops.diag_mask_zero(a, 3)),
    Op.SOFT_MAX: _soft_max,
    Op.SOFT_MAX_BACK: lambda d: ops.soft_max_back(*(d.f32(*ne) for ne in [d.shape()] * 2)),
    Op.ROPE: _rope, Op.ROPE_BACK: _rope,
    Op.PAD: _pad,
    Op.PAD_REFLECT_1D: _pad_reflect_1d, Op.ROLL: _roll,
    Op.ARANGE: lambda d: ops.arange(0.0, float(d.of(1, 3, 17, 100)), 1.0),
    Op.TIMESTEP_EMBEDDING: lambda d: ops.timestep_embedding(d.f32(d.of()), d.of(1, 2, 3, 16, 33)),
    Op.ARGSORT: _argsort, Op.TOP_K: _argsort, Op.TRI: _square, Op.FILL: _of_one(lambda a: ops.fill(a, 1.5)),
    Op.FLASH_ATTN_EXT: _flash_attn_ext, Op.SSM_CONV: _ssm_conv, Op.SSM_SCAN: _ssm_scan,
    Op.GATED_LINEAR_ATTN: _recurrent(lambda *s: ops.gated_linear_attn(*s, 0.5), 4), Op.RWKV_WKV6: _recurrent(ops.rwkv_wkv6, 5, True),
    Op.RWKV_WKV7: _recurrent(ops.rwkv_wkv7, 6), Op.SOLVE_TRI: _solve_tri, Op.GATED_DELTA_NET: _gated_delta_net, Op.GLU: _glu,
    Op.POOL_1D: _pool_1d, Op.POOL_2D: _pool_2d, Op.LIGHTNING_INDEXER: _lightning_indexer,
    Op.DSV4_HC_COMB: _dsv4_hc_comb, Op.DSV4_HC_PRE: _dsv4_hc_pre, Op.DSV4_HC_POST: _dsv4_hc_post,
}  # fmt: skip
"""One for each op that has a rule. Those of two ops may make either."""
