"""The commands of the README as three processes: two servers, and a client that prints the local run's text."""

from collections.abc import Callable
from typing import Any

import pytest

from pyggml.model.model import Model
from pyggml.runtime.context import Context

PROMPT = "Hello, my name is"
GOLDEN = {
    PROMPT: (" Alex, and I'm a", 0.1),
    "The numbers from one to twenty: one, two, three, four,": (
        " five, six, seven, eight, nine, ten, eleven, twelve,",
        0.2,
    ),
}
"""How the Q4_1 file goes on, and by how much the likeliest token's logit leads at least all the way. The next token is
nearly a tie after the first prompt, where another CPU's order of additions may print another text."""


@pytest.fixture(scope="module")
def complete(command: Callable[..., Any], smollm2: Any) -> Callable[..., str]:
    """The text that pyggml-cli prints."""

    def run(*args: object, prompt: str = PROMPT, n_predict: int = 64) -> str:
        flags = ("--repeat-penalty", "1.0", "-n", n_predict, "--temp", 0)
        process = command("cli", "-m", smollm2, "-p", prompt, *flags, *args)
        assert process.wait() == 0, process.err
        text: str = process.out
        return text

    return run


@pytest.fixture(scope="module")
def local_text(complete: Callable[..., str]) -> str:
    return complete()


@pytest.mark.parametrize("prompt", GOLDEN)
def test_local_text(complete: Callable[..., str], local_text: str, prompt: str) -> None:
    text = local_text if prompt == PROMPT else complete(prompt=prompt, n_predict=16)
    assert text.startswith(prompt + GOLDEN[prompt][0])
    assert len(local_text) > 200, "64 tokens of English"


@pytest.mark.parametrize("options", [("-ngl", 99), (), ("-ngl", 12), ("-ngl", 99, "-ts", "3,1"), ("-ngl", 0)])
def test_text_with_servers(
    complete: Callable[..., str], two_servers: Any, local_text: str, options: tuple[object, ...]
) -> None:
    endpoints = ",".join(server.endpoint for server in two_servers)
    assert complete("--rpc", endpoints, *options) == local_text


def test_text_with_one_server_and_other_threads(
    complete: Callable[..., str], two_servers: Any, local_text: str
) -> None:
    assert complete("--rpc", two_servers[0].endpoint, "-ngl", 99) == local_text
    assert complete("-t", 1) == local_text


@pytest.mark.parametrize("prompt", GOLDEN)
def test_golden_text_is_far_from_ties(smollm2: Any, follow: Callable[..., Any], tokenize: Any, prompt: str) -> None:
    text, lead = GOLDEN[prompt]
    tokens = tokenize(prompt)
    forced = tokenize(prompt + text)[len(tokens) :]
    model = Model.load(smollm2)
    context = Context(model, n_ctx=256)
    for token, logits in zip(forced, follow(context, tokens, forced, len(forced)), strict=True):
        second, first = sorted(logits)[-2:]
        assert logits.argmax() == token and first - second > lead
    context.close()
    model.close()
