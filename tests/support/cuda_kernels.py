"""The CUDA kernels that plans ask for (of plain ones in many types a few), and what its machine code must hold."""

from typing import NamedTuple

from pyggml.dtypes import GGMLType
from pyggml.kernels.cuda.blocks import FAMILIES
from pyggml.kernels.cuda.every import WIDE_HEADS
from pyggml.kernels.cuda.recurrence import PARTS
from pyggml.kernels.cuda.spec import Spec
from pyggml.kernels.cuda.unpack import HALVES, UNPACKED

T = GGMLType
OLD, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)


class Expected(NamedTuple):
    """has: instructions of SASS that must be there. hot: nothing is spilled. oldest: compute capability. tight: takes so many
    registers that 8.0 is always tried. often: made in every run of the tests, not only where all are asked for. doubles: computes in f64 now and then,
    as libdevice's sine does of numbers beyond 10^5."""

    spec: Spec
    has: tuple[str, ...] = ()
    hot: bool = False
    oldest: tuple[int, int] = OLD
    tight: bool = False
    often: bool = True
    doubles: bool = False


ONE_OF_EACH = (T.Q4_0, T.Q5_1, T.Q8_0, T.Q3_K, T.Q4_K, T.IQ4_XS, T.MXFP4, T.IQ2_XS)
"""Types whose unpacking differs most: with one column, where registers are plenty, these stand for the others."""
FEW_FILES = (T.NVFP4, T.Q1_0, T.Q2_0, T.TQ2_0, T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_S, T.IQ3_XXS)
"""Types whose kernels are made only where all are asked for: MXFP4, IQ2_XS and IQ3_S stand for them."""


