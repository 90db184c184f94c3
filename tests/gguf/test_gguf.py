"""The GGUF reader against files of the `gguf` package: metadata, tensors, strings, typed getters."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_bytes import array, build, pair, read, string, tensor, u32
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.dtypes import GGMLType
from pyggml.errors import GGUFError
from pyggml.gguf import GGUFFile, StringArray, ValueType, strings
from pyggml.gguf.header import NUMBERS
from pyggml.gguf.strings import locate


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


@given(st.data())
def test_numbers_of_any_bytes(data: st.DataObject) -> None:
    """As NumPy reads them: the ends of ranges, NaN, infinities, booleans of other bytes than 0 and 1."""
    for kind, dtype in NUMBERS.items():
        raw = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize), label=kind.name)
        found = read(build([pair("key", kind, raw)])).metadata["key"]
        expected = np.frombuffer(raw, dtype)[0].item()
        assert type(found) is (bool if kind is ValueType.BOOL else type(expected))
        assert found == (expected != 0 if kind is ValueType.BOOL else expected) or (
            found != found and expected != expected
        )


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


def test_a_vocabulary_needs_no_walk(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """98,052 strings, each located by the NumPy passes, which is what makes opening a matter of milliseconds."""
    walked = []
    walk = strings._walk
    monkeypatch.setattr(strings, "_walk", lambda data, pos, count: walked.append(count) or walk(data, pos, count))
    GGUFFile.open(smollm2).close()
    assert sum(walked) <= 32, walked
