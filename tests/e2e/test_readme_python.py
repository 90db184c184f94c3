"""The README's Python, pasted into files and run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 2 and "Batcher" in BLOCKS[1]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_it_runs(number: int, tmp_path: Path, smollm2: Path) -> None:
    """`smollm2`: the default model is in the cache."""
    file = tmp_path / "pasted.py"
    file.write_text(BLOCKS[number])
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=500, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 20
    if "Batcher" in BLOCKS[number]:
        assert "The capital of France is Paris" in done.stdout
