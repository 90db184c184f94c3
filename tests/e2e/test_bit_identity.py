"""Logits are the same bits wherever layers are computed and on however many threads."""

from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_lora import all_weights, write_lora
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.base import extra_devices
from pyggml.dtypes import GGMLType
from pyggml.model.model import Model
from pyggml.runtime.context import Context

TEXT = (
    "The quick brown fox jumps over the lazy dog, while the cat, who had seen all this before, "
    "went on sleeping in the afternoon sun; for 27 years nothing had changed on the farm, and nobody minded."
)
SETTINGS = {
    "flash": {},
    "products": {"flash_attn": False},
    "flash, 7 at a time": {"n_ubatch": 7},
    "products, 7 at a time": {"flash_attn": False, "n_ubatch": 7},
}
PLACES = ("one server", "two servers", "two servers, unequal", "12 layers on a server", "1 layer on a server")


def placed(place: str, endpoints: list[str]) -> dict[str, Any]:
    """Arguments of Model.load."""
    both = ",".join(endpoints)
    return {
        "one server": lambda: {"devices": extra_devices("rpc", endpoints[0])},
        "two servers": lambda: {"devices": extra_devices("rpc", both)},
        "two servers, unequal": lambda: {"devices": extra_devices("rpc", both), "tensor_split": [1, 4]},
        "12 layers on a server": lambda: {"devices": extra_devices("rpc", endpoints[1]), "n_gpu_layers": 12},
        "1 layer on a server": lambda: {"devices": extra_devices("rpc", endpoints[0]), "n_gpu_layers": 1},
    }[place]()


def run(model: Model, tokens: list[int], n_decode: int = 8, **options: Any) -> np.ndarray:
    """Logits after every token of a prompt, and of n_decode greedy ones after it, as bits."""
    context = Context(model, n_ctx=1024, **options)
    rows = [context.decode(tokens, logits="all")]
    for _ in range(n_decode):
        rows.append(context.decode([int(rows[-1][-1].argmax())]))
    context.close()
    logits = np.concatenate(rows)
    assert np.isfinite(logits).all() and len(np.unique(logits.argmax(-1))) > 5
    return logits.view(np.uint32)


@pytest.fixture(scope="module", params=["Q4_1", "Q8_0", "F16"])
def local(
    request: pytest.FixtureRequest, model_file: Callable[..., Any], tokenize: Callable[..., Any]
) -> Iterator[Any]:
    """(file, tokens, expected bits by name of setting), computed here on one thread."""
    path, tokens = model_file(request.param), tokenize(TEXT)
    assert 35 < len(tokens) < 60
    model = Model.load(path)
    yield path, tokens, {name: run(model, tokens, n_threads=1, **options) for name, options in SETTINGS.items()}
    model.close()


def same(ours: np.ndarray, expected: np.ndarray) -> None:
    differing = np.flatnonzero((ours != expected).any(-1))
    assert not differing.size, f"rows {differing.tolist()} of {len(expected)} differ"


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads(local: Any, n_threads: int) -> None:
    path, tokens, expected = local
    model = Model.load(path)
    for name, options in SETTINGS.items():
        same(run(model, tokens, n_threads=n_threads, **options), expected[name])
    model.close()


@pytest.mark.parametrize("place", PLACES)
def test_servers(local: Any, two_servers: Any, place: str) -> None:
    path, tokens, expected = local
    model = Model.load(path, **placed(place, [server.endpoint for server in two_servers]))
    on_cpu = sum(device is model.cpu for device in model.layer_devices)
    assert len(model.devices) == 1 + ("two" in place) and on_cpu == {"12": 19, "1 ": 30}.get(place[:2], 0)
    for name, options in SETTINGS.items():
        same(run(model, tokens, n_threads=3, **options), expected[name])
    model.close()


