"""Which code a kernel is named by: that of its own file and of those it imports, no others, and not their prose."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyggml import sources
from pyggml.backend.cuda import compiled
from pyggml.jit import store

SUPPORT = Path(__file__).parents[1] / "support"
COMMON = {"cpu": store.COMMON, "cuda": compiled._COMMON}


def digest(module: str) -> str:
    return sources.digest(f"pyggml.kernels.{module}", COMMON[module.partition(".")[0]])


CACHES = (sources.text, sources._imports, sources.files, sources._meaning, sources.digest, sources._known)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that these tests have in common."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Callable[..., None]]:
    """Call it with a file's path in the package and an edit of its text, by default a line of code at its end: the file
    reads so from then on, to this process as to one that starts anew."""
    read = Path.read_bytes
    monkeypatch.setenv("PYGGML_CACHE", str(folder))

    def change(name: str, edit: Callable[[str], str] = lambda text: text + "_more = 1\n") -> None:
        path = sources.ROOT / name
        before = read(path).decode()
        assert edit(before) != before
        monkeypatch.setattr(Path, "read_bytes", lambda p: edit(before).encode() if p == path else read(p))
        for cache in CACHES:
            cache.cache_clear()

    yield change
    monkeypatch.undo()
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(
            ("cpu.tile", n)
            for n in ("jit/compiling.py", "steps.py", "simd/dot.py", "kernels/cpu/tile.py", "kernels/cpu/record.py")
        ),
        *(
            ("cpu.tile", f"{n}.py")
            for n in ("quants/q4_1", "kernels/cpu/formats/__init__", "kernels/cpu/formats/codebook")
        ),
        *(("cuda.matvec", f"kernels/cuda/{n}.py") for n in ("matvec", "unpack", "experts", "device/build", "spec")),
        ("cuda.rows", "quants/iq4_nl.py"),
    ],
)
def test_a_kernel_depends_on_its_sources(module: str, name: str, changed: Callable[..., None]) -> None:
    before = digest(module)
    changed(name)
    assert digest(module) != before


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("cpu.tile", "kernels/cpu/glu.py"),
        ("cuda.matvec", "kernels/cuda/rope.py"),
        ("cuda.matvec", "quants/q4_0.py"),
        ("cuda.glu", "kernels/cuda/blocks.py"),
    ],
)
def test_a_kernel_depends_on_no_other_kernel(module: str, name: str, changed: Callable[..., None]) -> None:
    before = digest(module)
    changed(name)
    assert digest(module) == before


def without_prose(text: str) -> str:
    """Without comments, the module's docstring first among what the parser drops; laid out in another way."""
    return ast.unparse(ast.parse(text)).replace('"""', '"""Another description. ', 1)


PROSE: dict[str, Callable[[str], str]] = {
    "a comment": lambda text: "# what is this?\n" + text.replace("\n\n\n", "\n\n\n# a part\n", 1),
    "a comment behind code": lambda text: re.sub(
        r"^(from \S+ import \w+)$", r"\1  # it", text, count=1, flags=re.MULTILINE
    ),
    "a module's docstring": lambda text: text.replace('"""', '"""Other words: ', 1),
    "a function's docstring": lambda text: re.sub(
        r'^( *def .*:\n *)"""', r'\1"""Other words: ', text, count=1, flags=re.MULTILINE
    ),
    "a string below a name": lambda text: text + '"""What was said above."""\n',
    "lines": lambda text: text.replace("\n\n\n", "\n\n\n\n\n"),
    "layout": without_prose,
}


@pytest.mark.parametrize("prose", PROSE)
@pytest.mark.parametrize(
    ("module", "name"),
    [("cpu.tile", "simd/memory.py"), ("cpu.tile", "kernels/cpu/tile.py"), ("cuda.matvec", "kernels/cuda/matvec.py")],
)
def test_prose_is_no_part_of_a_kernel(module: str, name: str, prose: str, changed: Callable[..., None]) -> None:
    before = digest(module)
    changed(name, PROSE[prose])
    assert digest(module) == before


