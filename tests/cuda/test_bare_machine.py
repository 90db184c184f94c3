"""`pytest -m gpu` is one command on a machine that has little: it is collected without what tests of other things import, and
looks for a GPU before anything is built, fetched or started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from pyggml.backend.cuda import why_no_cuda

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_test_of_gpus_looks_for_one_first(tmp_path):
    if why_no_cuda() is None:
        pytest.skip("this machine has a GPU, which would run all of them")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "bare_machine",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "-q",
        "tests",
    ]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "rpc", ROOT / "cli", ROOT / "tests" / "support")))
    env = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYGGML_CACHE": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    counts = re.search(r"(\d+) skipped, (\d+) deselected in", said)
    assert counts and int(counts[1]) > 200, said[-3000:]
    reasons = {line.rpartition(": ")[2] for line in said.splitlines() if line.startswith("SKIPPED")}
    assert reasons - {"pip install '.[server]'"} == {str(why_no_cuda())}, (
        reasons
    )  # files that need the server are left out
