"""Hyper-parameters and weights of a file: what is read, what is refused, and that the refusal names the culprit."""

import dataclasses
import re

import numpy as np
import pytest
from fake_devices import FakeDevice
from tiny_model import write_llama

from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError, PyggmlError
from pyggml.gguf import GGUFFile
from pyggml.model import architecture_of, make_modules
from pyggml.model.hparams import Hparams
from pyggml.model.model import Model
from pyggml.model.rope_options import RopeOptions
from pyggml.runtime.context import Context
from pyggml.tensor import Tensor

META = {
    "llama.context_length": 2048,
    "llama.embedding_length": 576,
    "llama.block_count": 30,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def config(rope=None, **changes):
    changed = {"llama." + key.replace("__", "."): value for key, value in changes.items()}
    return Hparams({k: v for k, v in {**META, **changed}.items() if v is not None}, "llama", rope)


def test_defaults():
    c = config()
    assert (c.head_k(), c.head_v(), c.n_rot, c.n_head_kv()) == (64, 64, 64, 3)
    rope = c.rope
    assert (rope.freq_base, rope.freq_scale, rope.scaling, rope.n_ctx_orig) == (10000.0, 1.0, "linear", 2048)


def test_values_of_the_file_win():
    c = config(attention__key_length=32, attention__value_length=16, rope__dimension_count=8, rope__freq_base=5e5)
    assert (c.head_k(), c.head_v(), c.n_rot, c.rope.freq_base) == (32, 16, 8, 5e5)
    assert config(attention__head_count_kv=None).n_head_kv() == 9
    assert config(feed_forward_length=np.full(30, 7, np.int32)).n_ff(29) == 7
    assert config(feed_forward_length=np.arange(1, 31)).n_ff(11) == 12
    assert config(attention__head_count=np.array([9, 3] * 15), attention__head_count_kv=3).n_head(1) == 3


@pytest.mark.parametrize(
    "changes, scale, ext",
    [
        ({"rope__scaling__factor": 4.0}, 0.25, 0.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, 0.25, 0.0),
        ({"rope__scale_linear": 2.0}, 0.5, 0.0),
        ({"rope__scale_linear": 2.0, "rope__scaling__factor": 4.0}, 0.25, 0.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, 1.0, 0.0),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, 0.25, 1.0),
        ({"rope__scaling__factor": 0.0}, 1.0, 0.0),
    ],
)
def test_rope_scaling(changes, scale, ext):
    c = config(**changes)
    assert (c.rope.freq_scale, c.rope.ext_factor) == (scale, ext)


@pytest.mark.parametrize(
    "options, expected",
    [
        (RopeOptions("none"), {"freq_scale": 1.0, "ext_factor": 0.0}),
        (RopeOptions("linear"), {"freq_scale": 0.25, "attn_factor": 1.0}),
        (RopeOptions("yarn", attn_factor=3.0), {"freq_scale": 0.25, "attn_factor": 1.0}),  # yarn has its own
        (RopeOptions("yarn", ext_factor=0.0, attn_factor=3.0), {"ext_factor": 0.0, "attn_factor": 3.0}),
        (RopeOptions(freq_scale=0.5, n_ctx_orig=99), {"freq_scale": 1.0, "n_ctx_orig": 99, "n_ctx_short": 2048}),
    ],
)
def test_the_user_comes_before_the_file(options, expected):
    """The file says none, so its factor waits for a user who asks for another scaling."""
    c = config(options, rope__scaling__type="none", rope__scaling__factor=4.0)
    assert {name: getattr(c.rope, name) for name in expected} == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_count": None}, "key llama.block_count is missing"),
        ({"block_count": 0}, "key llama.block_count is 0, must be an integer from 1"),
        ({"block_count": 10**6}, "key llama.block_count is 1000000, at most 512"),
        ({"embedding_length": "wide"}, "key llama.embedding_length is 'wide', must be an integer"),
        ({"embedding_length": True}, "key llama.embedding_length is True, must be an integer"),
        ({"attention__head_count_kv": 4}, "key llama.attention.head_count_kv is 4, must divide head_count (9)"),
        ({"attention__head_count": np.array([9, 8])}, "key llama.attention.head_count has 2 values, there are 30 layers"),
        ({"attention__layer_norm_rms_epsilon": None}, "key llama.attention.layer_norm_rms_epsilon is missing"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is nan, must be a finite number"),
        ({"rope__freq_base": -1.0}, "key llama.rope.freq_base is -1.0, must be positive"),
        ({"rope__scaling__factor": -2.0}, "key llama.rope.scaling.factor is -2.0, must not be negative"),
        ({"rope__scaling__type": "magic"}, "key llama.rope.scaling.type is 'magic', known are none, linear, yarn, longrope"),
        ({"rope__dimension_count": 63}, "key llama.rope.dimension_count is 63, must be even and at most 64"),
        ({"expert_count": 8}, "key llama.expert_used_count is 0, there are 8 experts"),
        ({"expert_count": 8, "expert_used_count": 9}, "key llama.expert_used_count is 9, there are 8 experts"),
        ({"expert_used_count": 2}, "key llama.expert_used_count is 2, there are 0 experts"),
        ({"expert_count": 1025, "expert_used_count": 2}, "at most 1024"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_key(changes, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        make_modules(config(**changes), {"token_embd.weight": Tensor(GGMLType.F32, (576, 9))})


def test_unknown_architecture_lists_those_supported():
    with pytest.raises(
        ModelError, match=r"architecture 'nollama' is unknown here \(nearest: llama\); supported: .*llama"
    ):
        architecture_of({"general.architecture": "nollama"})
    with pytest.raises(ModelError, match=r"key general\.architecture is missing"):
        architecture_of({})


def test_smollm2(smollm2):
    with GGUFFile.open(smollm2) as file:
        c = Hparams(file.metadata, architecture_of(file.metadata))
    assert (c.n_layer, c.n_embd, c.n_head(), c.n_head_kv(), c.n_ff(), c.rope.freq_base) == (30, 576, 9, 3, 1536, 1e5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"leave_out": ("token_embd.weight",)}, r"tensor token_embd\.weight is missing"),
        ({"leave_out": ("blk.1.ffn_up.weight",)}, r"tensor blk\.1\.ffn_up\.weight is missing"),
        (
            {"replace": {"blk.0.attn_k.weight": np.zeros((16, 64), np.float32)}},
            r"tensor blk\.0\.attn_k\.weight is \[64, 16, 1, 1\], must be \[64, 32, 1, 1\]",
        ),
        (
            {"replace": {"blk.0.attn_k.bias": np.zeros(5, np.float32)}},
            r"tensor blk\.0\.attn_k\.bias is \[5, 1, 1, 1\], must be \[32, 1, 1, 1\]",
        ),
        (
            {"replace": {"blk.0.attn_k.weight": np.zeros((32, 64), np.int32)}},
            r"tensor blk\.0\.attn_k\.weight is I32: .* \(known types: F32, .*Q4_0",
        ),
        ({"leave_out": ("llama.block_count",)}, r"key llama\.block_count is missing"),
        ({"arch": "nollama"}, r"architecture 'nollama' is unknown here \(nearest: llama\); supported: .*qwen3"),
    ],
)
def test_a_file_that_makes_no_model_is_named_with_the_reason(tmp_path, options, message):
    path = write_llama(tmp_path / "bad.gguf", **options)
    with pytest.raises(ModelError, match=rf"bad\.gguf: {message}"):
        Model.load(path, cpu=FakeDevice("CPU"))


