"""The interpreter that `.ci/run` takes."""

import sys
from pathlib import Path

from fastest_python import fastest, seconds


def stand_in(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_one_that_is_much_faster_is_taken(tmp_path: Path) -> None:
    first, same, fast = (stand_in(tmp_path, f"p{t}", f"echo {t}") for t in ("1.0", "0.95", "0.7"))
    assert fastest([first]) == fastest([first, same]) == fastest([first, first]) == first
    assert fastest([first, same, fast]) == fastest([fast, first]) == fast


def test_one_that_cannot_be_used_is_not(tmp_path: Path) -> None:
    good, old = stand_in(tmp_path, "good", "echo 1.0"), stand_in(tmp_path, "old", "echo too old >&2; exit 1")
    assert fastest([old, str(tmp_path / "none"), good]) == good and fastest([old]) is None


def test_this_one_can_be_used() -> None:
    found = seconds(sys.executable)
    assert found is not None and 0.0 < found < 60.0
