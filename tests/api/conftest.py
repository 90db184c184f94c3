"""What tests of `Llama` share: a small model on the reference backend, for which no kernels are needed.

A file says with MODEL how its model differs (arguments of write_text_model), and with LLAMA how it is opened.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from text_model import write_text_model

from pyggml import Llama
from pyggml.backend.reference import ReferenceDevice


@pytest.fixture(scope="module", autouse=True)
def reference() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyggml.backend.cpu.CPUDevice", ReferenceDevice)
        yield


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's file."""
    return write_text_model(tmp_path_factory.mktemp("llama") / "text.gguf", **getattr(request.module, "MODEL", {}))


@pytest.fixture(scope="module")
def open_llama(request: pytest.FixtureRequest, path: Path) -> Iterator[Callable[[], Llama]]:
    """Opens it anew; closed at the end of the file."""
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = getattr(request.module, "LLAMA", {"n_ctx": 64})
        yield lambda: stack.enter_context(Llama(path, verbose=False, **options))


@pytest.fixture(scope="module")
def llm(open_llama: Callable[[], Llama]) -> Llama:
    """One for all tests of a file."""
    return open_llama()
