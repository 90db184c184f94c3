"""Command lines: what is understood, and one clear line for what is not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyggml_cli import (
    batched_bench,
    bench,
    cli,
    completion_flags,
    cubins,
    embedding,
    inspection,
    perplexity,
    quantize,
    rpc_server,
    server,
)
from pyggml_cli.completion_flags import ROWS, unescape
from pyggml_cli.flags import FALSE, TRUE, Flag, Ignored, Refused, UsageError, parse
from pyggml_cli.server_flags import slots

NAMES = [name for row in ROWS for name in row.names + row.off]


def test_defaults_are_llama_cpps() -> None:
    v = parse(ROWS, [])
    assert (v.temp, v.top_k, v.top_p, v.min_p, v.repeat_last_n, v.repeat_penalty) == (0.8, 40, 0.95, 0.05, 64, 1.0)
    assert (v.n_predict, v.n_ctx, v.n_batch, v.n_ubatch, v.seed) == (-1, 0, 2048, 512, 0xFFFFFFFF)
    assert (v.type_k, v.type_v, v.flash_attn, v.n_gpu_layers, v.escape) == ("f16", "f16", "auto", -1, True)
    assert (v.display_prompt, v.ignore_eos, v.special, v.presence_penalty, v.frequency_penalty) == (
        True, False, False, 0.0, 0.0,
    )  # fmt: skip
    assert v.notes == [] and v.seen == set()


def test_no_flag_of_llama_cpps_tools_is_unknown(arg_cpp: str) -> None:
    """Their flags are rows of common/arg.cpp: read the names out of that."""
    found: set[str] = set()
    for entry in arg_cpp.split("add_opt(common_arg(")[1:]:
        head = entry[: entry.index('",\n') + 1] if '",\n' in entry else entry
        found.update(re.findall(r'"(--?[A-Za-z][\w.-]*)"', head))
    assert len(found) > 400 and {"--temp", "-ngl", "--grammar", "--fim-qwen-1.5b-default", "-np"} <= found
    assert found <= set(NAMES)


def test_every_name_is_in_one_row_only() -> None:
    assert len(NAMES) == len(set(NAMES))


def test_values() -> None:
    line = "-n -1 --temp 0 -ngl all -ts 3/1 -s -1 --no-escape -r a -r b --logit_bias 5-inf -fa off -t 3"
    v = parse(ROWS, line.split())
    assert (v.n_predict, v.temp, v.n_gpu_layers, v.tensor_split, v.seed) == (-1, 0.0, -1, [3.0, 1.0], 0xFFFFFFFF)
    assert (v.escape, v.reverse_prompt, v.logit_bias, v.flash_attn) == (False, ["a", "b"], ["5-inf"], "off")
    assert v.seen >= {"n_predict", "temp", "escape"} and "top_k" not in v.seen
    assert parse(ROWS, ["-n", "1", "--predict", "2"]).n_predict == 2


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row, Ignored)], ids=lambda row: row.names[-1])
def test_flags_without_a_difference_are_noted_once(row: Ignored) -> None:
    value = {"--numa": "isolate", "-lzm": "on", "-Cr": "0-3", "-Crb": "2-"}.get(row.names[0], "1")
    args = [row.names[0], *[value] * row.n_args]
    assert parse(ROWS, [*args, *args]).notes == [f"note: {row.names[0]} makes no difference here"]


COMMANDS = (batched_bench, cli, cubins, embedding, inspection, perplexity, quantize, rpc_server, server)
EVERY = [
    row
    for rows in (*(module.ROWS for module in COMMANDS), bench.GENERAL, bench.TESTS, bench.OTHERS)
    for row in rows
]  # fmt: skip


def test_no_flag_without_a_difference_takes_any_text() -> None:
    assert not [row.names for row in EVERY if isinstance(row, Ignored) and row.n_args and row.parse is None]


@pytest.mark.parametrize(
    ("flag", "right", "wrong", "words"),
    [
        ("-C", "0 ff 0xF0F0", "fg 0x-1 -1", "must be a mask in hexadecimal digits, such as ff or 0xff"),
        ("-Cr", "0-3 2- -5 - 511-0", "3 a-b 0-512 1-2-3 0--1", "must be a range of CPUs such as 0-7, of numbers below 512"),
        ("-fitt", "1024 512,0 1/2", "all 1,,2 -5 1.5", "must be MiB, or MiB of each device such as 1024,512"),
        ("-fitc", "0 4096", "all -1 1.5", "must be "),
    ],
)  # fmt: skip
def test_values_without_a_difference(flag: str, right: str, wrong: str, words: str) -> None:
    for value in right.split():
        assert parse(ROWS, [flag, value]).notes == [f"note: {flag} makes no difference here"]
    for value in wrong.split():
        with pytest.raises(UsageError, match=f"^{flag} '{value}': {re.escape(words)}"):
            parse(ROWS, [flag, value])


def test_flags_not_implemented_are_refused_by_name_and_with_a_reason() -> None:
    for row in [row for row in [*ROWS, *bench.OTHERS] if isinstance(row, Refused)]:
        with pytest.raises(UsageError, match=f"^{row.names[0]}( x)*: not implemented here: {re.escape(row.why)}$"):
            parse([row], [row.names[0], *["x"] * row.n_args])
        assert row.why
        for value in row.harmless:
            assert parse([row], [row.names[0], value]).notes == []
        for name in row.off:
            assert parse([row], [name]).notes == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--tempp 0", "unknown flag --tempp; the nearest known one is --temp"),
        ("--ctxsize 3", "unknown flag --ctxsize; the nearest known one is --ctx-size"),
        ("--predictions 1", "unknown flag --predictions; the nearest known one is --predict"),
        ("--foo", "unknown flag --foo; --help lists those that there are"),
        ("-mmp", "unknown flag -mmp; the nearest known one is --mmap"),
        ("-nlg 3", "unknown flag -nlg; the nearest known one is -ngl"),
        ("-p hi model.gguf", "unexpected argument 'model.gguf'"),
        ("-p", "-p needs an argument"),
        ("-n many", "-n 'many': must be a whole number"),
        ("-n -3", "-n '-3': must be at least -2"),
        ("--temp hot", "--temp 'hot': must be a number"),
        ("-fa maybe", "-fa 'maybe': must be one of on, off, auto"),
        ("-ts 0,0", "-ts '0,0': must be proportions"),
        ("-ctk q9", "-ctk 'q9': must be one of f32, f16"),
        ("-p a --rope-scale 0", "--rope-scale '0': must not be 0"),
        ("-ngl few", "-ngl 'few': must be a whole number"),
        ("-dev ,", "-dev ',': must name at least one"),
        ("-no-cnv", "no prompt: give one with -p or -f, or converse with -cnv"),
        ("-p a -f b", "give one of -p, -f and -bf"),
        ("-p \\xff", "do not make UTF-8 text"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(call: Callable[..., Any], line: str, words: str) -> None:
    outcome = call(cli.main, *line.split())
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and words in outcome.err


def test_no_file_has_an_empty_name(call: Callable[..., Any], model: Path, reference: None) -> None:
    """Not the current folder either, which pathlib takes it for; and none is written, nor read, before it is refused."""
    for main, args in (
        (cli.main, ["-m", model, "-p", "x", "-n", 1, "--prompt-cache", ""]),
        (cli.main, ["-m", model, "-f", ""]),
        (perplexity.main, ["-m", model, "-f", ""]),
        (perplexity.main, ["-m", model, "-p", "x", "--save-all-logits", ""]),
        (embedding.main, ["-m", model, "-bf", ""]),
        (server.main, ["-m", model, "--slot-save-path", ""]),
        (server.main, ["-m", model, "--ssl-key-file", "", "--ssl-cert-file", ""]),
        (quantize.main, ["", "x.gguf", "Q8_0"]),
        (quantize.main, [model, "", "Q8_0"]),
    ):
        outcome = call(main, *args)
        assert (outcome.code, outcome.out) == (2, ""), args
        assert outcome.err.startswith("error: ") and outcome.err.endswith(("'': must not be empty\n", "[THREADS]\n"))


def test_no_slots_at_all_are_refused_as_there() -> None:
    with pytest.raises(ValueError, match="must be from 1 to 256, or -1"):
        slots("0")
    assert [slots(text) for text in ("-1", "1", "256")] == [-1, 1, 256]


CACHE_TYPES = "f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1"
LOADS = "auto, none, mmap, mlock, mmap+mlock, dio"
TRUTHS = ", ".join(TRUE + FALSE)
WORDS: dict[Any, dict[str, str]] = {
    cli.main: {
        "-fa": "on, off, auto", "-ctk": CACHE_TYPES, "-ctv": CACHE_TYPES, "-sm": "none, layer, row", "-lm": LOADS,
        "--rope-scaling": "none, linear, yarn", "--color": "on, off, auto", "-rea": "on, off, auto",
        "--reasoning-format": "none, auto, deepseek, deepseek-legacy", "-ctkd": CACHE_TYPES,
        "--spec-type": "'nobody' is not one of none, draft-simple, ngram-simple, ngram-map-k",
        "-lzm": "on, auto, off", "--numa": "distribute, isolate, numactl, ''", "-fit": TRUTHS,
        "--log-colors": f"{TRUTHS}, auto, -1", "--prio": "must be a whole number", "-lv": "must be a whole number",
        "--samplers": "known: penalties, dry, ", "--sampler-seq": "known: e, d, s, ", "-dev": "available: none",
        "--override-kv": "must be KEY=TYPE:VALUE", "--rpc": "'nobody' is not host:port", "-ot": "must be PATTERN=DEV",
        "-ot a=": "available: REF",
    },
    server.main: {
        "-fa": "on, off, auto", "--pooling": "none, mean, cls, last, rank", "--attention": "causal, non-causal",
        "--numa": "distribute, isolate, numactl, ''", "--reasoning-format": "none, auto, deepseek, deepseek-legacy",
        "--threads-http": "must be a whole number", "--kv-unified-per-slot": "must be a whole number",
        "--mtmd-batch-max-tokens": "must be a whole number",
    },
    rpc_server.main: {"--protocol": "7, 7.0.0, 8, 8.0.0", "-d": "available: REF"},
    bench.main: {
        "-o": "md, json, jsonl, csv, sql", "-oe": "none, md, json, jsonl, csv, sql", "-ctk": CACHE_TYPES, "-lm": LOADS,
        "-fa": "on, off, auto, 1, 0, -1", "-lzm": "on, auto, off", "--numa": "distribute, isolate, numactl, ''",
        "-C": "must be a mask in hexadecimal digits", "-fitt": "must be a whole number", "-fitc": "must be a whole number",
    },
    batched_bench.main: {"--output-format": "md, jsonl", "-ctk": CACHE_TYPES, "--temp": "must be a number"},
    perplexity.main: {"--ppl-output-type": "0, 1", "-sm": "none, layer, row", "--mirostat": "must be "},
    embedding.main: {
        "--embd-output-format": "'', array, json, json+, raw", "--pooling": "none, mean, cls, last, rank",
        "-ctv": CACHE_TYPES,
    },
    quantize.main: {
        "x.gguf": "known are Q4_0, Q4_1", "--output-tensor-type": "supported: F32, F16",
        "--token-embedding-type": "supported: F32, F16", "--tensor-type a=": "supported: F32, F16",
        "--max-buffer-size": "must be a whole number",
        "--override-kv": "must be KEY=int:N, KEY=float:X, KEY=bool:true|false or KEY=str:TEXT",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("main", "flag"),
    [pytest.param(main, flag, id=f"{main.__module__[11:]} {flag}") for main, flags in WORDS.items() for flag in flags],
)
def test_an_unknown_word_is_refused_in_a_line_that_lists_what_is_known(
    call: Callable[..., Any], reference: None, model: Path, main: Any, flag: str
) -> None:
    argv = f"{flag}nobody".split(" ") if flag.endswith("=") else [flag, "nobody"]
    if main in (cli.main, embedding.main):
        argv += ["-p", "a"]
    if main is quantize.main and flag.startswith("-"):
        argv += [str(model), "never.gguf", "q8_0"]
    outcome = call(main, *argv)
    assert outcome.code in (1, 2) and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and WORDS[main][flag] in outcome.err


@pytest.mark.parametrize(
    ("main", "line", "code", "words"),
    [
        (cli.main, "-c 99999999999999999999", 1, "n_ctx 99999999999999999999: must be at most 2147483647"),
        (cli.main, "-c 2147483647", 1, "cannot allocate"),
        (cli.main, "-ncmoe 99999999999999999999 -ncffn 99999999999999999999", 0, ""),
        (cli.main, "-r \udcff", 0, ""),
        (cli.main, "-cnv -st -r \udcff", 0, ""),
        (bench.main, "--delay 99999999999999999999", 2, "must be from 0 to 604800"),
        (rpc_server.main, "-t 1025", 2, "must be from 1 to 1024"),
    ],
)
def test_values_that_no_machine_has_room_for(
    call: Callable[..., Any], model: Path, reference: None, monkeypatch: pytest.MonkeyPatch,
    main: Any, line: str, code: int, words: str,
) -> None:  # fmt: skip
    """They are refused before anything is made for them, or mean as much as there is."""
    if words == "cannot allocate":

        def refuse(size: int) -> None:
            raise MemoryError(size)

        monkeypatch.setattr("pyggml.backend.host._map", refuse)
        monkeypatch.setattr("pyggml.memory.kv.Cells", lambda *sizes: pytest.fail(f"cells {sizes} without tensors"))
    argv = line.split() if main is rpc_server.main else ["-m", str(model), "-p", "4", "-n", "1", *line.split()]
    outcome = call(main, *argv)
    assert outcome.code == code and words in outcome.err
    assert outcome.err.count("error: ") == bool(code)


@given(st.lists(st.sampled_from([*NAMES, "1", "0.5", "x", "-1", "a,b", "--", "-"]), max_size=6))
@settings(deadline=None, max_examples=200)
def test_any_line_is_parsed_or_refused(argv: list[str]) -> None:
    for rows in (ROWS, rpc_server.ROWS, server.ROWS, batched_bench.ROWS, [*bench.GENERAL, *bench.TESTS, *bench.OTHERS]):
        try:
            parse(rows, argv)
        except UsageError as reason:
            assert "\n" not in str(reason)


@pytest.mark.parametrize("command", [cli, rpc_server, server, bench])
def test_help_and_version(call: Callable[..., Any], command: Any) -> None:
    page = call(command.main, "--help")
    assert page.code == 0 and page.err == "" and page.out.startswith("usage: pyggml-")
    assert max(map(len, page.out.splitlines())) <= 110
    version = call(command.main, "--version")
    assert version.code == 0 and re.fullmatch(r"pyggml \d+\.\d+\.\d+\n", version.out)


@pytest.mark.parametrize("columns", [20, 40, 64, 80, 100, 300])
def test_help_is_as_wide_as_the_terminal(
    columns: int, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for main in (
        cli.main,
        bench.main,
        batched_bench.main,
        perplexity.main,
        embedding.main,
        quantize.main,
        inspection.main,
        rpc_server.main,
    ):
        outcome = call(main, "--help")
        body, _, examples = outcome.out.partition("\nexamples:\n")
        assert max(map(len, body.splitlines())) <= max(40, min(100, columns)) and outcome.code == 0
        assert examples.count("\n  pyggml-") + examples.startswith("  pyggml-") >= 2
    assert " -t, --threads N" in call(cli.main, "--help").out


def test_help_tells_the_deliberate_difference(call: Callable[..., Any]) -> None:
    page = " ".join(call(cli.main, "--help").out.split())
    assert "one deliberate difference: a prompt is continued as it is" in page
    for row in ROWS:
        if isinstance(row, Flag):
            assert all(name in page for name in row.names), row.names


def test_escapes() -> None:
    assert unescape(r"a\nb\tc\r\'\"\\n") == "a\nb\tc\r'\"\\n"
    assert unescape(r"\x41\xc3\xa9 \xZZ \q \x4") == "Aé \\xZZ \\q \\x4"
    assert unescape("tail\\") == "tail\\" and unescape("🙂\\n") == "🙂\n"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\\")))
@settings(deadline=None, max_examples=50)
def test_text_without_backslashes_stays(text: str) -> None:
    assert unescape(text) == text
    assert unescape(text.replace("\n", "\\n")) == text


def test_ranges_of_the_benchmark() -> None:
    assert bench.numbers("512,1-3,4-10+3,1-64*4") == [512, 1, 2, 3, 4, 7, 10, 1, 4, 16, 64]
    for bad in ("a", "1-", "1-5*1", "3-9+0", "", "1_0", "1-999999999"):
        with pytest.raises(ValueError, match=r"must be numbers|never ends|more than 10000 numbers"):
            bench.numbers(bad)


def test_prompt_files(tmp_path: Path) -> None:
    def prompt(*argv: str) -> str:
        return cli._prompt(parse(completion_flags.ROWS, argv))

    path = tmp_path / "prompt.txt"
    path.write_bytes(b"line\\n two\n\n")
    assert prompt("-f", str(path)) == "line\n two\n"
    assert prompt("-f", str(path), "--no-escape") == "line\\n two\n"
    assert prompt("-bf", str(path), "--no-escape") == "line\\n two\n\n"
    path.write_bytes(b"a\xff")
    with pytest.raises(UsageError, match="not UTF-8 text: byte 0xff at 1"):
        prompt("-f", str(path))
    path.write_bytes(b"a\xff\\n")
    assert prompt("-bf", str(path)) == "a\udcff\n" and prompt("-bf", str(path), "--no-escape") == "a\udcff\\n"


def test_rope_flags() -> None:
    v = parse(ROWS, ["--rope-freq-scale", "3", "--rope-scale", "4", "--rope-scaling", "yarn", "--yarn-beta-fast", "2"])
    assert (v.rope_freq_scale, v.rope_scaling, v.yarn_beta_fast, v.yarn_beta_slow) == (0.25, "yarn", 2.0, -1.0)
    assert parse(ROWS, ["--rope-scale", "4", "--rope-freq-scale", "3"]).rope_freq_scale == 3.0


def test_no_flag_of_llama_bench_is_unknown(sources: dict[str, str]) -> None:
    found = set(re.findall(r'arg == "(--?[a-z-]+)"', sources["llama-bench.cpp"]))
    known = {name for row in [*bench.GENERAL, *bench.TESTS, *bench.OTHERS] for name in (*row.names, *row.off)}
    assert len(found) > 50 and found <= known


def test_the_server_knows_every_flag_too(arg_cpp: str) -> None:
    """What is not carried out or accepted is refused with a reason; and its variables are llama-server's."""
    names = [name for row in server.ROWS for name in (*row.names, *row.off)]
    assert len(names) == len(set(names)) and set(NAMES) <= set(names)
    assert all(row.why for row in server.ROWS if isinstance(row, Refused))
    of_server = [
        e for e in arg_cpp.split("add_opt(common_arg(")[1:] if "LLAMA_EXAMPLE_SERVER" in e.split("add_opt(")[0]
    ]
    wanted = {name for e in of_server for name in re.findall(r'set_env\("(LLAMA_[A-Z_]+)"', e.split("add_opt(")[0])}
    assert len(wanted) > 50 and wanted <= set(server.VARIABLES), wanted - set(server.VARIABLES)
    assert set(server.VARIABLES.values()) <= set(names)
