"""`pyggml-batched-bench`: how fast many sequences are together, with llama-batched-bench's flags, tests and formats.

Owns the list of tests and the stopwatch (tools/batched-bench/batched-bench.cpp).
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyggml_cli.about import answered
from pyggml_cli.completion_flags import DEVICES, GENERAL, LISTS, MODEL, ROPE, SAMPLING
from pyggml_cli.entry import run
from pyggml_cli.environment import VARIABLES
from pyggml_cli.flags import (
    Flag,
    Ignored,
    Refused,
    Row,
    UsageError,
    Values,
    choice,
    help_text,
    parse,
    whole,
    without_effect,
)
from pyggml_cli.interrupts import on_ctrl_c
from pyggml_cli.other_flags import NO_DIFFERENCE, NOT_HERE

if TYPE_CHECKING:
    from pyggml.runtime.context import Context

WARM_UP = 16  # tokens


def _counts(least: int) -> Callable[[str], list[int]]:
    """Parser of `128,256`."""
    return lambda text: [whole(least)(part) for part in text.split(",")]


def _here(row: Row) -> Row:
    """A row of the completion tool; what the context is for differs."""
    if isinstance(row, Flag) and row.dest == "n_ctx":
        return dataclasses.replace(row, help="tokens of all sequences together (0: as many as the model's own)")
    return row


TESTS: list[Row] = [
    Flag(("-npp",), "n_pp", "tokens of each prompt", _counts(1), "N0,N1", many=True),
    Flag(("-ntg",), "n_tg", "tokens generated in each sequence", _counts(0), "N0,N1", many=True),
    Flag(("-npl",), "n_pl", "sequences", _counts(1), "N0,N1", many=True),
    Flag(("-pps",), "shared", "all sequences have the same prompt, computed once", default=False),
    Flag(("-tgs",), "separate", "generate in one sequence after the other", default=False),
    Flag(
        ("-kvu", "--kv-unified"), "kv_unified", "sequences share their cells, and each may be as long as there is room (off)",
        default=False, off=("-no-kvu", "--no-kv-unified"),
    ),
    Flag(("--output-format",), "output", "md or jsonl (md)", choice("md", "jsonl"), "md|jsonl", "md"),
]  # fmt: skip
GROUPS = {
    "general": GENERAL,
    "tests": TESTS,
    "model": [_here(row) for row in MODEL],
    "devices": DEVICES,
    "positions": ROPE,
}
OTHERS: list[Row] = [
    *without_effect(SAMPLING),
    Ignored(("-np", "--parallel"), 1, parse=whole(-1)),  # -npl says how many sequences there are
    *(Refused(row.names, why="pyggml-cli prints that") for row in LISTS),
    *NO_DIFFERENCE,
    *(row for row in NOT_HERE if "--parallel" not in row.names),
]
ROWS: list[Row] = [row for group in GROUPS.values() for row in group] + OTHERS
ABOUT = (
    "Measure prompts (PP) and generation (TG) of B sequences that are computed together. All values given multiply; tests "
    "that do not fit into the context are left out. Time in which kernels are compiled does not count."
)
EXAMPLES = (
    ("pyggml-batched-bench -c 8192 -npp 128 -ntg 64 -npl 1,4,16,32", "the default model, up to 32 sequences"),
    ("pyggml-batched-bench -m model.gguf -c 4096 -npp 512 -ntg 32 -npl 8 -pps", "one prompt for all"),
)
COLUMNS = (
    *(("PP", 6), ("TG", 6), ("B", 4), ("N_KV", 6)),
    *((name, 8) for name in ("T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")),
)


class Case(NamedTuple):
    """One test: tokens of a prompt, tokens generated, sequences."""

    pp: int
    tg: int
    pl: int

    def cells(self, shared: bool, unified: bool) -> int:
        """Tokens that all sequences have at the end."""
        prompts = (self.pp if unified else self.pl * self.pp) if shared else self.pl * self.pp
        return prompts + self.pl * self.tg


class Measured(NamedTuple):
    """Seconds for prompts and generation, and how many tokens they were."""

    t_pp: float
    t_tg: float
    n_pp: int
    n_tg: int


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, os.environ, VARIABLES)
    if answered(
        values,
        lambda: help_text(
            "pyggml-batched-bench [-m FNAME] -npp N -ntg N -npl N [flags]", ABOUT, GROUPS, examples=EXAMPLES
        ),
    ):
        return 0
    todo = list(cases(values))
    from pyggml.runtime.context import MAX_SEQUENCES, Context
    from pyggml_cli.loading import compile_progress, context_arguments, model_for

    n_seq_max = max(case.pl for case in todo)
    if n_seq_max > MAX_SEQUENCES:
        raise UsageError(f"-npl {n_seq_max}: a context has at most {MAX_SEQUENCES} sequences")
    with compile_progress(), model_for(values) as model:
        arguments = context_arguments(values, model)
        context = Context(model, values.n_ctx, n_seq_max=n_seq_max, kv_unified=values.kv_unified, **arguments)
        try:
            with on_ctrl_c(context.abort):
                _measure_all(values, context, todo)
        finally:
            context.close()
    return 0


def cases(values: Values) -> Iterator[Case]:
    """All tests that the flags ask for, in llama-batched-bench's order. Raises UsageError."""
    lists = [[n for some in getattr(values, name) for n in some] for name in ("n_pp", "n_tg", "n_pl")]
    for flag, found in zip(("-npp", "-ntg", "-npl"), lists, strict=True):
        if not found:
            raise UsageError(f"no test: give {flag}, as in -npp 128 -ntg 32 -npl 1,8")
    for pp in lists[0]:
        for tg in lists[1]:
            for pl in lists[2]:
                yield Case(pp, tg, pl)


