"""A smaller model's guesses: no token is another one for them, and those of several texts are computed together."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_context import Argmax
from mutants import Mutant, assert_caught, mutate
from tiny_model import N_VOCAB

from pyggml.errors import ModelError
from pyggml.model.model import Model
from pyggml.runtime import batcher as batcher_module
from pyggml.runtime import drafter as drafter_module
from pyggml.runtime.batch import Batch
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.draft_model import CHUNK, DraftModel, ModelDrafter, check_same_tokens
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.slot import Slot


class Watched(DraftModel):
    """Notes how many tokens of how many texts each batch has."""

    def __init__(self, context: Context, most: int = 3, **options: Any) -> None:
        super().__init__(context, most, **options)
        self.batches: list[list[int]] = []

    def compute(self, wanted: Any) -> Any:
        self.batches.append([len(tokens) for _, tokens in wanted])
        return super().compute(wanted)


def prompts(*sizes: int) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, N_VOCAB, n).tolist() for n in sizes]


def answers(
    model: Model,
    texts: Sequence[Sequence[int]],
    small: DraftModel | None,
    n: int = 20,
    n_ctx: int = 256,
    **options: Any,
) -> tuple[list[list[int]], list[Text]]:
    """Of texts that are generated together, each `n` tokens."""
    context = Context(model, n_ctx=n_ctx * len(texts), n_seq_max=len(texts), **options)
    batcher = Batcher(context, 64)
    if small is not None:
        for place in batcher.places:
            place.drafter = small.drafter(place.seq)
    made = [Text(prompt, Argmax(), max_tokens=n) for prompt in texts]
    for text in made:
        batcher.add(text)
    while not batcher.idle:
        batcher.step()
    context.close()
    assert all(text.finish is Finish.LENGTH for text in made)
    return [text.answer for text in made], made


@pytest.mark.parametrize("which", ["itself", "another"])
def test_one_text(draft_models: tuple[Model, Model], which: str) -> None:
    context, small = Context(draft_models[0], n_ctx=256), Context(draft_models[which == "another"], n_ctx=256)
    prompt, found = [3, 7, 11, 2], list[list[int]]()
    for drafter in (None, DraftModel(small, 4).drafter()):
        text = Text(prompt, Argmax(), max_tokens=24, drafter=drafter)
        list(generate(Slot(context, memory=context.memory), text))
        found.append(text.answer)
    assert found[0] == found[1]
    if which == "itself":
        assert text.n_kept == text.n_drafted > 10
    small.clear()
    assert DraftModel(small, 4, p_min=1.1).drafter().draft(prompt, 9) == []
    context.close(), small.close()


@pytest.mark.parametrize("which", ["itself", "another"])
@pytest.mark.parametrize("unified", [False, True])
def test_a_step_of_all_texts_is_one_batch(draft_models: tuple[Model, Model], which: str, unified: bool) -> None:
    texts = prompts(3, 9, 14, 6)
    plain, _ = answers(draft_models[0], texts, None, kv_unified=unified)
    context = Context(draft_models[which == "another"], n_ctx=4 * 256, n_seq_max=4, kv_unified=unified)
    small = Watched(context, 3)
    found, made = answers(draft_models[0], texts, small, kv_unified=unified)
    assert found == plain
    assert sum(len(sizes) == 4 for sizes in small.batches) > len(small.batches) / 2
    if which == "itself":
        assert all(text.n_kept == text.n_drafted > 10 for text in made), "guesses are the text's own"
    context.close()


def test_texts_that_come_and_go(draft_models: tuple[Model, Model]) -> None:
    """More texts than places, of different lengths: a place's draft sequence goes from one text to the next."""
    texts = prompts(3, 40, 5, 11, 90, 2, 31)
    context, model = Context(draft_models[1], n_ctx=3 * 256, n_seq_max=3), draft_models[0]
    small = DraftModel(context, 5)
    found = []
    for drafts in (False, True):
        main = Context(model, n_ctx=3 * 256, n_seq_max=3)
        batcher = Batcher(main, 32)
        for place in batcher.places:
            place.drafter = small.drafter(place.seq) if drafts else None
        made = [Text(prompt, Argmax(), max_tokens=9 + 3 * i) for i, prompt in enumerate(texts)]
        for text in made:
            batcher.add(text)
        while not batcher.idle:
            batcher.step()
        found.append([text.answer for text in made])
        main.close()
    assert found[0] == found[1]
    context.close()


