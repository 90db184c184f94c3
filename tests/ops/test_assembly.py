"""The hot kernels are made of the instructions that they are written for, at each CPU level. Must not run them.

The hot loop of a kernel is the innermost loop with most products; that of a tile, whose kernel has long loops that
prepare it, the one with the largest share of products that are added up.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import assembly
import hot_kernels
import pytest
from hot_kernels import CORE, QUANTS, REST
from levels import HERE, TARGETS, Key

from pyggml import jit

LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(
        jit.LEVELS.index(level) > jit.LEVELS.index(jit.level()) or "x86_64" not in jit.llvm.get_default_triple(),
        reason=f"this machine makes no code for {level}, it has {jit.level()}",
    ))
    for level in TARGETS
]  # fmt: skip

INTEGER = {
    "vnni": {"vpdpbusd": "zmm"},
    "v4": {"vpmaddubsw": "zmm", "vpmaddwd": "zmm"},
    "v3": {"vpmaddubsw": "ymm", "vpmaddwd": "ymm"},
    "v2": {"pmaddubsw": "xmm", "pmaddwd": "xmm"},
    "generic": {},
}
FLOAT = {
    "vnni": {r"vfmadd\d+ps": "zmm"},
    "v4": {r"vfmadd\d+ps": "zmm"},
    "v3": {r"vfmadd\d+ps": "ymm"},
    "v2": {"mulps": "xmm", "addps": "xmm"},
    "generic": {"mulps": "xmm", "addps": "xmm"},
}
TOO_NEW = {  # instructions that a level must do without
    "vnni": "",
    "v4": r"vpdpbusd",
    "v3": r"vpdpbusd|.*%zmm|.*%k\d",
    "v2": r"v\w+|.*%[yz]mm",
    "generic": r"v\w+|.*%[yz]mm|pmaddubsw|pshufb|pabs[bwd]|psign|phadd|pmulld|pinsr[bdq]|pmov[sz]x|p?blend|round[ps]s|ptest",
}
PRODUCT = re.compile(r"v?(pdpbusd|pmaddubsw|pmaddwd|pmuludq|fmadd\d+ps|mulps) ")
SUM = re.compile(r"v?(pdpbusd|paddd|addps|fmadd\d+ps) ")
SPILLS = {  # vector instructions of the hot loop that touch the stack, as a share of all
    "matvec": {"vnni": 0.02, "v4": 0.05, "v3": 0.1},
    "tile": {"vnni": 0.0, "v4": 0.08, "v3": 0.35, "v2": 0.25},
    "scores": {"vnni": 0.0, "v4": 0.0, "v3": 0.1},
    "weigh": {"vnni": 0.0, "v4": 0.0},
    "attention_tile": {"vnni": 0.0, "v4": 0.0, "v3": 0.02},
}


def compiled(kernels: tuple[Key, ...]) -> dict[str, dict[Key, str]]:
    """Level -> kernel -> assembly, from one process a level."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(HERE, pool.map(lambda level: hot_kernels.assembly(level, kernels), HERE), strict=True))


@pytest.fixture(scope="module")
def core() -> dict[str, dict[Key, str]]:
    return compiled(CORE)


@pytest.fixture(scope="module")
def rest() -> dict[str, dict[Key, str]]:
    return compiled(REST)


def hot_loops(module: str, text: str) -> list[list[str]]:
    """One, or that of each of a kernel's tiles."""

    def rank(loop: list[str]) -> float:
        products = sum(bool(PRODUCT.match(x)) for x in loop)
        return min(products, sum(bool(SUM.match(x)) for x in loop)) / len(loop) if "tile" in module else products

    loops = assembly.inner_loops(text)
    best = max(map(rank, loops))
    return [loop for loop in loops if rank(loop) > (best / 2 if module == "tile" else best - 1e-9)]


