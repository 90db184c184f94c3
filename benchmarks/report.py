"""Figures that were measured, as Markdown and as a picture: `python benchmarks/report.py FILE.json ... [--png FILE]`.

Takes what vs_llamacpp.py or server.py --json wrote, of several runs on one machine.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from chart import draw
from result_files import figures, png_file

Result = dict[str, Any]


def short(model: str) -> str:
    """SmolLM2's and the random model's files by their types."""
    name = model.removesuffix(".gguf")
    shape = "SmolLM2" if name.startswith("SmolLM2") else "1.1B" if name.startswith("llama-1.1B") else ""
    return f"{shape} {name.rpartition('.')[2].rpartition('-')[2]}" if shape else name


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} | {min(values):.2f} .. {max(values):.2f}"


def line(result: Result) -> str:
    peer = "llama.cpp" if "llama.cpp" in result else "llama-server"
    ours, theirs = (statistics.median(result[side]) for side in ("ours", peer))
    digits = 2 if result["unit"] == "s" else 0
    limit = f"{100 * ours / result['limit']:.0f} %" if "limit" in result else ""
    cells = (
        short(result["model"]),
        result["test"],
        f"{ours:.{digits}f}",
        f"{theirs:.{digits}f}",
        spread(result["ratio"]),
    )
    return f"| {' | '.join(cells)} | {limit} |"


def rpc_line(result: Result) -> str:
    rates = {name: statistics.median(values) for name, values in result["rates"].items()}
    names = "ours, local", "ours -> ours", "stock -> ours", "stock -> stock"
    cells = short(result["model"]), *(f"{rates[name]:.0f}" for name in names)
    return f"| {' | '.join(cells)} | {spread(result['own'])} | {spread(result['stock'])} |"


def tables(results: Sequence[Result]) -> str:
    """Rates, seconds and MiB by file and test; behind them what goes over RPC."""
    rows = ["| file | test | ours | llama.cpp | ratio | min .. max | of a plain read |", "|" + " --- |" * 7]
    rows += [line(result) for result in results if result["test"] != "rpc"]
    rpc = [rpc_line(result) for result in results if result["test"] == "rpc"]
    if rpc:
        head = "file | ours, local | ours -> ours | stock -> ours | stock -> stock | over RPC / local | min .. max"
        rows += ["", f"| {head} | on ours / on stock | min .. max |", "|" + " --- |" * 9, *rpc]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=figures, metavar="FILE.json")
    parser.add_argument("--png", type=png_file, help="draw the ratios into this file (needs matplotlib)")
    options = parser.parse_args()
    reports = options.files
    latest: dict[tuple[str, str], Result] = {}
    for result in (result for report in reports for result in report["results"]):
        latest[result["model"], result["test"]] = result  # of a test that was run again, the last run
    results = list(latest.values())
    print(tables(results))
    if options.png:
        named = [{**result, "model": short(result["model"])} for result in results]
        draw({"machine": reports[0]["machine"], "results": named}, options.png)


if __name__ == "__main__":
    main()
