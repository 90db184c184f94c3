"""Changes that make a model's graph a wrong one, and how far its logits are then from llama.cpp's."""

from collections.abc import Callable
from typing import Any

from arch_files import TOKENS, decode_in
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml.model.layers import CausalLM
from pyggml.model.model import Model
from pyggml.runtime.context import Context

Mutate = Callable[[Any], None]
"""Changes the modules of a model that is loaded, before its context is made."""


def each_block(change: Callable[[Any], None]) -> Mutate:
    def mutate(modules: CausalLM) -> None:
        for block in modules.blk:
            change(block)

    return mutate


def on(path: str, **values: Any) -> Mutate:
    """Other values for attributes of the module at `path` in each block ("attn.rope"), where it is there."""

    def change(block: Any) -> None:
        for name in filter(None, path.split(".")):
            block = getattr(block, name, None)
        if block is not None:
            for name, value in values.items():
                assert hasattr(block, name), (path, name)
                setattr(block, name, value)

    return each_block(change)


def of_model(**values: Any) -> Mutate:
    def mutate(modules: CausalLM) -> None:
        for name, value in values.items():
            assert hasattr(modules, name), name
            setattr(modules, name, value)

    return mutate


def difference(peer: ArchPeer, name: str, mutate: Mutate) -> float:
    """NMSE of the file's logits when it is loaded and changed."""
    path = all_files(peer)[name]
    model = Model.load(path)
    try:
        mutate(model.modules)
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=False)
        try:
            return nmse(peer.rows(path, Script().decode(TOKENS)), decode_in(context, [TOKENS]))
        finally:
            context.close()
    finally:
        model.close()
