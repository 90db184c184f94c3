"""Models are loaded on threads of their own, not on those that prepare requests."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from pyggml_server.loads import Loads
from zoos import WAIT, statuses, text, until, write_models, zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_loads_and_the_preparation_of_requests_do_not_wait_for_each_other(folder: Path) -> None:
    """More of either than a loop has threads for work by default."""
    go, preparing, asking = threading.Event(), threading.Semaphore(0), list[threading.Thread]()
    with zoo(folder, most=0) as (client, opened):
        text(client, "a")
        opened.before = lambda name: None if go.wait(WAIT) else pytest.fail(name)
        client.ok("/models/load", {"model": "b"})
        for _ in range(20):
            asking.append(threading.Thread(target=client.post, args=("/tokenize", {"model": "b", "content": "x"})))
            asking.append(threading.Thread(target=client.get, args=("/v1/models?reload=1",)))
        for thread in asking:
            thread.start()
        assert text(client, "a") and statuses(client)["b"] == "loading"
        go.set()
        for thread in asking:
            thread.join(WAIT)
        tokenizer = client.served.entries["a"].served.tokenizer
        encode, done = tokenizer.encode, threading.Event()

        def slow(*args: Any, **options: Any) -> Any:
            preparing.release()
            assert done.wait(WAIT)
            return encode(*args, **options)

        tokenizer.encode = slow
        body = {"model": "a", "content": "x"}
        asking = [threading.Thread(target=client.post, args=("/tokenize", body)) for _ in range(40)]
        for thread in asking:
            thread.start()
        try:
            assert preparing.acquire(timeout=WAIT)
            client.ok("/models/load", {"model": "c"})
            until(lambda: statuses(client)["c"] == "loaded", "a model is loaded while requests are prepared")
        finally:
            done.set()
            for thread in asking:
                thread.join(WAIT)


def test_at_the_end_what_loads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an RPC server has fallen silent."""
    monkeypatch.setattr("pyggml_server.loads.LAST_CALL", 0.05)
    begun, given_up, found = threading.Event(), threading.Event(), list[bool]()

    def silent() -> None:
        begun.set()
        found.append(given_up.wait(WAIT))

    async def load() -> None:
        loads = Loads()
        loading = asyncio.ensure_future(loads.run(silent))
        assert await asyncio.to_thread(begun.wait, WAIT)
        await asyncio.to_thread(loads.finish, given_up.set)
        await loading

    asyncio.run(load())
    assert found == [True]


def test_loads_on_the_threads_of_requests_are_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: one thread for both."""
    monkeypatch.setattr("pyggml_server.loads.Loads.run", lambda self, f, *args: asyncio.to_thread(f, *args))
    monkeypatch.setattr("zoos.WAIT", 1.0)
    with pytest.raises(AssertionError, match="a model is loaded while requests are prepared"):
        test_loads_and_the_preparation_of_requests_do_not_wait_for_each_other(folder)
