"""Times products, attention and an indexer's scores a kernel at a time, ours and ggml's in turn: `python benchmarks/kernels.py [TYPE ...]`.

Owns the shapes and what a rate is held against. Weights are read from memory that no cache holds: several matrices by
turns, beside a plain read of as much. Products of prompts stand beside what the machine's integer units can do
(limits/). `--columns` sweeps over products of few to many columns, as batches of decoding sequences are made of, with a
model's shapes; activations are converted once a layer and length. Set NUMBA_CPU_NAME and NUMBA_CPU_FEATURES to see
another CPU level of ours.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from limits import Limits
from peer_ops import PeerDevice
from sides import stock

from pyggml import ops
from pyggml.backend.base import Backend, Device, Usage
from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import SIZES, GGMLType, row_size
from pyggml.graph import build_forward
from pyggml.tensor import Tensor

TYPES = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "F16",
    "BF16",
    "F32",
]
FAR = 1 << 28  # bytes, beyond any cache
K, N, TOKENS = 2048, 4096, 512
HEAD, N_HEAD, N_HEAD_KV = 64, 32, 8
INDEXER_HEAD, INDEXER_HEADS = 128, 64
EXPONENT = 120  # a scale of 2^-7, as the first byte of a block of MXFP4 says it
COLUMNS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128]
MODELS = {
    "smollm2": [(576, 576, 2), (576, 192, 2), (576, 1536, 2), (1536, 576, 1), (576, 49152 // 30, 1)],
    "1b": [(2048, 2048, 2), (2048, 256, 2), (2048, 5632, 2), (5632, 2048, 1), (2048, 32000 // 22, 1)],
}
"""Products of one layer: length of the rows, rows, how many; the last is the layer's share of the output matrix."""


