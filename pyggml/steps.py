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
        ("sync", "<i8"),  # 1 = what comes behind this step waits until it and all steps since the last such are done
        ("status", "<u8"),  # address of the plan's STATUS record
        ("index", "<i8"),  # number of the step, for STATUS
        ("params", "<i4", 16),  # the node's op_params
        ("ints", "<i8", 8),  # what the lowering adds; each kernel says what
        ("scratch", "<u8", 2),  # addresses of work memory; each kernel says what for
        ("thread_bytes", "<i8"),  # work memory that each thread has of its own: thread i's part is i times this further
        ("calls", "<u8", 3),  # addresses of further machine code that the kernel calls
        ("parts", "<i8"),  # into how many parts the step is cut; a thread takes one after the other
        ("due", "<i8"),  # with `sync`: parts of all steps since the last such, this one included
        ("pad", "<u8", 4),
        ("dst", OPERAND),
        ("src", OPERAND, MAX_OPERANDS),
        ("taken", "<i8"),  # parts given out, in all rounds together
        ("done", "<i8"),  # with `sync`: parts done of all those steps, in all rounds together
        ("pad1", "<u8", 6),
    ]
)
assert STEP.itemsize == 896

PLAN = np.dtype([("round", "<i8"), ("steps", "<u8"), ("count", "<i8"), ("status", "<u8"), ("pad", "<u8", 4)])
assert PLAN.itemsize == 64
"""The head of a plan; `round` counts its runs, from 1 on."""

STATUS = np.dtype([("abort", "<i8"), ("step", "<i8"), ("row", "<i8"), ("limit", "<i8"), ("pad", "<i8", 4)])
assert STATUS.itemsize == 64
"""Shared by all threads of a run. `abort` = 1: compute no more; 2: `step` met row number `row` of `limit`."""


def offset(field: str) -> int:
    """Byte offset of a field of STEP; "src2.ne" means that of the third source."""
    name, _, sub = field.partition(".")
    base = 0
    if name.startswith("src"):
        base = STEP.fields["src"][1] + int(name[3:]) * OPERAND.itemsize  # type: ignore[index]
    else:
        base = STEP.fields[name][1]  # type: ignore[index]
    return base + (OPERAND.fields[sub][1] if sub else 0)  # type: ignore[index]


POOL = np.dtype(
    [
        ("run", "<i8"),  # counts runs; a change starts the workers
        ("pad0", "<i8", 7),
        ("plan", "<u8"),  # address of the PLAN to take part in, 0 between runs
        ("quit", "<i8"),
        ("pad1", "<i8", 6),
        ("waiting", "<i8"),  # threads that sleep, or are about to, until parts of others are done
        ("pad2", "<i8", 7),
        ("n_threads", "<i8"),
        ("spins", "<i8"),  # how often to look for what is waited for within a run before sleeping
        ("idle_spins", "<i8"),  # the same between runs, before the time slice is given away
        ("idle_yields", "<i8"),  # how often that, before sleeping
        ("pad3", "<i8", 4),
    ]
)
assert POOL.itemsize == 256
"""What the threads of an executor share. Words that change by themselves have cache lines of their own."""

THREAD = np.dtype([("asleep", "<i8"), ("inside", "<u8"), ("semaphore", "u1", 48)])
assert THREAD.itemsize == 64
"""One for each thread, behind POOL: whether it sleeps, the PLAN that it may be reading (0 = none; the caller's is not
noted), and the POSIX semaphore that wakes it."""
