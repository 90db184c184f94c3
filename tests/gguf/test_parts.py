"""Models in several files: found by their names, and refused where they disagree."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_bytes import build, pair, string, tensor

from pyggml.errors import GGUFError
from pyggml.gguf import GGUFFile, ValueType


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_uint32("llama.block_count", 5)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 4), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [tmp_path / f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]


def test_parts_are_one_model(parts: list[Path]) -> None:
    with GGUFFile.open(parts[0]) as f:
        assert f.paths == parts and f.metadata["llama.block_count"] == 5
        assert list(f.tensors) == [f"t{i}" for i in range(5)]
        for i, t in enumerate(f.tensors.values()):
            assert (t.data.view(np.float32) == i).all() and t.path == parts[i // 2]


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(GGUFError, match=r"m-00002-of-00003\.gguf: part 2 of 3 is missing"):
        GGUFFile.open(parts[0])


def test_a_later_part_names_the_first(parts: list[Path]) -> None:
    with pytest.raises(GGUFError, match=r"part 2 of 3; open m-00001-of-00003\.gguf"):
        GGUFFile.open(parts[1])


def test_parts_in_disorder(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(GGUFError, match=r"00003-of-00003\.gguf: says that it is part 2 of 3, not 3 of 3"):
        GGUFFile.open(parts[0])


def test_parts_need_their_names(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"must be named NAME-00001-of-00003\.gguf"):
        GGUFFile.open(renamed)


def split_keys(no: int, count: int, total: int | None = None) -> list[bytes]:
    keys = [
        pair("split.no", ValueType.U16, struct.pack("<H", no)),
        pair("split.count", ValueType.U16, struct.pack("<H", count)),
    ]
    return keys + ([pair("split.tensors.count", ValueType.I32, struct.pack("<i", total))] if total is not None else [])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (build(split_keys(0, 2, 3), [tensor("a", [1])], bytes(4)), None, "3 tensors are announced, the 2 parts hold 2"),
        (build(split_keys(0, 2, 2), [tensor("b", [1])], bytes(4)), None, "tensor 'b' is also in x-00001"),
        (build(split_keys(0, 2)), build(), r"00002\.gguf: one part of several, but key 'split.no' is missing"),
        (build(split_keys(0, 2)), build(split_keys(1, 3)), "says that it is part 2 of 3, not 2 of 2"),
        (build(split_keys(0, 2)), b"GGUFnonsense", r"x-00002-of-00002\.gguf: GGUF version"),
        (build([pair("split.count", 8, string("2"))]), None, "split.count must be an integer, it is STRING"),
    ],
)
def test_parts_that_disagree(tmp_path: Path, first: bytes, second: bytes | None, message: str) -> None:
    names = [tmp_path / f"x-0000{i}-of-00002.gguf" for i in (1, 2)]
    names[0].write_bytes(first)
    names[1].write_bytes(second or build(split_keys(1, 2), [tensor("b", [1])], bytes(4)))
    with pytest.raises(GGUFError, match=message):
        GGUFFile.open(names[0])
