"""Kernels with one place of their source replaced, on the emulated GPU: an op held against the reference tells each from the
right one."""

import importlib
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import cuda_emulator
from cuda_device import EmulatedDevice
from cuda_emulator import EmulatedGPU, EmulatorError
from op_cases import F16, F32, I32, Case, Operands
from op_check import check

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.spec import Spec, full_name
from pyggml.tensor import Tensor

T = GGMLType
PACKAGE = "cuda_mutants"
"""Of the files with wrong kernels."""


class WrongGPU(EmulatedGPU):
    """One whose kernels of a family are those of another file."""

    def __init__(self, module: str, number: int) -> None:
        super().__init__()
        self.module, self.wrong = module, f"{PACKAGE}.{module}_{number}"

    def load(self, spec: Spec) -> Spec:
        return super().load(spec._replace(module=self.wrong) if spec.module == self.module else spec)


class Wrong(NamedTuple):
    """In a file of kernels `old`, which stands there once, becomes `new`; `node` shows it. `through`: where that file is none
    that launches name, those by which kernels come to it, the launches' first."""

    module: str
    old: str
    new: str
    node: Callable[[Operands], Tensor]
    through: tuple[str, ...] = ()


def scan(make: Operands, decays: int, slots: int) -> Tensor:
    ids = make.leaf(I32, (2,), np.array([1, 0]))
    s, x, dt = make.leaf(F32, (33, 2, 4, 3)), make.leaf(F32, (2, 4, 5, 2)), make.leaf(F32, (4, 5, 2))
    decay = make.leaf(F32, (decays, 4), -make.rng.uniform(0.1, 1.0, decays * 4))
    b, c = (make.leaf(F32, (33, 2, 5, 2)) for _ in range(2))
    return ops.ssm_scan(s, x, dt, decay, b, c, ids, slots)


def delta(make: Operands) -> Tensor:
    q, k, v = make.leaf(F32, (33, 2, 3, 1)), make.leaf(F32, (33, 2, 3, 1)), make.leaf(F32, (33, 4, 3, 1))
    g, beta = make.leaf(F32, (33, 4, 3), -make.rng.random(33 * 12)), make.leaf(F32, (1, 4, 3), make.rng.random(12))
    return ops.gated_delta_net(q, k, v, g, beta, make.leaf(F32, (33, 33, 4)))


def linear(make: Operands, name: str) -> Tensor:
    def leaf() -> Tensor:
        return make.leaf(F32, (33, 2, 4), scale=0.2)

    state = make.leaf(F32, (33 * 33 * 2, 2))
    if name == "wkv7":
        return ops.rwkv_wkv7(leaf(), leaf(), leaf(), leaf(), leaf(), leaf(), state)
    if name == "wkv6":
        return ops.rwkv_wkv6(leaf(), leaf(), leaf(), make.leaf(F32, (33, 2)), leaf(), state)
    return ops.gated_linear_attn(leaf(), leaf(), leaf(), leaf(), state, 0.5)


def triangle(make: Operands) -> Tensor:
    return ops.solve_tri(make.leaf(F32, (4, 4), np.eye(4) * 2 + make.rng.random((4, 4))), make.leaf(F32, (3, 4)))


def product(dtype: GGMLType) -> Callable[[Operands], Tensor]:
    return lambda make: ops.mul_mat(make.leaf(dtype, (512, 5), scale=0.05), make.leaf(F32, (512, 1)))


def mixed(make: Operands) -> Tensor:
    """Of more streams than one pass makes results of, and a last pass that is not full."""
    x, r = make.leaf(F32, (150, 2)), make.leaf(F32, (150, 5, 2))
    return ops.dsv4_hc_post(x, r, make.leaf(F32, (5, 2)), make.leaf(F32, (5, 5, 2)))


def matrices(make: Operands) -> Tensor:
    return ops.dsv4_hc_comb(make.leaf(F32, (24, 9)), make.leaf(F32, (3,)), make.leaf(F32, (24,)), 0.01, 3)


def indexer(make: Operands) -> Tensor:
    """More cells and heads than a tile has, and streams that share two masks by turns."""
    q, k = make.leaf(F32, (20, 67, 2, 4)), make.leaf(F16, (20, 1, 66, 4))
    return ops.lightning_indexer(q, k, make.leaf(F32, (67, 2, 1, 4)), make.leaf(F16, (66, 2, 1, 2)))


