"""LLAMA_ARG_* variables: which there are, what they may hold, and that the command line counts for more."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import chat, cli
from pyggml_cli.completion_flags import ROWS
from pyggml_cli.environment import VARIABLES
from pyggml_cli.flags import Flag, Ignored, Refused, UsageError, Values, parse

OLDER = {"LLAMA_ARG_MMAP", "LLAMA_ARG_MLOCK"}  # which the peer's version no longer has
KNOWN = {name: row for row in ROWS for name in (*row.names, *row.off)}


def read(environ: dict[str, str], *argv: str) -> Values:
    return parse(ROWS, argv, environ, VARIABLES)


def test_they_are_llama_cpps(arg_cpp: str) -> None:
    """Of all flags of its completion tool and of llama-cli, read out of common/arg.cpp."""
    found: dict[str, set[str]] = {}
    for entry in arg_cpp.split("add_opt(common_arg(")[1:]:
        tools = re.search(r"set_examples\(\{(.*?)\}\)", entry, re.DOTALL)
        variable = re.search(r'set_env\("(\w+)"\)', entry)
        if variable and re.search(r"EXAMPLE_(COMMON|COMPLETION|CLI)\b", tools.group(1) if tools else "EXAMPLE_COMMON"):
            head = entry[: entry.index('",\n') + 1] if '",\n' in entry else entry
            found[variable.group(1)] = set(re.findall(r'"(--[A-Za-z][\w-]*)"', head))
    del found["HF_TOKEN"]  # see environment.py
    assert len(found) > 90
    assert found.keys() | OLDER == VARIABLES.keys()
    for variable, names in found.items():
        assert VARIABLES[variable] in names, variable


def test_every_one_belongs_to_a_flag() -> None:
    assert set(VARIABLES.values()) <= KNOWN.keys()


def test_values() -> None:
    values = read(
        {
            "LLAMA_ARG_THREADS": "3", "LLAMA_ARG_TEMPERATURE": "0.5", "LLAMA_ARG_N_GPU_LAYERS": "all",
            "LLAMA_ARG_FLASH_ATTN": "0", "LLAMA_ARG_MODEL": "a b.gguf", "LLAMA_ARG_HOST": "not ours", "OTHER": "x",
        }
    )  # fmt: skip
    assert (values.n_threads, values.temp, values.n_gpu_layers, values.flash_attn) == (3, 0.5, -1, "off")
    assert values.model == "a b.gguf" and "temp" in values.seen and values.notes == []


@pytest.mark.parametrize("text", ["on", "enabled", "true", "1"])
def test_true(text: str) -> None:
    assert read({"LLAMA_ARG_OFFLINE": text}).offline is True
    assert read({"LLAMA_ARG_PERF": text}).perf is True and read({"LLAMA_ARG_SWA_FULL": text}).swa_full is True
    assert read({"LLAMA_ARG_REPACK": text}).notes == ["note: LLAMA_ARG_REPACK makes no difference here"]


@pytest.mark.parametrize("text", ["off", "disabled", "false", "0"])
def test_false(text: str) -> None:
    assert read({"LLAMA_ARG_OFFLINE": text}).offline is False
    assert read({"LLAMA_ARG_PERF": text}).perf is False
    assert read({"LLAMA_ARG_SWA_FULL": text}).swa_full is False
    assert read({"LLAMA_ARG_LOG_JSONL": text}).notes == []


@pytest.mark.parametrize("text", ["", "0", "off", "1", "anything"])
def test_the_negative_turns_off_whatever_it_holds(text: str) -> None:
    assert read({"LLAMA_ARG_NO_PERF": text}).perf is False
    assert read({"LLAMA_ARG_NO_PERF": text, "LLAMA_ARG_PERF": "1"}).perf is False
    assert read({"LLAMA_ARG_NO_OFFLINE": text}).offline is False and read({"LLAMA_ARG_NO_TOP_K": text}).top_k == 40
    assert read({"LLAMA_ARG_NO_LOG_JSONL": text, "LLAMA_ARG_LOG_JSONL": "1"}).notes == []
    assert read({"LLAMA_ARG_NO_KV_OFFLOAD": text}).kv_offload is False
    assert read({"LLAMA_ARG_NO_HOST": "1"}).notes  # a flag of that name, no negative


def test_the_command_line_counts_for_more() -> None:
    values = read({"LLAMA_ARG_TOP_K": "1", "LLAMA_ARG_PERF": "1"}, "--top-k", "7", "--no-perf")
    assert (values.top_k, values.perf) == (7, False)
    assert values.notes == [
        "note: --no-perf on the command line counts for more than LLAMA_ARG_PERF",
        "note: --top-k on the command line counts for more than LLAMA_ARG_TOP_K",
    ]
    assert read({"LLAMA_ARG_PARALLEL": "8", "LLAMA_ARG_N_PARALLEL": "8"}, "-np", "1").notes  # not refused


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("LLAMA_ARG_TOP_K", "many", "LLAMA_ARG_TOP_K 'many': must be a whole number"),
        ("LLAMA_ARG_TOP_K", "", "LLAMA_ARG_TOP_K '': must be a whole number"),
        ("LLAMA_ARG_OFFLINE", "yes", "LLAMA_ARG_OFFLINE 'yes': must be one of on, enabled, true, 1, off, disabled"),
        ("LLAMA_ARG_PERF", "", "LLAMA_ARG_PERF '': must be one of on"),
        ("LLAMA_ARG_FLASH_ATTN", "maybe", "LLAMA_ARG_FLASH_ATTN 'maybe': must be one of on, off, auto"),
        ("LLAMA_ARG_MMPROJ", "eye.gguf", "LLAMA_ARG_MMPROJ eye.gguf: not implemented here: text is all"),
        ("LLAMA_ARG_HF_REPO", "a", "LLAMA_ARG_HF_REPO 'a': must be USER/REPO or USER/REPO:QUANT"),
        ("LLAMA_ARG_DOCKER_REPO", "a/b", "LLAMA_ARG_DOCKER_REPO a/b: not implemented here: models are fetched from"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variable: str, text: str, words: str
) -> None:
    monkeypatch.setenv(variable, text)
    outcome = call(cli.main, "-p", "hello")
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"error: {words}")


def test_every_variable_is_carried_out_noted_or_refused() -> None:
    for variable, flag in VARIABLES.items():
        row = KNOWN[flag]
        if isinstance(row, Ignored):
            values = {"LLAMA_ARG_NUMA": "isolate", "LLAMA_ARG_LAZY_MODE": "on"}
            assert read({variable: values.get(variable, "1")}).notes == [f"note: {variable} makes no difference here"]
        elif isinstance(row, Refused) and flag in row.names:
            with pytest.raises(UsageError, match=f"^{variable}( on)?: not implemented here: "):
                read({variable: "on"})
        elif isinstance(row, Flag) and row.parse is None:
            assert getattr(read({variable: "1"}), row.dest) is True


def test_the_command_reads_them(
    call: Callable[..., Any], model: Any, reference: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, text in {"MODEL": str(model), "N_PREDICT": "3", "TEMPERATURE": "0", "NO_PERF": ""}.items():
        monkeypatch.setenv(f"LLAMA_ARG_{variable}", text)
    outcome = call(cli.main, "-p", "hello", "-l", f"{ord('x')}+1000")
    assert (outcome.code, outcome.out, outcome.err) == (0, "helloxxx", "")
    outcome = call(cli.main, "-p", "hello", "-l", f"{ord('x')}+1000", "-n", 1)
    assert outcome.out == "hellox" and "-n on the command line counts for more than LLAMA_ARG_N_PREDICT" in outcome.err


def test_a_flag_counts_for_more_than_the_variable_of_its_companion(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the file")
    variables = {"LLAMA_ARG_CHAT_TEMPLATE": "chatml", "LLAMA_ARG_CHAT_TEMPLATE_FILE": str(tmp_path / "file")}
    both = "give --chat-template or a file, not both"
    for variable, argv, expected in (
        ("LLAMA_ARG_CHAT_TEMPLATE", ["--chat-template-file", str(tmp_path / "file")], "from the file"),
        ("LLAMA_ARG_CHAT_TEMPLATE_FILE", ["--chat-template", "llama3"], "llama3"),
    ):
        values = read({variable: variables[variable]}, *argv)
        assert chat._text(values, "chat_template", "--chat-template") == expected
    with pytest.raises(UsageError, match=both):
        chat._text(read(variables), "chat_template", "--chat-template")
