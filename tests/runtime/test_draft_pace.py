"""Whether drafts are made, on a machine of which all is known: what steps take, and how many guesses are right."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from fake_context import Argmax, FakeContext, row
from mutants import Mutant, assert_caught

from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.draft_model import DraftModel
from pyggml.runtime.draft_pace import DraftPace
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.slot import Slot

PLAIN = 0.02


class Machine:
    """`seconds` pass when it says so. A step takes PLAIN seconds without drafts, and `drafts` seconds more with those of all texts, of
    which each then has `kept` more tokens; now and then something holds it up for `held` seconds.

    share   of the steps that find a draft
    prompt  tokens of each new text that a draft model has to compute, in `token` seconds each
    length  tokens of an answer
    """

    def __init__(self, running: int, drafts: float, kept: float, *, seed: int = 1, **options: Any) -> None:
        self.running, self.drafts, self.kept = running, drafts, kept
        self.share: float = options.pop("share", 1.0)
        self.held: float = options.pop("held", 0.0)
        self.prompt: int = options.pop("prompt", 0)
        self.token: float = options.pop("token", 0.0)
        self.length: int = options.pop("length", 10**9)
        assert not options
        self.now = self.plain = 0.0
        self.tokens, self.drafted, self.lacks, self.said = 0.0, 0, self.prompt * running, 0.0
        self.random = random.Random(seed)
        self.pace = DraftPace(lambda: self.now)

    def step(self) -> bool:
        """Whether it had drafts."""
        pace, tokens, some = self.pace, self.running, False
        if pace.begin(self.running, self.lacks):
            self.now += self.lacks * self.token
            caught_up, self.lacks = self.lacks > 4 * self.running, 0
            some = not caught_up and self.random.random() < self.share
            if some:
                more = sum(self._kept() for _ in range(self.running))
                tokens += more
                self.now += self.drafts
            pace.drafted(some)
        else:
            self.lacks += self.running if self.prompt else 0
        self.now += PLAIN + (self.held if self.random.random() < 0.03 else 0.0)
        pace.end(tokens)
        self.tokens, self.drafted = self.tokens + tokens, self.drafted + some
        self.said += tokens / self.running
        if self.said >= self.length:
            self.said, self.lacks = 0.0, self.prompt * self.running
        return some

    def _kept(self) -> int:
        return int(self.kept) + (self.random.random() < self.kept % 1)

    def run(self, steps: int) -> float:
        """Tokens a second of these steps, over those without drafts."""
        tokens, now, drafted = self.tokens, self.now, self.drafted
        for _ in range(steps):
            self.step()
        self.drafted -= drafted
        without = self.running / (PLAIN + 0.03 * self.held)
        return (self.tokens - tokens) / (self.now - now) / without


LOSING = [(16, 0.08, 1.6), (16, 0.4, 0.0), (1, 0.02, 0.2), (4, 0.03, 0.9), (16, 0.021, 0.99)]


@pytest.mark.parametrize(("running", "drafts", "kept"), LOSING)
@pytest.mark.parametrize("held", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_drafts_that_lose_are_given_up(running: int, drafts: float, kept: float, held: float, share: float) -> None:
    machine = Machine(running, drafts, kept, held=held, share=share)
    assert machine.run(300) > 0.85, "before anything is known"
    assert machine.run(3000) >= 0.95
    assert 0 < machine.drafted < (600 if drafts > 0.021 else 3000), "tried now and then"


@pytest.mark.parametrize(("running", "drafts", "kept"), [(1, 0.01, 2.0), (16, 0.04, 2.6), (4, 0.02, 1.4)])
@pytest.mark.parametrize("held", [0.0, 0.1])
def test_drafts_that_gain_are_made(running: int, drafts: float, kept: float, held: float) -> None:
    machine = Machine(running, drafts, kept, held=held)
    machine.run(100)
    gain = (1 + kept) * (PLAIN + 0.03 * held) / (PLAIN + drafts + 0.03 * held)
    assert machine.run(1000) > (0.85 if held else 0.96) * gain


def test_they_are_tried_again() -> None:
    """The texts are others now, whose next tokens are easy to guess; and then these end."""
    machine = Machine(16, 0.08, 1.6)
    assert machine.run(500) > 0.9
    machine.kept = 6.0
    machine.run(400)
    assert machine.run(300) > 1.2
    machine.kept = 0.5
    machine.run(60)
    assert machine.run(2000) >= 0.95


def test_each_kind_of_load_has_its_own() -> None:
    """For one text the model waits for memory, for sixteen it does not."""
    machine = Machine(16, 0.08, 1.6)
    machine.run(400)
    machine.running, machine.drafts = 1, 0.01
    machine.run(60)
    assert machine.run(200) > 1.5
    machine.running, machine.drafts = 16, 0.08
    assert machine.run(400) >= 0.95


@pytest.mark.parametrize(("token", "gains"), [(0.00002, True), (0.002, False)])
def test_what_a_draft_model_computes_of_prompts_counts(token: float, gains: bool) -> None:
    """4 texts with prompts of 200 tokens and answers of 100, whose drafts gain half as much again."""
    machine = Machine(4, 0.01, 1.25, prompt=200, token=token, length=100)
    machine.run(600)
    ratio = machine.run(4000)
    assert (ratio > 1.2) if gains else (ratio >= 0.95)


def test_one_text_alone() -> None:
    """Through the loop of a generation: the time between two tokens that are taken slowly is nobody's."""
    now = [0.0]

    class Timed(FakeContext):
        def decode(self, *args: Any, **options: Any) -> Any:
            rows = super().decode(*args, **options)
            now[0] += PLAIN * (1 if len(args[0]) == 1 else 3)
            return rows

    class Right:
        asked = 0

        def __init__(self, right: bool) -> None:
            self.right = right

        def draft(self, tokens: Any, most: int) -> list[int]:
            self.asked += 1
            text = list(tokens)
            for _ in range(min(5, most)):
                text.append(Argmax().sample(row(text)) if self.right else 0)
            return text[len(tokens) :]

        def kept(self, drafted: int, kept: int) -> None:
            pass

    asked = {}
    for right in (True, False):
        drafter, context = Right(right), Timed(500)
        text = Text(b"abc", Argmax(), max_tokens=200, drafter=drafter)
        for _ in generate(Slot(context), text, pace=DraftPace(lambda: now[0])):
            now[0] += 1.0
        asked[right] = drafter.asked
        assert len(text.answer) == 200
    assert asked[True] > 25 and 0 < asked[False] < 15


