"""Attention to chosen blocks of tokens, which llama.cpp has where attention is fused: what changes the choice is noticed."""

from collections.abc import Callable
from typing import Any

import pytest
from arch_files import LIMIT, TOKENS, decode_in, pieces_of
from arch_variants import all_files
from peer_archs import ArchPeer, Script, nmse

from pyggml.model.model import Model
from pyggml.runtime.context import Context

NAME = "minimax-m3-sparse"


def difference(arch_peer: ArchPeer, change: Callable[[Any], None]) -> float:
    """NMSE, of single tokens too, when the attention of layers that choose is changed."""
    path = all_files(arch_peer)[NAME]
    model = Model.load(path)
    try:
        for block in model.modules.blk:
            if hasattr(block.attn, "indexer"):
                change(block.attn)
        context = Context(model, n_ctx=256, n_ubatch=256)
        try:
            return nmse(arch_peer.rows(path, Script(flash=True).decode(TOKENS)), decode_in(context, pieces_of(TOKENS)))
        finally:
            context.close()
    finally:
        model.close()


def as_it_is(attn: Any) -> None:
    pass


def one_block_more(attn: Any) -> None:
    attn.indexer.top_k += 1


def one_local_block_less(attn: Any) -> None:
    attn.indexer.local -= 1


def smaller_blocks(attn: Any) -> None:
    attn.indexer.block //= 2


def all_tokens(attn: Any) -> None:
    attn.indexer.mask = lambda g, x, keys, mask, n_head: mask


def positions_on_neighbours(attn: Any) -> None:
    attn.indexer.rope.mode = 0


def test_says_what_the_peer_says(arch_peer: ArchPeer) -> None:
    assert difference(arch_peer, as_it_is) < LIMIT


@pytest.mark.parametrize(
    "wrong", [one_block_more, one_local_block_less, smaller_blocks, all_tokens, positions_on_neighbours]
)
def test_what_is_wrong_is_caught(arch_peer: ArchPeer, wrong: Callable[[Any], None]) -> None:
    assert difference(arch_peer, wrong) > 2 * LIMIT
