"""Bytes in pieces, and what a receiver makes of them."""

import itertools
from collections.abc import Iterator
from typing import Any


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """The pieces between these places, in any order; those beyond the end count as it."""
    ends = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def events(receiver: Any, data: bytes) -> Iterator[Any]:
    """What a connection of pyggml_rpc.connection makes of these bytes. Each event is to be dealt with before the next is asked for."""
    while data:
        space = receiver.space()
        assert space, "an undrained connection"
        count = min(len(space), len(data))
        space[:count] = data[:count]
        receiver.received(count)
        data = data[count:]
        while (event := receiver.next_event()) is not None:
            yield event
