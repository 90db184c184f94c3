"""Files that are no adapters of a model, or no adapters at all: each is refused in one line that says what is wrong."""

import contextlib
import re

import gguf
import numpy as np
import pytest
from edit_gguf import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lora import all_weights, matrices, write_lora
from tiny_model import write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import GGUFError, ModelError, PyggmlError
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model
from pyggml.quantize import find_mix, make_plan

Q = "blk.0.attn_q.weight"
EXPERTS = 4


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_llama(tmp_path_factory.mktemp("lora") / "tiny.gguf", tied=False)
    with contextlib.closing(Model.load(path, cpu=ReferenceDevice())) as model:
        yield model


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    path = write_llama(tmp_path_factory.mktemp("lora") / "experts.gguf", n_expert=EXPERTS)
    with contextlib.closing(Model.load(path, cpu=ReferenceDevice())) as model:
        yield model


def refused(model, path, error=ModelError):
    """What is said of the file: one line that begins with its name; nothing of it stays."""
    n_buffers = len(model._buffers)
    with pytest.raises(error) as caught:
        model.load_adapter(path)
    assert not model.adapters and len(model._buffers) == n_buffers
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


METADATA = {
    "a model": ({"general.type": "model"}, "general.type is 'model', must be 'adapter'"),
    "no type": ({"general.type": None}, "general.type is missing, must be 'adapter'"),
    "a control vector": ({"adapter.type": "cvec"}, "adapter.type is 'cvec', must be 'lora'"),
    "no kind": ({"adapter.type": None}, "adapter.type is missing, must be 'lora'"),
    "another architecture": (
        {"general.architecture": "qwen3"}, "general.architecture is 'qwen3', must be 'llama' as in the model",
    ),
}  # fmt: skip


def test_metadata_that_is_an_array(model, tmp_path):
    path = edit(
        write_lora(tmp_path / "a.gguf", [Q]), tmp_path / "b.gguf", metadata={"general.type": np.array([1, 2], np.int32)}
    )
    assert refused(model, path) == (
        "not an adapter for this model: general.type is array([1, 2], dtype=int32), must be 'adapter'"
    )


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name, model, tmp_path):
    strings, why = METADATA[name]
    path = write_lora(tmp_path / "a.gguf", [Q], strings=strings)
    assert refused(model, path) == f"not an adapter for this model: {why}"


def test_alpha_is_a_finite_number(model, tmp_path):
    for alpha in (float("nan"), float("inf")):
        assert refused(model, write_lora(tmp_path / "a.gguf", [Q], alpha=alpha)).startswith("adapter.lora.alpha is ")
    path = write_lora(tmp_path / "a.gguf", [Q], alpha=None, strings={"adapter.lora.alpha": "16"})
    assert refused(model, path, GGUFError) == "adapter.lora.alpha must be a float, it is STRING"


def test_invocation_tokens_are_numbers(model, tmp_path):
    """They are not what switches an adapter on here, as in llama.cpp's completion tool."""
    model.free_adapter(model.load_adapter(write_lora(tmp_path / "a.gguf", [Q], invocation=[1, 2])))
    path = write_lora(tmp_path / "b.gguf", [Q], strings={"adapter.alora.invocation_tokens": "yes"})
    assert "invocation_tokens must be an array" in refused(model, path, GGUFError)


def pair(a, b, weight=Q):
    return {f"{weight}.lora_a": a, f"{weight}.lora_b": b}


