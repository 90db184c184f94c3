"""One Llama and several callers: threads, streams that overlap, forked processes; and whose draws are whose."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_devices import FakeDevice

from pyggml import Llama, LlamaRAMCache
from pyggml.api.turns import Turns
from pyggml.errors import DeviceError, OvertakenError

PROMPTS = ["hello", "world", "a b c", "hell", "or else", "d", "low", "he"]


MODEL = {"template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}
LLAMA = {"n_ctx": 64, "logits_all": True}


@pytest.fixture
def llm(open_llama: Callable[[], Llama]) -> Llama:
    """Another one for each test."""
    return open_llama()


def said(answer: Any) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def greedy(llm: Llama, prompt: str, **options: Any) -> Any:
    return llm(prompt, max_tokens=8, temperature=0, **options)


# ---- threads


def test_threads_take_turns(llm: Llama) -> None:
    alone = {prompt: greedy(llm, prompt, logprobs=1)["choices"] for prompt in PROMPTS}
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda p: (p, greedy(llm, p, logprobs=1)["choices"]), PROMPTS * 2))
    for prompt, choices in together:
        assert choices[0]["text"] == alone[prompt][0]["text"]
        theirs, ours = (c[0]["logprobs"]["token_logprobs"] for c in (alone[prompt], choices))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_call_waits_for_the_one_before(llm: Llama) -> None:
    """The second one begins while the first is held up between two tokens."""
    inside, go_on, order = threading.Event(), threading.Event(), []

    def hold(ids: Any, logits: Any) -> bool:
        inside.set()
        assert go_on.wait(30)
        return False

    def first() -> None:
        order.append(said(greedy(llm, "hello", stopping_criteria=hold)))

    def second() -> None:
        order.append(said(greedy(llm, "world")))

    expected = [said(greedy(llm, "hello")), said(greedy(llm, "world"))]
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive() and not order
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert order == expected


def test_closing_waits_for_a_call(path: Path) -> None:
    llm = Llama(path, n_ctx=64, verbose=False)
    expected = said(greedy(llm, "hello"))
    inside, texts = threading.Event(), []

    def note(ids: Any, logits: Any) -> bool:
        inside.set()
        return False

    thread = threading.Thread(target=lambda: texts.append(said(greedy(llm, "hello", stopping_criteria=note))))
    thread.start()
    assert inside.wait(30)
    llm.close()
    thread.join(30)
    assert texts == [expected]


# ---- streams


def test_of_two_streams_the_newer_goes_on(llm: Llama) -> None:
    expected = said(greedy(llm, "world"))
    old, new = (greedy(llm, prompt, stream=True) for prompt in ("hello", "world"))
    next(old)
    text = said(next(new))
    with pytest.raises(OvertakenError, match="another call of this Llama began while this stream was under way"):
        list(old)
    assert text + "".join(map(said, new)) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm("world", max_tokens=1),
        lambda llm: llm.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=1),
        lambda llm: next(llm.generate([3])),
        lambda llm: llm.eval([3]),
        lambda llm: llm.reset(),
        lambda llm: llm.load_state(llm.save_state()),
    ],
)
@pytest.mark.parametrize("kind", ["completion", "chat", "tokens"])
def test_a_call_in_the_middle_of_a_stream_ends_it(llm: Llama, call: Any, kind: str) -> None:
    if kind == "completion":
        stream = greedy(llm, "hello", stream=True)
    elif kind == "chat":
        message = [{"role": "user", "content": "hello"}]
        stream = llm.create_chat_completion(message, max_tokens=8, temperature=0, stream=True)
    else:
        stream = llm.generate([1, 2], temp=0)
    next(stream), next(stream)
    call(llm)
    with pytest.raises(OvertakenError):
        list(zip(stream, range(20), strict=False))


def test_a_stream_overtaken_behind_its_last_token_keeps_nothing_in_the_cache(llm: Llama) -> None:
    n = len(list(greedy(llm, "hello", stream=True)))
    for call, kept in ((lambda: llm.eval([3]), 0), (llm.reset, 0), (lambda: llm.n_ctx(), 1)):
        llm.set_cache(LlamaRAMCache())
        assert llm.cache is not None
        stream = greedy(llm, "hello", stream=True)
        for _ in range(n - 1):
            next(stream)
        call()
        assert [chunk["choices"][0]["finish_reason"] for chunk in stream] == ["length"]
        assert len(llm.cache.cache_state) == kept


def test_questions_in_the_middle_of_a_stream_do_not_end_it(llm: Llama) -> None:
    expected = said(greedy(llm, "hello"))
    text = ""
    for chunk in greedy(llm, "hello", stream=True):
        text += said(chunk)
        llm.tokenize(b"world"), llm.detokenize([1]), llm.sample(temp=0), llm.save_state(), llm.n_ctx()
    assert text == expected


def test_a_call_within_a_call_ends_the_outer_one(llm: Llama) -> None:
    with pytest.raises(OvertakenError):
        greedy(llm, "hello", stopping_criteria=lambda ids, logits: bool(greedy(llm, "d")) and False)


def test_a_stream_that_has_not_begun_may_be_overtaken(llm: Llama) -> None:
    expected = said(greedy(llm, "hello"))
    stream = greedy(llm, "hello", stream=True)
    greedy(llm, "world")
    assert "".join(map(said, stream)) == expected


def test_each_stream_keeps_its_seed(llm: Llama) -> None:
    expected = [said(llm("a", temperature=3.0, seed=seed)) for seed in (1, 2)]
    streams = [llm("a", temperature=3.0, seed=seed, stream=True) for seed in (1, 2)]
    assert ["".join(map(said, stream)) for stream in streams] == expected


# ---- seeds


def drawn(llm: Llama, **options: Any) -> str:
    return said(llm("Once", max_tokens=24, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, **options))


def chatted(llm: Llama, **options: Any) -> str:
    message = [{"role": "user", "content": "Once"}]
    answer = llm.create_chat_completion(message, max_tokens=24, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0)
    text: str = answer["choices"][0]["message"]["content"]
    return text


WAYS = {
    "completion": drawn,
    "chat": chatted,
    "mirostat": lambda llm: drawn(llm, mirostat_mode=1, mirostat_tau=9.0),
    "mirostat 2": lambda llm: drawn(llm, mirostat_mode=2, mirostat_tau=9.0),
    "after a seed": lambda llm: (drawn(llm, seed=7), drawn(llm))[1],
    "after two calls": lambda llm: (drawn(llm), drawn(llm), drawn(llm))[2],
    "seed -1": lambda llm: drawn(llm, seed=-1),
    "generate": lambda llm: [t for t, _ in zip(llm.generate([1], temp=3.0, top_k=0, min_p=0), range(20), strict=False)],
}


@pytest.mark.parametrize("way", WAYS)
def test_without_a_seed_each_process_draws_anew(way: str, path: Path) -> None:
    """A Llama has no seed but the one that it was given: nothing that a fresh one draws can be told before."""
    found = []
    for _ in range(2):
        with Llama(path, n_ctx=64, verbose=False) as llm:
            found.append(WAYS[way](llm))
    assert found[0] != found[1]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "seed -1"])
def test_with_a_seed_all_is_drawn_again(way: str, path: Path) -> None:
    found = []
    for _ in range(2):
        with Llama(path, n_ctx=64, seed=5, verbose=False) as llm:
            found.append(WAYS[way](llm))
    assert found[0] == found[1]


# ---- forked processes


FORKED = """
import json, os, sys, threading
from pyggml import Llama, LlamaRAMCache

