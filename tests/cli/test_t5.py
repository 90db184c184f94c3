"""A model with an encoder: the command prints what llama-completion prints, and what it cannot do is said in one line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from programs import Newest
from pyggml_cli import batched_bench, bench, cli, embedding
from tiny_t5 import ensure_t5

from pyggml import Llama

PROMPTS = ("the cat", "a dog, and the singer.")


@pytest.fixture(scope="module")
def files() -> Mapping[str, Path]:
    return ensure_t5()


@pytest.mark.parametrize(("prompt", "more"), [(PROMPTS[0], ("-fa", "off")), (PROMPTS[1], ("--special",))])
def test_prints_what_the_peer_prints(
    files: Mapping[str, Path], newest: Newest, call: Callable[..., Any], prompt: str, more: tuple[str, ...]
) -> None:
    """The answer alone, without the text that is answered."""
    path = files["t5-gated"]
    text, _ = newest.complete(path, prompt, 20, *more)
    ours = call(cli.main, "-m", path, "-p", prompt, "-n", 20, "--temp", 0, "-c", 512, *more)
    assert (ours.code, ours.out.rstrip()) == (0, text.rstrip())
    assert len(set(ours.out)) > 5


def test_llama_answers(files: Mapping[str, Path], call: Callable[..., Any]) -> None:
    """With what the command prints, call after call, and streamed."""
    printed = [
        call(cli.main, "-m", files["t5-gated"], "-p", prompt, "-n", 12, "--temp", 0, "--no-display-prompt").out
        for prompt in PROMPTS
    ]
    with Llama(files["t5-gated"], n_ctx=256, verbose=False) as llm:
        for i in (0, 1, 0):
            answer = llm(PROMPTS[i], max_tokens=12, temperature=0.0)
            assert answer["choices"][0]["text"] == printed[i]
            assert answer["usage"] == {
                "prompt_tokens": len(llm.tokenize(PROMPTS[i].encode())),
                "completion_tokens": 12,
                "total_tokens": len(llm.tokenize(PROMPTS[i].encode())) + 12,
            }
        said = [c["choices"][0]["text"] for c in llm(PROMPTS[1], max_tokens=12, temperature=0.0, stream=True)]
        assert "".join(said) == printed[1]
        saved = llm.save_state()
        llm(PROMPTS[0], max_tokens=3, temperature=0.0)
        llm.load_state(saved)
        assert llm(PROMPTS[1], max_tokens=12, temperature=0.0)["choices"][0]["text"] == printed[1]


@pytest.mark.parametrize(
    ("main", "args", "said"),
    [
        (cli.main, ("-p", "a", "-cnv"), "answers one text, which its encoder reads whole, and holds no conversation"),
        (cli.main, ("-p", "a", "--prompt-cache", "FILE"), "--prompt-cache: an encoder reads this model's prompt whole"),
        (cli.main, ("-p", 70 * "a ", "-ub", 64), "a text of 72 tokens: an encoder reads 1 to 64 at once (n_ubatch)"),
        (cli.main, ("-p", "a", "-md", "ITSELF"), "answers a text, it cannot guess how one goes on"),
        (embedding.main, ("-p", "a"), "which has an encoder and a decoder"),
        (bench.main, ("-p", 4, "-n", 0, "-r", 1), "a t5 model answers a text, and none has been encoded"),
        (batched_bench.main, ("-npp", 4, "-ntg", 1, "-npl", 1), "a t5 model answers a text, and none has been encoded"),
    ],
)
def test_what_it_cannot_do_is_said(
    files: Mapping[str, Path], call: Callable[..., Any], tmp_path: Path, main: Any, args: tuple[Any, ...], said: str
) -> None:
    named = {"FILE": tmp_path / "cache", "ITSELF": files["t5"]}
    args = tuple(named.get(arg, arg) for arg in args)
    outcome = call(main, "-m", files["t5"], *args)
    assert outcome.code in (1, 2) and said in outcome.err and "Traceback" not in outcome.err
