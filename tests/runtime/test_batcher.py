"""Many texts in one context: each says what it says alone, whoever joins or leaves; and that a batch is computed in few forms."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, ContextError, GrammarError
from pyggml.memory.kv import KVCache
from pyggml.model.model import Model
from pyggml.runtime.batch import SIZES, Batch, split
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import MAX_SEQUENCES, Context
from pyggml.runtime.sequence import Finish, Sequence


class Greedy:
    def sample(self, logits: np.ndarray) -> int:
        return int(logits.argmax())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        "dense": Model.load(write_llama(folder / "dense.gguf"), cpu=ReferenceDevice()),
        "experts": Model.load(write_llama(folder / "experts.gguf", n_expert=4), cpu=ReferenceDevice()),
        "cpu": Model.load(write_llama(folder / "cpu.gguf"), cpu=CPUDevice()),
        "cpu experts": Model.load(write_llama(folder / "cpux.gguf", n_expert=4), cpu=CPUDevice()),
    }
    yield made
    for model in made.values():
        model.close()


def texts(rng: np.random.Generator, n: int) -> list[tuple[list[int], int]]:
    """Prompts, and the number of tokens wanted."""
    return [(rng.integers(0, N_VOCAB, rng.integers(1, 20)).tolist(), int(rng.integers(1, 12))) for _ in range(n)]


def alone(model: Model, wanted: list[tuple[list[int], int]], **options: Any) -> list[list[int]]:
    context = Context(model, n_ctx=256, **options)
    said = []
    for prompt, n in wanted:
        context.clear()
        out = [int(context.decode(prompt)[-1].argmax())]
        while len(out) < n:
            out.append(int(context.decode(out[-1:])[-1].argmax()))
        said.append(out)
    context.close()
    return said


def together(
    context: Context, wanted: list[tuple[list[int], int]], rng: np.random.Generator, **options: Any
) -> list[list[int]]:
    """The texts join at random times."""
    batcher = Batcher(context, **options)
    sequences = [Sequence(prompt, Greedy(), max_tokens=n) for prompt, n in wanted]
    left = list(sequences)
    while left or not batcher.idle:
        for _ in range(int(rng.integers(0, 4)) if left else 0):
            if left:
                batcher.add(left.pop(0))
        batcher.step()
    assert all(s.finish is Finish.LENGTH for s in sequences)
    return [s.answer for s in sequences]


@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
@pytest.mark.parametrize("n", [1, 4, 16, 32])
@pytest.mark.parametrize("name", ["dense", "experts"])
def test_each_says_what_it_says_alone(models: dict[str, Model], name: str, n: int, kv_unified: bool) -> None:
    """More texts than sequences, prompts longer than a step's batch."""
    rng = np.random.default_rng(n)
    model, wanted = models[name], texts(rng, 2 * n)
    context = Context(model, n_ctx=256 * n, n_ubatch=16, n_seq_max=n, kv_unified=kv_unified)
    assert together(context, wanted, rng, n_batch=24) == alone(model, wanted)
    context.close()


@pytest.mark.parametrize("options", [
    {"flash_attn": False}, {"type_k": GGMLType.Q8_0, "type_v": GGMLType.Q8_0}, {"type_k": GGMLType.F32},
], ids=str)  # fmt: skip
def test_caches_of_other_kinds(models: dict[str, Model], tmp_path: Path, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    model = Model.load(write_llama(tmp_path / "tiny.gguf", head_k=64, head_v=64), cpu=ReferenceDevice())
    wanted = texts(rng, 9)
    for kv_unified in (False, True):
        context = Context(model, n_ctx=1024, n_seq_max=4, kv_unified=kv_unified, **options)
        assert together(context, wanted, rng) == alone(model, wanted, **options)
        context.close()
    model.close()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 30), st.booleans(), st.sampled_from(["cpu", "cpu experts"]))
