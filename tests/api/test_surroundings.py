"""What programs for llama_cpp do around answers: caches on disk, tokenizers of their own, repositories, pickles, parameters to read."""

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyggml import Llama, LlamaDiskCache
from pyggml.api.arguments import MinTokensLogitsProcessor, ParameterError
from pyggml.api.tokenizers import BaseLlamaTokenizer, LlamaHFTokenizer, LlamaTokenizer, MissingPackageError
from pyggml.backend.host import default_threads
from pyggml.errors import ContextError

LLAMA = {"n_ctx": 64}


def said(answer: Any) -> str:
    text: str = answer["choices"][0]["text"]
    return text


# ---- states on disk


def test_states_on_disk_are_found_by_a_later_process(path: Path, tmp_path: Path) -> None:
    with Llama(path, n_ctx=64, verbose=False) as llm:
        expected = said(llm("hello world", max_tokens=4, temperature=0))
        llm.set_cache(LlamaDiskCache(tmp_path / "c"))
        assert said(llm("hello world", max_tokens=4, temperature=0)) == expected
        tokens = llm.tokenize(b"hello world")
    cache = LlamaDiskCache(tmp_path / "c")
    assert tokens in cache and [99] not in cache and cache.cache_size > 0
    state = cache[tokens]
    with Llama(path, n_ctx=64, verbose=False) as llm:
        llm.load_state(state)
        assert llm.n_tokens >= len(tokens) and llm._input_ids[: len(tokens)].tolist() == tokens
        llm.set_cache(cache)
        assert said(llm("hello world", max_tokens=4, temperature=0)) == expected
    with pytest.raises(KeyError):
        cache[[99]]


