"""Many sequences decoded together, ours and llama.cpp in turn: `python benchmarks/many_sequences.py [FILE.gguf ...]`.

Owns what is asked of pyggml-batched-bench and llama-batched-bench, and how it is told. In each round both programs run
once on the same file with the same flags. Rates are tokens a second of all sequences together; a ratio is ours /
llama.cpp of one round, "x one" our rate over our rate for a single sequence in that round. Without files: SmolLM2-135M
in Q4_0 and Q8_0.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from files import smollm2
from limits import Limits
from result_files import json_file
from sides import stock, stock_env
from vs_llamacpp import compared, machine, numbers

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from peer_build import PeerMissing  # noqa: E402
from peer_programs import ensure_programs  # noqa: E402

Result = dict[str, Any]
Rates = dict[tuple[str, int], float]
"""By ("pp" or "tg", sequences)."""

CELL_STEP = 256
"""A sequence's share of a context is a multiple of it, on both sides."""


def flags(model: Path, options: argparse.Namespace) -> list[str]:
    """What both programs are given."""
    each = -(-(options.prompt + options.generate) // CELL_STEP) * CELL_STEP
    given = {
        "-m": model,
        "-c": each * max(options.sequences),
        "-npp": options.prompt,
        "-ntg": options.generate,
        "-npl": ",".join(map(str, options.sequences)),
        "-t": options.threads,
        "-fa": "on",
        "-ngl": 0,
        "--output-format": "jsonl",
    }
    return [str(part) for pair in given.items() for part in pair]


TRIES = 10


def rates(command: Sequence[str], env: dict[str, str] | None, sequences: Sequence[int]) -> Rates:
    """One run of a program; again where a line is not there, as the stock ones lose or mix some at times."""
    for _ in range(TRIES):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        found = {
            (kind, int(row["pl"])): float(row[f"speed_{kind}"]) for row in _rows(done.stdout) for kind in ("pp", "tg")
        }
        missing = [n for n in sequences if ("pp", n) not in found]
        if not missing:
            return found
    raise SystemExit(f"{command[0]} told nothing of {missing} sequences in {TRIES} runs: {done.stdout[-2000:]}")


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """The tests of a program's text, in which other words may stand before them, or in them."""
    for row in re.findall(r"\{[^{}]*\}", text):
        with contextlib.suppress(ValueError):
            yield json.loads(row)


def measure(model: Path, options: argparse.Namespace, sides: Sequence[tuple[Sequence[str], Any]]) -> list[Result]:
    """All tests of a file, ours first in each round."""
    runs: list[list[Rates]] = [[] for _ in sides]
    for turn in range(options.rounds + options.warm_up):
        for (command, env), list_ in zip(sides, runs, strict=True):
            found = rates([*command, *flags(model, options)], env, options.sequences)
            if turn >= options.warm_up:
                list_.append(found)
    results = []
    for kind, n in (("pp", options.prompt), ("tg", options.generate)):
        for n_seqs in options.sequences:
            of = [[run[kind, n_seqs] for run in list_] for list_ in runs]
            result = compared(model.name, f"{kind}{n} x {n_seqs}", of)
            if 1 in options.sequences:
                result["own"] = [run[kind, n_seqs] / run[kind, 1] for run in runs[0]]
            results.append(result)
    return results


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def line(result: Result) -> str:
    ours, theirs = (statistics.median(result[side]) for side in ("ours", "llama.cpp"))
    own = f"  x one {spread(result['own'])}" if "own" in result else ""
    name = result["model"].removesuffix(".gguf")
    return f"{name[-30:]:30} {result['test']:>12} {ours:9.1f} {theirs:9.1f}  {spread(result['ratio'])}{own}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="FILE.gguf")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-npp", "--prompt", type=int, default=128, help="tokens of each prompt (%(default)s)")
    parser.add_argument("-ntg", "--generate", type=int, default=64, help="tokens of each sequence (%(default)s)")
    parser.add_argument("-npl", "--sequences", type=numbers, default="1,4,16,32", help="sequences (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--smollm2", default="Q4_0,Q8_0", help="types of SmolLM2, without files (%(default)s)")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_const", const=0, default=1)
    parser.add_argument("--json", type=json_file, help="write all single figures to this file")
    options = parser.parse_args()
    if min(options.rounds, options.prompt, options.generate, options.threads, *options.sequences) < 1:
        parser.error("rounds, tokens, sequences and threads must be at least 1")
    peer = stock()
    try:
        program = ensure_programs().bin / "llama-batched-bench"
    except PeerMissing as reason:
        sys.exit(f"nothing to compare with: {reason}")
    sides = (
        ((sys.executable, "-m", "pyggml_cli.batched_bench"), None),
        ((str(program),), stock_env(peer)),
    )
    models = options.models or [smollm2(peer, name) for name in options.smollm2.split(",") if name]
    report: Result = {"machine": machine(options, Limits(options.threads)), "results": []}
    print(", ".join(f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in report["machine"].items()))
    print(f"{'model':30} {'test':>12} {'ours':>9} {'llama.cpp':>9}  ratio (min .. max), {options.rounds} rounds")
    for model in models:
        for result in measure(model, options, sides):
            report["results"].append(result)
            print(line(result), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
