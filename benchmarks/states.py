"""What share of a token's time states, windows, sinks and experts take beside products: `python benchmarks/states.py`.

Owns synthetic models of usual shapes, cut to a few layers, with a small vocabulary, and the measurement:
a plan is run whole and without the steps of one op, by turns; the difference of the medians is what the op costs. With one
thread its time on the processor counts, so that other programs disturb less.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from random_models import write

from pyggml.backend.cpu import CPUBackend, CPUPlan
from pyggml.dtypes import GGMLType
from pyggml.lowering.table import StepTable
from pyggml.model.model import Model
from pyggml.ops import Op
from pyggml.runtime.context import Context

N_CTX = 2048
COMMON: dict[str, Any] = {"context_length": N_CTX, "vocab_size": 2048}
SECTIONS = np.array([11, 11, 10, 0], np.int32)

MODELS: dict[str, dict[str, Any]] = {
    "qwen35-4b": {  # of 32 layers
        "general.architecture": "qwen35", **COMMON,
        "block_count": 4, "embedding_length": 2560, "feed_forward_length": 9216, "attention.head_count": 16,
        "attention.head_count_kv": 4, "attention.key_length": 256, "attention.value_length": 256,
        "rope.dimension_count": 64, "rope.dimension_sections": SECTIONS, "rope.freq_base": 1e7,
        "ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.time_step_rank": 32,
        "ssm.group_count": 16, "full_attention_interval": 4,
    },
    "mamba2-2.7b": {  # of 64 layers
        "general.architecture": "mamba2", **COMMON,
        "block_count": 4, "embedding_length": 2560, "feed_forward_length": 0, "attention.head_count": 0,
        "ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 128, "ssm.time_step_rank": 80,
        "ssm.group_count": 1,
    },
    "lfm2-1.2b": {  # of 16 layers
        "general.architecture": "lfm2", **COMMON,
        "block_count": 4, "embedding_length": 2048, "feed_forward_length": 8192,
        "attention.head_count": np.array([0, 0, 32, 0], np.int32),
        "attention.head_count_kv": np.array([0, 0, 8, 0], np.int32), "shortconv.l_cache": 3, "rope.freq_base": 1e6,
    },
    "gemma4-e4b": {  # of 42 layers
        "general.architecture": "gemma4", **COMMON,
        "block_count": 6, "embedding_length": 2560, "feed_forward_length": 10240, "attention.head_count": 8,
        "attention.head_count_kv": 2, "attention.key_length": 512, "attention.value_length": 512,
        "attention.key_length_swa": 256, "attention.value_length_swa": 256, "attention.sliding_window": 512,
        "attention.sliding_window_pattern": np.array([1, 1, 1, 1, 1, 0], bool), "rope.dimension_count": 512,
        "rope.dimension_count_swa": 256, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
        "embedding_length_per_layer_input": 256, "final_logit_softcapping": 30.0,
    },
    "gpt-oss-20b": {  # of 24 layers
        "general.architecture": "gpt-oss", **COMMON,
        "block_count": 2, "embedding_length": 2880, "feed_forward_length": 2880, "expert_feed_forward_length": 2880,
        "expert_count": 32, "expert_used_count": 4, "attention.head_count": 64, "attention.head_count_kv": 8,
        "attention.key_length": 64, "attention.value_length": 64, "attention.sliding_window": 128,
        "rope.dimension_count": 64, "rope.freq_base": 150000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
    },
    "tiny": {
        "general.architecture": "qwen35", **COMMON,
        "block_count": 4, "embedding_length": 256, "feed_forward_length": 256, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 64, "attention.value_length": 64,
        "rope.dimension_count": 64, "rope.dimension_sections": SECTIONS, "ssm.conv_kernel": 4,
        "ssm.inner_size": 256, "ssm.state_size": 64, "ssm.time_step_rank": 4, "ssm.group_count": 2,
    },
}  # fmt: skip


CHOOSING = (Op.ARGSORT, Op.TOP_K)
"""Their results say which rows others read, so they are always run."""


def type_of(dtype: GGMLType, name: str, ne: Sequence[int]) -> GGMLType:
    """Matrices of `dtype`, experts of MXFP4 as gpt-oss has them, all else F32."""
    if "_exps.weight" in name:
        return GGMLType.MXFP4
    return dtype if len(ne) > 1 and not ne[0] % 64 and "norm" not in name else GGMLType.F32


def without(plan: CPUPlan, left_out: NDArray[np.bool_], status: int) -> StepTable:
    """A plan of the other steps, with the same barriers."""
    steps, kept = plan.steps, ~left_out
    table = StepTable(int(kept.sum()))
    table.steps[:] = steps[kept]
    table.steps["taken"] = table.steps["done"] = table.steps["sync"] = 0
    group = np.cumsum(np.concatenate([[0], steps["sync"][:-1]]))[kept]
    table.steps["sync"][:-1] = group[1:] != group[:-1]
    return table.sealed(status)


def shares(context: Context, n_tokens: int, depth: int, rounds: int) -> tuple[float, dict[str, float]]:
    """Milliseconds of a micro-batch behind so many tokens, and of each op's steps."""
    context.clear()
    context.decode([5] * (depth + n_tokens))
    _, schedule = context.schedule_for(n_tokens, context.n_past, 1)
    (split,) = schedule.splits
    plan, backend = split.plan, context.scheduler.backends[split.device]
    assert isinstance(plan, CPUPlan) and isinstance(backend, CPUBackend)
    kinds: dict[str, list[int]] = defaultdict(list)
    for i in range(len(plan.steps)):
        kinds[plan.name(i).split()[0]].append(i)
    pool = backend.pool
    tables = {"": plan.table}
    for kind, numbers in kinds.items():
        if Op[kind] in CHOOSING:
            continue
        left_out = np.zeros(len(plan.steps), bool)
        left_out[numbers] = True
        tables[kind] = without(plan, left_out, pool.status_address)
    clock = time.thread_time if backend.n_threads == 1 else time.perf_counter
    times: dict[str, list[float]] = defaultdict(list)
    order = random.Random(1)
    for _ in range(rounds):
        for kind, table in order.sample(list(tables.items()), len(tables)):
            start = clock()
            pool.run(table)
            times[kind].append(1e3 * (clock() - start))
    medians = {kind: statistics.median(some) for kind, some in times.items()}
    whole = medians.pop("")
    return whole, {kind: whole - one for kind, one in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=[name for name in MODELS if name != "tiny"], help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument("-p", "--tokens", default="1,512", help="of a micro-batch (default %(default)s)")
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens before them (default %(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("-r", "--rounds", type=int, default=30, help="(default %(default)s)")
    parser.add_argument("--type", default="Q4_0", choices=("Q4_0", "Q8_0"))
    args = parser.parse_args()
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.gguf"
            write(path, MODELS[name], partial(type_of, GGMLType[args.type]))
            model = Model.load(path)
            context = Context(model, n_ctx=N_CTX, n_threads=args.threads)
            for n_tokens in map(int, args.tokens.split(",")):
                whole, each = shares(
                    context, n_tokens, args.depth, args.rounds if n_tokens < 64 else max(1, args.rounds // 5)
                )
                print(f"{name} {args.type}, {MODELS[name]['block_count']} layers, {n_tokens} tokens: {whole:.3f} ms")
                for kind, cost in sorted(each.items(), key=lambda item: -item[1]):
                    if cost > 0.005 * whole or Op[kind] in (Op.GATED_DELTA_NET, Op.SSM_SCAN, Op.SSM_CONV):
                        print(f"  {kind:18} {cost:8.3f} ms  {100 * cost / whole:5.1f} %")
            context.close()
            model.close()


if __name__ == "__main__":
    main()
