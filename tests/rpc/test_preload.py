"""Weights out of the operator's own files: who is handed them, what is proved first, and that real clients send less."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import Peer
from pyggml_rpc.backend import HASH_ABOVE
from pyggml_rpc.cache import WeightCache, content_hash
from pyggml_rpc.preload import Preload
from pyggml_rpc.records import sign
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, Command
from tiny_model import write_llama
from two_sides import assert_same_logits, some_tokens

from pyggml import Llama
from pyggml.backend.cpu import CPUDevice
from pyggml.errors import CacheError, GGUFError
from pyggml.gguf import GGUFFile

C = Command
NAME = "blk.0.ffn_down.weight"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "own.gguf")


def content(path: Path, name: str = NAME) -> bytes:
    with GGUFFile.open(path) as opened:
        return opened.tensors[name].data.tobytes()


@pytest.fixture(params=["host memory", "far memory"])
def server(request: pytest.FixtureRequest, kit: Any, file: Path) -> Server:
    return Server([kit.ToyDevice(host=request.param == "host memory")], preload=Preload([file], smallest=0))


def asked(kit: Any, client: Any, data: bytes, length: int | None = None, key: bytes = b"") -> bytes | None:
    """What is in a new tensor after the server was asked for these bytes; None when it had none."""
    n = (len(data) if length is None else length) // 4
    handle, base = client.alloc(4 * n)
    tensor = sign(kit.record((n,), buffer=handle, data=base, name=b"w"), key)
    if not client.request(C.SET_TENSOR_HASH, tensor=tensor, hash=content_hash(data))["result"]:
        return None
    made: bytes = client.get(tensor, 4 * n)
    return made


def test_every_client_is_handed_them(kit: Any, server: Server, file: Path) -> None:
    data = content(file)
    for owner in (None, "10.0.0.9", "10.0.0.10"):
        client = kit.Glued(server)
        client.session = Session(server, "client", owner)
        client.server_end._receiving = client.session.receiving
        assert asked(kit, client, data) == data
        assert asked(kit, client, data, key=bytes(range(1, 17))) == data, "whatever its key"
        client.session.close()
        assert server.host.held == server.devices[0].used == 0


def test_every_tensor_of_the_file(kit: Any, server: Server, file: Path) -> None:
    client = kit.Glued(server)
    with GGUFFile.open(file) as opened:
        names = list(opened.tensors)
    assert len(names) > 10 and server.preload is not None and server.preload.n_tensors == len(names)
    for name in reversed(names):
        assert asked(kit, client, content(file, name)) == content(file, name), name


def test_what_is_not_in_the_file(kit: Any, server: Server, file: Path) -> None:
    client, data = kit.Glued(server), content(file)
    assert asked(kit, client, bytes(len(data))) is None
    assert asked(kit, client, data, len(data) - 4) is None, "another length"
    assert asked(kit, client, data, len(data) + 4) is None
    assert asked(kit, client, data) == data


def test_the_cache_beside_it(kit: Any, file: Path, toy: Any, tmp_path: Path) -> None:
    """What the client itself has sent, and what the operator has laid ready."""
    cache = WeightCache(tmp_path / "rpc", smallest=0)
    client = kit.Glued(Server([toy], cache=cache, preload=Preload([file], smallest=0)))
    data, other = content(file), bytes(256)
    handle, base = client.alloc(256)
    client.set(kit.record((64,), buffer=handle, data=base), other, cache=1)
    assert asked(kit, client, data) == data and asked(kit, client, other) == other


def test_each_tensor_is_read_for_its_hash_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preload = Preload([file], smallest=0)
    read: list[str] = []
    plain = Preload._read

    def counted(self: Preload, entry: Any, memory: memoryview | None) -> tuple[int, bytes]:
        read.append("hashed" if memory is None else "handed out")
        return plain(self, entry, memory)

    monkeypatch.setattr(Preload, "_read", counted)
    data = content(file)
    same = sum(len(entries) for length, entries in preload._of_length.items() if length == len(data))
    assert read == [] and same > 1
    for _ in range(3):
        assert not preload.find(0, len(data))
    assert read == ["hashed"] * same
    for _ in range(3):
        assert preload.load(content_hash(data), memoryview(bytearray(len(data))))
    assert read[same:] == ["handed out"] * 3
    assert not Preload([file], smallest=0).find(content_hash(data), len(data), gone=lambda: True), "nobody waits for it"


def _swapped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 4)


def _removed(path: Path) -> None:
    path.unlink()


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_swapped, _cut, _removed, _a_pipe])
@pytest.mark.parametrize("when", ["before it was hashed", "after"])
def test_a_file_that_changes(
    kit: Any, server: Server, file: Path, caplog: pytest.LogCaptureFixture, change: Any, when: str
) -> None:
    """Its clients send their bytes; nobody is handed wrong ones, and the server lives on."""
    client, data = kit.Glued(server), content(file)
    if when == "after":
        assert asked(kit, client, data) == data
    change(file)
    assert asked(kit, client, data) is None
    assert asked(kit, client, data) is None
    if when == "after" or change is not _swapped:
        assert f"{file}: has changed: a tensor of {len(data)} bytes is handed out no more" in caplog.text


@pytest.mark.parametrize("when", ["before it was hashed", "after"])
def test_what_the_process_lacks_for_a_moment(
    kit: Any, server: Server, file: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The client sends its bytes; the next one is handed them again."""
    client, data = kit.Glued(server), content(file)
    if when == "after":
        assert asked(kit, client, data) == data

    def none_left(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("pyggml_rpc.preload.open_regular", none_left)
        assert asked(kit, client, data) is None
    assert asked(kit, client, data) == data


def test_contents_are_proved(kit: Any, server: Server, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does not compare digests hands out what is in the file now."""
    client, data = kit.Glued(server), content(file)
    assert asked(kit, client, data) == data
    _swapped(file)
    plain = Preload._read
    assert server.preload is not None
    (entry,) = [e for e in server.preload._of_length[len(data)] if e.key == content_hash(data)]
    monkeypatch.setattr(Preload, "_read", lambda *args: (plain(*args)[0], entry.digest))
    assert asked(kit, client, data) not in (None, data)


def test_files_that_cannot_be_laid_ready(tmp_path: Path, file: Path) -> None:
    with pytest.raises(
        CacheError, match=r"own\.gguf: no tensor has 1048576 bytes or more, the least that is kept ready$"
    ):
        Preload([file])
    with pytest.raises(GGUFError, match=r"none\.gguf: No such file"):
        Preload([tmp_path / "none.gguf"])
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(GGUFError, match=r"text\.gguf: "):
        Preload([file, tmp_path / "text.gguf"], smallest=0)


def test_a_file_that_is_named_twice_counts_once(file: Path) -> None:
    file.with_suffix(".link").symlink_to(file)
    once, twice = Preload([file], smallest=0), Preload([file, file.with_suffix(".link"), file], smallest=0)
    assert (once.n_tensors, once.n_bytes) == (twice.n_tensors, twice.n_bytes)


# ---- real clients


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its three matrices of the feed-forward are of the size from which clients ask first."""
    path = write_llama(tmp_path_factory.mktemp("large") / "large.gguf", n_layer=1, n_embd=1024, n_ff=2816)
    assert len(content(path)) > HASH_ABOVE
    return path


@pytest.fixture(params=[False, True], ids=["nothing", "preloaded"])
def listener(request: pytest.FixtureRequest, large: Path) -> Iterator[Listener]:
    preload = Preload([large]) if request.param else None
    with Listener(Server([CPUDevice()], n_threads=2, protocol=V7, preload=preload), port=0) as listener:
        yield listener


def assert_spared(server: Server, large: Path) -> None:
    """Three matrices travelled, or none of them."""
    three = 3 * len(content(large))
    sent = server.counters.bytes[C.SET_TENSOR]
    assert server.counters.requests[C.SET_TENSOR_HASH] >= 3 and server.counters.refused == 0
    assert sent < three if server.preload is not None else sent >= three, sent


def test_our_client_sends_less(large: Path, listener: Listener) -> None:
    with Llama(str(large), n_ctx=64, verbose=False, n_threads=1, logits_all=True) as llm:
        llm.eval([1, 2, 3])
        alone = np.array(llm.scores[:3])
    with Llama(str(large), n_ctx=64, verbose=False, n_threads=1, logits_all=True, rpc_servers=listener.endpoint) as llm:
        llm.eval([1, 2, 3])
        assert_same_logits(np.array(llm.scores[:3]), alone)
    assert_spared(listener.server, large)


def test_a_stock_client_sends_less(peer: Peer, large: Path, listener: Listener) -> None:
    what = [("open", "a"), *(("decode", "a", [token]) for token in some_tokens(5))]
    got = peer.steps(large, what, endpoints=[listener.endpoint])
    assert_same_logits(got, peer.steps(large, what))
    assert_spared(listener.server, large)


def test_a_stock_client_whose_model_is_partly_there(peer: Peer, large: Path, tmp_path: Path) -> None:
    """Of three matrices of one length the operator's file has two; the third is sent, and nobody's stands in for it."""
    other = np.random.default_rng(7).normal(0, 0.02, (1024, 2816)).astype(np.float32)
    partly = write_llama(tmp_path / "p.gguf", n_layer=1, n_embd=1024, n_ff=2816, replace={NAME: other})
    assert len(content(partly)) == len(content(large)) and content(partly) != content(large)
    what = [("open", "a"), *(("decode", "a", [token]) for token in some_tokens(3))]
    with Listener(Server([CPUDevice()], n_threads=2, protocol=V7, preload=Preload([partly])), port=0) as listener:
        got = peer.steps(large, what, endpoints=[listener.endpoint])
        sent = listener.server.counters.bytes[C.SET_TENSOR]
    assert_same_logits(got, peer.steps(large, what))
    with GGUFFile.open(large) as opened:
        small = sum(t.nbytes for t in opened.tensors.values() if t.nbytes <= HASH_ABOVE)
    one = len(content(large))
    assert one <= sent < one + 2 * small < 2 * one, (sent, one, small)


def test_clients_that_ask_at_once_and_one_that_leaves(kit: Any, server: Server, file: Path) -> None:
    """Each is handed what it asked for, hashed once; who leaves while it is hashed costs the others nothing."""
    data, preload = content(file), server.preload
    assert preload is not None
    plain, hashed, begun, go_on = preload._read, [], threading.Event(), threading.Event()

    def slow(entry: Any, memory: memoryview | None) -> tuple[int, bytes]:
        if memory is None:
            hashed.append(entry)
            begun.set()
            assert go_on.wait(10)
        return plain(entry, memory)

    preload._read = slow
    clients = [kit.Glued(server) for _ in range(4)]
    got: dict[int, bytes | None] = {}

    def ask(number: int) -> None:
        got[number] = asked(kit, clients[number], data)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    clients[3].session.abort()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert [got[number] for number in range(3)] == [data] * 3 and got[3] in (data, None)
    assert len(hashed) == len(set(hashed))
    for client in clients:
        client.session.close()
    assert server.host.held == server.devices[0].used == 0


def test_the_flag(large: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    shutil.copy(large, other)
    command = [sys.executable, "-m", "pyggml_cli.rpc_server", "-p", "0", "--no-warmup"]
    flags = ["--cache-preload", str(large), "--cache-preload", str(other)]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "preloaded" in line)
        server.terminate()
    with GGUFFile.open(large) as opened:
        n = sum(t.nbytes >= 1 << 20 for t in opened.tensors.values())
    assert line.split(":")[1].split()[:2] == [str(2 * n), "tensors,"] and n >= 3
    failed = subprocess.run(
        [*command, "--cache-preload", str(tmp_path / "no.gguf")], capture_output=True, text=True, timeout=60
    )
    assert failed.returncode and failed.stderr.count("\n") == 1 and "no.gguf: No such file" in failed.stderr
