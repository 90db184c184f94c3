"""Saved states: what is restored computes on as if nothing had happened, and what is damaged or foreign is refused."""

import hashlib
import os
import stat

import numpy as np
import pytest
from fake_devices import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lora import write_lora
from tiny_model import N_VOCAB, write_llama

from pyggml.dtypes import GGMLType
from pyggml.errors import StateError
from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.context import Context
from pyggml.runtime.state_base import DIGEST
from pyggml.runtime.state_plain import HEADER

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, N_VOCAB, 11)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    return [write_llama(folder / f"{seed}.gguf", head_k=24, head_v=8, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def model(paths):
    made = Model.load(paths[0], cpu=FakeDevice("CPU"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def saved(model):
    """The bytes of a state of all but the last two tokens."""
    context = Context(model, n_ctx=256)
    context.decode(TOKENS[:-2])
    data = b"".join(state.parts(context, TOKENS[:-2]))
    context.close()
    return data


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("flash", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("types", [("F16", "F16"), ("F32", "F16"), ("BF16", "BF16")])
def test_what_is_restored_computes_on_to_the_bit(paths, tmp_path, types, flash, spread):
    devices = [FakeDevice("ONE"), FakeDevice("TWO")] if spread else []
    made = Model.load(paths[0], cpu=FakeDevice("CPU"), devices=devices)
    options = {"type_k": GGMLType[types[0]], "type_v": GGMLType[types[1]]}
    context = Context(made, n_ctx=300, flash_attn=flash[0], **options)
    context.decode(TOKENS[:7])
    state.save(context, TOKENS[:7], tmp_path / "state")
    context.close()
    fresh = [Context(made, n_ctx=n_ctx, flash_attn=flash[1], **options) for n_ctx in (256, 300)]
    expected = fresh[0].decode(TOKENS[:7], logits="none"), fresh[0].decode(TOKENS[7:])
    loaded = state.load(tmp_path / "state")
    assert loaded.tokens.tolist() == TOKENS[:7]
    loaded.restore(fresh[1], 7)
    assert fresh[1].n_past == 7
    got = fresh[1].decode(TOKENS[7:])
    if flash[0] == flash[1]:
        np.testing.assert_array_equal(got, expected[1])
    else:  # keys and values of the second layer came about in another order of sums
        np.testing.assert_allclose(got, expected[1], rtol=1e-2, atol=1e-2)
    for context in fresh:
        context.close()
    made.close()


def test_a_beginning_can_be_restored(model, saved):
    one, two = Context(model, n_ctx=256), Context(model, n_ctx=4)
    one.decode(TOKENS[:3])
    state.parse(saved, "bytes").restore(two, 3)
    np.testing.assert_array_equal(two.decode([5]), one.decode([5]))
    state.parse(saved, "bytes").restore(two, 0)
    assert two.n_past == 0
    one.close(), two.close()


def test_another_model_is_refused(paths, saved):
    other = Model.load(paths[1], cpu=FakeDevice("CPU"))
    context = Context(other, n_ctx=256)
    context.decode(TOKENS[:2])
    with pytest.raises(StateError, match=r"^bytes: belongs to another model$"):
        state.parse(saved, "bytes").restore(context, 1)
    assert context.n_past == 2
    context.close(), other.close()


@pytest.fixture
def adapters(model, tmp_path):
    made = [
        model.load_adapter(
            write_lora(tmp_path / f"{i}.gguf", ["blk.1.attn_q.weight"], seed=i, shapes={"attn_q": (64, 96)})
        )
        for i in (1, 2)
    ]
    yield made
    for adapter in made:
        model.free_adapter(adapter)


def test_other_adapters_are_refused(model, saved, adapters):
    """Keys and values depend on adapters and scales; in what order these are given makes no difference."""
    first, second = adapters
    context = Context(model, n_ctx=256)
    used = [
        [],
        [(first, 1.0)],
        [(first, 0.5)],
        [(second, 1.0)],
        [(first, 1.0), (second, 2.0)],
        [(second, 2.0), (first, 1.0)],
    ]
    states = []
    for some in used:
        context.set_adapters(some)
        context.clear()
        context.decode(TOKENS[:5])
        states.append(b"".join(state.parts(context, TOKENS[:5])))
    for i, some in enumerate(used):
        context.set_adapters(some)
        for j, data in enumerate(states):
            if i == j or {i, j} == {4, 5}:
                state.parse(data, "bytes").check(context)
                continue
            n, m = len(used[j]), len(some)
            why = (
                f"was computed with {n} adapters, {m} are in use" if n != m else "belongs to another model, or to other"
            )
            with pytest.raises(StateError, match=f"^bytes: {why}"):
                state.parse(data, "bytes").check(context)
    context.set_adapters([])
    state.parse(saved, "bytes").check(context)
    context.close()


def test_tokens_of_different_adapters_are_no_state(model, adapters):
    context = Context(model, n_ctx=256)
    context.decode(TOKENS[:5])
    context.set_adapters([(adapters[0], 1.0)])
    without = b"".join(state.parts(context, TOKENS[:5]))  # what is there was computed before
    context.decode(TOKENS[5:7])
    with pytest.raises(StateError, match=r"^7 tokens were not all computed with the same adapters"):
        b"".join(state.parts(context, TOKENS[:7]))
    context.clear()
    context.decode(TOKENS[:5])
    b"".join(state.parts(context, TOKENS[:5]))
    context.set_adapters([])
    state.parse(without, "bytes").restore(context, 5)
    assert b"".join(state.parts(context, TOKENS[:5])) == without
    context.close()


def test_another_type_is_refused(model, saved):
    context = Context(model, n_ctx=256, type_v=GGMLType.F32)
    with pytest.raises(StateError, match=r"^bytes: its V is F16, the context's is F32$"):
        state.parse(saved, "bytes").restore(context, 1)
    context.close()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_changed_byte_is_noticed(saved, data):
    changed = bytearray(saved)
    at = data.draw(st.integers(0, len(saved) - 1) | st.integers(0, HEADER.itemsize))
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError, match=r"^bytes: (not a saved state|damaged|a state of version)") as caught:
        state.parse(bytes(changed), "bytes")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_file_cut_off_or_continued_is_noticed(saved, data):
    cut = saved[: data.draw(st.integers(0, len(saved) - 1))]
    for changed in (cut, saved + data.draw(st.binary(min_size=1, max_size=9))):
        with pytest.raises(StateError, match=r"^bytes: (not a saved state|damaged: [0-9]+ bytes)"):
            state.parse(changed, "bytes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"some text", "not a saved state$"),
        (b"nsgg\x09\0\0\0" + bytes(100), "llama.cpp's session files are not read here"),
    ],
)
def test_foreign_files(tmp_path, content, words):
    (tmp_path / "foreign").write_bytes(content)
    with pytest.raises(StateError, match=words):
        state.load(tmp_path / "foreign")


def test_only_files_are_read_and_written(model, tmp_path):
    context = Context(model, n_ctx=256)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(StateError, match=r"not a file$"):
            state.save(context, [], path)
    with pytest.raises(StateError, match=r"not a file$"):
        state.load("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    context.close()


def test_a_file_is_the_old_one_or_the_new_one(model, tmp_path, monkeypatch):
    path = tmp_path / "state"
    path.write_bytes(b"PYGGMLKV old")
    context = Context(model, n_ctx=256)
    context.decode(TOKENS[:2])

    def fails(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyggml.memory.kv_rows.read", fails)
        with pytest.raises(KeyboardInterrupt):
            state.save(context, TOKENS[:2], path)
    assert path.read_bytes() == b"PYGGMLKV old" and os.listdir(tmp_path) == ["state"]
    (tmp_path / "link").symlink_to(path)
    state.save(context, TOKENS[:2], tmp_path / "link")
    assert state.load(path).tokens.tolist() == TOKENS[:2]
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path)) == ["link", "state"]
    context.close()


def sealed(data: bytearray) -> bytes:
    """With the digest that belongs to it: what someone writes who knows the format."""
    body = bytes(data[:-DIGEST])
    return body + hashlib.blake2b(body, digest_size=DIGEST).digest()


FIELDS = [name for name in HEADER.names if name not in ("magic", "fingerprint")]


@pytest.mark.parametrize("value", [0, 1, 2, 3, 10**4, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_at_its_ends_under_the_right_digest_is_refused_in_a_line(model, saved, field, value):
    changed = bytearray(saved)
    header = np.frombuffer(changed, HEADER, 1)
    if header[field][0] == value:
        return
    header[field] = value
    context = Context(model, n_ctx=256)
    with pytest.raises(StateError, match=r"^bytes: ") as caught:
        state.parse(sealed(changed), "bytes").restore(context, 1)
    assert "\n" not in str(caught.value) and context.n_past == 0
    context.close()


@pytest.mark.parametrize("number", [7, 99, 2**32 - 1])
def test_an_unknown_type_is_named_by_its_number(model, saved, number):
    changed = bytearray(saved)
    np.frombuffer(changed, HEADER, 1)["type_k"] = number
    name = "Q5_1" if number == 7 else f"of type number {number}"
    with pytest.raises(StateError, match=f"^bytes: its K is {name}, the context's is F16$"):
        context = Context(model, n_ctx=256)
        state.parse(sealed(changed), "bytes").check(context)


def test_sizes_that_only_add_up_are_refused(model, saved):
    """A row of K longer by what the row of V is shorter."""
    changed = bytearray(saved)
    header = np.frombuffer(changed, HEADER, 1)
    header["row_k"] += 4
    header["row_v"] -= 4
    with pytest.raises(StateError, match=r"^bytes: damaged: its row_k is [0-9]+, not [0-9]+$"):
        state.parse(sealed(changed), "bytes").check(Context(model, n_ctx=256))


@pytest.mark.parametrize("token", [-1, N_VOCAB, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused(model, saved, token):
    changed = bytearray(saved)
    changed[HEADER.itemsize + 4 : HEADER.itemsize + 8] = np.int32(token).tobytes()
    with pytest.raises(StateError, match=f"^bytes: damaged: token {token} is outside the vocabulary of {N_VOCAB}$"):
        state.parse(sealed(changed), "bytes").check(Context(model, n_ctx=256))
