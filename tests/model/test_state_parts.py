"""Models with windows and recurrent states: in pieces, beside other sequences, saved and restored, from a checkpoint on, shifted;
and what is damaged is refused."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_context import Greedy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_archs import KINDS, tiny_models

from pyggml.errors import ContextError, StateError
from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.batch import Batch
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.slot import Slot
from pyggml.runtime.state_base import DIGEST
from pyggml.runtime.state_parts import HEADER, PART

TOKENS = [int(t) for t in np.random.default_rng(5).integers(97, 123, 60)]
OPTIONS: dict[str, Any] = {"n_ctx": 96, "n_ubatch": 8}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
STATES = [name for name, layers in KINDS.items() if "states" in layers]
WINDOWS = [name for name in KINDS if name not in STATES]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    with tiny_models(tmp_path_factory.mktemp("archs")) as made:
        yield made


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Model:
    return models[request.param]


@pytest.fixture(scope="module")
def expected(models: dict[str, Model]) -> dict[str, np.ndarray]:
    """(60, n_vocab): logits after each token."""
    rows = {}
    for name, model in models.items():
        context = Context(model, n_ctx=96, n_ubatch=64)
        rows[name] = context.decode(TOKENS, logits="all")
        context.close()
    return rows


def name_of(model: Model) -> str:
    return model.config.architecture


def test_in_pieces_and_beside_others(model: Model, expected: dict[str, np.ndarray]) -> None:
    rows = expected[name_of(model)]
    for options in ({}, {"kv_unified": True}, {"flash_attn": False}, {"swa_full": True}):
        context = Context(model, n_seq_max=3, **{**OPTIONS, "n_ctx": 3 * 96}, **options)
        rng, ends = np.random.default_rng(1), [0, 0, 0]
        while min(ends) < 60:
            pieces = {seq: min(60 - end, int(rng.integers(1, 13))) for seq, end in enumerate(ends) if end < 60}
            pieces = {seq: n for seq, n in pieces.items() if rng.random() < 0.7}
            if not pieces:
                continue
            some = [Batch.of(TOKENS[ends[s] : ends[s] + n], ends[s], s, "all") for s, n in pieces.items()]
            got = context.decode(Batch.join(some))
            wanted = np.concatenate([rows[ends[s] : ends[s] + n] for s, n in pieces.items()])
            loose = CLOSE if "flash_attn" not in options else {"rtol": 1e-2, "atol": 5e-2}
            np.testing.assert_allclose(got, wanted, **loose)
            for s, n in pieces.items():
                ends[s] += n
        context.close()


def test_a_window_has_few_cells(models: dict[str, Model]) -> None:
    """As llama_kv_cache_iswa: those of the window and of a micro-batch, padded; of the context with --swa-full."""
    cells = {}
    for full in (False, True):
        context = Context(models["tinymixed"], n_ctx=96, n_ubatch=8, swa_full=full)
        cells[full] = [part.n_cells for part in context.memory.parts]  # type: ignore[attr-defined]
        context.close()
    assert cells == {False: [16, 96], True: [96, 96]}


@pytest.mark.parametrize("n", [5, 30])
def test_what_is_restored_computes_on(model: Model, expected: dict[str, np.ndarray], tmp_path: Path, n: int) -> None:
    """To the bit; also as another sequence, and where windows have more room or less than they had."""
    context = Context(model, **OPTIONS)
    context.decode(TOKENS[:n])
    state.save(context, TOKENS[:n], tmp_path / "state")
    following = context.decode(TOKENS[n : n + 1])
    context.close()
    loaded = state.load(tmp_path / "state")
    assert loaded.tokens.tolist() == TOKENS[:n]
    for seq, options in ((0, {}), (2, {"n_seq_max": 3, "n_ctx": 3 * 96}), (0, {"swa_full": True})):
        fresh = Context(model, **{**OPTIONS, **options})
        assert loaded.restore(fresh, n, seq) == n and fresh.memory.end(seq) == n
        got = fresh.decode(Batch.of(TOKENS[n : n + 1], n, seq))
        if not seq and not options:
            np.testing.assert_array_equal(got, following)
        np.testing.assert_allclose(got[0], expected[name_of(model)][n], **CLOSE)
        again = b"".join(state.parts(fresh, TOKENS[: n + 1], seq))
        state.parse(again, "bytes").check(fresh)
        fresh.close()
    full = Context(model, swa_full=True, **OPTIONS)
    full.decode(TOKENS[:n])
    data = b"".join(state.parts(full, TOKENS[:n]))
    full.close()
    small = Context(model, **OPTIONS)
    assert state.parse(data, "bytes").restore(small, n) == n
    np.testing.assert_allclose(small.decode(TOKENS[n : n + 1])[0], expected[name_of(model)][n], **CLOSE)
    small.close()


def test_a_beginning_is_restored_from_a_checkpoint(model: Model, expected: dict[str, np.ndarray]) -> None:
    context = Context(model, **OPTIONS)
    slot = Slot(context, memory=context.memory)
    slot.prefill(TOKENS[:40])
    ends = [c.end for c in slot.checkpoints.kept]
    assert ends == [28, 36]
    slot.tokens = TOKENS[:40]
    data = b"".join(state.parts(context, slot.tokens, checkpoints=slot.checkpoints.kept))
    context.close()
    saved = state.parse(data, "bytes")
    back = 39 if name_of(model) == "tinychunks" else 36  # the last chunk begins at 36, and all of it was saved
    for n, reached in ((40, 40), (39, back), (36, 36), (35, 28), (28, 28), (27, 0), (0, 0)):
        fresh = Context(model, **OPTIONS)
        assert saved.restore(fresh, n) == reached == fresh.n_past
        again = Slot(fresh, memory=fresh.memory)
        again.tokens = TOKENS[:reached]
        again.checkpoints.take(saved.checkpoints(fresh, reached))
        assert [c.end for c in again.checkpoints.kept] == [end for end in ends if end <= reached]
        got = again.prefill(TOKENS[reached:50])
        np.testing.assert_allclose(got, expected[name_of(model)][49], **CLOSE)
        if reached >= 28:
            assert again.go_back(30) in (28, 30)
            np.testing.assert_allclose(
                again.decode(TOKENS[len(again.tokens) : 50]), expected[name_of(model)][49], **CLOSE
            )
        fresh.close()


class Counted:
    """A context's tokens, counted."""

    def __init__(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n, run = 0, context._decode_ubatch

        def counted(ub: Any, placement: Any) -> Any:
            self.n += int((ub.seq >= 0).sum())
            return run(ub, placement)

        monkeypatch.setattr(context, "_decode_ubatch", counted)

    def take(self) -> int:
        n, self.n = self.n, 0
        return n


def answer(context: Context, slot: Slot, prompt: list[int]) -> list[int]:
    sequence = Sequence(prompt, Greedy(), max_tokens=3)
    list(generate(slot, sequence))
    return sequence.answer


@pytest.mark.parametrize("batched", [False, True])
def test_a_prompt_that_begins_alike_is_not_computed_again(
    model: Model, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, alone = (
        Context(model, n_seq_max=2 if batched else 1, **{**OPTIONS, "n_ctx": 192}),
        Context(model, **OPTIONS),
    )
    count, slot, batcher = Counted(context, monkeypatch), Slot(context, memory=context.memory), Batcher(context, 16)
    for prompt, most in (
        (TOKENS[:40], 42),
        (TOKENS[:40], 6),  # 4 tokens of the prompt, and those of the answer but its last
        (TOKENS[:38] + TOKENS[:5], 7 + 2),
        (TOKENS[:30] + TOKENS[:9], 11 + 2),
    ):
        if batched:
            sequence = Sequence(prompt, Greedy(), max_tokens=3)
            batcher.add(sequence)
            while not batcher.idle:
                batcher.step()
            found = sequence.answer
        else:
            found = answer(context, slot, prompt)
        assert count.take() <= most
        alone.clear()
        assert found == answer(alone, Slot(alone, memory=alone.memory), prompt)
    context.close(), alone.close()


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_shifts(models: dict[str, Model], name: str) -> None:
    """Far past the end of the context; what a window shows is as it would be with all tokens kept."""
    model, texts = models[name], []
    for full in (False, True):
        context = Context(model, swa_full=full, **{**OPTIONS, "n_ctx": 40})
        slot = Slot(context, memory=context.memory, shifts=True, n_keep=3)
        sequence = Sequence(TOKENS[:20], Greedy(), max_tokens=100)
        list(generate(slot, sequence))
        assert len(sequence.answer) == 100 and slot.forgotten > 60 and context.n_past <= 40
        texts.append(sequence.answer)
        context.close()
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", STATES)
def test_a_state_refuses_to_shift_in_one_line(models: dict[str, Model], name: str) -> None:
    context = Context(models[name], **OPTIONS)
    why = "a recurrent state holds all tokens of a sequence and can forget none of them"
    for begin in (lambda: Slot(context, memory=context.memory, shifts=True), lambda: Batcher(context, shifts=True)):
        with pytest.raises(ContextError, match=f"^no context shift with this model: {why}$"):
            begin()
    context.decode(TOKENS[:20])
    with pytest.raises(ContextError, match=f"^cannot forget 5 tokens after 3: {why}$"):
        context.shift(3, 5)
    assert context.n_past == 20 and {part.end(0) for part in context.memory.parts} == {20}
    context.close()


# ---- what is damaged


@pytest.fixture(scope="module")
def saved(models: dict[str, Model]) -> tuple[Context, bytes]:
    """A state with all kinds of parts and two checkpoints."""
    context = Context(models["tinythree"], **OPTIONS)
    slot = Slot(context, memory=context.memory)
    slot.prefill(TOKENS[:24])
    return context, b"".join(state.parts(context, slot.tokens, checkpoints=slot.checkpoints.kept))


def sealed(data: bytes) -> bytes:
    """With the digest that belongs to it."""
    return data + hashlib.blake2b(data, digest_size=DIGEST).digest()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_changed_byte_is_noticed(saved: tuple[Context, bytes], data: Any) -> None:
    changed = bytearray(saved[1])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError, match=r"^bytes: (not a saved state|damaged|a state of version)") as caught:
        state.parse(bytes(changed), "bytes")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_what_is_changed_under_the_right_digest_is_refused_or_harmless(saved: tuple[Context, bytes], data: Any) -> None:
    """Cut off, continued, or with other numbers: one line, and the context has no tokens or those of the state."""
    context, whole = saved
    body = bytearray(whole[:-DIGEST])
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(body) - 4) | st.integers(0, HEADER.itemsize + 96 + PART.itemsize))
        body[at : at + 4] = data.draw(st.sampled_from([0, 1, 2, 255, 2**31, 2**32 - 1])).to_bytes(4, "little")
    body = body[: data.draw(st.integers(0, len(body)) | st.just(len(body)))]
    body += data.draw(st.binary(max_size=9))
    try:
        parsed = state.parse(sealed(bytes(body)), "bytes")
        n = len(parsed.tokens)
        if n > context.n_ctx:
            return
        assert parsed.restore(context, n) in (0, n)
    except StateError as error:
        assert "\n" not in str(error) and str(error).startswith("bytes: ")
    assert len({part.end(0) for part in context.memory.parts}) == 1


