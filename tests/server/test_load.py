"""Many clients for a while, a tenth of whom hang up: no lost token, no wrong text, nothing left over. For minutes: tests/soak.py server."""

import pytest
from server_load import load
from serving import serving
from waiting import until

from pyggml.model.model import Model
from pyggml.runtime.idle_prompts import IdlePrompts

SECONDS = 8.0
CLIENTS = 16


@pytest.mark.slow
@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
def test_many_clients(model: Model, kv_unified: bool) -> None:
    with serving(model, n_slots=4, n_ctx=512, kv_unified=kv_unified, idle=IdlePrompts(1 << 20), n_threads=1) as client:
        tally = load(client, SECONDS, CLIENTS, 0)
        assert not tally.wrong, tally.wrong[:3]
        assert tally.complete > 2 * CLIENTS and tally.hung_up > 0
        engine = client.served.engine
        until(lambda: engine.idle)
        assert not engine._queues and all(place.sequence is None for place in engine.places)
