"""The Llama class: what llama_cpp.Llama's users rely on, on a small model and the reference backend."""

import inspect
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_model import BOS, EOT, N_VOCAB, write_text_model

from pyggml import Llama
from pyggml.api.arguments import WITHOUT_EFFECT, ParameterError
from pyggml.errors import ContextError, PyggmlError, SamplerError, StateError

LLAMA = {"n_ctx": 64, "logits_all": True}


class Script:
    """A logits processor that has the model say given tokens: what it would have said itself is of no interest."""

    def __init__(self, tokens: list[int], n_prompt: int) -> None:
        self.tokens, self.n_prompt = tokens, n_prompt

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:] = -50
        logits[self.tokens[len(input_ids) - self.n_prompt]] = 50
        return logits


def say(llm: Llama, data: bytes, **options: Any) -> Any:
    """A completion of which the model says `data`, a byte a token, and then ends."""
    options = {"max_tokens": None, "temperature": 0, **options}
    return llm.create_completion([7], logits_processor=Script([*data, EOT], 1), **options)


def text_of(answer: Any) -> str:
    text: str = answer["choices"][0]["text"]
    return text


# ---- importing


def test_import_is_lazy() -> None:
    code = "import sys, pyggml; assert not {'numpy', 'llvmlite', 'tokenizers'} & set(sys.modules); pyggml.Llama"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_attribute() -> None:
    import pyggml

    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        _ = pyggml.Lama


# ---- parameters


def test_signatures_hold_all_that_the_peer_has(peer: Any) -> None:
    script = """
import inspect, json, llama_cpp
methods = ["__init__", "tokenize", "detokenize", "eval", "sample", "generate", "create_completion", "__call__"]
methods.append("create_chat_completion")
print(json.dumps({name: list(inspect.signature(getattr(llama_cpp.Llama, name)).parameters) for name in methods}))
"""
    for name, parameters in json.loads(peer.run(script).stdout.splitlines()[-1]).items():
        ours = list(inspect.signature(getattr(Llama, name)).parameters)
        wanted = [p for p in parameters if p not in ("self", "kwargs")]
        assert [p for p in ours if p in wanted] == wanted, name  # the same order, for positional use


def test_table_of_parameters_without_effect_holds_defaults() -> None:
    methods = (Llama.__init__, Llama.sample, Llama.generate, Llama.create_completion)
    parameters = {name: p for method in methods for name, p in inspect.signature(method).parameters.items()}
    for name, (default, _) in WITHOUT_EFFECT.items():
        assert parameters[name].default == default, name


def test_parameters_without_effect_are_said_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Llama(path, n_ctx=64, numa=True, op_offload=False) as llm:
        plain = [
            text_of(llm("a", max_tokens=4, temperature=0, **more)) for more in ({}, {"tfs_z": 0.5}, {"tfs_z": 0.5})
        ]
        llm.sample(penalize_nl=False)
    assert plain[0] == plain[1] == plain[2]
    said = capsys.readouterr().err
    for name in ("numa=True", "op_offload=False", "tfs_z=0.5", "penalize_nl=False"):
        assert said.count(f"{name} is without effect: ") == 1, name
    with Llama(path, n_ctx=64, numa=True, verbose=False):
        assert capsys.readouterr().err == ""


