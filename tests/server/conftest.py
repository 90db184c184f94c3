"""A tiny model of random weights whose vocabulary spells any text, and a server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client, serving
from text_model import write_text_model

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model

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
