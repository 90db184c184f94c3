"""A context's schedules of new shapes are made from a few layers, and give the bits of those made from all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_lora import all_weights, write_lora
from tiny_model import write_llama

import pyggml.backend.few_layers as few_layers
from pyggml.dtypes import GGMLType
from pyggml.model.layers import CausalLM
from pyggml.model.model import Model
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context

LAYERS = 9


def batches(seed: int, n_seq: int) -> list[Batch]:
    """Of all kinds: one token, several, of one sequence or of some, with outputs of all, of some, of none."""
    rng, ends, found = np.random.default_rng(seed), [0] * n_seq, []
    for _ in range(12):
        tokens, pos, seq = [], [], []
        for s in np.sort(rng.choice(n_seq, rng.integers(1, n_seq + 1), replace=False)).tolist():
            n = int(rng.integers(1, 5)) if rng.random() < 0.5 else 1
            tokens += rng.integers(0, 32, n).tolist()
            pos += range(ends[s], ends[s] + n)
            seq += [s] * n
            ends[s] += n
        outputs = rng.random(len(tokens)) < rng.choice([0.0, 0.5, 1.0])
        found.append(
            Batch(
                *(np.array(values, np.int32) for values in (tokens, pos, seq)), outputs, np.zeros(len(tokens), np.bool_)
            )
        )
    return found


def results(path: Path, adapter: Path | None, **options: Any) -> list[NDArray[np.float32]]:
    model = Model.load(path)
    context = Context(model, n_ctx=512, n_ubatch=8, n_threads=2, **options)
    used = [(model.load_adapter(adapter), 0.5)] if adapter is not None else []
    found = []
    for i, batch in enumerate(batches(1, options["n_seq_max"])):
        context.set_adapters(used if i % 6 > 1 else [])
        found.append(context.decode(batch))
    context.close()
    model.close()
    return found


CASES: dict[str, tuple[dict[str, Any], bool, dict[str, Any]]] = {
    # of the file, whether an adapter comes and goes, of the context
    "one": ({}, False, {"n_seq_max": 1}),
    "streams": ({}, False, {"n_seq_max": 3}),
    "unified": ({}, False, {"n_seq_max": 3, "kv_unified": True}),
    "experts": ({"n_expert": 4}, False, {"n_seq_max": 2}),
    "transposed V": ({}, False, {"n_seq_max": 2, "flash_attn": False}),
    "quantised cache": ({"head_k": 64, "head_v": 64}, False, {"n_seq_max": 2, "type_k": GGMLType.Q8_0}),
    "adapter": ({}, True, {"n_seq_max": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_few_layers_give_the_bits_of_all(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, adapted, options = CASES[name]
    path = write_llama(tmp_path / "m.gguf", n_layer=LAYERS, **file)
    adapter = write_lora(tmp_path / "a.gguf", all_weights(LAYERS)) if adapted else None
    asked: list[int] = []
    build = CausalLM.build

    def counted(self: CausalLM, g: object, layers: range | None = None) -> object:
        asked.append(LAYERS if layers is None else len(layers))
        return build(self, g, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(CausalLM, "build", counted)
    few = results(path, adapter, **options)
    assert sum(n < LAYERS for n in asked) > len(asked) / 3
    monkeypatch.setattr(few_layers, "patterns", lambda *given: {})
    asked.clear()
    whole = results(path, adapter, **options)
    assert set(asked) == {LAYERS}
    assert all(a.shape == b.shape and (a == b).all() for a, b in zip(few, whole, strict=True))
    assert sum(a.size for a in few) > 0