def wide(make: Operands) -> Tensor:
    """So many heads that no blocks share their keys: three tiles of them, one after the other."""
    q, k, v = make.leaf(F32, (80, 9, 16), scale=2.0), make.leaf(F16, (80, 130, 8)), make.leaf(F16, (144, 130, 8))
    return ops.flash_attn_ext(q, k, v, None, 80**-0.5)


def indexer_tiles(make: Operands) -> Tensor:
    """The same, where tensor cores can do it, and more tokens than blocks."""
    q, k = make.leaf(F32, (128, 67, 3, 4)), make.leaf(F16, (128, 1, 130, 4))
    return ops.lightning_indexer(q, k, make.leaf(F32, (67, 3, 1, 4)), make.leaf(F16, (130, 3, 1, 2)))


def tiles(dtype: GGMLType) -> Callable[[Operands], Tensor]:
    """Four stages or six of rows that begin anywhere."""
    k = {T.Q4_0: 448, F16: 200}.get(dtype, 768)
    return lambda make: ops.mul_mat(make.leaf(dtype, (k, 5), scale=0.05), make.leaf(F32, (k, 9)))


UNPACKING = ("matvec_one", "unpack")
HELD = ("mma", "mma_stage")

MUTANTS: dict[str, Wrong] = {
    "a norm without its epsilon": Wrong(
        "norm", "SUMS) / d.f32(n0) + eps)", "SUMS) / d.f32(n0))", lambda m: ops.norm(m.leaf(F32, (70, 3)), 0.5)),
    "a length that may be 0": Wrong(
        "norm", "fmaximum(eps, math", "fmaximum(d.f32(0), math", lambda m: ops.l2_norm(m.leaf(F32, (9,), np.zeros(9)), 1e-5)),
    "a last group as large as the others": Wrong(
        "norm", "min(each, d.i32(n2 - first))", "each", lambda m: ops.group_norm(m.leaf(F32, (9, 2, 7)), 3, 1e-5)),
    "a mean that is a sum": Wrong("reduce", "total / over", "total", lambda m: ops.mean(m.leaf(F32, (40, 3)))),
    "sums that begin anew": Wrong(
        "reduce", "before = d.shuffle_f32(total, 31)", "before = d.f32(0)", lambda m: ops.cumsum(m.leaf(F32, (70, 5)))),
    "a sum in F32 of F16": Wrong(
        "reduce", "store(y, kind, found)", "store(y, 0, found)", lambda m: ops.sum_all(m.leaf(F16, (70,)))),
    "the second from its end": Wrong(
        "concat", " - end * step", "", lambda m: ops.concat(m.leaf(F32, (5, 3)), m.leaf(F32, (5, 2)), 1)),
    "rows that are not repeated": Wrong(
        "repeat", "d.urem(i1, m1) * a1", "i1 * a1", lambda m: ops.repeat(m.leaf(F32, (5, 3)), 5, 6)),
    "the row of the slot": Wrong(
        "add_id", "b + which * b1", "b + slot * b1",
        lambda m: ops.add_id(m.leaf(F32, (8, 2, 3)), m.leaf(F32, (8, 5)), m.leaf(I32, (2, 3), np.array([4, 3, 2, 2, 1, 0])))),
    "the outermost element doubled": Wrong(
        "pad", "2 * (m - 1) - j", "2 * m - 1 - j", lambda m: ops.pad_reflect_1d(m.leaf(F32, (7, 2)), 3, 4)),
    "nothing comes round": Wrong(
        "pad", "return d.urem(d.i32(j + m), m)", "return j", lambda m: ops.roll(m.leaf(F32, (7, 2)), 3)),
    "no diagonal": Wrong(
        "fill", "kept == 0 or kept == 2", "kept == 0", lambda m: ops.tri(m.leaf(F32, (5, 5)), ops.TriType.LOWER_DIAG)),
    "a sequence of one number": Wrong("fill", "d.mul_rn(step, d.f32(i))", "d.f32(0)", lambda m: ops.arange(1.0, 9.0, 0.5)),
    "weights reversed": Wrong(
        "ssm", "d.ld_f32(by + 4 * k), found", "d.ld_f32(by + 4 * (width - 1 - k)), found",
        lambda m: ops.ssm_conv(m.leaf(F32, (9, 5, 2)), m.leaf(F32, (4, 5)))),
    "the oldest state first": Wrong("ssm", "slot = d.i32(tokens - 1 - t)", "slot = t", lambda m: scan(m, 1, 2)),
    "one decay for all": Wrong("ssm", "(i if decays > 1 else 0)", "0", lambda m: scan(m, 33, 1)),
    "one state for all": Wrong("ssm", "(which * every + row)", "(sequence * every + row)", lambda m: scan(m, 1, 1)),
    "steps that may be negative": Wrong("ssm", "math.log1p(math.exp(step))", "step", lambda m: scan(m, 1, 1)),
    "neighbours share keys": Wrong("gated_delta_net", "d.urem(head, k_heads)", "d.udiv(head, 2)", delta),
    "a gate a head": Wrong("gated_delta_net", "(token * size + i) * 4", "token * size * 4", delta),
    "what is there is not taken away": Wrong("gated_delta_net", " - d.warp_sum(found))", ")", delta),
    "no bonus": Wrong("linear_attention", "d.fma(both, extra[p], state[p])", "state[p]", lambda m: linear(m, "wkv6")),
    "outputs before the change": Wrong("linear_attention", "if bonus == 0:", "if bonus == 1:", lambda m: linear(m, "gla")),
    "a for b": Wrong("linear_attention", "found * d.ld_f32(b + at)", "found * d.ld_f32(a + at)", lambda m: linear(m, "wkv7")),
    "a diagonal of ones": Wrong("solve_tri", "rest / d.ld_f32(at + row * 4)", "rest", triangle),
    "words that begin elsewhere": Wrong("unpack_small", "shift = odd * 8", "shift = 0", product(T.MXFP4), UNPACKING),
    "one scale for two halves": Wrong(
        "unpack_small", "half_of(d.ld_u8(b + first + 1))", "half_of(d.ld_u8(b + first))", product(T.NVFP4), UNPACKING),
    "two bits without their minimum": Wrong("unpack_small", "spread(z, 24), by, -by", "spread(z, 24), by, by", product(T.Q2_0), UNPACKING),
    "seven signs": Wrong(
        "unpack_codebook", "return signs | (((p ^ (p >> 1)) & 1) << 7)", "return signs", product(T.IQ2_XS), UNPACKING),
    "shifted up alone": Wrong("unpack_codebook", "((high >> 12) << 8)", "(((high >> 12) & 7) << 8)", product(T.IQ1_M), UNPACKING),
    "numbers of eight bits": Wrong("unpack_codebook", " | (((high >> bit) & 1) << 8)", "", product(T.IQ3_S), UNPACKING),
    "rows for columns": Wrong("dsv4_hc", "x / (over(x, 4) + eps)\n        done", "x / (over(x, 1) + eps)\n        done", matrices),
    "rounds one too few": Wrong("dsv4_hc", "done = d.i32(1)", "done = d.i32(2)", matrices),
    "a gate that is not squashed": Wrong(
        "dsv4_hc", "if gated != 0:", "if gated == 2:",
        lambda m: ops.dsv4_hc_pre_gated(m.leaf(F32, (150, 3, 2)), m.leaf(F32, (150, 3, 2)), 0.5)),
    "the first four streams alone": Wrong("dsv4_hc", "while first < streams", "while first < 4", mixed),
    "sources for results": Wrong("dsv4_hc", "mixes + (first + k) * c0 + s * c1", "mixes + (first + k) * c1 + s * c0", mixed),
    "products below zero count": Wrong(
        "lightning_indexer", "d.fmaximum(products[4 * i + j], d.f32(0))", "products[4 * i + j]", indexer),
    "half a warp's heads": Wrong("lightning_indexer", "found[i] + d.shuffle_xor_f32(found[i], 16)", "found[i]", indexer),
    "the first tile of heads": Wrong("lightning_indexer", "while h0 < heads", "while h0 < min(heads, 64)", indexer),
    "neighbours share a mask": Wrong("lightning_indexer", "d.urem(stream, masks)", "d.udiv(stream, masks)", indexer),
    "sums that are read before they are there": Wrong(
        "lightning_indexer", "            d.barrier()\n            if me < TILE", "            if me < TILE", indexer),
    "copies that nobody waits for": Wrong("attention_wide", "                    d.cp_async_wait()\n", "", wide),
    "sums of another maximum": Wrong("attention_wide", "result[4 * i + 2 * r + e] * keep", "result[4 * i + 2 * r + e]", wide),
    "the keys of the first stream": Wrong("indexer_tile", "if stream != held:", "if held < 0:", indexer_tiles),
    "queries that are overwritten": Wrong(
        "indexer_tile", "            while h0 < heads:\n                d.barrier()\n", "            while h0 < heads:\n", indexer_tiles),
    "blocks that nobody waits for": Wrong(
        "mma", "d.cp_async_wait()\n            d.barrier()  # blocks", "d.barrier()  # blocks", tiles(T.Q4_0)),
    "columns that nobody waits for": Wrong(
        "mma", "d.cp_async_wait()\n            d.barrier()  # the stage", "d.barrier()  # the stage", tiles(T.Q4_0)),
    "a stage that is written while it is multiplied": Wrong("mma", "d.barrier()  # blocks are there", "#", tiles(T.Q4_0)),
    "the stage before the last one twice": Wrong("mma", "if j0 < end and j0", "if j0 + GROUPS < end and j0", tiles(T.Q4_0)),
    "pieces behind the last row": Wrong("mma_stage", "                    if left > 2 * piece * i:", "                    if i < 9:", tiles(T.Q4_0), ("mma",)),
    "a range without its last piece": Wrong("mma_stage", "elif odd == 0 and (", "elif odd == 2 and (", tiles(T.Q6_K), ("mma",)),
    "one half of each block": Wrong("mma_stage", "return Blocks(stages, size, 1,", "return Blocks(stages, size, 2,", tiles(T.Q6_K), ("mma",)),
    "words where pieces would lie": Wrong("mma_stage", "PIECE - WORD)", "0)", tiles(T.Q6_K), ("mma",)),
    **{
        f"the first half's {what} twice": Wrong("unpack", part, part.replace(f", {step}, ", ", 0, "), tiles(dtype), HELD)
        for dtype, what, part, step in (
            (T.Q5_K, "low bits", "Part(48, 64, 64)", 64), (T.Q6_K, "low bits", "Part(0, 64, 64)", 64),
            (T.Q6_K, "high bits", "Part(128, 32, 32)", 32), (T.Q6_K, "scales", "Part(192, 8, 8)", 8))
    },
    "fifth bits that are not copied": Wrong("unpack", "Part(0, 0, 48)", "Part(0, 0, 32)", tiles(T.Q5_K), HELD),
    "another number for the scales'": Wrong("unpack", "Part(208, 0, 2)", "Part(204, 0, 2)", tiles(T.Q6_K), HELD),
    "the stage that is filled is multiplied": Wrong("mma", "from_left + LEFT + RIGHT - at", "from_left + at", tiles(F16)),
    "NaNs that are kept": Wrong(
        "unary", "r = x if x < high else high", "r = high if x > high else x",
        lambda m: ops.clamp(m.leaf(F32, (4,), np.array([np.nan, 1, 5, -5])), -2.0, 2.0)),
}  # fmt: skip


