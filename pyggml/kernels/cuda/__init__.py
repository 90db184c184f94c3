"""CUDA kernels, one file per family, named as the CPU's: for each op how it is lowered to launches, and the kernels.

Owns the table op -> file. A family's file has `why_not(node)` (None = can be computed), `lower(builder, node)`, and
factories that return a kernel; factories import `pyggml.kernels.cuda.device` when they are called, because that imports
Numba.
"""

from typing import NamedTuple

from pyggml.ops import Op

FAMILIES: dict[Op, str] = {
    Op.ADD: "elementwise",
    Op.SUB: "elementwise",
    Op.MUL: "elementwise",
    Op.DIV: "elementwise",
    Op.MUL_MAT: "matmul",
    Op.MUL_MAT_ID: "matmul",
    Op.FLASH_ATTN_EXT: "attention",
    Op.NORM: "norm",
    Op.RMS_NORM: "norm",
    Op.L2_NORM: "norm",
    Op.GROUP_NORM: "norm",
    Op.SOFT_MAX: "soft_max",
    Op.ROPE: "rope",
    Op.ROPE_BACK: "rope",
    Op.GLU: "glu",
    Op.UNARY: "unary",
    Op.SCALE: "unary",
    Op.SQR: "unary",
    Op.SQRT: "unary",
    Op.LOG: "unary",
    Op.SIN: "unary",
    Op.COS: "unary",
    Op.CLAMP: "unary",
    Op.LEAKY_RELU: "unary",
    Op.GET_ROWS: "rows",
    Op.SET_ROWS: "rows",
    Op.ARGMAX: "reduce",
    Op.SUM: "reduce",
    Op.SUM_ROWS: "reduce",
    Op.MEAN: "reduce",
    Op.CUMSUM: "reduce",
    Op.ADD_ID: "add_id",
    Op.SSM_CONV: "ssm",
    Op.SSM_SCAN: "ssm",
    Op.GATED_DELTA_NET: "gated_delta_net",
    Op.GATED_LINEAR_ATTN: "linear_attention",
    Op.RWKV_WKV6: "linear_attention",
    Op.RWKV_WKV7: "linear_attention",
    Op.SOLVE_TRI: "solve_tri",
    Op.LIGHTNING_INDEXER: "lightning_indexer",
    Op.DSV4_HC_COMB: "dsv4_hc",
    Op.DSV4_HC_PRE: "dsv4_hc",
    Op.DSV4_HC_POST: "dsv4_hc",
    Op.ARGSORT: "argsort",
    Op.TOP_K: "argsort",
    Op.CPY: "copy",
    Op.CONT: "copy",
    Op.DUP: "copy",
    Op.CONCAT: "concat",
    Op.REPEAT: "repeat",
    Op.PAD: "pad",
    Op.PAD_REFLECT_1D: "pad",
    Op.ROLL: "pad",
    Op.FILL: "fill",
    Op.ARANGE: "fill",
    Op.TRI: "fill",
    Op.DIAG: "fill",
}


class Fusion(NamedTuple):
    """Ops in a row that one kernel may do; the file's `lower_fused(builder, nodes)` returns False where it cannot."""

    ops: tuple[Op, ...]
    module: str


FUSIONS: dict[Op, tuple[Fusion, ...]] = {
    Op.RMS_NORM: (Fusion((Op.RMS_NORM, Op.MUL), "norm"),),
    Op.MUL_MAT: (Fusion((Op.MUL_MAT, Op.MUL_MAT, Op.GLU), "matmul"), Fusion((Op.MUL_MAT, Op.ADD), "matmul")),
}
"""By the first op, the longest first. All results but the last are read within the group alone."""

TAKING: dict[Op, str] = {Op.MUL_MAT: "matmul", Op.ROPE: "rope_cache"}
"""Files whose `take(builder, nodes, inside)` is asked first: it lowers a run of nodes that begins with this op, and says how
many."""
TAKEN = 12
"""So many nodes it is shown at most."""