def test_a_cache_on_disk_has_a_size_and_passes_over_damage(llm: Llama, tmp_path: Path) -> None:
    llm("hello", max_tokens=1, temperature=0)
    state = llm.save_state()
    cache = LlamaDiskCache(tmp_path, capacity_bytes=1 << 40)
    cache[[0, 1]] = state
    one = cache.cache_size
    cache.capacity_bytes = 2 * one + one // 2
    for i in (1, 2):
        cache[[i, 1]] = state
        assert cache[[1, 1]].n_tokens == state.n_tokens
    assert [0, 5] not in cache and [1, 5] in cache and [2, 5] in cache and cache.cache_size <= cache.capacity_bytes
    (tmp_path / "odd.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.npz").write_bytes(b"")
    assert [1, 5] in cache and [7] not in cache
    for file in tmp_path.glob("*.npz"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(KeyError, match="cannot be read"):
        cache[[1, 5]]
    assert [1, 5] not in LlamaDiskCache(tmp_path)


# ---- tokenizers


class Letters(BaseLlamaTokenizer):
    """Each byte is its own token, and says itself in capitals, after a space that the first one has not."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        return list(text)

    def detokenize(self, tokens: list[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        text = b"".join(b"(%d)" % t for t in tokens)
        return b" " + text if prev_tokens else text


def test_a_tokenizer_of_the_user(path: Path, llm: Llama) -> None:
    assert llm.tokenize(b"hello") != list(b"hello") and isinstance(llm.tokenizer_, LlamaTokenizer)
    with Llama(path, n_ctx=64, tokenizer=Letters(), verbose=False) as other:
        assert other.tokenize(b"hello") == list(b"hello") and other.detokenize([1, 2]) == b"(1)(2)"
        text = said(other("hello", max_tokens=3, temperature=0))
        plain = llm.generate(list(b"hello"), temp=0)
        tokens = [next(plain) for _ in range(3)]
        assert text == "".join(f" ({t})" for t in tokens)
        assert other._input_ids[:5].tolist() == list(b"hello")
        chunks = [said(chunk) for chunk in other("hello", max_tokens=3, temperature=0, stream=True)]
        assert "".join(chunks) == text
        assert other.tokenizer().encode("hello") == llm.tokenize(b"hello", special=True)


def test_the_files_tokenizer(llm: Llama, path: Path) -> None:
    for tokenizer in (llm.tokenizer(), LlamaTokenizer.from_ggml_file(str(path))):
        assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
        assert tokenizer.tokenize(b"<|end|>") == [llm.token_eos()] != tokenizer.tokenize(b"<|end|>", special=False)


class Pretend:
    """The two methods of a transformers tokenizer that are used: spaces stand between words, not before the first."""

    words = ("<s>", "big", "cat")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*([0] if add_special_tokens else []), *(self.words.index(word) for word in text.split())]

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return " ".join(self.words[t] for t in tokens if t or not skip_special_tokens)


def test_tokenizers_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = LlamaHFTokenizer(Pretend())
    assert tokenizer.tokenize(b"big cat") == [0, 1, 2] and tokenizer.tokenize(b"big cat", special=False) == [1, 2]
    assert tokenizer.detokenize([2]) == b"cat" and tokenizer.detokenize([2], [1]) == b" cat"
    assert tokenizer.detokenize([0, 1], special=True) == b"<s> big"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match="pip install transformers"):
        LlamaHFTokenizer.from_pretrained("a/b")
    known: Any = ModuleType("transformers")
    known.AutoTokenizer = SimpleNamespace(from_pretrained=lambda pretrained_model_name_or_path: Pretend())
    monkeypatch.setitem(sys.modules, "transformers", known)
    assert LlamaHFTokenizer.from_pretrained("a/b").tokenize(b"cat") == [0, 2]


# ---- a vocabulary alone


def test_a_vocabulary_alone(path: Path, llm: Llama) -> None:
    with Llama(path, vocab_only=True, verbose=False, kv_overrides={"general.name": "other"}) as words:
        for text in (b"hello world", b"<|begin|>x"):
            assert words.tokenize(text, special=True) == llm.tokenize(text, special=True)
        facts = ("n_vocab", "n_embd", "token_eos", "token_bos", "token_nl")
        assert [getattr(words, name)() for name in facts] == [getattr(llm, name)() for name in facts]
        assert words.metadata["general.name"] == "other" and words.n_ctx() == 512 and words._ctx.ctx is not None
        for call in (
            lambda: words("a"),
            lambda: words.eval([1]),
            lambda: words.create_chat_completion([{"role": "user", "content": "x"}]),
        ):
            with pytest.raises(ContextError, match=r"vocab_only=True: this Llama has a vocabulary and no weights"):
                call()
        assert pickle.loads(pickle.dumps(words)).vocab_only
    assert words._ctx.ctx is None
    with pytest.raises(ContextError, match="closed"):
        words.n_vocab()


# ---- from a repository


def test_from_pretrained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: Any = ModuleType("huggingface_hub")
    files = ["README.md", "a-q4.gguf", "a-q8.gguf", "parts/b-1-of-2.gguf", "parts/b-2-of-2.gguf"]
    hub.HfApi = lambda: SimpleNamespace(list_repo_files=lambda repo: files)
    fetched: list[tuple[Any, ...]] = []

    def hf_hub_download(repo_id: str, filename: str, local_dir: Any, cache_dir: Any) -> str:
        fetched.append((repo_id, filename, local_dir, cache_dir))
        return str(path)

    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with Llama.from_pretrained("o/r", "*q4*", n_ctx=48, verbose=False) as llm:
        assert (llm.n_ctx(), llm.model_path) == (48, str(path))
    Llama.from_pretrained(
        "o/r", "b-1-of-2.gguf", ["*2-of-2*"], cache_dir="c", local_dir="d", vocab_only=True, verbose=False
    ).close()
    assert fetched == [
        ("o/r", "a-q4.gguf", None, None),
        ("o/r", "parts/b-1-of-2.gguf", "d", "c"),
        ("o/r", "parts/b-2-of-2.gguf", "d", "c"),
    ]
    for pattern, words in (
        ("*.bin", r"0 files fit '\*\.bin', not one; there are README"),
        ("*.gguf", "4 files fit"),
        (None, "4 files"),
    ):
        with pytest.raises(ParameterError, match=words):
            Llama.from_pretrained("o/r", pattern)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"huggingface-hub: pip install"):
        Llama.from_pretrained("o/r", "*q4*")


# ---- the rest


def test_parameters_to_read(path: Path) -> None:
    with Llama(
        path, n_ctx=64, n_batch=128, n_threads=1, seed=3, n_gpu_layers=0, draft_model=lambda ids: ids, verbose=False
    ) as llm:
        params = llm.context_params
        assert (params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch) == (
            64,
            64,
            64,
            1,
            1,
        )
        assert params.embeddings is False and not hasattr(params, "n_gpu_layers")
        assert (llm.model_params.n_gpu_layers, llm.model_params.vocab_only) == (0, False)
        assert (llm.n_threads, llm._is_recurrent, llm._is_hybrid) == (1, False, False)
        assert llm("hi", max_tokens=1, logprobs=1)["choices"][0][
            "logprobs"
        ]  # as there, a draft model brings all logits
        with Llama(path, n_ctx=32, n_threads=0, n_threads_batch=0, verbose=False) as as_many:  # as there are
            assert as_many.n_threads == default_threads() and as_many("hi", max_tokens=1)["choices"]
        with Llama(path, n_ctx=64, n_batch=24, n_ubatch=0, verbose=False) as whole:  # as many as n_batch
            assert whole.context_params.n_ubatch == whole.context.n_ubatch == 24
        again = pickle.loads(pickle.dumps(Llama(path, n_ctx=32, verbose=False, seed=4)))
        assert again.n_ctx() == 32


def test_min_tokens() -> None:
    least = MinTokensLogitsProcessor(2, token_eos=1)
    for n, banned in ((5, True), (6, True), (7, False)):
        row = least(np.zeros(n, np.int32), np.zeros(3, np.float32))
        assert (row[1] == -np.inf) == banned and row[0] == 0


def test_answers_in_openais_classes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    messages = [{"role": "user", "content": "hello"}]
    with Llama(path, n_ctx=512, verbose=False) as llm:
        plain = llm.create_chat_completion(messages, max_tokens=4, temperature=0)["choices"][0]["message"]["content"]
        answer = llm.create_chat_completion_openai_v1(messages=messages, max_tokens=4, temperature=0)
        assert type(answer).__name__ == "ChatCompletion" and answer.choices[0].message.content == plain
        chunks = list(llm.create_chat_completion_openai_v1(messages, max_tokens=4, temperature=0, stream=True))
        assert {type(chunk).__name__ for chunk in chunks} == {"ChatCompletionChunk"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain
        monkeypatch.setitem(sys.modules, "openai.types.chat", None)
        with pytest.raises(MissingPackageError, match="pip install openai"):
            llm.create_chat_completion_openai_v1(messages)


# ---- draft models


class Counted:
    """Guesses, and how many were asked for; wrong ones too."""

    def __init__(self, guess: Any) -> None:
        self.guess, self.asked, self.given = guess, 0, 0

    def __call__(self, input_ids: np.ndarray, /, **more: Any) -> np.ndarray:
        self.asked += 1
        found = np.array(self.guess(input_ids), np.intc)
        self.given += len(found)
        return found


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.5, "seed": 7}])
def test_a_draft_model_changes_no_text(options: dict[str, Any], path: Path) -> None:
    seen: list[list[int]] = []

    def watch(ids: np.ndarray, logits: np.ndarray) -> bool:
        seen.append(ids.tolist())
        return False

    def penalise(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[ids[-1]] -= 5
        return logits

    def all_of(llm: Llama) -> list[Any]:
        seen.clear()
        more = {"max_tokens": 24, **options}
        texts = [said(llm("hello hello", **more)), "".join(said(c) for c in llm("hello", stream=True, **more))]
        texts.append(said(llm("hello", stopping_criteria=watch, logits_processor=penalise, **more)))
        numbers = llm("world", logprobs=2, **more)["choices"][0]["logprobs"]
        return [
            texts,
            numbers["tokens"],
            np.round(numbers["token_logprobs"], 4).tolist(),
            [list(ids) for ids in seen],
            llm.n_tokens,
        ]

    with Llama(path, n_ctx=64, logits_all=True, verbose=False) as llm:
        expected = all_of(llm)
        right = llm.tokenize(b"hello hello") + list(llm.tokenize(expected[0][0].encode(), add_bos=False))
    guesses = {
        "right": lambda ids: right[len(ids) : len(ids) + 6],
        "half": lambda ids: [*right[len(ids) : len(ids) + 2], 5, 6],
        "wrong": lambda ids: [1, 2, 3],
        "none": lambda ids: [],
        "odd": lambda ids: [int(ids[-1]), 10**6, 1],
        "many": lambda ids: [65] * 500,
    }
    for name, guess in guesses.items():
        counted = Counted(guess)
        with Llama(path, n_ctx=64, draft_model=counted, verbose=False) as llm:
            assert all_of(llm) == expected, name
        assert counted.asked > 0 and (counted.given > 0) == (name != "none")


def test_drafts_that_are_right_save_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Llama(path, n_ctx=64, logits_all=True, verbose=False) as llm:
        tokens = llm.tokenize(b"hello")
        made = llm.generate(tokens, temp=0)
        right = tokens + [next(made) for _ in range(20)]
    counted = Counted(lambda ids: right[len(ids) : len(ids) + 8])
    with Llama(path, n_ctx=64, draft_model=counted, verbose=False) as llm:
        llm(tokens, max_tokens=20, temperature=0)
    assert counted.asked <= 4
