"""Graphs whose results lie on their own row numbers: refused by name, and no other client's memory is read or written."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pyggml_rpc.errors import RefusedError
from pyggml_rpc.server import Server

from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import pack_params

T = GGMLType
SIZE = 1 << 16
TABLE, SOURCE = 1 << 14, 1 << 15


@pytest.fixture(scope="module")
def cpu_server() -> Iterator[Server]:
    server = Server([CPUDevice()], n_threads=2)
    yield server
    server.close()


def graphs(kit: Any, handle: int, base: int) -> dict[str, tuple[list[int], list[Any]]]:
    """Each result is at the buffer's start, and its row numbers too."""

    def t(at: int, number: int, *ne: int, **fields: Any) -> Any:
        return kit.record(ne, fields.pop("dtype", T.F32), id=number, buffer=handle, data=base + at, **fields)

    def node(number: int, op: Op, src: list[int], *ne: int, **fields: Any) -> Any:
        return t(0, number, *ne, op=int(op), flags=16, src=src + [0] * (10 - len(src)), **fields)

    row, far = 256, {"nb": [4, 4096, 4096, 4096]}
    return {
        "GET_ROWS": (
            [3],
            [
                t(TABLE, 1, row, 1, dtype=T.I32, **far),
                t(0, 2, 9, dtype=T.I32),
                node(3, Op.GET_ROWS, [1, 2], row, 9, dtype=T.I32),
            ],
        ),
        "SET_ROWS": (
            [4],
            [
                t(SOURCE, 1, row, 4),
                t(0, 2, 4, dtype=T.I64),
                t(0, 3, row, 1, **far),
                node(4, Op.SET_ROWS, [1, 2, 3], row, 1, **far),
            ],
        ),
        "ADD_ID": (
            [4],
            [
                t(SOURCE, 1, row, 3, 1),
                t(TABLE, 2, row, 1, **far),
                t(0, 3, 3, 1, dtype=T.I32),
                node(4, Op.ADD_ID, [1, 2, 3], row, 3, 1),
            ],
        ),
        "SSM_SCAN": (
            [8],
            [
                t(TABLE, 1, 16, 4, 1, 1),
                t(SOURCE, 2, 4, 1, 1, 3),
                t(SOURCE, 3, 1, 1, 3),
                t(SOURCE, 4, 1, 1),
                t(SOURCE, 5, 16, 1, 1, 3),
                t(SOURCE, 6, 16, 1, 1, 3),
                t(0, 7, 3, dtype=T.I32),
                node(8, Op.SSM_SCAN, [1, 2, 3, 4, 5, 6, 7], 12 + 192, op_params=pack_params("i", 1)),
            ],
        ),
        "MUL_MAT_ID": (
            [4],
            [
                t(TABLE, 1, 32, 4, 3),
                t(SOURCE, 2, 32, 1, 5),
                t(0, 3, 2, 5, dtype=T.I32),
                node(4, Op.MUL_MAT_ID, [1, 2, 3], 4, 2, 5),
            ],
        ),
        "ROPE": (
            [3],
            [
                t(TABLE, 1, 32, 1, 5),
                t(0, 2, 5, dtype=T.I32),
                node(3, Op.ROPE, [1, 2], 32, 1, 5, op_params=pack_params("5i6f", 0, 32, 0, 0, 0, 1e4, 1, 0, 1, 32, 1)),
            ],
        ),
    }


@pytest.mark.parametrize("name", ["GET_ROWS", "SET_ROWS", "ADD_ID", "SSM_SCAN", "MUL_MAT_ID", "ROPE"])
def test_a_result_on_its_row_numbers_is_refused(kit: Any, cpu_server: Server, name: str) -> None:
    neighbour = kit.Glued(cpu_server)
    there, its_base = neighbour.alloc(SIZE)
    whole = kit.record((SIZE,), T.I8, buffer=there, data=its_base)
    secret = bytes(np.random.default_rng(1).integers(0, 256, SIZE, np.uint8))
    neighbour.set(whole, secret)
    client = kit.Glued(cpu_server)
    handle, base = client.alloc(SIZE)
    nodes, tensors = graphs(kit, handle, base)[name]
    with pytest.raises(RefusedError, match=rf"^GRAPH_COMPUTE: {name} .* overlaps source \d, ") as refused:
        client.compute(nodes, tensors)
    assert "\n" not in str(refused.value) and "bytes 0 to" in str(refused.value)
    assert neighbour.get(whole, SIZE) == secret
    client.session.close()
    neighbour.session.close()


@pytest.mark.parametrize("name", ["GET_ROWS", "SET_ROWS", "ADD_ID", "SSM_SCAN", "MUL_MAT_ID", "ROPE"])
def test_the_same_with_its_row_numbers_elsewhere_is_computed(kit: Any, cpu_server: Server, name: str) -> None:
    """Else the other test would refuse for another reason."""
    client = kit.Glued(cpu_server)
    handle, base = client.alloc(SIZE)
    nodes, tensors = graphs(kit, handle, base)[name]
    moved = 0
    for t in tensors:
        if t["type"][0] in (T.I32, T.I64) and not t["op"][0] and t["data"][0] == base:
            t["data"] = base + SIZE - 4096
            moved += 1
    assert moved == 1
    client.compute(nodes, tensors)
    client.session.close()