class Work:
    """The same nodes on the same memory for any device on the host."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.rng = np.random.default_rng(1)

    def leaf(self, dtype: GGMLType, *ne: int) -> Tensor:
        """Small numbers; bytes of blocks are as random as they come, with scales that stay finite."""
        t = Tensor(dtype, ne)
        data = self.rng.integers(0, 0x38, t.nbytes, np.uint8)
        if dtype in (GGMLType.F32, GGMLType.F16):
            data = self.rng.normal(size=t.nelements).astype(np.float32 if dtype == GGMLType.F32 else np.float16)
        if dtype == GGMLType.MXFP4:
            data[:: SIZES[dtype].type_size] = EXPONENT
        return self.place(t, data.tobytes())

    def place(self, t: Tensor, data: bytes | None = None) -> Tensor:
        buffer = self.device.alloc_buffer(max(self.device.alloc_size(t), 1), Usage.ANY)
        buffer.place(t, 0)
        if data is not None:
            buffer.set(t, data)
        return t


def seconds(backends: list[Backend], nodes: list[Tensor], rounds: int) -> list[list[float]]:
    """Of one run of all nodes, for each backend in each round."""
    graph = build_forward(nodes)
    plans = [backend.plan(graph) for backend in backends]
    times: list[list[float]] = [[] for _ in backends]
    for turn in range(rounds + 1):
        for backend, plan, list_ in zip(backends, plans, times, strict=True):
            start = time.perf_counter()
            backend.compute(plan)
            if turn:
                list_.append(time.perf_counter() - start)
    return times


def told(name: str, amount: float, unit: str, limit: float, times: list[list[float]]) -> str:
    ours, theirs = (amount / statistics.median(t) for t in times)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    share = f"{100 * ours / limit:4.0f} %" if limit else "      "
    return f"{name:28} {ours / 1e9:9.1f} {theirs / 1e9:9.1f} {unit:6} {ratio:6.2f} {share}"


def sweep(
    device: Device, backends: list[Backend], model: str, names: Sequence[str], counts: Sequence[int], rounds: int
) -> None:
    """Products of a model's shapes with few to many columns, over layers that no cache near a core holds."""
    shapes = MODELS[model]
    macs = sum(k * n * count for k, n, count in shapes)
    print(f"{model:28} {'ours':>9} {'ggml':>9} {'':6} {'ratio':>6} {'ours us':>9}")
    for name in names:
        dtype = GGMLType[name]
        if any(k % SIZES[dtype].block_size for k, _, _ in shapes):
            continue
        work = Work(device)
        layer = sum(row_size(dtype, k) * n * count for k, n, count in shapes)
        weights = [
            [work.leaf(dtype, k, n) for k, n, c in shapes for _ in range(c)] for _ in range(-(-FAR // 4 // layer))
        ]
        for m in counts:
            inputs = {k: work.leaf(GGMLType.F32, k, m) for k in {k for k, _, _ in shapes}}
            nodes = [work.place(ops.mul_mat(w, inputs[w.ne[0]])) for part in weights for w in part]
            times = seconds(backends, nodes, rounds)
            us = statistics.median(times[0]) / len(weights) * 1e6
            line = told(f"{name} x {m}", float(macs * m * len(weights)), "GMAC/s", 0.0, times)
            print(f"{line.rstrip()} {us:9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"default: {' '.join(TYPES)}")
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-k", type=int, default=K, help="length of the rows")
    parser.add_argument("--mib", type=int, default=FAR >> 20, help="of matrices that are met by turns (%(default)s)")
    parser.add_argument("--no-attention", action="store_true")
    parser.add_argument("-c", "--columns", nargs="*", type=int, metavar="N", help=f"default: {COLUMNS}")
    parser.add_argument("--model", choices=MODELS, default="smollm2", help="the shapes of --columns")
    options = parser.parse_args()
    device = CPUDevice()
    backends = [device.open(options.threads), PeerDevice(stock().lib_dir).open(options.threads)]
    if options.columns is not None:
        sweep(device, backends, options.model, options.types or TYPES, options.columns or COLUMNS, options.rounds)
        return
    limits = Limits(options.threads)
    k = options.k
    print(f"{'':28} {'ours':>9} {'ggml':>9} {'':6} {'ratio':>6} of the limit")
    for name in options.types or TYPES:
        dtype = GGMLType[name]
        count = max(1, (options.mib << 20) // (row_size(dtype, k) * N))
        work = Work(device)
        weights = [work.leaf(dtype, k, N) for _ in range(count)]
        x, y = work.leaf(GGMLType.F32, k, 1), work.leaf(GGMLType.F32, k, TOKENS)
        vector = [work.place(ops.mul_mat(w, x)) for w in weights]
        read = statistics.median(limits.read() for _ in range(5))
        moved = float(sum(w.nbytes for w in weights))
        print(told(f"{name} matrix-vector", moved, "GB/s", read, seconds(backends, vector, options.rounds)), flush=True)
        matrix = [work.place(ops.mul_mat(weights[0], y))]
        dot = 0.0 if dtype in (GGMLType.F16, GGMLType.BF16, GGMLType.F32) else limits.dot()
        amount = float(k * N * TOKENS)
        print(told(f"{name} x {TOKENS} tokens", amount, "GMAC/s", dot, seconds(backends, matrix, options.rounds)))
    for n_kv, n_tokens in () if options.no_attention else ((512, 1), (4096, 1), (512, 512), (4096, 512)):
        work = Work(device)
        q = work.leaf(GGMLType.F32, HEAD, n_tokens, N_HEAD)
        k_cache, v_cache = (work.leaf(GGMLType.F16, HEAD, n_kv, N_HEAD_KV) for _ in range(2))
        mask = work.place(Tensor(GGMLType.F16, (n_kv, max(n_tokens, 64))), bytes(2 * n_kv * max(n_tokens, 64)))
        node = [work.place(ops.flash_attn_ext(q, k_cache, v_cache, mask, HEAD**-0.5))]
        times = seconds(backends, node, options.rounds)
        name = f"attention {n_tokens} x {n_kv}, F16"
        print(told(name, 2.0 * HEAD * n_kv * n_tokens * N_HEAD, "GMAC/s", 0.0, times), flush=True)
    for n_kv, n_tokens in () if options.no_attention else ((4096, 1), (4096, 64)):
        work = Work(device)
        q = work.leaf(GGMLType.F32, INDEXER_HEAD, INDEXER_HEADS, n_tokens)
        keys, weights = work.leaf(GGMLType.F16, INDEXER_HEAD, 1, n_kv), work.leaf(GGMLType.F32, INDEXER_HEADS, n_tokens)
        mask = work.place(Tensor(GGMLType.F16, (n_kv, n_tokens)), bytes(2 * n_kv * n_tokens))
        times = seconds(backends, [work.place(ops.lightning_indexer(q, keys, weights, mask))], options.rounds)
        name, amount = f"indexer {n_tokens} x {n_kv}, F16", float(INDEXER_HEAD * INDEXER_HEADS * n_kv * n_tokens)
        print(told(name, amount, "GMAC/s", 0.0, times), flush=True)


if __name__ == "__main__":
    main()
