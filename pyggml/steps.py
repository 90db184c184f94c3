"""The records of a CPU plan: what a kernel is told about the step that it runs.

Owns the byte layout alone, shared by the code that lowers a graph and by the kernels; knows no op.
"""

from typing import Final

import numpy as np

MAX_OPERANDS: Final = 7

OPERAND = np.dtype([("data", "<u8"), ("ne", "<i8", 4), ("nb", "<i8", 4)])
assert OPERAND.itemsize == 72

STEP = np.dtype(
    [
        ("kernel", "<u8"),  # address of its machine code
        ("sync", "<i8"),  # 1 = all threads meet behind this step
        ("status", "<u8"),  # address of the plan's STATUS record
        ("index", "<i8"),  # number of the step, for STATUS
        ("params", "<i4", 16),  # the node's op_params
        ("ints", "<i8", 8),  # what the lowering adds; each kernel says what
        ("scratch", "<u8", 2),  # addresses of work memory; each kernel says what for
        ("thread_bytes", "<i8"),  # work memory that each thread has of its own: thread i's part is i times this further
        ("calls", "<u8", 3),  # addresses of further machine code that the kernel calls
        ("pad", "<u8", 6),
        ("dst", OPERAND),
        ("src", OPERAND, MAX_OPERANDS),
    ]
)
assert STEP.itemsize == 832

STATUS = np.dtype([("abort", "<i8"), ("step", "<i8"), ("row", "<i8"), ("limit", "<i8"), ("pad", "<i8", 4)])
assert STATUS.itemsize == 64
"""Shared by all threads of a run. `abort` = 1: stop at the next barrier; 2: `step` met row number `row` of `limit`."""


def offset(field: str) -> int:
    """Byte offset of a field of STEP; "src2.ne" means that of the third source."""
    name, _, sub = field.partition(".")
    base = 0
    if name.startswith("src"):
        base = STEP.fields["src"][1] + int(name[3:]) * OPERAND.itemsize  # type: ignore[index]
    else:
        base = STEP.fields[name][1]  # type: ignore[index]
    return base + (OPERAND.fields[sub][1] if sub else 0)  # type: ignore[index]


TEAM = np.dtype(
    [
        ("run", "<i8"),  # counts runs; a change starts the workers
        ("pad0", "<i8", 7),
        ("arrived", "<i8"),  # threads at the barrier
        ("pad1", "<i8", 7),
        ("passed", "<i8"),  # counts barriers passed
        ("stop", "<i8"),  # decided by the last one to arrive: leave the run here
        ("pad2", "<i8", 6),
        ("steps", "<u8"),  # the plan
        ("count", "<i8"),
        ("n_threads", "<i8"),
        ("status", "<u8"),
        ("quit", "<i8"),
        ("pad3", "<i8", 3),
    ]
)
assert TEAM.itemsize == 256
"""What the threads of an executor share. Each word that is waited on has a cache line of its own."""

SLEEPER = np.dtype([("asleep", "<i8"), ("semaphore", "u1", 56)])
assert SLEEPER.itemsize == 64
"""One for each worker, behind TEAM: whether it sleeps, and the POSIX semaphore that wakes it."""
