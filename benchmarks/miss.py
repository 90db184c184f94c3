"""What a micro-batch of a new shape costs before it runs, beside a decoded token: `python benchmarks/miss.py FILE.gguf ...`.

Owns the measurement; must not know how graphs are lowered. Schedules are made from graphs of all layers and of a few, and
tokens decoded, by turns; medians in milliseconds:
  build   the graph, by the model's modules      place    devices, splits, places in the compute buffer
  lower   addresses, steps, work memory          records  the plan in memory, kernels found
The last column holds the sum against a decoded token: below 1, a new shape costs less than a token. With --gpu all layers are
on a GPU that runs no kernel and takes notes, so that Python's time is measured alone: no token takes any then.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from few_model import FewModel

from pyggml.backend.base import Device
from pyggml.errors import PyggmlError
from pyggml.model.model import Model
from pyggml.runtime.context import Context

PHASES = ("build", "place", "lower", "records")
SHAPES = ((1, 512, 1), (2, 512, 2), (16, 512, 16), (33, 512, 1), (512, 512, 1), (512, 1024, 0))
"""Tokens, cells that they see, outputs."""
TOKENS = 6


def phases(few: FewModel, shape: tuple[int, int, int], whole: bool) -> tuple[list[float], int]:
    """Milliseconds of each phase; how many layers were built."""
    pattern = None if whole else few.few.pattern(few.form(few.shape(*shape)))
    layers = range(len(few.leafs)) if pattern is None else pattern.layers
    times = [time.perf_counter()]
    made = few.build(layers, few.shape(*shape))
    if pattern is not None:
        made.graph.runs = pattern.repeats(made.ends, few.few.leafs)
    times.append(time.perf_counter())
    schedule = few.context.scheduler.schedule(made.graph)
    times.append(time.perf_counter())
    schedule.begin()
    times.append(time.perf_counter())
    schedule.bind()
    times.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in itertools.pairwise(times)], len(layers)


def decoded(context: Context) -> list[float]:
    """Milliseconds of tokens one after another; the first ones find the caches as they were left."""
    context.truncate(8)
    times = [time.perf_counter()]
    for _ in range(2 + TOKENS):
        context.decode([5])
        times.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in itertools.pairwise(times)][2:]


def gpu_that_takes_notes() -> Device:
    from cuda_recording import RecordingGPU

    from pyggml.backend.cuda.device import CudaDevice

    return CudaDevice(RecordingGPU())


def measure(path: str, n_threads: int | None, rounds: int, gpu: bool = False) -> None:
    model = Model.load(path, devices=[gpu_that_takes_notes()] if gpu else [], n_gpu_layers=99)
    context = Context(model, n_ctx=1024, n_threads=n_threads)
    few = FewModel(context)
    context.decode([1, 2, 3, 4, 5, 6, 7, 8])
    ways: list[tuple[tuple[int, int, int], bool]] = [(shape, whole) for shape in SHAPES for whole in (True, False)]
    found: dict[tuple[tuple[int, int, int], bool], list[list[float]]] = {way: [] for way in ways}
    built: dict[tuple[tuple[int, int, int], bool], int] = {}
    for shape in SHAPES:  # what has to be compiled is, and which layers are alike is known
        few.schedule(*shape)[1].bind()
        few.schedule(*shape)[1].bind()
    tokens = []
    for _ in range(rounds):
        for way in ways:
            times, built[way] = phases(few, *way)
            found[way].append(times)
            tokens += [] if gpu else decoded(context)
    token = statistics.median(tokens) if tokens else None
    print(f"{Path(path).name}: {len(few.leafs)} layers" + (f", a token takes {token:.2f} ms" if token else ""))
    print(
        f"{'tokens':>7}{'cells':>7}{'outputs':>9}{'layers':>8}"
        + "".join(f"{p:>9}" for p in (*PHASES, "sum", *(["/ token"] if token else [])))
    )
    for way in ways:
        medians = [statistics.median(column) for column in zip(*found[way], strict=True)]
        n_tokens, n_kv, n_outputs = way[0]
        total = statistics.median([sum(times) for times in found[way]])
        print(
            f"{n_tokens:7}{n_kv:7}{n_outputs:9}{built[way]:8}"
            + "".join(f"{t:9.2f}" for t in (*medians, total, *([total / token] if token else [])))
        )
    context.close()
    model.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="FILE.gguf")
    parser.add_argument("-t", "--threads", type=int, help="of the CPU (default: one a core)")
    parser.add_argument("-r", "--rounds", type=int, default=20, help="of all shapes (default %(default)s)")
    parser.add_argument("--gpu", action="store_true", help="all layers on a GPU that takes notes")
    args = parser.parse_args()
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error("rounds and threads must be at least 1")
    try:
        for path in args.models:
            measure(path, args.threads, args.rounds, args.gpu)
    except (PyggmlError, OSError) as error:
        print(f"miss.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