@pytest.mark.parametrize("flash_attn", [True, False])
def test_long_texts(smollm2: Any, tokenize: Callable[..., Any], two_servers: Any, flash_attn: bool) -> None:
    """Beyond 512 cells attention to one token is itself divided: the division must not depend on threads either."""
    tokens = (tokenize(TEXT) * 20)[:700]
    model = Model.load(smollm2)
    expected, *others = (run(model, tokens, 4, n_threads=n, flash_attn=flash_attn) for n in (1, 2, 3))
    model.close()
    model = Model.load(smollm2, **placed("two servers", [server.endpoint for server in two_servers]))
    others.append(run(model, tokens, 4, flash_attn=flash_attn))
    model.close()
    for other in others:
        same(other, expected)


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_experts(two_servers: Any, tmp_path: Any, quant: str) -> None:
    """Few tokens go through experts row by row, many in tiles; also where two servers have a layer each."""
    path = write_llama(tmp_path / "experts.gguf", n_expert=8, quant=gguf.GGMLQuantizationType[quant])
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, 60).tolist()
    model = Model.load(path)
    expected, *others = (run(model, tokens, n_threads=n) for n in (1, 2, 3))
    model.close()
    model = Model.load(path, **placed("two servers", [server.endpoint for server in two_servers]))
    assert len(model.devices) == 2
    others.append(run(model, tokens))
    model.close()
    for other in others:
        same(other, expected)


@pytest.mark.parametrize("n_expert", [0, 8])
def test_adapters(two_servers: Any, tmp_path: Any, n_expert: int) -> None:
    """Their matrices lie on the servers, beside the weights. Four layers and the output: with three, the half would end a layer,
    and a server with a few bytes less free would get none."""
    path = write_llama(tmp_path / "model.gguf", n_layer=4, n_expert=n_expert)
    weights = [*all_weights(4, n_expert), "token_embd.weight"]
    file = write_lora(tmp_path / "adapter.gguf", weights, n_expert=n_expert)
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, 60).tolist()
    results = []
    for options in ({}, placed("two servers", [server.endpoint for server in two_servers])):
        model = Model.load(path, **options)
        adapter = model.load_adapter(file)
        homes = [tensor.buffer.device for tensor in adapter.tensors() if tensor.buffer]
        assert {id(device) for device in homes} == {id(device) for device in (model.cpu, *model.devices)}
        results += [run(model, tokens, adapters=[(adapter, scale)]) for scale in (1.0, 0.0)]
        model.close()
    assert (results[0] != results[1]).any()
    same(results[2], results[0])
    same(results[3], results[1])


def test_caches_of_blocks(smollm2: Any, tokenize: Callable[..., Any], two_servers: Any) -> None:
    """Each server has its own copy of the matrix that rotates keys and values."""
    tokens, options = tokenize(TEXT), {"type_k": GGMLType.Q8_0, "type_v": GGMLType.Q4_0}
    model = Model.load(smollm2)
    expected = run(model, tokens, n_threads=1, **options)
    same(run(model, tokens, n_threads=3, **options), expected)
    model.close()
    model = Model.load(smollm2, **placed("two servers", [server.endpoint for server in two_servers]))
    same(run(model, tokens, **options), expected)
    model.close()


def test_one_flipped_bit_of_a_weight_is_seen(local: Any) -> None:
    """A mutant: the comparison notices the smallest change of one weight of the middle layer."""
    path, tokens, expected = local
    model = Model.load(path)
    weight = model.tensor("blk.15.attn_norm.weight")
    buffer = weight.buffer
    assert buffer is not None
    changed = np.frombuffer(buffer.get(weight), np.uint32) ^ (np.arange(576, dtype=np.uint32) == 100)
    buffer = model.cpu.alloc_buffer(weight.nbytes)
    buffer.place(weight, 0)
    buffer.set(weight, changed.view(np.uint8))
    assert (run(model, tokens, n_threads=1) != expected["flash"]).any()
    model.close()
