"""Damaged GGUF files: each is refused in a line that names the damage, whatever its bytes."""

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from gguf_bytes import array, build, pair, read, string, tensor, u32
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.errors import GGUFError
from pyggml.gguf import GGUFFile, StringArray

HUGE = [1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1]

# Damage: each row names the message that must tell it.

DAMAGE = {
    "empty file": (b"", "magic needs 4 bytes at offset 0"),
    "magic": (build(magic=b"GGML"), r"begins with b'GGML'"),
    "only the magic": (b"GGUF", "version needs 4 bytes at offset 4"),
    "endless key": (build([string("k", 1 << 63) + bytes(20)]), f"key 0 of 1 at offset 24 has length {1 << 63}"),
    "empty key": (build([pair("", 4, bytes(4)), u32("k", 1)]), "key 0 of 2 at offset 24 is empty"),
    "key twice": (build([u32("k", 1), u32("k", 2)]), "key 'k' at offset 41 is there twice"),
    "key not UTF-8": (build([string(b"k\xff") + struct.pack("<II", 4, 1)]), "key 0 of 1 is not UTF-8.*offset 33"),
    "value type": (build([pair("k", 13, bytes(8))]), r"'k' has value type 13 \(offset 33\).*12 F64"),
    "endless value": (build([pair("k", 8, string("x", 1 << 63))]), f"value of 'k' .*length {1 << 63}"),
    "value not UTF-8": (build([pair("k", 8, string(b"a\x80"))]), "value of 'k' is not UTF-8: byte 0x80"),
    "element type": (build([pair("k", 9, array(77, 1, bytes(8)))]), "'k' has value type 77"),
    "nesting": (
        build([pair("k", 9, array(9, 1, b"") * 9 + array(0, 1, b"x"))]),
        "'k' nests arrays deeper than 8",
    ),
    "alignment type": (build([pair("general.alignment", 10, struct.pack("<Q", 32))]), "must be U32, it is U64"),
    "alignment 0": (build([u32("general.alignment", 0)]), "general.alignment is 0"),
    "alignment 48": (build([u32("general.alignment", 48)]), "general.alignment is 48"),
    "5 dimensions": (build([], [tensor("t", [1] * 5)], bytes(4)), "tensor 't' has 5 dimensions"),
    "2^32-1 dimensions": (build([], [tensor("t", [1], n_dims=2**32 - 1)], bytes(4)), f"{2**32 - 1} dimensions"),
    "negative dimension": (build([], [tensor("t", [4, -1])], bytes(16)), r"'t' has impossible dimensions \[4, -1\]"),
    "product wraps": (build([], [tensor("t", [1 << 32, 1 << 32])], bytes(4)), "'t' has impossible dimensions"),
    "product wraps to 4": (build([], [tensor("t", [1 << 62, 4, 4])], bytes(4)), "'t' has impossible dimensions"),
    "bytes wrap": (build([], [tensor("t", [1 << 62])], bytes(4)), "'t': bytes .* reach past the end"),
    "tensor type": (
        build([], [tensor("t", [32], 99)], bytes(99)),
        r"'t' has unknown type 99; supported are .*Q4_0 \(2\)",
    ),
    "removed type": (build([], [tensor("t", [32], 4)], bytes(99)), "'t' has unknown type 4"),
    "partial block": (
        build([], [tensor("t", [33], 2)], bytes(99)),
        "'t': row length 33 is not a multiple of the block size 32 of Q4_0",
    ),
    "long name": (build([], [tensor("n" * 64, [1])], bytes(4)), "name of tensor 0 of 1 has 64 bytes"),
    "name twice": (build([], [tensor("t", [1]), tensor("t", [1], offset=32)], bytes(36)), "'t' is there twice"),
    "unaligned": (build([], [tensor("t", [1], offset=4)], bytes(8)), "'t': offset 4 is not a multiple"),
    "past the end": (build([], [tensor("t", [8])], bytes(31)), r"'t': bytes 64 to 96 .* \(95 bytes\)"),
    "offset 2^64-32": (build([], [tensor("t", [8], offset=2**64 - 32)], bytes(32)), "reach past the end"),
    "overlap": (
        build([], [tensor("a", [9]), tensor("b", [8], offset=32)], bytes(64)),
        r"'a' \(bytes 96 to 132\) and 'b' \(from byte 128\) overlap",
    ),
    "same place": (build([], [tensor("a", [8]), tensor("b", [8])], bytes(64)), "overlap"),
} | {
    f"{what} = {n:#x}": row
    for n in HUGE
    for what, row in {
        "n_kv": (build(n_kv=n), rf"{n} metadata pairs \(offset 16\) cannot fit"),
        "n_tensors": (build(n_tensors=n), rf"{n} tensors \(offset 8\) cannot fit"),
        "string array": (build([pair("k", 9, array(8, n, bytes(8)))]), rf"'k' has {n} STRING values"),
        "number array": (build([pair("k", 9, array(4, n, bytes(8)))]), rf"'k' has {n} U32 values"),
        "array array": (build([pair("k", 9, array(9, n, bytes(12)))]), rf"'k' has {n} ARRAY values"),
        "array string": (build([pair("k", 9, array(8, 2, string("a") + string("", n)))]), rf"k\[1\] .* length {n}"),
        "tensor name": (build([], [string("", n) + bytes(30)]), rf"name of tensor 0 of 1 .* length {n}"),
    }.items()
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    raw, message = DAMAGE[damage]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match="the file is empty" if not raw else message) as e:
        GGUFFile.open(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    tracemalloc.start()  # the same bytes without the file: the message is the parser's own, and no count is believed
    try:
        with pytest.raises(GGUFError, match=message):
            read(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["absent.gguf", ".", "nul\0.gguf"])
def test_unreadable_paths(name: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"No such file|directory|null"):
        GGUFFile.open(tmp_path / name)


def small_file() -> bytes:
    strings = b"".join(string(s) for s in ["a", "bc", "ü", "x" * 300, ""])
    return build(
        [
            pair("general.architecture", 8, string("llama")),
            u32("general.alignment", 32),
            pair("f", 6, struct.pack("<f", 1.5)),
            pair("tokens", 9, array(8, 5, strings)),
            pair("types", 9, array(5, 3, struct.pack("<3i", 1, 2, 3))),
            pair("nested", 9, array(9, 2, array(0, 1, b"x") + array(0, 2, b"yz"))),
            pair("flag", 7, b"\1"),
        ],
        [tensor("a", [3, 2]), tensor("b", [32, 2], 2, 32), tensor("c", [7, 1, 2], 1, 96)],
        bytes(range(124)),
    )


SMALL = small_file()


def opens_or_is_refused(raw: bytes) -> bool:
    """True where the file opens; its strings and tensors are then read whole. Any other error than GGUFError escapes."""
    began = time.perf_counter()
    try:
        header = read(raw)
        for value in header.metadata.values():
            if isinstance(value, StringArray):
                value.tolist()
        for t in header.tensors:
            assert len(raw[t.offset : t.offset + t.nbytes]) == t.nbytes
    except GGUFError as e:
        assert "\n" not in str(e)
        return False
    finally:
        assert time.perf_counter() - began < 5
    return True


def test_every_truncation_is_refused() -> None:
    assert opens_or_is_refused(SMALL)
    for n in range(len(SMALL)):
        assert not opens_or_is_refused(SMALL[:n]), n


@settings(deadline=None, max_examples=400)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_any_changed_byte_opens_or_is_refused(at: int, byte: int) -> None:
    raw = bytearray(SMALL)
    raw[at] = byte
    opens_or_is_refused(bytes(raw))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), max_size=4), st.integers(0, 1200))
def test_any_damage_opens_or_is_refused(patches: list[tuple[int, bytes]], size: int) -> None:
    raw = bytearray(SMALL)
    for at, patch in patches:
        raw[at : at + len(patch)] = patch
    opens_or_is_refused(bytes(raw[:size]))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic(rest: bytes) -> None:
    opens_or_is_refused(b"GGUF\3\0\0\0" + rest)