def test_unknown_parameters_are_passed_over_with_a_warning(path: Path) -> None:
    with pytest.warns(UserWarning, match=r"has no parameter 'n_gpu_layer', .*: is it 'n_gpu_layers'\?"):  # noqa: SIM117
        with Llama(path, n_gpu_layer=3, verbose=False, n_ctx=32) as llm:
            assert llm.n_ctx() == 32
    with pytest.warns(UserWarning, match=r"no parameter 'whatever', and passes over it$"):
        Llama(path, whatever=3, verbose=False).close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split_mode": 3}, "split_mode=3"),
        ({"rpc_servers": "127.0.0.1:1", "devices": []}, "rpc_servers and devices"),
        ({"n_ctx": -1}, "n_ctx"),
        ({"n_batch": 0}, "n_batch"),
    ],
)
def test_bad_parameters(path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        Llama(path, verbose=False, **options)


def test_missing_model() -> None:
    for path in ("nowhere.gguf", ""):
        with pytest.raises(ValueError, match=f"does not exist: {path}$"):
            Llama(path)


# ---- tokens and logits


def test_tokens(llm: Llama) -> None:
    tokens = llm.tokenize("hello world é".encode())
    assert tokens == [259, 264, *llm.tokenize(" é".encode())]
    assert llm.detokenize(tokens) == "hello world é".encode()
    assert llm.tokenize(b"<|end|>") != [EOT] == llm.tokenize(b"<|end|>", special=True)
    assert (llm.detokenize([EOT]), llm.detokenize([EOT], special=True)) == (b"", b"<|end|>")
    assert (llm.token_eos(), llm.token_bos(), llm.n_vocab(), llm.n_embd()) == (EOT, BOS, N_VOCAB, 64)
    assert llm.detokenize([llm.token_nl()]) == b"\n"
    assert llm.metadata["general.architecture"] == "llama"
    assert llm.metadata["tokenizer.ggml.add_bos_token"] == "false"


def test_bos_where_the_file_asks_for_it(tmp_path: Path) -> None:
    with Llama(write_text_model(tmp_path / "bos.gguf", add_bos=True), verbose=False) as llm:
        assert llm.tokenize(b"hello") == [BOS, 259]
        assert llm.tokenize(b"hello", add_bos=False) == [259]
        with pytest.warns(RuntimeWarning, match="begins with BOS"):
            llm("<|begin|>hello", max_tokens=1)


def test_eval_in_pieces(llm: Llama, path: Path) -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7]
    llm.reset()
    llm.eval(tokens)
    assert llm.n_tokens == 7 and list(llm.eval_tokens) == tokens
    whole = llm.scores[:7].copy()
    assert np.array_equal(llm.last_logits, whole[6])
    with Llama(path, n_ctx=64, n_batch=2, verbose=False) as other:
        other.eval(tokens[:3])
        other.eval(tokens[3:])
        assert np.allclose(other.last_logits, whole[6], atol=1e-4)
        assert other.scores.shape == (1, N_VOCAB) and len(other.eval_logits) == 1
        other.n_tokens = 4  # going back
        other.eval([9])
        other.reset()
        other.eval([1, 2, 3, 4, 9])
        assert other.n_tokens == 5