llm = Llama(sys.argv[1], n_ctx=64, n_threads=2, verbose=False)
say = lambda prompt: llm(prompt, max_tokens=8, temperature=0)["choices"][0]["text"]
expected = [say("hello"), say("world")]
busy = threading.Event()
def work():
    while not busy.is_set():
        say("hello")
thread = threading.Thread(target=work)
if sys.argv[2] == "busy":
    thread.start()
children = []
for _ in range(2):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        stream = llm("world", max_tokens=8, temperature=0, stream=True)
        texts = [say("hello"), "".join(chunk["choices"][0]["text"] for chunk in stream)]
        if sys.argv[2] == "closed":
            llm.close()
        os.write(writing, json.dumps(texts).encode())
        os._exit(0)
    os.close(writing)
    children.append((pid, reading))
told = [json.loads(os.read(reading, 65536) or "null") for _, reading in children]
codes = [os.waitpid(pid, 0)[1] for pid, _ in children]
busy.set()
if thread.ident:
    thread.join()
print(json.dumps([expected, *told, [say("hello"), say("world")], codes]))
llm.close()
"""


@pytest.mark.parametrize("how", ["idle", "busy", "closed"])
def test_forked_processes_compute_like_their_parent(how: str, path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected, *told, codes = json.loads(done.stdout)
    assert told == [expected] * 3 and codes == [0, 0]


def test_devices_of_the_parent_are_not_shared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice("RPC0")
    with Llama(path, n_ctx=64, devices=[device], verbose=False) as llm:
        expected = said(greedy(llm, "hello"))
        freed = []
        with monkeypatch.context() as patch:
            patch.setattr("pyggml.backend.host.HostBuffer.free", freed.append)
            patch.setattr(os, "getpid", lambda: -1)  # as a child would see it
            with pytest.raises(DeviceError, match=r"which this one was forked from: RPC0 cannot be used by both"):
                greedy(llm, "hello")
            context, model = llm._context, llm._model
            llm.close()
            assert freed == []
        assert context is not None and model is not None
    with Llama(path, n_ctx=64, devices=[device], verbose=False) as llm:
        assert said(greedy(llm, "hello")) == expected


def test_a_lock_that_another_thread_held_is_made_anew() -> None:
    turns = Turns()
    with turns:
        with ThreadPoolExecutor(1) as other:
            other.submit(turns.forked).result(30)  # to it, this thread is one that the child lacks
            other.submit(turns.__enter__).result(30)
            other.submit(turns.__exit__).result(30)
        turns._lock.acquire()
    with turns:
        turns.forked()  # the thread that forks keeps what it holds
