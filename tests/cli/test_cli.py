"""pyggml-cli: what goes where, and how it ends."""

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import bench, cli, loading
from text_model import BOS, EOT, WORDS, write_text_model

TIMINGS = re.compile(
    r"\n +sampling time = +[\d.]+ ms / +\d+ tokens\n +load time = +[\d.]+ ms\nprompt eval time = .*per second\)\n"
    r" +eval time = .* runs .*per second\)\n +total time = .*tokens\n$"
)
HELLO = 256 + WORDS.index("hello")


@pytest.fixture
def complete(call: Callable[..., Any], model: Path, reference: None) -> Callable[..., Any]:
    """pyggml-cli on the small model, greedy."""
    return lambda *args, path=model: call(cli.main, "-m", path, "--temp", 0, *args)


def biased(text: str) -> list[str]:
    """Flags that make the model say this one byte again and again."""
    return ["-l", f"{ord(text)}+1000"]


def test_stdout_is_prompt_and_text_and_nothing_else(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "hello world", "-n", 4, *biased("x"), "--no-host")
    assert (outcome.code, outcome.out) == (0, "hello worldxxxx")
    assert outcome.err.startswith("note: --no-host makes no difference here\n")
    assert TIMINGS.search(outcome.err)


def test_without_the_prompt(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "hello", "-n", 2, *biased("x"), "--no-display-prompt", "--no-perf")
    assert (outcome.out, outcome.err) == ("xx", "")


def test_no_tokens_wanted(complete: Callable[..., Any]) -> None:
    assert complete("-p", "hello", "-n", 0).out == "hello"


def test_timings_count(complete: Callable[..., Any]) -> None:
    err = complete("-p", "hello world", "-n", 5, *biased("x")).err
    assert re.search(r"sampling time = .*/ +5 tokens", err)
    assert re.search(r"prompt eval time = .*/ +2 tokens", err)
    assert re.search(r" eval time = .*/ +4 runs", err)
    assert re.search(r"total time = .*/ +6 tokens", err)


def test_end_of_text(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "a", "-l", f"{EOT}+1000")
    assert outcome.out == "a" and "[end of text]" in outcome.err
    assert complete("-p", "a", "-l", f"{EOT}+1000", "--special").out == "a<|end|>"


def test_ignoring_the_end(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "a", "-n", 3, "-l", f"{EOT}+1000", *biased("x"), "--ignore-eos")
    assert outcome.out == "axxx" and "[end of text]" not in outcome.err


def test_reverse_prompts(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "xx", *biased("x"), "-r", "never", "-r", "xxx")
    assert outcome.out == "xx" + "x" and "[reverse prompt]" in outcome.err  # it may begin in the prompt
    assert complete("-p", "yy", *biased("x"), "-r", "xxx").out == "yyxxx"
    for prompt in ("xxx", "xxxyy"):  # there already, perhaps with a little behind it: nothing is generated
        outcome = complete("-p", prompt, *biased("x"), "-r", "xxx")
        assert outcome.out == prompt and "[reverse prompt]" in outcome.err
    assert complete("-p", "xxxyyy", "-n", 2, *biased("z"), "-r", "xxx").out == "xxxyyyzz"
    outcome = complete("-p", "a", "-n", 9, "-l", f"{BOS}+1000", "-r", "<|begin|>")  # a token that is not shown
    assert outcome.out == "a" and "[reverse prompt]" in outcome.err
    assert complete("-p", "a", "-n", 9, "-l", "10+1000", "-r", r"\n\n").out == "a\n\n"
    assert complete("-p", "a", "-r", "").code == 2


def test_context_full_is_a_clear_end(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "hello", "-c", 16, *biased("x"), "--no-perf")
    assert outcome.code == 0 and outcome.out == "hello" + 15 * "x"
    assert outcome.err == "[context full: 16 tokens; with --context-shift it goes on without the oldest]\n"


def test_prompt_too_long(complete: Callable[..., Any]) -> None:
    outcome = complete("-p", "x" * 61)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: the prompt has 61 tokens; a context of 64 takes at most 60\n"


def test_context_beyond_training_is_warned_of(complete: Callable[..., Any]) -> None:
    assert "warning: the model was trained on 64 tokens, not 100" in complete("-p", "a", "-n", 1, "-c", 100).err


def test_empty_prompt(complete: Callable[..., Any], tmp_path: Path) -> None:
    outcome = complete("-p", "", "--override-kv", "tokenizer.ggml.bos_token_id=int:99999,tokenizer.ggml.pre=str:glm4")
    assert outcome.code == 2 and "the prompt is empty, and the model has no BOS token" in outcome.err
    with_bos = write_text_model(tmp_path / "bos.gguf", add_bos=True)
    assert complete("-p", "", "-n", 1, *biased("x"), path=with_bos).out == "x"
    assert complete("-p", "", "-n", 1, *biased("x"), "-sp", path=with_bos).out == "<|begin|>x"
    assert BOS == EOT + 1


