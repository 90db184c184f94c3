"""The CUDA backend behind the commands: what a server says, devices by name, one model over GPU and CPU servers.

On an emulated GPU, and with `pytest -m gpu` on a GPU."""

import gguf
import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from peer_build import built_peer
from pyggml_cli import devices, rpc_server
from pyggml_cli.flags import parse
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from tiny_lora import all_weights, write_lora
from tiny_model import N_VOCAB, write_llama

import pyggml.backend.cuda
from pyggml import Llama
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.tensor import Tensor

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, N_VOCAB, 12)]


@pytest.fixture
def two_gpus(monkeypatch):
    found = [EmulatedDevice(number=0), EmulatedDevice(number=1)]
    monkeypatch.setattr(pyggml.backend.cuda, "cuda_devices", lambda: found)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    shape = {"n_embd": 128, "n_ff": 192, "head_k": 64, "head_v": 64, "n_head": 2, "n_head_kv": 1}
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", quant=gguf.GGMLQuantizationType.F16, **shape)


def logits(path, used, cpu=None):
    model = Model.load(path, devices=used, n_gpu_layers=99, cpu=cpu or ReferenceDevice())
    context = Context(model, n_ctx=256)
    out = np.concatenate([context.decode(TOKENS[:9], logits="all"), context.decode(TOKENS[9:10])])
    context.close()
    model.close()
    return out


@pytest.mark.parametrize("rank", [5])
def test_adapters_lie_on_the_gpu(two_gpus, path, tmp_path, rank):
    """Their matrices, and the nodes that they add, however small the rank."""
    n, n_kv, n_ff = 128, 64, 192
    shapes = {"attn_q": (n, n), "attn_k": (n, n_kv), "attn_v": (n, n_kv), "attn_output": (n, n)}
    shapes |= {"ffn_gate": (n, n_ff), "ffn_up": (n, n_ff), "ffn_down": (n_ff, n)}
    kind = gguf.GGMLQuantizationType.F16
    file = write_lora(tmp_path / "a.gguf", all_weights(), rank=rank, shapes=shapes, quant=kind)
    found = []
    for used in ([], two_gpus):
        model = Model.load(path, devices=used, n_gpu_layers=99, cpu=ReferenceDevice())
        adapter = model.load_adapter(file)
        homes = {tensor.buffer.device.name for tensor in adapter.tensors()}
        assert homes == ({"CUDA0"} if used else {"REF"})  # the output alone is on the other
        context = Context(model, n_ctx=256, adapters=[(adapter, 1.0)])
        found.append(np.concatenate([context.decode(TOKENS[:9], logits="all"), context.decode(TOKENS[9:10])]))
        context.close()
        model.close()
    assert close(found[1], found[0]) and not close(found[1], logits(path, []))


def close(actual, expected) -> bool:
    return ((actual - expected) ** 2).sum() / (expected**2).sum() < 1e-5


def test_a_server_says_that_it_uses_cuda(two_gpus, capsys):
    rpc_server._serve(parse(rpc_server.ROWS, ["-p", "0"]), lambda: None)
    said = capsys.readouterr().out
    assert said.startswith("using CUDA backend\nusing CUDA backend\nStarting RPC server")
    assert "  CUDA0: Emulated GPU (960 MiB, 960 MiB free)\n  CUDA1: Emulated GPU" in said
    rpc_server._serve(parse(rpc_server.ROWS, ["-p", "0", "-d", "CUDA1,CPU"]), lambda: None)
    said = capsys.readouterr().out
    assert said.startswith("using CUDA backend\nusing CPU backend\n") and "CUDA0" not in said


def test_devices_are_chosen_by_name(two_gpus):
    assert devices.offload_devices(None) == two_gpus
    assert devices.offload_devices(None, ["cuda1"]) == [two_gpus[1]]
    assert devices.offload_devices(None, ["none"]) == []
    with pytest.raises(DeviceError, match=r"unknown device 'CUDA2'; available: CUDA0, CUDA1"):
        devices.offload_devices(None, ["CUDA2"])


def test_missing_packages_are_told_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(pyggml.backend.cuda, "missing", lambda: f"no interface: {pyggml.backend.cuda.HINT}")
    assert devices.gpu_devices() == []
    assert capsys.readouterr().err == "warning: no interface: pip install 'pyggml[cuda]'\n"


def test_a_gpu_server_and_a_cpu_server_share_a_model(path):
    expected = logits(path, [])
    gpu = EmulatedDevice()
    with Listener(Server([gpu]), port=0) as a, Listener(Server([ReferenceDevice()]), port=0) as b:
        shared = devices_from_spec(f"{a.endpoint},{b.endpoint}")
        actual = logits(path, shared)
    assert close(actual, expected)
    assert gpu.gpu.launches, "nothing ran on the GPU"


def test_layers_over_a_gpu_and_this_cpu(path):
    expected = logits(path, [])
    gpu = EmulatedDevice()
    for n_gpu_layers in (1, 2):
        model = Model.load(path, devices=[gpu], n_gpu_layers=n_gpu_layers, cpu=ReferenceDevice())
        context = Context(model, n_ctx=256)
        assert close(context.decode(TOKENS[:9], logits="all"), expected[:9])
        context.close()
        model.close()
    assert gpu.gpu.launches


# ---- on a GPU


@pytest.mark.gpu
def test_greedy_text_is_the_cpus(card, smollm2):
    texts = []
    for used in ([card], []):
        with Llama(str(smollm2), n_ctx=256, verbose=False, devices=used) as llm:
            texts.append(llm("Hello, my name is", max_tokens=16, temperature=0)["choices"][0]["text"])
    assert texts[0] == texts[1]


@pytest.mark.gpu
def test_servers_with_a_card_and_a_cpu_share_a_model(card, path):
    with Listener(Server([card]), port=0) as a, Listener(Server([CPUDevice()]), port=0) as b:
        actual = logits(path, devices_from_spec(f"{a.endpoint},{b.endpoint}"), CPUDevice())
    assert close(actual, logits(path, []))


@pytest.mark.gpu
def test_a_stock_client_uses_the_card(request, card, smollm2):
    if not built_peer():
        pytest.skip("the stock llama.cpp is not built here, and a card is not to wait for it")
    peer = request.getfixturevalue("peer")
    with Listener(Server([card]), port=0) as listener:
        remote = peer.rpc_generate([listener.endpoint], smollm2, "Hello, my name is", 4)
    local = peer.generate(smollm2, "Hello, my name is", 4)
    assert remote["tokens"] == local["tokens"]


@pytest.mark.gpu
def test_memory_is_returned_and_too_much_is_refused(card, path):
    logits(path, [card])
    before = card.memory()[0]
    logits(path, [card])
    assert card.memory()[0] >= before - (16 << 20)
    with pytest.raises(DeviceError, match="cannot allocate"):
        card.alloc_buffer(card.memory()[1] * 2)
    buffer = card.alloc_buffer(1 << 20)
    t = Tensor(GGMLType.I8, (1 << 20,))
    buffer.place(t, 0)
    buffer.set(t, bytes(1 << 20))
    assert not any(buffer.get(t)), "the card works on after a refusal"
    buffer.free()
