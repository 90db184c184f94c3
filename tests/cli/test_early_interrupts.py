"""Ctrl-C while a command is still starting: however early it comes, it ends the process without Python's words. It is pressed at chosen
imports, which a `sitecustomize` of the process counts from where the first of our modules can have an influence, and at chosen times."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from text_model import write_text_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
SCRIPTS: dict[str, str] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "scripts"
]
FORMS = {
    **{name: ["-c", "import sys; from {} import {} as main; sys.exit(main())".format(*entry.split(":"))]
       for name, entry in SCRIPTS.items()},
    **{f"-m pyggml_cli.{entry.split(':')[1]}": ["-m", f"pyggml_cli.{entry.split(':')[1]}"] for entry in SCRIPTS.values()},
    "-m pyggml": ["-m", "pyggml"],
}  # fmt: skip
SPY = """
import os, signal, sys
seen, begun, at = 0, False, os.environ["PRESS_AT"]
def spy(event, args):
    global begun, seen
    if event != "import":
        return
    if not begun:
        started = hasattr(sys.modules.get("pyggml_cli.start"), "plain_ctrl_c")  # and called before the next import
        if not started and (args[0] != "importlib.metadata" or os.environ["FORM"] != "-m pyggml"):
            return
        begun = True
        if at == "later":
            os.write(1, b"begun\\n")
    seen += 1
    if at in (str(seen), args[0]):
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(spy)
"""
MUTANTS = {
    "Python's own handler": "import signal; signal.SIG_DFL = signal.default_int_handler",
    "imports are torn": "import sys; sys.getprofile = lambda: 1",
}


class Pressed:
    """Starts a command that presses Ctrl-C at its n-th import, or at that of a module."""

    def __init__(self, folder: Path, mutant: str = "") -> None:
        (folder / "sitecustomize.py").write_text(SPY + MUTANTS.get(mutant, ""))
        self.path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))

    def command(self, form: str, *args: object, at: object) -> dict[str, Any]:
        env = {**os.environ, "PYTHONPATH": self.path, "PRESS_AT": str(at), "FORM": form}
        return {
            "args": [sys.executable, *FORMS[form], *map(str, args)],
            "env": env,
            "text": True,
            "stdin": subprocess.DEVNULL,
        }

    def __call__(self, form: str, *args: object, at: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(**self.command(form, *args, at=at), capture_output=True, timeout=120)


def check(done: "subprocess.CompletedProcess[str]") -> int:
    """The exit code, that of a process that was interrupted, unless it had done all before."""
    if done.returncode == -signal.SIGINT:
        assert (done.stdout, done.stderr) == ("", "")
    elif done.returncode == 130:
        assert done.stderr == "\ninterrupted\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")
    return done.returncode


@pytest.mark.parametrize("form", FORMS)
def test_while_a_command_is_imported(tmp_path: Path, form: str, mutant: str = "") -> None:
    pressed = Pressed(tmp_path, mutant)
    codes = [check(pressed(form, "--version", at=at)) for at in (1, 4, 12)]
    assert codes == 3 * [-signal.SIGINT]


def test_while_all_that_is_needed_is_imported(tmp_path: Path) -> None:
    pressed, path = Pressed(tmp_path), write_text_model(tmp_path / "m.gguf")
    flags = ("-m", path, "-p", "a", "-n", 1, "--no-perf")
    codes = [check(pressed("pyggml-cli", *flags, at=at)) for at in (*range(20, 500, 40), "datetime")]
    assert codes.count(130) > 5


@pytest.mark.parametrize("form", ["pyggml-cli", "-m pyggml_cli.bench", "-m pyggml"])
def test_a_mutant_that_leaves_pythons_handler(tmp_path: Path, form: str) -> None:
    with pytest.raises(AssertionError):
        test_while_a_command_is_imported(tmp_path, form, "Python's own handler")


def test_a_mutant_that_tears_imports(tmp_path: Path) -> None:
    """NumPy imports datetime from C, and takes the interrupt for a module that is not there."""
    path = write_text_model(tmp_path / "m.gguf")
    done = Pressed(tmp_path, "imports are torn")("pyggml-cli", "-m", path, "-p", "a", "-n", 1, at="datetime")
    assert done.returncode == 1 and "Importing the numpy C-extensions failed" in done.stderr


@pytest.mark.parametrize("form", ["pyggml-cli", "pyggml-server"])
def test_at_many_moments_of_the_first_second(tmp_path: Path, form: str) -> None:
    pressed, path = Pressed(tmp_path), write_text_model(tmp_path / "m.gguf")
    args = {"pyggml-cli": ("-p", "a", "-n", 1), "pyggml-server": ("--port", 0)}[form]
    for moment in range(0, 1000, 75):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(**pressed.command(form, "-m", path, *args, at="later"), **pipes) as process:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            time.sleep(moment / 1000)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        assert not re.search("Traceback|Error|Exception|ignored", err), (moment, err)
        assert process.returncode in (-signal.SIGINT, 130, 0), moment