def _measure_all(values: Values, context: "Context", todo: Sequence[Case]) -> None:
    settings = _settings(values, context)
    if values.output == "md":
        named = ", ".join(f"{name} = {value}" for name, value in settings.items())
        print(f"\npyggml-batched-bench: {named}\n")
        print(*heading(), sep="\n", flush=True)
    tokens = Tokens(context)
    tokens.decode([(0, 0, min(WARM_UP, context.n_ctx_seq))], ())
    for case in todo:
        n_kv = case.cells(values.shared, values.kv_unified)
        if n_kv > context.n_ctx or case.pp + case.tg > context.n_ctx_seq:
            print(
                f"left out: -npl {case.pl} of -npp {case.pp} and -ntg {case.tg}: the context has {context.n_ctx} tokens, "
                f"of which one sequence may have {context.n_ctx_seq}",
                file=sys.stderr,
            )
            continue
        found = measure(tokens, case, values.shared, values.separate)
        print(line(values.output, settings, case, n_kv, found), flush=True)
    print()


def heading() -> list[str]:
    """The two lines above a table's rows."""
    names = " | ".join(f"{name:>{width}}" for name, width in COLUMNS)
    return [f"|{names} |", f"|{'-|-'.join('-' * width for _, width in COLUMNS)}-|"]


def _settings(values: Values, context: "Context") -> dict[str, int]:
    """What all tests have in common, by the names of llama-batched-bench's lines."""
    from pyggml.backend.host import default_threads

    n_threads = values.n_threads if values.n_threads > 0 else default_threads()
    batch = values.n_threads_batch
    return {
        "n_kv_max": context.n_ctx,
        "n_batch": values.n_batch,
        "n_ubatch": values.n_ubatch,
        "flash_attn": {"on": 1, "off": 0}.get(values.flash_attn, -1),
        "is_pp_shared": int(values.shared),
        "is_tg_separate": int(values.separate),
        "n_gpu_layers": values.n_gpu_layers,
        "n_threads": n_threads,
        "n_threads_batch": n_threads if batch is None else batch if batch > 0 else default_threads(),
    }


class Tokens:
    """Batches of a context: any tokens will do, they are drawn from the vocabulary with a fixed seed."""

    def __init__(self, context: "Context") -> None:
        import numpy as np

        self.context = context
        self._draw = np.random.default_rng(0)

    def decode(self, parts: Sequence[tuple[int, int, int]], outputs: Sequence[int]) -> None:
        """Compute (sequence, first position, number) for each part; with logits of the last token of each sequence in
        `outputs`."""
        import numpy as np

        from pyggml.runtime.batch import Batch

        drawn = self._draw.integers(0, self.context.model.n_vocab, sum(n for _, _, n in parts), dtype=np.int32)
        if all(n == 1 and seq in outputs for seq, _, n in parts):
            self.context.decode(Batch.of_each(drawn, [start for _, start, _ in parts], [seq for seq, _, _ in parts]))
            return
        ends = np.cumsum([n for _, _, n in parts])
        made = [
            Batch.of(drawn[end - n : end], start, seq, "last" if seq in outputs else "none")
            for (seq, start, n), end in zip(parts, ends, strict=True)
        ]
        self.context.decode(Batch.join(made))


def measure(tokens: Tokens, case: Case, shared: bool, separate: bool) -> Measured:
    """Prompts of all sequences and then their generation, from an empty context. Raises ContextError, ComputeError."""
    from pyggml.runtime.timings import clock

    context, every = tokens.context, range(case.pl)
    context.clear()
    start = clock()
    prompts = every[:1] if shared else every
    tokens.decode([(seq, 0, case.pp) for seq in prompts], prompts)
    t_pp = clock() - start
    if shared:
        for seq in every[1:]:
            context.memory.copy(0, seq)
    start = clock()
    steps = [[seq] for seq in every for _ in range(case.tg)] if separate else [list(every)] * case.tg
    ends = dict.fromkeys(every, case.pp)
    for seqs in steps:
        tokens.decode([(seq, ends[seq], 1) for seq in seqs], seqs)
        for seq in seqs:
            ends[seq] += 1
    return Measured(t_pp, clock() - start, len(prompts) * case.pp, case.pl * case.tg)


def line(output: str, settings: dict[str, int], case: Case, n_kv: int, found: Measured) -> str:
    """A test's row of the table, or its JSON."""
    t = found.t_pp + found.t_tg
    speeds = (_rate(found.n_pp, found.t_pp), _rate(found.n_tg, found.t_tg), _rate(found.n_pp + found.n_tg, t))
    if output == "md":
        numbers = (found.t_pp, speeds[0], found.t_tg, speeds[1], t, speeds[2])
        cells = [f"{value:8.{2 if i % 2 else 3}f}" for i, value in enumerate(numbers)]
        return f"|{case.pp:6d} | {case.tg:6d} | {case.pl:4d} | {n_kv:6d} | {' | '.join(cells)} |"
    fields = {name: str(value) for name, value in settings.items() if name != "is_tg_separate"}
    fields |= {"pp": str(case.pp), "tg": str(case.tg), "pl": str(case.pl), "n_kv": str(n_kv)}
    for name, seconds, speed in zip(("_pp", "_tg", ""), (found.t_pp, found.t_tg, t), speeds, strict=True):
        fields |= {f"t{name}": f"{seconds:f}", f"speed{name}": f"{speed:f}"}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def _rate(n: int, seconds: float) -> float:
    return n / seconds if seconds else 0.0


if __name__ == "__main__":
    sys.exit(main())
