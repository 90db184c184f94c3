"""What a text finds in its place: tokens of another sequence, prompts that were put away, nothing of other adapters; each text is the
one that comes from nothing, whatever the memory."""

from collections.abc import Iterator

import pytest
from fake_context import Greedy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_model import write_text_model
from tiny_archs import KINDS, tiny_models

from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import ContextError
from pyggml.memory.layered import Layered
from pyggml.model.model import Model
from pyggml.runtime import places
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.checkpoints import CheckpointRule
from pyggml.runtime.context import Context
from pyggml.runtime.idle_prompts import IdlePrompts, Kept
from pyggml.runtime.places import Places
from pyggml.runtime.sequence import Finish, Sequence

RULE = CheckpointRule(most=8, min_step=4)
A, B = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [50, 51, 52, 53, 54, 55, 56]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    with tiny_models(tmp_path_factory.mktemp("archs")) as made:
        yield made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of one token is worth it."""
    monkeypatch.setattr(places, "LEAST", 1)


def answers(
    model: Model, prompts: list[list[int]], n: int, *, n_seq_max: int = 2, at_once: int = 1, idle: IdlePrompts | None = None,
    kv_unified: bool = False, reuses: bool = True,
) -> tuple[list[list[int]], list[int]]:  # fmt: skip
    """The answers of n tokens to these, so many at once, and what each found computed."""
    context = Context(model, n_ctx=64 * n_seq_max, n_seq_max=n_seq_max, kv_unified=kv_unified, n_ubatch=4)
    batcher = Batcher(context, n_batch=16, rule=RULE, idle=idle, clears=kv_unified)
    texts = [Sequence(prompt, Greedy(), max_tokens=n, reuses=reuses) for prompt in prompts]
    left = list(texts)
    while left or not batcher.idle:
        while left and len(batcher.active) + len(batcher.waiting) < at_once:
            batcher.add(left.pop(0))
        batcher.step()
        for place in batcher.places:
            assert len(place.slot.tokens) - place.slot.forgotten == context.memory.end(place.seq)
    context.close()
    assert all(text.finish is Finish.LENGTH for text in texts)
    return [text.answer for text in texts], [text.n_reused for text in texts]


def fresh(model: Model, prompts: list[list[int]], n: int) -> list[list[int]]:
    return answers(model, prompts, n, reuses=False)[0]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
def test_a_prompt_that_was_put_away_comes_back(models: dict[str, Model], name: str, kv_unified: bool) -> None:
    prompts = [A, B, [*A, 20, 21, 22]]
    idle = IdlePrompts(None)
    found, reused = answers(models[name], prompts, 3, n_seq_max=1, idle=idle)
    assert found == fresh(models[name], prompts, 3)
    assert reused[:2] == [0, 0] and reused[2] >= len(A) - 4, reused
    small, reused = answers(models[name], prompts, 3, n_seq_max=1, idle=IdlePrompts(100))
    assert small == found and reused == [0, 0, 0], "there is no room for so many bytes"
    if kv_unified:
        both, _ = answers(models[name], [*prompts, *prompts], 3, idle=IdlePrompts(None), kv_unified=True, at_once=2)
        assert both == [*found, *found]


@pytest.mark.parametrize("name", KINDS)
def test_what_another_sequence_has_is_copied(models: dict[str, Model], name: str) -> None:
    prompts = [A, A, A, [*A[:8], 20, 21, 22, 23]]
    context = Context(models[name], n_ctx=256, n_seq_max=4, n_ubatch=4)
    batcher = Batcher(context, n_batch=16, rule=RULE)
    first = Sequence(A, Greedy(), max_tokens=9)
    texts = [first, *(Sequence(prompt, Greedy(), max_tokens=9, after=first) for prompt in prompts[1:])]
    for text in texts:
        batcher.add(text)
    while not batcher.idle:
        batcher.step()
        for place in batcher.places:
            assert len(place.slot.tokens) - place.slot.forgotten == context.memory.end(place.seq)
    assert [text.answer for text in texts] == fresh(models[name], prompts, 9)
    assert all(text.n_reused >= len(A) - 4 for text in texts[1:3]), "the prompt is computed once"
    context.close()


def test_a_text_that_wants_a_sequence_gets_that_one(models: dict[str, Model]) -> None:
    context = Context(models["tinywindow"], n_ctx=192, n_seq_max=3)
    batcher = Batcher(context)
    texts = [Sequence(A, Greedy(), max_tokens=4, wants=2) for _ in range(2)]
    for text in texts:
        batcher.add(text)
    batcher.step()
    assert [place.sequence for place in batcher.places] == [None, None, texts[0]]
    while not batcher.idle:
        batcher.step()
    assert texts[0].answer == texts[1].answer
    context.close()


def test_a_little_of_a_prompt_is_no_reason_to_lose_another(models: dict[str, Model]) -> None:
    context = Context(models["tinywindow"], n_ctx=128, n_seq_max=2)
    for similarity, wanted in ((0.0, 0), (0.5, 1)):
        all_places = Places(context, False, 0, RULE, similarity)
        all_places.all[0].slot.tokens, all_places.all[0].used = list(A), 5
        text = Sequence([*A[:2], *B], Greedy())
        chosen = all_places.free_for(text)
        assert chosen is not None and chosen.seq == wanted
    context.close()


def test_texts_that_share_their_cells_wait_where_there_is_no_room(models: dict[str, Model]) -> None:
    """None of them ends early: the one that came last is computed again when another has ended."""
    context = Context(models["tinyhybrid"], n_ctx=64, n_seq_max=3, kv_unified=True, n_ubatch=4)
    batcher = Batcher(context, n_batch=16)
    wanted = [([i + 1, 2, 3], 40) for i in range(3)]
    texts = [Sequence(prompt, Greedy(), max_tokens=n) for prompt, n in wanted]
    for text in texts:
        batcher.add(text)
    while not batcher.idle:
        batcher.step()
    assert [text.finish for text in texts] == [Finish.LENGTH] * 3
    assert [text.answer for text in texts] == fresh(models["tinyhybrid"], [prompt for prompt, _ in wanted], 40)
    context.close()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.sampled_from([0, 4, 9, 12]), st.lists(st.integers(1, 30), min_size=1, max_size=5)), min_size=2, max_size=6),
    st.integers(1, 3),
    st.sampled_from([None, 4000, 20000]),
)  # fmt: skip
def test_any_texts_whatever_is_kept(
    models: dict[str, Model], name: str, shapes: list[tuple[int, list[int]]], at_once: int, limit: int | None
) -> None:
    prompts = [[*A[:n], *end] for n, end in shapes]
    found, _ = answers(models[name], prompts, 3, at_once=at_once, n_seq_max=at_once, idle=IdlePrompts(limit))
    assert found == fresh(models[name], prompts, 3)


def _kept(tokens: list[int], n_bytes: int = 10) -> Kept:
    return Kept(tokens, 0, [bytes(n_bytes)], [], None)


def test_which_prompts_are_kept() -> None:
    idle = IdlePrompts(30)
    assert idle.keep(_kept([1, 2])) and idle.keep(_kept([1, 2, 3]))
    assert len(idle) == 1 and idle.has([1, 2], None) and not idle.has([1, 3], None), "a beginning of another is not"
    assert idle.keep(_kept([4])) and idle.keep(_kept([5])) and idle.n_bytes == 30
    assert idle.keep(_kept([6])) and not idle.has([1, 2, 3], None), "the oldest goes"
    assert not idle.keep(_kept([7], 31))
    assert idle.find([9, 9], None) is None
    long = _kept(list(range(100)))
    other = IdlePrompts(None)
    other.keep(long)
    assert other.find([0, 1, 2, 200], None) is None, "a long one is not given up for a little"
    assert other.find([*range(60), 200], None) is long and other.take(long) is long and not len(other)


def test_mutants_are_caught(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(places, "reusable", lambda tokens, here: min(len(tokens) - 1, len(here)))  # alike or not
        test_what_another_sequence_has_is_copied(models, "tinymixed")
    with monkeypatch.context() as patch, pytest.raises(ContextError, match="cannot keep"):
        patch.setattr(Layered, "branch", lambda self, src, dst, checkpoint: None)
        test_what_another_sequence_has_is_copied(models, "tinyhybrid")
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(IdlePrompts, "find", lambda self, tokens, adapters: None)
        test_a_prompt_that_was_put_away_comes_back(models, "tinythree", False)


def test_what_stands_further_back_is_moved(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A prompt that has lost some of its middle: the rest is where it was, computed for other positions."""
    model = Model.load(write_text_model(tmp_path_factory.mktemp("m") / "m.gguf", n_ctx=256), cpu=ReferenceDevice())
    head, gone, tail, end = list(range(10)), list(range(20, 26)), list(range(40, 70)), [80, 81]
    for chunk, found in ((8, len(head) + len(tail)), (31, len(head)), (0, len(head))):
        context = Context(model, n_ctx=128)
        batcher = Batcher(context, chunk=chunk)
        first = Sequence([*head, *gone, *tail, 1, 2], Greedy(), max_tokens=1)
        second = Sequence([*head, *tail, *end], Greedy(), max_tokens=3)
        for text in (first, second):
            batcher.add(text)
            while not batcher.idle:
                batcher.step()
            (place,) = batcher.places
            assert len(place.slot.tokens) == context.memory.end(0)
        assert second.n_reused == found and second.finish is Finish.LENGTH
        assert place.slot.tokens == second.tokens[: len(place.slot.tokens)]
        moved = context.memory.dump(0)
        context.close()
        if not chunk:
            plain = moved
    assert len(moved) == len(plain)
    model.close()
