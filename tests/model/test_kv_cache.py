"""KV caches of every type: kept as llama.cpp keeps them, those of blocks rotated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import mean_kl, prose
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.base import Device
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import UnsupportedError
from pyggml.memory import hadamard, kv_tensors
from pyggml.model.model import Model
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, N_VOCAB, 40)]
F16 = GGMLType.F16
SMALL = tuple(t for t in kv_tensors.TYPES if t not in (GGMLType.F32, F16))
HEADS = {"rotated": 64, "rotated by 128": 128, "not rotated": 96}


def logits(path: Path, device: Device, tokens: list[int] = TOKENS, **options: Any) -> np.ndarray:
    model = Model.load(path, cpu=device)
    context = Context(model, n_ctx=512, n_ubatch=256, **options)
    out = context.decode(tokens, logits="all")
    context.close()
    model.close()
    return out


def test_the_rotation_is_its_own_inverse() -> None:
    for n in (64, 256):
        h = hadamard.hadamard(n)
        assert h.dtype == np.float32 and np.allclose(h @ h, np.eye(n), atol=1e-6)
        assert (np.sign(h[:, 1]) == np.tile([1, -1], n // 2)).all()


def test_what_is_rotated() -> None:
    k, v, q8 = hadamard.k_rotation, hadamard.v_rotation, GGMLType.Q8_0
    assert [k(q8, n) for n in (32, 64, 96, 128, 192, 256, 320)] == [0, 64, 0, 128, 64, 256, 64]
    assert [v(q8, n) for n in (32, 64, 96, 128, 192, 256, 320)] == [0, 64, 0, 64, 64, 64, 64]
    assert not any(f(t, 128) for f in (k, v) for t in (F16, GGMLType.F32, GGMLType.BF16))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", SMALL, ids=lambda t: t.name)
def test_as_llamacpp_keeps_them(
    peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: GGMLType, head: int
) -> None:
    """What the type costs, against a cache of F16, is the scale."""
    path = write_llama(tmp_path / "tiny.gguf", head_k=head, head_v=head)
    types = {"type_k": dtype, "type_v": dtype}
    theirs, ours = peer.logits(path, TOKENS, flash_attn=True, **types), logits(path, ReferenceDevice(), **types)
    cost = mean_kl(peer.logits(path, TOKENS, flash_attn=True), theirs)
    assert mean_kl(theirs, ours) < 0.6 * cost
    if hadamard.k_rotation(dtype, head):  # a mutant: neither K nor V is
        for module in (hadamard, kv_tensors):
            monkeypatch.setattr(module, "k_rotation", lambda dtype, head: 0)
        assert mean_kl(theirs, logits(path, ReferenceDevice(), **types)) > cost


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("dtype", SMALL, ids=lambda t: t.name)
def test_the_cpu_does_as_the_reference(tmp_path: Path, dtype: GGMLType, flash_attn: bool) -> None:
    """In one batch and token by token; a V of blocks is there with fused attention alone."""
    path = write_llama(tmp_path / "tiny.gguf", head_k=64, head_v=64)
    types = {"type_k": dtype, "type_v": dtype if flash_attn or SIZES[dtype].block_size == 1 else F16}
    model = Model.load(path, cpu=CPUDevice())
    context = Context(model, n_ctx=512, flash_attn=flash_attn, **types)
    law = logits(path, ReferenceDevice(), flash_attn=flash_attn, **types)
    batch = context.decode(TOKENS, logits="all")
    context.clear()
    singly = np.concatenate([context.decode([t]) for t in TOKENS])
    context.close()
    model.close()
    scale = mean_kl(logits(path, ReferenceDevice()), law)
    assert max(mean_kl(law, batch), mean_kl(law, singly)) < max(scale / 4, 5e-5)  # products round queries to 8 bits


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_smollm2(peer: Any, smollm2: Path, name: str) -> None:
    """Keys of blocks: the scale is what llama.cpp shows between its own attention fused and not. Values of blocks it has
    fused alone; there the scale is what they cost."""
    path = peer.quantize_model(smollm2, None, "F16")
    tokens = peer.tokenize(smollm2, [prose(1000)])[0]
    dtype = GGMLType[name]

    def both(**options: Any) -> tuple[np.ndarray, np.ndarray]:
        return peer.logits(path, tokens, **options), logits(path, CPUDevice(), tokens, **options)

    fused, ours = both(flash_attn=True, type_k=dtype)
    plain, ours_plain = both(flash_attn=False, type_k=dtype)
    own = mean_kl(fused, plain)
    values, ours_values = both(flash_attn=True, type_k=dtype, type_v=dtype)
    cost = mean_kl(peer.logits(path, tokens, flash_attn=True), values)
    found = mean_kl(fused, ours), mean_kl(plain, ours_plain), mean_kl(values, ours_values)
    print(f"{name}: KL {found[0]:.2e}, not fused {found[1]:.2e}, own {own:.2e}; with V {found[2]:.2e}, cost {cost:.2e}")
    assert max(found[:2]) <= 1.5 * own and found[2] <= 1.5 * cost


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    def attempt(head: int = 64, **options: Any) -> Callable[[], np.ndarray]:
        path = write_llama(tmp_path / f"{head}.gguf", head_k=head, head_v=head)
        return lambda: logits(path, ReferenceDevice(), **options)

    for make, message in (
        (attempt(type_v=GGMLType.Q8_0, flash_attn=False), "quantized V cache requires flash_attn to be enabled"),
        (attempt(48, type_k=GGMLType.Q4_0), "K cache type q4_0 with block size 32 does not divide n_embd_head_k=48"),
        (attempt(48, type_v=GGMLType.Q5_1), "V cache type q5_1 with block size 32 does not divide n_embd_head_v=48"),
        (attempt(type_k=GGMLType.Q6_K), "a cache of K in Q6_K is unknown; known are F32, F16, BF16, Q8_0"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            make()
