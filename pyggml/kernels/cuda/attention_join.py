"""From sums of values times weights to results: what the warps and blocks that share a cache have found, added up, each with the
maximum that its weights were taken from."""

from __future__ import annotations

import math

WARPS = 4
THREADS = 32 * WARPS
LOG2E = math.log2(math.e)


def capping():
    """-> f(x, softcap): softcap x tanh x, for ex2."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def capped(x, softcap):
        return softcap * d.f32(LOG2E) * (d.f32(1) - d.f32(2) * d.rcp(d.f32(1) + d.ex2(x * d.f32(2 * LOG2E))))

    return capped


def sharing():
    """-> f(most, whole, h, sinks, sink_step): by what a row's sums are multiplied to be its result. most, whole: maximum and sum of
    its weights; h: its head. 0 where it has seen nothing."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def share(most, whole, h, sinks, sink_step):
        less = d.f32(1)
        if sinks != 0:
            sink = d.ld_f32(sinks + h * sink_step) * d.f32(LOG2E)
            higher = d.fmaximum(most, sink)
            lift = d.f32(0) if higher == d.bits_float(-8388608) else higher
            less = d.ex2(most - lift)
            whole = whole * less + d.ex2(sink - lift)
        found = d.f32(0)
        if whole != d.f32(0):
            found = less / whole
        return found

    return share


def finishing(head: int, quantized: bool):
    """-> f(..., row, e, most, whole, x, ...): stores element e of a row from the sum of its weights and of the values times them;
    `quantized`: as bytes too where these are wanted."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.activations import quantizing

    put, share = quantizing() if quantized else None, sharing()

    @d.inline
    def finish(
        y, y0, y1, y2, y3, z, key_head, ratio_k, row, e, most, whole, x, sinks, sink_step, q, scales, step, n_tokens
    ):
        token = d.udiv(row, ratio_k)
        h = key_head * ratio_k + d.urem(row, ratio_k)
        x = x * share(most, whole, h, sinks, sink_step)
        d.st_f32(y + e * y0 + h * y1 + token * y2 + z * y3, x)
        if quantized and q != 0:  # heads are whole groups of 32: a warp has one
            at = (d.i64(z) * n_tokens + token) * step + h * head + e
            put(q + at, scales + (at >> 2), x)

    return finish


def over_blocks(head: int, threads: int, quantized: bool):
    """-> f(base, here, ...): the last of the `splits` blocks that share a cache adds up what they have found of their `here` rows and
    stores the results. base: their first row among those of all blocks; sums: `head` f32 of each row of each block; meta: maximum and
    sum of its weights. All threads call it."""
    from pyggml.kernels.cuda import device as d
    from pyggml.kernels.cuda.tickets import last

    is_last, finish = last(), finishing(head, quantized)

    @d.inline
    def add(
        base, here, sums, meta, splits, ticket, y, y0, y1, y2, y3, z, key_head, ratio_k, row0, sinks, sink_step, made_q,
        made_scales, made_step, n_tokens,
    ):  # fmt: skip
        lowest = d.bits_float(-8388608)  # -inf
        number = d.i64(d.block_y()) * d.blocks_x() + d.block_x()
        if splits > 1 and is_last(ticket + number * 4, splits, d.shared()):
            i = d.i32(d.thread())
            while i < here * head:
                row = d.udiv(i, head)
                e = d.i32(i - row * head)
                first_part = (base + row) * splits
                most = lowest
                p = d.i32(0)
                while p < splits:
                    most = d.fmaximum(most, d.ld_f32(meta + (first_part + p) * 8))
                    p = d.i32(p + 1)
                lift = d.f32(0) if most == lowest else most
                whole, x = d.f32(0), d.f32(0)
                p = d.i32(0)
                while p < splits:
                    t0, s0 = d.ld_f32x2(meta + (first_part + p) * 8)
                    w0 = d.ex2(t0 - lift)
                    whole = d.fma(s0, w0, whole)
                    x = d.fma(d.ld_f32(sums + ((first_part + p) * head + e) * 4), w0, x)
                    p = d.i32(p + 1)
                finish(y, y0, y1, y2, y3, z, key_head, ratio_k, row0 + row, e, most, whole, x, sinks, sink_step, made_q,
                       made_scales, made_step, n_tokens)  # fmt: skip
                i = d.i32(i + threads)

    return add


def joining(head: int):
    """-> f(tops, found, ...): of the WARPS x 16 rows of a block that lie in shared memory (tops: maximum and sum of weights; found:
    `head` sums of values); the last of the blocks that share a cache stores the results. All threads call it."""
    from pyggml.kernels.cuda import device as d

    finish, add = finishing(head, True), over_blocks(head, THREADS, True)

    @d.inline
    def join(
        tops, found, y, y0, y1, y2, y3, z, key_head, ratio_k, rows, row0, sinks, sink_step, sums, meta, splits, ticket, made_q,
        made_scales, made_step, n_tokens,
    ):  # fmt: skip
        lowest = d.bits_float(-8388608)  # -inf
        me = d.i32(d.thread())
        here = d.i32(min(16, rows - row0))
        base = d.i64(d.block_y()) * rows + row0
        i = me
        while i < here * head:
            row = d.udiv(i, head)
            e = d.i32(i - row * head)
            t0, s0 = d.sld_f32x2(tops + row * 8)
            t1, s1 = d.sld_f32x2(tops + (16 + row) * 8)
            t2, s2 = d.sld_f32x2(tops + (32 + row) * 8)
            t3, s3 = d.sld_f32x2(tops + (48 + row) * 8)
            most = d.fmaximum(d.fmaximum(t0, t1), d.fmaximum(t2, t3))
            lift = d.f32(0) if most == lowest else most
            w0, w1, w2, w3 = d.ex2(t0 - lift), d.ex2(t1 - lift), d.ex2(t2 - lift), d.ex2(t3 - lift)
            whole = d.fma(s3, w3, d.fma(s2, w2, d.fma(s1, w1, s0 * w0)))
            at = found + i * 4
            x = d.sld_f32(at) * w0
            x = d.fma(d.sld_f32(at + 64 * head), w1, x)
            x = d.fma(d.sld_f32(at + 128 * head), w2, x)
            x = d.fma(d.sld_f32(at + 192 * head), w3, x)
            if splits > 1:
                part = (base + row) * splits + d.block_z()
                d.st_f32(sums + (part * head + e) * 4, x)
                if e == 0:
                    d.st_f32x2(meta + part * 8, most, whole)
            else:
                finish(y, y0, y1, y2, y3, z, key_head, ratio_k, row0 + row, e, most, whole, x, sinks, sink_step, made_q,
                       made_scales, made_step, n_tokens)  # fmt: skip
            i = d.i32(i + THREADS)
        add(base, here, sums, meta, splits, ticket, y, y0, y1, y2, y3, z, key_head, ratio_k, row0, sinks, sink_step, made_q,
            made_scales, made_step, n_tokens)  # fmt: skip

    return join
