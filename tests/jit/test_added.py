"""Kernels that are made of modules of another package: what they are named by, and that processes which compile find
those modules."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from planting import restart, spec

from pyggml import jit, sources
from pyggml.jit import Spec, added, store

__all__ = ["restart"]  # a fixture

TEXT = """
NUMBERS = {"MADE_UP": 42}


def number(name):
    def kernel(x):
        return x + found

    found = NUMBERS[name]
    return kernel
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call it with files' names and texts: they can be imported from then on."""
    monkeypatch.setattr(added, "_modules", {})
    for name in [name for name in sys.modules if name.startswith("elsewhere")]:
        del sys.modules[name]

    def write(**files: str) -> None:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.syspath_prepend(tmp_path)
        for name, text in files.items():
            (tmp_path / "elsewhere" / f"{name}.py").write_text(text)
        for cache in (sources.text, sources.files, sources._imports, sources._meaning, sources.digest):
            cache.cache_clear()

    yield write
    write()


def test_a_kernel_is_named_by_the_modules_that_were_added_for_it(folder: Callable[..., None]) -> None:
    folder(__init__="", one=TEXT, two="")
    mine, other = Spec("matvec", "rows", ("MADE_UP",)), Spec("matvec", "rows", ("F32",))
    small = Spec("convert", "loader", ("made_up/", 3))
    before = [store.file_name(s) for s in (mine, other, small)]
    jit.made_with("MADE_UP", "elsewhere.one", "elsewhere.two")
    assert added.modules_of(mine) == added.modules_of(small) == ("elsewhere.one", "elsewhere.two")
    after = [store.file_name(s) for s in (mine, other, small)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]
    folder(two="x = 1")
    changed = [store.file_name(s) for s in (mine, other, small)]
    assert [a == b for a, b in zip(after, changed, strict=True)] == [False, True, False]
    folder(two="x = 1  # prose")
    assert [store.file_name(s) for s in (mine, other, small)] == changed


def test_a_process_that_compiles_finds_what_was_added_after_its_start(
    restart: Callable[[], None], folder: Callable[..., None]
) -> None:
    """The first kernel starts one that knows neither the folder nor the module."""
    assert jit.function(spec("number", 7))(1) == 8
    folder(__init__="", one=TEXT, two="import elsewhere.one\nelsewhere.one.NUMBERS['LATER'] = 5\n")
    jit.made_with("LATER", "elsewhere.two")
    assert jit.function(Spec("elsewhere.one", "number", ("LATER",), "i64(i64)"))(1) == 6
    assert jit.function(Spec("elsewhere.one", "number", ("MADE_UP",), "i64(i64)"))(1) == 43
    assert jit.Counts.compiled == 3


def test_without_its_module_the_kernel_cannot_be_made(restart: Callable[[], None], folder: Callable[..., None]) -> None:
    folder(__init__="", one=TEXT, two="import elsewhere.one\nelsewhere.one.NUMBERS['LATER'] = 5\n")
    with pytest.raises(KeyError, match="LATER"):
        jit.function(Spec("elsewhere.one", "number", ("LATER",), "i64(i64)"))
