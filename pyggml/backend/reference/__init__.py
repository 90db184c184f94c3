"""The reference backend: what every op means, in NumPy and float64. Knows no speed; other backends are held against it.

One file a family of ops, named as the kernels' files. A family's REFERENCE_OPS: op -> (why a node is refused or None, compute).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pyggml.backend.base import Backend, Device, Kind, Plan, Usage, while_wanted
from pyggml.backend.host import HostBuffer, host_memory
from pyggml.backend.reference import (
    add_id,
    argsort,
    attention,
    concat,
    copy,
    diag_mask,
    dsv4_hc,
    elementwise,
    fill,
    gated_delta_net,
    glu,
    lightning_indexer,
    linear_attention,
    matmul,
    norm,
    pad,
    parts,
    pool,
    reduce,
    repeat,
    rope,
    rows,
    soft_max,
    solve_tri,
    ssm,
    timestep_embedding,
    unary,
)
from pyggml.dtypes import SIZES
from pyggml.errors import ComputeError, UnsupportedError
from pyggml.graph import Graph
from pyggml.ops import VIEW_OPS, Op, check
from pyggml.tensor import Flag, Tensor

OpReference = tuple[Callable[[Tensor], str | None], Callable[[Tensor], None]]

REFERENCE_OPS: dict[Op, OpReference] = {
    op: reference
    for family in (
        add_id, argsort, attention, concat, copy, diag_mask, dsv4_hc, elementwise, fill, gated_delta_net, glu,
        lightning_indexer, linear_attention, matmul, norm, pad, parts, pool, reduce, repeat, rope, rows, soft_max,
        solve_tri, ssm, timestep_embedding, unary,
    )
    for op, reference in family.REFERENCE_OPS.items()
}  # fmt: skip


class ReferenceDevice(Device):
    name = "REF"
    description = "NumPy, the definition of every op"
    kind = Kind.CPU

    def __init__(self, ops: Mapping[Op, OpReference] = REFERENCE_OPS) -> None:
        self.ops = ops

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def why_not(self, node: Tensor) -> str | None:
        for t in (node, *node.src):
            if t is None or SIZES[t.type].block_size == 1:
                continue
            if t.ne[0] % SIZES[t.type].block_size:
                return f"row length {t.ne[0]} is not a multiple of the block size {SIZES[t.type].block_size} of {t.type.name}"
            if t.nb[0] != SIZES[t.type].type_size:
                return f"blocks of {t.type.name} are {t.nb[0]} bytes apart"  # closer, they reach beyond nbytes
        refuse, _ = self.ops[Op(node.op)]
        return refuse(node)

    def alloc_buffer(self, size: int, usage: Usage = Usage.ANY) -> HostBuffer:
        return HostBuffer.alloc(self, size, usage)

    def open(self, n_threads: int | None = None) -> ReferenceBackend:
        return ReferenceBackend(self)


class ReferencePlan(Plan):
    def __init__(self, nodes: list[Tensor]) -> None:
        self.nodes = nodes


class ReferenceBackend(Backend):
    def __init__(self, device: ReferenceDevice) -> None:
        self.device: ReferenceDevice = device
        self.aborted = False

    def plan(
        self, graph: Graph, *, cancelled: Callable[[], bool] | None = None, max_work: int | None = None
    ) -> ReferencePlan:
        """Nodes that were not asked for (no Flag.COMPUTE) or have no elements are left out, as in ggml."""
        nodes = []
        for node in while_wanted(graph.nodes, cancelled):
            if node.op in VIEW_OPS or not node.flags & Flag.COMPUTE or not node.nelements:
                continue
            check(node)
            reason = self.device.why_not(node)
            if reason is not None:
                raise UnsupportedError(f"{Op(node.op).name} {node.name!r} on {self.device.name}: {reason}")
            nodes.append(node)
        return ReferencePlan(nodes)

    def compute(self, plan: Plan) -> None:
        assert isinstance(plan, ReferencePlan)
        self.aborted = False
        with np.errstate(all="ignore"):  # infinities and NaNs follow IEEE
            for node in plan.nodes:
                if self.aborted:
                    raise ComputeError(f"aborted before {Op(node.op).name} {node.name!r}")
                _, compute = self.device.ops[Op(node.op)]
                compute(node)

    def abort(self) -> None:
        self.aborted = True
