"""Fixtures that every test may ask for. Puts tests/support on the path; must not know any one test."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from peer import Peer
from peer_build import PeerMissing, ensure_peer, ensure_smollm2


@pytest.fixture(scope="session")
def peer() -> Peer:
    """The stock llama.cpp; built on first use. With PYGGML_REQUIRE_PEER set (CI), not having it is a failure."""
    try:
        return Peer(*ensure_peer())
    except PeerMissing as reason:
        if os.environ.get("PYGGML_REQUIRE_PEER"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf: the llama architecture, 30 layers, 49152 tokens."""
    return ensure_smollm2()
