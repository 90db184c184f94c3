"""A token costs the same number of Python calls for a model of 1 layer and of 30, on the CPU backend."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_llama

from pyggml.model.model import Model
from pyggml.runtime.context import Context


def counted(work: Callable[[], object]) -> int:
    """Calls of Python and of C functions."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def calls(path: Path, n_tokens: int, **options: Any) -> tuple[int, int]:
    """Calls while a batch is decoded whose graph was there already, and when it was not."""
    model = Model.load(path)
    tokens = [3] * n_tokens
    compiling, context = (Context(model, n_ctx=256, n_threads=2, **options) for _ in range(2))
    compiling.decode(tokens)
    first = counted(lambda: context.decode(tokens))
    context.decode(tokens)
    again = counted(lambda: context.decode(tokens))
    compiling.close()
    context.close()
    model.close()
    return again, first


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_as_many_calls_for_30_layers_as_for_1(tmp_path: Path, n_tokens: int, flash_attn: bool) -> None:
    few, many = (
        calls(write_llama(tmp_path / f"{n}.gguf", n_layer=n), n_tokens, flash_attn=flash_attn) for n in (1, 30)
    )
    assert few[0] == many[0] < 500
    assert many[1] > few[1] + 1000, "building the graph does depend on the layers: the count can tell"
