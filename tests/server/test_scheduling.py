"""Many requests at once: each is answered as it is alone, nobody waits for ever, and who leaves makes room."""

import threading
import time
from typing import Any

import pytest
from fake_context import Greedy
from pyggml_server import engine as engines
from pyggml_server.engine import Engine, Task
from pyggml_server.errors import without_places
from serving import Client, serving

from pyggml.errors import ComputeError
from pyggml.model.model import Model
from pyggml.runtime.sequence import Sequence as Text


def ask(client: Client, prompt: str, n: int, said: dict[str, str]) -> None:
    said[prompt] = client.ok("/v1/completions", {"prompt": prompt, "max_tokens": n})["choices"][0]["text"]


@pytest.mark.parametrize("kv_unified", [False, True], ids=["streams", "unified"])
def test_many_at_once_say_what_each_says_alone(model: Model, kv_unified: bool) -> None:
    prompts = [f"text number {i}" + " and so on" * (i % 5) for i in range(10)]
    with serving(model, n_slots=4, n_ctx=1024, kv_unified=kv_unified) as client:
        alone: dict[str, str] = {}
        for prompt in prompts:
            ask(client, prompt, 20, alone)
        together: dict[str, str] = {}
        threads = [threading.Thread(target=ask, args=(client, prompt, 20, together)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone
        assert client.served.engine.idle


def wait_for(what: Any) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_who_hangs_up_makes_room(model: Model) -> None:
    """Without an end of their own these answers would go on until the context is full."""
    forever = {"prompt": "hello", "max_tokens": 100000, "ignore_eos": True}
    with serving(model, n_slots=1, n_ctx=2048) as client:
        engine: Engine = client.served.engine
        with client.open_stream("/v1/completions", forever) as events:
            next(events)
            assert engine.n_busy == 1
        wait_for(lambda: engine.idle)
        assert engine.counters.tokens < 1500
        connection = client.connection()  # one that is answered whole, and one that waits
        connection.request("POST", "/v1/completions", b'{"prompt": "hello", "ignore_eos": true, "max_tokens": 100000}')
        wait_for(lambda: engine.n_busy == 1)
        connection.close()
        wait_for(lambda: engine.idle)
        assert client.ok("/v1/completions", {"prompt": "hello", "max_tokens": 3})["usage"]["completion_tokens"] == 3


def test_a_beginning_that_a_slot_has_is_not_computed_again(client: Client) -> None:
    text = "once upon a time there was a long beginning of many words"
    client.ok("/v1/completions", {"prompt": text, "max_tokens": 2})
    again = client.ok("/v1/completions", {"prompt": text + " and another end", "max_tokens": 2})
    cached, n = again["usage"]["prompt_tokens_details"]["cached_tokens"], again["usage"]["prompt_tokens"]
    assert n > cached >= len(client.served.tokenizer.encode(text)) - 1
    fresh = client.ok("/v1/completions", {"prompt": text + " and another end", "max_tokens": 2, "cache_prompt": False})
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert fresh["choices"][0]["text"] == again["choices"][0]["text"]


def test_a_full_queue_is_told_to_come_again(model: Model) -> None:
    forever = {"prompt": "hello", "max_tokens": 100000, "ignore_eos": True}
    with serving(model, n_slots=1, n_ctx=2048, queue_limit=1) as client:
        engine = client.served.engine
        with client.open_stream("/v1/completions", forever) as events:
            next(events)
            waiting = client.connection()
            waiting.request("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": 1}')
            wait_for(lambda: engine.n_waiting == 1)
            status, headers, data = client.raw("POST", "/v1/completions", b'{"prompt": "y"}')
            assert status == 503 and headers["retry-after"] == "1" and b"1 requests are waiting" in data
        assert waiting.getresponse().status == 200
        waiting.close()


def test_clients_take_turns() -> None:
    """Of two clients of whom one has sent much the other need not wait for all of it."""

    class Place:
        seq, sequence = 0, None

    class Places:
        places = (Place(),)

        class context:
            n_ubatch, kv_unified = 16, False

        def __init__(self) -> None:
            self.added: list[Any] = []

        def add(self, text: Any) -> None:
            self.added.append(text)

    places: Any = Places()
    engine = Engine(places, 100)
    texts: list[Any] = [Text([1], Greedy()) for _ in range(6)]
    engine.submit([Task(text, print, "a") for text in texts[:4]])
    engine.submit([Task(text, print, "b") for text in texts[4:]])
    for _ in range(6):
        engine._admit()
        engine._tasks.clear()
    assert places.added == [texts[i] for i in (0, 4, 1, 5, 2, 3)]


def test_without_requests_nothing_runs(client: Client) -> None:
    client.ok("/v1/completions", {"prompt": "hello", "max_tokens": 2})
    wait_for(lambda: client.served.engine.idle)
    steps = client.served.engine.counters.steps
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(1.0)
    assert client.served.engine.counters.steps == steps
    assert time.process_time() - before < 0.2


def test_a_grammar_that_fails_ends_its_text_alone(client: Client) -> None:
    """Its only way on is a character that no token can write after what was written."""
    with client.open_stream("/v1/completions", {"prompt": "hello", "max_tokens": 60, "ignore_eos": True}) as events:
        next(events)
        body = {"prompt": "hello", "max_tokens": 30, "grammar": 'root ::= "ab" end\nend ::= "c"', "ignore_eos": True}
        status, found = client.post("/v1/completions", body)
        assert status == 400 and "no token could be chosen" in found["error"]["message"]
        assert sum(len(c["text"]) for e in events for c in e["choices"]) > 0


def test_a_fault_in_the_engine_leaves_nobody_waiting(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with serving(model, n_slots=1) as client:
        engine = client.served.engine

        def fault(text: Text) -> None:
            raise ValueError("a fault")

        engine._count = fault
        body = {"prompt": "x", "n_predict": 3, "ignore_eos": True}
        for _ in range(2):  # the one that it happened to, and the next
            status, answer = client.post("/completion", body)
            assert (status, answer["error"]["message"]) == (503, "the server has failed; its log says more")
        assert "a fault" in caplog.text and "a fault" not in str(answer)


def test_calls_that_nobody_waits_for_any_more_keep_no_others_from_their_end(model: Model) -> None:
    with serving(model, n_slots=1) as client:
        engine, begun, go = client.served.engine, threading.Event(), threading.Event()
        engine.call(lambda: begun.set() or go.wait(10))
        assert begun.wait(10)
        cancelled, other = engine.call(lambda: 1), engine.call(lambda: 2)
        cancelled.cancel()
        closing = threading.Thread(target=engine.close)
        closing.start()
        while not engine._closing:
            time.sleep(0.01)
        go.set()
        closing.join(10)
        assert not closing.is_alive() and not engine._thread.is_alive()
        assert str(other.exception(10)) == "the server is ending"


def test_a_step_that_does_not_end_is_given_up_at_the_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an RPC server has fallen silent."""
    monkeypatch.setattr(engines, "LAST_STEP", 0.05)
    with serving(model, n_slots=1) as client:
        batcher = client.served.engine.batcher
        step, begun, given_up, found = batcher.step, threading.Event(), threading.Event(), []

        def silent() -> Any:
            batcher.step = step
            begun.set()
            assert given_up.wait(60)
            raise ComputeError("aborted")

        batcher.step = silent
        monkeypatch.setattr(client.served.context, "abort", given_up.set)
        asking = threading.Thread(target=lambda: found.append(client.post("/v1/completions", {"prompt": "hello"})))
        asking.start()
        assert begun.wait(60)
        client.served.close()
        asking.join(60)
        assert found[0][0] == 503 and found[0][1]["error"]["message"] == "the server is ending"


@pytest.mark.parametrize(("why", "told"), [
    ("RPC server [::1]:50052: GET_TENSOR: gone", "RPC server: GET_TENSOR: gone"),
    ("/home/me/m.gguf: was cut/short", "m.gguf: was cut/short"),
    ("no room: 5 MiB/s", "no room: 5 MiB/s"),
])  # fmt: skip
def test_clients_are_not_told_where_something_lies(why: str, told: str) -> None:
    assert without_places(why) == told


def test_the_log_says_why_a_step_failed(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with serving(model, n_slots=1) as client:
        batcher = client.served.engine.batcher
        step = batcher.step

        def failing() -> Any:
            batcher.step = step
            raise ComputeError("RPC server h:1: gone")

        batcher.step = failing
        status, found = client.post("/v1/completions", {"prompt": "hello", "max_tokens": 2})
        assert status == 500 and found["error"]["message"] == "the model could not be computed: RPC server: gone"
        assert "a step failed: RPC server h:1: gone" in caplog.text and "Traceback" not in caplog.text
        assert client.ok("/v1/completions", {"prompt": "hello", "max_tokens": 2})["choices"]