def test_going_back_where_the_memory_cannot(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to stay is computed anew, as before a window or a recurrent state that has gone on."""
    llm.reset()
    llm.eval([1, 2, 3, 9])
    expected = llm.last_logits.copy()
    llm.reset()
    llm.eval([1, 2, 3, 4, 5])
    memory, count = llm.context.memory, Counting(llm, monkeypatch)
    monkeypatch.setattr(memory, "can_remove", lambda seq, p0=0, p1=None: p0 == 0)
    llm.n_tokens = 3
    llm.eval([9])
    assert count.n == 4 and list(llm.eval_tokens) == [1, 2, 3, 9]
    np.testing.assert_allclose(llm.last_logits, expected, atol=1e-4)


def test_context_is_full(llm: Llama) -> None:
    llm.reset()
    with pytest.raises(ContextError, match=r"0 \+ 65 tokens exceed the context of 64"):
        llm.eval([1] * 65)


def test_sample(llm: Llama) -> None:
    llm.reset()
    llm.eval([1, 2, 3])
    assert llm.sample(temp=0) == int(llm.scores[2].argmax())
    assert llm.sample(temp=0, idx=0) == int(llm.scores[0].argmax())
    llm.set_seed(11)
    assert llm.sample(temp=2.0) == llm.sample(temp=2.0)  # a new chain each time, as in llama_cpp
    with pytest.raises(ParameterError, match="idx=3"):
        llm.sample(idx=3)


def test_generate_takes_tokens_in(llm: Llama) -> None:
    run = llm.generate([1, 2], temp=0)
    first = next(run)
    run.send([5, 6])
    assert list(llm.eval_tokens) == [1, 2, first, 5, 6]


def test_generate_needs_a_beginning(path: Path) -> None:
    with Llama(path, verbose=False) as llm, pytest.raises(ContextError, match="nothing was evaluated"):
        next(llm.generate([]))


class Counting:
    """Counts the tokens that a Llama decodes."""

    def __init__(self, llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        decode = llm.context.decode

        def counted(tokens: list[int], **options: Any) -> Any:
            self.n += len(tokens)
            return decode(tokens, **options)

        monkeypatch.setattr(llm.context, "decode", counted)


def test_common_prefix_is_not_computed_again(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.reset()
    first = llm([1, 2, 3, 4, 5, 6], max_tokens=1, temperature=0)
    count = Counting(llm, monkeypatch)
    again = llm([1, 2, 3, 4, 5, 6], max_tokens=1, temperature=0)
    assert count.n == 0 and text_of(again) == text_of(first)
    llm([1, 2, 3, 9], max_tokens=1, temperature=0)
    assert count.n == 1
    llm([1, 2], max_tokens=1, temperature=0)  # all of it is there, but its logits are to be had only by computing
    assert count.n == 2
    reused = llm.last_logits.copy()
    llm.reset()
    llm.eval([1, 2])
    assert np.allclose(reused, llm.last_logits, atol=1e-4)


# ---- completions


def test_answer(llm: Llama, path: Path) -> None:
    answer = llm("hello world", max_tokens=4, temperature=0)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", str(path))
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    choice = answer["choices"][0]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")


def test_equal_to_the_peer(llm: Llama, path: Path, peer: Any) -> None:
    calls: list[dict[str, Any]] = [
        {"max_tokens": 12},
        {"max_tokens": 12, "echo": True},
        {"max_tokens": 6, "logprobs": 3},
        {"max_tokens": 5, "repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1},
        {"max_tokens": 4, "model": "named"},
    ]
    script = """
import json, sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=64, logits_all=True, verbose=False)
print(json.dumps([llm("hello world", temperature=0, **call) for call in json.loads(sys.argv[2])], default=float))
"""
    theirs = json.loads(peer.run(script, str(path), json.dumps(calls)).stdout.splitlines()[-1])
    for call, wanted in zip(calls, theirs, strict=True):
        ours = llm("hello world", temperature=0, **call)
        for answer in (ours, wanted):
            del answer["id"], answer["created"]
        numbers = [answer["choices"][0].pop("logprobs") for answer in (ours, wanted)]
        assert ours == wanted
        if numbers[1] is None:
            assert numbers[0] is None
        else:
            assert numbers[0].keys() == numbers[1].keys()
            assert numbers[0]["tokens"] == numbers[1]["tokens"]
            assert numbers[0]["text_offset"] == numbers[1]["text_offset"]
            assert numbers[0]["token_logprobs"] == pytest.approx(numbers[1]["token_logprobs"], abs=1e-3)
            for a, b in zip(numbers[0]["top_logprobs"], numbers[1]["top_logprobs"], strict=True):
                assert a == pytest.approx(b, abs=1e-3)


def test_seeded_draws_are_the_peers(llm: Llama, path: Path, peer: Any) -> None:
    script = """
