"""Metadata of another kind than a key ought to have: every command carries on without it or refuses it in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edit_gguf import edit
from pyggml_cli import bench, cli, embedding, inspection, quantize
from text_model import write_text_model

from pyggml.backend.reference import ReferenceDevice

KEYS = ("general.type", "general.size_label", "general.name", "general.file_type", "tokenizer.ggml.model")
KEYS += ("tokenizer.ggml.pre", "tokenizer.chat_template", "llama.classifier.output_labels", "general.architecture")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("kinds") / "text.gguf")


@pytest.mark.parametrize("key", KEYS)
def test_an_array_where_one_value_ought_to_be(
    key: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
    name, out = (
        str(edit(path, tmp_path / "model.gguf", metadata={key: np.array([1, 2], np.int32)})),
        os.fspath(tmp_path / "out.gguf"),
    )
    calls: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (cli.main, ["-m", name, "-p", "hello", "-n", "1"]),
        (cli.main, ["-m", name, "-cnv", "-st", "-p", "hello", "-n", "1"]),
        (bench.main, ["-m", name, "-p", "2", "-n", "0", "-r", "1"]),
        (embedding.main, ["-m", name, "-p", "hello"]),
        (inspection.main, [name]),
        (quantize.main, [name, out, "f16"]),
    ]
    for main, args in calls:
        code = main(args)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) in ((0, 0), (1, 1), (2, 1)), (main.__module__, errors)
