"""The reference's tiny models with states, with other numbers: groups of heads that differ from heads, experts, older files.

Owns what each is changed to; knows nothing of how they are computed.
"""

import numpy as np
from variant import Shapes, Variant

N_EMBD, N_FF = 256, 384
FALLS = -0.5
"""The mean of decays that are to be negative."""


def _delta_net(n_head: int, n_group: int, head: int = 128) -> Shapes:
    """Of layer 0."""
    n, n_qkv = n_head * head, (n_head + 2 * n_group) * head
    return {
        "blk.0.attn_qkv.weight": (0.1, (n_qkv, N_EMBD)),
        "blk.0.attn_gate.weight": (0.1, (n, N_EMBD)),
        "blk.0.ssm_conv1d.weight": (0.3, (n_qkv, 4)),
        "blk.0.ssm_dt.bias": (0.3, (n_head,)),
        "blk.0.ssm_a": (0.3, (n_head,), FALLS),
        "blk.0.ssm_out.weight": (0.1, (N_EMBD, n)),
    }


def _experts(il: int, n_expert: int = 8) -> Shapes:
    return {
        f"blk.{il}.ffn_gate_inp.weight": (0.2, (n_expert, N_EMBD)),
        f"blk.{il}.ffn_gate_exps.weight": (0.1, (n_expert, N_FF, N_EMBD)),
        f"blk.{il}.ffn_up_exps.weight": (0.1, (n_expert, N_FF, N_EMBD)),
        f"blk.{il}.ffn_down_exps.weight": (0.1, (n_expert, N_EMBD, N_FF)),
    }


def _kimi(n_embd: int, n_head: int, head: int = 128) -> Shapes:
    """Of layer 1."""
    n = n_head * head
    return {
        **{f"blk.1.attn_{which}.weight": (0.1, (n, n_embd)) for which in "qkv"},
        **{f"blk.1.ssm_conv1d_{which}.weight": (0.3, (n, 1, 4)) for which in "qkv"},
        "blk.1.ssm_dt.bias": (0.3, (n,)),
        "blk.1.ssm_beta.weight": (0.1, (n_head, n_embd)),
        "blk.*.attn_output.weight": (0.1, (n_embd, n)),
    }


HEADS = {"ssm.time_step_rank": 4, "ssm.group_count": 2, "ssm.inner_size": 512}
DENSE = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")

