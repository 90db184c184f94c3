"""pyggml-inspect: what it shows of a file, to people and to programs; the gguf package is the oracle."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from pyggml_cli import inspection
from text_model import write_text_model
from tiny_model import write_llama


@pytest.fixture
def run(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: call(inspection.main, *args)


def odd_file(path: Path) -> Path:
    """Every type of value, strings that a terminal would obey, no tensors of weight."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("mo\x1b[31mdel")
    writer.add_file_type(15)
    for i, kind in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")):
        getattr(writer, f"add_{kind}")(f"x.{kind}", i)
    writer.add_uint64("x.large", 2**64 - 1)
    writer.add_float32("x.f32", 0.1)
    writer.add_float64("x.f64", 0.1)
    writer.add_float32("x.nan", float("nan"))
    writer.add_float64("x.inf", float("-inf"))
    writer.add_bool("x.bool", True)
    writer.add_string("x.text", "line\nbell\x07\u202e end " + "y" * 300)
    writer.add_array("x.words", ["a", "é", "c\x9b"] * 10)
    writer.add_array("x.numbers", [1, 2, 3])
    writer.add_array("x.halves", [0.5, 0.1])
    writer.add_array("x.flags", [True, False])
    writer.add_tensor("\x1b[2Jname", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("scalar", np.ones(1, np.float32))
    writer.add_tensor("half", np.ones((1, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_json_is_all_that_the_file_says(run: Callable[..., Any], tmp_path: Path) -> None:
    path = odd_file(tmp_path / "odd.gguf")
    outcome = run("--json", path)
    assert outcome.code == 0 and outcome.err == "" and outcome.out.isascii()
    found = json.loads(outcome.out)
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(found["metadata"]) == list(fields)
    for key, field in fields.items():
        mine = found["metadata"][key]
        names = {"UINT": "U", "INT": "I", "FLOAT": "F", "BOOL": "BOOL", "STRING": "STRING", "ARRAY": "ARRAY"}

        def name(kind: gguf.GGUFValueType, names: dict[str, str] = names) -> str:
            text = kind.name.rstrip("0123456789")
            return names[text] + kind.name[len(text) :]

        assert mine["type"] == name(field.types[0])
        value = field.contents()
        if mine["type"] == "ARRAY":
            assert mine["items"] == name(field.types[-1]) and mine["length"] == len(value)
        if key in ("x.nan", "x.inf"):
            assert mine["value"] == str(value)
        elif mine.get("items") == "F32":
            assert mine["value"] == [0.5, 0.1]
        elif mine["type"] == "F32":
            assert mine["value"] == 0.1 and np.float32(0.1) == np.float32(value)
        else:
            assert mine["value"] == value
    assert [(t["name"], t["type"], t["bytes"], t["offset"]) for t in found["tensors"]] == [
        (t.name, t.tensor_type.name, t.n_bytes, t.data_offset) for t in reader.tensors
    ]
    assert [t["shape"] for t in found["tensors"]] == [[3, 2], [1], [4]]
    assert found["types"] == {
        "F32": {"tensors": 2, "parameters": 7, "bytes": 28, "bits_per_weight": 32.0},
        "F16": {"tensors": 1, "parameters": 4, "bytes": 8, "bits_per_weight": 16.0},
    }
    assert (found["n_tensors"], found["n_parameters"], found["n_bytes"]) == (3, 11, 36)
    assert found["bits_per_weight"] == pytest.approx(36 * 8 / 11) and found["file_type"] == "Q4_K_M"
    assert (found["version"], found["alignment"], found["paths"]) == (3, 32, [str(path)])
    assert found["chat_template"] is None and found["name"] == "mo\x1b[31mdel" and found["architecture"] == "llama"


def test_nothing_that_a_terminal_obeys_is_printed(run: Callable[..., Any], tmp_path: Path) -> None:
    template = "{% for m in messages %}\x1b]0;evil\x07\n\t{{ m }}\r{% endfor %}"
    first, second = odd_file(tmp_path / "odd.gguf"), write_text_model(tmp_path / "x.gguf", template=template)
    for path in (first, second):
        for args in ((), ("--full",), ("--template",), ("--tensors", "--types")):
            outcome = run(*args, path)
            assert outcome.code == 0
            assert all(c.isprintable() or c in "\n\t" for c in outcome.out), repr(outcome.out)
    assert r"\x1b[2Jname" in run("--tensors", first).out and r"mo\x1b[31mdel" in run(first).out
    assert run("--template", second).out == r"{% for m in messages %}\x1b]0;evil\x07" + "\n\t{{ m }}\\r{% endfor %}\n"


def test_what_is_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "text.gguf", template="{{ messages }}\n{{ 2 }}")
    whole = run(path).out
    assert whole.startswith(f"{path}\n  name          text\n  architecture  llama\n  GGUF version  3\n")
    assert "  size          0.37 MiB, 32.00 bits per weight\n" in whole
    assert "\nchat template: 22 characters\n  {{ messages }}\n  {{ 2 }}\n" in whole
    (other := tmp_path / "a\udcff.gguf").write_bytes(path.read_bytes())
    assert run(other).out.startswith(rf"{tmp_path}/a\xff.gguf" + "\n"), "as errors name it"
    parts = {name: run(f"--{name}", path).out for name in ("metadata", "types", "tensors")}
    summary = whole[: whole.index("\n\n") + 1]
    assert all(part.startswith(summary) and part[len(summary) + 1 :] in whole for part in parts.values())
    rows = [line for line in parts["tensors"].splitlines() if " bytes at " in line]
    assert len(rows) == 21 and rows[0].split()[:5] == ["token_embd.weight", "F32", "64", "x", "267"]
    assert parts["types"].endswith(
        "  F32         21 tensors             95,936 parameters         0.37 MiB  32.00 bits\n"
    )


def test_arrays_and_texts_are_shortened(run: Callable[..., Any], tmp_path: Path) -> None:
    path = odd_file(tmp_path / "odd.gguf")
    short, full = run("--metadata", path).out, run("--metadata", "--full", path).out
    line = next(line for line in short.splitlines() if "x.words" in line)
    assert line.endswith(r"STRING[30]      ['a', 'é', 'c\x9b', 'a', 'é', 'c\x9b', ...]")
    assert next(line for line in full.splitlines() if "x.words" in line).count("'a'") == 10
    assert "... (316 characters)" in short and "y" * 200 not in short and "y" * 300 in full
    assert "[1, 2, 3]" in short and "...]" not in full


def test_split_files(run: Callable[..., Any], tmp_path: Path) -> None:
    """As one model; each tensor says in which part it lies."""
    source = gguf.GGUFReader(write_llama(tmp_path / "whole.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=8)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("model-*"))
    found = json.loads(run("--json", paths[0]).out)
    assert found["paths"] == [str(path) for path in paths] and len(paths) == 3
    assert {t["name"]: (t["path"], t["offset"]) for t in found["tensors"]} == {
        t.name: (str(path), t.data_offset) for path in paths for t in gguf.GGUFReader(path).tensors
    }
    shown = run("--tensors", paths[0]).out
    assert shown.splitlines()[:3] == [str(path) for path in paths] and shown.rstrip().endswith("part 3")


def test_an_empty_file_of_no_tensors(run: Callable[..., Any], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "none.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    outcome = run(tmp_path / "none.gguf")
    assert outcome.code == 0 and "  size          0.00 MiB\n" in outcome.out and "tensors: 0\n" in outcome.out
    assert json.loads(run("--json", tmp_path / "none.gguf").out)["bits_per_weight"] is None
    assert run("--template", tmp_path / "none.gguf").err == "the file has no chat template\n"


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("", 2, "usage: pyggml-inspect [flags] FILE.gguf"),
        ("a b", 2, "usage: "),
        ("--json --tensors a", 2, "--json shows everything; --tensors does not go with it"),
        ("/nonexistent.gguf", 1, "/nonexistent.gguf: No such file"),
        ("BAD", 1, "not a GGUF file: it begins with b'nons'"),
        ("CUT", 1, "reach past the end of the file"),
        ("/tmp", 1, "/tmp: Is a directory"),
        ("--all x", 2, "unknown flag --all"),
    ],
)
def test_mistakes(run: Callable[..., Any], model: Path, tmp_path: Path, line: str, code: int, words: str) -> None:
    bad, cut = tmp_path / "bad.gguf", tmp_path / "cut.gguf"
    bad.write_bytes(b"nonsense")
    cut.write_bytes(model.read_bytes()[:-100])
    outcome = run(*line.replace("BAD", str(bad)).replace("CUT", str(cut)).split())
    assert outcome.code == code and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and words in outcome.err


def test_it_starts_fast(model: Path) -> None:
    """Neither a compiler nor a tokenizer is loaded."""
    heavy = "{'numba', 'llvmlite', 'tokenizers', 'jinja2', 'rich', 'gguf'}"
    code = f"import sys; from pyggml_cli.inspection import main; main(sys.argv[1:]); sys.exit(not {heavy}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code, str(model)], stdout=subprocess.DEVNULL).returncode == 0
