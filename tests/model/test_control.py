"""Control vectors: logits held against llama.cpp's, files that are none, vectors that come and go."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from compare import mean_kl
from fake_devices import FakeDevice
from tiny_logits import TOKENS
from tiny_model import write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import ContextError, ModelError, StateError
from pyggml.model.control import ControlVector
from pyggml.model.model import Model
from pyggml.runtime import state
from pyggml.runtime.context import Context

N_EMBD, N_LAYER = 64, 5
FIRST, SECOND, THIRD = TOKENS[:20], TOKENS[20:30], TOKENS[30:]
Vectors = dict[str, np.ndarray]


def random_vectors(layers: Sequence[int], seed: int = 1) -> Vectors:
    rng = np.random.default_rng(seed)
    return {f"direction.{il}": rng.normal(0, 0.7, N_EMBD).astype(np.float32) for il in layers}


def write(path: Path, vectors: Vectors) -> Path:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    for name, vector in vectors.items():
        writer.add_tensor(name, vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("control") / "tiny.gguf", n_layer=N_LAYER)


CASES: dict[str, tuple[list[tuple[Vectors, float]], int, int]] = {
    # vectors of files and their scales; the first and the last layer
    "all layers": ([(random_vectors(range(1, N_LAYER)), 1.0)], -1, -1),
    "scaled": ([(random_vectors(range(1, N_LAYER)), -0.375)], -1, -1),
    "some layers": ([(random_vectors(range(1, N_LAYER)), 1.0)], 2, 3),
    "the last one": ([(random_vectors(range(1, N_LAYER)), 1.0)], N_LAYER - 1, 99),
    "a file of few": ([(random_vectors([3, 1]), 1.0)], -1, -1),
    "more than the model has": ([(random_vectors([1, 4, 7]), 1.0)], 0, 0),
    "two files": ([(random_vectors([1, 2, 3]), 1.5), (random_vectors([2, 4], 9), 0.5)], -1, -1),
}


def joined(files: list[tuple[Vectors, float]]) -> np.ndarray:
    """As common_control_vector_load makes one of them: layers 1, 2, ... behind each other."""
    total = np.zeros((0, N_EMBD), np.float32)
    for vectors, scale in files:
        for name, vector in vectors.items():
            il = int(name.removeprefix("direction."))
            more = np.zeros((max(0, il - len(total)), N_EMBD), np.float32)
            total = np.concatenate([total, more])
            total[il - 1] += vector * np.float32(scale)
    return total


def logits(path: Path, files: list[tuple[Path, float]], first: int, last: int, device: Any = None) -> np.ndarray:
    """Of the last token, of three decodes: with vectors, without, with them again."""
    with contextlib.closing(Model.load(path, cpu=device or ReferenceDevice())) as model:
        vector = model.load_control_vectors(files, first, last)
        with contextlib.closing(Context(model, n_ctx=512, n_ubatch=16, flash_attn=False)) as context:
            rows = []
            for tokens, used in ((FIRST, True), (SECOND, False), (THIRD, True)):
                context.set_adapters([(vector, 1.0)] if used else [])
                rows.append(context.decode(tokens)[0])
            return np.array(rows)


def theirs_of(peer: Any, path: Path, name: str) -> np.ndarray:
    files, first, last = CASES[name]
    data = joined(files).reshape(-1).tolist()
    steer = "steer", "a", data, N_EMBD, max(first, 1), last if last > 0 else N_LAYER
    steps = [("open", "a"), steer, ("decode", "a", FIRST), ("steer", "a", [], N_EMBD, -1, -1), ("decode", "a", SECOND)]
    return np.asarray(peer.steps(path, [*steps, steer, ("decode", "a", THIRD)]))


def written(folder: Path, name: str) -> tuple[list[tuple[Path, float]], int, int]:
    files, first, last = CASES[name]
    return [(write(folder / f"{i}.gguf", v), scale) for i, (v, scale) in enumerate(files)], first, last


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_peer(name: str, path: Path, tmp_path: Path, peer: Any) -> None:
    theirs, files = theirs_of(peer, path, name), written(tmp_path, name)
    without = logits(path, [(write(tmp_path / "none.gguf", random_vectors([1])), 0.0)], -1, -1)
    for device in (ReferenceDevice(), CPUDevice()):
        ours = logits(path, *files, device)
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
        assert mean_kl(theirs, ours) < 1e-5
    assert mean_kl(theirs[:1], without[:1]) > 1e-3, "the vectors matter"


def _a_layer_early(self: ControlVector, il: int, x: Any) -> Any:
    return STEER(self, il + 1, x)


STEER = ControlVector.steer


def test_a_mutant_that_adds_to_the_layer_before_is_caught(
    path: Path, tmp_path: Path, peer: Any, monkeypatch: Any
) -> None:
    theirs = theirs_of(peer, path, "some layers")
    monkeypatch.setattr(ControlVector, "steer", _a_layer_early)
    monkeypatch.setattr(ControlVector, "own", lambda self, il: [self.layers[il + 1]] if il + 1 in self.layers else [])
    assert mean_kl(theirs, logits(path, *written(tmp_path, "some layers"))) > 1e-3


def test_layers_on_other_devices_and_micro_batches_of_new_shapes(path: Path, tmp_path: Path) -> None:
    """Where a few layers stand for all (FewLayers), each still has its own vector."""
    files = written(tmp_path, "all layers")
    expected = logits(path, *files)
    devices = [FakeDevice("ONE"), FakeDevice("TWO")]
    with contextlib.closing(Model.load(path, cpu=FakeDevice("CPU"), devices=devices)) as model:
        vector = model.load_control_vectors(files[0])
        assert {t.buffer.device for t in vector.tensors() if t.buffer is not None} == set(devices)
        with contextlib.closing(Context(model, n_ctx=512, n_ubatch=16, adapters=[(vector, 1.0)])) as context:
            for n in (1, 2, 5, 12):
                rows = context.decode(FIRST[context.n_past : context.n_past + n])
        np.testing.assert_allclose(rows[0], expected[0], atol=2e-2)
        model.free_adapter(vector)
        with pytest.raises(ContextError, match="not an adapter of this model, or freed"):
            Context(model, n_ctx=64, adapters=[(vector, 1.0)])


def test_a_state_knows_its_vectors(path: Path, tmp_path: Path) -> None:
    files = written(tmp_path, "all layers")[0]
    with contextlib.closing(Model.load(path, cpu=ReferenceDevice())) as model:
        one, few, half = (
            model.load_control_vectors(files),
            model.load_control_vectors(files, 2, 3),
            model.load_control_vectors([(files[0][0], 0.5)]),
        )
        with contextlib.closing(Context(model, n_ctx=64, adapters=[(one, 1.0)])) as context:
            context.decode(FIRST[:5])
            saved = state.parse(b"".join(state.parts(context, FIRST[:5])), "bytes")
            saved.check(context)
            for other in (few, half):
                context.set_adapters([(other, 1.0)])
                with pytest.raises(
                    StateError, match=r"^bytes: belongs to another model, or to other adapters or scales$"
                ):
                    saved.check(context)


BAD = {
    "no tensors": ({}, r"no control vector: it holds no tensor direction\.N$"),
    "another name": ({"blk.1": np.zeros(N_EMBD, np.float32)}, r"'blk\.1' is no part of a control vector: names are"),
    "layer 0": ({"direction.0": np.zeros(N_EMBD, np.float32)}, r"'direction\.0' is no part of a control vector"),
    "no layer": ({"direction.x": np.zeros(N_EMBD, np.float32)}, r"'direction\.x' is no part of a control vector"),
    "a layer below": ({"direction.-1": np.zeros(N_EMBD, np.float32)}, r"'direction\.-1' is no part"),
    "another size": (
        {"direction.1": np.zeros(63, np.float32)},
        r"is F32 \[63, 1, 1, 1\], must be F32 with the model's 64",
    ),
    "another type": ({"direction.1": np.zeros(N_EMBD, np.float16)}, r"is F16 \[64, 1, 1, 1\], must be F32"),
    "two dimensions": ({"direction.1": np.zeros((2, N_EMBD), np.float32)}, r"is F32 \[64, 2, 1, 1\], must be F32"),
    "no number": ({"direction.1": np.full(N_EMBD, np.nan, np.float32)}, r"holds numbers that are not finite$"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_none_is_one_line(name: str, path: Path, tmp_path: Path) -> None:
    vectors, words = BAD[name]
    bad = write(tmp_path / "bad.gguf", vectors)
    with contextlib.closing(Model.load(path, cpu=ReferenceDevice())) as model:
        with pytest.raises(ModelError, match=words) as caught:
            model.load_control_vectors([(bad, 1.0)])
        assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value) and not model.adapters
