"""Every kernel that plans of models ask for, by name, so that all can be compiled without a plan.

Owns the list; must not know a compiler.
"""

from __future__ import annotations

from pyggml.kernels.cuda.blocks import BLOCKS, FAMILIES
from pyggml.kernels.cuda.spec import Spec

FLOATS = ("F32", "F16", "BF16")
COLUMNS = (1, 8)
HEADS = range(16, 129, 16)


def every() -> list[Spec]:
    """In no order that matters, each once."""
    found = [
        Spec("activations", "quantize"), Spec("soft_max", "soft_max"), Spec("rope", "rope"),
        Spec("elementwise", "binary"), Spec("reduce", "argmax"), Spec("argsort", "ranks"), Spec("argsort", "sort"),
        Spec("unary", "unary"), Spec("unary", "scale"), Spec("glu", "glu"), Spec("rows", "set_elements"),
        Spec("copy", "move_kernel"), Spec("copy", "convert"), Spec("copy", "quantize"), Spec("attention", "plain"),
        Spec("attention_tile", "combine"), Spec("experts", "table"), Spec("norm", "norm"), Spec("norm", "group_norm"),
        Spec("norm", "l2_norm"), Spec("reduce", "sum_rows"), Spec("reduce", "sum_all"), Spec("reduce", "cumsum"),
        Spec("concat", "concat"), Spec("repeat", "repeat"), Spec("pad", "pad"), Spec("fill", "part"),
        Spec("fill", "sequence"), Spec("add_id", "add_id"), Spec("solve_tri", "solve_tri"), Spec("ssm", "ssm_conv"),
        Spec("unary", "functions"),
    ]  # fmt: skip
    found += [
        Spec(module, factory, (n,))
        for module, factory in (
            ("ssm", "ssm_scan"), ("linear_attention", "wkv6"), ("linear_attention", "wkv7"), ("gated_delta_net", "gated_delta_net"),
        )
        for n in (1, 2, 4, 8)
    ]  # fmt: skip
    found += [Spec("norm", "rms_norm", (i,)) for i in (0, 1)]
    found += [Spec("rows", "set_rows", (i,)) for i in (0, 1)]
    found += [Spec("rows", "get_rows", (family,)) for family in FAMILIES]
    found += [Spec("copy", "dequantize", (family,)) for family in FAMILIES if family != "floats"]
    found += [Spec("tile", "tile", (family,)) for family in FAMILIES]
    for head in HEADS:
        packed = (0, 1) if head % 32 == 0 else (0,)
        found += [Spec("attention_tile", "attend", (head, split_kv, p)) for split_kv in (0, 1) for p in packed]
    for t in BLOCKS:
        found += [Spec("matvec", "integers", (t.name, n)) for n in COLUMNS]
        found.append(Spec("mma", "integers", (t.name,)))
    for name in FLOATS:
        found += [Spec("matvec", "floats", (name, n)) for n in COLUMNS]
        if name != "F32":
            found.append(Spec("mma", "floats", (name,)))
    return found
