"""What a generation took. Owns the clock and the counters."""

import time
from dataclasses import dataclass


def clock() -> float:
    """Seconds by a clock that stands still while kernels are compiled, which happens once on a machine."""
    from pyggml import jit

    return time.perf_counter() - jit.Counts.seconds


@dataclass
class Timings:
    """Seconds by `clock`, and how many tokens they were for; of one sequence, or of several that share it."""

    prompt: float = 0.0
    n_prompt: int = 0
    eval: float = 0.0
    n_eval: int = 0
    sample: float = 0.0
    n_sample: int = 0
