"""Many sequences with their cells on servers: the bits are those of a local run, whoever joins or leaves, and a graph that was
sent once is asked for by its number."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from peer import Peer
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.base import Device, extra_devices
from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context


def batches(n: int) -> list[Batch]:
    """Prompts of unequal length, then tokens of some of the sequences, one sequence ended and begun again between them."""
    rng = np.random.default_rng(n)
    lengths = rng.integers(1, 12, n)
    made = [Batch.join([Batch.of(rng.integers(0, N_VOCAB, k), 0, seq) for seq, k in enumerate(lengths)])]
    ends = lengths.tolist()
    for step in range(6):
        chosen = [seq for seq in range(n) if (seq + step) % 3]
        if step == 3:
            ends[0] = 0
            chosen = sorted({0, *chosen})
        made.append(Batch.join([Batch.of(rng.integers(0, N_VOCAB, 1), ends[seq], seq) for seq in chosen]))
        for seq in chosen:
            ends[seq] += 1
    return made


def logits(path: Path, devices: list[Device], n: int, kv_unified: bool) -> list[np.ndarray]:
    model = Model.load(path, cpu=CPUDevice(), devices=devices)
    assert all(device in model.layer_devices for device in devices)
    context = Context(model, n_ctx=256 * n, n_seq_max=n, kv_unified=kv_unified, n_threads=1)
    found = []
    for i, batch in enumerate(batches(n)):
        if i == 4:
            context.memory.remove(0)
        found.append(context.decode(batch))
    context.memory.copy(1, 0)  # what it has on the servers is copied there
    found.append(context.decode(Batch.join([Batch.of([3], context.memory.end(seq), seq) for seq in (0, 1)])))
    assert context.memory.n_bytes > 0
    context.close()
    model.close()
    return found


@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
def test_two_servers_give_the_bits_of_a_local_run(tmp_path: Path, kv_unified: bool) -> None:
    path, n = write_llama(tmp_path / "tiny.gguf", n_layer=4), 5
    local = logits(path, [], n, kv_unified)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(Listener(Server([CPUDevice()], n_threads=1), port=0)) for _ in range(2)]
        devices = extra_devices("rpc", ",".join(one.endpoint for one in listeners))
        there = logits(path, devices, n, kv_unified)
    for a, b in zip(local, there, strict=True):
        np.testing.assert_array_equal(a, b)
    if not kv_unified:
        np.testing.assert_allclose(local[-1][0], local[-1][1], atol=1e-3 * np.abs(local[-1]).max())


@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
def test_on_a_stock_server(tmp_path: Path, peer: Peer, kv_unified: bool) -> None:
    path, n = write_llama(tmp_path / "tiny.gguf", n_layer=4), 5
    local = logits(path, [], n, kv_unified)
    with peer.rpc_server() as stock:
        there = logits(path, extra_devices("rpc", stock.endpoint), n, kv_unified)
    for a, b in zip(local, there, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3 * np.abs(a).max())
