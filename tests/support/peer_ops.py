"""The stock ggml's CPU ops as a Device of ours, in this process, on one thread unless told: the same tensors, ggml's kernels.

Owns struct ggml_tensor and what makes ggml abort (a GGML_ASSERT ends the process).
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyggml.backend.base import Backend, Device, Kind, Plan, Usage
from pyggml.backend.host import HostBuffer, host_memory
from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ComputeError, UnsupportedError
from pyggml.graph import Graph
from pyggml.ops import VIEW_OPS, GluOp, Op, UnaryOp
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor, contiguous_strides

F32, F16, BF16, I32 = GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.I32
FLOATS = (F32, F16, BF16)
PARTNERS = (GGMLType.Q8_1, GGMLType.Q8_K)  # activations alone have these
BINARY_TYPES = {(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F16, F32)}


class CTensor(ctypes.Structure):
    """struct ggml_tensor (ggml.h)."""


CTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_char * 64),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(CTensor) * 10),
    ("view_src", ctypes.POINTER(CTensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class InitParams(ctypes.Structure):
    """struct ggml_init_params (ggml.h)."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class CPlan(ctypes.Structure):
    """struct ggml_cplan (ggml-cpu.h)."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )


class PeerDevice(Device):
    name = "peer"
    description = "the stock ggml's CPU kernels"
    kind = Kind.CPU

    def __init__(self, lib_dir: Path) -> None:
        base = ctypes.CDLL(str(lib_dir / "libggml-base.so.0"))
        cpu = ctypes.CDLL(str(lib_dir / "libggml-cpu.so.0"))
        base.ggml_tensor_overhead.restype = ctypes.c_size_t
        assert base.ggml_tensor_overhead() >= ctypes.sizeof(CTensor)
        base.ggml_init.restype = ctypes.c_void_p
        base.ggml_init.argtypes = [InitParams]
        base.ggml_free.argtypes = [ctypes.c_void_p]
        base.ggml_new_graph.restype = ctypes.c_void_p
        base.ggml_new_graph.argtypes = [ctypes.c_void_p]
        base.ggml_graph_add_node.argtypes = [ctypes.c_void_p, ctypes.POINTER(CTensor)]
        cpu.ggml_graph_plan.restype = CPlan
        cpu.ggml_graph_plan.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        cpu.ggml_graph_compute.argtypes = [ctypes.c_void_p, ctypes.POINTER(CPlan)]
        cpu.ggml_cpu_init()
        self.base, self.cpu = base, cpu

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> HostBuffer:
        return HostBuffer.alloc(self, size, usage)

    def open(self, n_threads: int | None = None) -> "PeerBackend":
        return PeerBackend(self, n_threads or 1)

    def why_not(self, node: Tensor) -> str | None:
        """What would end the process: the GGML_ASSERTs and switches of ggml-cpu."""
        src = [s for s in node.src if s is not None]
        op, a = Op(node.op), src[0] if src else node
        b = src[1] if len(src) > 1 else None
        if node.nelements and not all(s.nelements for s in src):
            return "an empty source of a result that is not empty"
        if op in (Op.ADD, Op.ADD1) and SIZES[a.type].block_size > 1:
            # its ADD1 takes the third stride of the result for the first
            ok = b.type == F32 and a.ne == b.ne and dense(a, b, node) and op == Op.ADD
            ok = ok and node.nb[0] <= node.nb[1] <= node.nb[2] <= node.nb[3]
        elif op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.ADD1):
            ok = (a.type, b.type) in BINARY_TYPES and dense(a, node) and (node.type == a.type or b.type == F32)
        elif op == Op.CONCAT:
            ok = rows_dense(a, b) and node.is_contiguous
        elif op in (Op.REPEAT, Op.REPEAT_BACK):
            allowed = (F32, F16, BF16, I32, GGMLType.I16) if op == Op.REPEAT else (F32,)
            ok = a.type in allowed and dense(a, node)
        elif op in (Op.SET, Op.ACC):
            ok = a.type in ((F32, I32) if op == Op.SET else (F32,)) and dense(b)
        elif op in (Op.PAD, Op.PAD_REFLECT_1D, Op.ROLL):
            circular = op == Op.PAD and node.param_i32(8)
            once = all(node.param_i32(i) <= a.ne[i // 2] for i in range(8))  # further round it reads elsewhere
            ok = a.type == F32 and dense(a) and node.is_contiguous and (once or not circular)
        elif op in (Op.FILL, Op.TRI, Op.DIAG):
            ok = a.type in ((F32, F16) if op == Op.FILL else (F32,)) and as_made(a) and dense(node)
        elif op in (Op.ARANGE, Op.TIMESTEP_EMBEDDING):
            ok = dense(*src, node) and all(s.type == F32 for s in src)
        elif op == Op.SCALE:
            ok = a.type in (F32, BF16) and as_made(a) and node.is_contiguous
        elif op == Op.UNARY:
            ok = a.type in FLOATS and dense(a, node)
            if node.param_i32(0) == UnaryOp.XIELU:
                ok = ok and a.is_contiguous_from(1) and node.is_contiguous_from(1)
        elif op == Op.GLU:
            allowed = {GluOp.SWIGLU_OAI: (F32,), GluOp.SWIGLU_CLAMP: (F32, F16)}
            ok = a.type in allowed.get(GluOp(node.param_i32(0)), FLOATS)
            ok = ok and all(t.is_contiguous_from(1) for t in (*src, node)) and dense(*src, node)
        elif op in (Op.SQR, Op.SQRT, Op.LOG, Op.SIN, Op.COS):
            ok = a.type in FLOATS and dense(a, node)
        elif op in (Op.CLAMP, Op.LEAKY_RELU):
            ok = a.type in (F32, F16) and evenly_spaced_rows(a) and evenly_spaced_rows(node)
        elif op in (Op.RMS_NORM, Op.GROUP_NORM, Op.SUM_ROWS, Op.MEAN, Op.CUMSUM, Op.ARGMAX):
            ok = a.type == F32 and dense(a, node)
        elif op in (Op.NORM, Op.L2_NORM):
            ok = a.type == F32
        elif op == Op.SSM_CONV:
            ok = a.type == b.type == F32 and b.nb[:2] == (4, 4 * b.ne[0]) and node.nb[0] == 4
        elif op in (Op.SSM_SCAN, Op.GATED_DELTA_NET, Op.SOLVE_TRI):
            ok = all(s.type == F32 for s in src[:6]) and node.is_contiguous
        elif op in (Op.POOL_1D, Op.POOL_2D):
            ok = as_made(a) and as_made(node)  # it steps over rows and planes by one stride
        elif op == Op.LIGHTNING_INDEXER:
            ok = dense(*src, node) and (b.type == F32 or (b.type in QUANTS and b.type not in PARTNERS))
        elif op in (Op.DSV4_HC_COMB, Op.DSV4_HC_PRE, Op.DSV4_HC_POST):
            ok = all(s.type == F32 for s in src)
        elif op == Op.SUM:
            ok = a.type in FLOATS and dense(a)
        elif op == Op.COUNT_EQUAL:
            ok = a.type == b.type == I32 and a.ne[2] == a.ne[3] == 1  # it loses its way in further dimensions
        elif op == Op.SOFT_MAX:
            ok = a.type == F32
        elif op in (Op.GATED_LINEAR_ATTN, Op.RWKV_WKV6, Op.RWKV_WKV7):
            # its vector code takes whole vectors of channels, RWKV_WKV7's four of them
            ok = a.ne[0] % (64 if op == Op.RWKV_WKV7 else 16) == 0 and node.is_contiguous
        elif op == Op.SOFT_MAX_BACK:
            ok = a.type == b.type == F32 and all(map(as_made, (a, b, node)))
        elif op in (Op.DIAG_MASK_INF, Op.DIAG_MASK_ZERO):
            ok = as_made(a) and as_made(node)
        elif op in (Op.ROPE, Op.ROPE_BACK):
            ok = a.type in (F32, F16) and dense(a, node) and a.ne[0] % 2 == 0
        elif op == Op.MUL_MAT:
            ok = a.type in QUANTS and a.type not in PARTNERS and dense(a, b, node) and multiplies(a, b)
        elif op == Op.MUL_MAT_ID:
            ok = a.type in QUANTS and a.type not in PARTNERS and dense(a, b, node)
            ok = ok and b.type in (F32, QUANTS[a.type].partner)
        elif op == Op.OUT_PROD:
            ok = a.type == F32 or (a.type in QUANTS and a.type not in (*PARTNERS, BF16) and a.ne[2:] == b.ne[2:])
            ok = ok and b.type == F32 and dense(a, node)
        elif op == Op.ADD_ID:
            ok = dense(a, b, node)
        elif op in (Op.ARGSORT, Op.TOP_K):  # it takes rows to lie behind each other
            ok = as_made(a) and as_made(node)
        elif op == Op.FLASH_ATTN_EXT:
            ok = all(t.type in QUANTS and t.type not in PARTNERS for t in src[1:3]) and dense(*src[:3], node)
        elif op == Op.GET_ROWS:
            ok = a.type in (*QUANTS, I32) and a.type not in PARTNERS and dense(a, node)
        elif op == Op.SET_ROWS:
            ok = node.type in QUANTS and QUANTS[node.type].can_quantize and dense(a, node)
        else:
            ok = copies(a, node)
        return None if ok else f"ggml-cpu aborts on this {op.name}"


def dense(*tensors: Tensor) -> bool:
    return all(t.nb[0] == SIZES[t.type].type_size for t in tensors)


def as_made(t: Tensor) -> bool:
    """Contiguous, and by the strides of dimensions of one element too: where it steps by those, or asserts them."""
    return t.nb == contiguous_strides(t.type, t.ne)


def rows_dense(*tensors: Tensor) -> bool:
    """ggml.c: ggml_is_contiguous_rows."""
    return all(t.ne[0] == SIZES[t.type].block_size or dense(t) for t in tensors)


def evenly_spaced_rows(t: Tensor) -> bool:
    """Whether row number i of all is i * nb[1] bytes from the first."""
    return dense(t) and t.nb[2] == t.ne[1] * t.nb[1] and t.nb[3] == t.ne[2] * t.nb[2]


def multiplies(a: Tensor, b: Tensor) -> bool:
    """ggml-cpu.cpp: ggml_backend_cpu_device_supports_op."""
    partner = QUANTS[a.type].partner
    return b.type in (F32, partner) or (b.type == BF16 and partner == F32)


def copies(a: Tensor, node: Tensor) -> bool:
    """ops.cpp: ggml_compute_forward_dup and what it calls."""
    blocks = SIZES[a.type].block_size > 1, SIZES[node.type].block_size > 1
    if a.type == node.type:
        both = a.is_contiguous and node.is_contiguous
        return not blocks[0] or both or (a.ne == node.ne and dense(a, node))
    if blocks[0]:
        return node.type == F32 and dense(node) and (node.ne[0] % SIZES[a.type].block_size == 0 or node.is_contiguous)
    if blocks[1]:
        return a.type in FLOATS and dense(a) and node.is_contiguous and a.ne[0] % SIZES[node.type].block_size == 0
    return (a.type in FLOATS and node.type in FLOATS) or {a.type, node.type} == {F32, I32}


class PeerPlan(Plan):
    def __init__(self, nodes: list[Tensor]) -> None:
        self.nodes = nodes


class PeerBackend(Backend):
    def __init__(self, device: PeerDevice, n_threads: int) -> None:
        self.device: PeerDevice = device
        self.n_threads = n_threads

    def plan(
        self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None
    ) -> PeerPlan:
        for node in graph.nodes:
            if not self.device.supports_op(node):
                raise UnsupportedError(f"{Op(node.op).name}: ggml-cpu would abort")
        return PeerPlan([n for n in graph.nodes if n.op not in VIEW_OPS])

    def compute(self, plan: Plan) -> None:
        assert isinstance(plan, PeerPlan)
        base, cpu = self.device.base, self.device.cpu
        context = base.ggml_init(InitParams(1 << 20, None, True))
        made: dict[int, CTensor] = {}
        try:
            graph = base.ggml_new_graph(context)
            for node in plan.nodes:
                base.ggml_graph_add_node(graph, ctypes.byref(ctensor(node, made)))
            cplan = cpu.ggml_graph_plan(graph, self.n_threads, None)
            work = np.zeros(cplan.work_size + 64, np.uint8)
            cplan.work_data = work.ctypes.data
            status = cpu.ggml_graph_compute(graph, ctypes.byref(cplan))
            if status != 0:
                raise ComputeError(f"ggml_graph_compute returned {status}")
        finally:
            base.ggml_free(context)


def ctensor(tensor: Tensor, made: dict[int, CTensor]) -> CTensor:
    if id(tensor) in made:
        return made[id(tensor)]
    c = made[id(tensor)] = CTensor()
    c.type, c.op, c.flags, c.data = tensor.type, tensor.op, tensor.flags, tensor.data
    c.ne[:], c.nb[:] = tensor.ne, tensor.nb
    ctypes.memmove(ctypes.addressof(c) + CTensor.op_params.offset, tensor.op_params, 64)
    for i, s in enumerate(tensor.src):
        if s is not None:
            c.src[i] = ctypes.pointer(ctensor(s, made))
    return c
