"""The peer itself: what other tests lean on must not be a peer that runs locally, or a cache that holds another's file.

Knows the peer alone; nothing of ours is compared here.
"""

import json
import os
import signal

import numpy as np
import peer_process
import pytest

from pyggml.dtypes import GGMLType

PROMPT = "Hello, my name is"


@pytest.fixture(autouse=True)
def keeps_nothing(peer, monkeypatch):
    monkeypatch.setattr(peer, "keep", False)


def test_the_script_runs_with_the_pinned_version(peer):
    done = peer.run(
        "import llama_cpp, sys; print(llama_cpp.__version__, sys.argv[1], sys.stdin.read())", "a", input="b"
    )
    assert done.stdout.split() == ["0.3.36", "a", "b"]


def test_a_failing_script_shows_its_stderr(peer):
    with pytest.raises(AssertionError, match="no such thing"):
        peer.run("raise SystemExit('no such thing')")


def test_libraries_are_loaded_once(peer):
    """Loading a library by each of its names gives one copy, hence one device registry."""
    script = (
        "import ctypes, json, sys, llama_cpp, pathlib\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.so*')): ctypes.CDLL(str(path))\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "print(json.dumps(list({pathlib.Path(w).name for w in maps if '/libggml' in w})))\n"
    )
    names = json.loads(peer.run(script, str(peer.lib_dir)).stdout)
    assert sorted(name.split(".so")[0] for name in names) == ["libggml", "libggml-base", "libggml-cpu", "libggml-rpc"]


def test_logits_lead_to_the_generated_tokens(peer, smollm2):
    made = peer.generate(smollm2, PROMPT, 8)
    tokens = made["prompt_tokens"] + made["tokens"]
    assert made["prompt_tokens"] == peer.tokenize(smollm2, [PROMPT])[0]
    logits = peer.logits(smollm2, tokens, n_ubatch=1)
    assert logits.shape == (len(tokens), 49152) and logits.dtype == np.float32
    assert logits.argmax(-1)[len(made["prompt_tokens"]) - 1 : -1].tolist() == made["tokens"]


def test_quantize_model_makes_the_type_and_keeps_it(peer, smollm2, tmp_path):
    path = peer.quantize_model(smollm2, tmp_path / "q8.gguf", "Q8_0")
    stamp = path.stat().st_mtime_ns
    assert path.read_bytes()[:4] == b"GGUF" and path.stat().st_size > smollm2.stat().st_size * 1.3
    assert peer.quantize_model(smollm2, None, "Q8_0").stat().st_mtime_ns == stamp


def test_requests_share_a_process_and_none_sees_anothers_log(peer, smollm2):
    first = peer.generate(smollm2, PROMPT, 2)
    process = peer._process.pid
    again = peer.generate(smollm2, PROMPT, 2)
    assert peer._process.pid == process and first["tokens"] == again["tokens"]
    assert first["log"].count("general.architecture") == again["log"].count("general.architecture") > 0


def test_a_request_that_fails_shows_the_log_and_hurts_no_other(peer, smollm2, tmp_path):
    expected = peer.tokenize(smollm2, [PROMPT])
    process = peer._process.pid
    with pytest.raises(AssertionError, match=r"peer failed at generate: ValueError: .*nowhere\.gguf"):
        peer.generate(tmp_path / "nowhere.gguf", PROMPT, 1)
    assert peer.tokenize(smollm2, [PROMPT]) == expected and peer._process.pid == process


def test_a_process_that_dies_is_replaced(peer, smollm2):
    expected = peer.tokenize(smollm2, [PROMPT])
    os.kill(peer._process.pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match=r"peer process ended with -9 during tokenize"):
        peer.tokenize(smollm2, [PROMPT])
    assert peer.tokenize(smollm2, [PROMPT]) == expected


def test_a_process_is_replaced_before_it_grows(peer, smollm2, monkeypatch):
    peer.tokenize(smollm2, [PROMPT])
    process = peer._process.pid
    monkeypatch.setattr(peer_process, "REQUESTS", 1)
    assert peer.tokenize(smollm2, [PROMPT]) and peer._process.pid != process


def test_answers_are_kept_by_all_that_they_depend_on(peer, smollm2, monkeypatch, tmp_path):
    monkeypatch.setattr(peer, "keep", True)
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "cache"))
    asked = []
    request = peer._process.request
    monkeypatch.setattr(peer._process, "request", lambda *a: asked.append(a[0]) or request(*a))
    model, tokens = tmp_path / "model.gguf", [1, 2, 3]
    model.write_bytes(smollm2.read_bytes())
    logits, made = peer.logits(model, tokens), peer.generate(model, PROMPT, 2)
    assert asked == ["logits", "generate"]
    assert (peer.logits(model, tokens) == logits).all() and peer.generate(model, PROMPT, 2) == made
    assert len(asked) == 2, "an answer was not kept"
    peer.logits(model, tokens, flash_attn=True)
    peer.logits(model, [1, 2, 4])
    peer.generate(model, PROMPT, 3)
    assert len(asked) == 5, "one answer was taken for another"
    at = model.stat()
    data = bytearray(model.read_bytes())
    data[-1000] ^= 1
    model.write_bytes(data)
    os.utime(model, ns=(at.st_atime_ns, at.st_mtime_ns))
    peer.logits(model, tokens)
    assert len(asked) == 6, "another model's answer was taken"
    for file in (tmp_path / "cache" / "peer" / "answers").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    peer.logits(model, tokens)
    assert len(asked) == 7, "a damaged answer was taken"


@pytest.mark.parametrize("flash_attn", [False, True])
def test_client_and_two_servers(peer, smollm2, flash_attn):
    with peer.rpc_server() as first, peer.rpc_server() as second:
        endpoints = [first.endpoint, second.endpoint]
        remote = peer.rpc_generate(endpoints, smollm2, PROMPT, 4, flash_attn=flash_attn)
        for server in (first, second):
            assert server.count("alloc_buffer") >= 1 and server.count("set_tensor") > 100
            assert server.count("graph_compute") + server.count("graph_recompute") >= 4
    assert remote["text"] == peer.generate(smollm2, PROMPT, 4, flash_attn=flash_attn)["text"]


def test_rpc_generate_notices_a_client_that_runs_locally(peer, smollm2, monkeypatch):
    local = peer.generate(smollm2, PROMPT, 1)
    monkeypatch.setattr(peer, "generate", lambda *args, **options: local)
    with pytest.raises(AssertionError):
        peer.rpc_generate(["127.0.0.1:1"], smollm2, PROMPT, 1)


def test_vendor_holds_the_vocabularies(peer):
    assert (peer.vendor / "models" / "ggml-vocab-gpt-2.gguf.inp").is_file()


def test_pure_functions_round_a_row(peer):
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(3, 32)
    blocks = peer.ggml.quantize_chunk(GGMLType.Q8_0, x)
    assert blocks.shape == (3, 34) and (blocks == peer.ggml.quantize_row_ref(GGMLType.Q8_0, x)).all()
    assert np.abs(peer.ggml.dequantize_row(GGMLType.Q8_0, blocks, 32) - x).max() < 0.005
