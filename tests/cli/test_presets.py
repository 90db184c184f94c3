"""Files of presets: their grammar, what keys stand for, and one line for whatever is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, assert_caught
from pyggml_cli import presets, several
from pyggml_cli.flags import UsageError, parse
from pyggml_cli.presets import ALL, FIRST, canonical
from pyggml_cli.server_flags import ROWS, VARIABLES
from pyggml_cli.several import Several

EXAMPLE = """version = 1

; for all
[*]
c = 8192   ; tokens
n-gpu-layers = 8

[org/MY-MODEL-GGUF:q8_0] # a comment
chat-template = chatml
n-gpu-layers = 123
jinja = true
LLAMA_ARG_CACHE_RAM = 0
no-mmap = on
context_shift = off
\t
[custom model]
model = /models/some file.gguf
load-on-startup = true
stop-timeout = 2.5
"""


def write(folder: Path, text: str) -> str:
    path = folder / "models.ini"
    path.write_text(text)
    return str(path)


def test_the_grammar(tmp_path: Path) -> None:
    found = presets.sections(write(tmp_path, EXAMPLE))
    assert list(found) == [ALL, "org/MY-MODEL-GGUF:Q8_0", "custom model"]
    assert found[ALL].options == {"c": "8192", "n-gpu-layers": "8"}
    assert found["custom model"].options["model"] == "/models/some file.gguf"
    crlf = presets.sections(write(tmp_path, "\ufeff" + EXAMPLE.replace("\n", "\r\n")))
    assert {name: one.options for name, one in crlf.items()} == {name: one.options for name, one in found.items()}
    assert presets.sections(write(tmp_path, "model = x\n"))[FIRST].options == {"model": "x"}
    assert presets.sections(write(tmp_path, ""))[ALL].options == {}
    assert presets.sections(write(tmp_path, "[ a ]\nx=\ny = 1;2"))["a"].options == {"x": "", "y": "1"}


def test_names_of_models_have_their_quantisation_in_capitals() -> None:
    assert (
        canonical("a/b:ud-q4_k_xl") == "a/b:Q4_K_XL" and canonical("a/b:q8_0") == "a/b:Q8_0" and canonical("x") == "x"
    )


def test_keys_are_flags(tmp_path: Path) -> None:
    found = presets.sections(write(tmp_path, EXAMPLE))
    preset = presets.preset_of((found[ALL], found["org/MY-MODEL-GGUF:Q8_0"]), ROWS, VARIABLES, set())
    values = parse(ROWS, preset.flags)
    assert (values.n_ctx, values.n_gpu_layers, values.chat_template, values.cache_ram) == (8192, 123, "chatml", 0)
    assert values.mmap is False and not values.context_shift
    assert not preset.at_start and preset.patience is None
    custom = presets.preset_of((found[ALL], found["custom model"]), ROWS, VARIABLES, {"n_gpu_layers"})
    assert custom.at_start and custom.patience == 2.5
    assert parse(ROWS, custom.flags).model == "/models/some file.gguf"
    assert "n_gpu_layers" not in parse(ROWS, custom.flags).seen, "the command line says that itself"


def test_what_is_the_servers_own_makes_no_difference(tmp_path: Path) -> None:
    found = presets.sections(write(tmp_path, "[a]\nmodel=x\napi-key = secret\nport = 1\n"))
    preset = presets.preset_of((found[ALL], found["a"]), ROWS, VARIABLES, set())
    assert parse(ROWS, preset.flags).api_key == [] and len(preset.notes) == 2
    assert preset.notes[0].startswith("note: ") and "[a]: api-key makes no difference" in preset.notes[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a]\nmodel = x\n[b]\n[a]", ": [a] is in lines 1 and 4: must be there once"),
        ("what is this", ": line 1 is neither [SECTION] nor KEY = VALUE: 'what is this'"),
        ("[a\n", ": line 1 is neither"),
        ("[a]\nmodel = x\nnothing = 1", ", [a]: nothing: there is no flag of this name"),
        ("[a]\nmodel = x\nc = many", ", [a]: -c 'many': must be a whole number"),
        ("[a]\nmodel = x\nmlock = perhaps", ", [a]: mlock = perhaps: must be one of on, "),
        ("[a]\nmodel = x\nload-on-startup = soon", ", [a]: load-on-startup = soon: must be one of on, "),
        ("[a]\nmodel = x\nstop-timeout = -1", ", [a]: stop-timeout = -1: must be from 0 to "),
        ("[a]\nmodel = x\nmmproj = y", ", [a]: --mmproj y: not implemented here"),
        ("[a]\nc = 1", ", [a]: there is no model of this name, so that it needs model or hf-repo"),
        ("[a]\nmodel = x\nhf-repo = a/b", ", [a]: model names a file, hf-repo a repository"),
        ("[a]\nmodel = x\nsleep-idle-seconds = 5", ", [a]: sleep-idle-seconds: not of one of several models"),
        ("[a]\nmodel = x\nspec-type = draft-simple", ", [a]: --spec-type draft-simple: name the smaller model"),
        ("[a]\nmodel = x\nalias = b\n[b]\nmodel = x", "alias b of a: a name of b too"),
        ("c = 1", ": there is no model of this name"),
        ("\x80", "not UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "models.ini"
    path.write_bytes(text.encode("latin-1"))
    argv = ["--models-preset", str(path)]
    made = Several(parse(ROWS, argv), argv, {"LLAMA_CACHE": str(tmp_path / "none")})
    with pytest.raises(UsageError) as caught:
        made.listed()
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_order_in_which_values_count(tmp_path: Path) -> None:
    path = write(tmp_path, "[*]\nc = 100\nb = 7\ntemp = 0.5\n[a]\nmodel = x\nc = 200\ntags = u,v\n[b]\nmodel = y\n")
    argv = ["--models-preset", path, "-b", "9", "--api-key", "k", "--no-models-cache"]
    environ = {
        "LLAMA_ARG_TEMP": "0.9",
        "LLAMA_ARG_CTX_SIZE": "300",
        "LLAMA_ARG_TOP_K": "5",
        "LLAMA_ARG_TEMPERATURE": "0.8",
    }
    made = Several(parse(ROWS, argv, environ, VARIABLES), argv, environ)
    found = made.listed()
    assert found["a"].path == Path("x") and found["a"].source == "preset" and found["a"].tags == ("u", "v")
    a, b = (made.values_of(name, found[name]) for name in "ab")
    assert [(one.n_ctx, one.n_batch, one.temp, one.top_k) for one in (a, b)] == [(200, 9, 0.5, 5), (100, 9, 0.5, 5)]
    assert a.api_key == b.api_key == [["k"]] and a.alias == ["a"] and (a.model, b.model) == ("x", "y")


MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "a section counts for more than the command line": ((presets, "preset_of", "row.dest in named)", "False)"), test_keys_are_flags),
    "for all counts for more": ((several.Several, "listed", "(of_all, section)", "(section, of_all)"), test_the_order_in_which_values_count),
    "a section's key counts for the server": ((presets, "preset_of", "row.dest in OF_THE_SERVER", "False"),
                                              test_what_is_the_servers_own_makes_no_difference),
    "a comment is a value": ((presets, "sections", "here.options[key[1]] = key[2]", "here.options[key[1]] = line.partition('=')[2].strip()"), test_the_grammar),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, test = MUTANTS[mutant]
    assert_caught(monkeypatch, wrong, test, tmp_path=tmp_path)
