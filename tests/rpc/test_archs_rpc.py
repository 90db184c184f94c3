"""Every architecture over the wire: our client on one of our servers and on a stock one, a stock client on our server. What comes
back is what llama.cpp says by itself."""

import numpy as np
import pytest
from arch_files import DENOISERS, LIMIT, LIMITS, NAMES, TOKENS, decode_in, known
from arch_variants import all_files
from peer import PeerServer
from peer_archs import ArchPeer, Script, nmse
from pyggml_rpc.backend import devices_from_spec
from pyggml_rpc.transport import Listener
from tiny_t5 import N_VOCAB, ensure_t5
from two_servers import graphs
from written_archs import WRITTEN

from pyggml.model.model import Model
from pyggml.runtime.context import Context

STAYS_HERE: dict[str, str] = {"refact-moe": "is not computed (tests/model/test_archs.py)"}
"""Files that are not sent over the wire, and why."""
FILES = [*(name for name in NAMES if known(name) and name not in (*STAYS_HERE, *DENOISERS)), *WRITTEN]
PIECES = [TOKENS[:40], TOKENS[40:41], TOKENS[41:]]


@pytest.mark.parametrize("name", FILES)
def test_says_the_same_over_the_wire(
    arch_peer: ArchPeer, our_server: Listener, stock_server: PeerServer, name: str
) -> None:
    path = all_files(arch_peer)[name]
    theirs = arch_peer.rows(path, Script(flash=True).decode(TOKENS))
    script, at = Script(flash=True), 0
    for piece in PIECES:  # where a token stands alone, llama.cpp sums up attention in F16
        script, at = script.decode(piece, at), at + len(piece)
    in_pieces = arch_peer.rows(path, script)
    for endpoint, wanted in ((our_server.endpoint, theirs), (stock_server.endpoint, in_pieces)):
        before, asked = graphs(our_server), stock_server.count("graph_compute")
        model = Model.load(path, devices=devices_from_spec(endpoint))
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=True)
        try:
            assert nmse(wanted, decode_in(context, PIECES)) < LIMITS.get(name, LIMIT), endpoint
        finally:
            context.close(), model.close()
        assert (
            graphs(our_server) >= before + 3
            if endpoint == our_server.endpoint
            else stock_server.count("graph_compute") >= asked + 2
        )

    before = graphs(our_server)
    assert nmse(theirs, arch_peer.rows(path, Script(flash=True).decode(TOKENS), [our_server.endpoint])) < LIMITS.get(
        name, LIMIT
    )
    assert graphs(our_server) > before and our_server.server.counters.refused == 0


@pytest.mark.parametrize("n_gpu_layers", [-1, 3])
def test_an_encoder_and_a_decoder_over_the_wire(
    arch_peer: ArchPeer, our_server: Listener, stock_server: PeerServer, n_gpu_layers: int
) -> None:
    """All layers on a server, or two of four, which cuts both halves."""
    path, text = ensure_t5()["t5-gated"], TOKENS[:40]
    text, tokens = ([t % N_VOCAB for t in some] for some in (text, TOKENS))
    script = Script(flash=True).encode([(token, i, 0) for i, token in enumerate(text)]).decode(tokens)
    theirs = arch_peer.rows(path, script)
    for endpoint in (our_server.endpoint, stock_server.endpoint):
        before, asked = graphs(our_server), stock_server.count("graph_compute")
        model = Model.load(path, devices=devices_from_spec(endpoint), n_gpu_layers=n_gpu_layers)
        context = Context(model, n_ctx=256, n_ubatch=256)
        context.encode(text)
        assert nmse(theirs, decode_in(context, [tokens[:30], tokens[30:31], tokens[31:]])) < 5e-6, endpoint
        context.close(), model.close()
        assert graphs(our_server) > before + 2 or stock_server.count("graph_compute") > asked + 2
    before = graphs(our_server)
    assert nmse(theirs, arch_peer.rows(path, script, [our_server.endpoint])) < LIMIT
    assert graphs(our_server) > before and our_server.server.counters.refused == 0


@pytest.mark.parametrize("n_gpu_layers", [3, 8])
def test_layers_read_keys_that_another_device_keeps(
    arch_peer: ArchPeer, our_server: Listener, n_gpu_layers: int
) -> None:
    """Of a model whose last five layers share those of earlier ones: some layers here, some on a server; to the bit."""
    path = all_files(arch_peer)["gemma4-small"]
    found = []
    for devices in ([], devices_from_spec(our_server.endpoint)):
        model = Model.load(path, devices=devices, n_gpu_layers=n_gpu_layers)
        assert len(set(model.layer_devices)) == 1 + len(devices)
        context = Context(model, n_ctx=256, n_ubatch=256)
        found.append(decode_in(context, PIECES))
        context.close(), model.close()
    np.testing.assert_array_equal(*found)
