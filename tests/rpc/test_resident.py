"""What a server's process really takes: under clients that want everything, and after they have left. `python
tests/soak.py memory` goes on for longer.
"""

import ctypes
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from heavy_clients import MIB, resident_of, run

LIMIT = 300 * MIB
BESIDE = 200 * MIB  # what is not counted: kernels, the compiler that links them, Python's own

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def process() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """(the server's process, its endpoint)"""
    command = [sys.executable, "-m", "pyggml_cli.rpc_server", "-p", "0", "-t", "2", "-m", str(LIMIT // MIB)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "endpoint" in line)
        next(line for line in server.stdout if line.startswith("  CPU"))
        yield server, line.split(":", 1)[1].strip()
        server.terminate()
        assert server.wait(20) == 0


def test_heavy_clients(process: tuple["subprocess.Popen[str]", str]) -> None:
    server, endpoint = process
    tally = run(endpoint, server.pid, LIMIT, seconds=6, seed=1)
    assert len(tally.done) >= 6, tally
    assert tally.most > tally.before + LIMIT // 4, ("they were not heavy", tally)
    assert tally.most < tally.before + LIMIT + BESIDE // 2, tally
    end = time.monotonic() + 20
    while (left := resident_of(server.pid)) > tally.before + BESIDE // 2:
        assert time.monotonic() < end, (left >> 20, tally)
        time.sleep(0.1)


CHURN = """
import sys, threading
from pyggml_rpc.memory import resident_bytes, return_early, trim
if sys.argv[1] == "early":
    return_early()
b"x" * (24 << 20)  # from its end on, glibc maps no smaller ones, and keeps twice as much at an arena's end
before, meet = resident_bytes(), threading.Barrier(8)
def work():
    some = [b"x" * 500_000 for _ in range(40)]  # 20 MB in each thread at the same time
    meet.wait()
    some.clear()
    meet.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
trim()
print((resident_bytes() - before) >> 20)
"""


@pytest.mark.parametrize("how", ["early", "late"])
def test_what_threads_have_freed_goes_back(how: str) -> None:
    """glibc keeps the ends of threads' arenas, which is what `late` shows."""
    if how == "late" and not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library")
    done = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, timeout=60, check=True)
    assert (int(done.stdout) < 16) == (how == "early"), done.stdout
