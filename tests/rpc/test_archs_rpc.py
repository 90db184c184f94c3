"""Every architecture over the wire: our client on one of our servers and on a stock one, a stock client on our server. What comes
back is what llama.cpp says by itself."""

from collections.abc import Iterator

import numpy as np
import pytest
from arch_files import DENOISERS, LIMIT, LIMITS, NAMES, TOKENS, decode_in, known
from arch_variants import all_files
from peer import PeerServer
from peer_archs import ArchPeer, Script, nmse
from peer_programs import Programs
from programs import Newest
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V8, Command
from written_archs import WRITTEN

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.context import Context

STAYS_HERE: dict[str, str] = {"refact-moe": "is not computed (tests/model/test_archs.py)"}
"""Files that are not sent over the wire, and why."""
NO_INDEXER = "llama.cpp computes an indexer's scores as one op (LIGHTNING_INDEXER), which our servers lack"
HERE_ALONE: dict[str, str] = {
    "kimi-k3-moe": "llama.cpp mixes sums by one op (DSV4_HC_PRE), which our servers lack",
    "deepseek32-moe": NO_INDEXER,
    "dots3note-moe": NO_INDEXER,
    "glm-dsa-moe": NO_INDEXER,
    "hy_v4-moe": NO_INDEXER,
    "minimax-m3-moe": "llama.cpp takes the best of blocks' scores by POOL_2D, which our servers lack",
}
"""Files that a stock client cannot have computed by our servers, and why."""
FILES = [*(name for name in NAMES if known(name) and name not in (*STAYS_HERE, *DENOISERS)), *WRITTEN]
PIECES = [TOKENS[:40], TOKENS[40:41], TOKENS[41:]]


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


@pytest.mark.parametrize("name", FILES)
def test_says_the_same_over_the_wire(peer: ArchPeer, ours: Listener, stock: PeerServer, name: str) -> None:
    path = all_files(peer)[name]
    theirs = peer.rows(path, Script(flash=True).decode(TOKENS))
    script, at = Script(flash=True), 0
    for piece in PIECES:  # where a token stands alone, llama.cpp sums up attention in F16
        script, at = script.decode(piece, at), at + len(piece)
    in_pieces = peer.rows(path, script)
    for endpoint, wanted in ((ours.endpoint, theirs), (stock.endpoint, in_pieces)):
        before, asked = graphs(ours), stock.count("graph_compute")
        model = Model.load(path, devices=devices_from_spec(endpoint))
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=True)
        try:
            assert nmse(wanted, decode_in(context, PIECES)) < LIMITS.get(name, LIMIT), endpoint
        finally:
            context.close(), model.close()
        assert graphs(ours) >= before + 3 if endpoint == ours.endpoint else stock.count("graph_compute") >= asked + 2

    if name in HERE_ALONE:
        return
    before = graphs(ours)
    assert nmse(theirs, peer.rows(path, Script(flash=True).decode(TOKENS), [ours.endpoint])) < LIMITS.get(name, LIMIT)
    assert graphs(ours) > before and ours.server.counters.refused == 0


@pytest.mark.parametrize("n_gpu_layers", [3, 8])
def test_layers_read_keys_that_another_device_keeps(peer: ArchPeer, ours: Listener, n_gpu_layers: int) -> None:
    """Of a model whose last five layers share those of earlier ones: some layers here, some on a server; to the bit."""
    path = all_files(peer)["gemma4-small"]
    found = []
    for devices in ([], devices_from_spec(ours.endpoint)):
        model = Model.load(path, devices=devices, n_gpu_layers=n_gpu_layers)
        assert len(set(model.layer_devices)) == 1 + len(devices)
        context = Context(model, n_ctx=256, n_ubatch=256)
        found.append(decode_in(context, PIECES))
        context.close(), model.close()
    np.testing.assert_array_equal(*found)
