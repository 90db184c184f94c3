"""Keys and shapes of tiny models of RWKV and its kin, of which the reference writes no files."""

from typing import Any

from written import Shapes, Written, gated

N_EMBD, N_FF, HEAD, N_LAYER, N_VOCAB = 256, 192, 64, 5, 128  # the reference computes heads of 64 elements alone
LOW = 16


def _frame(arch: str, keys: dict[str, Any], norms: tuple[str, ...], biased: bool) -> Written:
    shapes: Shapes = {"token_embd.weight": (N_VOCAB, N_EMBD), "output.weight": (N_VOCAB, N_EMBD)}
    names = ["output_norm", *(["token_embd_norm"] if biased else [])]
    names += [f"blk.{il}.{norm}" for il in range(N_LAYER) for norm in norms]
    for name in names:
        shapes[f"{name}.weight"] = (N_EMBD,)
        if biased:
            shapes[f"{name}.bias"] = (N_EMBD,)
    keys = {
        "embedding_length": N_EMBD, "block_count": N_LAYER, "feed_forward_length": N_FF, "wkv.head_size": HEAD,
        "attention.head_count": 0, "attention.layer_norm_epsilon": 1e-5, **keys,
    }  # fmt: skip
    return Written(arch, keys, shapes, {})


def _mix6(blk: str, n_kv: int, *, first: bool) -> Shapes:
    shapes: Shapes = {
        f"{blk}time_mix_w1.weight": (5 * LOW, N_EMBD),
        f"{blk}time_mix_w2.weight": (5, N_EMBD, LOW),
        f"{blk}time_mix_lerp_x.weight": (N_EMBD,),
        f"{blk}time_mix_decay.weight": (N_EMBD,),
        f"{blk}time_mix_decay_w1.weight": (LOW, N_EMBD),
        f"{blk}time_mix_decay_w2.weight": (N_EMBD, LOW),
        f"{blk}time_mix_key.weight": (n_kv, N_EMBD),
        f"{blk}time_mix_value.weight": (n_kv, N_EMBD),
        f"{blk}time_mix_receptance.weight": (N_EMBD, N_EMBD),
        f"{blk}time_mix_gate.weight": (N_EMBD, N_EMBD),
        f"{blk}time_mix_output.weight": (N_EMBD, N_EMBD),
    }
    if first:
        shapes[f"{blk}time_mix_first.weight"] = (N_EMBD // HEAD, HEAD)
        shapes[f"{blk}time_mix_ln.weight"] = shapes[f"{blk}time_mix_ln.bias"] = (N_EMBD,)
    return shapes


def _mix7(il: int, *, gated: bool, normed: bool) -> Shapes:
    blk = f"blk.{il}."
    shapes: Shapes = {f"{blk}time_mix_lerp_fused.weight": (6 if gated else 5, 1, 1, N_EMBD)}
    ranks = {"w": LOW, "a": 24, "v": 8 if il else 24}
    for name, rank in ranks.items():
        shapes[f"{blk}time_mix_{name}0.weight"] = (N_EMBD,)
        shapes[f"{blk}time_mix_{name}1.weight"] = (rank, N_EMBD)
        shapes[f"{blk}time_mix_{name}2.weight"] = (N_EMBD, rank)
    if gated:
        shapes[f"{blk}time_mix_g1.weight"], shapes[f"{blk}time_mix_g2.weight"] = (32, N_EMBD), (N_EMBD, 32)
    for name in ("k_k", "k_a", "r_k"):
        shapes[f"{blk}time_mix_{name}.weight"] = (N_EMBD,)
    for name in ("key", "value", "receptance", "output"):
        shapes[f"{blk}time_mix_{name}.weight"] = (N_EMBD, N_EMBD)
    if normed:
        shapes[f"{blk}time_mix_ln.weight"] = shapes[f"{blk}time_mix_ln.bias"] = (N_EMBD,)
    return shapes


def rwkv6(*, fused: bool = False) -> Written:
    """`fused`: shares are one tensor, not five."""
    keys = {"time_mix_extra_dim": LOW, "time_decay_extra_dim": LOW, "rescale_every_n_layers": 2}
    made = _frame("rwkv6", keys, ("attn_norm", "attn_norm_2"), True)
    for il in range(N_LAYER):
        blk = f"blk.{il}."
        made.shapes |= _mix6(blk, N_EMBD, first=True)
        if fused:
            made.shapes[f"{blk}time_mix_lerp_fused.weight"] = (5, 1, 1, N_EMBD)
        else:
            made.shapes |= {f"{blk}time_mix_lerp_{which}.weight": (N_EMBD,) for which in "wkvrg"}
        made.shapes |= {f"{blk}channel_mix_lerp_{which}.weight": (N_EMBD,) for which in "kr"}
        made.shapes[f"{blk}channel_mix_key.weight"] = (N_FF, N_EMBD)
        made.shapes[f"{blk}channel_mix_value.weight"] = (N_EMBD, N_FF)
        made.shapes[f"{blk}channel_mix_receptance.weight"] = (N_EMBD, N_EMBD)
    return made


def rwkv6_fused() -> Written:
    return rwkv6(fused=True)


def rwkv6qwen2() -> Written:
    """Two heads of keys for four."""
    keys = {
        "time_mix_extra_dim": LOW, "time_decay_extra_dim": LOW, "token_shift_count": 1,
        "attention.head_count": N_EMBD // HEAD, "attention.head_count_kv": 2,
    }  # fmt: skip
    made = _frame("rwkv6qwen2", keys, ("attn_norm", "ffn_norm"), False)
    for il in range(N_LAYER):
        blk, n_kv = f"blk.{il}.", 2 * HEAD
        made.shapes |= _mix6(blk, n_kv, first=False)
        made.shapes[f"{blk}time_mix_lerp_fused.weight"] = (5, 1, 1, N_EMBD)
        made.shapes |= {f"{blk}time_mix_{name}.bias": (n_kv,) for name in ("key", "value")}
        made.shapes[f"{blk}time_mix_receptance.bias"] = (N_EMBD,)
        made.shapes |= gated(il, N_EMBD, N_FF)
    return made


RANKS = {
    "attention.decay_lora_rank": LOW,
    "attention.iclr_lora_rank": 24,
    "attention.value_residual_mix_lora_rank": 8,
}


def rwkv7() -> Written:
    made = _frame("rwkv7", {**RANKS, "attention.gate_lora_rank": 32}, ("attn_norm", "attn_norm_2"), True)
    for il in range(N_LAYER):
        blk = f"blk.{il}."
        made.shapes |= _mix7(il, gated=True, normed=True)
        made.shapes[f"{blk}channel_mix_lerp_k.weight"] = (N_EMBD,)
        made.shapes[f"{blk}channel_mix_key.weight"] = (N_FF, N_EMBD)
        made.shapes[f"{blk}channel_mix_value.weight"] = (N_EMBD, N_FF)
    return made


def arwkv7(*, with_gate: bool = False) -> Written:
    """`with_gate`: as RWKV 7 itself, with gates and norms."""
    keys = {**RANKS, "token_shift_count": 1, **({"attention.gate_lora_rank": 32} if with_gate else {})}
    made = _frame("arwkv7", keys, ("attn_norm", "ffn_norm"), False)
    for il in range(N_LAYER):
        made.shapes |= _mix7(il, gated=with_gate, normed=with_gate)
        made.shapes |= gated(il, N_EMBD, N_FF)
    return made


def arwkv7_gated() -> Written:
    return arwkv7(with_gate=True)


RWKV = {
    "rwkv6-five": rwkv6,
    "rwkv6-fused": rwkv6_fused,
    "rwkv6qwen2-shared": rwkv6qwen2,
    "rwkv7-gated": rwkv7,
    "arwkv7-plain": arwkv7,
    "arwkv7-gated": arwkv7_gated,
}
"""By name."""
