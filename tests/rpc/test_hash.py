"""FNV-1a: the compiled one against the definition and published values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.kernels.cpu.hash import fnv1a, fnv1a_plain


@pytest.mark.parametrize(
    "data, expected",
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert fnv1a_plain(data) == expected
    assert fnv1a(np.frombuffer(data, np.uint8)) == expected


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=60, max_size=300), st.integers(0, 8))
def test_any_length_and_alignment(data: bytes, start: int) -> None:
    array = np.frombuffer(data, np.uint8)[start:]
    assert fnv1a(array) == fnv1a_plain(data[start:])


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 100, 299, 300])
def test_in_parts(cut: int) -> None:
    data = np.random.default_rng(cut).integers(0, 256, 300, np.uint8)
    whole = fnv1a_plain(data.tobytes())
    assert (
        fnv1a(data[cut:], fnv1a(data[:cut]))
        == fnv1a_plain(data[cut:].tobytes(), fnv1a_plain(data[:cut].tobytes()))
        == whole
    )


def test_one_bit_changes_it() -> None:
    data = np.zeros(1000, np.uint8)
    before = fnv1a(data)
    data[999] = 1
    assert fnv1a(data) != before
