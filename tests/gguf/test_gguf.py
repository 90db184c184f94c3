"""The GGUF reader against files of the `gguf` package, files made by hand, and damaged ones."""

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.dtypes import GGMLType
from pyggml.errors import GGUFError
from pyggml.gguf import GGUFFile, StringArray, ValueType, strings
from pyggml.gguf.header import parse
from pyggml.gguf.strings import locate

HUGE = [1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1]


# A writer that can lie: every number is the caller's.


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, ValueType.U32, struct.pack("<I", value))


def array(kind: int, n: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, n) + values


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    head = string(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return head + b"".join(struct.pack("<q", d) for d in dims) + struct.pack("<IQ", kind, offset)


def build(
    pairs: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = struct.pack("<QQ", len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_kv is None else n_kv)
    head = magic + struct.pack("<I", version) + counts + b"".join(pairs) + b"".join(tensors)
    return head + (bytes(-len(head) % alignment) + data if tensors else b"")


def read(raw: bytes):
    return parse(memoryview(raw))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Every value type, tensors of several types, written by the gguf package."""
    path = tmp_path / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 1 << 31)
    writer.add_int32("i32", -(1 << 31))
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("str", "Grüße 🦙")
    writer.add_array("strings", ["a", "", "Ġb", "ü" * 300, "🦙"])
    writer.add_array("ints", [-1, 2, 3])
    writer.add_array("floats", [0.5, -2.0])
    writer.add_array("bools", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    rng = np.random.default_rng(0)
    writer.add_tensor("w", rng.standard_normal((3, 5), np.float32))
    writer.add_tensor("h", rng.standard_normal((2, 2, 7)).astype(np.float16))
    blocks = rng.integers(0, 256, (4, 2 * 18), np.uint8)
    writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_of_every_type(sample: Path) -> None:
    with GGUFFile.open(sample) as f:
        m = f.metadata
        assert m["general.architecture"] == "llama"
        assert (m["u8"], m["i8"], m["u16"], m["i16"]) == (200, -100, 60000, -30000)
        assert (m["u32"], m["i32"], m["u64"], m["i64"]) == (1 << 31, -(1 << 31), 1 << 63, -(1 << 63))
        assert (m["f32"], m["f64"], m["yes"], m["no"], m["str"]) == (0.5, 0.1, True, False, "Grüße 🦙")
        assert type(m["yes"]) is bool and type(m["u64"]) is int
        assert m["strings"] == ["a", "", "Ġb", "ü" * 300, "🦙"]
        assert m["strings"][-1] == "🦙" and m["strings"][1:3] == ["", "Ġb"] and len(m["strings"]) == 5
        assert m["ints"].dtype == np.int32 and m["ints"].tolist() == [-1, 2, 3]
        assert m["floats"].tolist() == [0.5, -2.0] and m["bools"].tolist() == [True, False]
        assert [a.tolist() for a in m["nested"]] == [[1, 2], [3]]
        assert not m["ints"].flags.writeable and not m["bools"].flags.writeable
        assert f.value_types["i16"] is ValueType.I16 and f.value_types["nested"] is ValueType.ARRAY


def test_tensors_equal_the_gguf_package(sample: Path) -> None:
    theirs = {t.name: t for t in gguf.GGUFReader(sample).tensors}
    with GGUFFile.open(sample) as f:
        assert list(f.tensors) == list(theirs) == ["w", "h", "q"]
        for t in f.tensors.values():
            other = theirs[t.name]
            assert t.type == other.tensor_type and t.nbytes == other.n_bytes and t.offset == other.data_offset
            assert t.data.tobytes() == other.data.tobytes()
        assert f.tensors["h"].ne == (7, 2, 2, 1) and f.tensors["q"].ne == (64, 4, 1, 1)
        assert f.tensors["q"].type is GGMLType.Q4_0
        assert f.n_bytes == sum(t.nbytes for t in f.tensors.values()) == 60 + 56 + 144


def test_data_is_the_mapped_file(sample: Path) -> None:
    with GGUFFile.open(sample) as f:
        w, h = f.tensors["w"], f.tensors["h"]
        assert not w.data.flags.writeable and not w.data.flags.owndata
        distance = h.data.ctypes.data - w.data.ctypes.data
        assert distance == h.offset - w.offset  # views of one mapping
        mapping = Path("/proc/self/maps")
        if mapping.exists():
            low = [m for m in mapping.read_text().splitlines() if m.endswith(sample.name)]
            spans = [tuple(int(x, 16) for x in m.split()[0].split("-")) for m in low]
            assert any(a <= w.data.ctypes.data < b for a, b in spans)
        with pytest.raises(ValueError):
            w.data[0] = 1
        with pytest.raises(ValueError):
            w.data.flags.writeable = True
    assert w.data.tobytes() == sample.read_bytes()[w.offset : w.offset + w.nbytes]  # alive after close
    assert f.tensors == {} and f.metadata == {}


def test_smollm2(smollm2: Path) -> None:
    with GGUFFile.open(smollm2) as f:
        assert len(f.tensors) == 272 and f.n_bytes == 96576768
        assert len(f.metadata["tokenizer.ggml.tokens"]) == 49152 and f.metadata["tokenizer.ggml.tokens"][314] == "Ġis"
        assert f.get_u32("llama.block_count") == 30
        assert f.tensors["token_embd.weight"].ne == (576, 49152, 1, 1)


def test_versions_2_and_3_only() -> None:
    for version in (2, 3):
        assert read(build([u32("k", 7)], version=version)).metadata == {"k": 7}
    for version in (0, 1, 4, 1000):
        with pytest.raises(GGUFError, match=f"version {version} is not supported"):
            read(build(version=version))


def test_big_endian_is_named(tmp_path: Path) -> None:
    path = tmp_path / "be.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GGUFError, match=r"be\.gguf: a big-endian file \(version 3\)"):
        GGUFFile.open(path)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_alignment(alignment: int) -> None:
    data = bytes(range(1, 9))
    size = -(-4 // alignment) * alignment
    raw = build(
        [u32("general.alignment", alignment)],
        [tensor("a", [4], GGMLType.I8), tensor("b", [4], GGMLType.I8, size)],
        data[:4] + bytes(size - 4) + data[4:],
        alignment=alignment,
    )
    header = read(raw)
    assert header.alignment == alignment
    a, b = header.tensors
    assert a.offset % alignment == 0 and raw[a.offset : a.offset + 4] == data[:4]
    assert raw[b.offset : b.offset + 4] == data[4:]


def test_tensors_without_elements_and_without_dimensions() -> None:
    a, b, c = read(build([], [tensor("a", [0, 5]), tensor("b", []), tensor("c", [3], offset=32)], bytes(44))).tensors
    assert (a.ne, a.nbytes) == ((0, 5, 1, 1), 0) and (b.ne, b.nbytes) == ((1, 1, 1, 1), 4) and c.nbytes == 12


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


# Arrays of strings: the pass over the zeros against the plain walk.

TEXTS = st.lists(
    st.one_of(
        st.binary(max_size=12),  # with NULs
        st.text(max_size=8).map(str.encode),
        st.integers(240, 300).map(lambda n: b"x" * n),
        st.sampled_from([b"", b"\0" * 7, b"\1" + b"\0" * 7, string("ab"), b"abc"]),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.binary(max_size=5))
def test_strings_are_located(texts: list[bytes], before: bytes) -> None:
    data = before + b"".join(string(t) for t in texts)
    starts, ends, after = locate(memoryview(data), len(before), len(texts))
    assert [data[a:b] for a, b in zip(starts, ends, strict=True)] == texts
    assert after == len(data)
    starts, _, _ = locate(memoryview(data[:-1]), len(before), len(texts))
    assert len(starts) == max(len(texts) - 1, 0)


def test_long_and_short_strings_in_one_vocabulary() -> None:
    texts = [b"Ab" * (i % 9 + 1) if i % 1000 else b"-" * 400 for i in range(70000)]
    data = memoryview(b"".join(string(t) for t in texts))
    starts, ends, after = locate(data, 0, len(texts))
    assert [bytes(data[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)] == texts
    assert after == len(data)


def test_the_pass_must_prove_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that believes every seven zeros takes a string's own NULs for a length; the real one does not."""

    def believing(data: memoryview, pos: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        window = np.frombuffer(data[pos:], np.uint8)
        sevens = np.flatnonzero(window == 0)[: count * 7].reshape(-1, 7)
        bodies = sevens[:, 0] + 7
        return pos + bodies, pos + bodies + window[sevens[:, 0] - 1]

    texts = [b"one", b"a\1" + bytes(7), b"two"]
    data = memoryview(b"".join(string(t) for t in texts))
    starts, ends, _ = locate(data, 0, 3)
    assert [bytes(data[a:b]) for a, b in zip(starts, ends, strict=True)] == texts
    monkeypatch.setattr(strings, "_fast", believing)
    starts, ends, _ = locate(data, 0, 3)
    assert [bytes(data[a:b]) for a, b in zip(starts, ends, strict=True)] != texts


def test_a_string_that_is_not_utf8_is_named() -> None:
    header = read(build([pair("tokens", 9, array(8, 3, string("ok") + string(b"ab\xff") + string("z")))]))
    tokens = header.metadata["tokens"]
    assert (tokens[0], tokens[2]) == ("ok", "z") and tokens.raw(1) == b"ab\xff"
    for use in (lambda: tokens[1], tokens.tolist, lambda: list(tokens)):
        with pytest.raises(GGUFError, match=r"tokens\[1\] is not UTF-8: byte 0xff at offset 74"):
            use()


def test_string_array_is_a_sequence(sample: Path) -> None:
    texts = GGUFFile.open(sample).metadata["strings"]
    assert isinstance(texts, StringArray) and texts.index("Ġb") == 2 and "🦙" in texts
    assert texts != ["a"] and texts != "a" and next(reversed(texts)) == "🦙"
    with pytest.raises(IndexError):
        texts[5]


# Typed getters


def test_getters(sample: Path) -> None:
    f = GGUFFile.open(sample)
    assert (f.get_u32("u8"), f.get_u32("u32"), f.get_u32("none", 3)) == (200, 1 << 31, 3)
    assert (f.get_f32("f32"), f.get_f32("f64"), f.get_f32("none", 2.5)) == (0.5, 0.1, 2.5)
    assert f.get_bool("yes") and not f.get_bool("none", False)
    assert f.get_str("str").startswith("Gr") and f.get_str("none", "") == ""
    assert f.get_array("ints").tolist() == [-1, 2, 3] and f.get_strings("strings")[0] == "a"


@pytest.mark.parametrize(
    ("getter", "key", "message"),
    [
        ("get_u32", "none", "key 'none' is missing"),
        ("get_u32", "str", "str must be an integer, it is STRING"),
        ("get_u32", "f32", "f32 must be an integer, it is F32"),
        ("get_u32", "yes", "yes must be an integer, it is BOOL"),
        ("get_u32", "i8", r"i8 is -100, not within 0 to 4294967295"),
        ("get_u32", "u64", "u64 is 9223372036854775808"),
        ("get_f32", "u8", "u8 must be a float, it is U8"),
        ("get_bool", "u8", "u8 must be a bool, it is U8"),
        ("get_str", "strings", "strings must be a string, it is ARRAY"),
        ("get_array", "strings", "strings must be an array of numbers"),
        ("get_array", "nested", "nested must be an array of numbers"),
        ("get_array", "u8", "u8 must be an array of numbers, it is U8"),
        ("get_strings", "ints", "ints must be an array of strings"),
    ],
)
def test_getters_refuse(sample: Path, getter: str, key: str, message: str) -> None:
    f = GGUFFile.open(sample)
    with pytest.raises(GGUFError, match=message) as e:
        getattr(f, getter)(key)
    assert "sample.gguf" in str(e.value)


# Models in parts


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


def test_a_vocabulary_needs_no_walk(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """98,052 strings, each located by the NumPy passes, which is what makes opening a matter of milliseconds."""
    walked = []
    walk = strings._walk
    monkeypatch.setattr(strings, "_walk", lambda data, pos, count: walked.append(count) or walk(data, pos, count))
    GGUFFile.open(smollm2).close()
    assert sum(walked) <= 32, walked
