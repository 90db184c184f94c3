"""`import llama_cpp` finds pyggml when somebody asks for it, with the names and values that llama-cpp-python has."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyggml import compat

NAMES = """
import json, sys
kind = sys.argv[1]
if kind == "ours":
    import pyggml.compat
    pyggml.compat.install()
import llama_cpp, llama_cpp.llama_types as types, llama_cpp.llama_chat_format as f
import llama_cpp._logger, llama_cpp.llama_cache, llama_cpp.llama_grammar, llama_cpp.llama_speculative, llama_cpp.llama_tokenizer
import llama_cpp.llama_cpp as c
constants = {n: v for n, v in vars(c).items() if n.startswith(("LLAMA_", "GGML_")) and isinstance(v, int)}
dicts = {n: [sorted(v.__required_keys__), sorted(v.__optional_keys__)] for n, v in vars(types).items()
         if hasattr(v, "__required_keys__") and n[0] != "_" and n != "TypedDict"}
others = {m.__name__.rpartition("llama_cpp.")[2]: [n for n, v in vars(m).items() if n[0] != "_" and
          getattr(v, "__module__", "") == m.__name__]
          for m in (llama_cpp.llama, llama_cpp.llama_cache, llama_cpp.llama_grammar, llama_cpp.llama_speculative,
                    llama_cpp.llama_tokenizer, f)}
there = sorted(n for n in dir(llama_cpp) if n in {n for names in others.values() for n in names} | dicts.keys())
there = dir(llama_cpp) if kind == "ours" else there
templates = {n: getattr(f, n) for n in dir(f) if n.endswith(("_TEMPLATE", "_TOKEN"))}
print(json.dumps([llama_cpp.__version__, constants, dicts, others, there, templates]))
"""


def run(*args: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120, **options)


NOT_THERE = {
    "chat_format": "functionary handlers: the names are taken by the file's own template",
    "functionary_chat_handler": "the file's own template counts",
    "functionary_v1_v2_chat_handler": "the file's own template counts",
    "SchemaConverter": "pyggml.grammar makes grammars of schemas",
    "BuiltinRule": "pyggml.grammar makes grammars of schemas",
}


def test_names_and_values_are_the_peers(peer: Any) -> None:
    theirs = json.loads(peer.run(NAMES, "theirs").stdout.splitlines()[-1])
    done = run("-c", NAMES, "ours")
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout.splitlines()[-1])
    assert ours[0] == theirs[0]
    different = {name for name, value in theirs[1].items() if ours[1].get(name) != value}
    assert different <= {"GGML_TYPE_COUNT"}, different
    assert len(theirs[1]) > 200
    assert ours[2] == theirs[2] and len(ours[2]) > 50
    code = "import pyggml.compat; pyggml.compat.install(); import importlib, sys\n"
    code += "for name in sys.argv[2:]: getattr(importlib.import_module(sys.argv[1]), name)"
    for module, names in theirs[3].items():
        wanted = [name for name in names if name not in NOT_THERE]
        done = run("-c", code, f"llama_cpp.{module}", *wanted)
        assert done.returncode == 0, (module, done.stderr[-300:])
    assert set(theirs[4]) <= set(ours[4])
    assert ours[5] == theirs[5]


def test_parameters_of_all_methods_are_the_peers(peer: Any) -> None:
    script = """
import inspect, json, llama_cpp
print(json.dumps({n: [p for p in inspect.signature(f).parameters if p not in ("self", "cls")]
                  for n, f in inspect.getmembers(llama_cpp.Llama, callable) if n[0] != "_"}))
"""
    from pyggml import Llama

    theirs = json.loads(peer.run(script).stdout.splitlines()[-1])
    assert len(theirs) > 20
    for name, parameters in theirs.items():
        ours = list(inspect.signature(getattr(Llama, name)).parameters)
        assert [p for p in ours if p in parameters] == parameters, name


def test_llama_cpp_is_one_package_under_two_names() -> None:
    code = """
import sys, pyggml.compat as compat
assert not {"numpy", "numba"} & set(sys.modules)
compat.install(); compat.install()
import llama_cpp, llama_cpp.llama_types, llama_cpp.llama as llama, pyggml, pyggml.compat.llama_cpp as real, pickle, importlib
assert llama_cpp is real and sys.modules["llama_cpp.llama"] is sys.modules["pyggml.compat.llama_cpp.llama"] is llama
assert llama_cpp.Llama is pyggml.Llama and real.__spec__.name == "pyggml.compat.llama_cpp"
assert importlib.util.find_spec("llama_cpp.server") is None
assert pickle.loads(pickle.dumps(llama_cpp.LlamaRAMCache(5))).capacity_bytes == 5
for name, module in ((n, m) for m in (llama_cpp, llama_cpp.llama_cpp) for n in ("llama_decode", "no_such")):
    try: getattr(module, name)
    except AttributeError as e: assert str(e).endswith("no C API"), e
    else: raise SystemExit(name)
compat.uninstall()
assert "llama_cpp" not in sys.modules and "llama_cpp.llama" not in sys.modules
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_another_llama_cpp_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("other = True\n")
    code = "import llama_cpp, pyggml.compat; pyggml.compat.install()"
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 1 and "another llama_cpp is imported already" in done.stderr.splitlines()[-1]
    code = "import pyggml.compat; pyggml.compat.install(); import llama_cpp; llama_cpp.Llama"
    assert run("-c", code, cwd=tmp_path).returncode == 0
    assert (
        run("-c", "import pyggml, llama_cpp; assert llama_cpp.other", cwd=tmp_path).returncode == 0
    )  # nobody has asked


PROGRAM = "import sys, llama_cpp; print(__name__, sys.argv[1:], llama_cpp.Llama.__module__)"


@pytest.mark.parametrize("how", [["prog.py"], ["-m", "prog"]])
def test_programs_run_with_it(how: list[str], tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(PROGRAM)
    done = run("-m", "pyggml.compat", *how, "a", "-b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "__main__ ['a', '-b'] pyggml.api.llama\n"), done.stderr


def test_commands_run_with_it(tmp_path: Path) -> None:
    done = run("-m", "pyggml.compat", "pyggml-cli", "--version", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("pyggml ")
    for args, code, words in (
        (["none.py"], 2, "error: none.py: neither a file nor a command"),
        ([], 2, "usage: "),
        (["-m"], 2, "usage: "),
        (["-h"], 0, "usage: "),
    ):
        done = run("-m", "pyggml.compat", *args, cwd=tmp_path)
        assert done.returncode == code and (done.stderr + done.stdout).startswith(words), args
    (tmp_path / "prog.py").write_text("import sys; sys.exit(7)")
    assert run("-m", "pyggml.compat", "prog.py", cwd=tmp_path).returncode == 7


def test_lines_go_to_a_callback(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from pyggml.compat.llama_cpp import llama_log_callback, llama_log_set

    said: list[tuple[int, bytes, Any]] = []
    try:
        llama_log_set(llama_log_callback(lambda *line: said.append(line)), "mine")
        logging.getLogger("pyggml.x").warning("w %d", 1)
        assert said == [(3, b"w 1\n", "mine")]
    finally:
        llama_log_set(None)
    logging.getLogger("pyggml.x").warning("again")
    assert len(said) == 1 and logging.getLogger("pyggml").propagate


def test_importing_changes_nothing() -> None:
    assert compat._FINDER not in sys.meta_path
