"""Models of other architectures beside llama.cpp: `python benchmarks/shapes.py [NAME ...] [-t THREADS] [--types Q4_0 ...]`.

Writes files with random weights in the shapes of models that people run (some with fewer layers, so that they are quickly read),
and runs pyggml-bench and llama-bench on each, by turns. The number to read is the median of the ratios ours / llama.cpp; above 1 we
are faster.
"""

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from peer_programs import ensure_programs
from random_models import write

from pyggml.cachedir import cache_dir
from pyggml.dtypes import SIZES, GGMLType

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-1.7b": {
        "general.architecture": "qwen3", "block_count": 28, "embedding_length": 2048, "feed_forward_length": 6144,
        "attention.head_count": 16, "attention.head_count_kv": 8, "attention.key_length": 128,
        "attention.value_length": 128, "rope.freq_base": 1e6, "vocab_size": 151936,
    },
    "gemma3-1b": {
        "general.architecture": "gemma3", "block_count": 26, "embedding_length": 1152, "feed_forward_length": 6912,
        "attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 256,
        "attention.value_length": 256, "rope.freq_base": 1e6, "attention.sliding_window": 512, "vocab_size": 262144,
    },
    "qwen3moe-16l-64e": {
        "general.architecture": "qwen3moe", "block_count": 16, "embedding_length": 2048, "feed_forward_length": 6144,
        "attention.head_count": 32, "attention.head_count_kv": 4, "attention.key_length": 128,
        "attention.value_length": 128, "rope.freq_base": 1e6, "vocab_size": 32000, "expert_count": 64,
        "expert_used_count": 8, "expert_feed_forward_length": 768,
    },
    "qwen35-4b-8l": {
        "general.architecture": "qwen35", "block_count": 8, "embedding_length": 2560, "feed_forward_length": 9216,
        "attention.head_count": 16, "attention.head_count_kv": 4, "attention.key_length": 256,
        "attention.value_length": 256, "rope.dimension_count": 64, "rope.freq_base": 1e7,
        "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32), "full_attention_interval": 4,
        "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": 32,
        "ssm.inner_size": 4096, "vocab_size": 32000,
    },
}  # fmt: skip
"""Hyper-parameters of each, keys without the architecture's name."""

MIXES = {
    "Q4_0": (GGMLType.Q4_0, GGMLType.Q6_K),
    "Q8_0": (GGMLType.Q8_0, GGMLType.Q8_0),
    "Q4_K_M": (GGMLType.Q4_K, GGMLType.Q6_K),
}
"""The type of matrices, and of those that llama-quantize gives more bits: the output, values, half of the last matrices."""


FALLBACK = {GGMLType.Q4_K: GGMLType.Q5_0, GGMLType.Q6_K: GGMLType.Q8_0}
"""For rows that are not a multiple of 256 (llama-quant.cpp: tensor_type_fallback)."""


def type_of(mix: str, name: str, ne: Sequence[int]) -> GGMLType:
    """Vectors and small matrices stay F32, as in llama-quantize's files."""
    usual, better = MIXES[mix]
    if len(ne) < 2 or "ffn_gate_inp" in name or "ssm_conv" in name:
        return GGMLType.F32
    more = name in ("output.weight", "token_embd.weight") or (mix == "Q4_K_M" and more_bits(name))
    chosen = better if more else usual
    return FALLBACK[chosen] if ne[0] % SIZES[chosen].block_size else chosen


def more_bits(name: str) -> bool:
    found = re.match(r"blk\.(\d+)\.(attn_v|ffn_down|ffn_down_exps)\.", name)
    return found is not None and int(found[1]) % 2 == 0


def rates(output: str) -> dict[str, float]:
    """pp512 and tg32 of a table that pyggml-bench or llama-bench prints."""
    return {test: float(rate) for test, rate in re.findall(r"\| +((?:pp|tg)\d+) \| +([\d.]+) ±", output)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--types", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-n", type=int, default=32, help="tokens to generate")
    options = parser.parse_args(argv)
    programs = ensure_programs()
    folder = cache_dir("models")
    print(f"| {'model':<18} | {'type':<6} | {'test':<6} | {'ours':>8} | {'peer':>8} | ratio |")
    print(f"|{'-' * 20}|{'-' * 8}|{'-' * 8}|{'-' * 10}|{'-' * 10}|-------|")
    for name in options.names or SHAPES:
        if name not in SHAPES:
            parser.error(f"{name} is not one of {', '.join(SHAPES)}")
        for mix in options.types:
            path = write(folder / f"{name}-{mix}.gguf", SHAPES[name], partial(type_of, mix))
            args = ["-m", str(path), "-p", "512", "-n", str(options.n), "-r", "1", "-t", str(options.threads)]
            ours, peer = list[dict[str, float]](), list[dict[str, float]]()
            for _ in range(options.rounds):
                for command, found in (
                    ([sys.executable, "-m", "pyggml_cli.bench", *args], ours),
                    ([str(programs.bin / "llama-bench"), *args], peer),
                ):
                    done = subprocess.run(command, capture_output=True, text=True)
                    assert done.returncode == 0, done.stderr[-2000:]
                    found.append(rates(done.stdout))
            for test in ours[0]:
                a, b = [each[test] for each in ours], [each[test] for each in peer]
                ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
                columns = f"{statistics.median(a):>8.1f} | {statistics.median(b):>8.1f} | {ratio:>5.2f}"
                print(f"| {name:<18} | {mix:<6} | {test:<6} | {columns} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
