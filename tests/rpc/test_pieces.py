"""SET_TENSOR_2D and GET_TENSOR_2D: pieces apart in the tensor, together on the wire; overlaps and overruns are refused."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import Mutant, assert_caught
from pyggml_rpc import pieces
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.pieces import Arriving, Pieces
from pyggml_rpc.server import Server
from pyggml_rpc.wire import NEWEST, Command

from pyggml.dtypes import GGMLType

C = Command
SIZE = 1 << 16


@pytest.fixture(params=["host memory", "memory elsewhere"])
def client(kit: Any, request: pytest.FixtureRequest) -> Any:
    return kit.Glued(Server([kit.ToyDevice(host=request.param == "host memory")]))


@pytest.fixture
def tensor(client: Any, kit: Any) -> Any:
    """64 KiB of I8 at an offset in a larger buffer."""
    handle, base = client.alloc(SIZE + 128)
    return kit.record((SIZE,), GGMLType.I8, buffer=handle, data=base + 64)


def write(client: Any, tensor: Any, data: bytes, **fields: int) -> None:
    client.ask(C.SET_TENSOR_2D, NEWEST.pack(C.SET_TENSOR_2D, tensor=tensor, **fields), data)


def read(client: Any, tensor: Any, total: int, **fields: int) -> bytes:
    into = bytearray(total)
    client.ask(C.GET_TENSOR_2D, NEWEST.pack(C.GET_TENSOR_2D, tensor=tensor, **fields), into=into)
    return bytes(into)


CASES = [
    (0, 1, 1, 1),
    (3, 5, 1, 0),
    (0, 7, 9, 7),
    (11, 7, 9, 8),
    (100, 1, 3000, 20),
    (1, 3000, 20, 3100),
    (0, 1, SIZE, 1),
]
CASES += [(0, SIZE, 1, 0), (SIZE - 1, 1, 1, 2**64 - 1), (5, 2500, 13, 5000), (0, SIZE // 2, 2, SIZE // 2)]


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
@pytest.mark.parametrize(("offset", "size", "n", "stride"), CASES)
def test_there_and_back(
    client: Any, tensor: Any, monkeypatch: pytest.MonkeyPatch, chunk: int, offset: int, size: int, n: int, stride: int
) -> None:
    if chunk == 1 and size * n > 5000:
        pytest.skip("byte by byte takes long")
    monkeypatch.setattr(pieces, "CHUNK", chunk)
    rng = np.random.default_rng(size)
    before, data = rng.bytes(SIZE), rng.bytes(size * n)
    client.set(tensor, before)
    expected = bytearray(before)
    for i in range(n):
        at = offset + i * stride
        expected[at : at + size] = data[i * size : (i + 1) * size]
    where = {"offset": offset, "size": size, "n_copies": n, "stride": stride}
    write(client, tensor, data, **where)
    assert client.get(tensor, SIZE) == expected
    assert read(client, tensor, size * n, **where) == data
    assert client.session.server.counters.bytes[C.SET_TENSOR_2D] == size * n


REFUSED = {
    "nothing": ((0, 0, 5, 8), "5 pieces of 0 bytes: they are empty"),
    "no piece": ((0, 8, 0, 8), "0 pieces of 8 bytes: they are empty"),
    "stride 0": ((0, 8, 2, 0), "2 pieces of 8 bytes, 0 bytes apart: they overlap"),
    "one byte is shared": ((0, 8, 2, 7), "7 bytes apart: they overlap"),
    "a reply without bound": ((0, 1, 2**63, 0), "0 bytes apart: they overlap"),
    "one byte too far": ((1, 8, 2, SIZE - 8), f"{SIZE} bytes at offset 1 of {SIZE}"),
    "one piece too far": ((0, 8, SIZE // 8 + 1, 8), f"{SIZE + 8} bytes at offset 0 of {SIZE}"),
    "an offset beyond": ((SIZE, 1, 1, 1), f"1 bytes at offset {SIZE} of {SIZE}"),
    "offset wraps": ((2**64 - 1, 1, 1, 1), "1 bytes at offset 18446744073709551615"),
    "span wraps to 8": ((0, 8, 2**32 + 1, 2**32), "bytes at offset 0 of"),
    "span wraps with 2^64": ((8, 8, 3, 2**63), "bytes at offset 8 of"),
    "product wraps": ((0, 2**63, 2, 2**63), "bytes at offset 0 of"),
    "all ones": ((2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1), "bytes at offset 18446744073709551615 of"),
}


@pytest.mark.parametrize(("where", "message"), REFUSED.values(), ids=list(REFUSED))
@pytest.mark.parametrize("command", [C.SET_TENSOR_2D, C.GET_TENSOR_2D], ids=lambda c: c.name)
def test_refused(client: Any, tensor: Any, command: Command, where: tuple[int, int, int, int], message: str) -> None:
    fields = dict(zip(("offset", "size", "n_copies", "stride"), where, strict=True))
    with pytest.raises(RefusedError, match=f"^{command.name}: tensor '': .*{message}"):
        if command is C.SET_TENSOR_2D:
            write(client, tensor, bytes(16), **fields)
        else:
            read(client, tensor, 16, **fields)
    assert client.session.server.counters.refused == 1


@pytest.mark.parametrize("came", [0, 15, 17])
def test_as_many_bytes_as_the_head_says(client: Any, tensor: Any, came: int) -> None:
    with pytest.raises(RefusedError, match=f"2 pieces of 8 bytes are not the {came} that come"):
        write(client, tensor, bytes(came), offset=0, size=8, n_copies=2, stride=8)


@pytest.mark.parametrize("command", [C.SET_TENSOR_2D, C.GET_TENSOR_2D], ids=lambda c: c.name)
def test_a_foreign_buffer(client: Any, tensor: Any, command: Command) -> None:
    tensor["buffer"] = 17
    with pytest.raises(RefusedError, match="in no buffer of this connection"):
        if command is C.SET_TENSOR_2D:
            write(client, tensor, bytes(8), size=8, n_copies=1)
        else:
            read(client, tensor, 8, size=8, n_copies=1)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_let_in_lies_inside_and_apart(kit: Any, data: st.DataObject) -> None:
    client = kit.Glued(Server([kit.ToyDevice()]))
    handle, base = client.alloc(1000)
    tensor = kit.record((600,), GGMLType.I8, buffer=handle, data=base + 100)
    edges = st.one_of(st.integers(0, 700), st.sampled_from([2**k + d for k in (32, 63, 64) for d in (-1, 0, 1)]))
    offset, size, n, stride = (data.draw(edges) % 2**64 for _ in range(4))
    fits = size > 0 and n > 0 and (n == 1 or stride >= size) and offset + (n - 1) * stride + size <= 600
    where = {"offset": offset, "size": size, "n_copies": n, "stride": stride}
    if not fits:
        with pytest.raises(RefusedError):
            read(client, tensor, 0, **where)
        return
    write(client, tensor, b"\1" * (size * n), **where)
    assert np.frombuffer(client.get(tensor, 600), np.uint8).sum() == size * n, "no byte was written twice"


# ---- wrong variants


def there(chunk: int, *where: int) -> Callable[..., None]:
    def test(client: Any, tensor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        test_there_and_back(client, tensor, monkeypatch, chunk, *where)

    return test


def refused(name: str, command: Command = C.GET_TENSOR_2D) -> Callable[..., None]:
    def test(client: Any, tensor: Any) -> None:
        test_refused(client, tensor, command, *REFUSED[name])

    return test


HEAD, ARRIVED = (Pieces, "__init__"), (Arriving, "arrived")
SPAN = "(self.n - 1) * self.stride + self.size"
MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "pieces may overlap": ((*HEAD, "self.stride < self.size", "False"), refused("a reply without bound")),
    "by a byte": ((*HEAD, "self.stride < self.size", "self.stride + 1 < self.size"), refused("one byte is shared")),
    "pieces of nothing": ((*HEAD, "not self.n or not self.size", "not self.n"), refused("nothing")),
    "no pieces": ((*HEAD, "not self.n or not self.size", "not self.size"), refused("no piece")),
    "the last piece may stand out": ((*HEAD, SPAN, "(self.n - 1) * self.stride"), refused("one byte too far")),
    "all spans wrap": ((*HEAD, SPAN, f"({SPAN}) % 2**64"), refused("span wraps with 2^64")),
    "spans of 32 bits": ((*HEAD, SPAN, f"({SPAN}) % 2**32"), refused("span wraps to 8")),
    "one piece has a stride": (
        (*HEAD, "if self.n == 1:", "if False:"),
        there(1000, SIZE - 1, 1, 1, 2**64 - 1),
    ),
    "pieces begin at 0": ((Pieces, "view", "self.offset + first", "first"), there(1000, 11, 7, 9, 8)),
    "elsewhere too": ((*ARRIVED, "p.offset + piece", "piece"), there(1000, 11, 7, 9, 8)),
    "pieces stand together": ((Pieces, "view", "(self.stride, 1)", "(self.size, 1)"), there(1000, 11, 7, 9, 8)),
    "all go to the first place": ((*ARRIVED, "piece += 1", "pass"), there(1000, 11, 7, 9, 8)),
    "the rest of a piece goes to its start": ((*ARRIVED, "+ begun", ""), there(1000, 1, 3000, 20, 3100)),
    "a chunk is forgotten": ((*ARRIVED, "self._done += count", "pass"), there(1000, 100, 1, 3000, 20)),
    "more is taken than follows": ((Arriving, "memory", "p.n - piece", "p.n"), there(1000, 11, 7, 200, 8)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(kit: Any, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    wrong, test = MUTANTS[mutant]

    def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
        for host in (True, False):
            client = kit.Glued(Server([kit.ToyDevice(host=host)]))
            handle, base = client.alloc(SIZE + 128)
            tensor = kit.record((SIZE,), GGMLType.I8, buffer=handle, data=base + 64)
            more = {"monkeypatch": monkeypatch} if "monkeypatch" in inspect.signature(test).parameters else {}
            test(client=client, tensor=tensor, **more)

    assert_caught(monkeypatch, wrong, everywhere)
