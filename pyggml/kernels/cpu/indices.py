"""Row numbers that come from tensors: read once, checked in the register that they are used from.

Owns that check, for every op that has an index tensor. All numbers are looked at before anything is written, so that a bad
one leaves the result as it was; and each is checked again where it is used, so that no row is touched whose number was not.
"""

from typing import NamedTuple

from pyggml.jit import inline


class NumberArgs(NamedTuple):
    """wide: 1 = row numbers have 64 bits, 0 = 32."""

    wide: int = 0


def number_reader():
    """-> f(addr, wide): a row number, of 64 bits if `wide`, else of 32; one load."""
    from pyggml import simd as v

    @inline
    def read(addr, wide):
        if wide:
            return v.i64_once(addr)
        return v.np.int64(v.i32_once(addr))

    return read


def chosen():
    """-> f(step, addr, wide, limit): the row number at `addr`, read once; -1, and the run ends, if it is not below
    `limit`."""
    from pyggml.kernels.cpu import record

    read, fault = number_reader(), record.fault()

    @inline
    def choose(step, addr, wide, limit):
        found = read(addr, wide)
        if found >= 0 and found < limit:
            return found
        fault(step, found, limit)
        return -1

    return choose


def numbers_are_bad(is_wide):
    """-> f(step, limit, ith): whether some row number of src1 is not below `limit`; thread 0 notes the first one. `is_wide`:
    the reader of an argument as NumberArgs has it.

    Each thread looks at all of them before it writes anything, so that none begins what another one refuses.
    """
    from pyggml import simd as v
    from pyggml.kernels.cpu import record

    U = v.U
    at = record.element("src1")
    n0, n1, n2 = (record.field("src1.ne", i) for i in range(3))
    stride = record.field("src1.nb")
    read, fault, aborted = number_reader(), record.fault(), record.aborted()

    @inline
    def bad(step, limit, ith):
        wide = is_wide(step) != 0
        for i2 in range(n2(step)):
            for i1 in range(n1(step)):
                number = at(step, 0, i1, i2, 0)
                for i in range(n0(step)):
                    if i & 0xFFFF == 0 and aborted(step):
                        return True
                    found = read(number, wide)
                    if found < 0 or found >= limit:
                        if ith == 0:
                            fault(step, found, limit)
                        return True
                    number += U(stride(step))
        return False

    return bad
