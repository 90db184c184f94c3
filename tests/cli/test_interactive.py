"""Dialogues without a template (-i, -if, --in-prefix, --in-suffix), colors, and what the prompt's tokens are."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli
from pyggml_cli.chat import is_chat, without_template
from pyggml_cli.color import Colors, colors
from pyggml_cli.completion_flags import ROWS
from pyggml_cli.flags import parse
from text_model import BOS, EOT, write_text_model

from pyggml.runtime.context import Context

SAY = "hm U:"


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("interactive") / "text.gguf", n_ctx=200)


@pytest.fixture
def talk(
    call: Callable[..., Any], longer: Path, reference: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """pyggml-cli with these lines on stdin; the model says `says`, again and again."""

    def run(lines: str, *args: object, says: str | list[int] = SAY, path: Path = longer) -> Any:
        tokens = [ord(c) for c in says] if isinstance(says, str) else says
        said = iter(tokens * 99)
        monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", lambda chain, logits: next(said))
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return call(cli.main, "-m", path, "--no-perf", *args)

    return run


@pytest.fixture
def context_tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """All tokens that lie in the context, in order."""
    tokens: list[int] = []
    decode = Context.decode

    def watching(self: Context, ids: Any, *args: Any, **options: Any) -> Any:
        del tokens[self.n_past :]
        tokens.extend(int(i) for i in ids)
        return decode(self, ids, *args, **options)

    monkeypatch.setattr(Context, "decode", watching)
    yield tokens


DIALOGUE = ["-r", "U:", "--in-prefix", " ", "--in-suffix", r"\nA:", "-p", "U: hi\nA:"]


def test_the_user_types_after_the_reverse_prompt(talk: Callable[..., Any], context_tokens: list[int]) -> None:
    outcome = talk("one\ntwo\n", *DIALOGUE)
    assert (outcome.code, outcome.err) == (0, "")
    # what the user types is shown by the terminal, not by us
    assert outcome.out == "U: hi\nA:hm U: \nA:hm U: \nA:hm U: "
    assert bytes(context_tokens).decode() == "U: hi\nA:hm U: one\nA:hm U: two\nA:hm U"  # the last one is not computed


def test_the_user_begins(talk: Callable[..., Any], context_tokens: list[int]) -> None:
    outcome = talk("one\n", "-if", "-r", "U:", "-p", "Q", "--in-suffix", ";")
    assert outcome.out == "Q;hm U:" and bytes(context_tokens) == b"Qone;hm U"
    outcome = talk("one\n", "-r", "U:", "--in-prefix", ">")  # no prompt: then too
    assert outcome.out == ">hm U:>" and bytes(context_tokens) == b">onehm U"


def test_an_empty_line_lets_the_model_go_on(talk: Callable[..., Any], context_tokens: list[int]) -> None:
    outcome = talk("\n", *DIALOGUE)
    assert outcome.out == "U: hi\nA:hm U: hm U: "
    assert bytes(context_tokens) == b"U: hi\nA:hm U:hm U"


def test_a_prompt_that_ends_in_a_reverse_prompt_asks_at_once(
    talk: Callable[..., Any], context_tokens: list[int]
) -> None:
    outcome = talk("one\n", "-i", "-r", "U:", "-p", "Q U:", "--in-suffix", "A:")
    assert outcome.out == "Q U:A:hm U:" and bytes(context_tokens) == b"Q U:oneA:hm U"
    outcome = talk("\n", "-i", "-r", "U:", "-p", "Q U:")  # an empty line: the model goes on
    assert outcome.out == "Q U:hm U:" and bytes(context_tokens) == b"Q U:hm U"
    outcome = talk("one\n", "-i", "-r", "U:", "-p", "Q U: ")  # something stands behind it
    assert outcome.out == "Q U: hm U:hm U:"


def test_a_match_may_begin_in_what_the_user_typed(talk: Callable[..., Any], context_tokens: list[int]) -> None:
    outcome = talk("aU\n", "-i", "-r", "U:", "-p", "Q", says=":hmU:")
    assert outcome.out == "Q:hmU:" + ":" and bytes(context_tokens) == b"Q:hmU:aU"


def test_after_the_end_of_a_text_the_reverse_prompt_is_put_there(
    talk: Callable[..., Any], context_tokens: list[int]
) -> None:
    outcome = talk("x\n", "-i", "-r", "U:", "-p", "Q", says=[ord("a"), EOT])
    assert outcome.out == "Qa\nU:a\nU:"
    assert bytes(context_tokens) == b"QaU:xa"


def test_a_bos_before_each_line(talk: Callable[..., Any], context_tokens: list[int]) -> None:
    talk("x\n", "-i", "--in-prefix-bos", "-r", "U:", "-p", "Q")
    assert context_tokens == [*b"Qhm U:", BOS, *b"xhm U"]


def test_special_tokens_are_read_in_the_prefix_and_not_in_the_line(
    talk: Callable[..., Any], context_tokens: list[int]
) -> None:
    talk("<|end|>\n", "-if", "--in-prefix", "<|end|>", "-r", "U:", "-p", "Q")
    assert context_tokens == [ord("Q"), EOT, *b"<|end|>hm U"]


def test_commands(talk: Callable[..., Any], context_tokens: list[int], tmp_path: Path) -> None:
    outcome = talk("one\n/regen\n/clear\ntwo\n", *DIALOGUE)
    assert outcome.code == 0 and bytes(context_tokens) == b"U: hi\nA: two\nA:hm U"
    outcome = talk(f"/save {tmp_path / 'file'}\n", *DIALOGUE)
    assert outcome.code == 1 and "only conversations by a template are saved" in outcome.err


def test_one_turn_and_nothing_to_go_on_with(talk: Callable[..., Any]) -> None:
    assert talk("one\n", *DIALOGUE, "-st").out == "U: hi\nA:hm U:"
    outcome = talk("\n", "-i")
    assert outcome.code == 1 and outcome.err.startswith("error: nothing to go on with")


def test_which_flags_ask_for_it() -> None:
    def both(line: str) -> tuple[bool, bool]:
        values = parse(ROWS, line.split())
        return is_chat(values), without_template(values)

    assert both("-p a") == (False, False) and both("-p a -i") == (True, True) == both("-p a -if -no-cnv")
    assert both("-p a -i -cnv") == (True, False) == both("-i -sys x")
    assert both("--in-prefix x -cnv") == (True, True) == both("-p a --in-suffix x")


def test_colors(talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = talk("", "-p", "Q", "-n", 2, "-co", "on")
    assert outcome.out == "\x1b[33mQ\x1b[0mhm"
    assert talk("", "-p", "Q", "-n", 2, "--color", "off").out == talk("", "-p", "Q", "-n", 2).out == "Qhm"
    assert talk("", "-if", "-p", "Q", "-co", "1").out == "\x1b[33mQ\x1b[0m"
    assert talk("", "-p", "Q", "-co", "red").code == 2
    monkeypatch.setattr("sys.stdout", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colors("auto") != Colors() == colors("off")
    monkeypatch.setenv("NO_COLOR", "1")
    assert colors("auto") == Colors() != colors("on")
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert colors("auto") == Colors()


def test_the_tokens_of_the_prompt(talk: Callable[..., Any], tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "bos.gguf", add_bos=True)
    outcome = talk("", "-p", "hello a", "-n", 1, "--verbose-prompt", path=path)
    shown = [f"{BOS:6} -> '<|begin|>'", f"{259:6} -> 'hello'", f"{32:6} -> ' '", f"{97:6} -> 'a'"]
    assert outcome.err.splitlines() == ["number of tokens in prompt = 4", *shown] and outcome.out == "hello ah"


def test_lists(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = call(cli.main, "--completion-bash").out
    assert script.startswith("complete -o default -W '") and script.endswith(" pyggml-cli\n") and " --temp " in script
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "none"))
    assert call(cli.main, "-cl").out == "number of models in cache: 0\n"
    (tmp_path / "models/a.gguf").touch()
    assert call(cli.main, "--cache-list").out == "number of models in cache: 1\n   1. a.gguf\n"
