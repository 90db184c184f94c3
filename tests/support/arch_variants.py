"""The reference's tiny models with other numbers: what its own files leave at 0 or 1, such as groups of experts, or several
heads of latent attention.

Owns what each is changed to, and where the files are kept.
"""

import re
from pathlib import Path

import numpy as np
from edit_gguf import edit
from made_folders import made
from peer_archs import ArchPeer
from state_variants import STATE_VARIANTS
from variant import Shapes, Variant
from written_archs import written

from pyggml.gguf import GGUFFile

N_LAYER = 2
"""Of all files that are changed in every layer."""


def _latent(n_head: int, n_plain: int, n_rot: int, head_v: int, rank: int, n_embd: int) -> Shapes:
    """Of latent attention whose cache holds latent rows, behind queries of low rank 512."""
    return {
        "blk.*.attn_q_b.weight": (0.2, (n_head * (n_plain + n_rot), 512)),
        "blk.*.attn_k_b.weight": (0.2, (n_head, rank, n_plain)),
        "blk.*.attn_v_b.weight": (0.1, (n_head, head_v, rank)),
        "blk.*.attn_output.weight": (0.1, (n_embd, n_head * head_v)),
    }


def _drafting(il: int, n_embd: int, n_ff: int, n_expert: int) -> Shapes:
    """Of glm4moe's layer that predicts further tokens."""
    square, wide, narrow = (n_embd, n_embd), (n_ff, n_embd), (n_embd, n_ff)
    matrices = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), square),
        **dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), wide),
        **dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (n_expert, *wide)),
        **dict.fromkeys(("attn_norm", "post_attention_norm", "nextn.enorm", "nextn.hnorm"), (n_embd,)),
        "ffn_down_shexp": narrow,
        "ffn_down_exps": (n_expert, *narrow),
        "ffn_gate_inp": (n_expert, n_embd),
        "nextn.eh_proj": (n_embd, 2 * n_embd),
    }
    shapes = {f"blk.{il}.{name}.weight": (0.1, shape) for name, shape in matrices.items()}
    return {**shapes, f"blk.{il}.exp_probs_b.bias": (0.1, (n_expert,))}


LONGER = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}

YARN = {
    **LONGER,
    "attention.head_count": 4,
    "rope.scaling.yarn_log_multiplier": 0.0707,
    "attention.temperature_scale": 0.3,
    "attention.temperature_length": 16,
}