def test_logits_on_the_cpu_are_those_of_each_alone(
    models: dict[str, Model], seed: int, kv_unified: bool, name: str
) -> None:
    """Kernels for several columns round differently: within 1e-3."""
    rng, model = np.random.default_rng(seed), models[name]
    n = int(rng.integers(2, 33))
    context = Context(model, n_ctx=256 * n, n_seq_max=n, kv_unified=kv_unified)
    one = Context(model, n_ctx=256)
    tokens = [rng.integers(0, N_VOCAB, rng.integers(2, 30)).tolist() for _ in range(n)]
    context.decode(Batch.join([Batch.of(t[:-1], 0, seq, "none") for seq, t in enumerate(tokens)]))
    chosen = sorted(rng.choice(n, int(rng.integers(1, n + 1)), replace=False).tolist())
    found = context.decode(Batch.join([Batch.of(tokens[seq][-1:], len(tokens[seq]) - 1, seq) for seq in chosen]))
    for row, seq in zip(found, chosen, strict=True):
        one.clear()
        expected = one.decode(tokens[seq])[-1]
        np.testing.assert_allclose(row, expected, atol=1e-3 * np.abs(expected).max())
    context.close(), one.close()


def test_the_same_batch_gives_the_same_bits(models: dict[str, Model]) -> None:
    rng = np.random.default_rng(2)
    batch = Batch.join([Batch.of(rng.integers(0, N_VOCAB, n), 0, seq, "all") for seq, n in enumerate((5, 1, 9, 3))])
    rows = []
    for threads in (1, 2, 2):
        context = Context(models["cpu"], n_ctx=1024, n_seq_max=4, n_threads=threads)
        rows.append(context.decode(batch))
        context.close()
    assert (rows[0] == rows[1]).all() and (rows[1] == rows[2]).all()


