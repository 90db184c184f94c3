"""What a run of a command took, printed as llama.cpp prints it (common/sampling.cpp, common_perf_print).

Owns the lines.
"""

import time
from dataclasses import dataclass, field

from pyggml.runtime.timings import Timings, clock


def _compile_time() -> tuple[int, float]:
    from pyggml import jit

    return jit.Counts.compiled, jit.Counts.seconds


@dataclass
class RunTimings(Timings):
    """With all of the command: `start` as time.perf_counter has it, `begun` the same by `clock`, `load` seconds, and
    `compiled` what had been compiled by then: kernels, seconds."""

    start: float = field(default_factory=time.perf_counter)
    begun: float = field(default_factory=clock)
    compiled: tuple[int, float] = field(default_factory=_compile_time)
    load: float = 0.0

    def loaded(self) -> None:
        """Now model and context are there."""
        self.load = clock() - self.begun

    def lines(self) -> list[str]:
        """One line each for sampling, loading, compiling where there was any, prompt, generation and all of it."""
        total = 1e3 * (time.perf_counter() - self.start)
        tokens = self.n_prompt + self.n_eval
        n, seconds = (now - before for now, before in zip(_compile_time(), self.compiled, strict=True))
        lines = [
            f"   sampling time = {1e3 * self.sample:10.2f} ms / {self.n_sample:5d} tokens",
            f"       load time = {1e3 * self.load:10.2f} ms",
            f"prompt eval time = {1e3 * self.prompt:10.2f} ms / {self.n_prompt:5d} tokens"
            f" ({_rates(self.prompt, self.n_prompt)})",
            f"       eval time = {1e3 * self.eval:10.2f} ms / {self.n_eval:5d} runs  "
            f" ({_rates(self.eval, self.n_eval)})",
            f"      total time = {total:10.2f} ms / {tokens:5d} tokens",
        ]
        if n:
            lines.insert(
                2, f"    compile time = {1e3 * seconds:10.2f} ms / {n:5d} kernels, which later starts find on disk"
            )
        return lines


def _rates(seconds: float, n: int) -> str:
    each = 1e3 * seconds / n if n else 0.0
    rate = n / seconds if seconds else 0.0
    return f"{each:8.2f} ms per token, {rate:8.2f} tokens per second"
