"""What commands set before they import anything large."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COUNT = """
import os, sys
from pyggml_cli import start
if sys.argv[1] == "set":
    start.no_blas_threads()
import numpy
print(len(os.listdir("/proc/self/task")), os.environ.get("OPENBLAS_NUM_THREADS"))
"""


def threads(how: str, **env: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], env=clean | env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not say which threads a process has")
def test_commands_start_no_threads_for_matrices() -> None:
    assert threads("set") == ["1", "1"]
    assert threads("set", OPENBLAS_NUM_THREADS="2")[1] == "2", "what a user has set stays"
    built_with = np.show_config("dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" in built_with and len(os.sched_getaffinity(0)) > 1:
        assert int(threads("as it is")[0]) > 1, "NumPy no longer starts threads: no_blas_threads is not needed"
