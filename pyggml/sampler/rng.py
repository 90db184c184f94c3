"""The random numbers of the draw: C++'s std::mt19937 and the uniform double that libstdc++ makes of it.

Owns the generator's state.
"""

import math
import random

import numpy as np

_N = 624  # 32-bit words of state


class Mt19937:
    """std::mt19937 seeded with one 32-bit number.

    CPython's `random.Random` is the same generator but seeds it differently, so the state is filled here.
    """

    __slots__ = ("_random",)

    def __init__(self, seed: int) -> None:
        assert 0 <= seed < 1 << 32, seed
        key = [seed]
        for i in range(1, _N):
            key.append((1812433253 * (key[-1] ^ (key[-1] >> 30)) + i) & 0xFFFFFFFF)
        self._random = random.Random()
        self._random.setstate((3, (*key, _N), None))  # position _N: the first draw starts a new block

    def next_u32(self) -> int:
        """The next 32-bit output."""
        return self._random.getrandbits(32)

    def uniform(self) -> float:
        """A double in [0, 1): two outputs, the first one low (libstdc++ bits/random.tcc, generate_canonical).

        53 bits wanted and 32 a call make two calls: (a + b 2^32) / 2^64, rounded once to a double by the sum.
        """
        value = self._random.getrandbits(64) / 18446744073709551616.0  # getrandbits fills the low word first
        return value if value < 1.0 else math.nextafter(1.0, 0.0)

    def uniform_f32(self) -> np.float32:
        """A float in [0, 1): one output, rounded to f32 and scaled (generate_canonical; 24 bits wanted, 32 a call)."""
        value = np.float32(self._random.getrandbits(32)) / np.float32(4294967296)
        return min(value, np.nextafter(np.float32(1), np.float32(0)))

    def clone(self) -> "Mt19937":
        """A generator that goes on exactly as this one would."""
        other = object.__new__(Mt19937)
        other._random = random.Random()
        other._random.setstate(self._random.getstate())
        return other
