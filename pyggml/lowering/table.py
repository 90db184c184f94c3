"""The memory of a CPU plan: its head and its steps' records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyggml.steps import MAX_OPERANDS, OPERAND, PLAN, STEP, offset


def aligned_bytes(size: int, clear: bool = True) -> NDArray[np.uint8]:
    """So many bytes at a multiple of 64; zero if `clear`."""
    raw = (np.zeros if clear else np.empty)(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


class StepTable:
    """The memory of a plan: `head`, one PLAN, and `steps`, its STEP records, to be filled in and then `sealed`.

    `words`: their memory as 64-bit words; `operands`: those of (steps, dst and each src, data and 4 ne and 4 nb)."""

    def __init__(self, count: int, clear: bool = True) -> None:
        """`clear` False: all of the steps will be written."""
        memory = aligned_bytes(PLAN.itemsize + count * STEP.itemsize, clear)
        memory[: PLAN.itemsize] = 0
        self.head = memory[: PLAN.itemsize].view(PLAN)
        self.steps = memory[PLAN.itemsize :].view(STEP)
        self.words = words = memory[PLAN.itemsize :].view("<i8").reshape(count, STEP.itemsize // 8)
        first, size = offset("dst") // 8, OPERAND.itemsize // 8
        self.operands = words[:, first : first + (1 + MAX_OPERANDS) * size].reshape(count, 1 + MAX_OPERANDS, size)
        self.address = int(memory.ctypes.data)

    def sealed(self, status: int) -> StepTable:
        """Ready to run: `status` is a pool's, each step has its `parts`, and `sync` where the next one needs it."""
        steps = self.steps
        self.head["steps"], self.head["count"], self.head["status"] = steps.ctypes.data, len(steps), status
        if len(steps):
            assert steps["parts"].min() > 0
            steps["sync"][-1] = 1
            steps["status"] = status
            ends = np.flatnonzero(steps["sync"])
            steps["due"][ends] = np.diff(np.cumsum(steps["parts"])[ends], prepend=0)
        return self
