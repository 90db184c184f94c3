"""Models that llama.cpp's gguf-split has cut into several files, and that it joins again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_split import gguf_split
from text_model import write_text_model

from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import GGUFError
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model
from pyggml.quantize import MIXES, make_plan, run
from pyggml.runtime.context import Context

WAYS = {
    "by number": ("--split-max-tensors", "4"),
    "one each": ("--split-max-tensors", "1"),
    "by size": ("--split-max-size", "1M"),
    "none in the first": ("--split-max-tensors", "7", "--no-tensor-first-split"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 21 tensors whose vocabulary can spell any text."""
    return write_text_model(tmp_path_factory.mktemp("whole") / "text.gguf", template="{{ messages }}")


@pytest.fixture
def split(peer: Any, whole: Path, tmp_path: Path) -> Callable[[str], list[Path]]:
    def make(way: str, source: Path = whole) -> list[Path]:
        gguf_split("--split", *WAYS[way], source, tmp_path / "model")
        paths = sorted(tmp_path.glob("model-*.gguf"))
        assert paths[0].name == f"model-00001-of-{len(paths):05}.gguf"
        return paths

    return make


def logits(path: Path) -> np.ndarray:
    model = Model.load(path, cpu=ReferenceDevice())
    context = Context(model, 32)
    rows = context.decode([72, 105, 33, 0, 200], logits="all")
    context.close()
    model.close()
    return rows


@pytest.mark.parametrize("way", ["by number", "one each", "none in the first"])
def test_a_split_model_is_the_model(way: str, split: Callable[..., list[Path]], whole: Path) -> None:
    """The same metadata, tensors and logits, to the bit."""
    paths = split(way)
    assert len(paths) == {"by number": 6, "one each": 21, "none in the first": 4}[way]
    with GGUFFile.open(paths[0]) as parts, GGUFFile.open(whole) as one:
        assert parts.paths == paths
        for key, value in one.metadata.items():
            assert parts.value_types[key] == one.value_types[key] and np.array_equal(parts.metadata[key], value)
        assert {*parts.metadata} - {*one.metadata} == {"split.no", "split.count", "split.tensors.count"}
        assert list(parts.tensors) == list(one.tensors)
        for name, tensor in one.tensors.items():
            found = parts.tensors[name]
            assert (found.type, found.ne, bytes(found.data)) == (tensor.type, tensor.ne, bytes(tensor.data))
    np.testing.assert_array_equal(logits(paths[0]), logits(whole))


def test_split_by_size(peer: Any, tmp_path: Path, split: Callable[..., list[Path]]) -> None:
    from tiny_model import write_llama

    source = write_llama(tmp_path / "wide.gguf", n_embd=256, n_ff=512)
    paths = split("by size", source)
    assert 3 < len(paths) < 21
    with GGUFFile.open(paths[0]) as parts, GGUFFile.open(source) as one:
        assert all(bytes(parts.tensors[name].data) == bytes(t.data) for name, t in one.tensors.items())


def test_another_part_is_refused_by_name(split: Callable[..., list[Path]]) -> None:
    paths = split("by number")
    first = paths[0].name
    with pytest.raises(GGUFError, match=re.escape(f"{paths[2]}: part 3 of 6; open {first}")):
        GGUFFile.open(paths[2])
    paths[4].unlink()
    with pytest.raises(GGUFError, match=re.escape(f"{paths[4]}: part 5 of 6 is missing")):
        GGUFFile.open(paths[0])


def test_the_command_takes_the_first_part(
    split: Callable[..., list[Path]], whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyggml_cli import cli

    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
    said = []
    for path in (whole, split("none in the first")[0]):
        assert cli.main(["-m", str(path), "-p", "hello wor", "-n", "12", "--temp", "0"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and len(said[0]) > len("hello wor")


@pytest.mark.parametrize("way", ["by number", "none in the first"])
def test_quantised_parts_are_joined_by_the_reference(
    way: str, split: Callable[..., list[Path]], whole: Path, tmp_path: Path, peer: Any
) -> None:
    """What we write part by part, its tool joins to the tensors that we write at once."""
    with GGUFFile.open(split(way)[0]) as file:
        parts = run(make_plan(file, MIXES["Q8_0"], keep_split=True), tmp_path / "parts.gguf")
    with GGUFFile.open(whole) as file:
        (one,) = run(make_plan(file, MIXES["Q8_0"]), tmp_path / "one.gguf")
    assert len(parts) > 1
    gguf_split("--merge", parts[0], tmp_path / "joined.gguf")
    with GGUFFile.open(tmp_path / "joined.gguf") as joined, GGUFFile.open(one) as wanted:
        assert {*joined.tensors} == {*wanted.tensors}
        for name, tensor in wanted.tensors.items():
            found = joined.tensors[name]
            assert (found.type, found.ne, bytes(found.data)) == (tensor.type, tensor.ne, bytes(tensor.data))
    tokens = [72, 105, 33]
    theirs = [peer.logits(path, tokens, n_ctx=64) for path in (parts[0], one)]
    np.testing.assert_array_equal(*theirs)
