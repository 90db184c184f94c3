"""Weights kept on disk: whose they are, what is proved before they are handed out, and what else may lie in the folder."""

import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyggml_rpc.backend import HASH_ABOVE, devices_from_spec
from pyggml_rpc.cache import HEADER, WeightCache, content_hash
from pyggml_rpc.client import client_key
from pyggml_rpc.records import KEY, sign, signer
from pyggml_rpc.server import Server
from pyggml_rpc.session import Session
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import Command

from pyggml.backend.base import Usage
from pyggml.dtypes import GGMLType
from pyggml.errors import CacheError
from pyggml.tensor import Tensor

C = Command
DATA = bytes(range(256))
HERE = "address of this machine"


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "rpc", smallest=0)


@pytest.fixture(params=["host memory", "far memory"])
def server(request: pytest.FixtureRequest, kit: Any, cache: WeightCache) -> Server:
    return Server([kit.ToyDevice(host=request.param == "host memory")], cache=cache)


def files(cache: WeightCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def weights(kit: Any, client: Any, n: int = 64, key: bytes = b"") -> Any:
    handle, base = client.alloc(4 * n)
    return sign(kit.record((n,), buffer=handle, data=base, name=b"blk.0.ffn_down.weight"), key)


def asked(client: Any, tensor: Any, data: bytes = DATA, offset: int = 0) -> bool:
    reply = client.request(C.SET_TENSOR_HASH, tensor=tensor, offset=offset, hash=content_hash(data))
    return bool(reply["result"])


def loaded(cache: WeightCache, owner: str, data: bytes = DATA, length: int | None = None) -> bytes | None:
    memory = bytearray(len(data) if length is None else length)
    return bytes(memory) if cache.load(owner, content_hash(data), memoryview(memory)) else None


# ---- who gets what


def test_weights_travel_once(kit: Any, server: Server, cache: WeightCache) -> None:
    client = kit.Glued(server)
    first = weights(kit, client)
    assert not asked(client, first)
    client.set(first, DATA, cache=1)
    (path,) = files(cache)
    assert path == cache.path(HERE, content_hash(DATA), 256) and stat.S_IMODE(path.stat().st_mode) == 0o600
    another = kit.Glued(server)
    second = weights(kit, another)
    assert asked(another, second)
    assert another.get(second, 256) == DATA


def test_the_client_says_what_to_keep(kit: Any, server: Server, cache: WeightCache) -> None:
    client = kit.Glued(server)
    client.set(weights(kit, client), DATA)
    assert files(cache) == []


def test_who_did_not_send_it_does_not_get_it(
    kit: Any, server: Server, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contents of another's hash are made in a fifth of a second, and once were what the other was handed."""
    monkeypatch.setattr("pyggml_rpc.cache.content_hash", lambda data: content_hash(DATA))
    evil = bytes(reversed(DATA))
    victim, attacker = bytes(KEY - 1) + b"\1", bytes(KEY - 1) + b"\2"
    for thief, thing in (("", b""), ("", attacker), ("10.0.0.9", b"")):
        bad = kit.Glued(server)
        bad.session = Session(server, "evil", thief or None)
        bad.server_end._receiving = bad.session.receiving
        tensor = weights(kit, bad, key=thing)
        bad.set(tensor, evil, cache=1)
        assert asked(bad, tensor), "what it sent itself it gets"
        client = kit.Glued(server)
        mine = weights(kit, client, key=victim)
        assert not asked(client, mine)
    client.set(mine, DATA, cache=1)
    again = weights(kit, client, key=victim)
    assert asked(client, again) and client.get(again, 256) == DATA
    assert asked(bad, tensor) and bad.get(tensor, 256) == evil, "each has its own"


def test_two_contents_of_one_hash_by_one_client(cache: WeightCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one replaces the other: a hash alone cannot tell which one is meant."""
    monkeypatch.setattr("pyggml_rpc.cache.content_hash", lambda data: content_hash(DATA))
    cache.store("a", DATA)
    cache.store("a", bytes(256))
    assert loaded(cache, "a") == bytes(256) and len(files(cache)) == 1


def test_the_length_counts_too(kit: Any, server: Server, cache: WeightCache) -> None:
    client = kit.Glued(server)
    client.set(weights(kit, client), DATA, cache=1)
    assert not asked(client, weights(kit, client, 63))
    assert not asked(client, weights(kit, client, 65))
    assert not asked(client, weights(kit, client, 64), offset=1)
    assert asked(client, weights(kit, client, 65), offset=4)


def test_one_content_of_two_clients_is_one_file(cache: WeightCache) -> None:
    for owner in ("a", "b", "c"):
        cache.store(owner, DATA)
    assert len(files(cache)) == 3 and cache.held() == HEADER + 256
    files(cache)[0].unlink()
    assert sum(loaded(cache, owner) == DATA for owner in ("a", "b", "c")) == 2


# ---- a client's key


def test_a_key_rides_behind_the_name(kit: Any) -> None:
    record = kit.record((4,), name=b"output.weight")
    key = b"k" * KEY
    signed = sign(record, key)
    assert (signer(signed), signer(record), signer(sign(record, b""))) == (key, b"", b"")
    assert bytes(signed["name"][0]).partition(b"\0")[0] == b"output.weight"
    assert signer(sign(record, b"k" + bytes(KEY - 1))) == b"k" + bytes(KEY - 1)
    longest = kit.record((4,), name=b"x" * 47)
    assert signer(sign(longest, key)) == key
    too_long = kit.record((4,), name=b"x" * 48)
    assert signer(sign(too_long, key)) == signer(too_long) == b""


def test_keys_differ_between_servers_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "one"))
    first = client_key("a:1")
    assert len(first) == KEY and client_key("a:1") == first != client_key("b:1")
    assert stat.S_IMODE((tmp_path / "one/rpc-client/secret").stat().st_mode) == 0o600
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "two"))
    assert client_key("a:1") not in (first, b"")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / "file"))
    assert client_key("a:1") == b"", "where nothing can be kept, the server goes by the address"


def test_our_client_is_known_by_its_key(kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).integers(0, 256, HASH_ABOVE + 8, np.uint8)
    server = Server([kit.ToyDevice()], cache=WeightCache(tmp_path / "rpc"))
    with Listener(server, port=0) as listener:
        for user, sent in (("one", 1), ("one", 1), ("two", 2), ("two", 2), ("one", 2)):
            monkeypatch.setenv("PYGGML_CACHE", str(tmp_path / user))
            (device,) = devices_from_spec(listener.endpoint)
            buffer, tensor = device.alloc_buffer(data.size, Usage.WEIGHTS), Tensor(GGMLType.I8, (data.size,))
            buffer.place(tensor, 0)
            buffer.set(tensor, data)
            assert buffer.get(tensor) == data.tobytes()
            assert server.counters.requests[C.SET_TENSOR] == sent
            buffer.free()
            device.client.__dict__.pop("key", None)
    assert len(list((tmp_path / "rpc").iterdir())) == 2


# ---- damage and strangers


@pytest.mark.parametrize("damage", ["truncated", "one bit", "longer", "empty", "another's magic", "header alone"])
def test_a_damaged_file_is_not_used_and_repaired(
    kit: Any, server: Server, cache: WeightCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = kit.Glued(server)
    cache.store(HERE, DATA)
    (path,) = files(cache)
    good = path.read_bytes()
    bad = {
        "truncated": good[:-1],
        "one bit": good[:-1] + b"\0",
        "longer": good + b"x",
        "empty": b"",
        "another's magic": b"P" + good[1:],
        "header alone": good[:HEADER],
    }
    path.write_bytes(bad[damage])
    tensor = weights(kit, client)
    assert not asked(client, tensor)
    assert "is damaged; removed" in caplog.text and not path.exists()
    client.set(tensor, DATA, cache=1)
    assert path.read_bytes() == good
    path.write_bytes(bad[damage])
    client.set(tensor, DATA, cache=1)  # by a client that does not ask
    if damage not in ("one bit",):
        assert path.read_bytes() == good


def test_no_fifo_link_or_foreign_file_is_opened(kit: Any, cache: WeightCache, tmp_path: Path) -> None:
    """A FIFO once held its client for ever."""
    cache.store("a", DATA)
    (path,) = files(cache)
    good = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    assert loaded(cache, "a") is None
    cache.store("a", DATA)
    assert path.read_bytes() == good, "it is replaced"
    path.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(good)
    path.symlink_to(elsewhere)
    assert loaded(cache, "a") is None
    cache.store("a", DATA)
    assert not path.is_symlink() and elsewhere.read_bytes() == good
    path.chmod(0o666)
    assert loaded(cache, "a") is None, "others may write it"
    if os.geteuid() == 0:
        path.chmod(0o600)
        os.chown(path, 65534, 65534)
        assert loaded(cache, "a") is None, "it is another user's"
    path.unlink()
    path.mkdir()
    assert loaded(cache, "a") is None
    cache.store("a", DATA)  # a warning, and nothing else


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    WeightCache(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CacheError, match=r"weight cache .*/open: others may write it \(mode 0777\)"):
        WeightCache(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="File exists"):
        WeightCache(tmp_path / "file")


def test_without_a_cache(kit: Any, toy: Any) -> None:
    client = kit.Glued(Server([toy]))
    tensor = weights(kit, client)
    client.set(tensor, DATA, cache=1)
    assert not asked(client, tensor)


def test_a_full_disk_is_a_warning(
    cache: WeightCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    cache.store("a", DATA)
    assert files(cache) == []
    assert "No space left" in caplog.text


def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    old, fresh, proved_by_hash_alone = tmp_path / ".new-old", tmp_path / ".new-fresh", tmp_path / f"{7:016x}"
    for path in (old, fresh, proved_by_hash_alone):
        path.write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    os.utime(old, (0, 0))
    WeightCache(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".new-fresh", "notes.txt"}


# ---- the limit


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path, limit=3 * (HEADER + 256), smallest=0)
    contents = [bytes([i]) * 256 for i in range(5)]
    for i in range(3):
        cache.store("a", contents[i])
        os.utime(cache.path("a", content_hash(contents[i]), 256), (1000 + i, 1000 + i))
    assert loaded(cache, "a", contents[0]), "it was used now"
    cache.store("a", contents[3])
    assert [loaded(cache, "a", c) is not None for c in contents] == [True, False, True, True, False]
    assert cache.held() == cache.limit
    cache.store("a", bytes(cache.limit))
    assert len(files(cache)) == 3, "too large for all of it: nothing goes for its sake"


def test_small_contents_are_not_worth_a_file(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    cache.store("a", bytes((1 << 20) - 1))
    assert files(cache) == []
    cache.store("a", bytes(1 << 20))
    assert len(files(cache)) == 1 and cache.limit > 1 << 20


def test_several_at_once(tmp_path: Path) -> None:
    """Threads and two servers on one folder: what is handed out is right, or nothing is."""
    caches = [WeightCache(tmp_path, limit=6 * (HEADER + 4096), smallest=0) for _ in range(2)]
    contents = [np.random.default_rng(i).integers(0, 256, 4096, np.uint8).tobytes() for i in range(8)]
    wrong: list[int] = []

    def work(number: int) -> None:
        order = np.random.default_rng(number).integers(0, 8, 60).tolist()
        for i in order:
            caches[number % 2].store(f"owner {i % 2}", contents[i])
            got = loaded(caches[number % 2], f"owner {i % 2}", contents[i])
            if got is not None and got != contents[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not [p for p in tmp_path.iterdir() if p.name.startswith(".new-")]
