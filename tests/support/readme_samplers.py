"""The README's table of samplers, made from the code: `python tests/support/readme_samplers.py` prints it.

Owns the table's form.
"""

from pyggml.sampler.adaptive import Mirostat, MirostatV2
from pyggml.sampler.params import DEFAULT_SAMPLERS
from pyggml.sampler.stages import Stage
from pyggml.sampler.table import LETTERS, STAGES


def summary(stage: type[Stage]) -> str:
    """The first sentence of the docstring, on one line."""
    text = " ".join((stage.__doc__ or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


def table() -> str:
    """Markdown: the stages in the order of the default chain, then those that must be asked for."""
    letters = {name: letter for letter, name in LETTERS.items()}
    lines = ["| `--samplers` | letter | by default | what it does |", "| --- | --- | --- | --- |"]
    order = [*DEFAULT_SAMPLERS, *(name for name in STAGES if name not in DEFAULT_SAMPLERS)]
    for name in order:
        place = str(DEFAULT_SAMPLERS.index(name) + 1) if name in DEFAULT_SAMPLERS else ""
        lines.append(f"| {name} | {letters[name]} | {place} | {summary(STAGES[name])} |")
    for number, stage in ((1, Mirostat), (2, MirostatV2)):
        lines.append(f"| (`--mirostat {number}`) | | | {summary(stage)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