def products(t: GGMLType) -> list[Expected]:
    wide = ("LDG.E.128",)
    one = ("IDP.4A.S8.S8", "ATOMG.E.ADD.STRONG.GPU", *wide)
    return [
        *(
            Expected(Spec("matvec_one", name, (t.name,)), one, hot=True, often=t in ONE_OF_EACH)
            for name in ("products", "glu")
        ),
        Expected(Spec("matvec", "integers", (t.name, 1)), ("IDP.4A.S8.S8", *wide), hot=True, often=t in ONE_OF_EACH),
        Expected(Spec("matvec", "integers", (t.name, 8)), ("IDP.4A.S8.S8", *wide), hot=True, often=t not in FEW_FILES),
        Expected(
            Spec("mma", "integers", (t.name,)),
            ("IMMA.168", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"),
            True,
            AMPERE,
            tight=t in HALVES,
            often=t not in FEW_FILES,
        ),
    ]


def floats(name: str) -> list[Expected]:
    found = [
        Expected(Spec("matvec_one", factory, (name,)), ("FFMA", "LDG.E.128"), hot=True, often=name == "F16")
        for factory in ("products", "glu")
    ]
    found += [Expected(Spec("matvec", "floats", (name, n)), ("FFMA", "LDG.E.128"), hot=True) for n in (1, 8)]
    if name != "F32":
        has = ("HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128")
        found.append(Expected(Spec("mma", "floats", (name,)), has, True, AMPERE))
    return found


ATTENTION = ("LDGSTS.E.BYPASS.128", "HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", "MUFU.EX2")

WIDE_OFTEN = ((256, 256, 32, 0), (576, 512, 32, 1))

STATES = (
    ("gated_delta_net", "gated_delta_net"),
    ("linear_attention", "wkv6"),
    ("linear_attention", "wkv7"),
)

KERNELS: list[Expected] = [
    Expected(Spec("activations", "quantize"), ("SHFL.BFLY",), hot=True),
    Expected(Spec("norm", "rms_norm", (0,)), ("SHFL.BFLY",), hot=True),
    Expected(Spec("norm", "rms_norm", (1,)), ("SHFL.BFLY",), hot=True),
    Expected(Spec("norm", "normed_rows"), ("SHFL.BFLY",), hot=True),
    Expected(Spec("soft_max", "soft_max"), ("SHFL.BFLY",), hot=True),
    Expected(Spec("rope", "rope"), ("MUFU.SIN", "MUFU.COS"), hot=True),
    Expected(Spec("rope_cache", "rope_cache"), ("MUFU.SIN", "MUFU.COS"), hot=True),
    Expected(Spec("norm", "norm"), ("SHFL.BFLY",), hot=True),
    Expected(Spec("norm", "l2_norm"), ("SHFL.BFLY",), hot=True),
    Expected(Spec("norm", "group_norm"), hot=True),
    Expected(Spec("reduce", "sum_rows"), ("SHFL.BFLY",), hot=True),
    Expected(Spec("reduce", "sum_all"), hot=True),
    Expected(Spec("reduce", "cumsum"), ("SHFL",), hot=True),
    Expected(Spec("add_id", "add_id"), hot=True),
    Expected(Spec("concat", "concat"), hot=True),
    Expected(Spec("repeat", "repeat"), hot=True),
    Expected(Spec("pad", "pad"), hot=True),
    Expected(Spec("fill", "sequence"), hot=True),
    Expected(Spec("fill", "part"), hot=True),
    Expected(Spec("solve_tri", "solve_tri"), hot=True),
    Expected(Spec("ssm", "ssm_conv"), hot=True),
    *(Expected(Spec("ssm", "ssm_scan", (n,)), ("MUFU.EX2", "SHFL.BFLY"), hot=True, often=n in (1, 4)) for n in PARTS),
    *(
        Expected(Spec(module, factory, (n,)), ("SHFL.BFLY",), hot=True, often=n == 4)
        for module, factory in STATES
        for n in PARTS
    ),
    Expected(Spec("elementwise", "binary"), hot=True),
    Expected(Spec("reduce", "argmax"), ("SHFL",)),
    Expected(Spec("argsort", "ranks"), hot=True),
    Expected(Spec("argsort", "sort")),
    Expected(Spec("unary", "unary")),
    Expected(Spec("unary", "functions"), doubles=True),
    Expected(Spec("unary", "scale"), hot=True),
    Expected(Spec("glu", "glu"), ("MUFU.EX2",), hot=True),
    Expected(Spec("rows", "set_rows", (0,)), hot=True),
    Expected(Spec("rows", "set_elements")),
    Expected(Spec("rows", "set_rows", (1,)), ("SHFL",), hot=True),
    *(Expected(Spec("rows", "get_rows", (family,)), hot=family == "floats") for family in FAMILIES),
    Expected(Spec("copy", "move_kernel"), hot=True),
    Expected(Spec("copy", "convert"), hot=True),
    Expected(Spec("copy", "quantize"), ("SHFL",), hot=True),
    *(Expected(Spec("copy", "dequantize", (family,))) for family in FAMILIES if family != "floats"),
    *(Expected(Spec("tile", "tile", (family,)), ("FFMA",), hot=True) for family in FAMILIES),
    *(
        Expected(
            Spec("lightning_indexer", "scores", (family,)), ("FFMA", "SHFL.BFLY"), hot=True, often=family == "floats"
        )
        for family in FAMILIES
    ),
    *(
        Expected(
            Spec("indexer_tile", "scores", (size, packed)),
            ("LDGSTS.E.BYPASS.128", "HMMA.16816.F32", "LDSM.16.M88.4", "SHFL.BFLY")[packed:],
            True,
            AMPERE,
            tight=True,
            often=(size, packed) in ((128, 0), (128, 1)),
        )
        for size in (64, 128)
        for packed in (0, 1)
    ),
    Expected(Spec("dsv4_hc", "comb"), ("SHFL.BFLY", "MUFU.EX2"), hot=True),
    Expected(Spec("dsv4_hc", "pre"), ("FFMA", "MUFU.EX2"), hot=True),
    Expected(Spec("dsv4_hc", "post"), ("FFMA",), hot=True),
    Expected(Spec("attention", "plain")),
    *(
        Expected(
            Spec("attention_tile", "attend", (head, split_kv, packed)), ATTENTION[packed:], True, AMPERE, tight=True
        )
        for head in (64, 128)
        for split_kv in (0, 1)
        for packed in (0, 1)
    ),
    *(
        Expected(
            Spec("attention_wide", "attend", (*sizes, rows, packed)),
            ATTENTION[packed:],
            True,
            AMPERE,
            tight=True,
            often=(*sizes, rows, packed) in WIDE_OFTEN,
        )
        for sizes in WIDE_HEADS
        for rows in (16, 32)
        for packed in (0, 1)
    ),
    Expected(Spec("experts", "table"), hot=True),
    *(e for t in UNPACKED for e in products(t)),
    *(e for name in ("F32", "F16", "BF16") for e in floats(name)),
]
