"""A picture of the ratios: a bar a file and test, 1 = llama.cpp."""

import statistics
from pathlib import Path
from typing import Any

SHOWN = ("pp512", "tg64")
COLOURS = ("#4878d0", "#ee854a", "#6acc64", "#d65f5f")


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG file. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [r for r in report["results"] if "ratio" in r and r["unit"] == "tokens/s"]
    tests = [t for t in SHOWN if any(r["test"] == t for r in results)] or list(
        dict.fromkeys(r["test"] for r in results)
    )
    models = list(dict.fromkeys(r["model"] for r in results))
    figure, axes = pyplot.subplots(figsize=(10, 0.6 + 0.28 * len(models) * len(tests)), layout="constrained")
    height = 0.8 / len(tests)
    for i, test in enumerate(tests):
        for row, model in enumerate(models):
            found = [r["ratio"] for r in results if r["model"] == model and r["test"] == test]
            if found:
                middle, least, most = statistics.median(found[0]), min(found[0]), max(found[0])
                y = row + (i - (len(tests) - 1) / 2) * height
                axes.barh(y, middle, height, color=COLOURS[i % len(COLOURS)], label=test if row == 0 else None)
                axes.plot([least, most], [y, y], color="black", linewidth=1)
                axes.text(most + 0.05, y, f"{middle:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(models)), [m.removesuffix(".gguf") for m in models])
    axes.invert_yaxis()
    axes.set_xlabel("tokens a second, ours / llama.cpp (median of the rounds; line: least to greatest)")
    about = report["machine"]
    axes.set_title(f"{about['cpu']}, {about['threads']} threads, {about['date']}", fontsize=10)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
