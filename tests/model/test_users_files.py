"""Model files as users have them: in several parts, with layers of different sizes, with more than text needs, damaged."""

import logging
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_files import NAMES, NOT_THERE, TOKENS, known, ours
from arch_variants import VARIANTS, all_files
from edit_gguf import edit
from fake_devices import FakeDevice
from gguf_split import gguf_split
from peer_archs import ArchPeer
from tiny_encoders import NAMES as ENCODERS
from tiny_encoders import ensure_encoders
from tiny_logits import run
from tiny_model import write_llama
from written_archs import WRITTEN

from pyggml.errors import ModelError
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model

SHORT = [token % 90 for token in TOKENS[:9]]
ALL = [*(name for name in NAMES if known(name) and name not in NOT_THERE), *WRITTEN, *VARIANTS, *ENCODERS]


@pytest.fixture(scope="module")
def files(arch_peer: ArchPeer) -> dict[str, Path]:
    return {**all_files(arch_peer), **ensure_encoders()}


@pytest.mark.parametrize("name", ["qwen3moe-moe", "deepseek2-groups"])
def test_experts_in_several_parts(peer: Any, files: dict[str, Path], name: str, tmp_path: Path) -> None:
    gguf_split("--split", "--split-max-tensors", "7", files[name], tmp_path / "model")
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 3
    np.testing.assert_array_equal(ours(parts[0]), ours(files[name]))


def test_layers_of_different_sizes(tmp_path: Path) -> None:
    """A layer with fewer heads and a narrower feed-forward network says what one says whose others count for nothing."""
    whole = write_llama(tmp_path / "whole.gguf", n_head=4, n_head_kv=2, head_k=16, head_v=16, n_ff=96)
    with GGUFFile.open(whole) as file:
        matrix = {
            name: info.data.view(np.float32).reshape(info.ne[1], info.ne[0]).copy()
            for name, info in file.tensors.items()
            if name.startswith("blk.1.") and info.ne[1] > 1
        }
    matrix["blk.1.attn_output.weight"][:, 32:] = 0
    matrix["blk.1.ffn_down.weight"][:, 40:] = 0
    same = edit(whole, tmp_path / "same.gguf", replace=matrix)
    rows = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "ffn_gate": 40, "ffn_up": 40}
    for name, n in rows.items():
        matrix[f"blk.1.{name}.weight"] = matrix[f"blk.1.{name}.weight"][:n]
    matrix["blk.1.attn_output.weight"] = matrix["blk.1.attn_output.weight"][:, :32]
    matrix["blk.1.ffn_down.weight"] = matrix["blk.1.ffn_down.weight"][:, :40]
    keys = {"attention.head_count": (4, 2), "attention.head_count_kv": (2, 1), "feed_forward_length": (96, 40)}
    arrays = {f"llama.{key}": np.array(value, np.uint32) for key, value in keys.items()}
    smaller = edit(whole, tmp_path / "smaller.gguf", replace=matrix, metadata=arrays)
    np.testing.assert_allclose(run(smaller, SHORT), run(same, SHORT), rtol=1e-4, atol=1e-4)
    assert np.abs(run(whole, SHORT) - run(same, SHORT)).max() > 0.1


def test_towers_for_images_and_sounds_are_named_and_passed_over(tmp_path: Path, caplog: Any) -> None:
    plain = write_llama(tmp_path / "plain.gguf")
    names = ("v.patch_embd.weight", "v.blk.0.attn_q.weight", "mm.0.weight", "a.conv1d.1.weight")
    more = {name: np.ones((4, 4), np.float32) for name in names}
    path = write_llama(tmp_path / "more.gguf", replace=more)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(run(path, SHORT), run(plain, SHORT))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("more.gguf: tensors that text does not need are passed over: 2 v.*, 1 mm.*, 1 a.*")
    with pytest.raises(ModelError, match=r"tensor vision\.weight is not known"):
        Model.load(write_llama(tmp_path / "other.gguf", replace={"vision.weight": np.ones(4, np.float32)}))


