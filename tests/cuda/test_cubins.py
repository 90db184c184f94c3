"""Kernels carried to a machine with another compiler or none; and made by the toolkit of CUDA 12, in an environment of its
own."""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

import cuda_machine_code
import cuda_test_kernels
from cuda_kernels import AMPERE, HOPPER, KERNELS, OLD
from peer_build import PeerMissing, locked
from pyggml_cli import cubins

from pyggml.backend.cuda import compiled
from pyggml.backend.cuda.cubins import make as make_all
from pyggml.cachedir import cache_dir
from pyggml.kernels.cuda.device import build
from pyggml.kernels.cuda.every import every
from pyggml.kernels.cuda.spec import Spec, make

ROOT = Path(__file__).parents[2]
SCALE = Spec("unary", "scale")
ELF = b"\x7fELF"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled.Counts, "compiled", 0)
    monkeypatch.setattr(compiled.Counts, "loaded", 0)
    return tmp_path / "carried"


def test_the_list_of_all_has_what_tests_ask_for_and_each_is_there():
    specs = every()
    assert len(set(specs)) == len(specs) == len({spec.label for spec in specs})
    missing = {expected.spec for expected in KERNELS} - set(specs)
    assert not missing, "pyggml/kernels/cuda/every.py lacks them"
    for spec in (*specs, *cuda_test_kernels.SPECS):
        make(spec)


