"""Models that make embeddings over the wire: our client on one of our servers and on a stock one, a stock client on our server."""

import numpy as np
import pytest
from arch_files import LIMIT
from peer import PeerServer
from peer_archs import ArchPeer, Script, nmse
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.transport import Listener
from tiny_encoders import NAMES, ensure_encoders
from two_servers import graphs

from pyggml.model.model import Model
from pyggml.runtime.embedder import Embedder

TEXTS = [[int(t) for t in np.random.default_rng(3).integers(0, 128, n)] for n in (40, 7, 1, 25)]


@pytest.mark.parametrize("name", NAMES)
def test_says_the_same_over_the_wire(
    name: str, arch_peer: ArchPeer, our_server: Listener, stock_server: PeerServer
) -> None:
    path = ensure_encoders()[name]
    script = Script(n_ctx=512, n_ubatch=512, n_seq_max=4, unified=True, flash=True, embeddings=True, pooling=1)
    script.batch([(token, i, seq, True) for seq, text in enumerate(TEXTS) for i, token in enumerate(text)])
    for seq in range(len(TEXTS)):
        script.do("pooled", seq)
    theirs = arch_peer.rows(path, script)
    found = []
    for devices in ([], devices_from_spec(our_server.endpoint), devices_from_spec(stock_server.endpoint)):
        before, asked = graphs(our_server), stock_server.count("graph_compute")
        model = Model.load(path, devices=devices)
        embedder = Embedder(model, pooling="mean")
        found.append(np.array(embedder.encode(TEXTS)))
        embedder.close(), model.close()
        if devices:
            assert graphs(our_server) > before or stock_server.count("graph_compute") > asked
    assert np.array_equal(found[0], found[1])  # to the bit, here or on our server
    assert nmse(theirs, found[0]) < LIMIT and nmse(theirs, found[2]) < LIMIT

    before = graphs(our_server)
    assert nmse(theirs, arch_peer.rows(path, script, [our_server.endpoint])) < LIMIT
    assert graphs(our_server) > before and our_server.server.counters.refused == 0