VARIANTS = STATE_VARIANTS | {
    "deepseek2-groups": Variant(
        "deepseek2-moe",
        {
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_used_count": 6,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        },
        {"blk.1.ffn_gate_inp.weight": (0.2, (64, 128)), "blk.1.exp_probs_b.bias": (0.2, (64,))},
    ),
    "deepseek2-yarn": Variant("deepseek2-moe", YARN, _latent(4, 128, 64, 128, 512, 128)),
    "deepseek32-sparse": Variant(
        "deepseek32-moe",
        {"attention.head_count": 4, "attention.indexer.top_k": 11},
        _latent(4, 128, 64, 128, 512, 128),
        factors={r"indexer\.(proj|attn)": 4.0},
    ),
    "glm-dsa-sparse": Variant(
        "glm-dsa-moe",
        {
            "attention.head_count": 4,
            "attention.indexer.top_k": 12,
            "attention.indexer.types": np.array([1, 0], np.uint32),
        },
        _latent(4, 128, 64, 128, 512, 128),
        factors={r"indexer\.(proj|attn)": 4.0},
    ),
    "dots3note-sparse": Variant(
        "dots3note-moe",
        {
            "attention.head_count": np.array([4, 2], np.uint32),
            "attention.indexer.top_k": 11,
            "attention.key_length_swa": 256 + 64,
            "attention.value_length_swa": 256,
            "attention.kv_lora_rank_swa": 256,
            "attention.key_length_mla_swa": 160,
            "attention.value_length_mla_swa": 96,
            "rope.freq_base_swa": 500.0,
        },
        {
            "blk.0.attn_q_b.weight": (0.2, (4 * 192, 512)),
            "blk.0.attn_k_b.weight": (0.2, (4, 512, 128)),
            "blk.0.attn_v_b.weight": (0.1, (4, 128, 512)),
            "blk.0.attn_output.weight": (0.1, (128, 4 * 128)),
            "blk.0.attn_gate.weight": (0.5, (4, 128)),
            "blk.1.attn_q_b.weight": (0.2, (2 * 160, 512)),
            "blk.1.attn_kv_a_mqa.weight": (0.1, (256 + 64, 128)),
            "blk.1.attn_kv_a_norm.weight": (0.1, (256,)),
            "blk.1.attn_k_b.weight": (0.2, (2, 256, 96)),
            "blk.1.attn_v_b.weight": (0.1, (2, 96, 256)),
            "blk.1.attn_output.weight": (0.1, (128, 2 * 96)),
            "blk.1.attn_gate.weight": (0.5, (2, 128)),
        },
        factors={r"indexer\.(proj|attn)": 4.0},
    ),
    "exaone-moe-groups": Variant(
        "exaone-moe-moe", {"expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_norm": True}
    ),
    "hy_v4-sparse": Variant(
        "hy_v4-moe",
        {
            "attention.head_count": 4,
            "attention.indexer.top_k": 11,
            "hyper_connection.epsilon": 0.01,
            "swiglu_clamp_exp": np.full(2, 0.1, np.float32),
        },
        {
            **_latent(4, 128, 64, 128, 512, 128),
            "blk.*.attn_gate.weight": (0.3, (4 * 128, 128)),
            "blk.*.attn_sinks.weight": (0.5, (4,)),
        },
        factors={r"indexer\.(proj|attn)": 4.0, r"ffn_(gate|up)_exps": 12.0},
    ),
    "minimax-m3-sparse": Variant(
        "minimax-m3-moe",
        {"attention.indexer.top_k": 5, "attention.indexer.local_blocks": 2},
        factors={r"indexer\.": 3.0},
    ),
    "mistral4-yarn": Variant("mistral4-moe", YARN, _latent(4, 128, 64, 128, 512, 128)),
    "deepseek2-lite": Variant(
        "deepseek2-moe",
        {"attention.head_count": 4, "attention.q_lora_rank": 0},
        {**_latent(4, 128, 64, 128, 512, 128), "blk.*.attn_q.weight": (0.4, (4 * 192, 128))},
        ("attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight"),
    ),
    "deepseek2-expanded": Variant(
        "deepseek2-moe",
        {
            "attention.head_count": 4,
            "attention.head_count_kv": 4,
            "attention.key_length": 192,
            "attention.value_length": 128,
            "attention.key_length_mla": 0,
            "attention.value_length_mla": 0,
        },
        {
            **_latent(4, 128, 64, 128, 512, 128),
            "blk.*.attn_kv_b.weight": (0.2, (4 * (128 + 128), 512)),
        },
        ("attn_k_b.weight", "attn_v_b.weight"),
    ),
    "minicpm3-plain": Variant(
        "minicpm3-dense",
        {"rope.dimension_count": 32},
        {
            "blk.*.attn_q_b.weight": (0.2, (2 * 128, 512)),
            "blk.*.attn_kv_a_mqa.weight": (0.1, (512 + 32, 256)),
            "blk.*.attn_kv_b.weight": (0.2, (2 * (96 + 128), 512)),
            "rope_factors_long.weight": (0.1, (16,)),
            "rope_factors_short.weight": (0.1, (16,)),
        },
    ),
    "mistral3-yarn": Variant(
        "mistral3-dense",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_log_multiplier": 0.5,
            "rope.scaling.yarn_beta_fast": 4.0,
            "attention.temperature_scale": 0.3,
        },
    ),
    "glm4moe-text": Variant(
        "glm4moe-moe",
        {"rope.dimension_sections": np.zeros(4, np.int32), "expert_weights_norm": True, "expert_weights_scale": 2.5},
    ),
    "glm4moe-drafts": Variant(
        "glm4moe-moe",
        {
            "block_count": 3,
            "nextn_predict_layers": 1,
            "swiglu_clamp_exp": np.zeros(3, np.float32),
            "swiglu_clamp_shexp": np.zeros(3, np.float32),
        },
        _drafting(2, n_embd=256, n_ff=384, n_expert=8),
    ),
    "bailingmoe2-groups": Variant(
        "bailingmoe2-moe",
        {
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_shared_count": 2,
            "expert_weights_norm": True,
            "rope.dimension_count": 64,
        },
        {
            "blk.1.ffn_gate_shexp.weight": (0.1, (384, 256)),
            "blk.1.ffn_up_shexp.weight": (0.1, (384, 256)),
            "blk.1.ffn_down_shexp.weight": (0.1, (256, 384)),
        },
    ),
    "nanbeige-rounds": Variant("nanbeige-dense", {"num_loops": 2}),
    "dbrx-clamp": Variant("dbrx-moe", {"attention.clamp_kqv": 0.5}),
    "grok-sparse": Variant(
        "grok-moe",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 256,
            "attn_logit_softcapping": 1.0,
            "rope.scaling.yarn_beta_fast": 4.0,
            "final_logit_softcapping": 0.5,
            "logit_scale": 0.5,
        },
        {"blk.*.post_ffw_norm.weight": (0.2, (256,))},
        ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "layer_output_norm.weight"),
        {r"attn_q\.weight": 6.0},
    ),
    "grovemoe-groups": Variant(
        "grovemoe-moe",
        {
            "expert_count": 12,
            "expert_used_count": 4,
            "experts_per_group": 2,
            "expert_group_scale": 0.5,
            "expert_chunk_feed_forward_length": 64,
        },
        {
            "blk.*.ffn_gate_inp.weight": (0.2, (12, 256)),
            "blk.*.ffn_gate_exps.weight": (0.3, (12, 384, 256)),
            "blk.*.ffn_up_exps.weight": (0.3, (12, 384, 256)),
            "blk.*.ffn_down_exps.weight": (0.3, (12, 256, 384)),
            "blk.*.ffn_gate_chexps.weight": (0.6, (6, 64, 256)),
            "blk.*.ffn_up_chexps.weight": (0.6, (6, 64, 256)),
            "blk.*.ffn_down_chexps.weight": (0.6, (6, 256, 64)),
        },
    ),
    "llama4-far": Variant("llama4-moe", factors={r"blk\.3\.attn_q\.weight": 30.0}),
    "granite_swa-experts": Variant(
        "granite_swa-dense",
        {
            "expert_count": 8,
            "expert_used_count": 3,
            "expert_shared_feed_forward_length": 96,
            "attention.scale": 0.1,
            "residual_scale": 0.5,
            "logit_scale": 2.0,
        },
        {
            "blk.*.ffn_gate_inp.weight": (0.2, (8, 256)),
            "blk.*.ffn_gate_exps.weight": (0.1, (8, 384, 256)),
            "blk.*.ffn_up_exps.weight": (0.1, (8, 384, 256)),
            "blk.*.ffn_down_exps.weight": (0.1, (8, 256, 384)),
            "blk.*.ffn_up_shexp.weight": (0.1, (192, 256)),
            "blk.*.ffn_down_shexp.weight": (0.1, (256, 96)),
        },
        tuple(f"ffn_{name}.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")),
    ),
    "mimo2-values": Variant(
        "mimo2-moe",
        {"attention.value_scale": 0.5, "rope.scaling.factor": 4.0, "rope.freq_base_swa": 500.0},
    ),
    "muse-glimmer-caps": Variant("muse-glimmer-dense", {"logit_scale": 3.0, "final_logit_softcapping": 0.5}),
    "mellum-yarn": Variant("mellum-moe", {**LONGER, "rope.freq_base_swa": 500.0}),
    "laguna-elements": Variant(
        "laguna-moe",
        {**LONGER, "rope.freq_base_swa": 500.0, "rope.dimension_count_swa": 40, "expert_weights_scale": 2.5},
        {"blk.*.attn_gate.weight": (0.3, (160, 160))},
    ),
    "plamo3-bases": Variant("plamo3-dense", {"rope.scaling.factor": 8.0, "rope.freq_base_swa": 500.0}),
    "maple-limits": Variant("maple-moe", factors={r"ffn_(gate|up)_exps": 40.0}),
    "cohere2moe-bases": Variant("cohere2moe-moe", {"rope.freq_base_swa": 500.0, "logit_scale": 0.5}),
    "olmo2-yarn": Variant("olmo2-dense", {**LONGER, "rope.freq_base_swa": 500.0}),
    "exaone-moe-bases": Variant(
        "exaone-moe-moe", {"rope.freq_base_swa": 500.0, "expert_weights_norm": True, "expert_weights_scale": 2.5}
    ),
    "k2-horizon-values": Variant(
        "k2-horizon-moe",
        {
            **LONGER,
            "attention.value_expert_count": 4,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        },
        {
            "blk.1.attn_v_gate.weight": (0.2, (4, 256)),
            "blk.1.attn_v_gate.bias": (0.2, (4,)),
            "blk.1.attn_v_exps.weight": (0.3, (4, 256, 256)),
        },
    ),
    "deepseek4-chosen": Variant(
        "deepseek4-moe", {"attention.indexer.top_k": 6, **LONGER}, factors={r"indexer_compressor_kv": 4.0}
    ),
    "glm5-next-chosen": Variant(
        "glm5-next-moe",
        {
            "attention.indexer.top_k": 8,
            "swiglu_clamp_exp": np.array([0.02, 0.03], np.float32),
            "kda.gate_lower_bound": float("-inf"),
        },
        factors={r"indexer.attn_k": 4.0},
    ),
    "qwen4exp-chosen": Variant(
        "qwen4exp-moe",
        {
            "attention.indexer.top_k": 8,
            "ple.layer_multipliers": np.array([3_000_000_000_000_019, 1_000_003, 77], np.uint64),
            "ple.head_vocab_sizes": np.array([101, 97, 89, 128], np.uint64),
            "ple.eos_token_id": 5,
        },
        factors={r"indexer.q_proj": 4.0, r"ple_(key|value)": 3.0, r"per_layer_token_embd": 10.0},
    ),
    "gpt-oss-fused": Variant(
        "gpt-oss-moe",
        tensors={"blk.*.attn_qkv.weight": (0.3, (768, 256))},
        without=("attn_q.weight", "attn_k.weight", "attn_v.weight"),
    ),
    "gpt-oss-yarn": Variant(
        "gpt-oss-moe",
        LONGER,
        factors={r"ffn_(gate|up)_exps": 40.0},
    ),
    "gemma2-caps": Variant("gemma2-dense", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5}),
    "gemma3-bases": Variant(
        "gemma3-dense",
        {
            "rope.scaling.factor": 8.0,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 500.0,
            "final_logit_softcapping": 0.5,
        },
    ),
}