def test_states_of_other_contexts_are_refused(models: dict[str, Model], saved: tuple[Context, bytes]) -> None:
    from pyggml.dtypes import GGMLType

    other = Context(models["tinymixed"], **OPTIONS)
    with pytest.raises(StateError, match=r"^bytes: belongs to another model$"):
        state.parse(saved[1], "bytes").restore(other, 1)
    other.close()
    other = Context(models["tinythree"], type_k=GGMLType.F32, **OPTIONS)
    with pytest.raises(StateError, match=r"^bytes: its K is F16, the context's is F32$"):
        state.parse(saved[1], "bytes").restore(other, 1)
    other.close()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("kind", 2, "damaged: memory 0 is recurrent states, the context's is keys and values"),
        ("kind", 9, "damaged: memory 0 is unknown, the context's is keys and values"),
        ("window", 7, "its window has 7 tokens, the context's has 6"),
        ("chunked", 1, "damaged: chunked of memory 0 is 1, not 0"),
        ("n_layer", 2, "damaged: n_layer of memory 0 is 2, not 1"),
        ("type_v", 99, "its V is of type number 99, the context's is F16"),
        ("row", 1, "damaged: row of memory 0 is 1, not 128"),
        ("size", 2**63, "damaged: [0-9]+ bytes, at [0-9]+ it announces 9223372036854775808 more than it has"),
    ],
)
def test_each_field_of_a_part_is_checked(saved: tuple[Context, bytes], field: str, value: int, words: str) -> None:
    body = bytearray(saved[1][:-DIGEST])
    np.frombuffer(body, PART, 1, HEADER.itemsize + 4 * 24)[field] = value
    with pytest.raises(StateError, match=f"^bytes: {words}$"):
        state.parse(sealed(bytes(body)), "bytes").check(saved[0])