def test_characters_come_out_whole(complete: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([*"é🙂".encode(), EOT])
    monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", lambda chain, logits: next(said))
    outcome = complete("-p", "a\U0001f642")
    assert outcome.out == "a🙂é🙂"


def test_special_tokens_in_the_prompt_are_read(complete: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("pyggml.sampler.SamplerChain.accept", lambda chain, token: seen.append(token))
    monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", lambda chain, logits: EOT)
    assert complete("-p", "<|begin|>hello").out == "hello"
    assert seen == [BOS, HELLO]


def test_seeds(complete: Callable[..., Any]) -> None:
    def text(*args: object) -> str:
        return str(complete("-p", "a", "-n", 12, "--no-perf", "--temp", 3, *args).out)

    assert text("-s", 7) == text("-s", 7) != text("-s", 8)
    assert len({text() for _ in range(4)}) > 1  # random unless told


@pytest.mark.parametrize("flag", [("-fa", "off"), ("-ctk", "f32", "-ctv", "f32"), ("-ub", 1), ("-t", 1), ("-b", 2)])
def test_flags_that_change_how_but_not_what(complete: Callable[..., Any], flag: tuple[object, ...]) -> None:
    assert complete("-p", "hello world", "-n", 4, *flag).out == complete("-p", "hello world", "-n", 4).out


def test_samplers(complete: Callable[..., Any]) -> None:
    plain = complete("-p", "a", "-n", 6).out
    assert complete("-p", "a", "-n", 6, "--samplers", "top_k;temperature").out == plain
    assert complete("-p", "a", "-n", 6, "--sampler-seq", "kt").out == plain
    two = ("-n", 3, "-l", f"{ord('x')}+100", "-l", f"{ord('y')}+90")
    assert complete("-p", "a", *two).out == "axxx"
    assert complete("-p", "a", *two, "--repeat-penalty", 2, "--repeat-last-n", -1).out == "axyx"
    assert complete("-p", "x", *two, "--repeat-penalty", 2).out == "xyxx"  # the prompt counts


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--top-p", "nan"), 2, "--top-p nan: must be a finite number"),
        (("--samplers", "dice"), 2, "unknown sampler 'dice'"),
        (("--logit-bias", "x"), 2, "--logit-bias 'x'"),
        (("--logit-bias", "999999+1"), 2, "token 999999 is not in the vocabulary"),
        (("-ctk", "q4_0"), 1, "q4_0"),
        (("-dev", "RPC7"), 1, "unknown device 'RPC7'; available: none"),
        (("--rpc", "nowhere"), 1, "nowhere"),
        (("--rpc", "127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("-f", "/nonexistent"), 2, "give one of -p, -f and -bf"),
    ],
)
def test_errors_are_one_line(complete: Callable[..., Any], args: tuple[str, ...], code: int, words: str) -> None:
    outcome = complete("-p", "a", "-n", 1, *args)
    assert outcome.code == code and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert words.lower() in outcome.err.lower()


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "folder"])
def test_bad_files_are_one_line(complete: Callable[..., Any], model: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.gguf"
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        data = model.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello\n" * 50, "truncated": data[: len(data) // 2]}[damage])
    outcome = complete("-p", "a", path=path)
    assert outcome.code == 1 and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and "bad.gguf" in outcome.err


def test_error_in_the_middle(complete: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from pyggml.errors import DeviceError

    draws = iter([HELLO, HELLO])

    def sample(chain: object, logits: object) -> int:
        try:
            return next(draws)
        except StopIteration:
            raise DeviceError("RPC server\n127.0.0.1:1: gone") from None

    monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", sample)
    outcome = complete("-p", "a")
    assert (outcome.code, outcome.out) == (1, "ahellohello")
    assert outcome.err == "error: RPC server 127.0.0.1:1: gone\n"


def test_own_bugs_are_not_disguised(complete: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> int:
        raise AssertionError("a bug")

    monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", broken)
    with pytest.raises(AssertionError, match="a bug"):
        complete("-p", "a")


def test_list_devices(call: Callable[..., Any], reference: None) -> None:
    outcome = call(cli.main, "--list-devices")
    assert outcome.code == 0
    assert re.fullmatch(r"Available devices:\n  \w+: .* \(\d+ MiB, \d+ MiB free\)\n", outcome.out)


def test_progress_of_weights_and_kernels(
    call: Callable[..., Any], model: Path, reference: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain lines, as stderr is no terminal here."""
    from fake_devices import FakeDevice

    from pyggml import jit

    monkeypatch.setattr("pyggml_cli.progress.time.monotonic", iter(range(10**6)).__next__)
    monkeypatch.setattr("pyggml_cli.devices.extra_devices", lambda kind, spec: [FakeDevice("RPC0"), FakeDevice("RPC1")])
    opened = loading.context_arguments

    def compiling(*args: Any) -> dict[str, Any]:
        assert jit._progress is not None
        for done in range(4):
            jit._progress(done, 3, "kernel")
        return opened(*args)

    monkeypatch.setattr("pyggml_cli.loading.context_arguments", compiling)
    outcome = call(cli.main, "-m", model, "-p", "a", "-n", 2, "--rpc", "x:1,y:2", *biased("x"), "--no-perf")
    assert (outcome.code, outcome.out) == (0, "axx")
    assert outcome.err == "sending weights ...\ncompiling kernels, once ...\n"
    assert jit._progress is None


# ---- as a process of its own


def run(*args: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pyggml_cli.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, **options)


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from pyggml_cli import bench, cli, rpc_server
for command in (cli, bench, rpc_server):
    for flag in ("--help", "--version"):
        assert command.main([flag]) == 0
assert cli.main(["--tempp"]) == 2
print(sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))
    assert not loaded & {"numba", "llvmlite", "tokenizers", "numpy", "rich", "gguf", "jinja2"}


def test_nothing_but_one_line_from_a_process() -> None:
    done = run("-m", "/nonexistent/model.gguf", "-p", "a")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: /nonexistent/model.gguf: No such file or directory\n"


def test_ctrl_c_ends_politely(spawn: Callable[..., Any], tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "long.gguf", n_ctx=1 << 16)
    process = spawn("cli", "-m", path, "-p", "a", "--temp", 0, *biased("x"))
    assert process.stdout.read(20) == "a" + 19 * "x"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert set(out) <= {"x"} and err.endswith("\ninterrupted\n")
    assert "Traceback" not in err and "eval time" in err


def test_a_reader_that_has_had_enough(spawn: Callable[..., Any], tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "long.gguf", n_ctx=1 << 16)
    process = spawn("cli", "-m", path, "-p", "a", "--temp", 0, *biased("x"))
    assert process.stdout.read(2) == "ax"
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""


def test_a_terminal_gets_a_line_break_at_the_end(model: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "pyggml_cli.cli", "-m", str(model), "-p", "a", "-n", "3", "--temp", "0"]
    plain = {"env": {**os.environ, "NO_COLOR": "1"}, "stdout": follower, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *biased("x"), "--no-perf"], **plain) as process:
        os.close(follower)
        shown = b""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                data = os.read(leader, 1000)
            except OSError as reason:
                assert reason.errno == errno.EIO  # what Linux says when the other end is closed
                break
            if not data:
                break
            shown += data
        assert process.wait(60) == 0
    os.close(leader)
    assert shown == b"axxx\r\n"


def test_an_empty_prompt_begins_with_bos(
    complete: Callable[..., Any], call: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = complete("-p", "", "-n", 2, *biased("x"))
    assert (outcome.code, outcome.out) == (0, "xx")
    (tmp_path / "empty").touch()
    assert complete("-f", tmp_path / "empty", "-n", 2, *biased("x")).out == "xx"


def test_layers_that_no_device_takes_are_told_of(
    complete: Callable[..., Any], call: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyggml.backend.cuda.cuda_devices", list)
    monkeypatch.setattr("pyggml.backend.cuda.why_no_cuda", lambda: "there is no NVIDIA driver")
    monkeypatch.setattr("pyggml.backend.cuda.worth_telling", lambda reason: False)
    note = "note: -ngl {}: all layers are computed on the CPU: there is no NVIDIA driver\n"
    assert note.format(99) in complete("-p", "a", "-n", 1, "-ngl", 99).err
    assert note.format("all") in complete("-p", "a", "-n", 1, "-ngl", "all").err
    assert note.format(10) in call(bench.main, "-m", model, "-p", 2, "-n", 0, "-r", 1, "-ngl", 10).err
    for quiet in ([], ["-ngl", 0], ["-ngl", 99, "-dev", "none"]):
        assert "note" not in complete("-p", "a", "-n", 1, *quiet).err
    outcome = complete("-p", "a", "-dev", "CUDA0")
    assert outcome.err == "error: unknown device 'CUDA0'; available: none (there is no NVIDIA driver)\n"
