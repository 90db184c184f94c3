"""Clients that hang up while their graph is computed: nobody waits for ever, nobody's numbers change. `python tests/soak.py
hang-ups` goes on for longer.
"""

import pytest
from hang_ups import run
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener

from pyggml.backend.cpu import CPUDevice


@pytest.mark.parametrize("n_threads", [2, 4])
def test_nobody_waits_for_clients_that_hung_up(n_threads: int) -> None:
    with Listener(Server([CPUDevice()], n_threads=n_threads), port=0) as listener:
        tally = run(listener.endpoint, 5, n_threads)
    assert tally.hang_ups > 5 and tally.sums > 50, tally