TENSORS = {
    "nothing in it": ({}, "no tensor in it is a part of an adapter: names end in .lora_a or .lora_b"),
    "another kind of tensor": (
        pair(zeros(4, 64), zeros(64, 4)) | {"blk.0.attn_q.bias": zeros(64)},
        "tensor 'blk.0.attn_q.bias' is no part of an adapter: names end in .lora_a or .lora_b",
    ),
    "A alone": ({f"{Q}.lora_a": zeros(4, 64)}, f"tensor '{Q}.lora_b' is missing, its other half is there"),
    "B alone": ({f"{Q}.lora_b": zeros(64, 4)}, f"tensor '{Q}.lora_a' is missing, its other half is there"),
    "no such weight": (
        pair(zeros(4, 64), zeros(64, 4), "blk.9.attn_q.weight"),
        "the model has no tensor 'blk.9.attn_q.weight': the adapter belongs to another one",
    ),
    "not transposed": (
        pair(zeros(64, 4), zeros(4, 64)),
        f"tensors {Q}.lora_a and .lora_b are [4, 64, 1, 1] and [64, 4, 1, 1]; beside a weight of [64, 64, 1, 1] they must "
        "be [64, 64, 1, 1] and [64, 64, 1, 1] at rank 64",
    ),
    "another width": (pair(zeros(4, 32), zeros(64, 4)), "must be [64, 4, 1, 1] and [4, 64, 1, 1] at rank 4"),
    "another height": (pair(zeros(4, 64), zeros(65, 4)), "must be [64, 4, 1, 1] and [4, 64, 1, 1] at rank 4"),
    "two ranks": (pair(zeros(5, 64), zeros(64, 4)), "must be [64, 4, 1, 1] and [4, 64, 1, 1] at rank 4"),
    "experts where there are none": (
        pair(zeros(2, 4, 64), zeros(2, 64, 4)), "must be [64, 4, 1, 1] and [4, 64, 1, 1] at rank 4",
    ),
    "embeddings as another weight": (
        pair(zeros(4, 64), zeros(96, 4), "token_embd.weight"),
        "beside a weight of [64, 96, 1, 1] they must be [64, 96, 1, 1] and [64, 64, 1, 1] at rank 64",
    ),
    "embeddings of two ranks": (
        pair(zeros(96, 4), zeros(64, 5), "token_embd.weight"), "must be [4, 96, 1, 1] and [4, 64, 1, 1] at rank 4",
    ),
    "a norm": (
        pair(zeros(1, 64), zeros(1, 1), "output_norm.weight"),
        "tensor output_norm.weight.lora_a: output_norm.weight takes part in no product that an adapter can add to",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name, model, tmp_path):
    tensors, why = TENSORS[name]
    assert refused(model, write_lora(tmp_path / "a.gguf", [], more=tensors)).endswith(why)


def test_experts_of_another_number(experts, tmp_path):
    weight = "blk.0.ffn_up_exps.weight"
    path = write_lora(tmp_path / "a.gguf", [weight], n_expert=EXPERTS + 1)
    assert refused(experts, path).endswith("must be [64, 4, 4, 1] and [4, 96, 4, 1] at rank 4")


@pytest.mark.parametrize("half", ["lora_a", "lora_b"])
@pytest.mark.parametrize("weight", [Q, "token_embd.weight"])
@pytest.mark.parametrize("kind", [np.int32, np.int8, np.float64])
def test_types_that_nothing_multiplies_with(kind, weight, half, model, tmp_path):
    tensors = pair(*matrices(weight, 4, np.random.default_rng(0)), weight)
    tensors[f"{weight}.{half}"] = tensors[f"{weight}.{half}"].astype(kind)
    path = write_lora(tmp_path / "a.gguf", [], more=tensors)
    assert re.search(r"\b(I32|I8|F64)\b", refused(model, path))


def test_norms_of_some_conversions_are_passed_over(model, tmp_path):
    path = write_lora(tmp_path / "a.gguf", [Q], more={"blk.0.attn_norm.weight": zeros(64)})
    adapter = model.load_adapter(path)
    assert list(adapter.pairs) == [Q]
    model.free_adapter(adapter)


def test_models_and_adapters_in_each_others_place(model, tmp_path):
    adapter = write_lora(tmp_path / "a.gguf", [Q])
    with pytest.raises(ModelError, match=rf"^{re.escape(str(adapter))}: general.type is 'adapter': not a model"):
        Model.load(adapter)
    with GGUFFile.open(adapter) as file, pytest.raises(ModelError, match="is 'adapter': not a model"):
        make_plan(file, find_mix("q8_0"))
    there = write_llama(tmp_path / "m.gguf")
    assert refused(model, there).endswith("general.type is missing, must be 'adapter'")


def test_a_missing_file(model, tmp_path):
    assert refused(model, tmp_path / "none.gguf", GGUFError) == "No such file or directory"


def test_a_file_of_zeros_is_an_adapter(model, tmp_path):
    """What the other tests change is right as long as they do not."""
    adapter = model.load_adapter(write_lora(tmp_path / "a.gguf", [], more=pair(zeros(4, 64), zeros(64, 4))))
    assert model.adapters == [adapter] and adapter.placed
    model.free_adapter(adapter)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write_lora(tmp_path_factory.mktemp("whole") / "a.gguf", [*all_weights(), "token_embd.weight"])
    return path.read_bytes(), path.with_name("damaged.gguf")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_refused_or_are_adapters(data, whole, model):
    """Cut anywhere, or with a few bytes of the head changed."""
    content, path = bytearray(whole[0]), whole[1]
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for at in data.draw(st.lists(st.integers(0, min(len(content), 4096) - 1), max_size=3)) if content else ():
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        adapter = model.load_adapter(path)
    except PyggmlError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert adapter.placed
        model.free_adapter(adapter)
    assert not model.adapters


@given(
    weight=st.sampled_from([*all_weights(), "token_embd.weight", "output.weight"]),
    a=st.lists(st.sampled_from([1, 4, 32, 64, 96]), min_size=1, max_size=3),
    b=st.lists(st.sampled_from([1, 4, 32, 64, 96]), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_shapes_are_right_or_refused(weight, a, b, whole, model):
    """Against a plain rule: B A, or of embeddings its transpose, has the weight's shape."""
    path = write_lora(whole[1], [], more=pair(zeros(*a), zeros(*b), weight))
    n_out, n_in = reversed(model.tensor(weight).ne[:2])
    low, high = flat(a), flat(b)
    if weight == "token_embd.weight":
        low, n_out, n_in = low[::-1], n_in, n_out
    if [high, low] == [[n_out, high[-1]], [high[-1], n_in]]:
        model.free_adapter(model.load_adapter(path))
    else:
        assert "must be [" in refused(model, path)


def flat(shape):
    """With two dimensions, where it can be said so."""
    shape = [1] * (2 - len(shape)) + list(shape)
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def test_types_of_blocks(model, tmp_path):
    """Adapters may be quantised, where their rows have whole blocks."""
    path = write_lora(tmp_path / "a.gguf", [Q], rank=32, quant=gguf.GGMLQuantizationType.Q8_0)
    adapter = model.load_adapter(path)
    assert {t.type.name for t in adapter.tensors()} == {"Q8_0"}
    model.free_adapter(adapter)
