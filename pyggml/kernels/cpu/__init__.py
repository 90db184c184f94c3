"""CPU kernels, one file per family: for each op how it is lowered to steps, and the kernels that the steps run.

Owns the table op -> file; a name with a dot is the full one of another package's module. A family's file has `why_not(node)` (None = can be computed), `lower(builder, node)`, and
factories that return a kernel; factories import `pyggml.simd` when they are called, because that imports Numba.
"""

from pyggml.ops import Op

FAMILIES: dict[Op, str] = {
    Op.ADD: "elementwise",
    Op.SUB: "elementwise",
    Op.MUL: "elementwise",
    Op.DIV: "elementwise",
    Op.ADD1: "elementwise",
    Op.MUL_MAT: "matmul",
    Op.MUL_MAT_ID: "matmul",
    Op.OUT_PROD: "matmul",
    Op.ADD_ID: "add_id",
    Op.ARGSORT: "argsort",
    Op.TOP_K: "argsort",
    Op.FLASH_ATTN_EXT: "attention",
    Op.NORM: "norm",
    Op.RMS_NORM: "norm",
    Op.L2_NORM: "norm",
    Op.GROUP_NORM: "norm",
    Op.SUM: "reduce",
    Op.SUM_ROWS: "reduce",
    Op.MEAN: "reduce",
    Op.CUMSUM: "reduce",
    Op.ARGMAX: "reduce",
    Op.COUNT_EQUAL: "reduce",
    Op.GATED_LINEAR_ATTN: "linear_attention",
    Op.RWKV_WKV6: "linear_attention",
    Op.RWKV_WKV7: "linear_attention",
    Op.DIAG_MASK_INF: "diag_mask",
    Op.DIAG_MASK_ZERO: "diag_mask",
    Op.SOFT_MAX: "soft_max",
    Op.SOFT_MAX_BACK: "soft_max",
    Op.SSM_CONV: "ssm",
    Op.SSM_SCAN: "ssm",
    Op.GATED_DELTA_NET: "gated_delta_net",
    Op.SOLVE_TRI: "solve_tri",
    Op.LIGHTNING_INDEXER: "lightning_indexer",
    Op.DSV4_HC_COMB: "dsv4_hc",
    Op.DSV4_HC_PRE: "dsv4_hc",
    Op.DSV4_HC_POST: "dsv4_hc",
    Op.POOL_1D: "pool",
    Op.POOL_2D: "pool",
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
    Op.CPY: "copy",
    Op.CONT: "copy",
    Op.DUP: "copy",
    Op.CONCAT: "concat",
    Op.SET: "parts",
    Op.ACC: "parts",
    Op.PAD: "pad",
    Op.PAD_REFLECT_1D: "pad",
    Op.ROLL: "pad",
    Op.REPEAT: "repeat",
    Op.REPEAT_BACK: "repeat",
    Op.FILL: "fill",
    Op.ARANGE: "fill",
    Op.TRI: "fill",
    Op.DIAG: "fill",
    Op.TIMESTEP_EMBEDDING: "timestep_embedding",
}

FUSIONS: dict[tuple[Op, Op], str] = {
    (Op.RMS_NORM, Op.MUL): "norm",
}
"""Pairs of ops that one step can do, where the first one's result is read by the second alone.

The file's `lower_pair(builder, first, second)` returns False where it cannot. The bits are those of the two steps, since
a graph may as well be cut between the two.
"""
