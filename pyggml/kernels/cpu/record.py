"""How a kernel reads its step record. Owns the way from field names to loads; imported by factories only (Numba).

A kernel gets the address of the record and walks rows: row number `r` counts through dimensions 1, 2 and 3 of `dst`.
"""

from pyggml import simd as v
from pyggml.jit import inline
from pyggml.steps import STATUS, STEP, offset

U = v.U
_SIZE = STEP.itemsize
_ADDRESSES = ("kernel", "status", "scratch", "calls")


def field(name, index=0):
    """-> f(step): the 64-bit word `index` of a field of steps.STEP ("dst.data", "src1.ne", "ints" ...)."""
    is_address = name.endswith("data") or name in _ADDRESSES
    return v.reader(offset(name) + 8 * index, "u64" if is_address else "i64")


def thread_room():
    """-> f(step, thread): address of the first work memory's part that a thread has to itself."""
    base, size = field("scratch"), field("thread_bytes")

    @inline
    def address(step, thread):
        return base(step) + U(thread * size(step))

    return address


def param_i32(index):
    """-> f(step): op_params[index] as an integer."""
    return v.reader(offset("params") + 4 * index, "i32")


def param_f32(index):
    """-> f(step): op_params[index] as a float."""
    return v.reader(offset("params") + 4 * index, "f32")


def rows(name):
    """-> f(step): number of rows of an operand."""
    n1, n2, n3 = (field(f"{name}.ne", i) for i in (1, 2, 3))

    @inline
    def count(step):
        return n1(step) * n2(step) * n3(step)

    return count


def fault():
    """-> f(step, number, limit): let the run end, because an operand holds a row number that is not below `limit`.

    The step itself has to return; the threads leave at the next barrier."""
    status, index = field("status"), field("index")
    abort, step_at, row_at, limit_at = (U(STATUS.fields[n][1]) for n in ("abort", "step", "row", "limit"))

    @inline
    def note(step, number, limit):
        at = status(step)
        v.put_i64(at + step_at, index(step))
        v.put_i64(at + row_at, number)
        v.put_i64(at + limit_at, limit)
        v.atomic_store(at + abort, 2)

    return note


def aborted():
    """-> f(step): whether the run is to end. Kernels whose parts may be long, whatever the shapes, ask between stretches
    of some milliseconds and return."""
    status, abort = field("status"), U(STATUS.fields["abort"][1])

    @inline
    def ask(step):
        return v.atomic_load(status(step) + abort) != 0

    return ask


def copier(*ones):
    """-> f(step, to): a record of its own for a kernel that another one calls; the four fields named are set to 1."""
    a, b, c, d = (U(offset(name) + 8 * index) for name, index in ones)

    @inline
    def copy(step, to):
        v.copy_bytes(to, step, _SIZE)
        v.put_i64(to + a, 1)
        v.put_i64(to + b, 1)
        v.put_i64(to + c, 1)
        v.put_i64(to + d, 1)

    return copy


def writer(name, index=0):
    """-> f(record, value): puts a word of such a record."""
    at = U(offset(name) + 8 * index)

    @inline
    def put(record, value):
        v.put_i64(record + at, v.np.int64(value))

    return put


LONG = 4096


@inline
def piece(count, n, nth):
    """Into what lengths rows of n elements are cut: whole rows, or a multiple of 16 where `count` long rows are too few
    for the threads."""
    if count >= nth or n < LONG:
        return n
    return (n + 16 * nth - 1) // (16 * nth) * 16


def element(name):
    """-> f(step, i0, i1, i2, i3): address of an element (of a block, where i0 counts blocks)."""
    data = field(f"{name}.data")
    b0, b1, b2, b3 = (field(f"{name}.nb", i) for i in range(4))

    @inline
    def address(step, i0, i1, i2, i3):
        return data(step) + U(i0 * b0(step) + i1 * b1(step) + i2 * b2(step) + i3 * b3(step))

    return address


def row(name, shape="dst"):
    """-> f(step, r): address of row r of an operand; r counts through the rows of `shape`."""
    n1, n2 = field(f"{shape}.ne", 1), field(f"{shape}.ne", 2)
    at = element(name)

    @inline
    def address(step, r):
        i1 = r % n1(step)
        i2 = r // n1(step)
        return at(step, 0, i1, i2 % n2(step), i2 // n2(step))

    return address


def row_repeated(name, shape="dst"):
    """As `row`, for an operand that is repeated over `shape` in dimensions 1 to 3."""
    n1, n2 = field(f"{shape}.ne", 1), field(f"{shape}.ne", 2)
    m1, m2, m3 = (field(f"{name}.ne", i) for i in (1, 2, 3))
    at = element(name)

    @inline
    def address(step, r):
        i1 = r % n1(step)
        i2 = r // n1(step)
        i3 = i2 // n2(step)
        return at(step, 0, i1 % m1(step), (i2 % n2(step)) % m2(step), i3 % m3(step))

    return address