def test_few_graphs_serve_all_batches(models: dict[str, Model]) -> None:
    """Any subset of 16 sequences, one token each: filled up to few sizes, which begin where they must."""
    context = Context(models["dense"], n_ctx=16 * 256, n_seq_max=16)
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(300):
        seqs = sorted(rng.choice(16, int(rng.integers(9, 17)), replace=False).tolist())
        batch = Batch.join([Batch.of([1], 0, seq) for seq in seqs])
        parts = list(split(batch, 512, 16, 16))
        assert sorted(r for _, rows in parts for r in rows.tolist() if r >= 0) == list(range(len(seqs)))
        shapes |= {(ub.n, ub.n_seqs, ub.first, ub.n_outputs) for ub, _ in parts}
    assert {n for n, *_ in shapes} <= set(SIZES) and len(shapes) < 30
    context.close()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(1, 90)), min_size=1, max_size=16, unique_by=lambda x: x[0]),
    st.sampled_from([1, 7, 64, 512]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_cut_batch_is_the_batch(sizes: list[tuple[int, int]], n_ubatch: int, streams: bool, fill: bool) -> None:
    batch = Batch.join([Batch.of(np.arange(n), 0, seq, "all" if seq % 2 else "last") for seq, n in sizes])
    seen: list[int] = []
    ends = dict.fromkeys(range(16), 0)
    for ub, rows in split(batch, n_ubatch, 16 if streams else 1, 16, fill):
        assert ub.n == len(rows) <= max(n_ubatch, 1) and ub.n % ub.n_seqs == 0
        real = rows >= 0
        assert fill or real.all()
        seen += rows[real].tolist()
        for i in np.flatnonzero(real).tolist():
            seq = int(ub.seq[i])
            assert (ub.tokens[i], ub.pos[i]) == (ends[seq], ends[seq])
            ends[seq] += 1
            assert not streams or ub.first + i // (ub.n // ub.n_seqs) == seq
            assert ub.outputs[i] >= batch.outputs[rows[i]]
    assert sorted(seen) == list(range(batch.n))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("n_ubatch", [5, 512])
def test_one_token_of_each_is_cut_as_any_batch(fill: bool, n_ubatch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring sequences in the order of their numbers, which are not searched for."""
    for first, n in ((at, size) for size in range(1, 17) for at in range(17 - size)):
        seqs = range(first, first + n)
        batch = Batch.of_each(list(range(50, 50 + n)), [3 * seq for seq in seqs], seqs)
        joined = Batch.join([Batch.of([50 + i], 3 * seq, seq) for i, seq in enumerate(seqs)])
        for name in ("tokens", "pos", "seq", "outputs"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(joined, name), strict=True)
        assert batch.singles
        found = list(split(batch, n_ubatch, 16, 16, fill))
        with monkeypatch.context() as patched:
            patched.setattr(Batch, "singles", False)
            expected = list(split(batch, n_ubatch, 16, 16, fill))
        assert len(found) == len(expected)
        for (ub, rows), (ub2, rows2) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(rows, rows2)
            for field in dataclasses.fields(ub):
                np.testing.assert_array_equal(getattr(ub, field.name), getattr(ub2, field.name))
    assert not Batch.of([1, 2], 0).singles and not Batch.of_each([1, 2], [0, 0], [1, 0]).singles


def test_what_cannot_be_decoded_is_refused(models: dict[str, Model]) -> None:
    context = Context(models["dense"], n_ctx=512, n_seq_max=2)
    assert (context.n_ctx, context.n_ctx_seq) == (512, 256)
    context.decode(Batch.of([1, 2, 3], 0, 1))
    for batch, message in (
        (Batch.of([1], 0, 2), "sequence 2: there are 2, numbered from 0"),
        (Batch.of([1], 0, -1), "sequence -1: there are 2"),
        (Batch.of([1], 2, 1), "sequence 1: positions 2 to 2 of 1 tokens, must follow 2 one by one"),
        (Batch.of([1], 4, 1), "sequence 1: positions 4 to 4"),
        (Batch.of([1] * 254, 3, 1), "254 tokens after 3 do not fit into a context of 256"),
        (Batch.of([], 0, 0), "no tokens"),
        (Batch.of_each([1, 1], [1, 3], [0, 1]), "sequence 0: positions 1 to 1 of 1 tokens, must follow -1 one by one"),
        (Batch.of_each([1, 1], [0, 4], [0, 1]), "sequence 1: positions 4 to 4"),
        (Batch.of_each([1, 1], [0, 0], [0, 2]), "sequence 2: there are 2, numbered from 0"),
    ):
        with pytest.raises(ContextError, match=message):
            context.decode(batch)
    with pytest.raises(ComputeError, match=f"token {N_VOCAB} is outside"):
        context.decode(Batch.of([N_VOCAB], 0))
    with pytest.raises(ContextError, match="no tokens"):
        Batch.join([])
    context.close()
    for n in (0, MAX_SEQUENCES + 1):
        with pytest.raises(ContextError, match=f"n_seq_max {n}: must be 1 to 256"):
            Context(models["dense"], n_ctx=256, n_seq_max=n)


def test_full_sequences_leave_others_alone(models: dict[str, Model]) -> None:
    """A stream that is full ends its text; where cells are shared the longest text goes."""
    for kv_unified, n_ctx in ((False, 512), (True, 256)):
        context = Context(models["dense"], n_ctx=n_ctx, n_seq_max=2, kv_unified=kv_unified)
        batcher = Batcher(context)
        long, short = Sequence([1] * 240, Greedy(), max_tokens=100), Sequence([2, 3], Greedy(), max_tokens=30)
        batcher.add(long), batcher.add(short)
        while not batcher.idle:
            batcher.step()
        assert (long.finish, short.finish) == (Finish.FULL, Finish.LENGTH)
        assert short.answer == alone(models["dense"], [([2, 3], 30)])[0]
        context.close()
    context = Context(models["dense"], n_ctx=512, n_seq_max=2)
    with pytest.raises(ContextError, match="a prompt of 256 tokens: a sequence has 256, one of them for the answer"):
        Batcher(context).add(Sequence([1] * 256, Greedy()))
    context.close()


def test_a_text_that_shifts_goes_on_beside_others(models: dict[str, Model]) -> None:
    context = Context(models["dense"], n_ctx=512, n_seq_max=2)
    batcher = Batcher(context, shifts=True, n_keep=1)
    long, short = Sequence([1] * 240, Greedy(), max_tokens=60), Sequence([2, 3], Greedy(), max_tokens=30)
    batcher.add(long), batcher.add(short)
    while not batcher.idle:
        batcher.step()
    assert (long.finish, short.finish) == (Finish.LENGTH, Finish.LENGTH)
    assert len(long.answer) == 60 and short.answer == alone(models["dense"], [([2, 3], 30)])[0]
    context.close()


def test_a_prefix_is_not_computed_again(models: dict[str, Model]) -> None:
    context = Context(models["dense"], n_ctx=1024, n_seq_max=4)
    batcher = Batcher(context)
    first = Sequence(list(range(40)), Greedy(), max_tokens=3)
    batcher.add(first)
    while not batcher.idle:
        batcher.step()
    again = Sequence([*range(40), 7, 8], Greedy(), max_tokens=3)
    batcher.add(again)
    while not batcher.idle:
        batcher.step()
    assert again.n_reused == 40 and again.timings.n_prompt == 2
    assert again.answer == alone(models["dense"], [([*range(40), 7, 8], 3)])[0]
    context.close()


def test_cancelled_and_without_answer(models: dict[str, Model]) -> None:
    context = Context(models["dense"], n_ctx=512, n_seq_max=2)
    batcher = Batcher(context)
    gone, none = Sequence([1, 2], Greedy(), max_tokens=50), Sequence([3], Greedy(), max_tokens=0)
    batcher.add(gone), batcher.add(none)
    batcher.step()
    gone.cancel()
    said = batcher.step()
    assert (gone, None) in said and gone.finish is Finish.CANCELLED and batcher.idle
    assert none.answer == []
    context.close()


def test_after_an_error_texts_go_on(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed step would have computed is computed by the next."""
    context = Context(models["dense"], n_ctx=1024, n_ubatch=8, n_seq_max=4)
    wanted = [([1, 2, 3], 9), ([4], 9), (list(range(30)), 9)]
    batcher = Batcher(context)
    sequences = [Sequence(prompt, Greedy(), max_tokens=n) for prompt, n in wanted]
    for sequence in sequences:
        batcher.add(sequence)
    expected = alone(models["dense"], wanted)
    run, calls = Context._decode_ubatch, 0

    def sometimes(self: Context, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 4 == 2:
            raise ComputeError("aborted")
        return run(self, *args)

    monkeypatch.setattr(Context, "_decode_ubatch", sometimes)
    failed = 0
    while not batcher.idle:
        try:
            batcher.step()
        except ComputeError:
            failed += 1
    assert failed > 3 and [s.answer for s in sequences] == expected
    context.close()


def _sees_all(self: KVCache, placement: Any) -> Any:
    mask = MASK(self, placement)
    return np.zeros_like(mask)


MASK = KVCache.mask
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "tokens see every cell": (KVCache, "mask", _sees_all),
    "streams are mixed up": (KVCache, "rows", lambda self, placement: placement.cells),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(models: dict[str, Model], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, wrong = MUTANTS[name]
    rng = np.random.default_rng(3)
    wanted = texts(rng, 8)
    expected = alone(models["dense"], wanted)
    monkeypatch.setattr(owner, method, wrong)
    context = Context(models["dense"], n_ctx=1024, n_seq_max=4)
    assert together(context, wanted, rng) != expected
    context.close()


class Failing(Greedy):
    """After two tokens no token fits."""

    n = 0

    def sample(self, logits: np.ndarray) -> int:
        self.n += 1
        if self.n > 2:
            raise GrammarError("none of the tokens fits here")
        return super().sample(logits)


def test_a_text_whose_sampler_fails_ends_alone(models: dict[str, Model]) -> None:
    """The others' rows of that step are not lost, whichever of them comes before it."""
    wanted = [([1, 2, 3], 6), ([4, 5], 6), ([6, 7, 8, 9], 6)]
    right = alone(models["dense"], wanted)
    context = Context(models["dense"], n_ctx=3 * 256, n_seq_max=3)
    batcher = Batcher(context)
    texts = [Sequence(prompt, Failing() if i == 1 else Greedy(), max_tokens=n) for i, (prompt, n) in enumerate(wanted)]
    for text in texts:
        batcher.add(text)
    ends = []
    while not batcher.idle:
        ends += [(text, piece) for text, piece in batcher.step() if text.finish is not None]
    assert texts[1].finish is Finish.FAILED and isinstance(texts[1].error, GrammarError) and (texts[1], None) in ends
    assert texts[1].answer == right[1][:2]
    assert [texts[0].answer, texts[2].answer] == [right[0], right[2]]
    context.close()


def test_a_text_that_reuses_nothing_goes_where_least_is_lost(models: dict[str, Model]) -> None:
    context = Context(models["dense"], n_ctx=2 * 256, n_seq_max=2)
    batcher = Batcher(context)
    for prompt in ([1, 2, 3, 4, 5, 6], [7, 8]):
        batcher.add(Sequence(prompt, Greedy(), max_tokens=1))
    while not batcher.idle:
        batcher.step()
    text = Sequence([1, 2, 3, 4, 5, 6, 9], Greedy(), max_tokens=1, reuses=False)
    batcher.add(text)
    while not batcher.idle:
        batcher.step()
    assert text.n_reused == 0 and text.timings.n_prompt == 7
    assert [place.slot.tokens[:2] for place in batcher.places] == [[1, 2], [1, 2]]
    context.close()