CODE: dict[str, Callable[[str], str]] = {
    "a number": lambda text: re.sub(r"(?<=\W)([0-9]+)(?=\W*\n)", lambda m: str(int(m[1]) + 1), text, count=1),
    "a name": lambda text: text.replace("return ", "return _", 1),
    "a string that is used": lambda text: text + '_name = """A description."""\n',
    "a statement less": lambda text: re.sub(r"\n +return [^\n]*(?=\n\n)", "\n    pass", text, count=1),
    "two statements exchanged": lambda text: "_b = 2\n_a = 1\n" + text,
    "indentation": lambda text: text + "if _IMPORT:\n    _c = 1\n    _d = 1\n",
}


@pytest.mark.parametrize("code", CODE)
def test_code_is(code: str, changed: Callable[..., None]) -> None:
    found = {digest("cpu.tile")}
    changed("simd/memory.py", CODE[code])
    found.add(digest("cpu.tile"))
    other = {"two statements exchanged": ("_b = 2\n_a = 1", "_a = 1\n_b = 2"), "indentation": ("    _d", "_d")}
    if code in other:
        changed("simd/memory.py", lambda text: CODE[code](text).replace(*other[code]))
        found.add(digest("cpu.tile"))
    assert len(found) == 2 + (code in other)


def test_a_text_that_is_no_python_counts_as_it_is(changed: Callable[..., None]) -> None:
    found = set()
    for text in ("def", "def # comment"):
        changed("simd/memory.py", lambda _, text=text: text)
        found.add(digest("cpu.tile"))
    assert len(found) == 2


# ---- the digests that are kept


@pytest.fixture
def kept(changed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder's place for digests."""
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    return tmp_path / "sources"


def test_a_second_process_parses_nothing(
    kept: Path, changed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed("simd/memory.py")
    before = digest("cpu.tile")
    changed("simd/memory.py")
    with monkeypatch.context() as patch:
        patch.setattr(sources, "code", lambda _: pytest.fail("a file that is known was parsed"))
        assert digest("cpu.tile") == before
    changed("simd/memory.py", lambda text: text + "_more = 2\n")
    assert digest("cpu.tile") != before, "a change of the same length is seen"


@pytest.mark.parametrize("damage", ["empty", "half", "text", "no folder"])
def test_digests_that_are_damaged_are_made_anew(damage: str, kept: Path, changed: Callable[..., None]) -> None:
    changed("simd/memory.py")
    before = digest("cpu.tile")
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    if damage == "no folder":
        file.unlink()
        file.parent.rmdir()
        file.parent.write_text("in the way")
    else:
        file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2 + 7], "text": b"\xff hello\n" * 99}[damage])
    changed("simd/memory.py")
    assert digest("cpu.tile") == before
    assert damage == "no folder" or sorted(file.read_bytes().split()) == sorted(whole.split())


def test_only_the_newest_digests_are_kept(
    kept: Path, changed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources._Known, "ENTRIES", 3)
    changed("simd/memory.py")
    digest("cpu.tile")
    (file,) = kept.iterdir()
    assert file.read_bytes().count(b"\n") == 3


# ---- which files


def test_a_kernel_from_elsewhere_depends_on_its_file() -> None:
    found = sources.files("primitive_kernels.planted", store.COMMON)
    assert SUPPORT / "primitive_kernels/planted.py" in found and sources.ROOT / "simd/memory.py" in found


def imported(path: Path) -> Iterator[str]:
    """Names of the kernels' and quants' modules that a file imports, by the parser's account."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("pyggml.kernels", "pyggml.quants")) for alias in node.names), path
        if isinstance(node, ast.ImportFrom):
            assert not node.level, path
            if node.module and node.module.startswith(("pyggml.kernels", "pyggml.quants")):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if sources.module_file(whole) else node.module


KERNELS = sources.ROOT / "kernels"
MODULES = [
    ".".join(p.relative_to(KERNELS).with_suffix("").parts).removesuffix(".__init__")
    for place in COMMON for p in sorted((KERNELS / place).rglob("*.py"))
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_no_import_is_missed(module: str) -> None:
    names = COMMON[module.partition(".")[0]]
    known = set(sources.files(f"pyggml.kernels.{module}", names))
    for file in known - set(sources.common(names)):
        for other in imported(file):
            assert sources.module_file(other) in known, f"{file}: {other}"


@pytest.mark.parametrize("place", COMMON)
def test_what_all_kernels_are_made_with_is_there(place: str) -> None:
    for path in sources.common(COMMON[place]):
        assert path.is_file()
