"""The kernel cache where it cannot be written, is full, or may hold what others wrote: that costs time, not the run,
and what is found there is not run.
"""

import errno
import os
import re
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planting import numbers, restart, spec, start

from pyggml import cachedir, jit
from pyggml.cachedir import PrivateFolder, cache_dir
from pyggml.errors import CacheError
from pyggml.jit import compiling, store

__all__ = ["restart"]  # a fixture
NOBODY = 65534
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- ours alone


@pytest.fixture
def loose_umask() -> Any:
    before = os.umask(0)
    yield
    os.umask(before)


def test_folders_and_files_are_ours_alone(restart: Callable[[], None], tmp_path: Path, loose_umask: None) -> None:
    jit.ensure(numbers(2))
    folder = store.folder().path
    assert mode(folder) == mode(folder.parent) == mode(tmp_path / "cache") == 0o700
    names = {path.name: mode(path) for path in folder.iterdir()}
    assert set(names.values()) == {0o600} and len(names) == 3 and "lock" in names
    assert mode(cache_dir("models")) == 0o700


FOREIGN: dict[str, Callable[[Path], object]] = {
    "all may write": lambda path: path.chmod(0o777),
    "the group may write": lambda path: path.chmod(0o770),
    "another's": lambda path: os.chown(path, NOBODY, NOBODY),
}


def forged() -> None:
    """A file in the place of "number 0" that holds another kernel's code, under the seal that belongs there."""
    code = compiling.compile_spec(spec("number", 3))
    store.save(spec("number", 0), code)


@as_root
@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_that_others_may_write_is_not_used(
    what: str, restart: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    forged()
    assert jit.function(spec("number", 0))(5) == 8, "the forger's file is taken where nothing is wrong with the folder"
    folder = store.folder().path
    before = sorted(folder.iterdir())
    FOREIGN[what](folder)
    restart()
    assert jit.function(spec("number", 0))(5) == 5 and jit.function(spec("number", 1))(5) == 6
    assert (jit.Counts.compiled, jit.Counts.loaded) == (2, 0) and sorted(folder.iterdir()) == before
    (said,) = warnings(caplog)
    assert str(folder) in said and "for this run only" in said
    assert ("others may write it" in said) == (what != "another's") and ("belongs to user 65534" in said) == (
        what == "another's"
    )


@as_root
@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_others_may_write_is_replaced(what: str, restart: Callable[[], None]) -> None:
    forged()
    (file,) = store.folder().path.glob("*.o")
    FOREIGN[what](file)
    assert jit.function(spec("number", 0))(5) == 5
    assert mode(file) == 0o600 and file.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_links_are_neither_read_nor_written_through(target: str, restart: Callable[[], None], tmp_path: Path) -> None:
    forged()
    (file,) = store.folder().path.glob("*.o")
    precious = tmp_path / "precious"
    if target == "file":
        file.rename(precious)  # it would be taken, were it not for the link
    file.unlink(missing_ok=True)
    file.symlink_to(precious)
    (store.folder().path / "lock").symlink_to(precious)
    before = precious.read_bytes() if target == "file" else None
    assert jit.function(spec("number", 0))(5) == 5
    assert not file.is_symlink() and (precious.read_bytes() if precious.exists() else None) == before


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(restart: Callable[[], None]) -> None:
    store.folder().check()
    os.mkfifo(store.folder().path / store.file_name(spec("number", 0)))
    os.mkfifo(store.folder().path / "lock")
    assert jit.function(spec("number", 0))(5) == 5


def test_what_a_killed_program_left_is_deleted_later(restart: Callable[[], None]) -> None:
    store.folder().check()
    old, young = (store.folder().path / f".new-{n}" for n in (1, 2))
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    jit.ensure(numbers(1))
    assert not old.exists() and young.exists()


# ---- a cache that cannot be used


def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PYGGML_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cachedir.Path, "home", home)
    return "there is no home folder for the cache; set PYGGML_CACHE to a folder"


def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYGGML_CACHE", "/proc/x")
    return "/proc/x/kernels/.*: No such file or directory"


def a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "file"))
    return f"{tmp_path}/file/kernels/.*: Not a directory"


def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PrivateFolder, "_replace", replace)
    return f"{tmp_path}/cache/kernels/.*: No space left on device"


def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    opened = PrivateFolder._file

    def refuse(self: PrivateFolder, folder: int | None, name: str, flags: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(self, folder, name, flags)

    monkeypatch.setattr(PrivateFolder, "_file", refuse)
    return f"{tmp_path}/cache/kernels/.*: Read-only file system"


@pytest.mark.parametrize("broken", [no_home, no_folder, a_file, full, read_only])
def test_it_costs_time_and_not_the_run(
    broken: Callable[[Path, pytest.MonkeyPatch], str],
    restart: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pattern = broken(tmp_path, monkeypatch)
    restart()
    jit.ensure(numbers(2))
    jit.ensure(numbers(4))
    assert [jit.function(s)(5) for s in numbers(4)] == [5, 6, 7, 8] and jit.Counts.compiled == 4
    (said,) = warnings(caplog)
    if broken in (no_home, no_folder, a_file):
        with pytest.raises(CacheError, match="PYGGML_CACHE"):
            cache_dir("kernels")
    assert re.fullmatch(f"kernel cache {pattern}: kernels are compiled for this run only", said), said
    assert not list(tmp_path.rglob(".new-*")), "half a file is left"


NUMBER = """
from pyggml import jit
from pyggml.jit import Spec
print(jit.function(Spec("primitive_kernels.planted", "number", (3,), "i64(i64)"))(5), jit.Counts.compiled)
"""


def test_a_disk_that_takes_no_whole_file(tmp_path: Path) -> None:
    """The system's own refusal; one line, and the result."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, {resource.RLIM_INFINITY}))\n"
    process = start(limit + NUMBER, tmp_path)
    out, err = process.communicate(timeout=300)
    assert (out, process.returncode) == ("8 1\n", 0) and err.count("\n") == 1, err
    assert err.startswith(f"kernel cache {tmp_path}/cache/kernels/") and "File too large" in err
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".o" or path.name.startswith(".new")]
