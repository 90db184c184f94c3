"""For each special part of an architecture a mutant, that the comparison with llama.cpp must catch."""

from collections.abc import Callable
from typing import Any

import pytest
from arch_files import LIMIT, TOKENS, decode_in
from peer_archs import ArchPeer, Script, nmse
from peer_programs import Programs
from programs import Newest

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


def long_factors(block: Any) -> None:
    block.attn.rope.rope_factors_short = block.attn.rope.rope_factors_long


MUTANTS: list[tuple[str, str, Mutate]] = [
    ("qwen3-dense", "no norms of queries and keys", on("attn", qk_norm=None)),
    ("qwen3-dense", "positions on neighbours", on("attn.rope", mode=0)),
    ("qwen3moe-moe", "shares as they are", on("ffn", renormalise=False)),
    ("qwen2moe-moe", "no gate of the shared expert", on("ffn", ffn_gate_inp_shexp=None)),
    ("qwen2moe-moe", "shares by their sum", on("ffn.experts", renormalise=True)),
    ("hunyuan-moe-moe", "norms before positions", on("attn", norm_last=False)),
    ("olmo2-dense", "no norm behind attention", on("", post_attention_norm=None)),
    ("exaone4-dense", "no norm behind the feed-forward network", on("", post_ffw_norm=None)),
    ("granite-moe", "another attention scale", on("attn", scale=0.1)),
    ("cohere2-dense", "a window of one less", on("attn", window=31)),
    ("cohere2-dense", "no positions", on("attn", rope=None)),
    ("dots1-moe", "no bias of probabilities", on("ffn.experts", exp_probs_b=None)),
    ("glm4-dense", "the other half is the gate", on("ffn", swapped=True)),
    ("phi3-dense", "factors of long contexts", each_block(long_factors)),
    ("starcoder2-dense", "another activation", on("ffn", activation=lambda x: x)),
]
"""(file, what is wrong, how)"""


@pytest.fixture(scope="module")
def peer(newest: Newest) -> ArchPeer:
    return ArchPeer(Programs(newest.bin, newest.source))


@pytest.mark.parametrize(("name", "wrong", "mutate"), MUTANTS, ids=[f"{name}: {wrong}" for name, wrong, _ in MUTANTS])
def test_is_caught(peer: ArchPeer, name: str, wrong: str, mutate: Mutate) -> None:
    path = peer.files()[name]
    model = Model.load(path)
    try:
        mutate(model.modules)
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=False)
        try:
            theirs = peer.rows(path, Script().decode(TOKENS))
            assert not nmse(theirs, decode_in(context, [TOKENS])) < 2 * LIMIT, wrong
        finally:
            context.close()
    finally:
        model.close()
