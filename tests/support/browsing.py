"""A real browser for tests of the server's page: Debian's chromium, driven through playwright. What it asks and what it
complains of is written down."""

import contextlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
USUAL = WAIT = 60.0  # seconds in which something must have come, however busy the machine is
EXPECTED = "Failed to load resource"  # what the browser says of every answer with an error's status


def _missing(what: str) -> None:
    """A skip; with PYGGML_REQUIRE_BROWSER set (CI) a failure."""
    if os.environ.get("PYGGML_REQUIRE_BROWSER"):
        pytest.fail(what)
    pytest.skip(what)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        _missing("playwright is missing: pip install 'pyggml[browser-test]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _missing(f"no browser was found: none of {', '.join(NAMES)} (apt-get install chromium)")
    expect.set_options(timeout=WAIT * 1000)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # it may run as root here
        yield made
        made.close()


def playwright_error() -> type[Exception]:
    """What it raises, in vain having waited."""
    from playwright.sync_api import Error

    return Error


class Tab:
    """A page of a fresh profile. `asked` are the addresses that it fetched, `said` is what it complained of."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        from playwright.sync_api import expect

        self.address, self.expect = address, expect
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(WAIT * 1000)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page = self.context.new_page()
        self.watch(self.page)

    def watch(self, page: Any) -> None:
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda reason: self.said.append(str(reason)))
        page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def open(self) -> "Tab":
        self.page.goto(self.address + "/")
        self.expect(self.page.locator("#status")).to_be_attached()
        self.until(lambda: self.page.evaluate("document.querySelector('#theme').title") != "", "the page is ready")
        return self

    def find(self, selector: str) -> Any:
        return self.page.locator(selector)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition; functions that the page would have to evaluate itself are forbidden by its policy."""
        end = time.monotonic() + WAIT
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {WAIT:g} s: {what}"
            self.page.wait_for_timeout(20)
        return value

    def send(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.keyboard.press("Enter")

    def answered(self, n: int = 1) -> str:
        """The text of the last answer, once it is complete and there are `n` of them."""
        self.expect(self.find("article.assistant")).to_have_count(n)
        self.expect(self.find("#send")).to_be_visible()
        return str(self.find("article.assistant .text").last.inner_text())

    def texts(self) -> list[str]:
        return [str(text) for text in self.find("article .text").all_inner_texts()]

    def module(self, name: str, body: str, argument: Any = None) -> Any:
        """What a function over a module of the page gives."""
        return self.page.evaluate(
            f"async (argument) => {{ const m = await import('./page/{name}'); {body} }}", argument
        )

    def answers(self, *bodies: bytes, status: int = 200) -> list[Any]:
        """In place of the server: the next completions get these, the last one again and again. Returns what was asked."""
        left, asked = list(bodies), []

        def answer(route: Any) -> None:
            asked.append(json.loads(route.request.post_data))
            kind = "text/event-stream" if status == 200 else "application/json"
            route.fulfill(status=status, content_type=kind, body=left.pop(0) if len(left) > 1 else left[0])

        self.page.unroute("**/v1/chat/completions")
        self.page.route("**/v1/chat/completions", answer)
        return asked

    def close(self) -> None:
        self.context.close()

    def check(self) -> None:
        """It has asked nobody else, and complained of nothing."""
        assert [url for url in self.asked if not url.startswith(self.address + "/")] == []
        assert [text for text in self.said if EXPECTED not in text] == []


def events(content: str, reasoning: str = "", size: int = 7, finish: str = "stop", done: bool = True) -> bytes:
    """A stream as the server sends it, of pieces of so many characters."""
    deltas = [{"reasoning_content": reasoning[i : i + size]} for i in range(0, len(reasoning), size)]
    deltas += [{"content": content[i : i + size]} for i in range(0, len(content), size)]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    if done:
        timings = {"predicted_n": 40, "predicted_per_second": 12.34, "prompt_n": 5, "cache_n": 2}
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "timings": timings})
    text = "".join(f"data: {json.dumps({'model': 'told', **chunk})}\n\n" for chunk in chunks)
    return (text + ("data: [DONE]\n\n" if done else "")).encode()


def wait_until_idle(client: Any) -> None:
    end = time.monotonic() + USUAL
    while client.served.engine.n_busy:
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_page_mutant_caught(
    monkeypatch: pytest.MonkeyPatch,
    mutant: tuple[str, str, str, Callable[..., None]],
    browser: Any,
    client: Any,
    **fixtures: Any,
) -> None:
    """A test fails where a file of the page has one place replaced: (file, what stands there once, what in its stead, test)."""
    from pyggml_server import page as files

    name, right, wrong, test = mutant
    text = (files.FOLDER / name).read_text()
    assert text.count(right) == 1
    kind = files.TYPES[Path(name).suffix]
    monkeypatch.setattr(sys.modules[__name__], "WAIT", 2.0)
    tab = Tab(browser, client.address)
    tab.expect.set_options(timeout=2000)
    try:
        tab.page.route(
            f"**/page/{name}", lambda route: route.fulfill(body=text.replace(right, wrong), content_type=kind)
        )
        tab.open()
        if "told" in inspect.signature(test).parameters:
            tab.answers(events("An answer."))
        given = {"tab": tab, "told": tab, "slow": client, **fixtures}
        with pytest.raises((AssertionError, TimeoutError, playwright_error())):
            test(**{one: given[one] for one in inspect.signature(test).parameters})
    finally:
        tab.expect.set_options(timeout=USUAL * 1000)
        tab.close()
    wait_until_idle(client)