import json, sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], n_ctx=64, seed=123, verbose=False)
print(json.dumps([llm("hello", max_tokens=10, seed=7)["choices"][0]["text"], llm("hello", max_tokens=10)["choices"][0]["text"]]))
"""
    theirs = json.loads(peer.run(script, str(path)).stdout.splitlines()[-1])
    llm.set_seed(123)
    assert [text_of(llm("hello", max_tokens=10, seed=7)), text_of(llm("hello", max_tokens=10))] == theirs


def test_seeds(path: Path) -> None:
    with Llama(path, seed=5, verbose=False) as one, Llama(path, seed=5, verbose=False) as two:
        texts = [text_of(one("a", temperature=3.0)) for _ in range(3)]
        assert texts == [text_of(two("a", temperature=3.0)) for _ in range(3)]
        assert len(set(texts)) == 3


@given(
    data=st.lists(st.sampled_from([b"a", b"b", b"ab", "é".encode(), "€".encode(), "🙂".encode(), b"\xff", b"\xe2"])),
    stop=st.lists(st.sampled_from(["a", "ab", "bb", "aab", "é", "b€"]), max_size=2),
)
@settings(deadline=None, max_examples=60)
def test_streams_say_what_whole_answers_say(llm: Llama, data: list[bytes], stop: list[str]) -> None:
    said = b"".join(data)[:40]
    found = [at for at in (said.find(s.encode()) for s in stop) if at >= 0]
    wanted = said[: min(found)] if found else said
    whole = say(llm, said, stop=stop)
    assert text_of(whole) == wanted.decode("utf-8", "ignore")
    assert whole["choices"][0]["finish_reason"] == "stop"
    for logprobs in (None, 1):
        chunks = list(say(llm, said, stop=stop, stream=True, logprobs=logprobs))
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        if b"\xff" not in said and b"\xe2" not in data:
            assert "".join(map(text_of, chunks)) == text_of(whole)


def test_a_stream_never_splits_a_character(llm: Llama) -> None:
    chunks = [text_of(chunk) for chunk in say(llm, "a🙂€é".encode(), stream=True)]
    assert chunks == ["a", "🙂", "€", "é", ""]


def test_a_stream_holds_back_what_may_be_a_stop(llm: Llama) -> None:
    chunks = [text_of(chunk) for chunk in say(llm, b"x##y###z", stop="###", stream=True)]
    assert chunks == ["x", "##y", ""]


def test_chunks_carry_logprobs_of_their_tokens(llm: Llama) -> None:
    chunks = [c["choices"][0] for c in say(llm, "a🙂b".encode(), stream=True, logprobs=1)]
    assert [c["text"] for c in chunks] == ["a", "🙂", "b", ""]
    assert [len(c["logprobs"]["tokens"]) for c in chunks[:3]] == [1, 4, 1]
    assert [c["logprobs"]["text_offset"][0] for c in chunks[:3]] == [1, 2, 3]
    assert chunks[3]["logprobs"] is None


def test_logprobs_with_echo_are_those_of_the_prompt(llm: Llama) -> None:
    answer = llm("hello world", max_tokens=2, temperature=0, echo=True, logprobs=0)
    numbers = answer["choices"][0]["logprobs"]
    row = Llama.logits_to_logprobs(llm.scores[0])
    assert numbers["tokens"][:2] == ["hello", " world"] and numbers["text_offset"][:2] == [0, 5]
    assert numbers["token_logprobs"][0] is None
    assert numbers["token_logprobs"][1] == pytest.approx(float(row[264]), abs=1e-6)
    assert math.isclose(float(np.exp(row).sum()), 1, abs_tol=1e-5)


def test_logprobs_need_logits_all(path: Path) -> None:
    with Llama(path, verbose=False) as llm, pytest.raises(ValueError, match="logits_all=True"):
        llm("a", logprobs=1)


def test_prompt_too_long_for_the_context(llm: Llama) -> None:
    with pytest.raises(ValueError, match=r"Requested tokens \(64\) exceed context window of 64"):
        llm([1] * 64)


def test_until_the_context_is_full(llm: Llama) -> None:
    answer = llm([1] * 60, max_tokens=-1, temperature=0, logit_bias={EOT: -100.0})
    assert answer["usage"]["completion_tokens"] == 4


def test_logit_bias(llm: Llama) -> None:
    assert text_of(llm("a", max_tokens=3, temperature=0, logit_bias={ord("q"): 1000.0})) == "qqq"
    with pytest.raises(SamplerError, match="not in the vocabulary"):
        llm("a", logit_bias={10**6: 1.0})


def test_stopping_criteria(llm: Llama) -> None:
    answer = say(llm, b"abcdef", stopping_criteria=[lambda ids, logits: ids[-1] == ord("c")])
    assert (text_of(answer), answer["choices"][0]["finish_reason"]) == ("abc", "stop")


def test_suffix(llm: Llama, tmp_path: Path) -> None:
    assert text_of(say(llm, b"ab", suffix="!")) == "ab!"
    assert [text_of(c) for c in say(llm, b"ab", suffix="!", stream=True)] == ["a", "b", "!", ""]
    with Llama(write_text_model(tmp_path / "fim.gguf", fim=True), n_ctx=64, verbose=False) as fim:
        fim("x", suffix="y", max_tokens=1)
        assert list(fim.eval_tokens) == [1, ord("x"), 2, ord("y"), 3]
        fim.spm_infill = True
        fim("x", suffix="y", max_tokens=1)
        assert list(fim.eval_tokens) == [2, ord("y"), 1, ord("x"), 3]


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [([], {}, "no tokens"), ([N_VOCAB], {}, "vocabulary of"), ("a", {"stop": ""}, "empty text")],
)
def test_bad_requests(llm: Llama, prompt: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        llm(prompt, **options)


def test_empty_prompt_begins_with_bos(llm: Llama) -> None:
    llm("", max_tokens=1)
    assert list(llm.eval_tokens) == [BOS]


def test_close(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = Llama(path)
    llm("a", max_tokens=1)
    llm.close()
    llm.close()
    for ask in (lambda: llm("a"), lambda: llm.eval([1]), lambda: next(llm.generate([1])), llm.save_state):
        with pytest.raises(PyggmlError, match="closed"):
            ask()
    assert (llm.n_tokens, llm.input_ids[0]) == (1, ord("a"))  # what was evaluated can still be read
    captured = capsys.readouterr()
    assert captured.out == "" and "text.gguf: ready in" in captured.err


def test_where_weights_are_read_and_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the tests in model/ show of Model and Context reaches them from here."""
    with Llama(path, verbose=False, use_mmap=False, use_mlock=True, kv_overrides={"llama.context_length": 48},
               n_ctx=0, n_threads=1, n_threads_batch=2, offload_kqv=False, split_mode=0) as llm:  # fmt: skip
        assert llm.n_ctx() == 48
        llm.eval([1, 2, 3])
        assert (llm.context._n_threads, llm.context._n_threads_batch) == (1, 2)
        weight = llm.context.model.tensor("token_embd.weight")
        assert weight.data != llm.context.model.file.tensors[weight.name].data.ctypes.data


@pytest.mark.parametrize("logits_all", [False, True])
def test_states(path: Path, logits_all: bool) -> None:
    with Llama(path, verbose=False, logits_all=logits_all) as llm, Llama(path, verbose=False, seed=3) as other:
        llm.eval([5, 6, 7])
        state = pickle.loads(pickle.dumps(llm.save_state()))
        assert (state.n_tokens, state.llama_state_size) == (3, len(state.llama_state))
        before = llm.scores[:3].copy(), llm.last_logits.copy()
        llm.eval([8])
        after = llm.last_logits.copy()
        llm.load_state(state)
        assert llm.n_tokens == 3 and llm.input_ids[:3].tolist() == [5, 6, 7]
        np.testing.assert_array_equal(llm.last_logits, before[1])
        np.testing.assert_array_equal(llm.scores[:3] if logits_all else llm.scores, before[0])
        llm.eval([8])
        np.testing.assert_array_equal(llm.last_logits, after)
        other.load_state(state)
        assert other.seed == llm.seed
        other.eval([8])
        np.testing.assert_array_equal(other.last_logits, after)
    with Llama(path, verbose=False, n_ctx=2) as small, pytest.raises(StateError, match="3 tokens do not fit"):
        small.load_state(state)