STATE_VARIANTS = {
    "qwen35-heads": Variant(
        "qwen35-dense",
        HEADS,
        {
            **_delta_net(4, 2),
            "blk.0.ssm_alpha.weight": (0.1, (4, N_EMBD)),
            "blk.0.ssm_beta.weight": (0.1, (4, N_EMBD)),
        },
    ),
    "qwen3next-heads": Variant(
        "qwen3next-moe",
        HEADS,
        {**_delta_net(4, 2), "blk.0.ssm_ba.weight": (0.1, (8, N_EMBD))},
        ("blk.0.ssm_in.weight",),
    ),
    "qwen3next-older": Variant(
        "qwen3next-moe",
        HEADS,
        {
            **_delta_net(4, 2),
            "blk.0.ssm_ba.weight": (0.1, (8, N_EMBD)),
            "blk.0.ssm_in.weight": (0.1, (1024 + 512, N_EMBD)),
        },
        ("blk.0.attn_qkv.weight", "blk.0.attn_gate.weight"),
    ),
    "mamba-normed": Variant("mamba-dense", {"ssm.dt_b_c_rms": True}),
    "mamba2-heads": Variant(
        "mamba2-dense",
        HEADS,
        {
            "blk.*.ssm_in.weight": (0.1, (2 * 512 + 2 * 2 * 128 + 4, N_EMBD)),
            "blk.*.ssm_dt.bias": (0.3, (4,)),
            "blk.*.ssm_a": (0.3, (4, 1), FALLS),
            "blk.*.ssm_d": (0.3, (4, 1)),
        },
    ),
    "jamba-experts": Variant(
        "jamba-dense",
        {"expert_count": 8, "expert_used_count": 3},
        _experts(1),
        tuple(f"blk.1.{name}" for name in DENSE),
    ),
    "granitehybrid-experts": Variant(
        "granitehybrid-dense",
        {"expert_count": 8, "expert_used_count": 3, "expert_shared_feed_forward_length": 96},
        {
            **_experts(0),
            **_experts(1),
            "blk.*.ffn_gate_shexp.weight": (0.1, (96, N_EMBD)),
            "blk.*.ffn_up_shexp.weight": (0.1, (96, N_EMBD)),
            "blk.*.ffn_down_shexp.weight": (0.1, (N_EMBD, 96)),
        },
        (*DENSE, *(name.replace("weight", "bias") for name in DENSE)),
    ),
    "nemotron_h_moe-experts": Variant(
        "nemotron_h_moe-dense",
        {
            "expert_count": 8,
            "expert_used_count": 3,
            "expert_feed_forward_length": 96,
            "expert_shared_feed_forward_length": 192,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "moe_latent_size": 64,
        },
        {
            "blk.2.ffn_gate_inp.weight": (0.2, (8, N_EMBD)),
            "blk.2.exp_probs_b.bias": (0.3, (8,), 0.0),
            "blk.2.ffn_latent_down.weight": (0.1, (64, N_EMBD)),
            "blk.2.ffn_latent_up.weight": (0.2, (N_EMBD, 64)),
            "blk.2.ffn_up_exps.weight": (0.2, (8, 96, 64)),
            "blk.2.ffn_down_exps.weight": (0.2, (8, 64, 96)),
            "blk.2.ffn_up_shexp.weight": (0.1, (192, N_EMBD)),
            "blk.2.ffn_down_shexp.weight": (0.1, (N_EMBD, 192)),
        },
        tuple(f"blk.2.ffn_{which}.{part}" for which in ("up", "down") for part in ("weight", "bias")),
    ),
    "minimax-01-linear": Variant(
        "minimax-01-moe",
        {"attention.recurrent_layers": np.array([0, 1], np.uint32)},
        {
            "blk.1.attn_qkv.weight": (0.1, (3 * N_EMBD, N_EMBD)),
            "blk.1.attn_gate.weight": (0.1, (N_EMBD, N_EMBD)),
            "blk.1.attn_norm_2.weight": (0.1, (N_EMBD,)),
            **{f"blk.0.attn_{which}.weight": (0.3, (N_EMBD, N_EMBD)) for which in "qkv"},
        },
        (
            *(f"blk.1.attn_{which}.{part}" for which in "qkv" for part in ("weight", "bias")),
            *(f"blk.0.attn_{which}.weight" for which in ("qkv", "gate", "norm_2")),
        ),
    ),
    "kimi-linear-heads": Variant(
        "kimi-linear-moe",
        {"attention.head_count": np.array([2, 2], np.uint32)},
        {
            **_kimi(128, 2),
            "blk.0.attn_q.weight": (0.3, (2 * 192, 128)),
            "blk.0.attn_k_b.weight": (0.2, (2, 512, 128)),
            "blk.0.attn_v_b.weight": (0.1, (2, 128, 512)),
            "blk.1.ssm_a": (0.3, (2, 1), FALLS),
            "blk.1.ssm_f_b.weight": (0.1, (256, 128)),
            "blk.1.ssm_g_b.weight": (0.1, (256, 128)),
        },
    ),
    "bailingmoe3-heads": Variant(
        "bailingmoe3-moe",
        {"attention.head_count": np.array([2, 2], np.uint32)},
        {
            **_kimi(128, 2),
            "blk.0.attn_q_b.weight": (0.2, (2 * 192, 512)),
            "blk.0.attn_k_b.weight": (0.2, (2, 512, 128)),
            "blk.0.attn_v_b.weight": (0.1, (2, 128, 512)),
            "blk.0.attn_gate.weight": (0.3, (2, 128)),
            "blk.1.ssm_a": (0.3, (2, 1)),
            "blk.1.ssm_f_a.weight": (0.1, (256, 128)),
            "blk.1.ssm_g_a.weight": (0.1, (256, 128)),
        },
    ),
    "kimi-k3-sums": Variant(
        "kimi-k3-moe",
        {"attention.head_count": np.array([2, 2], np.uint32), "attn_res.block_size": 1},
        {
            **_kimi(128, 2),
            "blk.0.attn_q_b.weight": (0.2, (2 * 192, 512)),
            "blk.0.attn_k_b.weight": (0.2, (2, 512, 128)),
            "blk.0.attn_v_b.weight": (0.1, (2, 128, 512)),
            "blk.0.attn_gate.weight": (0.3, (256, 128)),
            "blk.1.ssm_a": (0.3, (2,), FALLS),
            "blk.1.ssm_f_b.weight": (0.1, (256, 128)),
            "blk.1.ssm_g.weight": (0.1, (256, 128)),
        },
    ),
}
