"""Decoding on a machine that does something else too: `python benchmarks/busy.py [FILE.gguf ...]`.

Owns the company that is kept: nothing, one or two processes that compute without end (nice 0 and 10), two servers of ours
on the same cores. In each kind of company ours runs with one thread and with all, llama.cpp with all, in turn, round after
round. The number to read is the last one: ours with all threads / the better of the other two in the same round.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from files import smollm2
from sides import OURS, STOCK, Peer, Side, our_server, stock, stock_env
from vs_llamacpp import weight_bytes

LOOP = """
import time
end = time.monotonic() + float({seconds})
while time.monotonic() < end:
    sum(i * i for i in range(10000))
"""
LIMIT = 900.0
"""Seconds after which company ends by itself."""


@contextlib.contextmanager
def computing(n: int, nice: int) -> Iterator[None]:
    """`n` processes that compute without end."""
    command = ["nice", "-n", str(nice), sys.executable, "-c", LOOP.format(seconds=LIMIT)]
    processes = [subprocess.Popen(command) for _ in range(n)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def sides(peer: Peer, model: Path, threads: int, servers: bool) -> Iterator[list[Side]]:
    """Ours with one thread, ours with all, llama.cpp with all; with `servers` ours computes on two of ours, which have
    one thread or all, and llama.cpp on two of those with all."""
    _, n_vocab = weight_bytes(model)
    with contextlib.ExitStack() as stack:
        few, many = ([stack.enter_context(our_server(n)) for _ in range(2)] if servers else [] for n in (1, threads))
        made = []
        for name, script, n, endpoints in (
            ("ours, 1 thread", OURS, 1, few),
            (f"ours, {threads}", OURS, threads, many),
            (f"llama.cpp, {threads}", STOCK, threads, many),
        ):
            p: dict[str, Any] = {"model": str(model), "n_ctx": 1024, "n_threads": n, "n_vocab": n_vocab}
            p |= {"flash_attn": True, "endpoints": endpoints}
            side = Side(name, script, p, dict(os.environ) if script is OURS else stock_env(peer))
            stack.callback(side.close)
            made.append(side)
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="FILE.gguf")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-n", "--generate", type=int, default=64, help="tokens to decode one by one")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-c", "--company", default="0,1@0,1@10,2@0,2@10,servers", help="N@NICE: so many processes")
    options = parser.parse_args()
    peer = stock()
    for model in options.models or [smollm2(peer, "Q4_1"), smollm2(peer, "F16")]:
        for company in options.company.split(","):
            n, _, nice = company.partition("@")
            servers = n == "servers"
            with (
                sides(peer, model, options.threads, servers) as three,
                computing(int(n) if nice else 0, int(nice or 0)),
            ):
                for side in three:
                    side.seconds("tg", 8)
                rounds = [[options.generate / side.seconds("tg", options.generate) for side in three]
                          for _ in range(options.rounds)]  # fmt: skip
            names = [side.name for side in three]
            rates = ", ".join(
                f"{name} {statistics.median(r):.0f} ({min(r):.0f} .. {max(r):.0f})"
                for name, r in zip(names, zip(*rounds, strict=True), strict=True)
            )
            best = statistics.median(ours / max(one, theirs) for one, ours, theirs in rounds)
            what = "two servers" if servers else f"{n} at nice {nice}" if nice else "quiet"
            print(f"{model.stem[-24:]:24} {what:14} {rates}; all threads / the better one {best:.2f}", flush=True)


if __name__ == "__main__":
    main()
