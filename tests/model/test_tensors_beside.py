"""Tensors beside a llama model's weights: scales take part, what llama.cpp passes over is passed over, the rest is named."""

import re

import gguf
import numpy as np
import pytest
from compare import mean_kl
from fake_devices import FakeDevice
from tiny_logits import TOKENS, run
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError
from pyggml.gguf import GGUFFile
from pyggml.model.linear import Linear
from pyggml.model.model import Model
from pyggml.quantize import find_mix, make_plan
from pyggml.quantize import run as quantise
from pyggml.runtime.context import Context

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def f32(*values):
    return np.array(values, np.float32)


def weights(path):
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def scaled(path, plain, names, scale, **options):
    """The file `plain` with these weights of each layer divided by their scales, which stand beside them."""
    there, new = weights(plain), {}
    for name in names:
        for il in range(2):
            weight = there[f"blk.{il}.{name}.weight"]
            values = f32(*scale) if weight.ndim == 3 else f32(scale[il])
            new[f"blk.{il}.{name}.scale"] = values
            new[f"blk.{il}.{name}.weight"] = weight / (values[:, None, None] if weight.ndim == 3 else values)
    return write_llama(path, replace=new, **options)


@pytest.mark.parametrize("name", [*ATTENTION, *DENSE])
def test_a_weight_and_its_scale_are_the_plain_weight(name, tmp_path):
    plain = write_llama(tmp_path / "plain.gguf")
    file = scaled(tmp_path / "scaled.gguf", plain, [name], [64.0, 0.5])
    np.testing.assert_array_equal(run(file, TOKENS), run(plain, TOKENS))


@pytest.mark.parametrize("name", EXPERTS)
def test_each_expert_has_its_scale(name, tmp_path):
    plain = write_llama(tmp_path / "plain.gguf", n_expert=4)
    file = scaled(tmp_path / "scaled.gguf", plain, [name], [64.0, 0.5, 1.0, 16.0], n_expert=4)
    np.testing.assert_array_equal(run(file, TOKENS), run(plain, TOKENS))


@pytest.mark.parametrize("options", [{}, {"biases": True}, {"n_expert": 4}], ids=str)
def test_scales_as_llamacpp_applies_them(options, tmp_path, peer, monkeypatch):
    """Of attention before the bias, of the feed-forward network after it."""
    rng = np.random.default_rng(4)
    kinds = (*ATTENTION, *(EXPERTS if "n_expert" in options else DENSE))
    size = {name: 4 if name in EXPERTS else 1 for name in kinds}
    new = {f"blk.{il}.{k}.scale": rng.uniform(0.5, 2, size[k]).astype(np.float32) for il in (0, 1) for k in kinds}
    path = write_llama(tmp_path / "scaled.gguf", replace=new, **options)
    exact = {"type_k": GGMLType.F32, "type_v": GGMLType.F32, "flash_attn": False}
    theirs, ours = peer.logits(path, TOKENS, **exact), run(path, TOKENS, **exact)
    np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
    assert mean_kl(theirs, ours) < 1e-5
    assert mean_kl(theirs, run(write_llama(tmp_path / "plain.gguf", **options), TOKENS)) > 1e-3  # they matter
    if "biases" in options:  # a mutant that scales before the bias everywhere
        init = Linear.__init__
        monkeypatch.setattr(Linear, "__init__", lambda *a, **given: init(*a, **(given | {"scale_last": False})))
        assert mean_kl(theirs, run(path, TOKENS, **exact)) > 1e-4


@pytest.mark.parametrize("options", [{}, {"n_expert": 4}], ids=str)
def test_the_cpu_computes_scales(options, tmp_path):
    kinds = (*ATTENTION, *(EXPERTS if options else DENSE))
    plain = write_llama(tmp_path / "plain.gguf", **options)
    file = scaled(tmp_path / "scaled.gguf", plain, kinds, [64.0, 0.5, 1.0, 16.0], **options)
    logits = []
    for path in (plain, file):
        model = Model.load(path)
        context = Context(model, n_ctx=512, n_ubatch=16)
        logits.append(context.decode(TOKENS, logits="all"))
        context.close(), model.close()
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-2 * np.abs(logits[0]).max())
    assert mean_kl(logits[0], logits[1]) < 1e-4


