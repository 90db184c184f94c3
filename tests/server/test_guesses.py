"""Guessed tokens: a step may bring several of a text, and what is answered is what comes without guesses."""

from collections.abc import Callable

import pytest
from serving import Client, serving

from pyggml.model.model import Model
from pyggml.runtime.drafter import Drafter

BODY = {"prompt": "hello hello hello", "max_tokens": 40, "logprobs": 1, "ignore_eos": True}


class Known:
    """Guesses from what is known to come, now and then wrongly."""

    def __init__(self, answer: list[int], n_prompt: int) -> None:
        self.answer, self.n_prompt, self.asked = answer, n_prompt, 0

    def draft(self, tokens: list[int], most: int) -> list[int]:
        self.asked += 1
        guess = self.answer[len(tokens) - self.n_prompt :][: min(most, 4)]
        return [*guess[:2], 7] if self.asked % 3 == 0 else guess

    def kept(self, drafted: int, kept: int) -> None:
        pass


def steps(client: Client, body: dict) -> int:
    before = client.served.engine.counters.steps
    client.ok("/v1/completions", body)
    return client.served.engine.counters.steps - before


@pytest.mark.parametrize("stop", [None, "cut"])
def test_guesses_change_no_answer(model: Model, stop: str | None) -> None:
    with serving(model, n_slots=2) as client:
        plain = client.ok(
            "/completion", {"prompt": BODY["prompt"], "n_predict": 40, "ignore_eos": True, "return_tokens": True}
        )
        text = plain["content"]
        body = {**BODY, "stop": [text[9:11]]} if stop else BODY
        wanted = client.ok("/v1/completions", body)["choices"][0]
    made: Callable[[], Drafter] = lambda: Known(plain["tokens"], plain["tokens_evaluated"])  # noqa: E731
    with serving(model, n_slots=2, make_drafter=made) as client:
        for _ in range(2):
            found = client.ok("/v1/completions", body)["choices"][0]
            assert (found["text"], found["finish_reason"]) == (wanted["text"], wanted["finish_reason"])
            assert found["logprobs"]["tokens"] == wanted["logprobs"]["tokens"]
        events = client.stream("/v1/completions", body)
        assert "".join(c["text"] for e in events for c in e["choices"]) == wanted["text"]
        tokens = [t for e in events for c in e["choices"] if c["logprobs"] for t in c["logprobs"]["tokens"]]
        assert tokens == wanted["logprobs"]["tokens"]
        assert steps(client, body) < len(tokens) and client.served.engine.idle
