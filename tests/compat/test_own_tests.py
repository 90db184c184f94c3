"""llama-cpp-python's own tests, out of its source distribution, run with pyggml in its place.

The models that they fetch are tiny ones of the same kinds; the one that has to know English is Qwen2.5 of 0.5B.
"""

import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from edit_gguf import edit
from peer_archs import ensure_archs
from peer_build import SDIST, PeerMissing, sdist, unpack, vendor
from programs import Newest
from real_models import ensure_model
from text_model import write_text_model
from tiny_encoders import write

from pyggml.cachedir import cache_dir
from pyggml.gguf.strings import StringArray

SUPPORT = Path(__file__).parents[1] / "support"
N_TESTS = 26
LOW_LEVEL = {
    "test_real_model": "LlamaModel, LlamaContext, LlamaBatch and LlamaSampler of llama_cpp._internals, on structures of the C API"
}
"""Tests that cannot pass, and what they ask for."""

LETTERS = [*map(chr, range(0x21, 0x7F)), "Ġ", "Ċ"]


def strings(texts: list[str]) -> StringArray:
    """An array as a file has it."""
    raw = [text.encode() for text in texts]
    ends = np.cumsum([8 + len(one) for one in raw], dtype=np.int64)
    data = b"".join(len(one).to_bytes(8, "little") + one for one in raw)
    return StringArray("tokens", data, 0, ends - [len(one) for one in raw], ends)


def with_letters(source: Path, target: Path) -> Path:
    """A model of the reference's, whose 128 tokens are letters now."""
    tokens = [*LETTERS, *(f"<|{i}|>" for i in range(128 - len(LETTERS)))]
    kinds = np.array([1] * len(LETTERS) + [3] * (128 - len(LETTERS)), np.int32)
    return edit(
        source,
        target,
        metadata={
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": strings(tokens),
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": strings(["a b"]),
            "tokenizer.ggml.eos_token_id": 127,
            "tokenizer.ggml.bos_token_id": 126,
            "tokenizer.ggml.add_bos_token": True,
        },
    )


def english(folder: Path) -> Path:
    """A model that goes on about the quick brown fox, in the type that theirs has."""
    try:
        source = ensure_model("qwen2")
    except PeerMissing as reason:
        pytest.skip(str(reason))
    target = folder / "english.gguf"
    command = [sys.executable, "-c", "from pyggml_cli.quantize import main; raise SystemExit(main())"]
    subprocess.run(
        [*command, "--allow-requantize", str(source), str(target), "q8_0"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return target


@pytest.mark.slow
def test_its_own_tests_pass(tmp_path: Path, newest: Newest) -> None:
    root = cache_dir("peer")
    with tarfile.open(sdist(root)) as tar:
        prefix = f"{SDIST}/tests/"
        wanted = [m for m in tar if m.name.startswith(prefix) and m.name.endswith(".py")]
        unpack(tar, tmp_path, wanted)
    home = tmp_path / SDIST
    (home / "vendor").mkdir()
    (home / "vendor" / "llama.cpp").symlink_to(vendor(root))
    archs = ensure_archs(newest)
    bert = tmp_path / "bert.gguf"
    write(bert, "bert", vocabulary=True)
    files = {
        "lmstudio-community/Qwen3.5-0.8B-GGUF": english(tmp_path),
        "ggml-org/models": write_text_model(tmp_path / "text.gguf"),
        "CompendiumLabs/bge-small-en-v1.5-gguf": bert,
        "QuantFactory/mamba-130m-hf-GGUF": with_letters(archs / "mamba-dense.gguf", tmp_path / "mamba.gguf"),
        "tiiuae/Falcon-H1-Tiny-90M-Instruct-GGUF": with_letters(archs / "falcon-h1-dense.gguf", tmp_path / "h1.gguf"),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyggml.compat",
            "-m",
            "pytest",
            "-q",
            "-p",
            "stand_ins",
            "--junitxml=done.xml",
            "tests",
        ],
        cwd=home,
        env={
            **os.environ,
            "STAND_INS": json.dumps({repo: str(path) for repo, path in files.items()}),
            "PYTHONPATH": str(SUPPORT),
        },
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-2000:]
    cases = list(ET.parse(home / "done.xml").getroot().iter("testcase"))
    failed = {case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None}
    assert len(cases) == N_TESTS and not list(ET.parse(home / "done.xml").getroot().iter("skipped"))
    assert failed == set(LOW_LEVEL), done.stdout[-6000:]
    assert done.stdout.count("no C API") >= 1
