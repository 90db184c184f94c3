"""What decoding's kernels do in one pass of their loop, read from machine code of 9.0: few instructions, and all loads of the
passes that are in flight before the first product waits for one."""

import re
from typing import NamedTuple

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import cuda_machine_code
from cuda_kernels import HOPPER

from pyggml.kernels.cuda.spec import Spec


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


TENSOR_CORES = {"Q4_0": (8, 150), "Q8_0": (8, 150), "Q4_K": (8, 182), "Q6_K": (16, 230), "Q2_K": (16, 330)}
"""IMMAs of a step of 32 values and its instructions; before it took 189 and 255."""


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_a_step_on_tensor_cores(name: str) -> None:
    """No integer becomes a float by an instruction of its own, and a multiprocessor holds two blocks of 256 threads, but for types
    with two scales a group (16 IMMAs)."""
    if cuda_machine_code.disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install '.[cuda-test]'")
    made = cuda_machine_code.machine_code(Spec("mma", "integers", (name,)), HOPPER).cubin
    body = min(
        (loop for loop in loops(instructions(cuda_machine_code.sass(made.image))) if "IMMA" in str(loop)), key=len
    )
    each, most = TENSOR_CORES[name]
    steps = sum(word.startswith("IMMA") for word in body) / each
    assert steps in (1, 2) and len(body) / steps <= most, (len(body), steps)
    assert not any(word.startswith("I2F") for word in body) and (each == 16 or made.registers <= 128)


def test_the_kernel_for_more_columns_is_beyond_it() -> None:
    found = pass_of(Spec("matvec", "integers", ("Q4_0", 1)), *DOT)
    assert found.instructions > MOST["Q4_0"][2] and found.passes == 1


def test_a_load_behind_a_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["LDG.E R1", "IDP.4A.S8.S8 R2", "LDG.E R3", *["@P0 IDP.4A.S8.S8 R2"] * 15, "@!P1 BRA `(.L_x_1)"]
    text = ".L_x_1:\n" + "\n".join(f"        /*{16 * i:04x}*/    {word} ;" for i, word in enumerate(words))
    monkeypatch.setattr(cuda_machine_code, "sass", lambda image: text)
    found = pass_of(Spec("unary", "scale"), *DOT)
    assert (found.instructions, found.passes, found.loads, found.early) == (19, 1, 2, 1)
