"""What a micro-batch of a new shape costs before it runs, beside a decoded token: `python benchmarks/miss.py FILE.gguf ...`.

Schedules are made from graphs of all layers and of a few, and tokens decoded, by turns; medians in milliseconds:
  build   the graph, by the model's modules      place    devices, splits, places in the compute buffer
  lower   addresses, steps, work memory          records  the plan in memory, kernels found
The last column holds the sum against a decoded token: below 1, a new shape costs less than a token. With --gpu all layers are
on a GPU that runs no kernel and takes notes, so that Python's time is measured alone: no token takes any then. With --rpc all
layers are on the CPU of a server in this process, to which `lower` writes the request; one more column:
  server  the request read, every tensor and node proved, lowered, the plan in memory: of all layers, whatever the client built
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from few_model import FewModel
from pyggml_rpc.backend import RpcPlan, devices_from_spec
from pyggml_rpc.graphs import Graphs
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml.backend.base import Device
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.scheduler import Schedule
from pyggml.errors import PyggmlError
from pyggml.model.model import Model
from pyggml.runtime.context import Context

PHASES = ("build", "place", "lower", "records")
SHAPES = ((1, 512, 1), (2, 512, 2), (16, 512, 16), (33, 512, 1), (512, 512, 1), (512, 1024, 0))
"""Tokens, cells that they see, outputs."""
TOKENS = 6


def phases(
    few: FewModel, shape: tuple[int, int, int], whole: bool, server: Graphs | None = None
) -> tuple[list[float], int]:
    """Milliseconds of each phase, last that of the server if there is one; how many layers were built."""
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
    if server is not None:
        make_ready(server, schedule)
        times.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in itertools.pairwise(times)], len(layers)


def make_ready(server: Graphs, schedule: Schedule) -> None:
    """What a server does with a schedule's requests that it has not seen before, but compute."""
    client = server._client
    served = client.served(0)
    for split in schedule.splits:
        if isinstance(split.plan, RpcPlan):
            lowered = server._in_turn(served, split.plan.body)
            client.host.give(lowered.objects)
            client.account(served).give(lowered.plan.nbytes)


@contextlib.contextmanager
def server_here(n_threads: int | None) -> Iterator[Listener]:
    with Listener(Server([CPUDevice()], n_threads=n_threads), port=0) as listener:
        yield listener


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


def measure(path: str, n_threads: int | None, rounds: int, gpu: bool = False, listener: Listener | None = None) -> None:
    if listener is not None:
        devices = devices_from_spec(listener.endpoint)
    else:
        devices = [gpu_that_takes_notes()] if gpu else []
    model = Model.load(path, devices=devices, n_gpu_layers=99)
    context = Context(model, n_ctx=1024, n_threads=n_threads)
    few = FewModel(context)
    server = None if listener is None else next(iter(listener._clients.values())).session.graphs
    context.decode([1, 2, 3, 4, 5, 6, 7, 8])
    ways: list[tuple[tuple[int, int, int], bool]] = [(shape, whole) for shape in SHAPES for whole in (True, False)]
    found: dict[tuple[tuple[int, int, int], bool], list[list[float]]] = {way: [] for way in ways}
    built: dict[tuple[tuple[int, int, int], bool], int] = {}
    for shape in SHAPES:  # what has to be compiled is, and which layers are alike is known
        for _ in range(2):
            schedule = few.schedule(*shape)[1]
            schedule.bind()
            if server is not None:
                make_ready(server, schedule)
    tokens = []
    for _ in range(rounds):
        for way in ways:
            times, built[way] = phases(few, *way, server)
            found[way].append(times)
            tokens += [] if gpu else decoded(context)
    token = statistics.median(tokens) if tokens else None
    print(f"{Path(path).name}: {len(few.leafs)} layers" + (f", a token takes {token:.2f} ms" if token else ""))
    columns = (*PHASES, *([] if server is None else ["server"]))
    print(
        f"{'tokens':>7}{'cells':>7}{'outputs':>9}{'layers':>8}"
        + "".join(f"{p:>9}" for p in (*columns, "sum", *(["/ token"] if token else [])))
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
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="all layers on a GPU that takes notes")
    where.add_argument("--rpc", action="store_true", help="all layers on a server in this process")
    args = parser.parse_args()
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error("rounds and threads must be at least 1")
    try:
        for path in args.models:
            with server_here(args.threads) if args.rpc else contextlib.nullcontext() as listener:
                measure(path, args.threads, args.rounds, args.gpu, listener)
    except (PyggmlError, OSError) as error:
        print(f"miss.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
