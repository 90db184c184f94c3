"""Context shift: what is left after it, held against llama.cpp's and against the meaning of a turn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_devices import FakeDevice
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.scheduler import Schedule
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, ContextError
from pyggml.model.model import Model
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, N_VOCAB, 60)]
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "factors": {"rope_freqs": True},
    "linear": {"floats": {"llama.rope.scaling.factor": 4.0}},
    "long heads": {"head_k": 64, "head_v": 64},
}
MAGNITUDES: dict[str, dict[str, Any]] = {
    "none": {},
    "yarn": {
        "strings": {"llama.rope.scaling.type": "yarn"},
        "floats": {"llama.rope.scaling.factor": 8.0, "llama.rope.scaling.attn_factor": 1.1},
        "ints": {"llama.rope.scaling.original_context_length": 16},
    },
    "attn_factor": {"floats": {"llama.rope.scaling.attn_factor": 1.2}},
}


def after_a_shift(context: Context, n_keep: int = 4, n_discard: int = 13) -> np.ndarray:
    """The logits after two further tokens, and of one more after a second shift, of which stretches overlap."""
    context.decode(TOKENS[:40])
    context.shift(n_keep, n_discard)
    rows = [context.decode(TOKENS[40:42])[-1]]
    context.shift(0, 3)
    rows.append(context.decode(TOKENS[42:43])[-1])
    return np.array(rows)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("flash_attn", [True, False])
def test_logits_are_the_peers(name: str, flash_attn: bool, tmp_path: Path, peer: Any) -> None:
    path = write_llama(tmp_path / "tiny.gguf", **MODELS[name])
    types = [(GGMLType.F16, GGMLType.F16), (GGMLType.F32, GGMLType.F32)]
    if "head_k" in MODELS[name]:  # blocks lie rotated; llama.cpp has no turn of BF16
        types.append((GGMLType.Q8_0, GGMLType.Q8_0 if flash_attn else GGMLType.F16))
    for type_k, type_v in types:
        fields = {"n_ctx": 256, "flash_attn_type": int(flash_attn), "type_k": int(type_k), "type_v": int(type_v)}
        steps = [("open", "a", fields), ("decode", "a", TOKENS[:40]), ("shift", "a", 4, 13)]
        steps += [("decode", "a", TOKENS[40:42]), ("shift", "a", 0, 3), ("decode", "a", TOKENS[42:43])]
        theirs = peer.steps(path, steps)[1:]
        model = Model.load(path, cpu=ReferenceDevice())
        context = Context(model, n_ctx=256, flash_attn=flash_attn, type_k=type_k, type_v=type_v)
        tolerance = 5e-3 if type_k != GGMLType.Q8_0 else 1e-2
        np.testing.assert_allclose(after_a_shift(context), theirs, atol=tolerance * np.abs(theirs).max())
        assert context.n_past == 40 - 13 + 2 - 3 + 1
        context.clear()
        context.decode(TOKENS[:40])
        context.truncate(27)  # a mutant: the newest tokens are forgotten
        assert np.abs(context.decode(TOKENS[40:42])[-1] - theirs[0]).max() > 2e-2 * np.abs(theirs).max()
        context.close(), model.close()


BLOCKS = {"Q8_0": 0.02, "Q5_1": 0.05, "Q4_0": 0.1, "IQ4_NL": 0.1}
"""Types of a cache, and how far logits may be from the peer's (root mean square, of theirs): roundings differ."""


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize("head", [64, 128])  # llama.cpp itself crashes where keys of blocks are not rotated
def test_keys_of_blocks_are_turned_as_the_peers(
    head: int, tmp_path: Path, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked, rotated back, turned, rotated and rounded again."""
    path = write_llama(tmp_path / "tiny.gguf", head_k=head, head_v=head)
    caches = [
        (GGMLType[t], GGMLType[t] if flash_attn else GGMLType.F16) for t in BLOCKS for flash_attn in (True, False)
    ]
    steps: list[tuple[Any, ...]] = []
    for i, (type_k, type_v) in enumerate(caches):
        fields = {"n_ctx": 256, "flash_attn_type": int(type_k == type_v), "type_k": int(type_k), "type_v": int(type_v)}
        steps += [("open", i, fields), ("decode", i, TOKENS[:40]), ("shift", i, 4, 13), ("decode", i, TOKENS[40:42])]
        steps += [("shift", i, 0, 3), ("decode", i, TOKENS[42:43]), ("free", i)]
    rows = peer.steps(path, steps).reshape(len(caches), 3, -1)[:, 1:]
    model = Model.load(path, cpu=ReferenceDevice())

    def deviation(type_k: GGMLType, type_v: GGMLType, theirs: np.ndarray) -> float:
        context = Context(model, n_ctx=256, flash_attn=type_k == type_v, type_k=type_k, type_v=type_v)
        found = after_a_shift(context)
        context.close()
        return apart(found, theirs)

    set_input = Schedule.set_input
    for types, theirs in zip(caches, rows, strict=True):
        limit = BLOCKS[types[0].name]
        assert deviation(*types, theirs) < limit, types
        with monkeypatch.context() as mutant:
            mutant.setattr("pyggml.memory.shift.hadamard_transform", lambda x, _: x)
            assert deviation(*types, theirs) > 5 * limit, "turned as they lie"
        with monkeypatch.context() as mutant:
            mutant.setattr(Schedule, "set_input", lambda s, t, v: set_input(s, t, v * (t.name != "k_shift")))
            assert deviation(*types, theirs) > 5 * limit, "moved and not turned"
    model.close()


@pytest.mark.parametrize("name", MAGNITUDES)
def test_one_layer_sees_no_more_than_was_left(name: str, tmp_path: Path) -> None:
    """Keys and values of the only layer depend on their own tokens alone: a context that never saw what was forgotten
    is the same."""
    model = Model.load(write_llama(tmp_path / "one.gguf", n_layer=1, **MAGNITUDES[name]), cpu=ReferenceDevice())
    for flash_attn in (True, False):
        context, fresh = (Context(model, n_ctx=256, flash_attn=flash_attn, type_k=GGMLType.F32) for _ in range(2))
        shifted = after_a_shift(context)
        fresh.decode([*TOKENS[:4], *TOKENS[17:40]])
        np.testing.assert_allclose(fresh.decode(TOKENS[40:42])[-1], shifted[0], atol=1e-3)
        fresh.clear()
        np.testing.assert_allclose(fresh.decode([*TOKENS[3:4], *TOKENS[17:43]])[-1], shifted[1], atol=1e-3)
        context.close(), fresh.close()
    model.close()


@pytest.mark.parametrize("head", [32, 64])  # of 32 keys are not rotated
@pytest.mark.parametrize("dtype", [GGMLType.BF16, GGMLType.Q8_0], ids=lambda t: t.name)
def test_other_caches_are_turned_as_those_of_f32(tmp_path: Path, dtype: GGMLType, head: int) -> None:
    path = write_llama(tmp_path / "one.gguf", head_k=head, head_v=head)
    model = Model.load(path, cpu=ReferenceDevice())
    contexts = [Context(model, n_ctx=256, type_k=t, type_v=t) for t in (GGMLType.F32, dtype)]
    exact, found = (after_a_shift(context) for context in contexts)
    np.testing.assert_allclose(found, exact, atol=2e-2 * np.abs(exact).max())
    for context in contexts:
        context.close()
    model.close()


def test_layers_on_several_devices(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", n_layer=3, rope_freqs=True)
    rows = []
    for n_devices in (0, 2):
        devices = [FakeDevice(f"D{i}") for i in range(n_devices)]
        model = Model.load(path, cpu=FakeDevice("CPU"), devices=devices)
        for device in devices:
            assert any(d is device for d in model.layer_devices)
        context = Context(model, n_ctx=256)
        rows.append(after_a_shift(context))
        context.close(), model.close()
    np.testing.assert_array_equal(*rows)


def test_edges(tmp_path: Path) -> None:
    model = Model.load(write_llama(tmp_path / "tiny.gguf"), cpu=FakeDevice("CPU"))
    context = Context(model, n_ctx=256)
    context.decode(TOKENS[:20])
    plans = model.cpu.plans  # type: ignore[attr-defined]
    context.shift(7, 0)
    assert context.n_past == 20
    context.shift(15, 5)  # nothing stands behind what is forgotten
    assert (context.n_past, model.cpu.plans) == (15, plans)  # type: ignore[attr-defined]
    for n_keep, n_discard in ((-1, 3), (3, -1), (10, 6), (16, 0)):
        with pytest.raises(ContextError, match=f"cannot forget {n_discard} tokens after {n_keep}, 15 are decoded"):
            context.shift(n_keep, n_discard)
    context.close(), model.close()


def test_a_shift_that_breaks_off_leaves_what_was_not_to_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(write_llama(tmp_path / "tiny.gguf"), cpu=FakeDevice("CPU"))
    context, other = Context(model, n_ctx=256), Context(model, n_ctx=256)
    context.decode(TOKENS[:20])

    def broken(*_: Any) -> None:
        raise ComputeError("aborted")

    with monkeypatch.context() as patch:
        patch.setattr("pyggml.backend.scheduler.Schedule.run", broken)
        with pytest.raises(ComputeError, match="aborted"):
            context.shift(5, 4)
    assert context.n_past == 5
    np.testing.assert_array_equal(context.decode(TOKENS[5:9]), [other.decode(TOKENS[:5]), other.decode(TOKENS[5:9])][1])
    context.close(), other.close(), model.close()
