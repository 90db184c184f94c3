"""Kernels with a plan's signature, for tests/backend/test_thread_pool.py: they count, wait, or leave a word on what went wrong."""

from pyggml import simd as v
from pyggml.kernels.cpu import record

U = v.U
np = v.np


def count():
    """-> kernel: adds 1 to the i64 with the part's number at scratch; where nothing waits in between, another step's part may at
    the same time."""
    at = record.field("scratch")

    def kernel(step, ith, nth, thread):
        v.atomic_add(at(step) + U(8 * ith), 1)

    return kernel


def neighbour():
    """-> kernel: adds the counter of the next part to the own one of a second row, scratch 1."""
    at, to = record.field("scratch"), record.field("scratch", 1)

    def kernel(step, ith, nth, thread):
        mine = to(step) + U(8 * ith)
        v.put_i64(mine, v.i64_at(mine) + v.i64_at(at(step) + U(8 * ((ith + 1) % nth))))

    return kernel


def spin():
    """-> kernel: part number ints[1] spins ints[0] times, then counts so in number 7 of the second row, scratch 1."""
    times, who, at = record.field("ints"), record.field("ints", 1), record.field("scratch", 1)

    def kernel(step, ith, nth, thread):
        if ith == who(step):
            for _ in range(times(step)):
                v.pause()
            v.atomic_add(at(step) + U(56), 1)

    return kernel


def fault():
    """-> kernel: part number ints[1] meets row 7 of 5, as GET_ROWS would."""
    from pyggml.steps import STATUS

    status, index, who = record.field("status"), record.field("index"), record.field("ints", 1)
    step_at, row_at, limit_at = (U(STATUS.fields[n][1]) for n in ("step", "row", "limit"))

    def kernel(step, ith, nth, thread):
        if ith == who(step):
            v.put_i64(status(step) + step_at, index(step))
            v.put_i64(status(step) + row_at, 7)
            v.put_i64(status(step) + limit_at, 5)
            v.atomic_store(status(step), 2)

    return kernel


def hold():
    """-> kernel: part 0 waits until number 6 of the second row, scratch 1, is not 0; every part counts as in `count`."""
    counters, at = record.field("scratch"), record.field("scratch", 1)

    def kernel(step, ith, nth, thread):
        if ith == 0:
            while v.atomic_load(at(step) + U(48)) == 0:
                v.sched_yield()
        v.atomic_add(counters(step) + U(8 * ith), 1)

    return kernel


def who():
    """-> kernel: leaves the number of the thread as number `ith` of the second row, scratch 1."""
    at = record.field("scratch", 1)

    def kernel(step, ith, nth, thread):
        v.put_i64(at(step) + U(8 * ith), thread)

    return kernel
