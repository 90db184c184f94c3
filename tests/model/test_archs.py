"""Every architecture beside llama.cpp: its tiny random file says the same, fused and unfused, whole and in pieces, alone and
beside other sequences."""

import pytest
import tiny_encoders
from arch_files import DENOISERS, LIMIT, LIMITS, NAMES, NOT_THERE, architecture, differences, known
from arch_variants import VARIANTS, all_files
from peer_archs import ArchPeer
from written_archs import WRITTEN

from pyggml.model import architectures


def test_the_list_is_whole(arch_peer: ArchPeer) -> None:
    assert sorted(NAMES) == sorted(arch_peer.files())


def test_every_architecture_is_compared() -> None:
    """One that the reference writes no file of is compared elsewhere."""
    compared = {architecture(name).replace("_", "-") for name in (*NAMES, *WRITTEN)}
    compared |= {tiny_encoders.architecture(name) for name in tiny_encoders.NAMES}
    compared |= {"t5"}  # tests/model/test_t5.py
    assert set(architectures()) <= compared


def test_what_is_not_computed_has_a_reason() -> None:
    """A file that is computed has none: refact-moe's architecture is known, its experts are not."""
    assert {name for name in NAMES if not known(name)} == NOT_THERE.keys() - {"refact-moe"}


@pytest.mark.parametrize(
    "name", [*(name for name in NAMES if known(name) and name not in (*NOT_THERE, *DENOISERS)), *WRITTEN, *VARIANTS]
)
def test_says_what_the_peer_says(arch_peer: ArchPeer, name: str) -> None:
    found = differences(arch_peer, all_files(arch_peer)[name])
    assert all(value < LIMITS.get(name, LIMIT) for value in found.values()), found
