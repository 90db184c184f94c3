"""Names and small habits of llama-cpp-python that programs rely on: imports, lists, the cache, old parameters, formats,
the default model, and the leading space of SentencePiece."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_model import write_text_model

import pyggml
from pyggml import Llama, LlamaRAMCache, LogitsProcessorList, StoppingCriteriaList
from pyggml.api.arguments import OLD_PARAMETERS, ParameterError
from pyggml.api.scored_slot import ScoredSlot


@pytest.fixture
def llm(open_llama: Callable[[], Llama]) -> Llama:
    """Another one for each test."""
    return open_llama()


def said(answer: Any) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def test_every_name_is_there_and_loads_nothing_before_it_is_asked_for() -> None:
    for name in pyggml.__all__:
        assert getattr(pyggml, name) is not None
    assert pyggml.__version__ == version("pyggml")
    assert (pyggml.LLAMA_SPLIT_MODE_NONE, pyggml.LLAMA_SPLIT_MODE_LAYER, pyggml.LLAMA_SPLIT_MODE_ROW) == (0, 1, 2)
    code = "import sys, pyggml; pyggml.__version__; assert not {'numpy', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pyggml", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"pyggml {version('pyggml')}\n")
    done = subprocess.run([sys.executable, "-m", "pyggml", "-n", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: -n 'x'")


def test_lists_of_functions(llm: Llama) -> None:
    def only(token: int) -> Any:
        def processor(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            out = np.full_like(logits, -50)
            out[token] = 50 + logits[token] / 1e6
            return out

        return processor

    enough = StoppingCriteriaList([lambda ids, logits: len(ids) > 4, lambda ids, logits: False])
    answer = llm(
        [7], max_tokens=20, logits_processor=LogitsProcessorList([only(65), only(66)]), stopping_criteria=enough
    )
    assert said(answer) == "BBBB"
    assert StoppingCriteriaList()(np.zeros(1, np.int32), np.zeros(1, np.float32)) is False


def test_a_cache_brings_back_what_was_computed(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [said(llm(prompt, max_tokens=4, temperature=0)) for prompt in ("hello world", "low")]
    evaluated: list[int] = []
    plain = ScoredSlot.decode
    monkeypatch.setattr(
        ScoredSlot, "decode", lambda self, tokens: (evaluated.append(len(tokens)), plain(self, tokens))[1]
    )
    llm.set_cache(LlamaRAMCache())
    for stream in (False, True):
        for prompt in ("hello world", "low", "hello world"):
            answer = llm(prompt, max_tokens=4, temperature=0, stream=stream)
            text = "".join(map(said, answer)) if stream else said(answer)
            assert text == expected[prompt == "low"]
    assert evaluated[0] == len(llm.tokenize(b"hello world"))
    assert evaluated[-4:] == [1] * 4  # of the last call only the last token of its prompt, and three new ones
    llm.set_cache(None)
    assert said(llm("low", max_tokens=4, temperature=0)) == expected[1]


def test_a_cache_has_a_size(llm: Llama) -> None:
    llm("hello", max_tokens=1, temperature=0)
    state = llm.save_state()
    cache = LlamaRAMCache(capacity_bytes=2 * state.llama_state_size)
    for i in range(3):
        cache[[i, 1, 2]] = state
    assert [0, 5] not in cache and [1, 5] in cache and [2, 1, 2] in cache and cache.cache_size <= cache.capacity_bytes
    assert cache[[1, 1]] is state and next(iter(cache.cache_state)) == (2, 1, 2)  # the one used longest ago goes next
    with pytest.raises(KeyError):
        cache[[9]]


def test_parameters_of_older_versions_are_taken_and_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Llama(path, n_ctx=64, n_parts=-1, f16_kv=True) as llm:
        assert llm.n_ctx() == 64
    said = capsys.readouterr().err
    assert said.count("n_parts=-1 is without effect") == said.count("f16_kv=True is without effect") == 1
    assert {"n_parts", "f16_kv", "n_gqa", "mul_mat_q"} <= OLD_PARAMETERS


def test_an_unknown_format_names_both_kinds(path: Path) -> None:
    with pytest.raises(ParameterError, match=r"chat_format='nonsense' is not known; known: .*chatml.*llama-2.*llama3"):
        Llama(path, chat_format="nonsense", verbose=False)


def test_a_space_behind_bos_is_sentencepieces(llm: Llama) -> None:
    space = llm.tokenize(b" hello", add_bos=False)
    assert llm.detokenize(space) == b" hello"
    assert llm.detokenize([llm.token_bos(), *space]) == b"hello"
    assert llm.detokenize([llm.token_bos(), *space], special=True) == b"<|begin|> hello"
    assert llm.detokenize([llm.token_bos()]) == b""


def test_the_default_model(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyggml.api.llama.default_model", lambda: path)
    monkeypatch.chdir(tmp_path)
    for args in ((), ("default",), (Path("default"),)):
        with Llama(*args, verbose=False) as llm:
            assert llm.model_path == str(path)
    write_text_model(tmp_path / "default", n_ctx=32)
    with Llama("default", n_ctx=0, verbose=False) as llm:
        assert llm.model_path == "default" and llm.n_ctx() == 32  # a file of this name counts
    with Llama(verbose=False) as llm:
        assert llm.model_path == str(path)


def test_a_pickled_llama_loads_its_file_anew(path: Path) -> None:
    with Llama(path, n_ctx=48, logits_all=True, verbose=False, seed=3) as llm:
        texts = [said(llm("hello", max_tokens=6))]
        with pickle.loads(pickle.dumps(llm)) as again:
            assert (again.n_ctx(), again._logits_all, again.n_tokens, again.model_path) == (48, True, 0, llm.model_path)
            texts.append(said(again("hello", max_tokens=6)))
    assert texts[0] == texts[1]
    with Llama(path, devices=[], progress=lambda done, total: None, verbose=False) as llm, pytest.raises(Exception, match="pickle"):  # fmt: skip
        pickle.dumps(llm)
