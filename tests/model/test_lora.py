"""LoRA adapters: logits held against llama.cpp's, files that are no adapters of the model, adapters that come and go."""

import contextlib

import gguf
import numpy as np
import pytest
from compare import mean_kl
from tiny_logits import TOKENS
from tiny_lora import all_weights, write_lora
from tiny_model import write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.model import lora
from pyggml.model.model import Model
from pyggml.runtime.context import Context

FIRST, SECOND, THIRD = TOKENS[:20], TOKENS[20:30], TOKENS[30:]
EXPERTS = {"n_expert": 4}

CASES = {
    # of the model; of each adapter: weights and options; scales
    "all weights": ({}, [(all_weights(), {})], [1.0]),
    "one weight, scaled": ({}, [(["blk.1.ffn_down.weight"], {})], [-1.75]),
    "no alpha": ({}, [(all_weights(), {"alpha": None})], [0.5]),
    "two at once": (
        {},
        [(all_weights(), {}), (["blk.0.attn_q.weight", "blk.1.ffn_up.weight"], {"rank": 8, "alpha": 16.0, "seed": 9})],
        [0.75, 1.5],
    ),
    "biases": ({"biases": True}, [(all_weights(), {})], [1.0]),
    "output": ({"tied": False}, [(["output.weight"], {})], [1.0]),
    "token embeddings": ({"tied": False}, [(["token_embd.weight", "blk.0.attn_v.weight"], {})], [1.0]),
    "as large as the weight": ({}, [([f"blk.{i}.attn_q.weight" for i in (0, 1)], {"rank": 64})], [8.0]),
    "experts": (EXPERTS, [(all_weights(n_expert=4), EXPERTS)], [1.0]),
    "F16 adapter": ({}, [(all_weights(), {"quant": gguf.GGMLQuantizationType.F16, "rank": 32})], [1.0]),
}


def apply(path, adapters, scales, device=None):
    """The logits of the last token, of three decodes: with adapters, without, with them again."""
    with contextlib.closing(Model.load(path, cpu=device or ReferenceDevice())) as model:
        context = Context(model, n_ctx=512, n_ubatch=16, flash_attn=False)
        with contextlib.closing(context):
            loaded = [model.load_adapter(adapter) for adapter in adapters]
            rows = []
            for tokens, used in ((FIRST, scales), (SECOND, [0.0] * len(scales)), (THIRD, scales)):
                context.set_adapters(list(zip(loaded, used, strict=True)))
                rows.append(context.decode(tokens)[0])
            return np.array(rows)


def files(folder, name):
    options, adapters, scales = CASES[name]
    path = write_llama(folder / "tiny.gguf", **options)
    written = [write_lora(folder / f"{i}.gguf", weights, **more) for i, (weights, more) in enumerate(adapters)]
    return path, written, scales


def theirs_of(peer, path, written, scales):
    used = [[i, scale] for i, scale in enumerate(scales)]
    steps = [("open", "a"), ("adapt", "a", used), ("decode", "a", FIRST), ("adapt", "a", []), ("decode", "a", SECOND)]
    steps += [("adapt", "a", used), ("decode", "a", THIRD)]
    return peer.steps(path, steps, adapters=written)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_peer(name, tmp_path, peer):
    path, written, scales = files(tmp_path, name)
    theirs = theirs_of(peer, path, written, scales)
    without = apply(path, [], [])
    for device in (ReferenceDevice(), CPUDevice()):
        ours = apply(path, written, scales, device)
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
        assert mean_kl(theirs, ours) < 1e-5
    for i in (0, 2):
        assert mean_kl(theirs[i : i + 1], without[i : i + 1]) > 1e-4, "the adapter matters"


class NoRank(lora.Applied):
    """A mutant: the scale alone, whatever alpha and rank."""

    def factor(self, pair):
        return self.scale


class Exchanged(lora.Applied):
    """A mutant: A and B in each other's place, where their shapes allow it."""

    def add(self, weight, x, y):
        swapped = {name: lora.Pair(pair.b, pair.a) for name, pair in self.adapter.pairs.items()}
        other = lora.Adapter(self.adapter.path, self.adapter.alpha, swapped, self.adapter.digest)
        return lora.Applied(other, self.scale).add(weight, x, y)


class FirstExpert(lora.Applied):
    """A mutant: the experts that A was chosen by do not choose B, all take the first one's."""

    def add_id(self, weight, x, ids, y):
        from pyggml import ops

        pair = self.adapter.pairs.get(weight.name)
        if pair is None:
            return y
        first = ops.view(pair.b, pair.b.ne[:2], pair.b.nb[1:2], 0)
        return self._sum(pair, y, ops.mul_mat(first, ops.mul_mat_id(pair.a, x, ids)))


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (NoRank, "all weights"),
        (NoRank, "token embeddings"),
        (Exchanged, "as large as the weight"),
        (FirstExpert, "experts"),
    ],
)
def test_the_comparison_catches_a_mutant(mutant, name, tmp_path, peer, monkeypatch):
    path, written, scales = files(tmp_path, name)
    theirs = theirs_of(peer, path, written, scales)
    monkeypatch.setattr("pyggml.runtime.context.Applied", mutant)
    assert mean_kl(theirs, apply(path, written, scales)) > 1e-4
