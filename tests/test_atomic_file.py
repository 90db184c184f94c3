"""Files that appear whole: what stands at their place before, and what fails on the way."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyggml.atomic_file import ForeignFileError, atomic_file, refuse_another


def any_file(head: bytes) -> bool:
    return True


def write(path: Path, data: bytes) -> None:
    with atomic_file(path, "thing", any_file) as (file, finish):
        file.write(data)
        finish()


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    with pytest.raises(KeyError), atomic_file(path, "thing", any_file) as (file, _):
        file.write(b"new")
        raise KeyError
    with atomic_file(path, "thing", any_file) as (file, _):
        file.write(b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    write(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_writers_at_once_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path, "thing", any_file) as (first, name_first):
        first.write(b"first")
        with atomic_file(path, "thing", any_file) as (second, name_second):
            second.write(b"and the second")
            name_second()
        assert path.read_bytes() == b"and the second"
        name_first()
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


def test_a_name_may_be_as_long_as_file_systems_take(tmp_path: Path) -> None:
    for name in ("n" * 255, "\u00e9" * 127):
        write(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link", b"a")
    write(tmp_path / "link", b"b")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"b"


def test_what_is_no_file_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"through it")
    reader.join(60)
    assert found == [b"through it"] and stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_errors_name_the_file_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name, kind in (("folder", IsADirectoryError), ("none/file", FileNotFoundError)):
        with pytest.raises(kind) as caught, atomic_file(name, "thing", any_file):
            raise AssertionError("not reached")
        assert caught.value.filename == name


FULL_DISK = """
import os, resource, sys
from pathlib import Path
from pyggml.atomic_file import atomic_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    with atomic_file(Path("file"), "thing", bool) as (file, finish):
        file.write(bytes(int(sys.argv[1])))
        finish()
except OSError as error:
    print(error.strerror, error.filename, Path("file").read_bytes(), os.listdir("."))
"""
"""In a process none of whose files may grow beyond 4 KiB: whoever runs the tests may write to one."""


@pytest.mark.parametrize("size", [5000, 1 << 20])  # noticed at the end, and on the way
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"old")
    command = [sys.executable, "-c", FULL_DISK, str(size)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "File too large file b'old' ['file']\n", done.stderr


def test_only_a_file_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def put(data: bytes) -> None:
        with atomic_file(path, "list", lambda head: head.startswith(b"[")) as (file, finish):
            file.write(data)
            finish()

    put(b"[1]")
    put(b"[2]")
    path.write_bytes(b"")
    put(b"[3]")
    path.write_bytes(b"GGUF and much more")
    with pytest.raises(ForeignFileError, match="file: already exists and is not a list; it is not replaced"):
        put(b"[4]")
    assert path.read_bytes() == b"GGUF and much more" and os.listdir(tmp_path) == ["file"]
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(ForeignFileError, match="link: already exists"):
        refuse_another(tmp_path / "link", "list", lambda head: head.startswith(b"["))
    refuse_another(tmp_path / "none", "list", lambda head: False)
    refuse_another(tmp_path, "list", lambda head: False)  # a folder is another error
