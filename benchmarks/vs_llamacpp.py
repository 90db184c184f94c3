"""Times ours and llama.cpp in turn on the same files: `python benchmarks/vs_llamacpp.py [FILE.gguf ...]`.

Owns what is measured and how it is told. In each round the engines run one after the other on the same machine in the
same mood: ours, llama.cpp, ours, llama.cpp. The number to read is the median over the rounds of the ratio ours /
llama.cpp of one round; above 1 we are faster. Without files: SmolLM2-135M in seven types and a 1.1B llama shape with
random weights in three.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chart import draw
from files import LLAMA_1B, SMOLLM2, llama_1b, smollm2
from limits import Limits
from result_files import json_file, png_file
from sides import Peer, Side, over_rpc, pair, stock, stock_env

from pyggml.gguf import GGUFFile

Result = dict[str, Any]

FIRST_TOKEN = """
import sys
import llama_cpp
llama = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), flash_attn=True, verbose=False)
print(llama.create_completion("Hello, my name is", max_tokens=1, temperature=0)["choices"][0]["text"], flush=True)
"""


def weight_bytes(model: Path) -> tuple[int, int]:
    """(bytes of weights that one token reads, tokens in the vocabulary)."""
    with GGUFFile.open(model) as file:
        tensors = dict(file.tensors)
    n_vocab = tensors["token_embd.weight"].ne[1]
    read = sum(t.nbytes for t in tensors.values())
    if "output.weight" in tensors:  # else the embeddings are the output matrix too
        read -= tensors["token_embd.weight"].nbytes
    return read, n_vocab


def in_turn(sides: Sequence[Side], kind: str, n: int, depth: int, rounds: int) -> list[list[float]]:
    """Tokens a second of each side in each round."""
    rates: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side.seconds(kind, n if kind == "pp" else 4, depth)  # the graph, the pages of the file
    for _ in range(rounds):
        for side, list_ in zip(sides, rates, strict=True):
            list_.append(n / side.seconds(kind, n, depth))
    return rates


def compared(name: str, test: str, rates: Sequence[Sequence[float]], unit: str = "tokens/s") -> Result:
    ours, theirs = rates
    ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"model": name, "test": test, "unit": unit, "ours": list(ours), "llama.cpp": list(theirs), "ratio": ratio}


def rates_of(model: Path, options: argparse.Namespace, peer: Peer, limits: Limits) -> Iterator[Result]:
    """Prompts, single tokens at several depths, memory: of one file, with all that fits its context."""
    read, n_vocab = weight_bytes(model)
    n_ctx = max([*options.prompt, *(d + options.generate for d in options.depth)]) + 256
    p = {"model": str(model), "n_ctx": n_ctx, "n_threads": options.threads, "n_vocab": n_vocab}
    p |= {"flash_attn": not options.no_flash_attn}
    with pair(peer, p) as sides:
        for n in options.prompt:
            yield compared(model.name, f"pp{n}", in_turn(sides, "pp", n, 0, options.rounds))
        for depth in options.depth if options.generate else ():
            test = f"tg{options.generate}" + (f" @ d{depth}" if depth else "")
            result = compared(model.name, test, in_turn(sides, "tg", options.generate, depth, options.rounds))
            if not depth:
                bandwidth = statistics.median(limits.read() for _ in range(3))
                result["limit"] = bandwidth / read
            yield result
        resident = [[side.resident()] for side in sides]
        yield compared(model.name, "memory", [[r[0] / 2**20] for r in resident], "MiB")


def first_token(model: Path, options: argparse.Namespace, peer: Peer) -> Result:
    """From the start of a process to its end after one token; the model is in the file cache, the kernels are made."""
    ours = [sys.executable, "-m", "pyggml_cli.cli", "-m", str(model), "-t", str(options.threads), "--temp", "0"]
    ours += ["-p", "Hello, my name is", "-n", "1", "-c", "512", "-no-cnv"]
    theirs = [sys.executable, "-c", FIRST_TOKEN, str(model), str(options.threads)]
    seconds: list[list[float]] = [[], []]
    for turn in range(options.rounds + 1):
        for command, env, list_ in zip((ours, theirs), (None, stock_env(peer)), seconds, strict=True):
            start = time.perf_counter()
            subprocess.run(command, env=env, check=True, capture_output=True)
            if turn:  # the first one warms the caches
                list_.append(time.perf_counter() - start)
    return compared(model.name, "first token", seconds, "s")


def rpc(model: Path, options: argparse.Namespace, peer: Peer) -> Result:
    """Single tokens with all layers behind one server on loopback."""
    _, n_vocab = weight_bytes(model)
    p = {"model": str(model), "n_ctx": 512, "n_threads": options.threads, "n_vocab": n_vocab, "flash_attn": True}
    with over_rpc(peer, p) as sides:
        rates = in_turn(sides, "tg", options.generate, 0, options.rounds)
        names = [side.name for side in sides]
    by_name = dict(zip(names, rates, strict=True))
    own = [a / b for a, b in zip(by_name["ours -> ours"], by_name["ours, local"], strict=True)]
    other = [a / b for a, b in zip(by_name["stock -> ours"], by_name["stock -> stock"], strict=True)]
    return {"model": model.name, "test": "rpc", "unit": "tokens/s", "rates": by_name, "own": own, "stock": other}


def table_line(result: Result) -> str:
    def spread(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"

    name = result["model"].removesuffix(".gguf")
    if result["test"] == "rpc":
        rates = ", ".join(f"{n} {statistics.median(v):.0f}" for n, v in result["rates"].items())
        return (
            f"{name}: rpc: {rates}; ours over RPC / local {spread(result['own'])}, "
            f"stock client on ours / on stock {spread(result['stock'])}"
        )
    ours, theirs = (statistics.median(result[side]) for side in ("ours", "llama.cpp"))
    digits = 2 if result["unit"] == "s" else 0
    limit = f"  {100 * ours / result['limit']:.0f} % of a plain read" if "limit" in result else ""
    return (
        f"{name[-40:]:40} {result['test']:>13} {ours:9.{digits}f} {theirs:9.{digits}f} {result['unit']:9}"
        f" {spread(result['ratio'])}{limit}"
    )


def machine(options: argparse.Namespace, limits: Limits) -> dict[str, Any]:
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "read GB/s": max(limits.read() for _ in range(5)) / 1e9,
        "dot GMAC/s": max(limits.dot() for _ in range(3)) / 1e9,
    }


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="FILE.gguf")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-p", "--prompt", type=numbers, default="32,128,512,2048", help="tokens of the prompts")
    parser.add_argument("-n", "--generate", type=int, default=64, help="tokens to decode one by one; 0: none")
    parser.add_argument("-d", "--depth", type=numbers, default="0,512,4096", help="tokens before those")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-flash-attn", action="store_true")
    parser.add_argument("--smollm2", default=",".join(SMOLLM2), help="types of SmolLM2 (without files)")
    parser.add_argument("--llama-1b", default=",".join(LLAMA_1B), help="types of the 1.1B shape (without files)")
    parser.add_argument("--no-rpc", action="store_true")
    parser.add_argument("--no-start", action="store_true", help="leave out the time to the first token")
    parser.add_argument("--json", type=json_file, help="write all single figures to this file")
    parser.add_argument("--png", type=png_file, help="draw the ratios into this file (needs matplotlib)")
    options = parser.parse_args()
    peer = stock()
    models = options.models or [
        *(smollm2(peer, name) for name in options.smollm2.split(",") if name),
        *(llama_1b(peer, name) for name in options.llama_1b.split(",") if name),
    ]
    limits = Limits(options.threads)
    report: dict[str, Any] = {"machine": machine(options, limits), "results": []}
    print(", ".join(f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in report["machine"].items()))
    print(f"{'model':40} {'test':>13} {'ours':>9} {'llama.cpp':>9} {'':9} ratio (min .. max), {options.rounds} rounds")

    def tell(result: Result) -> None:
        report["results"].append(result)
        print(table_line(result), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1))

    for model in models:
        for result in rates_of(model, options, peer, limits):
            tell(result)
        if not options.no_start:
            tell(first_token(model, options, peer))
        if not options.no_rpc:
            tell(rpc(model, options, peer))
    if options.png:
        draw(report, options.png)


if __name__ == "__main__":
    main()
