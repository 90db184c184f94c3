"""The IQ1, IQ2 and IQ3 types as super-blocks: runs of four or eight values come whole out of a table, then signs.

Owns how vector code reads their layouts. Imported by factories only (Numba). Their values are small
whole numbers, made positive by a bias, so that products take them like those of K types. Nothing behind a block is read.
"""

import numpy as np

from pyggml import simd as v
from pyggml.jit import device
from pyggml.kernels.cpu.formats.forms import Functions, SuperBlocks
from pyggml.kernels.cpu.formats.super_blocks import lanes
from pyggml.quants import codebook, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs

U = v.U
BIAS = 64  # above the largest entry, 62
BIAS_OF_EIGHTHS = 16  # above 8 + 1: one and an eighth
_load_8, _load_16, _load_32, _load_64 = v.loader("u8", 8), v.load_u8x16, v.load_u8x32, v.load_u8
_load_words = v.load_u16x8
_in_runs = v.shuffler([i // 8 for i in range(64)])


def _at(layout, field):
    return layout.fields[field][1]


def _splat(elem, n, value):
    return v.constant(elem, [value] * n)


def _loaded(load, at):
    at = U(at)
    return device(lambda addr: load(addr + at))


def _scales(packed, whole, factor, term, count):
    """-> f(addr): d * (whole(packed(addr)) * factor + term); d is an f16 at the start of the block."""
    first, by, plus = v.shuffler([0] * count), _splat("f32", count, factor), _splat("f32", count, term)

    @device
    def scales(addr):
        d = first(v.f16_to_f32(_load_words(addr)))
        return (v.to_f32(whole(packed(addr))) * by() + plus()) * d

    return scales


def _signed(values, signs):
    """-> f(addr): values(addr) with their signs, and the bias."""
    bias = _splat("u8", 64, BIAS)
    return device(lambda addr: v.negate_where(values(addr), signs(addr)) + bias())


def _eighths(values, minus):
    """-> f(addr): eight times values(addr), bias included, and one less in runs where a lane of minus(addr) is 1, else
    one more."""
    one, two = _splat("i32", 8, 1), _splat("i32", 8, 2)
    return device(lambda addr: values(addr) + _in_runs(v.low_u8(one() - minus(addr) * two())))


def _complete_signs(elem):
    """-> f(x): signs of eight runs as bytes, of which seven bits are the lowest of lanes: the number of ones is even."""
    keep, seven = _splat(elem, 8, 127), _splat(elem, 8, 7)
    four, two, one = (_splat(elem, 8, n) for n in (4, 2, 1))

    @device
    def complete(x):
        low = x & keep()
        odd = low ^ (low >> four())
        odd = odd ^ (odd >> two())
        odd = odd ^ (odd >> one())
        return v.low_u8(low | (odd << seven()))

    return complete


def _words(index, shift, mask, to=0):
    """-> f(u16 lanes): i32 lanes (x[index] >> shift & mask) << to."""
    return lanes(index, shift, [mask] * len(index), to)


def _iq2_xxs():
    at, runs, complete = _at(iq2_xxs.LAYOUT, "qs"), v.grid(codebook.grid("IQ2_XXS")), _complete_signs("u32")
    pick, of_group = v.shuffler([*range(4), *range(8, 12)]), v.shuffler([1] * 4 + [3] * 4)
    down = v.constant("u32", [0, 7, 14, 21] * 2)

    def part(i):
        packed = _loaded(_load_16, at + 16 * i)
        values = device(lambda addr: runs(v.widen(pick(packed(addr)))))
        return _signed(values, device(lambda addr: complete(of_group(v.as_words(packed(addr))) >> down())))

    whole = lanes([7 + 8 * i for i in range(8)], [4] * 8, [15] * 8)
    return _blocks(part, _scales(_loaded(_load_64, at), whole, 0.25, 0.125, 8), 32)


def _iq2_xs():
    at, runs, complete = _at(iq2_xs.LAYOUT, "qs"), v.grid(codebook.grid("IQ2_XS")), _complete_signs("i32")
    every = [*range(8)]
    number, signs = _words(every, [0] * 8, 511), _words(every, [9] * 8, 127)

    def part(i):
        packed = _loaded(_load_words, at + 16 * i)
        values = device(lambda addr: runs(number(packed(addr))))
        return _signed(values, device(lambda addr: complete(signs(packed(addr)))))

    nibbles = _loaded(_load_8, _at(iq2_xs.LAYOUT, "scales"))
    return _blocks(part, _scales(nibbles, _nibbles_from(0, 16), 0.25, 0.125, 16), 16)


def _nibbles_from(first, count):
    """-> f(bytes): i32 lanes, first the low half of byte `first`, then its high half."""
    return lanes([first + i // 2 for i in range(count)], [0, 4] * (count // 2), [15] * count)


def _iq2_s():
    layout, runs = iq2_s.LAYOUT, v.grid(codebook.grid("IQ2_S"))
    at, signs_at = _at(layout, "qs"), _at(layout, "signs")
    end = _loaded(_load_16, _at(layout, "qh"))  # and the scales behind

    def part(i):
        low, high = (
            _loaded(_load_8, at + 8 * i),
            lanes([2 * i + j // 4 for j in range(8)], [0, 2, 4, 6] * 2, [3] * 8, to=8),
        )
        values = device(lambda addr: runs(v.widen(low(addr)) | high(end(addr))))
        return _signed(values, _loaded(_load_8, signs_at + 8 * i))

    return _blocks(part, _scales(end, _nibbles_from(8, 16), 0.25, 0.125, 16), 16)


def _iq3_xxs():
    at, signs_at = _at(iq3_xxs.LAYOUT, "qs"), _at(iq3_xxs.LAYOUT, "signs")
    runs, complete = v.grid(codebook.grid("IQ3_XXS")), _complete_signs("u32")
    of_group, down = v.shuffler([0] * 4 + [1] * 4), v.constant("u32", [0, 7, 14, 21] * 2)

    def part(i):
        numbers, packed = _loaded(_load_16, at + 16 * i), _loaded(_load_8, signs_at + 8 * i)
        values = device(lambda addr: runs(v.widen(numbers(addr))))
        return _signed(values, device(lambda addr: complete(of_group(v.as_words(packed(addr))) >> down())))

    whole = lanes([3 + 4 * i for i in range(8)], [4] * 8, [15] * 8)
    return _blocks(part, _scales(_loaded(_load_32, signs_at), whole, 0.5, 0.25, 8), 32)


def _iq3_s():
    layout, runs = iq3_s.LAYOUT, v.grid(codebook.grid("IQ3_S"))
    at, signs_at = _at(layout, "qs"), _at(layout, "signs")
    upper = _loaded(_load_8, _at(layout, "qh"))

    def part(i):
        numbers = _loaded(_load_16, at + 16 * i)
        high = lanes([2 * i + j // 8 for j in range(16)], [*range(8)] * 2, [1] * 16, to=8)
        values = device(lambda addr: runs(v.widen(numbers(addr)) | high(upper(addr))))
        return _signed(values, _loaded(_load_8, signs_at + 8 * i))

    end = _loaded(_load_8, _at(layout, "scales") - 4)
    return _blocks(part, _scales(end, _nibbles_from(4, 8), 2.0, 1.0, 8), 32)


def _entries_in_eighths():
    return v.grid((codebook.grid("IQ1_S") * np.int8(8) + np.int8(BIAS_OF_EIGHTHS)).view(np.uint8))


def _iq1_s():
    at, runs = _at(iq1_s.LAYOUT, "qs"), _entries_in_eighths()
    upper = _loaded(_load_words, _at(iq1_s.LAYOUT, "qh"))

    def part(i):
        low, of_group = _loaded(_load_8, at + 8 * i), [2 * i] * 4 + [2 * i + 1] * 4
        high = _words(of_group, [0, 3, 6, 9] * 2, 7, to=8)
        values = device(lambda addr: runs(v.widen(low(addr)) | high(upper(addr))))
        minus = _words(of_group, [15] * 8, 1)
        return _eighths(values, device(lambda addr: minus(upper(addr))))

    whole = _words([*range(8)], [12] * 8, 7)
    return _blocks(part, _scales(upper, whole, 0.25, 0.125, 8), 32, BIAS_OF_EIGHTHS)


def _iq1_m():
    layout, runs = iq1_m.LAYOUT, _entries_in_eighths()
    at, scales_at = _at(layout, "qs"), U(_at(layout, "scales"))
    upper, end = _loaded(_load_16, _at(layout, "qh")), _loaded(_load_words, _at(layout, "scales") - 8)

    def part(i):
        low, of_two = _loaded(_load_8, at + 8 * i), [4 * i + j // 2 for j in range(8)]
        high, minus = lanes(of_two, [0, 4] * 4, [7] * 8, to=8), lanes(of_two, [3, 7] * 4, [1] * 8)
        values = device(lambda addr: runs(v.widen(low(addr)) | high(upper(addr))))
        return _eighths(values, device(lambda addr: minus(upper(addr))))

    whole = _words([4 + i // 4 for i in range(16)], [0, 3, 6, 9] * 4, 7)
    by, plus, spread = _splat("f32", 16, 0.25), _splat("f32", 16, 0.125), v.splat_like("u16", 16)

    @device
    def scales(addr):
        w = v.u64_at(addr + scales_at)  # four bits of d above twelve of scales, four times
        d = ((w >> U(12)) & U(0xF)) | ((w >> U(24)) & U(0xF0)) | ((w >> U(36)) & U(0xF00)) | ((w >> U(48)) & U(0xF000))
        return (v.to_f32(whole(end(addr))) * by() + plus()) * v.f16_to_f32(spread(v.np.int64(d)))

    return _blocks(part, scales, 16, BIAS_OF_EIGHTHS)


def _blocks(part, scales, run, bias=BIAS):
    return SuperBlocks(tuple(map(part, range(4))), scales, run=run, bias=bias, wide=bias == BIAS)


FUNCTIONS = {
    "IQ1_S": Functions(super_blocks=_iq1_s),
    "IQ1_M": Functions(super_blocks=_iq1_m),
    "IQ2_XXS": Functions(super_blocks=_iq2_xxs),
    "IQ2_XS": Functions(super_blocks=_iq2_xs),
    "IQ2_S": Functions(super_blocks=_iq2_s),
    "IQ3_XXS": Functions(super_blocks=_iq3_xxs),
    "IQ3_S": Functions(super_blocks=_iq3_s),
}
