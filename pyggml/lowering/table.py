"""The memory of a CPU plan: its head and its steps' records."""

from __future__ import annotations

from struct import Struct

import numpy as np
from numpy.typing import NDArray

from pyggml.steps import MAX_OPERANDS, OPERAND, PLAN, STEP, offset

STEP_HEAD = Struct("<QqQq64s8q2Qq3Qqq")
"""A step's fields from `kernel` to `due`."""
assert STEP_HEAD.size == offset("pad")

STEP_OPERAND = Struct("<Q8q")
"""`data`, 4 `ne`, 4 `nb` of dst or a src."""
assert STEP_OPERAND.size == OPERAND.itemsize

FIRST_OPERAND = offset("dst")


def aligned_bytes(size: int, clear: bool = True) -> NDArray[np.uint8]:
    """So many bytes at a multiple of 64; zero if `clear`."""
    raw = (np.zeros if clear else np.empty)(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


class StepTable:
    """The memory of a plan: `head`, one PLAN, and `steps`, its STEP records, to be filled in and then `sealed`.

    `bytes`: the steps' memory; `words`: the same as 64-bit words; `operands`: those of (steps, dst and each src, data and 4 ne
    and 4 nb)."""

    def __init__(self, count: int, clear: bool = True) -> None:
        """`clear` False: all of the steps will be written."""
        memory = aligned_bytes(PLAN.itemsize + count * STEP.itemsize, clear)
        memory[: PLAN.itemsize] = 0
        self.head = memory[: PLAN.itemsize].view(PLAN)
        self.bytes = memory[PLAN.itemsize :]
        self.steps = memory[PLAN.itemsize :].view(STEP)
        self.words = words = memory[PLAN.itemsize :].view("<i8").reshape(count, STEP.itemsize // 8)
        first, size = offset("dst") // 8, OPERAND.itemsize // 8
        self.operands = words[:, first : first + (1 + MAX_OPERANDS) * size].reshape(count, 1 + MAX_OPERANDS, size)
        self.address = int(memory.ctypes.data)

    def headed(self, status: int) -> StepTable:
        """Ready to run: `status` is a pool's, and the steps lack nothing."""
        self.head[0] = 0, self.address + PLAN.itemsize, len(self.steps), status, (0, 0, 0, 0)
        return self

    def sealed(self, status: int) -> StepTable:
        """Ready to run: each step has its `parts`, and `sync` where the next one needs it; what follows of that is filled in."""
        steps = self.steps
        if len(steps):
            assert steps["parts"].min() > 0
            steps["sync"][-1] = 1
            steps["status"] = status
            ends = np.flatnonzero(steps["sync"])
            steps["due"][ends] = np.diff(np.cumsum(steps["parts"])[ends], prepend=0)
        return self.headed(status)