@pytest.mark.parametrize(("cost", "gains"), [(0.02, True), (2.0, False)])
def test_texts_of_a_batcher(
    draft_models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch, cost: float, gains: bool
) -> None:
    """The draft model is the model itself, whose guesses are right; `cost` of a step of it, over one of the model."""
    now, steps = [0.0], {"model": 0, "draft": 0}
    context, small = (Context(draft_models[0], n_ctx=3 * 256, n_seq_max=3) for _ in range(2))
    plain = Context.decode

    def timed(self: Context, *args: Any, **options: Any) -> Any:
        now[0] += PLAIN * (1.0 if self is context else cost)
        steps["model" if self is context else "draft"] += 1
        return plain(self, *args, **options)

    monkeypatch.setattr(Context, "decode", timed)
    answers = []
    for pace in (None, DraftPace(lambda: now[0])):
        drafts = DraftModel(small, 3)
        batcher = Batcher(context, 64, pace=pace)
        for place in batcher.places:
            place.drafter = drafts.drafter(place.seq)
        texts = [Text([3 + i, 7, 11], Argmax(), max_tokens=200) for i in range(3)]
        for text in texts:
            batcher.add(text)
        steps.update(model=0, draft=0)
        while not batcher.idle:
            batcher.step()
        answers.append([text.answer for text in texts])
        context.clear()
        small.clear()
    assert answers[0] == answers[1]
    assert (steps["draft"] > 120) if gains else (0 < steps["draft"] < 40), steps
    context.close()
    small.close()


MUTANTS: dict[str, tuple[Mutant, Callable[..., Any], dict[str, Any]]] = {
    "drafts are never given up": ((DraftPace, "_took", "gained >= GAIN * spent", "True"), test_drafts_that_lose_are_given_up,
                                  {"running": 16, "drafts": 0.4, "kept": 0.0, "held": 0.0, "share": 1.0}),
    "what a try loses is not put by": ((DraftPace, "_wants", "load.saved < self._expected(load)", "False"),
                                       test_drafts_that_lose_are_given_up,
                                       {"running": 16, "drafts": 0.4, "kept": 0.0, "held": 0.0, "share": 1.0}),
    "drafts are not tried again": ((DraftPace, "_wants", "load.waited < PAUSE", "load.loss > 0"),
                                   test_they_are_tried_again, {}),
    "one kind of load": ((DraftPace, "_wants", "self._running.bit_length()", "0"), test_each_kind_of_load_has_its_own, {}),
    "prompts cost nothing": ((DraftPace, "_took", "seconds + share", "seconds"),
                             test_what_a_draft_model_computes_of_prompts_counts, {"token": 0.002, "gains": False}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, test, arguments = MUTANTS[mutant]
    assert_caught(monkeypatch, wrong, test, **arguments)