def test_layers_that_predict_further_tokens_are_named_and_passed_over(files: dict[str, Path], caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        Model.load(files["glm4moe-drafts"], cpu=FakeDevice("CPU")).close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "are passed over: " in line and line.endswith(" blk.2.*")


@contextmanager
def opened(path: Path, change: Callable[[GGUFFile], None]) -> Iterator[None]:
    """Whoever opens a file gets this one, changed."""
    file, before = GGUFFile.open(path), GGUFFile.__dict__["open"]
    change(file)
    GGUFFile.open = classmethod(lambda cls, path: file)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        GGUFFile.open = before  # type: ignore[method-assign]
        file.close()


def load(path: Path, change: Callable[[GGUFFile], None]) -> None:
    with opened(path, change):
        Model.load(path, cpu=FakeDevice("CPU")).close()


def kinds(path: Path) -> dict[str, bool]:
    """Of each kind of weight that the model has the first, and whether the file must have it."""
    model, found = Model.load(path, cpu=FakeDevice("CPU")), {}
    for weight in (weight for module in model.modules.modules() for weight in module.own()):
        if weight.there:
            kind = weight.name.split(".", 2)[-1] if weight.name.startswith("blk.") else weight.name
            found.setdefault((kind, weight.required), weight.name)
    model.close()
    return {name: required for (_, required), name in found.items()}


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_shape_is_named_with_the_right_one(files: dict[str, Path], name: str) -> None:
    with GGUFFile.open(files[name]) as file:
        shapes = {tensor: info.ne for tensor, info in file.tensors.items()}
    for tensor in kinds(files[name]):
        right = [*shapes[tensor]]
        wrong = [right[0] + 32, *right[1:]]

        def lengthen(file: GGUFFile, tensor: str = tensor, wrong: list[int] = wrong) -> None:
            file.tensors[tensor] = replace(file.tensors[tensor], ne=tuple(wrong))  # type: ignore[arg-type]

        with pytest.raises(ModelError) as caught:
            load(files[name], lengthen)
        assert str(caught.value) == f"{files[name]}: tensor {tensor} is {wrong}, must be {right}"


@pytest.mark.parametrize("name", ALL)
def test_a_missing_tensor_is_named(files: dict[str, Path], name: str) -> None:
    """Or the model does without it, if it is optional."""
    for tensor, required in kinds(files[name]).items():
        try:
            load(files[name], lambda file, tensor=tensor: file.tensors.pop(tensor))
        except ModelError as error:
            assert "\n" not in str(error)
            assert not required or re.search(r"tensor \S+ (is missing|.*is not known)", str(error)), str(error)
        else:
            assert not required or tensor == "output.weight", tensor  # the embeddings take its place


VALUES = (
    None, 0, -1, 1, 3, 7, 1 << 31, 1 << 40, 0.0, -1.5, float("nan"), float("inf"), "x", True, np.zeros(2, np.int32),
    np.array([1, 0], np.int32), np.array([3, 5, 7], np.uint32), [np.zeros(1, np.int32)], np.array([0.5, 2], np.float32),
)  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_wrong_numbers_load_or_end_in_a_line(files: dict[str, Path], name: str) -> None:
    rng = random.Random(name)
    with GGUFFile.open(files[name]) as file:
        arch = str(file.metadata["general.architecture"])
        keys = [key for key in file.metadata if key.startswith(f"{arch}.")]
    for _ in range(40 if name in ENCODERS else 10):
        key, value = rng.choice(keys), rng.choice(VALUES)

        def set_key(file: GGUFFile, key: str = key, value: Any = value) -> None:
            if value is None:
                del file.metadata[key]
            else:
                file.metadata[key] = value

        try:
            load(files[name], set_key)
        except ModelError as error:
            assert "\n" not in str(error), (key, value)
