"""Measures the CUDA backend on this machine's GPU: `python benchmarks/gpu.py [--out gpu.json]`, in about a minute.

Owns what is measured and how it is told. Everything is a graph that is planned, noted as a CUDA graph and replayed;
weights are more than the second cache holds. Beside the card's own copy bandwidth, measured here, and a library's
half-precision product (PyTorch), where one is installed. Shapes are those of an 8B llama.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from result_files import json_file

from pyggml import ops
from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.pack import pack
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.graph import build_forward
from pyggml.memory import MemoryOptions, allocate, make_memory
from pyggml.model import make_modules
from pyggml.model.graph import GraphBuilder, UbatchShape
from pyggml.model.hparams import Hparams
from pyggml.model.usual import blank_weights
from pyggml.runtime.batch import Batch, split
from pyggml.tensor import Tensor

T = GGMLType
TYPES = (T.Q4_0, T.Q8_0, T.Q4_K, T.Q6_K, T.Q5_0, T.IQ4_XS, T.F16, T.BF16)
SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096), (4096, 128256))  # elements a row, rows
MODELS = (T.Q4_0, T.Q8_0, T.Q4_K, T.F16)
LLAMA_8B = {
    "embedding_length": 4096, "block_count": 32, "feed_forward_length": 14336, "attention.head_count": 32,
    "attention.head_count_kv": 8, "attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 128,
    "context_length": 8192, "vocab_size": 128256,
}  # fmt: skip


def fill(buffer: Buffer) -> None:
    """64 MiB of random bytes, then copies of them made within the card."""
    if not buffer.size:
        return

    def piece(offset: int, size: int) -> Tensor:
        t = Tensor(T.I8, (size,))
        buffer.place(t, offset)
        return t

    done = min(buffer.size, 64 << 20)
    head = piece(0, done)
    buffer.set(head, np.random.default_rng(0).integers(0, 256, done, np.uint8) & 0xBF)
    while done < buffer.size:
        size = min(done, buffer.size - done)
        buffer.copy(piece(0, size), piece(done, size))
        done += size


class Bench:
    """`rotate`: bytes of weights to go through in one replay, beyond any cache; `seconds`: how long each thing is timed."""

    def __init__(self, device: Device, rotate: int = 1 << 30, seconds: float = 0.4) -> None:
        self.device, self.rotate, self.seconds = device, rotate, seconds
        self.backend = device.open()
        self.buffers: list[Buffer] = []

    def place(self, *tensors: Tensor, usage: Usage = Usage.ANY) -> None:
        """Random bytes that are numbers below 2 in every type of floats, scales of blocks included: with bit 6 of each byte
        clear no exponent is large. The same numbers everywhere would take less power, and so more clock."""
        made = pack(self.device, tensors, usage)
        for buffer in made:
            fill(buffer)
        self.buffers += made

    def free(self) -> None:
        for buffer in self.buffers:
            buffer.free()
        self.buffers = []

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one run: the median of five stretches."""
        for _ in range(3):  # direct, noted, replayed
            run()
        start = time.perf_counter()
        run()
        n = max(1, int(self.seconds / 5 / max(time.perf_counter() - start, 1e-6)))
        stretches = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(n):
                run()
            stretches.append((time.perf_counter() - start) / n)
        return statistics.median(stretches)

    def graph(self, results: Sequence[Tensor], leafs: Sequence[Tensor]) -> float:
        """Seconds of a graph of these results."""
        self.place(*leafs)
        nodes = build_forward(results)
        self.place(*(n for n in nodes.nodes if n.view_src is None))
        for n in nodes.nodes:
            if n.view_src is not None:
                n.buffer, n.data = n.view_src.buffer, n.view_src.data + n.view_offs
        plan = self.backend.plan(nodes)
        seconds = self.timed(lambda: self.backend.compute(plan))
        self.free()
        return seconds

    # ---- what is measured

    def copy(self, size: int = 1 << 30) -> float:
        """Bytes a second, read and written, of a copy within the card."""
        a, b = Tensor(T.I8, (size,)), Tensor(T.I8, (size,))
        self.place(a, b)

        def run() -> None:
            assert b.buffer is not None
            b.buffer.copy(a, b)
            self.backend.synchronize()

        seconds = self.timed(run)
        self.free()
        return 2 * size / seconds

    def node(self, n: int = 500) -> float:
        """Seconds a node of a replayed chain of tiny nodes."""
        first = last = Tensor(T.F32, (32,))
        for _ in range(n):
            last = ops.scale(last, 1.0)
        return self.graph([last], [first]) / n

    def product(self, dtype: GGMLType, k: int, n: int, m: int) -> dict[str, float]:
        """MUL_MAT of (k, n) with m columns, other weights each time."""
        w = Tensor(dtype, (k, n))
        count = max(2, min(64, self.rotate // w.nbytes))
        weights = [Tensor(dtype, (k, n)) for _ in range(count)]
        x = Tensor(T.F32, (k, m))
        seconds = self.graph([ops.mul_mat(a, x) for a in weights], [x, *weights]) / count
        return {"us": 1e6 * seconds, "bytes/s": w.nbytes / seconds, "flop/s": 2.0 * k * n * m / seconds}

    def attention(
        self, n_kv: int, n_tokens: int, n_head: int = 32, n_head_kv: int = 8, head: int = 128
    ) -> dict[str, float]:
        """FLASH_ATTN_EXT of one layer over F16 rows, other keys and values each time; no score is masked."""
        q, mask = Tensor(T.F32, (head, n_tokens, n_head)), Tensor(T.F16, (n_kv, n_tokens))
        read = 2 * Tensor(T.F16, (head, n_kv, n_head_kv)).nbytes
        count = max(4, min(32, self.rotate // read)) if n_tokens == 1 else 4  # 4: enough to be replayed
        caches = [tuple(Tensor(T.F16, (head, n_kv, n_head_kv)) for _ in range(2)) for _ in range(count)]
        layers = [ops.flash_attn_ext(q, k, v, mask, head**-0.5) for k, v in caches]
        seconds = self.graph(layers, [q, mask, *(t for pair in caches for t in pair)]) / count
        work = 4.0 * n_tokens * n_kv * head * n_head
        return {"us": 1e6 * seconds, "bytes/s": read / seconds, "flop/s": work / seconds}

    def model(self, dtype: GGMLType, shape: dict[str, int], prompt: int = 512) -> dict[str, float]:
        """Tokens a second of a llama whose weights are all the same, with every layer on the card."""
        n_vocab = shape["vocab_size"]
        metadata: dict[str, Any] = {f"llama.{key}": value for key, value in shape.items()}
        metadata |= {"general.architecture": "llama", "llama.attention.layer_norm_rms_epsilon": 1e-5}
        hp = Hparams(metadata, "llama")
        matrix = SimpleNamespace(ne=(hp.n_embd, n_vocab, 1, 1), type=dtype)
        modules = make_modules(hp, {"token_embd.weight": matrix, "output.weight": matrix})
        every = blank_weights(modules, dtype)
        self.place(*every, usage=Usage.WEIGHTS)
        cpu = CPUDevice()
        scheduler = Scheduler([self.backend, cpu.open(1)])
        memory = make_memory(modules.needs(), MemoryOptions(2 * prompt))
        allocate(memory, [self.device] * hp.n_layer, lambda graph, inputs: None)
        found: dict[str, float] = {}
        for name, n_tokens, past in (("prefill", prompt, 0), ("decode", 1, prompt)):
            memory.clear()
            if past:
                placed = memory.place(prompts(past, 0))
                assert placed is not None
                memory.commit(placed)
            ub = prompts(n_tokens, past)
            placement = memory.place(ub)
            assert placement is not None
            parts: Any = memory.shape(placement)
            built = modules.build(GraphBuilder(hp, memory, UbatchShape(n_tokens, 1, parts)))
            schedule = scheduler.schedule(built.graph)
            inputs = built.values(ub, placement)
            logits = built.logits
            assert logits is not None

            def run(schedule: Any = schedule, inputs: Any = inputs, logits: Any = logits) -> None:
                for tensor, values in inputs:
                    schedule.set_input(tensor, values)
                schedule.run()
                schedule.get(logits)

            seconds = self.timed(run)
            found[f"{name} tokens/s"] = n_tokens / seconds
        read = sum(w.nbytes for w in every) - modules.token_embd.weight.value.nbytes
        found["decode bytes/s"] = read * found["decode tokens/s"]
        memory.free()
        scheduler.close()
        self.free()
        return found


def prompts(n: int, start: int) -> Any:
    """A micro-batch of `n` tokens from position `start` on, of which the last is an output."""
    ((ub, _),) = split(Batch.of(np.ones(n, np.int32), start), n, 1, 1)
    return ub


def library(k: int, n: int, m: int) -> dict[str, float] | None:
    """The same product in F16 by PyTorch; None where it is not installed or sees no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a = [torch.randn(n, k, dtype=torch.float16, device="cuda") for _ in range(8)]
    x = torch.randn(k, m, dtype=torch.float16, device="cuda")
    for w in a:
        w @ x
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        for w in a:
            w @ x
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / (20 * len(a))
    return {"us": 1e6 * seconds, "flop/s": 2.0 * k * n * m / seconds, "bytes/s": 2.0 * k * n / seconds}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=json_file, default="gpu.json", help="where the figures go (gpu.json)")
    parser.add_argument("--no-models", action="store_true", help="leave the whole models out")
    args = parser.parse_args(argv)
    from pyggml.backend.cuda import cuda_devices, why_no_cuda

    reason = why_no_cuda()
    if reason is not None:
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 1
    device = cuda_devices()[0]
    bench = Bench(device)
    told: dict[str, Any] = {"device": device.description, "date": time.strftime("%Y-%m-%d")}

    def tell(name: str, figures: Any) -> None:
        told[name] = figures
        print(
            name,
            {k: f"{v:.4g}" for k, v in figures.items()} if isinstance(figures, dict) else f"{figures:.4g}",
            flush=True,
        )

    ceiling = bench.copy()
    tell("copy bytes/s", ceiling)
    tell("us a replayed node", 1e6 * bench.node())
    for dtype in TYPES:
        for k, n in SHAPES:
            figures = bench.product(dtype, k, n, 1)
            tell(f"matvec {dtype.name} {n}x{k}", {**figures, "of copy": figures["bytes/s"] / ceiling})
        tell(f"matmat {dtype.name} 14336x4096x512", bench.product(dtype, 4096, 14336, 512))
    for m in (1, 512):
        figures_or_none = library(4096, 14336, m)
        if figures_or_none is not None:
            tell(f"PyTorch F16 14336x4096x{m}", figures_or_none)
    for n_kv in (1024, 8192, 32768):
        tell(f"attention decode {n_kv}", bench.attention(n_kv, 1))
        tell(f"attention prefill 512 of {n_kv}", bench.attention(n_kv, 512))
    for dtype in () if args.no_models else MODELS:
        tell(f"8B {dtype.name}", bench.model(dtype, LLAMA_8B))
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
