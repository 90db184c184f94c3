"""Every kernel that plans of models ask for, by name, so that all can be compiled without a plan.

Owns the list; must not know a compiler.
"""

from __future__ import annotations

from pyggml.kernels.cuda.blocks import FAMILIES
from pyggml.kernels.cuda.recurrence import PARTS
from pyggml.kernels.cuda.spec import Spec
from pyggml.kernels.cuda.unpack import UNPACKED

FLOATS = ("F32", "F16", "BF16")
COLUMNS = (1, 8)
HEADS = range(16, 129, 16)
WIDE_HEADS = ((192, 128), (192, 192), (256, 256), (320, 256), (512, 512), (576, 512))
"""Elements of keys and values of larger heads that models have."""


def every() -> list[Spec]:
    """In no order that matters, each once."""
    found = [
        Spec("activations", "quantize"), Spec("soft_max", "soft_max"), Spec("rope", "rope"), Spec("rope_cache", "rope_cache"),
        Spec("elementwise", "binary"), Spec("reduce", "argmax"), Spec("argsort", "ranks"), Spec("argsort", "sort"),
        Spec("unary", "unary"), Spec("unary", "scale"), Spec("glu", "glu"), Spec("rows", "set_elements"),
        Spec("copy", "move_kernel"), Spec("copy", "convert"), Spec("copy", "quantize"), Spec("attention", "plain"),
        Spec("experts", "table"), Spec("norm", "norm"), Spec("norm", "l2_norm"),
        Spec("norm", "group_norm"), Spec("reduce", "sum_rows"), Spec("reduce", "sum_all"), Spec("reduce", "cumsum"),
        Spec("add_id", "add_id"), Spec("concat", "concat"), Spec("repeat", "repeat"), Spec("pad", "pad"),
        Spec("fill", "sequence"), Spec("fill", "part"), Spec("solve_tri", "solve_tri"), Spec("ssm", "ssm_conv"),
        Spec("unary", "functions"), *(Spec("dsv4_hc", name) for name in ("comb", "pre", "post")),
    ]  # fmt: skip
    for parts in PARTS:
        found.append(Spec("ssm", "ssm_scan", (parts,)))
        found.append(Spec("gated_delta_net", "gated_delta_net", (parts,)))
        found += [Spec("linear_attention", name, (parts,)) for name in ("wkv6", "wkv7")]
    found += [Spec("norm", "rms_norm", (i,)) for i in (0, 1)] + [Spec("norm", "normed_rows")]
    found += [Spec("rows", "set_rows", (i,)) for i in (0, 1)]
    found += [Spec("rows", "get_rows", (family,)) for family in FAMILIES]
    found += [Spec("copy", "dequantize", (family,)) for family in FAMILIES if family != "floats"]
    found += [Spec("tile", "tile", (family,)) for family in FAMILIES]
    found += [Spec("lightning_indexer", "scores", (family,)) for family in FAMILIES]
    found += [Spec("indexer_tile", "scores", (size, packed)) for size in (64, 128) for packed in (0, 1)]
    for head in HEADS:
        packed = (0, 1) if head % 32 == 0 else (0,)
        found += [Spec("attention_tile", "attend", (head, split_kv, p)) for split_kv in (0, 1) for p in packed]
    for sizes in WIDE_HEADS:
        found += [Spec("attention_wide", "attend", (*sizes, rows, p)) for rows in (16, 32) for p in (0, 1)]
    for t in UNPACKED:
        found += [Spec("matvec", "integers", (t.name, n)) for n in COLUMNS]
        found.append(Spec("mma", "integers", (t.name,)))
        found += [Spec("matvec_one", name, (t.name,)) for name in ("products", "glu")]
    for name in FLOATS:
        found += [Spec("matvec", "floats", (name, n)) for n in COLUMNS]
        found += [Spec("matvec_one", factory, (name,)) for factory in ("products", "glu")]
        if name != "F32":
            found.append(Spec("mma", "floats", (name,)))
    return found
