"""One graph that makes every family of CPU kernels work, in all its kinds, with tails and strides: the same in each
process, so that CPU levels and numbers of threads can be held against each other and against the reference.

As a program: `every_kernel.py OUT TURN TURNS` computes it, or a share of it, at the level that the environment asks for
and writes the results.
"""

import re
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from op_cases import BF16, F16, F32, FLOATS, I32, I64, MADE, ROUNDING, Case, Operands

from pyggml import jit, ops
from pyggml.backend.base import Buffer, Device
from pyggml.dtypes import SIZES, GGMLType
from pyggml.graph import build_forward
from pyggml.ops import ROPE_IMROPE, ROPE_MROPE, ROPE_NEOX, ROPE_NORMAL, ROPE_VISION, GluOp, Op, UnaryOp
from pyggml.tensor import Tensor, pack_params

QUANTIZED = 5e-4  # what rounding a product's second operand to 8 bits may cost


def remade(node: Tensor, params: bytes | None = None, src: tuple[Tensor | None, ...] | None = None) -> Tensor:
    """The node with other parameters or sources."""
    made = Tensor(
        node.type, node.ne, op=node.op, op_params=params or node.op_params, src=node.src if src is None else src
    )
    ops.check(made)
    return made


def arithmetic(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    a = make.leaf(F32, (65, 3, 2))
    for op in (ops.add, ops.sub, ops.mul, ops.div):
        yield op.__name__, op(a, make.leaf(F32, (65,))), 1e-7
    yield "add-scalar", ops.add(a, make.leaf(F32, (1, 3))), 1e-7
    yield "mul-tile", ops.mul(make.leaf(F32, (66, 4)), make.leaf(F32, (22, 2))), 1e-7
    yield "add-long", ops.add(make.leaf(F32, (5001,)), make.leaf(F32, (5001,))), 1e-7
    yield "sub-apart", ops.sub(make.like("transposed", F32, (33, 5)), make.like("reversed", F32, (33, 5))), 1e-7
    for dtype in (F16, BF16):
        x = make.leaf(dtype, (65, 3))
        yield f"mul-{dtype.name}", ops.mul(x, make.leaf(dtype, (65, 3))), ROUNDING[dtype]
        yield f"add-{dtype.name}-F32", ops.add(x, make.leaf(F32, (65,))), ROUNDING[dtype]
        yield f"silu-{dtype.name}", ops.unary(x, UnaryOp.SILU), ROUNDING[dtype]
    yield "scale", ops.scale(a, 0.125, 3.0), 1e-7
    wide = make.leaf(F32, (577, 2), scale=4.0)
    for kind in UnaryOp:
        node = ops.unary(wide, kind)
        if kind == UnaryOp.XIELU:
            node = remade(node, pack_params("i4f", kind, 0.8, 0.9, 0.5, -1e-6))
        yield kind.name, node, 1e-7


def functions(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    x = make.leaf(F32, (577, 3), scale=900.0)
    for name, build in (("sqr", ops.sqr), ("sqrt", ops.sqrt), ("log", ops.log), ("sin", ops.sin), ("cos", ops.cos)):
        yield name, build(x), 1e-7
    yield "sin-far", ops.sin(make.leaf(F32, (65,), scale=1e6)), 1e-7
    yield "clamp", ops.clamp(x, -1.0, 300.0), 1e-7
    yield "leaky_relu", ops.leaky_relu(x, 0.1), 1e-7


def reductions(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    x = make.leaf(F32, (577, 5, 3), make.rng.uniform(-1, 2, 577 * 15))
    yield "sum", ops.sum_all(x), 1e-7
    yield "sum-long", ops.sum_all(make.leaf(F32, (9001,), make.rng.uniform(-1, 2, 9001))), 1e-7
    yield "sum_rows", ops.sum_rows(x), 1e-7
    yield "mean", ops.mean(x), 1e-7
    yield "cumsum", ops.cumsum(x), 1e-7
    yield "argmax", ops.argmax(make.leaf(F32, (577, 9), make.rng.integers(0, 40, 577 * 9))), 0.0
    a, b = (make.leaf(I32, (577, 5), make.rng.integers(0, 3, 577 * 5)) for _ in range(2))
    yield "count_equal", ops.count_equal(a, b), 0.0
    yield "norm", ops.norm(x, 1e-5), 1e-7
    yield "l2_norm", ops.l2_norm(x, 1e-5), 1e-7
    yield "group_norm", ops.group_norm(make.leaf(F32, (33, 3, 7)), 3, 1e-5), 1e-7


def states(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    yield "ssm_conv", ops.ssm_conv(make.leaf(F32, (3 + 19, 5, 2)), make.leaf(F32, (4, 5))), 1e-7
    yield "ssm_conv of a token", ops.ssm_conv(make.leaf(F32, (3 + 1, 21, 2)), make.leaf(F32, (4, 21))), 1e-7
    turned = ops.transpose(make.leaf(F32, (21, 19)))
    yield "columns", ops.concat(make.leaf(F32, (3, 21)), turned, 0), 0.0
    for d_state, head_dim, n_decay in ((33, 5, 1), (16, 1, 16)):
        s, x = make.leaf(F32, (d_state, head_dim, 4, 3)), make.leaf(F32, (head_dim, 4, 7, 2))
        decay = make.leaf(F32, (n_decay, 4), -make.rng.uniform(0.1, 1, 4 * n_decay))
        b, c = (make.leaf(F32, (d_state, 2, 7, 2)) for _ in range(2))
        ids = make.leaf(I32, (2,), np.array([2, 0]))
        node = ops.ssm_scan(s, x, make.leaf(F32, (4, 7, 2)), decay, b, c, ids, 3 if n_decay == 1 else 1)
        yield f"ssm_scan-{d_state}", node, 1e-6
    for n_gate in (1, 33):
        q, k = (make.leaf(F32, (33, 2, 7, 1), scale=0.2) for _ in range(2))
        v = make.leaf(F32, (33, 4, 7, 2))
        g = make.leaf(F32, (n_gate, 4, 7, 2), -make.rng.uniform(0, 2, n_gate * 56))
        beta = make.leaf(F32, (1, 4, 7, 2), make.rng.uniform(0, 1, 56))
        yield (
            f"gated_delta_net-{n_gate}",
            ops.gated_delta_net(q, k, v, g, beta, make.leaf(F32, (33, 33, 4, 2)), 2),
            1e-6,
        )
    a = np.tril(make.rng.uniform(-0.5, 0.5, (2, 13, 13))) + 2 * np.eye(13)
    yield "solve_tri", ops.solve_tri(make.leaf(F32, (13, 13, 2), a), make.leaf(F32, (33, 13, 2))), 1e-6


def rows_of_numbers(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    a, b = make.leaf(F32, (97, 3), scale=3.0), make.leaf(F32, (97, 3))
    for kind in GluOp:
        params = pack_params("iiff", kind, 0, 1.702, 2.5)
        yield kind.name, remade(ops.glu(a, b, kind), params), 1e-7
    yield "SWIGLU-halves", ops.glu(make.leaf(F16, (66, 3)), None, GluOp.SWIGLU, swapped=True), ROUNDING[F16]
    x = make.leaf(F32, (577, 3))
    yield "rms_norm", ops.rms_norm(x, 1e-5), 1e-7
    yield "rms_norm-mul", ops.mul(ops.rms_norm(x, 1e-5), make.leaf(F32, (577,))), 1e-7
    y = make.leaf(F32, (65, 3, 6, 2), scale=3.0)
    seen = np.where(make.rng.random((2, 1, 3, 65)) < 0.3, -np.inf, 0.0)
    for dtype in (F32, F16):
        mask = make.leaf(dtype, (65, 3, 1, 2), seen)
        yield f"soft_max-{dtype.name}", ops.soft_max(y, mask, 0.125), 1e-7
    yield "soft_max", ops.soft_max(y), 1e-7
    biased = ops.soft_max(y, make.leaf(F16, (65, 3)), 0.5, max_bias=8.0)
    yield "soft_max-alibi-sinks", remade(biased, src=(*biased.src, make.leaf(F32, (6,)))), 1e-6
    yield "soft_max_back", ops.soft_max_back(y, make.leaf(F32, y.ne), 0.5), 1e-7
    yield "diag_mask_inf", ops.diag_mask_inf(y, 21), 0.0
    yield "diag_mask_zero", ops.diag_mask_zero(y, 21), 0.0
    heads = make.leaf(F32, (80, 3, 5))
    positions = make.leaf(I32, (5,), np.array([0, 1, 700, 31999, 99999]))
    for mode in (ROPE_NORMAL, ROPE_NEOX):
        yield f"rope-{mode}", ops.rope(heads, positions, 80, mode, freq_base=1e5), 1e-7
        factors = make.leaf(F32, (35,), make.rng.uniform(0.5, 8.0, 35))
        extended = ops.rope(
            heads, positions, 70, mode, factors=factors, n_ctx_orig=4096, freq_scale=0.25, ext_factor=1.0
        )
        yield f"rope-{mode}-yarn", extended, 1e-7
    wide = make.leaf(I32, (20,), make.rng.integers(0, 5000, 20))
    for mode in (ROPE_MROPE, ROPE_IMROPE, ROPE_VISION):
        node = ops.rope(
            heads, wide, 40 if mode == ROPE_VISION else 80, mode, sections=(6, 9, 7, 3), back=mode == ROPE_MROPE
        )
        yield f"rope-{mode}", node, 1e-7
    yield "rope-F16", ops.rope(make.leaf(F16, (64, 3, 5)), positions, 64, ROPE_NORMAL), ROUNDING[F16]


def moved(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    for dtype in (*MADE, GGMLType.Q8_1):
        ne0 = 65 if SIZES[dtype].block_size == 1 else 2 * SIZES[dtype].block_size
        numbers = make.leaf(I32, (4,), np.array([6, 0, 3, 3]))
        yield f"get_rows-{dtype.name}", ops.get_rows(make.leaf(dtype, (ne0, 7)), numbers), 0.0
        table, rows = make.leaf(dtype, (ne0, 7)), make.leaf(I64, (4,), np.array([6, 0, 3, 3]))
        yield f"set_rows-{dtype.name}", ops.set_rows(table, make.leaf(F32, (ne0, 4)), rows), 0.0
    one = make.leaf(F16, (1, 200))
    yield (
        "set_rows-single",
        ops.set_rows(one, make.leaf(F32, (1, 90)), make.leaf(I64, (90,), make.rng.permutation(200)[:90])),
        0.0,
    )
    yield "get_rows-I32", ops.get_rows(make.leaf(I32, (9, 7), np.arange(63)), numbers), 0.0
    x = make.leaf(F32, (97, 5, 3))
    for dtype in FLOATS:
        yield f"cpy-{dtype.name}", ops.cpy(x, make.leaf(dtype, (97, 15))), 0.0
        yield f"cpy-transposed-{dtype.name}", ops.cpy(ops.transpose(x), make.leaf(dtype, (5, 97, 3))), 0.0
    yield "cont", ops.cont(ops.permute(x, 0, 2, 1, 3), 97 * 3, 5), 0.0
    yield "dup", ops.dup(make.like("padded", F16, (97, 5))), 0.0
    yield "cpy-F32-I32", ops.cpy(make.leaf(F32, (65,), scale=1e9), make.leaf(I32, (65,), np.zeros(65))), 0.0
    yield "cpy-I32-F32", ops.cpy(make.leaf(I32, (65,), np.arange(65) - 2**30), make.leaf(F32, (65,))), 0.0


def placed(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    a, b = make.like("rows", F32, (33, 5, 3)), make.like("transposed", F32, (33, 2, 3))
    yield "concat", ops.concat(a, b, 1), 0.0
    yield "concat-Q8_0", ops.concat(make.leaf(GGMLType.Q8_0, (64, 5)), make.leaf(GGMLType.Q8_0, (32, 5)), 0), 0.0
    whole, part = make.leaf(F32, (65, 7, 3)), make.leaf(F32, (33, 3, 2))
    yield "set", ops.set_part(whole, part, whole.nb, 8), 0.0
    yield "acc", ops.acc(whole, part, whole.nb, 8), 1e-7
    yield "pad", ops.pad(a, (1, 0, 2), (3, 1)), 0.0
    yield "pad-circular", ops.pad(a, (40, 0, 2), (3, 1), circular=True), 0.0
    yield "pad_reflect_1d", ops.pad_reflect_1d(a, 32, 7), 0.0
    yield "roll", ops.roll(b, 3, -1, 2), 0.0
    yield "repeat", ops.repeat(make.leaf(F16, (33, 1, 2)), 66, 5, 4), 0.0
    yield "repeat_back", ops.repeat_back(make.leaf(F32, (66, 5, 4)), 33, 1, 2), 1e-7
    yield "fill", ops.fill(make.leaf(F16, (33, 5)), 1.5), 0.0
    yield "arange", ops.arange(-3.0, 5000.0, 0.75), 1e-7
    yield "tri", ops.tri(make.leaf(F32, (17, 17, 2)), ops.TriType.LOWER), 0.0
    yield "diag", ops.diag(make.leaf(F32, (17, 1, 2))), 0.0
    yield "timestep_embedding", ops.timestep_embedding(make.leaf(F32, (5,), scale=20.0), 65), 1e-9
    yield "add1", ops.add1(make.leaf(F32, (65, 3)), make.leaf(F32, (1,))), 1e-7
    yield "add-Q4_0", ops.add(make.leaf(GGMLType.Q4_0, (96, 3)), make.leaf(F32, (96, 3))), 0.0


def products(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    for dtype in (*MADE, GGMLType.IQ2_XS):
        block = SIZES[dtype].block_size
        limit = {F32: 1e-7, F16: 1e-6, BF16: 2e-5}.get(dtype, QUANTIZED)
        for k in (97, 64) if block == 1 else (3 * block, 18 * block) if block == 32 else (2 * block,):
            a = make.leaf(dtype, (k, 37), scale=k**-0.5)
            for m in (1, 3, 33) if dtype in MADE else (1, 33):
                yield f"mul_mat-{dtype.name}-{k}-{m}", ops.mul_mat(a, make.leaf(F32, (k, m))), limit
    for dtype in (F32, GGMLType.Q4_0, GGMLType.Q6_K):
        a = make.leaf(dtype, (512, 37, 3), scale=512**-0.5)
        for m in (1, 33):
            ids, b = make.leaf(I32, (2, m), make.rng.integers(0, 3, 2 * m)), make.leaf(F32, (512, 1, m))
            yield f"mul_mat_id-{dtype.name}-{m}", ops.mul_mat_id(a, b, ids), 1e-7 if dtype == F32 else QUANTIZED
    yield "out_prod", ops.out_prod(make.leaf(GGMLType.Q4_0, (64, 33, 2)), make.leaf(F32, (5, 33, 2))), 1e-7
    biases = make.leaf(F32, (97, 5)), make.leaf(I32, (2, 7), make.rng.integers(0, 5, 14))
    yield "add_id", ops.add_id(make.leaf(F32, (97, 2, 7)), *biases), 1e-7
    for n in (37, 257):
        yield f"argsort-{n}", ops.argsort(make.leaf(F32, (n, 3))), 0.0
        yield f"top_k-{n}", ops.top_k(make.leaf(F32, (n, 3)), 5), 0.0
    scores = ops.mul_mat(make.like("planes", F16, (64, 33, 2)), make.like("planes", F32, (64, 5, 6)))
    yield "mul_mat-batch", scores, 1e-6
    for kv in FLOATS:
        k, v = make.like("planes", kv, (64, 321, 2)), make.like("planes", kv, (64, 321, 2))
        for n_tokens in (1, 9, 90):
            q = make.like("planes", F32, (64, n_tokens, 6))
            mask = make.leaf(F16, (321, n_tokens), np.where(make.rng.random((n_tokens, 321)) < 0.3, -np.inf, 0.0))
            yield f"flash_attn-{kv.name}-{n_tokens}", ops.flash_attn_ext(q, k, v, mask, 0.125), 1e-5
    k, v = make.like("planes", GGMLType.Q8_0, (96, 97, 2)), make.like("planes", GGMLType.Q4_1, (64, 97, 2))
    for n_tokens in (1, 9):
        q = make.like("planes", F32, (96, n_tokens, 4))
        yield f"flash_attn-Q8_0-Q4_1-{n_tokens}", ops.flash_attn_ext(q, k, v, None, 0.125), 1e-5
    q, k, v = make.leaf(F32, (72, 9, 6)), make.leaf(F16, (72, 321, 2)), make.leaf(F16, (40, 321, 2))
    plain = ops.flash_attn_ext(q, k, v, mask, 0.125, 8.0, 10.0)
    yield "flash_attn-alibi-cap-sinks", remade(plain, src=(*plain.src, make.leaf(F32, (6,)))), 1e-5


def linear_attention(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    k, v, q, a, b = (make.leaf(F32, (24, 3, 6), scale=0.2) for _ in range(5))
    g, state = make.leaf(F32, (24, 3, 6), make.rng.uniform(0.5, 1.0, 432)), make.leaf(F32, (24 * 24 * 3, 2))
    yield "gated_linear_attn", ops.gated_linear_attn(k, v, q, g, state, 0.2), 1e-7
    yield "rwkv_wkv6", ops.rwkv_wkv6(k, v, q, make.leaf(F32, (24, 3)), g, state), 1e-7
    yield "rwkv_wkv7", ops.rwkv_wkv7(q, g, k, v, a, b, state), 1e-7


def streams_and_scores(make: Operands) -> Iterator[tuple[str, Tensor, float]]:
    x, weights = make.leaf(F32, (577, 4, 3)), make.leaf(F32, (4, 3))
    yield (
        "dsv4_hc_comb",
        ops.dsv4_hc_comb(make.leaf(F32, (24, 7)), make.leaf(F32, (3,)), make.leaf(F32, (24,)), 1e-6, 4),
        1e-7,
    )
    yield "dsv4_hc_pre", ops.dsv4_hc_pre(x, weights), 1e-7
    yield "dsv4_hc_pre-gated", ops.dsv4_hc_pre_gated(x, make.leaf(F32, (577, 4, 3)), 0.25), 1e-7
    added, mixes = make.leaf(F32, (577, 3)), make.leaf(F32, (4, 4, 3))
    yield "dsv4_hc_post", ops.dsv4_hc_post(added, x, weights, mixes), 1e-7
    yield "dsv4_hc_post-as-they-are", ops.dsv4_hc_post(added, x, weights), 1e-7
    mask = make.leaf(F16, (45, 3), np.where(make.rng.random((3, 45)) < 0.3, -np.inf, 0.0))
    for dtype in (F32, F16, GGMLType.Q8_0):
        q, k = make.leaf(F32, (64, 5, 3)), make.leaf(dtype, (64, 1, 45))
        yield f"indexer-{dtype.name}", ops.lightning_indexer(q, k, make.leaf(F32, (5, 3)), mask), 1e-7
    for dtype in (F32, F16):
        a = make.leaf(dtype, (77, 9, 2))
        for kind in ops.PoolOp:
            yield f"pool_2d-{kind.name}-{dtype.name}", ops.pool_2d(a, kind, (20, 3), (5, 2), (3, 1)), 1e-7
        yield f"pool_1d-{dtype.name}", ops.pool_1d(a, ops.PoolOp.AVG, 3, 2, 1), 1e-7


def cases(device: Device) -> dict[str, Case]:
    """By name; those that the device computes."""
    found: dict[str, Case] = {}
    for family in (
        arithmetic,
        functions,
        reductions,
        states,
        rows_of_numbers,
        moved,
        placed,
        products,
        linear_attention,
        streams_and_scores,
    ):
        make = Operands(np.random.default_rng(1))
        for name, node, limit in family(make):
            assert name not in found, name
            if device.supports_op(node):
                found[name] = Case(node, make.contents, limit, atol=1e-7)
    return found


def every_tensor(nodes: list[Tensor]) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    stack = list(nodes)
    while stack:
        t = stack.pop()
        if id(t) not in found:
            found[id(t)] = t
            stack += [s for s in (*t.src, t.view_src) if s is not None]
    return list(found.values())


def compute(device: Device, only: dict[str, Case], n_threads: int | None = None) -> dict[str, bytes]:
    """The bytes of the memory that each node writes."""
    tensors = every_tensor([case.node for case in only.values()])
    roots = [t for t in tensors if t.view_src is None]
    buffer: Buffer = device.alloc_buffer(sum(t.nbytes + 128 for t in roots))
    contents = {key: value for case in only.values() for key, value in case.contents.items()}
    at = 0
    for t in roots:
        buffer.place(t, at)
        at += -(-t.nbytes // 64) * 64
        if id(t) in contents:
            buffer.set(t, contents[id(t)][1])
    for t in tensors:
        if t.view_src is not None:
            t.buffer, t.data = buffer, t.view_src.data + t.view_offs
    backend = device.open(n_threads)
    backend.compute(backend.plan(build_forward([case.node for case in only.values()])))
    backend.close()
    return {name: buffer.get(case.node.view_src or case.node) for name, case in only.items()}


def families(only: dict[str, Case]) -> set[Op]:
    return {Op(t.op) for t in every_tensor([case.node for case in only.values()])}


EVERYWHERE = re.compile(
    r"(F16|Q4_0|Q8_0|add|SWIGLU|rms_norm|soft_max|rope-[02]|flash_attn-F16-\d+|cont|mul_mat-batch)$"
)


def share(names: Iterable[str], turn: int, turns: int) -> set[str]:
    """Every `turns`-th block type and, of the other cases, every `turns`-th; and what a llama graph is made of. Compiling
    takes long: what one CPU level leaves out another one has."""
    keys: dict[str, None] = {}
    of: dict[str, str] = {}
    for name in names:
        found = re.search(r"(?<![A-Z])(I?Q\d_\w+|BF16|F32|F16)", name)
        of[name] = found[1] if found else name
        keys[of[name]] = None
    mine = set(list(keys)[turn % turns :: turns])
    return {name for name, key in of.items() if key in mine or EVERYWHERE.match(key) or EVERYWHERE.match(name)}


if __name__ == "__main__":
    from pyggml.backend.cpu import CPUDevice

    here = CPUDevice()
    all_cases = cases(here)
    mine = share(all_cases, int(sys.argv[2]), int(sys.argv[3]))
    results = compute(here, {name: case for name, case in all_cases.items() if name in mine})
    np.savez(sys.argv[1], level=jit.level(), **{name: np.frombuffer(b, np.uint8) for name, b in results.items()})
