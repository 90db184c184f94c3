"""Which tiny models of the reference there are (peer_archs.py), and what ours say to the same tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_archs import ArchPeer, Script, nmse

from pyggml.model import architectures
from pyggml.model.model import Model
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context

NAMES = [
    "afmoe-moe", "arcee-dense", "arctic-moe", "baichuan-dense", "bailingmoe-moe", "bailingmoe2-moe",
    "bailingmoe3-moe", "bloom-dense", "chatglm-dense", "codeshell-dense", "cogvlm-dense", "cohere2-dense",
    "cohere2moe-moe", "command-r-dense", "dbrx-moe", "deci-dense", "deepseek-moe", "deepseek2-moe",
    "deepseek32-moe", "deepseek4-moe", "dots1-moe", "dots3note-moe", "dream-dense", "ernie4_5-moe-moe",
    "ernie4_5-moe", "exaone-dense", "exaone-moe-moe", "exaone4-dense", "falcon-dense", "falcon-h1-dense",
    "gemma-dense", "gemma2-dense", "gemma3-dense", "glm-dsa-moe", "glm4-dense", "glm4moe-moe", "glm5-next-moe",
    "gpt-oss-moe", "gpt2-dense", "gptneox-dense", "granite-dense", "granite-moe", "granite_swa-dense",
    "granitehybrid-dense", "granitemoe-dense", "granitemoe-moe", "grok-moe", "grovemoe-moe", "hrm_text-dense",
    "hunyuan-dense-dense", "hunyuan-moe-moe", "hunyuan_vl-dense", "hy_v3-moe", "hy_v4-moe", "internlm2-dense",
    "jais-dense", "jais2-dense", "jamba-dense", "k2-horizon-dense", "k2-horizon-moe", "kimi-k3-moe",
    "kimi-linear-moe", "laguna-moe", "lfm2-dense", "lfm2moe-moe", "llada-dense", "llada-moe-moe", "llama-dense",
    "llama-moe", "llama4-moe", "maincoder-dense", "mamba-dense", "mamba2-dense", "maple-moe", "mellum-moe",
    "mimo2-moe", "minicpm-dense", "minicpm-moe", "minicpm3-dense", "minimax-01-moe", "minimax-m2-moe",
    "minimax-m3-moe", "mistral3-dense", "mistral3-moe", "mistral4-moe", "mpt-dense", "muse-glimmer-dense",
    "nanbeige-dense", "nemotron-dense", "nemotron_h-dense", "nemotron_h_moe-dense", "olmo-dense", "olmo2-dense",
    "olmoe-moe", "openelm-dense", "orion-dense", "paddleocr-moe", "pangu-embedded-dense", "phi2-dense",
    "phi3-dense", "phimoe-moe", "plamo-dense", "plamo2-dense", "plamo3-dense", "pockettts-dense", "qwen-dense",
    "qwen2-dense", "qwen2moe-moe", "qwen2vl-dense", "qwen3-dense", "qwen35-dense", "qwen35moe-moe", "qwen3moe-moe",
    "qwen3next-moe", "qwen3tts-dense", "qwen3vl-dense", "qwen3vlmoe-moe", "qwen4exp-moe", "refact-dense",
    "refact-moe", "rnd1-moe", "seed_oss-dense", "smallthinker-moe", "smollm3-dense", "spark2_5-dense",
    "stablelm-dense", "starcoder-dense", "starcoder2-dense", "talkie-dense", "xverse-dense",
]  # fmt: skip
"""All files that the reference writes, by architecture and whether it has experts."""

DENOISERS = ("dream-dense", "llada-dense", "llada-moe-moe", "rnd1-moe")
"""Those that see all tokens and keep none: tests/model/test_denoisers.py compares them."""

NOT_THERE: dict[str, str] = {
    "refact-moe": "llama.cpp reads its experts and computes none of them",
}
"""Files of the reference that we do not compute yet, and why."""

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 128, 70)]
"""More than the files' windows hold, which are 32 tokens."""

LIMIT = 5e-7
"""Of the NMSE between us and the peer. Its own fused and unfused attention differ by up to 2e-7."""


LIMITS = {"hrm_text-dense": 1e-5}
"""Where it goes round and round the peer's own fused and unfused attention differ by 3e-6."""


def architecture(name: str) -> str:
    return name.rsplit("-", 1)[0]


def known(name: str) -> bool:
    """Whether a file of architectures says how to compute it."""
    return architecture(name).replace("_", "-") in architectures()


def decode_in(context: Context, pieces: Sequence[Sequence[int]]) -> np.ndarray:
    """All rows of logits, computed piece by piece."""
    return np.concatenate([context.decode(list(piece), logits="all") for piece in pieces])


def pieces_of(tokens: Sequence[int]) -> list[Sequence[int]]:
    """A start, a long piece over the window's edge, single tokens."""
    return [tokens[:5], tokens[5:48], *([t] for t in tokens[48:])]


def ours(path: Path, tokens: Sequence[int] = TOKENS, **options: Any) -> np.ndarray:
    """The logits of all tokens, in one micro-batch."""
    model = Model.load(path)
    context = Context(model, n_ctx=256, n_ubatch=256, **options)
    try:
        return context.decode(tokens, logits="all")
    finally:
        context.close(), model.close()


def differences(peer: ArchPeer, path: Path) -> dict[str, float]:
    """NMSE by what was compared: whole prompts and pieces, fused and unfused, with the peer; three sequences at once with
    each alone."""
    model, found = Model.load(path), {}
    try:
        for flash in (True, False):
            theirs = peer.rows(path, Script(flash=flash).decode(TOKENS))
            context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=flash)
            kind = "fused" if flash else "unfused"
            found[kind] = nmse(theirs, context.decode(TOKENS, logits="all"))
            context.clear()
            found[f"{kind}, in pieces"] = nmse(theirs, decode_in(context, pieces_of(TOKENS)))
            context.close()
        found["three sequences"] = together(model)
    finally:
        model.close()
    return found


def together(model: Model) -> float:
    """Of three sequences that are computed at once, and of each alone: prompts of different lengths, then a token each, then
    three each."""
    context, alone = Context(model, n_ctx=768, n_seq_max=3), Context(model, n_ctx=256)
    rounds = [
        [TOKENS[:5], TOKENS[5:6], TOKENS[6:50]],
        [[t] for t in TOKENS[50:53]],
        [TOKENS[i : i + 3] for i in (53, 56, 59)],
    ]
    ends, rows = [0, 0, 0], []
    for round_ in rounds:
        rows.append(context.decode(Batch.join([Batch.of(t, ends[seq], seq) for seq, t in enumerate(round_)])))
        ends = [end + len(t) for end, t in zip(ends, round_, strict=True)]
    each = []
    for seq in range(3):
        alone.clear()
        for round_, found in zip(rounds, rows, strict=True):
            each.append(nmse(alone.decode(round_[seq])[-1], found[seq]))
    context.close(), alone.close()
    return max(each)
