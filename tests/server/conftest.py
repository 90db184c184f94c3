"""A tiny model of random weights whose vocabulary spells any text, a server of it, and a browser that shows its page."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Tab, browser, events
from serving import Client, serving
from text_model import write_text_model

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model

STEP = 0.02  # seconds that a token takes at least, so that an answer can be watched
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path: Path = tmp_path_factory.mktemp("served") / "text.gguf"
    made = Model.load(write_text_model(path, n_ctx=2048, template=TEMPLATE, fim=True), cpu=CPUDevice())
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[Client]:
    with serving(model, n_ctx=4 * 512) as made:
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def slow(model: Model) -> Iterator[Client]:
    """Answers that go on until the context is full, slowly."""
    with serving(model, n_ctx=2 * 2048, n_slots=2, ignore_eos=True) as client:
        batcher = client.served.engine.batcher
        step = batcher.step

        def slower() -> Any:
            time.sleep(STEP)
            return step()

        batcher.step = slower
        yield client


@pytest.fixture
def tab(chromium: Any, slow: Client) -> Iterator[Tab]:
    made = Tab(chromium, slow.address).open()
    yield made
    made.close()
    made.check()


@pytest.fixture
def told(tab: Tab) -> Tab:
    """The page of a server whose answers are made up: tab.answers says which."""
    tab.answers(events("An answer."))
    return tab