def wrong(key: Key, level: str, text: str) -> list[str]:
    """What is not as it should be."""
    module, args = key
    loops, found = hot_loops(module, text), []
    expected = INTEGER[level] if set(args) & set(QUANTS) else FLOAT[level]
    for name, register in expected.items():
        if not all(any(re.match(rf"{name} .*%{register}", x) for x in loop) for loop in loops):
            found.append(f"no {name} on {register} in the hot loop")
    if (
        {"F16", "f16"} & set(args)
        and level in ("v3", "v4", "vnni")
        and "vcvtph2ps" not in assembly.mnemonics(assembly.instructions(text))
    ):
        found.append("no vcvtph2ps")
    if TOO_NEW[level]:
        code = assembly.instructions(text)
        found += [f"level {level} has no {x!r}" for x in code if re.match(TOO_NEW[level], x)][:3]
    foreign = assembly.calls(text) - {"memset", "memcpy", "memmove"}
    if foreign:
        found.append(f"calls {sorted(foreign)}")
    if module == "tile" and level in ("v4", "vnni") and len(loops) < 3:
        found.append(f"{len(loops)} tiles, there should be one for 4, one for 8 and one for more tokens")
    for loop in loops:
        touching = assembly.on_stack(loop, text)
        share = touching / len(loop)
        if share > SPILLS[module].get(level, 1.0):
            found.append(f"{touching} of {len(loop)} instructions of the hot loop touch the stack")
    return found


def check(texts: dict[Key, str], level: str) -> None:
    problems = {key: wrong(key, level, text) for key, text in texts.items()}
    assert not any(problems.values()), {key: p for key, p in problems.items() if p}


@pytest.mark.parametrize("level", LEVELS)
def test_hot_kernels(level: str, core: dict[str, dict[Key, str]]) -> None:
    check(core[level], level)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_hot_kernels_of_the_other_types(level: str, rest: dict[str, dict[Key, str]]) -> None:
    check(rest[level], level)


def test_another_levels_code_is_noticed(core: dict[str, dict[Key, str]]) -> None:
    """Which shows that each of the expectations can fail."""
    for made_for, texts in core.items():
        for level in core:
            if {made_for, level} in ({"v2", "generic"}, {"v4", "vnni"}) or made_for == level:
                continue
            for key, text in [*texts.items()][:4]:
                assert wrong(key, level, text), (key, made_for, level)
    if "v4" in core:
        for key in CORE:
            if set(key[1]) & set(QUANTS):
                assert wrong(key, "vnni", core["v4"][key]) and wrong(key, "v4", core["vnni"][key])
                assert wrong(key, "v2", core["generic"][key]) and wrong(key, "generic", core["v2"][key])


def test_spills_and_calls_are_noticed() -> None:
    text = """
f:
    xorl %eax, %eax
.LBB0_1:
    vpdpbusd (%rdi), %zmm1, %zmm2
    incq %rax
.LBB0_2:
    vpdpbusd 64(%rsp){1to16}, %zmm1, %zmm2   # 64-byte reload
    vmovups %zmm2, 128(%rsp)
    movq 8(%rsp), %rax
    vpdpbusd (%rsi), %zmm1, %zmm2
    jne .LBB0_2
    jne .LBB0_1
    movabsq $expf, %rax
    callq *%rax
    callq f
    retq
"""
    loops = assembly.inner_loops(text)
    assert len(loops) == 1 and len(loops[0]) == 5 and assembly.on_stack(loops[0]) == 2
    spilled = ["vmovups (%rbp), %zmm1", "movq (%rsp), %rax"]
    assert assembly.on_stack(spilled) == 0 and assembly.on_stack(spilled, "\tmovq\t%rsp, %rbp\n") == 1
    assert assembly.calls(text) == {"expf"}
    assert wrong(("tile", ("Q4_1",)), "vnni", text) == [
        "calls ['expf']",
        "1 tiles, there should be one for 4, one for 8 and one for more tokens",
        "2 of 5 instructions of the hot loop touch the stack",
    ]
