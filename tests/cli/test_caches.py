"""Models that were fetched before: found in the hub's folder and in the flat one, whatever else lies there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, assert_caught
from pyggml_cli import caches
from pyggml_cli.caches import cached_models, flat_folder, hub_folder

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def in_hub(folder: Path, repo: str, files: list[str], commit: str = COMMIT, ref: str = "main") -> Path:
    """A repository as the hub's own package lays it out: blobs, and links to them in a snapshot."""
    base = folder / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True, exist_ok=True)
    (base / "refs" / ref).write_text(commit)
    for i, name in enumerate(files):
        blob = base / "blobs" / f"{commit[:4]}{i}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(b"x")
        link = base / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return base


def test_the_hubs_folder(tmp_path: Path) -> None:
    files = ["a-q4_k_m.gguf", "a-Q8_0.gguf", "mmproj-F16.gguf", "README.md", "plain.gguf.part", "imatrix-Q8_0.gguf"]
    base = in_hub(tmp_path, "some-one/A-GGUF", files)
    in_hub(tmp_path, "some-one/A-GGUF", ["old-Q2_K.gguf"], commit=OTHER, ref="pr")
    in_hub(tmp_path, "two/B", ["F16/b-F16-00002-of-00002.gguf", "F16/b-F16-00001-of-00002.gguf"], ref="other")
    in_hub(tmp_path, "three/C", ["c-F16-00002-of-00002.gguf"])
    (base / "snapshots" / COMMIT / "gone-Q6_K.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "models--only-one-word").mkdir()
    (tmp_path / "models--a--b" / "refs").mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs" / "main").write_bytes(b"../../..\x80")
    (tmp_path / "version.txt").write_text("1")
    assert cached_models({"HF_HUB_CACHE": str(tmp_path)}, tmp_path / "home") == {
        "some-one/A-GGUF:Q4_K_M": base / "snapshots" / COMMIT / "a-q4_k_m.gguf",
        "some-one/A-GGUF:Q8_0": base / "snapshots" / COMMIT / "a-Q8_0.gguf",
        "two/B:F16": tmp_path / "models--two--B" / "snapshots" / COMMIT / "F16" / "b-F16-00001-of-00002.gguf",
    }


def test_the_flat_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "llama.cpp"
    folder.mkdir(parents=True)
    for name in (
        "org_m-GGUF_sub_m-Q4_0.gguf",
        "other.gguf",
        "x_y_z-00002-of-00002.gguf",
        "mmproj-a.gguf",
        "a.gguf.json",
    ):
        (folder / name).write_bytes(b"x")
    manifests = {
        "manifest=org=m-GGUF=q4_0.json": {"ggufFile": {"rfilename": "sub/m-Q4_0.gguf"}},
        "manifest=org=gone=latest.json": {"ggufFile": {"rfilename": "gone.gguf"}},
        "manifest=org=wrong=Q8_0.json": {"ggufFile": {"rfilename": ["../other.gguf"]}},
        "manifest=org=out=Q8_0.json": {"ggufFile": {"rfilename": "../../x"}},
        "manifest=..=..=Q8_0.json": {},
    }
    for name, body in manifests.items():
        (folder / name).write_text(json.dumps(body))
    (folder / "manifest=org=deep=Q8_0.json").write_text("[" * 100_000)
    assert cached_models({}, tmp_path) == {
        "org/m-GGUF:Q4_0": folder / "org_m-GGUF_sub_m-Q4_0.gguf",
        "other": folder / "other.gguf",
    }


@pytest.mark.parametrize(
    ("environ", "hub", "flat"),
    [
        ({}, "/h/.cache/huggingface/hub", "/h/.cache/llama.cpp"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub", "/x/llama.cpp"),
        ({"HF_HOME": "/f", "XDG_CACHE_HOME": "/x"}, "/f/hub", "/x/llama.cpp"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/f"}, "/c", "/h/.cache/llama.cpp"),
        ({"LLAMA_CACHE": "/l", "HF_HUB_CACHE": "/c"}, "/l", "/l"),
        ({"HF_HUB_CACHE": ""}, "/h/.cache/huggingface/hub", "/h/.cache/llama.cpp"),
    ],
)
def test_where_the_folders_are(environ: dict[str, str], hub: str, flat: str) -> None:
    assert (hub_folder(environ, Path("/h")), flat_folder(environ, Path("/h"))) == (Path(hub), Path(flat))


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    assert cached_models({"LLAMA_CACHE": str(tmp_path / "nothing")}, tmp_path) == {}


MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "any commit's files": ((caches, "_commit", 'found.get("main")', 'found.get("pr")'), test_the_hubs_folder),
    "every part is a model": ((caches, "_tag", "or not hub.is_first(name)", ""), test_the_hubs_folder),
    "links that lead nowhere": ((caches, "_files", "path.is_file()", "True"), test_the_hubs_folder),
    "manifests lead out of the folder": ((caches, "_in_flat", "file and model.is_file()", "True"), test_the_flat_folder),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, test = MUTANTS[mutant]
    assert_caught(monkeypatch, wrong, test, tmp_path=tmp_path)
