"""Llama's lora_path, lora_scale and lora_base, as llama_cpp.Llama takes them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_model import EOT
from tiny_lora import all_weights, write_lora

from pyggml import Llama
from pyggml.errors import GGUFError, ModelError, StateError

TOKENS = [104, 101, 108, 108, 111, 32, 119]
LLAMA = {"n_ctx": 64, "logits_all": True, "verbose": False, "flash_attn": False}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_lora(tmp_path_factory.mktemp("lora") / "adapter.gguf", all_weights()))


def scores(path: Path, **options: Any) -> np.ndarray:
    with Llama(path, **{**LLAMA, **options}) as llm:
        llm.eval(TOKENS)
        return np.array(llm.scores[: len(TOKENS)])


def test_scores_are_the_peers(path: Path, adapter: str, peer: Any) -> None:
    script = f"""
import json, llama_cpp, sys
path, adapter = sys.argv[1:]
for scale in (1.0, -0.5):
    llm = llama_cpp.Llama(path, n_ctx=64, logits_all=True, verbose=False, lora_path=adapter, lora_scale=scale, lora_base="no such file")
    llm.eval({TOKENS})
    print(json.dumps(llm.scores[:{len(TOKENS)}].tolist()))
"""
    lines = [line for line in peer.run(script, str(path), adapter).stdout.splitlines() if line.startswith("[[")]
    plain = scores(path)
    for scale, line in zip((1.0, -0.5), lines, strict=True):
        theirs = np.array(json.loads(line), np.float32)
        ours = scores(path, lora_path=adapter, lora_scale=scale, lora_base="no such file")
        assert np.abs(ours - theirs).max() < 5e-3 * np.abs(theirs).max() < np.abs(plain - theirs).max()


def test_without_a_path_nothing_is_asked_for(path: Path, adapter: str) -> None:
    plain = scores(path)
    for options in ({"lora_scale": 3.0}, {"lora_path": ""}, {"lora_path": adapter, "lora_scale": 0.0}):
        np.testing.assert_array_equal(scores(path, **options), plain)


def test_what_is_said_and_kept(path: Path, adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Llama(path, n_ctx=64, lora_path=adapter, lora_scale=0.5, lora_base="base.gguf") as llm:
        assert (llm.lora_path, llm.lora_scale, llm.lora_base) == (adapter, 0.5, "base.gguf")
        assert "lora_base is without effect" in capsys.readouterr().err
        copy = pickle.loads(pickle.dumps(llm))
        with copy:
            assert [applied.scale for applied in copy.context.adapters] == [0.5]


def test_states_are_for_the_same_adapter(path: Path, adapter: str) -> None:
    with (
        Llama(path, **LLAMA, lora_path=adapter) as llm,
        Llama(path, **LLAMA) as plain,
        Llama(path, **LLAMA, lora_path=adapter) as same,
    ):
        llm.eval(TOKENS)
        state = llm.save_state()
        with pytest.raises(StateError, match="was computed with 1 adapters, 0 are in use"):
            plain.load_state(state)
        same.load_state(state)
        same.eval([EOT]), llm.eval([EOT])
        np.testing.assert_array_equal(same.scores[len(TOKENS)], llm.scores[len(TOKENS)])


def test_a_file_that_is_none(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"none\.gguf: No such file or directory"):
        Llama(path, verbose=False, lora_path=str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match="not an adapter for this model"):
        Llama(path, verbose=False, lora_path=str(path))
