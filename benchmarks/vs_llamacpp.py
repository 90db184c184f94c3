"""Times ours and llama.cpp in turn on the same files: `python benchmarks/vs_llamacpp.py FILE.gguf ... [--json]`.

Owns the measurement; must not know how either side computes. Each side is a process that keeps its model loaded and
answers one question at a time, so that in each round the two run one after the other on the same machine in the same
mood: ours, llama.cpp, ours, llama.cpp. The number to read is the median over the rounds of the ratio ours / llama.cpp
of one round; above 1 we are faster. Decoding starts after an empty context, as llama-bench's tg does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"

OURS = """
import json, sys, time
from pyggml.model.context import Context
from pyggml.model.model import Model
p = json.loads(sys.argv[1])
context = Context(Model.load(p["model"]), n_ctx=p["n_ctx"], n_threads=p["n_threads"], flash_attn=p["flash_attn"])
def clear():
    context.clear()
def decode(tokens):
    context.decode(tokens)
"""

THEIRS = """
import ctypes, json, sys, time
import llama_cpp
p = json.loads(sys.argv[1])
llama = llama_cpp.Llama(
    p["model"], n_ctx=p["n_ctx"], n_batch=2048, n_ubatch=512, n_threads=p["n_threads"],
    n_threads_batch=p["n_threads"], flash_attn=p["flash_attn"], verbose=False,
)
memory = llama_cpp.llama_get_memory(llama.ctx)
def clear():
    llama_cpp.llama_memory_clear(memory, True)
def decode(tokens):
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    code = llama_cpp.llama_decode(llama.ctx, llama_cpp.llama_batch_get_one(array, len(tokens)))
    assert code == 0, code
    llama_cpp.llama_synchronize(llama.ctx)
"""

LOOP = """
def run(kind, n):
    clear()
    start = time.perf_counter()
    tokens = [(100 + i * 7) % p["n_vocab"] for i in range(n)]
    for part in [tokens] if kind == "pp" else [[token] for token in tokens]:
        decode(part)
    return time.perf_counter() - start
print("ready", flush=True)
for line in sys.stdin:
    kind, n = line.split()
    print(run(kind, int(n)), flush=True)
"""


class Side:
    """One engine with one file, waiting for questions."""

    def __init__(self, script: str, p: dict[str, Any], env: dict[str, str]) -> None:
        command = [sys.executable, "-c", script + LOOP, json.dumps(p)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._answer("ready")

    def _answer(self, wanted: str | None = None) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if wanted is None or line.strip() == wanted:
                return line
        raise SystemExit(f"a side ended with exit code {self.process.wait()}")

    def seconds(self, kind: str, n: int) -> float:
        """How long a prompt of n tokens ("pp"), or n single tokens ("tg"), take."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {n}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


def measure(model: Path, tests: Sequence[tuple[str, int]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each test: rates (tokens a second) of both sides by round, and the ratios of each round."""
    sys.path.insert(0, str(SUPPORT))
    from peer import Peer
    from peer_build import ensure_peer

    from pyggml.gguf import GGUFFile

    site = Peer(*ensure_peer()).site
    file = GGUFFile.open(model)
    n_vocab = file.tensors["token_embd.weight"].ne[1]
    file.close()
    longest = max(n for _, n in tests)
    p = {"model": str(model), "n_ctx": -(-longest // 256) * 256 + 256, "n_threads": options.threads}
    p |= {"flash_attn": not options.no_flash_attn, "n_vocab": n_vocab}
    sides = [Side(OURS, p, dict(os.environ)), Side(THEIRS, p, {**os.environ, "PYTHONPATH": str(site)})]
    found = []
    for kind, n in tests:
        rates: list[list[float]] = [[], []]
        for side in sides:
            side.seconds(kind, n if kind == "pp" else 8)  # the graph, the pages of the file
        for _ in range(options.rounds):
            for side, list_ in zip(sides, rates, strict=True):
                list_.append(n / side.seconds(kind, n))
        ratios = [a / b for a, b in zip(*rates, strict=True)]
        found.append(
            {"model": model.name, "test": f"{kind}{n}", "ours": rates[0], "llamacpp": rates[1], "ratio": ratios}
        )
    for side in sides:
        side.close()
    return found


def line(result: dict[str, Any]) -> str:
    ours, theirs = (statistics.median(result[name]) for name in ("ours", "llamacpp"))
    low, middle, high = min(result["ratio"]), statistics.median(result["ratio"]), max(result["ratio"])
    name = f"{result['model'][-36:]:36} {result['test']:>6}"
    return f"{name} {ours:10.1f} {theirs:10.1f} {middle:8.2f} {low:6.2f} .. {high:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt; 0: none")
    parser.add_argument("-n", "--generate", type=int, default=96, help="tokens to decode one by one; 0: none")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-flash-attn", action="store_true")
    parser.add_argument("--json", action="store_true", help="all single figures, one object a line")
    options = parser.parse_args()
    tests = [(kind, n) for kind, n in (("pp", options.prompt), ("tg", options.generate)) if n > 0]
    if not options.json:
        print(f"{options.threads} threads, {options.rounds} rounds; tokens a second (medians), ratio ours / llama.cpp")
        print(f"{'model':36} {'test':>6} {'ours':>10} {'llama.cpp':>10} {'ratio':>8} {'min':>6} .. max")
    for model in options.models:
        for result in measure(model, tests, options):
            print(json.dumps(result) if options.json else line(result), flush=True)


if __name__ == "__main__":
    main()
