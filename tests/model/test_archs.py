"""Every architecture beside llama.cpp: its tiny random file says the same, fused and unfused, whole and in pieces, alone and
beside other sequences."""

import pytest
import tiny_encoders
from arch_files import DENOISERS, LIMIT, LIMITS, NAMES, NOT_THERE, architecture, differences, known
from arch_variants import VARIANTS, all_files
from peer_archs import ArchPeer
from peer_programs import Programs
from programs import Newest
from written_archs import WRITTEN

from pyggml.model import architectures


@pytest.fixture(scope="module")
def peer(newest: Newest) -> ArchPeer:
    return ArchPeer(Programs(newest.bin, newest.source))


def test_the_list_is_whole(peer: ArchPeer) -> None:
    assert sorted(NAMES) == sorted(peer.files())


def test_every_architecture_is_compared() -> None:
    """One that the reference writes no file of is compared elsewhere."""
    compared = {architecture(name).replace("_", "-") for name in (*NAMES, *WRITTEN)}
    compared |= {tiny_encoders.architecture(name) for name in tiny_encoders.NAMES}
    assert set(architectures()) <= compared


@pytest.mark.parametrize(
    "name", [*(name for name in NAMES if known(name) and name not in (*NOT_THERE, *DENOISERS)), *WRITTEN, *VARIANTS]
)
def test_says_what_the_peer_says(peer: ArchPeer, name: str) -> None:
    found = differences(peer, all_files(peer)[name])
    assert all(value < LIMITS.get(name, LIMIT) for value in found.values()), found
