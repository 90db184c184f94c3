"""What a token costs over RPC beyond what it costs locally: short bursts by turns, of this checkout or of several.

usage: python benchmarks/rpc.py FILE.gguf [CHECKOUT ...] [--seconds S]

Each checkout has a process that decodes locally and one with all layers behind its own server on loopback. A burst is 64
tokens; of each the tenth percentile counts, and of all bursts the lower quarter, so that what other programs do in between
matters little. A checkout's own virtual environment is not used: its packages must do with this one's dependencies.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BURST = 64

WORKER = """
import sys, time
try:
    from pyggml.runtime.context import Context
except ImportError:  # an older checkout
    from pyggml.model.context import Context
from pyggml.model.model import Model
from pyggml_rpc.backend import devices_from_spec
path, endpoint, burst = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = Model.load(path, devices=devices_from_spec(endpoint) if endpoint else [])
context = Context(model, n_ctx=512)
context.decode([1, 2, 3, 4])
for _ in range(8):
    context.decode([5])
print("ready", flush=True)
for _ in sys.stdin:
    context.truncate(4)
    seconds = []
    for _ in range(burst):
        start = time.perf_counter()
        context.decode([5])
        seconds.append(time.perf_counter() - start)
    print(sorted(seconds)[burst // 10], flush=True)
"""


@contextlib.contextmanager
def started(checkout: Path, *command: str, quiet: bool = False) -> Iterator["subprocess.Popen[str]"]:
    places = (checkout, checkout / "rpc", checkout / "cli")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    pipe, errors = subprocess.PIPE, subprocess.DEVNULL if quiet else None
    with subprocess.Popen(
        [sys.executable, *command], env=env, cwd="/", stdin=pipe, stdout=pipe, stderr=errors, text=True
    ) as process:
        yield process
        process.terminate()


def line_of(process: "subprocess.Popen[str]", word: str) -> str:
    """The next one with this word."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line
    raise SystemExit(f"{process.args!r} ended with {process.wait()}")


@contextlib.contextmanager
def worker(checkout: Path, model: Path, endpoint: str) -> Iterator["subprocess.Popen[str]"]:
    with started(checkout, "-c", WORKER, str(model), endpoint, str(BURST)) as process:
        line_of(process, "ready")
        yield process


def burst(process: "subprocess.Popen[str]") -> float:
    """Seconds a token."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(line_of(process, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="FILE.gguf")
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="this one where none is named")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    checkouts = [path.resolve() for path in options.checkouts or [HERE]]
    with contextlib.ExitStack() as stack:
        sides: dict[tuple[int, str], subprocess.Popen[str]] = {}
        for number, checkout in enumerate(checkouts):
            server = stack.enter_context(started(checkout, "-m", "pyggml_cli.rpc_server", "-p", "0", quiet=True))
            endpoint = line_of(server, "endpoint").split(":", 1)[1].strip()
            for way, where in (("local", ""), ("rpc", endpoint)):
                sides[number, way] = stack.enter_context(worker(checkout, options.model.resolve(), where))
        measured: dict[tuple[int, str], list[float]] = {side: [] for side in sides}
        until = time.monotonic() + options.seconds
        while time.monotonic() < until or not all(measured.values()):
            for side, process in sides.items():
                measured[side].append(burst(process))
    for number, checkout in enumerate(checkouts):
        both = (sorted(measured[number, way]) for way in ("local", "rpc"))
        local, rpc = (1e6 * times[len(times) // 4] for times in both)
        n = len(measured[number, "rpc"])
        print(
            f"{checkout}: {local:.0f} us a token locally, {rpc:.0f} over RPC: {rpc - local:+.0f}, "
            f"{local / rpc:.3f} of the rate ({n} bursts)"
        )


if __name__ == "__main__":
    main()
