"""Two tiny models with the same tokens, one of which makes guesses for the other."""

from collections.abc import Iterator

import pytest
from tiny_model import write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.model.model import Model


@pytest.fixture(scope="module")
def draft_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Model]]:
    folder = tmp_path_factory.mktemp("models")
    made = [Model.load(write_llama(folder / f"{i}.gguf", seed=i), cpu=ReferenceDevice()) for i in (1, 2)]
    yield made[0], made[1]
    for model in made:
        model.close()
