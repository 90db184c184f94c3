"""Words that touch parts of memory, and atomics."""

from pyggml import simd as v

U = v.U
np = v.np


def parts():
    """-> kernel(x, count, out): `count` f32, u16, f16 and bf16 lanes from x to rows of 64 bytes."""
    f32 = v.float_loader("F32")[1]
    f16 = v.float_loader("F16")[1]
    bf16 = v.float_loader("BF16")[1]

    def kernel(x, count, out):
        v.store(out, v.load_f32_part(x, count))
        half = x + U(2 * count)
        v.store(out + U(64), v.widen(v.load_u16_part(half, count)))
        v.store(out + U(128), f32(x, count))
        v.store(out + U(192), f16(half, count))
        v.store(out + U(256), bf16(half, count))

    return kernel


def whole():
    """-> kernel(x, out): 16 F16 as floats, 16 BF16, and registers of other widths."""
    f16 = v.float_loader("F16")[0]
    bf16 = v.float_loader("BF16")[0]

    def kernel(x, out):
        v.store(out, f16(x))
        v.store(out + U(64), bf16(x))
        v.store(out + U(128), v.load_u8x16(x))
        v.store(out + U(144), v.load_u8x32(x))
        v.store(out + U(176), v.load_u16x8(x))
        v.store(out + U(192), v.load_f32x8(x))

    return kernel


def whole_at_the_end():
    """-> kernel(x, count, out): what `parts` must not do: reads 16 lanes whatever the count."""

    def kernel(x, count, out):
        v.store(out, v.load_f32(x))

    return kernel


def store_parts():
    """-> kernel(x, count, f32, u16): `count` lanes of x, as f32 and as their u16."""

    def kernel(x, count, f32, u16):
        a = v.load_f32(x)
        v.store_part(f32, a, count)
        v.store_part(u16, v.f32_to_f16(a), count)

    return kernel


def select():
    """-> kernel(x, count, out): lanes below `count`, -1 in the rest."""

    def kernel(x, count, out):
        v.store(out, v.select_part(v.load_f32(x), np.float32(-1.0), count))

    return kernel


def strided():
    """-> kernel(x, stride, count, out): lanes that lie apart, loaded, and stored as far apart at `out` + 64."""
    load = v.strided_loader("f32")

    def kernel(x, stride, count, out):
        a = load(x, stride, count)
        v.store(out, a)
        v.store_strided(out + U(64), a, stride, count)

    return kernel


def gathered():
    """-> kernel(x, out): three f16 that lie 20 bytes apart, in 8 lanes."""
    three = v.f16_gather(3, 20, 8)

    def kernel(x, out):
        v.store(out, three(x))

    return kernel


def exponents():
    """-> kernel(x, out): 8 bytes of E8M0 that lie 17 bytes apart, then each of the first 16 bytes alone."""
    eight = v.e8m0_gather(8, 17, 8)

    def kernel(x, out):
        v.store(out, eight(x))
        for i in range(16):
            v.put_f32(out + U(32 + 4 * i), v.e8m0_at(x + U(i)))

    return kernel


def pairs():
    """-> kernel(x, out): pairs of f16, three of them 20 bytes apart, in 16 lanes."""
    three = v.f16_gather_pairs(3, 20)

    def kernel(x, out):
        v.store(out, three(x))

    return kernel


def column():
    """-> kernel(x, out): 16 f16 of a column whose rows lie 6 bytes apart; 5 of them are there."""

    def kernel(x, out):
        v.store(out, v.f16_column(x, U(6), 4))

    return kernel


def copied():
    """-> kernel(to, source, count)"""

    def kernel(to, source, count):
        v.copy_bytes(to, source, count)

    return kernel


def scattered():
    """-> kernel(x, out): 8 words of 32 bits, 12 bytes apart."""
    scatter = v.scatter_i32(8, 12)
    lower = v.shuffler([*range(8)])

    def kernel(x, out):
        scatter(out, lower(v.load_i32(x)))

    return kernel


def scalars():
    """-> kernel(x, out): each scalar word once, and readers 8 bytes further."""
    i32, f32, f64, i64, u64 = (v.reader(8, k) for k in ("i32", "f32", "f64", "i64", "u64"))

    def kernel(x, out):
        v.prefetch(x + U(1 << 40))
        v.put_u8(out, v.u8_at(x))
        v.put_u16(out + U(1), v.u16_at(x + U(1)))
        v.put_i32(out + U(3), v.i32_at(x + U(3)))
        v.put_f32(out + U(7), v.f32_at(x + U(7)))
        v.put_i64(out + U(11), v.i64_at(x + U(11)))
        v.put_i64(out + U(19), np.int64(v.u64_at(x + U(19))))
        v.put_i32(out + U(27), i32(x))
        v.put_f32(out + U(31), f32(x))
        v.put_i64(out + U(35), i64(x))
        v.put_i64(out + U(43), np.int64(u64(x)))
        v.put_i64(out + U(51), np.int64(f64(x)))

    return kernel


def atomics():
    """-> kernel(word, out): two additions, a store and loads on a 64-bit word."""

    def kernel(word, out):
        v.put_i64(out, v.atomic_add(word, 5))
        v.put_i64(out + U(8), v.atomic_add(word, -2))
        v.put_i64(out + U(16), v.atomic_load(word))
        v.atomic_store(word, 77)
        v.pause()
        v.sched_yield()

    return kernel
