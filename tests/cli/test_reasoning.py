"""What a conversation makes of reasoning: shown as llama-cli shows it, told apart as the server does, kept for later turns."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyggml_cli import cli, reply_display, template_flags
from pyggml_cli.color import Colors
from pyggml_cli.reply_display import ReplyDisplay
from text_model import BOS, EOT, write_text_model

from pyggml.chat import ChatTemplate, prepare
from pyggml.chat.request import REASONING_FORMATS
from pyggml.grammar import Trigger
from pyggml.runtime.context import Context
from pyggml.sampler import SamplerChain

MESSAGES = (
    "{% for m in messages %}{{ m.role[0] }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}{% if preserve_reasoning %}+{% endif %}"
)
FREE = MESSAGES + "{% if add_generation_prompt %}a:{% endif %}"
OPENED = MESSAGES + "{% if add_generation_prompt %}a:<think>\n{% endif %}"
SAY = "<think>\nhm\n</think>\n\nyes"
SHOWN = "\n[Start thinking]\n\nhm\n[End thinking]\n\nyes\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("reasoning")

    def make(template: str, bos: str = "<|begin|>") -> Path:
        path = folder / f"{hash((template, bos))}.gguf"
        return path if path.exists() else write_text_model(path, n_ctx=512, template=template, bos=bos)

    return make


@pytest.fixture
def talk(call: Callable[..., Any], reference: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """pyggml-cli with these lines on stdin; the model says `says` in each turn."""

    def run(path: Path, lines: str, *args: object, says: str | list[int] = SAY) -> Any:
        tokens = [*([ord(c) for c in says] if isinstance(says, str) else says), EOT]
        said = iter(tokens * 9)
        monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", lambda chain, logits: next(said))
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return call(cli.main, "-m", path, "--no-perf", "-cnv", *args)

    return run


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The text in the context after each call with more than one token."""
    tokens: list[int] = []
    texts: list[str] = []
    decode = Context.decode

    def watching(self: Context, ids: Any, *args: Any, **options: Any) -> Any:
        del tokens[self.n_past :]
        tokens.extend(int(i) for i in ids)
        if len(ids) > 1:
            texts.append("".join("|" if token == EOT else chr(token) for token in tokens))
        return decode(self, ids, *args, **options)

    monkeypatch.setattr(Context, "decode", watching)
    yield texts


def test_reasoning_is_shown_as_llama_cli_shows_it(talk: Any, models: Any) -> None:
    outcome = talk(models(FREE), "q\n")
    assert (outcome.code, outcome.out, outcome.err) == (0, SHOWN, "")
    assert talk(models(OPENED), "q\n", says="hm\n</think>\n\nyes").out == SHOWN
    assert talk(models(OPENED), "q\n", says="hm").out == "\n[Start thinking]\n\nhm\n"  # never ended
    assert talk(models(FREE), "q\n", says="yes").out == "yes\n"


@pytest.mark.parametrize("name", ["auto", "deepseek", "deepseek-legacy", "none"])
def test_reasoning_formats(talk: Any, models: Any, name: str) -> None:
    outcome = talk(models(FREE), "q\n", "--reasoning-format", name)
    assert outcome.out == (f"{SAY}\n" if name == "none" else SHOWN)


def test_replies_that_are_left_as_they_are(talk: Any, models: Any) -> None:
    assert talk(models(FREE), "q\n", "--skip-chat-parsing").out == f"{SAY}\n"
    said = talk(models(FREE), "q\n", "--skip-chat-parsing", "--no-skip-chat-parsing")
    assert said.out == SHOWN


def test_a_template_without_reasoning_tells_nothing_apart(talk: Any, models: Any) -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}a:"
    assert talk(models(plain), "q\n").out == f"{SAY}\n"


def test_markers_that_are_control_tokens(talk: Any, models: Any) -> None:
    assert talk(models(FREE, bos="<think>"), "q\n", says=[BOS, *b"hm</think>yes"]).out == SHOWN


def test_colors(talk: Any, models: Any) -> None:
    outcome = talk(models(FREE), "q\n", "-co", "on")
    said = "\x1b[90m\n[Start thinking]\n\nhm\n[End thinking]\n\n\x1b[0myes\n"
    assert outcome.out.endswith(said), outcome.out
    assert talk(models(FREE), "q\n", "-co", "on", says="<think>hm").out.endswith("hm\x1b[0m\n")


def test_later_turns_have_what_was_thought(talk: Any, models: Any, computed: list[str]) -> None:
    talk(models(FREE), "q\nr\n")
    assert computed == ["u:q|+a:", "u:q|a:<think>hm</think>yes|u:r|+a:"]
    computed.clear()
    talk(models(FREE), "q\nr\n", "--no-reasoning-preserve")
    assert computed == ["u:q|a:", "u:q|a:<think>hm</think>yes|u:r|a:"]
    computed.clear()
    talk(models(FREE), "q\nr\n", "--reasoning-format", "none", "--no-reasoning-preserve")
    assert computed == ["u:q|a:", f"u:q|a:{SAY}|u:r|a:"]