def test_what_the_smaller_model_lacks_is_computed_in_parts(draft_models: tuple[Model, Model]) -> None:
    """So that others need not wait for it; guesses begin when all of it is there."""
    texts = prompts(5, 3 * CHUNK + 20)
    plain, _ = answers(draft_models[0], texts, None, n=30)
    context = Context(draft_models[0], n_ctx=2 * 256, n_seq_max=2)
    small = Watched(context, 3)
    found, made = answers(draft_models[0], texts, small, n=30)
    assert found == plain and made[1].n_kept > 5
    assert max(map(max, small.batches)) == CHUNK
    context.close()


def test_shared_cells_that_are_full(draft_models: tuple[Model, Model]) -> None:
    """Texts go on without guesses, and what nobody needs makes room for them."""
    texts = prompts(30, 30)
    plain, _ = answers(draft_models[0], texts, None, n=30)
    context = Context(draft_models[0], n_ctx=256, n_seq_max=3, kv_unified=True)
    small = Watched(context, 3)
    left = ModelDrafter(small, 2)
    assert len(left.draft(prompts(CHUNK)[0], 3)) == 3
    for _ in range(2):
        left.draft(prompts(180)[0], 3)
    assert len(small.slots[2].tokens) > 2 * CHUNK - 10
    found, made = answers(draft_models[0], texts, small, n=30)
    assert found == plain and made[0].n_kept > 5
    assert not small.slots[2].tokens
    context.close()


def test_a_failure_leaves_the_slots_true(draft_models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(draft_models[0], n_ctx=2 * 256, n_seq_max=2)
    small = DraftModel(context, 3)
    decode = context.decode

    def half(batch: Batch) -> Any:
        decode(batch.part(np.flatnonzero(batch.seq == 0)))
        raise RuntimeError("a device failed")

    monkeypatch.setattr(context, "decode", half)
    with pytest.raises(RuntimeError, match="a device failed"):
        small.compute([(1, [5, 6]), (0, [7, 8, 9])])
    assert [slot.tokens for slot in small.slots] == [[7, 8, 9], []]
    monkeypatch.undo()
    assert small.drafter(0).draft([7, 8, 9, 1], 3) == DraftModel(context, 3).drafter(1).draft([7, 8, 9, 1], 3)
    context.close()


def test_a_model_with_other_tokens_is_refused(draft_models: tuple[Model, Model]) -> None:
    context = Context(draft_models[0], n_ctx=64)
    other: Any = SimpleNamespace(model=SimpleNamespace(n_vocab=9999))
    with pytest.raises(ModelError, match="the draft model has 9999 tokens and the model"):
        check_same_tokens(context, other)
    check_same_tokens(context, context)
    context.close()


MUTANTS: dict[str, tuple[Mutant, Any]] = {
    "one text after the other": ((drafter_module, "draft_together", "setdefault(id(wanted.model), [])", "setdefault(i, [])"),
                                 test_a_step_of_all_texts_is_one_batch),
    "another text's row": ((DraftModel, "compute", "zip(order, rows, strict=True)", "zip(order, rows[::-1], strict=True)"),
                           test_a_step_of_all_texts_is_one_batch),
    "all at once, whatever waits": ((ModelDrafter, "steps", "len(left) > model.chunk", "False"),
                                    test_what_the_smaller_model_lacks_is_computed_in_parts),
    "no room is a failure": ((DraftModel, "compute", "except ContextError:", "except ZeroDivisionError:"), test_shared_cells_that_are_full),
    "nobody makes room": ((DraftModel, "_make_room", "if others:", "if False:"), test_shared_cells_that_are_full),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, draft_models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, test = MUTANTS[mutant]
    if wrong[0] is drafter_module:  # the batcher has the function's name, too
        mutate(monkeypatch, wrong)
        monkeypatch.setattr(batcher_module, "draft_together", drafter_module.draft_together)
        with pytest.raises(AssertionError):
            test(draft_models, "itself", False)
        return
    assert_caught(monkeypatch, wrong, test, draft_models=draft_models, which="itself", unified=False)
