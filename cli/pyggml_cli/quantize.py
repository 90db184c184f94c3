"""`pyggml-quantize`: a model file in smaller types, with llama-quantize's arguments, names of mixes and results.

Owns the command line and what is printed.
"""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyggml_cli.about import answered
from pyggml_cli.entry import run
from pyggml_cli.flags import (
    Flag,
    Ignored,
    Refused,
    Row,
    UsageError,
    Values,
    filename,
    help_text,
    number,
    parse,
    whole,
)
from pyggml_cli.text_files import read_bytes

if TYPE_CHECKING:
    from pyggml.dtypes import GGMLType
    from pyggml.quantize import Mix, Override, Plan, Wishes

MIB = 1 << 20

EQUAL = "all columns of a matrix count the same"
ROWS: list[Row] = [
    Flag(("-h", "--help"), "help", "print this page and exit", default=False),
    Flag(("--version",), "version", "print the version and exit", default=False),
    Flag(
        ("--allow-requantize",), "allow_requantize", "also convert tensors that are quantised already, at a loss",
        default=False,
    ),
    Flag(("--leave-output-tensor",), "leave_output", "leave output.weight as it is", default=False),
    Flag(("--pure",), "pure", "every matrix gets the same type, without a mix", default=False),
    Flag(("--output-tensor-type",), "output_type", "type of output.weight", str, "TYPE"),
    Flag(("--token-embedding-type",), "embedding_type", "type of the token embeddings", str, "TYPE"),
    Flag(
        ("--tensor-type",), "tensor_type",
        "type of the tensors in whose names this regular expression is found, e.g. attn_v=q8_0; may be given again",
        str, "NAME=TYPE", many=True,
    ),
    Flag(("--tensor-type-file",), "tensor_type_files", "a file of such pairs", filename, "FNAME", many=True),
    Flag(
        ("--override-kv",), "override_kv",
        "set a metadata entry of the new file; TYPE is int, float, bool or str; may be given again",
        str, "KEY=TYPE:VALUE", many=True,
    ),
    Flag(("--keep-split",), "keep_split", "as many files as the model has now", default=False),
    Flag(("--dry-run",), "dry_run", "show types and sizes, and write nothing", default=False),
    Ignored(("--max-buffer-size",), 1, parse=whole(1)),
    *(Refused((name,), 1, why=EQUAL) for name in ("--imatrix", "--include-weights", "--exclude-weights")),
    Refused(("--prune-layers",), 1, why="all layers are kept"),
]  # fmt: skip

USAGE = "pyggml-quantize [flags] IN.gguf [OUT.gguf] MIX [THREADS]"
ABOUT = (
    "Convert a model's matrices. MIX is one of the names below, in any case, or llama.cpp's number of it. Without "
    "OUT.gguf the result is ggml-model-MIX.gguf beside the input. THREADS: one a core."
)


EXAMPLES = (
    ("pyggml-quantize model-f16.gguf model-q4.gguf q4_k_m", "a smaller file, a little less exact"),
    ("pyggml-quantize --dry-run model-f16.gguf q8_0", "show types and sizes only"),
    ("pyggml-quantize --tensor-type attn_v=q8_0 model-f16.gguf out.gguf q4_0", "some tensors in another type"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, free=True)
    if answered(values, lambda: help_text(USAGE, ABOUT, {"flags": ROWS}, _mixes(), EXAMPLES)):
        return 0
    source, target, mix, n_threads = _arguments(values)
    return _quantize(values, source, target, mix, n_threads)


def _mixes() -> str:
    from pyggml.quantize import COPY, MIXES

    named = ", ".join(f"{mix.name} ({mix.number})" for mix in MIXES.values())
    return f"Mixes: {named}, and {COPY}, which converts nothing. Q3_K, Q4_K and Q5_K are their _M."


def _unknown(word: str) -> str:
    from pyggml.quantize import COPY, MIXES

    return f"{word}: unknown quantisation mix; known are {', '.join([*MIXES, COPY])}"


def _arguments(values: Values) -> "tuple[Path, Path, Mix | None, int]":
    """IN, OUT, MIX and THREADS. Raises UsageError, UnsupportedError."""
    from pyggml.quantize import COPY, find_mix

    rest = list(values.free)
    if len(rest) < 2 or not all(rest):
        raise UsageError(f"usage: {USAGE}")
    source = Path(rest.pop(0))

    def taken() -> "tuple[str, Mix | None] | None":
        """What the next argument names; None if it names no mix."""
        if rest[0].upper() == COPY:
            return COPY, None
        mix = find_mix(rest[0])
        return (mix.name, mix) if mix is not None else None

    found = taken()
    if found is not None:
        target = source.with_name(f"ggml-model-{found[0]}.gguf")
    else:
        target = Path(rest.pop(0))
        if not rest:
            raise UsageError(_unknown(str(target)))
        found = taken()
        if found is None:
            raise UsageError(_unknown(rest[0]))
    rest.pop(0)
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}")
    try:
        n_threads = whole()(rest[0]) if rest else 0
    except ValueError as reason:
        raise UsageError(f"threads {rest[0]!r}: {reason}") from None
    return source, target, found[1], n_threads


