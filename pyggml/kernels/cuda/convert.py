"""Parts that kernels over single elements share: loads and stores by kind, the place of the n-th element.

Kinds are those of layout.KINDS.
"""


def access():
    """-> load(address, kind), store(address, kind, value): F32, F16 or BF16 as f32."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def load(at, kind):
        if kind == 0:
            return d.ld_f32(at)
        if kind == 1:
            return d.ld_f16(at)
        return d.ld_bf16(at)

    @d.inline
    def store(at, kind, x):
        if kind == 0:
            d.st_f32(at, x)
        elif kind == 1:
            d.st_f16(at, x)
        else:
            d.st_bf16(at, x)

    return load, store


def moves():
    """-> move(to, at, unit): so many bytes, 1, 2, 4 or 8."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def move(to, at, unit):
        if unit == 4:
            d.st_i32(to, d.ld_i32(at))
        elif unit == 8:
            d.st_i64(to, d.ld_i64(at))
        elif unit == 2:
            d.st_u16(to, d.ld_u16(at))
        else:
            d.st_u8(to, d.ld_u8(at))

    return move


def zeros():
    """-> clear(to, unit): so many bytes become 0."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def clear(to, unit):
        if unit == 4:
            d.st_i32(to, 0)
        elif unit == 8:
            d.st_i64(to, 0)
        elif unit == 2:
            d.st_u16(to, 0)
        else:
            d.st_u8(to, 0)

    return clear


def places():
    """-> place(i, n0, n1, n2): the four coordinates of element i, dimension 0 running fastest."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def place(i, n0, n1, n2):
        rest = d.udiv(i, n0)
        i0 = d.i32(i - rest * n0)
        above = d.udiv(rest, n1)
        i1 = d.i32(rest - above * n1)
        i3 = d.udiv(above, n2)
        return i0, i1, d.i32(above - i3 * n2), i3

    return place
