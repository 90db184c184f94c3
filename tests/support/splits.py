"""Bytes in pieces."""

import itertools


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """The pieces between these places, in any order; those beyond the end count as it."""
    ends = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]