def _quantize(values: Values, source: Path, target: Path, mix: "Mix | None", n_threads: int) -> int:
    from pyggml.gguf import GGUFFile
    from pyggml.quantize import make_plan, run
    from pyggml_cli.bus_errors import explain_bus_errors
    from pyggml_cli.loading import compile_progress, model_path
    from pyggml_cli.progress import meter

    wishes, overrides = _wishes(values), [_override(text) for text in values.override_kv]
    start = time.perf_counter()
    with explain_bus_errors(), GGUFFile.open(model_path(str(source))) as file:
        plan = make_plan(
            file, mix, wishes, overrides, allow_requantize=values.allow_requantize, keep_split=values.keep_split,
            check=not values.dry_run,
        )  # fmt: skip
        if values.dry_run:
            _show(plan)
        _warn(plan)
        if not values.dry_run:
            with compile_progress(), meter("quantizing", plan.n_before) as update:
                paths = run(plan, target, n_threads, lambda done, total, _: update(done, total))
        _sizes(plan)
    if not values.dry_run:
        print(f"{', '.join(map(str, paths))}: written in {time.perf_counter() - start:.1f} s")
    return 0


def _wishes(values: Values) -> "Wishes":
    """Raises UsageError."""
    from pyggml.errors import UnsupportedError
    from pyggml.quantize import Wishes, find_type

    def chosen(where: str, kind: str) -> "GGMLType":
        try:
            return find_type(kind)
        except UnsupportedError as reason:
            raise UsageError(f"{where}: {reason}") from None

    pairs = [("--tensor-type", pair) for pair in values.tensor_type]
    for name in values.tensor_type_files:
        pairs += [(f"{name}:", pair) for pair in read_bytes(name).decode("utf-8", "surrogateescape").split()]
    overrides = []
    for where, pair in pairs:
        pattern, equals, kind = pair.partition("=")
        if not pattern or not equals or not kind:
            raise UsageError(f"{where} {pair!r:.60}: must be NAME=TYPE, as in ffn_up=q8_0")
        try:
            overrides.append((re.compile(pattern.lower()), chosen(f"{where} {pair!r:.60}", kind)))
        except re.error as reason:
            raise UsageError(f"{where} {pair!r:.60}: not a regular expression: {reason}") from None
    return Wishes(
        output=None if values.output_type is None else chosen("--output-tensor-type", values.output_type),
        embedding=None if values.embedding_type is None else chosen("--token-embedding-type", values.embedding_type),
        leave_output=values.leave_output,
        pure=values.pure,
        overrides=overrides,
    )


def _override(text: str) -> "Override":
    """KEY=TYPE:VALUE (string_parse_kv_override). Raises UsageError."""
    from pyggml.quantize import Override

    key, _, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    try:
        if key and colon and kind == "int":
            return Override(key, whole()(value))
        if key and colon and kind == "float":
            return Override(key, number(value))
        if key and colon and kind == "bool" and value in ("true", "false"):
            return Override(key, value == "true")
        if key and colon and kind == "str":
            return Override(key, value)
    except ValueError as reason:
        raise UsageError(f"--override-kv {text!r}: {reason}") from None
    raise UsageError(f"--override-kv {text!r}: must be KEY=int:N, KEY=float:X, KEY=bool:true|false or KEY=str:TEXT")


def _show(plan: "Plan") -> None:
    """A line for each tensor."""
    width = max((len(task.source.name) for task in plan.tasks), default=0)
    for task in plan.tasks:
        source, made = task.source, task.planned
        shape = " x ".join(str(n) for n in source.ne if n != 1) or "1"
        line = f"{source.name:<{width}}  {shape:>16}  {source.type.name:>6} -> {made.type.name:<6}"
        print(f"{line}  {source.nbytes / MIB:10.3f} -> {made.nbytes / MIB:10.3f} MiB")


def _warn(plan: "Plan") -> None:
    """Which types the lengths of rows do not allow, on stderr."""
    changed: dict[tuple[str, str, int], int] = {}
    for task in plan.tasks:
        if task.instead_of is not None:
            key = task.instead_of.name, task.type.name, task.source.ne[0]
            changed[key] = changed.get(key, 0) + 1
    for (wanted, given, ne0), n in changed.items():
        become = f"{n} tensors become" if n > 1 else "1 tensor becomes"
        print(f"warning: rows of {ne0} do not divide into {wanted} blocks: {become} {given}", file=sys.stderr)


def _sizes(plan: "Plan") -> None:
    for what, size in (("model", plan.n_before), ("quant", plan.n_after)):
        bits = size * 8 / max(plan.n_elements, 1)
        print(f"{what} size = {size / MIB:8.2f} MiB ({bits:.2f} BPW)")


if __name__ == "__main__":
    sys.exit(main())
