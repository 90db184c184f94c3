"""Rules that llama-quantize has had since the library that the other tests compare with: byte for byte, on tiny files."""

import subprocess
from pathlib import Path

import pytest
from peer_archs import ArchPeer
from programs import Newest
from pyggml_cli import quantize
from tiny_t5 import ensure_t5


@pytest.mark.parametrize(("name", "mix"), [("glm5-next-moe", "q2_k"), ("qwen4exp-moe", "q4_k_m"), ("t5-gated", "q4_0")])
def test_what_llama_quantize_writes(arch_peer: ArchPeer, newest: Newest, tmp_path: Path, name: str, mix: str) -> None:
    source = {**arch_peer.files(), **ensure_t5()}[name]
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    subprocess.run(
        [newest.bin / "llama-quantize", source, theirs, mix, "2"], check=True, capture_output=True, timeout=120
    )
    assert quantize.main([str(source), str(ours), mix]) == 0
    assert ours.read_bytes() == theirs.read_bytes()
