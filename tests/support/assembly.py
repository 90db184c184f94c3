"""Reads assembly (AT&T syntax): the loops, the registers, the calls.

Run as a script it prints the assembly of the kernels named on standard input, at this process's CPU level
(`levels.assembly_at`).
"""

import ast
import re
import sys

STACK = re.compile(r"\(%rsp\)")
FRAME = re.compile(r"\(%r[sb]p\)")
WIDTHS = ("none", "xmm", "ymm", "zmm")
VECTOR = re.compile(r"%[xyz]mm\d")


def instructions(text: str) -> list[str]:
    """Instructions and labels, without comments and directives."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [re.sub(r"\s+", " ", x) for x in lines if x and (not x.startswith(".") or x.endswith(":"))]


def inner_loops(text: str) -> list[list[str]]:
    """The instructions of each loop that has no other loop inside: from a jump's target back to the jump."""
    code = instructions(text)
    labels = {x[:-1]: i for i, x in enumerate(code) if x.endswith(":")}
    ends: dict[int, int] = {}
    for i, x in enumerate(code):
        jump = re.match(r"j\w+ (\.\w+)$", x)
        if jump and labels.get(jump[1], i) < i:
            start = labels[jump[1]]
            ends[start] = max(i, ends.get(start, 0))
    spans = sorted(ends.items())
    inner = [(a, b) for a, b in spans if not any((a, b) != (c, d) and a <= c and d <= b for c, d in spans)]
    return [[x for x in code[a : b + 1] if not x.endswith(":")] for a, b in inner]


def mnemonics(code: list[str]) -> set[str]:
    return {x.split()[0] for x in code}


def widest_register(text: str) -> str:
    used = set(re.findall(r"%([xyz]mm)\d", text))
    return max(used, default="none", key=WIDTHS.index)


def on_stack(code: list[str], text: str = "") -> int:
    """How many vector instructions touch the stack: what did not fit into registers. %rbp points there if the whole
    `text` says so, and is one register more otherwise."""
    stack = FRAME if re.search(r"movq\s+%rsp, %rbp", text) else STACK
    return sum(bool(stack.search(x) and VECTOR.search(x)) for x in code)


def calls(text: str) -> set[str]:
    """Functions called by name that the text does not define."""
    found = set(re.findall(r'(?:call|jmp)q? "?([A-Za-z_][\w.$]*)', "\n".join(instructions(text))))
    found |= set(re.findall(r"movabsq \$([A-Za-z_][\w.$]*),", "\n".join(instructions(text))))
    return {name for name in found if not re.search(rf'^"?{re.escape(name)}"?:', text, re.MULTILINE)}


if __name__ == "__main__":
    from pyggml import jit
    from pyggml.dtypes import GGMLType
    from pyggml.kernels.cpu import attention, matmul
    from pyggml.quick_numba import quicken

    quicken("numba")
    found = {}
    for name, module, factory, args in ast.literal_eval(sys.stdin.read()):
        if module == "tile":
            arguments = (*args, matmul.tile_width(GGMLType[args[0]]))
        else:
            arguments = (*args, attention.WIDTH[jit.level()]) if module == "attention_tile" else args
        signature = jit.CALL if module in ("attention_rows", "dequant") else jit.STEP
        found[name, args] = jit.assembly(jit.Spec(module, factory, arguments, signature))
    print([jit.level(), found])
