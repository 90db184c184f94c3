"""Tiny random models of architectures that the reference's test-llama-archs writes no file of.

Owns their keys and shapes, which follow the architecture's load_arch_hparams and load_arch_tensors; must not know how we
compute them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from made_folders import made
from written import Shapes, Written, gated
from written_rwkv import RWKV

N_VOCAB, N_CTX, WINDOW = 128, 256, 32
SOURCES = (Path(__file__).name, "written.py", "written_rwkv.py")


def _gemma4(
    n_layer: int, keys: dict[str, Any], n_ff: list[int], *, k_as_v: bool, shared: int, per_layer: int
) -> Written:
    """Heads of 64 elements in layers with a window, of 128 in every fifth, which has none."""
    n_embd, n_head = 128, 2
    windows = [(il + 1) % 5 > 0 for il in range(n_layer)]
    n_kv = [2 if window else 1 for window in windows]
    keys = {
        "embedding_length": n_embd, "block_count": n_layer, "feed_forward_length": n_ff, "attention.head_count": n_head,
        "attention.head_count_kv": n_kv, "attention.key_length": 128, "attention.value_length": 128,
        "attention.key_length_swa": 64, "attention.value_length_swa": 64, "rope.dimension_count": 128,
        "rope.dimension_count_swa": 64, "rope.freq_base": 1e6, "rope.freq_base_swa": 1000.0,
        "attention.sliding_window_pattern": windows, "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": per_layer, "final_logit_softcapping": 2.0, **keys,
    }  # fmt: skip
    shapes: Shapes = {
        "token_embd.weight": (N_VOCAB, n_embd),
        "output_norm.weight": (n_embd,),
        "rope_freqs.weight": (64,),
    }
    if per_layer:
        shapes |= {
            "per_layer_token_embd.weight": (N_VOCAB, per_layer * n_layer),
            "per_layer_model_proj.weight": (per_layer * n_layer, n_embd),
            "per_layer_proj_norm.weight": (per_layer,),
        }
    for il, window in enumerate(windows):
        head, blk = 64 if window else 128, f"blk.{il}."
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            shapes[f"{blk}{name}.weight"] = (n_embd,)
        shapes[f"{blk}attn_q.weight"] = (head * n_head, n_embd)
        shapes[f"{blk}attn_output.weight"] = (n_embd, head * n_head)
        shapes[f"{blk}attn_k.weight"] = (head * n_kv[il], n_embd)
        if window or not k_as_v:
            shapes[f"{blk}attn_v.weight"] = (head * n_kv[il], n_embd)
        shapes[f"{blk}attn_q_norm.weight"] = shapes[f"{blk}attn_k_norm.weight"] = (head,)
        shapes[f"{blk}layer_output_scale.weight"] = (1,)
        shapes |= gated(il, n_embd, n_ff[il])
        if per_layer:
            shapes[f"{blk}inp_gate.weight"] = (per_layer, n_embd)
            shapes[f"{blk}proj.weight"] = (n_embd, per_layer)
            shapes[f"{blk}post_norm.weight"] = (n_embd,)
    return Written("gemma4", keys, shapes, {"rope_freqs.weight": np.array([1.0] * 16 + [1e30] * 48)})


def gemma4_small() -> Written:
    """As E2B and E4B: embeddings for each layer; the last five layers have no keys of their own, and a larger network."""
    return _gemma4(10, {}, [96] * 5 + [160] * 5, k_as_v=False, shared=5, per_layer=32)


def gemma4_experts() -> Written:
    """As 26B: experts beside a dense network; in every fifth layer keys are values too."""
    n_layer, n_embd, n_expert, n_ff = 6, 128, 8, 64
    keys = {"expert_count": n_expert, "expert_used_count": 3, "expert_feed_forward_length": n_ff}
    made = _gemma4(n_layer, keys, [96] * n_layer, k_as_v=True, shared=0, per_layer=0)
    for il in range(n_layer):
        blk = f"blk.{il}."
        for name in ("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"):
            made.shapes[f"{blk}{name}.weight"] = (n_embd,)
        made.shapes[f"{blk}ffn_gate_inp.weight"] = (n_expert, n_embd)
        made.shapes[f"{blk}ffn_gate_inp.scale"] = (n_embd,)
        made.shapes[f"{blk}ffn_gate_up_exps.weight"] = (n_expert, 2 * n_ff, n_embd)
        made.shapes[f"{blk}ffn_down_exps.weight"] = (n_expert, n_embd, n_ff)
        made.shapes[f"{blk}ffn_down_exps.scale"] = (n_expert,)
    return made


def gemma3n() -> Written:
    """Layers from the twenty-first on have no keys of their own."""
    n_layer, n_embd, head, per_layer, rank, n_versions = 25, 64, 64, 256, 64, 4
    keys = {
        "embedding_length": n_embd, "block_count": n_layer, "feed_forward_length": 96, "attention.head_count": 2,
        "attention.head_count_kv": 1, "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "rope.freq_base": 1e6, "rope.freq_base_swa": 1000.0,
        "attention.sliding_window_pattern": 5,
    }  # fmt: skip
    shapes: Shapes = {
        "token_embd.weight": (N_VOCAB, n_embd),
        "output_norm.weight": (n_embd,),
        "altup_proj.weight": (n_versions - 1, n_embd, n_embd),
        "altup_unembd_proj.weight": (n_versions - 1, n_embd, n_embd),
        "per_layer_token_embd.weight": (N_VOCAB, per_layer * n_layer),
        "per_layer_model_proj.weight": (per_layer * n_layer, n_embd),
        "per_layer_proj_norm.weight": (per_layer,),
    }
    vectors = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm", "altup_correct_scale")
    for il in range(n_layer):
        blk = f"blk.{il}."
        shapes |= {f"{blk}{name}.weight": (n_embd,) for name in (*vectors, "altup_router_norm", "laurel_post_norm")}
        shapes |= {f"{blk}attn_{name}_norm.weight": (head,) for name in "qk"}
        shapes |= {f"{blk}attn_{name}.weight": (head, n_embd) for name in "kv"}
        shapes |= {f"{blk}attn_q.weight": (2 * head, n_embd), f"{blk}attn_output.weight": (n_embd, 2 * head)}
        shapes |= gated(il, n_embd, 96)
        shapes |= {f"{blk}inp_gate.weight": (per_layer, n_embd), f"{blk}proj.weight": (n_embd, per_layer)}
        shapes |= {f"{blk}laurel_l.weight": (rank, n_embd), f"{blk}laurel_r.weight": (n_embd, rank)}
        shapes[f"{blk}altup_router.weight"] = (n_versions, n_embd)
        shapes[f"{blk}altup_correct_coef.weight"] = (n_versions, n_versions)
        shapes[f"{blk}altup_predict_coef.weight"] = (n_versions * n_versions, n_versions)
    return Written("gemma3n", keys, shapes, {})


def step35() -> Written:
    """Two layers with a window, whose heads are as many again; two of the four layers have experts."""
    n_layer, n_embd, n_expert, n_ff = 4, 64, 8, 48
    n_head, windows = [2, 4, 2, 4], [False, True, False, True]
    keys = {
        "embedding_length": n_embd, "block_count": n_layer, "feed_forward_length": 96, "attention.head_count": n_head,
        "attention.head_count_kv": [1, 2, 1, 2], "attention.key_length": 32, "attention.value_length": 32,
        "rope.dimension_count": 32, "rope.freq_base": 1e6, "rope.freq_base_swa": 1000.0, "rope.scaling.factor": 4.0,
        "attention.sliding_window_pattern": windows, "expert_count": n_expert, "expert_used_count": 3,
        "expert_feed_forward_length": n_ff, "expert_shared_feed_forward_length": 32, "expert_weights_norm": True,
        "expert_weights_scale": 2.0, "swiglu_clamp_exp": [0.0, 0.0, 0.5, 0.0], "swiglu_clamp_shexp": [0.0, 0.5, 0.4, 0.0],
    }  # fmt: skip
    shapes: Shapes = dict.fromkeys(("token_embd.weight", "output.weight"), (N_VOCAB, n_embd))
    shapes |= {"output_norm.weight": (n_embd,), "rope_freqs.weight": (16,)}
    for il in range(n_layer):
        blk, kv = f"blk.{il}.", n_head[il] // 2
        shapes |= {f"{blk}{name}.weight": (n_embd,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{blk}attn_{name}_norm.weight": (32,) for name in "qk"}
        shapes |= {f"{blk}attn_{name}.weight": (32 * kv, n_embd) for name in "kv"}
        shapes[f"{blk}attn_q.weight"] = (32 * n_head[il], n_embd)
        shapes[f"{blk}attn_output.weight"] = (n_embd, 32 * n_head[il])
        shapes[f"{blk}attn_gate.weight"] = (n_head[il], n_embd)
        if il < 2:
            shapes |= gated(il, n_embd, 96)
            continue
        shapes |= gated(il, n_embd, n_ff, "_exps", (n_expert,))
        shapes |= gated(il, n_embd, 32, "_shexp")
        shapes |= {f"{blk}ffn_gate_inp.weight": (n_expert, n_embd), f"{blk}exp_probs_b.bias": (n_expert,)}
    return Written("step35", keys, shapes, {})


WRITTEN: dict[str, Callable[[], Written]] = {
    "gemma3n-small": gemma3n,
    "gemma4-small": gemma4_small,
    "step35-small": step35,
    "gemma4-experts": gemma4_experts,
    **RWKV,
}
"""By name: architecture, minus, what is special."""


def written(root: Path) -> dict[str, Path]:
    """By name; made in a folder of `root` when they are new."""
    made_of = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SOURCES)

    def make(folder: Path) -> None:
        for name, model in WRITTEN.items():
            _write(folder / f"{name}.gguf", model())

    folder = made(root, made_of, make, "written-")
    return {name: folder / f"{name}.gguf" for name in WRITTEN}


def _write(path: Path, model: Written) -> None:
    rng = np.random.default_rng(9)
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_context_length(N_CTX)
    writer.add_vocab_size(N_VOCAB)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(WINDOW)
    writer.add_tokenizer_model("test")
    writer.add_token_list([f"tok_{i}" for i in range(N_VOCAB)])
    writer.add_token_scores([0.0] * N_VOCAB)
    for key, value in model.keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{model.arch}.{key}", value)
    for name, shape in model.shapes.items():
        values = model.values.get(name)
        values = _random(rng, name, shape) if values is None else values
        assert values.shape == shape, name
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Vectors are around 1, biases and matrices around 0. What layers add is small, as the reference's GELU rounds its
    results to F16; and so are queries and keys behind norms, so that tokens attend to some and not to one."""
    if name.endswith(".bias"):
        return rng.normal(0, 0.2, shape)
    if len(shape) == 1:
        factor = 0.4 if "attn_q_norm" in name or "attn_k_norm" in name else 0.15 if ".post_" in name else 1.0
        return factor * rng.normal(1.0, 0.2, shape)
    return rng.normal(0, (2 if "attn_q." in name or "attn_k." in name else 1) * shape[-1] ** -0.5, shape)
