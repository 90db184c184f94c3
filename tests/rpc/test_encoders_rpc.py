"""Models that make embeddings over the wire: our client on one of our servers and on a stock one, a stock client on our server."""

from collections.abc import Iterator

import numpy as np
import pytest
from arch_files import LIMIT
from peer import PeerServer
from peer_archs import ArchPeer, Script, nmse
from peer_programs import Programs
from programs import Newest
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V8, Command
from tiny_encoders import NAMES, ensure_encoders

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.embedder import Embedder

TEXTS = [[int(t) for t in np.random.default_rng(3).integers(0, 128, n)] for n in (40, 7, 1, 25)]


@pytest.fixture(scope="module")
def peer(newest: Newest) -> ArchPeer:
    return ArchPeer(Programs(newest.bin, newest.source))


@pytest.fixture(scope="module")
def ours() -> Iterator[Listener]:
    with Listener(Server([CPUDevice()], n_threads=1, protocol=V8), port=0) as listener:
        yield listener


@pytest.fixture(scope="module")
def stock(newest: Newest) -> Iterator[PeerServer]:
    with newest.rpc_server() as server:
        yield server


def graphs(listener: Listener) -> int:
    counters = listener.server.counters
    return counters.requests[Command.GRAPH_COMPUTE] + counters.requests[Command.GRAPH_RECOMPUTE]


@pytest.mark.parametrize("name", NAMES)
def test_says_the_same_over_the_wire(name: str, peer: ArchPeer, ours: Listener, stock: PeerServer) -> None:
    path = ensure_encoders()[name]
    script = Script(n_ctx=512, n_ubatch=512, n_seq_max=4, unified=True, flash=True, embeddings=True, pooling=1)
    script.batch([(token, i, seq, True) for seq, text in enumerate(TEXTS) for i, token in enumerate(text)])
    for seq in range(len(TEXTS)):
        script.do("pooled", seq)
    theirs = peer.rows(path, script)
    found = []
    for devices in ([], devices_from_spec(ours.endpoint), devices_from_spec(stock.endpoint)):
        before, asked = graphs(ours), stock.count("graph_compute")
        model = Model.load(path, devices=devices)
        embedder = Embedder(model, pooling="mean")
        found.append(np.array(embedder.encode(TEXTS)))
        embedder.close(), model.close()
        if devices:
            assert graphs(ours) > before or stock.count("graph_compute") > asked
    assert np.array_equal(found[0], found[1])  # to the bit, here or on our server
    assert nmse(theirs, found[0]) < LIMIT and nmse(theirs, found[2]) < LIMIT

    before = graphs(ours)
    assert nmse(theirs, peer.rows(path, script, [ours.endpoint])) < LIMIT
    assert graphs(ours) > before and ours.server.counters.refused == 0
