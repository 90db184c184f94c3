"""What decoding's kernels do in one pass of their loop, read from machine code of 9.0: few instructions, and all loads of the
passes that are in flight before the first product waits for one. And what prompts' kernels do in a stage of theirs."""

import re
from typing import NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import cuda_machine_code
from cuda_kernels import HOPPER

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.mma_stage import areas
from pyggml.kernels.cuda.spec import Spec
from pyggml.kernels.cuda.unpack import UNPACKED


class Pass(NamedTuple):
    """registers of the kernel; of a pass (one group of two rows) its instructions; passes in a loop's body; loads of the body, and
    those of them before the first product."""

    registers: int
    instructions: float
    passes: int
    loads: int
    early: int


def instructions(text: str) -> list[str]:
    """Labels end in a colon."""
    found = []
    for line in text.splitlines():
        label = re.match(r"(\.L\w+):", line)
        if label:
            found.append(label[0])
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            word = re.sub(r"/\*[0-9a-f]+\*/", "", line).strip()
            found.append(re.sub(r"^@!?U?P\w+ ", "", word))
    return found


def loops(lines: list[str]) -> list[list[str]]:
    """The bodies of backward branches."""
    places = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    found = []
    for i, line in enumerate(lines):
        target = re.search(r"^BRA\b.*`\((\.L\w+)\)", line)
        if target and places.get(target[1], i) < i:
            found.append([word for word in lines[places[target[1]] : i + 1] if not word.endswith(":")])
    return found


def pass_of(spec: Spec, product: str, each: int) -> Pass:
    """Of the first loop with such products, of which a pass has `each`."""
    if cuda_machine_code.disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install '.[cuda-test]'")
    made = cuda_machine_code.machine_code(spec, HOPPER).cubin
    body = next(
        loop
        for loop in loops(instructions(cuda_machine_code.sass(made.image)))
        if sum(word.startswith(product) for word in loop) >= each and not any("SHFL" in word for word in loop)
    )
    n = sum(word.startswith(product) for word in body) // each
    first = next(i for i, word in enumerate(body) if word.startswith(product))
    early, loads = (sum(word.startswith("LDG") for word in part) for part in (body[:first], body))
    return Pass(made.registers, len(body) / n, n, loads, early)


DOT, FMA = ("IDP.4A", 16), ("FFMA", 16)
MOST = {
    # registers, instructions of a pass, passes in flight; one pass of the kernels before took 125, 100, 198, 388 and 46
    "Q4_0": (DOT, 80, 100, 2), "Q8_0": (DOT, 96, 90, 2), "Q4_K": (DOT, 104, 135, 2), "Q6_K": (("IDP.4A", 20), 104, 300, 1),
    "MXFP4": (DOT, 96, 225, 2), "F16": (FMA, 64, 44, 2),
}  # fmt: skip


@pytest.mark.parametrize("factory", ["products", "glu"])
@pytest.mark.parametrize("name", MOST)
def test_a_pass(name: str, factory: str) -> None:
    (product, each), registers, most, passes = MOST[name]
    found = pass_of(Spec("matvec_one", factory, (name,)), product, each)
    assert found.registers <= registers and found.instructions <= most and found.passes == passes, found
    assert found.loads == found.early, f"{found}: products wait before everything is asked for"


class Stage(NamedTuple):
    """registers of the kernel, bytes that it spills; instructions of 128 values of k for 128 x 64 results, and of 32 of them; loads from
    global memory into registers, and asynchronous copies."""

    registers: int
    spilled: int
    instructions: float
    step: float
    loads: int
    copies: int


def stage_of(name: str, cc: tuple[int, int], each: int) -> Stage:
    """`each`: IMMAs of 32 values."""
    if cuda_machine_code.disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install '.[cuda-test]'")
    made = cuda_machine_code.machine_code(Spec("mma", "integers", (name,)), cc).cubin
    found = sorted(
        (loop for loop in loops(instructions(cuda_machine_code.sass(made.image))) if "IMMA" in str(loop)), key=len
    )
    inner, whole = found[0], found[-1]
    steps = sum(word.startswith("IMMA") for word in inner) / each
    loads, copies = (sum(word.startswith(start) for word in whole) for start in ("LDG.", "LDGSTS"))
    assert not any(word.startswith("I2F") for word in inner)
    total = len(whole) + (4 / steps - 1) * len(inner)
    return Stage(made.registers, made.spilled_bytes, total, len(inner) / steps, loads, copies)


TENSOR_CORES = {
    # IMMAs of 32 values; instructions of those and of a stage; loads. Before blocks were copied: a stage 855, 773, 957, 1289, 1509, 1266, 858
    "Q4_0": (8, 125, 700, 0), "Q8_0": (8, 125, 650, 0), "Q4_K": (8, 158, 825, 0), "Q6_K": (16, 202, 1180, 0),
    "Q2_K": (16, 275, 1310, 2), "IQ2_XS": (16, 202, 1165, 8), "Q5_K": (8, 158, 870, 0),
}  # fmt: skip
"""Loads: IQ2_XS looks words up in a table, Q2_K adds up columns' bytes."""


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_a_stage_on_tensor_cores(name: str) -> None:
    """No integer becomes a float by an instruction of its own, blocks come by asynchronous copies, and a multiprocessor holds two blocks of 256
    threads."""
    each, step, stage, loads = TENSOR_CORES[name]
    found = stage_of(name, HOPPER, each)
    assert found.registers <= 128 and not found.spilled, found
    assert found.step <= step and found.instructions <= stage, found
    assert found.loads == loads and found.copies >= 4, found


def test_a_stage_is_the_same_where_shared_memory_is_scarcest() -> None:
    found = stage_of("Q8_0", (8, 9), 8)
    assert found.registers <= 128 and not found.spilled and found.instructions <= 650 and found.loads == 0, found


SHARED = {(8, 0): 164, (8, 6): 100, (8, 9): 100, (9, 0): 228, (10, 0): 228, (12, 0): 100}
"""KiB of a multiprocessor (CUDA C++ Programming Guide: technical specifications), of which a block takes 1 besides its own."""


@pytest.mark.parametrize("dtype", UNPACKED, ids=lambda dtype: dtype.name)
def test_two_blocks_have_room_in_shared_memory(dtype: GGMLType) -> None:
    for whole in SHARED.values():
        assert 2 * (areas(dtype).size + 1024) <= whole * 1024


def test_the_kernel_for_more_columns_is_beyond_it() -> None:
    found = pass_of(Spec("matvec", "integers", ("Q4_0", 1)), *DOT)
    assert found.instructions > MOST["Q4_0"][2] and found.passes == 1


def test_a_load_behind_a_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["LDG.E R1", "IDP.4A.S8.S8 R2", "LDG.E R3", *["@P0 IDP.4A.S8.S8 R2"] * 15, "@!P1 BRA `(.L_x_1)"]
    text = ".L_x_1:\n" + "\n".join(f"        /*{16 * i:04x}*/    {word} ;" for i, word in enumerate(words))
    monkeypatch.setattr(cuda_machine_code, "sass", lambda image: text)
    found = pass_of(Spec("unary", "scale"), *DOT)
    assert (found.instructions, found.passes, found.loads, found.early) == (19, 1, 2, 1)
