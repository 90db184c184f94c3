"""LoRA adapters on the CPU's kernels against the reference backend: odd ranks, types, and one weight at a time, whose neighbours
in a fused step have none."""

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
from pyggml.model.model import Model
from pyggml.runtime.context import Context

SEVERAL = 4  # experts


def run(path, adapters, device):
    """Logits of a prompt in micro-batches and of a single token after it."""
    with contextlib.closing(Model.load(path, cpu=device)) as model:
        used = [(model.load_adapter(adapter), 1.0) for adapter in adapters]
        with contextlib.closing(Context(model, n_ctx=512, n_ubatch=16, n_threads=2, adapters=used)) as context:
            return np.concatenate([context.decode(TOKENS, logits="all"), context.decode([5])])


@pytest.mark.parametrize("n_expert", [0, SEVERAL])
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("rank", [1, 3, 33])
def test_ranks_and_types(rank, quant, n_expert, tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", n_expert=n_expert, tied=False)
    weights = [*all_weights(n_expert=n_expert, output=True), "token_embd.weight"]
    kind = gguf.GGMLQuantizationType[quant]
    adapter = write_lora(tmp_path / "a.gguf", weights, rank=rank, n_expert=n_expert, quant=kind)
    theirs, ours = (run(path, [adapter], device) for device in (ReferenceDevice(), CPUDevice()))
    np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
@pytest.mark.parametrize("n_expert", [0, SEVERAL])
def test_one_weight_at_a_time(n_expert, quant, tmp_path):
    path = write_llama(
        tmp_path / "tiny.gguf", n_expert=n_expert, tied=False, quant=gguf.GGMLQuantizationType[quant], n_layer=1
    )
    limit = 1e-8 if quant == "F32" else 1e-2  # activations are rounded to 8 bits by one of the two
    plain = run(path, [], CPUDevice())
    for weight in [*all_weights(1, n_expert, output=True), "token_embd.weight"]:
        adapter = write_lora(tmp_path / "a.gguf", [weight], n_expert=n_expert, alpha=16.0)
        law, ours = (run(path, [adapter], device) for device in (ReferenceDevice(), CPUDevice()))
        assert mean_kl(law, ours) < limit, weight
        assert mean_kl(law, plain) > (10 * limit if quant == "F32" or "gate_inp" not in weight else 0), weight