def test_what_was_written_is_not_computed_again(talk: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decode = Context.decode

    def counting(self: Context, ids: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(ids))
        return decode(self, ids, *args, **options)

    monkeypatch.setattr(Context, "decode", counting)
    talk(models(FREE), "q\nr\n", "--no-reasoning-preserve", says="<think>hm</think>yes")
    assert [n for n in sizes if n > 1] == [len("u:q|a:"), len("|u:r|a:")]


def test_saved_conversations_keep_it(talk: Any, models: Any, computed: list[str], tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    talk(models(FREE), f"q\n/save {file}\n", "--no-reasoning-preserve")
    assert json.loads(file.read_text())["messages"][1] == {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
    }
    computed.clear()
    talk(models(FREE), f"/load {file}\nr\n", "--no-reasoning-preserve")
    assert computed == ["u:q|a:<think>hm</think>yes|u:r|a:"]
    file.write_text('{"messages": [{"role": "user", "content": "q", "reasoning_content": 3}]}')
    outcome = talk(models(FREE), f"/load {file}\n")
    assert outcome.code == 1 and "not a saved conversation" in outcome.err


def test_a_grammar_holds_after_reasoning_that_the_prompt_has_opened(
    talk: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    triggers: list[Trigger | None] = []

    def run(template: str) -> None:
        said = iter([*b"hm</think>true", EOT])

        def sample(chain: Any, logits: Any) -> int:
            triggers.append(chain.params.grammar_trigger)
            chain.grammar.accept(token := next(said))
            return token

        monkeypatch.setattr("pyggml.sampler.SamplerChain.sample", sample)
        monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
        outcome = cli.main(["-m", str(models(template)), "-cnv", "--no-perf", "-j", '{"type": "boolean"}'])
        assert outcome == (0 if template == OPENED else 1)

    run(OPENED)
    assert set(triggers) == {Trigger(after="</think>")}
    triggers.clear()
    run(FREE)
    assert set(triggers) == {None}


def test_formats_are_those_of_the_parser() -> None:
    assert template_flags.REASONING_FORMATS == REASONING_FORMATS


def _shown(text: str, size: int) -> tuple[str, ReplyDisplay]:
    out = io.StringIO()
    parser = prepare(ChatTemplate(FREE), [{"role": "user", "content": "q"}]).parser()
    display = ReplyDisplay(out, Colors(), parser)
    data = text.encode()
    for i in range(0, len(data), size):
        display.feed(data[i : i + size])
    display.finish()
    return out.getvalue(), display


TEXTS = {  # what is written -> what is shown
    "<think>hm</think>yes": "\n[Start thinking]\n\nhm\n[End thinking]\n\nyes",
    "<think>grüße\n</think>\n\n世界 <thin": "\n[Start thinking]\n\ngrüße\n[End thinking]\n\n世界 <thin",
    "a<think>b</think>c": "a\n\n[Start thinking]\n\nb\n[End thinking]\n\nc",
    "a\n<think>b</think>c<think>d": "a\n\n[Start thinking]\n\nb\n[End thinking]\n\nc\n\n[Start thinking]\n\nd",
    "<think></think>yes": "yes",
    "yes\n": "yes\n",
    "": "",
}


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_any_size(text: str, size: int) -> None:
    shown, display = _shown(text, size)
    assert shown == TEXTS[text]
    assert display.written == text


def test_a_display_that_forgets_where_reasoning_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_display, "END", "")
    with pytest.raises(AssertionError):
        test_pieces_of_any_size("<think>hm</think>yes", 1)


def test_bytes_that_are_no_text_and_control_characters_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    display = ReplyDisplay(out, Colors(), None)
    display.feed(b"a\x1b[2J\xff")
    display.feed("ß".encode()[:1])
    display.finish()
    assert out.getvalue() == "a[2J\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert display.content == display.written == "a\x1b[2J\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("template", "says", "budget", "shown"),
    [
        (FREE, "<think>abcdef</think>yes", 3, "\n[Start thinking]\n\nabc\n[End thinking]\n\ndefyes\n"),
        (OPENED, "abcdef", 2, "\n[Start thinking]\n\nab\n[End thinking]\n\ncdef\n"),
        (OPENED, "abc</think>yes", 0, "abcyes\n"),
        (OPENED, "abc</think>yes", 20, "\n[Start thinking]\n\nabc\n[End thinking]\n\nyes\n"),
        (FREE, "<think>aä</think>yes", 2, "\n[Start thinking]\n\naä\n[End thinking]\n\nyes\n"),
        (FREE, "yes", 0, "yes\n"),
    ],
)
def test_a_budget_of_reasoning(
    call: Any, models: Any, reference: None, monkeypatch: pytest.MonkeyPatch,
    template: str, says: str, budget: int, shown: str,
) -> None:  # fmt: skip
    """The model says `says`, token by token, wherever it is free to."""
    said = iter([*says.encode(), EOT])
    draw = SamplerChain.draw

    def speaking(chain: SamplerChain, logits: Any) -> int:
        assert chain.budget is not None
        if chain.budget.wanted is None:
            logits = np.where(np.arange(len(logits)) == next(said), np.float32(0), np.float32(-99))
        return draw(chain, logits)

    monkeypatch.setattr(SamplerChain, "draw", speaking)
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    outcome = call(cli.main, "-m", models(template), "--no-perf", "-cnv", "--temp", 0, "--reasoning-budget", budget)
    assert outcome.out == shown


def test_a_budgets_message(talk: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("pyggml_cli.cli.replace", lambda params, **more: seen.append(more) or replace(params, **more))
    talk(models(FREE), "q\n", "--reasoning-budget", 7, "--reasoning-budget-message", "So.")
    budget = seen[-1]["budget"]
    assert (budget.tokens, bytes(budget.start), bytes(budget.forced)) == (7, b"<think>", b"So.</think>")
    assert talk(models(FREE), "q\n", "--reasoning-budget", -2).code == 2