def variants(peer: ArchPeer) -> dict[str, Path]:
    """By name; written when they are new."""
    root = peer.folder.parent
    made_of = f"{peer.folder.name} {VARIANTS} {Path(__file__).read_text(encoding='utf-8')}"

    def make(folder: Path) -> None:
        for name, variant in VARIANTS.items():
            _write(peer.files()[variant.base], folder / f"{name}.gguf", variant)

    folder = made(root, made_of, make, "variants-")
    return {name: folder / f"{name}.gguf" for name in VARIANTS}


def _write(source: Path, target: Path, variant: Variant) -> None:
    arch = variant.base.rsplit("-", 1)[0]
    rng = np.random.default_rng(5)
    without = {
        one for name in variant.without
        for one in ([name] if name.startswith("blk.") else [f"blk.{il}.{name}" for il in range(N_LAYER)])
    }  # fmt: skip
    tensors = {}
    for name, (deviation, shape, *mean) in variant.tensors.items():
        for one in dict.fromkeys(name.replace("*", str(il)) for il in range(N_LAYER)):
            values = rng.normal(mean[0] if mean else float(len(shape) == 1), deviation, shape)
            if one not in without:
                tensors[one] = values.astype(np.float32)
    with GGUFFile.open(source) as file:
        for name, info in file.tensors.items():
            for factor in (factor for pattern, factor in variant.factors.items() if re.search(pattern, name)):
                ne = info.ne[: max(i + 1 for i in range(4) if info.ne[i] > 1 or not i)]
                tensors[name] = factor * info.data.view(np.float32).reshape(ne[::-1])
    keys = {f"{arch}.{key}": value for key, value in variant.keys.items()}
    edit(source, target, leave_out=without.__contains__, replace=tensors, metadata=keys)


def all_files(peer: ArchPeer) -> dict[str, Path]:
    """The reference's, those that we write for it, and these."""
    return {**peer.files(), **written(peer.folder.parent), **variants(peer)}