def computed(gpu: EmulatedGPU, wrong: Wrong) -> None:
    make = Operands(np.random.default_rng(0))
    node = wrong.node(make)
    check(
        Case(node, make.contents, 5e-4 if wrong.through or wrong.module == "mma" else 1e-6, atol=1e-6),
        EmulatedDevice(gpu),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the wrong kernels, each a copy of its family's file."""
    root = tmp_path_factory.mktemp("mutants")
    made = root / PACKAGE
    made.mkdir()
    for number, wrong in enumerate(MUTANTS.values()):
        text = inspect.getsource(importlib.import_module(full_name(wrong.module)))
        assert text.count(wrong.old) == 1, f"{wrong.module}: {wrong.old!r} stands there {text.count(wrong.old)} times"
        (made / f"{wrong.module}_{number}.py").write_text(text.replace(wrong.old, wrong.new))
        for name in wrong.through:
            text = inspect.getsource(importlib.import_module(full_name(name)))
            for other in (*wrong.through, wrong.module):
                text = text.replace(f"from {full_name(other)} import", f"from {PACKAGE}.{other}_{number} import")
                text = text.replace(
                    f"from pyggml.kernels.cuda import {other}\n", f"from {PACKAGE} import {other}_{number} as {other}\n"
                )
            (made / f"{name}_{number}.py").write_text(text)
    return root


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    wrong = MUTANTS[name]
    computed(EmulatedGPU(), wrong)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setattr(cuda_emulator, "_builder", lambda: ThreadPoolExecutor(1))
    with pytest.raises((AssertionError, EmulatorError)):
        computed(WrongGPU((*wrong.through, wrong.module)[0], list(MUTANTS).index(name)), wrong)