UNKNOWN = {
    "blk.0.attn_q_norm.weight": f32(*[1] * 16),
    "blk.1.attn_sinks.weight": f32(0, 0, 0, 0),
    "output.bias": f32(*[0] * N_VOCAB),
    "output.scale": f32(1),
    "token_embd.scale": f32(1),
    "blk.0.attn_norm.bias": f32(*[0] * 64),
    "blk.0.ffn_up_exps.scale": f32(1, 1, 1, 1),
    "blk.2.attn_q.scale": f32(1),
    "blk.0.attn_q.scale2": f32(1),
    "rope_factors_long.weight": f32(*[1] * 8),
    "anything": f32(1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_tensor_that_nothing_reads_is_named(name, tmp_path):
    path = write_llama(tmp_path / "more.gguf", replace={name: UNKNOWN[name]})
    with pytest.raises(ModelError, match=rf"more\.gguf: tensor {re.escape(name)} is not known in a llama model of 2"):
        Model.load(path, cpu=FakeDevice("CPU"))


def test_llamacpp_refuses_them_too(tmp_path, peer):
    for name, value in UNKNOWN.items():
        with pytest.raises(Exception, match="load"):
            peer.logits(write_llama(tmp_path / "more.gguf", replace={name: value}), TOKENS)


def test_of_several_the_first_is_named_and_the_others_counted(tmp_path):
    path = write_llama(tmp_path / "more.gguf", replace=UNKNOWN)
    with pytest.raises(ModelError, match=rf"attn_q_norm\.weight \(nor {len(UNKNOWN) - 1} others\) is not known"):
        Model.load(path, cpu=FakeDevice("CPU"))


@pytest.mark.parametrize("options", [{}, {"n_expert": 4}], ids=str)
def test_what_llamacpp_passes_over_is_passed_over(options, tmp_path, peer):
    """Scales of activations, factors of rope that are asked for, an output beside the embedding."""
    kinds = (*ATTENTION, *(EXPERTS if options else DENSE))
    new = {f"blk.1.{kind}.input_scale": f32(*[3] * (4 if kind in EXPERTS else 1)) for kind in kinds}
    path = write_llama(tmp_path / "more.gguf", replace=new, rope_freqs=True, tied=False, **options)
    ours = run(path, TOKENS)
    np.testing.assert_array_equal(ours, run(write_llama(tmp_path / "less.gguf", rope_freqs=True, tied=False, **options), TOKENS))  # fmt: skip
    assert mean_kl(peer.logits(path, TOKENS), ours) < 1e-5


@pytest.mark.parametrize("name", ["blk.0.attn_q.scale", "blk.0.ffn_down.scale"])
def test_a_scale_of_another_shape_is_named(name, tmp_path):
    path = write_llama(tmp_path / "bad.gguf", replace={name: f32(1, 2)})
    with pytest.raises(
        ModelError, match=rf"bad\.gguf: tensor {re.escape(name)} is \[2, 1, 1, 1\], must be \[1, 1, 1, 1\]"
    ):
        Model.load(path, cpu=FakeDevice("CPU"))


@pytest.mark.parametrize("rows", [N_VOCAB - 1, N_VOCAB + 42])
@pytest.mark.parametrize("tied", [True, False])
def test_another_number_of_embeddings_than_tokens(rows, tied, tmp_path):
    new = {"token_embd.weight": np.zeros((rows, 64), np.float32)}
    if not tied:
        new["output.weight"] = new["token_embd.weight"]
    path = write_llama(tmp_path / "rows.gguf", tied=tied, replace=new)
    wanted = rf"token_embd\.weight is \[64, {rows}\], must be \[64, {N_VOCAB}\]: the vocabulary has {N_VOCAB} tokens"
    with pytest.raises(ModelError, match=wanted):
        Model.load(path, cpu=FakeDevice("CPU"))


def test_an_output_of_another_height_than_the_embedding(tmp_path):
    path = write_llama(tmp_path / "rows.gguf", tied=False, replace={"output.weight": np.zeros((99, 64), np.float32)})
    with pytest.raises(
        ModelError, match=rf"tensor output\.weight is \[64, 99, 1, 1\], must be \[64, {N_VOCAB}, 1, 1\]"
    ):
        Model.load(path, cpu=FakeDevice("CPU"))


@pytest.mark.parametrize("options", [{}, {"n_expert": 4}], ids=str)
def test_scales_go_with_their_layers_and_stay_as_they_are(options, tmp_path):
    """On other devices, and through quantisation of the matrices beside them."""
    kinds = (*ATTENTION, *(EXPERTS if options else DENSE))
    plain = write_llama(tmp_path / "plain.gguf", **options)
    file = scaled(tmp_path / "scaled.gguf", plain, kinds, [64.0, 0.5, 1.0, 16.0], **options)
    model = Model.load(file, cpu=ReferenceDevice(), devices=[device := FakeDevice()])
    context = Context(model, n_ctx=512, n_ubatch=16)
    np.testing.assert_array_equal(context.decode(TOKENS, logits="all"), run(plain, TOKENS))
    assert device.written["blk.1.attn_q.scale"] == 1
    context.close(), model.close()
    with GGUFFile.open(file) as source:
        quantise(make_plan(source, find_mix("q8_0")), tmp_path / "q8_0.gguf", 1)
    assert mean_kl(run(plain, TOKENS), run(tmp_path / "q8_0.gguf", TOKENS)) < 1e-2
    with GGUFFile.open(tmp_path / "q8_0.gguf") as made:
        assert {made.tensors[n].type for n in made.tensors if n.endswith(".scale")} == {GGMLType.F32}
