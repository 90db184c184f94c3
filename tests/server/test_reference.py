"""llama-server's own tests pass with pyggml-server in its place; here each of them with its first arguments."""

import pytest
from peer_programs import Programs
from peer_server_tests import run
from programs import Newest

LEAST = 130  # tests that must have run and passed


@pytest.mark.slow
def test_llama_servers_own_tests(newest: Newest) -> None:
    found = run(Programs(newest.bin, newest.source), jobs=2, sample=True)
    failed = {test: why for test, (ended, why) in found.items() if ended == "failed"}
    assert not failed, failed
    assert sum(ended == "passed" for ended, _ in found.values()) >= LEAST
