"""Models whose every matrix has one block type, quantised by llama.cpp: our CPU's logits held against llama.cpp's."""

import numpy as np
import pytest
from compare import mean_kl
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, N_VOCAB, 24)]
SHAPE = {"n_embd": 256, "n_ff": 768, "head_k": 64, "head_v": 64}
FILES = {
    "Q4_0": "Q4_0", "Q2_K": "Q2_K", "Q3_K_M": "Q3_K", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
    "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip


def logits(path, n_ubatch, device=None):
    model = Model.load(path, cpu=device or CPUDevice())
    context = Context(model, n_ctx=64, n_ubatch=n_ubatch)
    out = context.decode(TOKENS, logits="all")
    context.close()
    model.close()
    return out


@pytest.fixture(scope="module")
def f32(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("wide") / "wide-256.gguf", **SHAPE)


@pytest.mark.parametrize("ftype", FILES)
def test_as_llamacpp(ftype, f32, peer):
    """Token by token and in batches of 16: matrix-vector and matrix-matrix products. What remains is how activations are
    rounded: llama.cpp gives 256 of them one scale, we 32; the reference rounds none, and ours is nearer to it."""
    path = peer.quantize_model(f32, None, ftype, pure=True)
    assert {t.type.name for t in GGUFFile.open(path).tensors.values()} == {"F32", FILES[ftype]}
    theirs, exact = peer.logits(path, TOKENS, flash_attn=True), logits(path, 16, ReferenceDevice())
    for n_ubatch in (1, 16):
        ours = logits(path, n_ubatch)
        assert mean_kl(theirs, ours) < 2e-3
        assert mean_kl(exact, ours) < min(5e-4, 1.2 * mean_kl(exact, theirs))


def test_another_quantisation_is_noticed(f32, peer):
    paths = [peer.quantize_model(f32, None, ftype, pure=True) for ftype in ("Q3_K_M", "IQ4_NL")]
    assert mean_kl(peer.logits(paths[0], TOKENS, flash_attn=True), logits(paths[1], 16)) > 5e-3