def test_kernels_made_elsewhere_are_found_under_the_names_of_the_versions_here(folder, monkeypatch, capsys):
    assert cubins.main(["make", str(folder), "--sm", "9.0", "--only", "unary-scale,activations"]) == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "activations-quantize.cubin", "kernels.json", "unary-scale.cubin",
    ]  # fmt: skip
    monkeypatch.setattr(compiled, "_versions", lambda: ("another machine's",))
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled"))
    assert cubins.main(["place", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("2 kernels for compute capability 9.0 placed\n")
    for spec in (SCALE, Spec("activations", "quantize")):
        assert compiled.cubin(spec, HOPPER) == (folder / f"{spec.label}.cubin").read_bytes()
    assert compiled.Counts.compiled == 2 and compiled.Counts.loaded == 2
    counts: list[int] = []
    make_all(folder, (9, 0), [SCALE, Spec("activations", "quantize")], counts.append)
    assert counts == [0, 1], "how many there were before each"


def test_kernels_of_other_sources_are_not_placed(folder, monkeypatch, capsys):
    assert cubins.main(["make", str(folder), "--only", "unary-scale"]) == 0
    monkeypatch.setattr(compiled, "_sources", lambda module: "changed meanwhile")
    assert cubins.main(["place", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"error: {folder}: 1 of 1 kernels, such as unary-scale, were made of other sources than those here\n"
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["place", "{}"], "No such file or directory"),
        (["make", "{}", "--only", "nothing"], "no kernel's name has nothing in it"),
        (["make", "{}", "--also", "no_such_module"], "No module named 'no_such_module'"),
        (["make", "{}", "--also", "json"], "has no attribute 'SPECS'"),
        (
            ["make", "{}", "--sm", "200"],
            "no GPU of compute capability 20.0 is known to the compiler here, which has 7.5, 8.0,",
        ),
        (
            ["make", "{}", "--sm", "8.1"],
            "no GPU of compute capability 8.1 is known to the compiler here, which has 7.5, 8.0,",
        ),
        (["make", "/dev/null/x", "--only", "unary-scale"], "Not a directory"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, arguments, why):
    assert cubins.main([argument.format(folder) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert why in said and said.startswith("error: ") and said.count("\n") == 1
    assert not folder.exists() or "--only" in arguments


def test_a_file_that_has_changed_on_the_way_is_not_placed(folder, tmp_path, monkeypatch, capsys):
    assert cubins.main(["make", str(folder), "--only", "unary-scale,activations"]) == 0
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "other"))
    cut = folder / "unary-scale.cubin"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert cubins.main(["place", str(folder)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {cut} is not the file that was made there: ")
    assert not list((tmp_path / "other").rglob("*.cubin"))


@pytest.mark.parametrize("module", ["no_such", "../../x", "no.such", 5, ""])
def test_a_list_of_kernels_that_are_not_here(folder, capsys, module):
    folder.mkdir()
    kernels = [[module, "scale", [], "0", "0"]]
    (folder / "kernels.json").write_text(json.dumps({"compute capability": [9, 0], "kernels": kernels}))
    assert cubins.main(["place", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "1 of 1 kernels" in said and "were made of other sources than those here" in said and said.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"kernels": []}', '{"compute capability": [9, 0], "kernels": [1]}'])
def test_a_damaged_list_is_one_line(folder, capsys, text):
    folder.mkdir()
    (folder / "kernels.json").write_text(text)
    assert cubins.main(["place", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "is no list of kernels" in said and said.count("\n") == 1


@pytest.mark.parametrize(("text", "cc"), [("90", (9, 0)), ("8.6", (8, 6)), ("120", (12, 0)), ("x", None), ("9", None)])
def test_compute_capabilities(text, cc, capsys):
    if cc is not None:
        assert cubins.capability(text) == cc
        return
    assert cubins.main(["make", "/tmp/x", "--sm", text]) == 2
    assert "must be a compute capability" in capsys.readouterr().err


def test_usage_is_said(capsys):
    for arguments in ([], ["make"], ["carry", "x"], ["make", "x", "y"]):
        assert cubins.main(arguments) == 2
        assert "usage: python -m pyggml_cli.cubins make|place FOLDER" in capsys.readouterr().err
    assert cubins.main(["--help"]) == 0 and "needs no GPU" in capsys.readouterr().out


def test_a_toolkit_that_is_no_package_is_part_of_the_names(monkeypatch, tmp_path):
    """Its files are: an update of CUDA_HOME makes other kernels."""
    found = {}
    monkeypatch.setattr(compiled, "find_library", lambda name: found.get(name))
    monkeypatch.setattr(compiled, "_COMPILER", {"nvvm": ("no-such-package",)})
    names = [compiled._versions.__wrapped__()]
    file = tmp_path / "libnvvm.so"
    for text in ("13.0", "13.10"):
        file.write_text(text)
        found["nvvm"] = str(file)
        names.append(compiled._versions.__wrapped__())
    assert len(set(names)) == 3


# ---- CUDA 12


def pins(extra: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


@pytest.fixture(scope="session")
def cuda12() -> Path:
    """The Python of an environment with pyggml[cuda12], made once and kept in the cache folder."""
    wanted = pins("cuda12")
    name = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    place = cache_dir("peer") / f"cuda12-{name}"
    python = place / "bin" / "python"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent / "cuda12.lock"):
        if not (place / "complete").exists():
            try:
                subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
                subprocess.run(
                    [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted], check=True
                )
            except subprocess.CalledProcessError as error:
                reason = f"an environment with pyggml[cuda12] cannot be made: {error}"
                if os.environ.get("PYGGML_REQUIRE_PEER"):
                    raise PeerMissing(reason) from None
                pytest.skip(reason)
            (place / "complete").touch()
    return python


CHECKED = (
    "unary-scale",
    "rope-rope",
    "matvec-integers-Q4_K-8",
    "mma-integers-Q4_0",
    "mma-floats-F16",
    "attention_tile-attend-128-0-0",
)
MACHINES_OF_CUDA_13 = b"\x41\x08"
"""OS/ABI and its version in the heads of cubins that drivers before 580 refuse."""


@pytest.mark.slow
@pytest.mark.parametrize("cc", [OLD, AMPERE, HOPPER])
def test_the_toolkit_of_cuda_12_makes_the_same_kernels(cuda12, tmp_path, cc):
    """Fit for its drivers, with the instructions that tests of CUDA 13's ask for; its names are no others'."""
    expected = [e for e in KERNELS if e.spec.label in CHECKED and e.oldest <= cc]
    assert len(expected) > 2
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cli")))
    cache = cuda12.parent.parent / "kernels"  # this toolkit takes a minute for them; their names say of which sources
    env = {"PYTHONPATH": path, "PYGGML_CACHE": str(cache), "PATH": os.environ["PATH"]}
    command = [
        cuda12,
        "-m",
        "pyggml_cli.cubins",
        "make",
        tmp_path / "made",
        "--sm",
        f"{cc[0]}.{cc[1]}",
        "--only",
    ]
    done = subprocess.run([*command, ",".join(e.spec.label for e in expected)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = {path.name for path in cache.rglob("*.cubin")}
    assert {e.spec.label for e in expected} <= {name.rpartition("-")[0] for name in kept}
    for e in expected:
        image = (tmp_path / "made" / f"{e.spec.label}.cubin").read_bytes()
        ours = compiled.cubin(e.spec, cc)
        assert image[:4] == ours[:4] == ELF and image[7:9] != ours[7:9] == MACHINES_OF_CUDA_13
        assert f"{e.spec.label}-{compiled.key(e.spec, cc)}.cubin" not in kept
        if cuda_machine_code.disassembler() is not None:
            code = cuda_machine_code.sass(image)
            assert not [one for one in e.has if one not in code], (e.spec.label, e.has)
    assert json.loads((tmp_path / "made" / "kernels.json").read_text())["compute capability"] == list(cc)
    assert cc <= build.NEWEST
