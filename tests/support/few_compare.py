"""Schedules made from a few layers beside those made from all: for each device the same steps, launches and records, word for
word, but for where work memory lies and what nodes are called.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyggml_rpc.backend import RpcPlan
from pyggml_rpc.connection import Request
from pyggml_rpc.records import read_graph
from pyggml_rpc.wire import Command

from pyggml.backend.base import Plan
from pyggml.backend.cpu import CPUPlan
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.backend.scheduler import Schedule


def assert_same(few: Schedule, whole: Schedule) -> None:
    few.bind()
    whole.bind()
    assert few.sizes == whole.sizes
    for a, b in zip(few.splits, whole.splits, strict=True):
        assert a.device == b.device and type(a.plan) is type(b.plan)
        same_plans(a.plan, b.plan)


def same_plans(few: Plan | None, whole: Plan | None) -> None:
    if isinstance(few, CPUPlan) and isinstance(whole, CPUPlan):
        (a, work_a), (b, work_b) = words(few), words(whole)
        assert a.shape == b.shape and work_a == work_b
        different = np.argwhere(a != b)
        assert not len(different), (
            f"{len(different)} words, the first is word {different[0][1]} of step {different[0][0]}"
        )
    elif isinstance(few, CudaPlan) and isinstance(whole, CudaPlan):
        same_launches(few, whole)
    elif isinstance(few, RpcPlan) and isinstance(whole, RpcPlan):
        same_requests(few, whole)


def words(plan: CPUPlan) -> tuple[NDArray[np.int64], int]:
    """The records of a plan, with addresses of work memory as distances from its start; bytes of work."""
    arena = plan.keep[0]
    start = int(arena.ctypes.data)
    found = plan.table.words.copy()
    inside = (found >= start) & (found < start + arena.size)
    found[inside] -= start - 1
    return found, plan.nbytes


# ---- CUDA


def launches(plan: CudaPlan) -> tuple[list[Any], NDArray[np.int64], NDArray[np.bool_], list[str]]:
    """What runs, with which words, which of them are places in work memory; and the names of the nodes that may be reported."""
    own = (plan.values >= plan.memory) & (plan.values < plan.memory + plan.nbytes)
    names = [plan.name(i).partition(" (in layer")[0] for i in range(count_nodes(plan))]
    return [head for *head, _ in plan.steps], np.where(own, 0, plan.values), own, names


def count_nodes(plan: CudaPlan) -> int:
    """In all layers."""
    for count in range(1, 1 << 20):
        try:
            plan.name(count)
        except IndexError:
            return count
    raise AssertionError


def same_launches(few: CudaPlan, whole: CudaPlan) -> None:
    (heads, values, own, names), (all_heads, all_values, all_own, all_names) = launches(few), launches(whole)
    assert heads == all_heads and len(names) == len(all_names)
    different = np.argwhere((values != all_values) | (own != all_own))
    assert not len(different), f"{len(different)} of {len(values)} words, the first is word {different[0][0]}"


# ---- RPC


def same_requests(few: RpcPlan, whole: RpcPlan) -> None:
    layout = few.protocol[Command.GRAPH_COMPUTE].request
    x, y = (read_graph(Request(Command.GRAPH_COMPUTE, plan.body, layout)) for plan in (few, whole))
    assert (x.nodes, few.n_nodes, few.probe[:8]) == (y.nodes, whole.n_nodes, whole.probe[:8])
    assert len(x.records) == len(y.records)
    leafs = (y.records["op"] == 0) & (np.char.find(y.records["name"], b"#") < 0)  # not copies of results
    made = y.records["op"] != 0  # how often leafs are read matters to nobody
    for field in x.records.dtype.names or ():
        chosen = {"name": leafs, "use_count": made}.get(field, slice(None))
        mine, yours = x.records[field][chosen], y.records[field][chosen]
        different = np.flatnonzero((mine != yours).reshape(len(mine), -1).any(1))
        assert not len(different), f"{field} of {len(different)} records, the first is {different[0]}"
