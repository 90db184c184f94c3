"""`python -m pyggml_cli.cubins`: kernels for GPUs, compiled on one machine and carried to another.

Owns its flags and what it prints; no program is installed for it, as few need it.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pyggml_cli.entry import run
from pyggml_cli.flags import Flag, Row, UsageError, comma_separated, help_text, parse
from pyggml_cli.progress import meter


def capability(text: str) -> tuple[int, int]:
    """90 and 9.0 are (9, 0), 120 is (12, 0)."""
    major, point, minor = text.partition(".")
    if not point:
        major, minor = text[:-1], text[-1:]
    if not re.fullmatch("[0-9]{1,9} [0-9]{1,9}", f"{major} {minor}"):
        raise ValueError("must be a compute capability, such as 90 or 9.0")
    return int(major), int(minor)


ROWS: list[Row] = [
    Flag(("-h", "--help"), "help", "print this page and exit", default=False),
    Flag(("--sm",), "cc", "make: compute capability of the GPU (90)", capability, "CC", (9, 0)),
    Flag(("--only",), "only", "make: kernels whose name has one of these words in it", comma_separated, "WORD,...", []),
    Flag(
        ("--also",), "also", "make: modules of Python with further kernels, in a list SPECS", comma_separated, "MODULE,...", []
    ),
]  # fmt: skip
USAGE = "python -m pyggml_cli.cubins make|place FOLDER [flags]"
ABOUT = (
    "make: compile the CUDA kernels into a folder, which needs no GPU. place: put a folder's kernels into this machine's "
    "cache, which needs no compiler. Both with the same sources of pyggml."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, free=True)
    if values.help:
        print(help_text(USAGE, ABOUT, {"flags": ROWS}), end="")
        return 0
    if len(values.free) != 2 or values.free[0] not in ("make", "place"):
        raise UsageError(f"usage: {USAGE}")
    from pyggml.backend.cuda import cubins

    folder = Path(values.free[1])
    if values.free[0] == "place":
        count, cc = cubins.place(folder)
        print(f"{count} kernels for compute capability {cc[0]}.{cc[1]} placed")
        return 0
    specs = cubins.select_kernels(values.only, values.also)
    with meter("compiling kernels", len(specs), unit="kernels") as update:
        size = cubins.make(folder, values.cc, specs, update)
    print(f"{len(specs)} kernels, {size >> 10} KiB, in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