# ---- every number, at its ends

WHOLE = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("rope.scaling.original_context_length", "expert_count", "expert_used_count"),
)
FLOATS = (
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor", "rope.scale_linear"),
    *("rope.scaling.attn_factor",),
)
ENDS = [-(1 << 63), -1, 0, 1, 3, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]
FLOAT_ENDS = [0.0, -0.0, 1e-45, 1e-39, 1e-30, 22026.465794806718, 1e38, 3.5e38, 1e300, -1.0, float("inf"), float("nan")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def decoded(path, **metadata):
    """Load with these values, decode two tokens in a context of 64; what a user would read if that does not work."""
    try:
        model = Model.load(path, cpu=FakeDevice("CPU"), metadata=metadata["metadata"], rope=metadata.get("rope"))
    except PyggmlError as reason:
        return str(reason)
    try:
        context = Context(model, n_ctx=64)
        context.decode([1, 2])
        context.close()
    except PyggmlError as reason:
        return str(reason)
    finally:
        model.close()
    return None


@pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, value) for key in WHOLE for value in ENDS), *((k, v) for k in FLOATS for v in FLOAT_ENDS)],
)
def test_a_number_at_its_end_works_or_is_refused_in_a_line(tiny, key, value, scaling):
    said = decoded(tiny, metadata={f"llama.{key}": value, "llama.rope.scaling.type": scaling})
    assert said is None or "\n" not in said


def test_the_context_length_of_a_damaged_file(tiny):
    """It is packed into an op's parameters, which are i32."""
    assert decoded(tiny, metadata={"llama.context_length": (1 << 31) - 1}) is None
    said = decoded(tiny, metadata={"llama.context_length": 1 << 31})
    assert said.endswith("key llama.context_length is 2147483648, must be an integer from 1 to 2147483647")


@pytest.mark.parametrize(
    "value", [np.array([1.5, 1.5]), ["4", "4"], [True, True], [], np.full(30, 4, np.uint64), [[1], [2]]]
)
def test_arrays_of_anything_but_equal_integers_are_refused(value):
    if isinstance(value, np.ndarray) and value.dtype == np.uint64:
        assert config(attention__head_count_kv=None, attention__head_count=value).n_head(29) == 4
        return
    with pytest.raises(ModelError, match="head_count"):
        config(attention__head_count=value)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(RopeOptions) if f.name != "scaling"])
@pytest.mark.parametrize("value", [1e-45, 1e-300, 1e38, 1e300, float("inf"), float("nan")])
def test_what_the_user_says_about_rope_at_its_ends(tiny, name, value):
    try:
        rope = RopeOptions(scaling="yarn", **{name: value})
    except ModelError:
        return
    said = decoded(tiny, metadata={}, rope=rope)
    assert said is None or "\n" not in said
