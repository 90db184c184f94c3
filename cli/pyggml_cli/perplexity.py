"""`pyggml-perplexity`: how well a model predicts a text, with llama-perplexity's flags, definition and output.

Owns the command line and what is printed.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyggml_cli.about import answered
from pyggml_cli.completion_flags import DEVICES, GENERAL, LISTS, MODEL, ROPE, SAMPLING, unescape
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
    filename,
    help_text,
    parse,
    whole,
    without_effect,
)
from pyggml_cli.interrupts import on_ctrl_c
from pyggml_cli.other_flags import NO_DIFFERENCE, NOT_HERE
from pyggml_cli.text_files import read_bytes

if TYPE_CHECKING:
    from pyggml.model.model import Model
    from pyggml.perplexity import BaseFile, Divergence, Losses
    from pyggml.runtime.context import Context
    from pyggml.tokenizer import Tokenizer

N_CTX = 512


def _here(row: Row) -> Row:
    """A row of the completion tool; the context's default differs."""
    if isinstance(row, Flag) and row.dest == "n_ctx":
        return dataclasses.replace(row, help=f"tokens of a chunk ({N_CTX})", parse=whole(1), default=N_CTX)
    return row


TEXT: list[Row] = [
    Flag(("-f", "--file"), "file", "the text (-: standard input), less one newline at its end", filename, "FNAME"),
    Flag(("-bf", "--binary-file"), "binary_file", "the text (-: standard input) as it is", filename, "FNAME"),
    Flag(("-p", "--prompt"), "prompt", "the text itself", str, "TEXT"),
    Flag(
        ("-e", "--escape"),
        "escape",
        r"read \n \r \t \' \" \\ and \xHH in -p (off)",
        default=False,
        off=("--no-escape",),
    ),
]
MEASURES: list[Row] = [
    Flag(("--chunks",), "n_chunks", "most chunks to score (-1: all)", whole(-1), "N", -1),
    Flag(
        ("--ppl-output-type",), "output_type", "1: a line for each chunk, with mean loss and its error (0)",
        choice("0", "1"), "0|1", "0",
    ),
    Flag(
        ("--save-all-logits", "--kl-divergence-base"), "base",
        "keep the model's predictions in this file; with --kl-divergence: those to compare with", filename, "FNAME",
    ),
    Flag(("--kl-divergence",), "divergence", "compare with the predictions of another model", default=False),
    Flag(("--perf",), "perf", "print how long it took, on stderr (on)", default=True, off=("--no-perf",)),
]  # fmt: skip
TASKS = "tests of multiple choice are not scored"
GROUPS = {
    "general": GENERAL,
    "model": [_here(row) for row in MODEL],
    "text": TEXT,
    "measures": MEASURES,
    "devices": DEVICES,
    "positions": ROPE,
}
OTHERS: list[Row] = [
    *without_effect(SAMPLING),
    Ignored(("-kvu", "--kv-unified"), off=("-no-kvu", "--no-kv-unified")),
    Ignored(("-np", "--parallel"), 1, parse=whole(-1)),  # -b says how many chunks are computed together
    *(Refused(row.names, why="pyggml-cli prints that") for row in LISTS),
    *NO_DIFFERENCE,
    *(row for row in NOT_HERE if "--parallel" not in row.names),
    Refused(("--ppl-stride",), 1, harmless=("0",), why="chunks do not overlap"),
    *(Refused((f"--{name}",), why=TASKS) for name in ("hellaswag", "winogrande", "multiple-choice")),
    *(Refused((f"--{name}-tasks",), 1, why=TASKS) for name in ("hellaswag", "winogrande", "multiple-choice")),
]
ROWS: list[Row] = [row for group in GROUPS.values() for row in group] + OTHERS

ABOUT = (
    "Measure how well a model predicts a text. The text is cut into chunks of the context's size; the second half of "
    "each is scored. The chunks' results go to stdout."
)


EXAMPLES = (
    ("pyggml-perplexity -m model.gguf -f wiki.test.raw", "how well the model predicts a text: less is better"),
    ("pyggml-perplexity -m f16.gguf -f text.txt --kl-divergence-base f16.kld", "keep the predictions of one model"),
    (
        "pyggml-perplexity -m q4.gguf --kl-divergence --kl-divergence-base f16.kld",
        "and tell how far another is from them",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, os.environ, VARIABLES)
    if answered(
        values, lambda: help_text("pyggml-perplexity [-m FNAME] -f TEXT [flags]", ABOUT, GROUPS, examples=EXAMPLES)
    ):
        return 0
    from pyggml_cli.loading import compile_progress, model_for

    with contextlib.ExitStack() as stack:
        base = stack.enter_context(_base(values)) if values.divergence else None
        text = _text(values) if base is None else b""
        stack.enter_context(compile_progress())
        model = stack.enter_context(model_for(values))
        start = time.perf_counter()
        n = _score(values, model, text) if base is None else _compare(values, model, base)
        if values.perf:
            took = time.perf_counter() - start
            print(f"total time = {took:.2f} s for {n} tokens ({n / took:.2f} tokens per second)", file=sys.stderr)
    return 0


def _base(values: Values) -> "BaseFile":
    """Raises UsageError, BaseFileError."""
    from pyggml.perplexity import BaseFile

    if values.base is None:
        raise UsageError("--kl-divergence needs the file of predictions: --kl-divergence-base FNAME")
    return BaseFile(Path(values.base))


def _text(values: Values) -> bytes:
    """Raises UsageError."""
    given = [name for name in ("prompt", "file", "binary_file") if name in values.seen]
    if len(given) != 1:
        raise UsageError("give one of -f, -bf and -p" if given else "no text: give one with -f")
    if values.prompt is not None:
        prompt = unescape(values.prompt) if values.escape else values.prompt
        return str(prompt).encode("utf-8", "surrogateescape")
    data = read_bytes(values.file or values.binary_file, stdin=True)
    return data.removesuffix(b"\n") if values.file else data


def _bos(tokenizer: "Tokenizer") -> int | None:
    """What each chunk begins with. Raises UsageError."""
    if tokenizer.add_eos:
        raise UsageError("the model's vocabulary adds a token at the end of texts: perplexity is not defined for it")
    return tokenizer.bos if tokenizer.add_bos else None


@contextlib.contextmanager
def _context(values: Values, model: "Model", doing: str, n_ctx: int, n_chunks: int) -> "Iterator[Context]":
    """A sequence for each of the chunks that are computed together: as many as a batch has room for, as llama-perplexity's
    n_seq, but no more than there are."""
    from pyggml.runtime.context import MAX_SEQUENCES, Context
    from pyggml_cli.loading import context_arguments

    if n_ctx > model.config.n_ctx_train:
        print(f"warning: the model was trained on {model.config.n_ctx_train} tokens, not {n_ctx}", file=sys.stderr)
    n_seq = max(1, min(values.n_batch // n_ctx, n_chunks, MAX_SEQUENCES))
    context = Context(model, n_seq * n_ctx, n_seq_max=n_seq, **context_arguments(values, model))
    n_batch = min(values.n_batch, n_seq * n_ctx)
    print(f"{doing} over {n_chunks} chunks, n_ctx={n_ctx}, batch_size={n_batch}, n_seq={n_seq}", file=sys.stderr)
    try:
        with on_ctrl_c(context.abort):
            yield context
    finally:
        context.close()


def _score(values: Values, model: "Model", text: bytes) -> int:
    """Perplexity; the number of tokens computed."""
    import numpy as np

    from pyggml.perplexity import BaseWriter, Losses, count_chunks, losses_of, score
    from pyggml.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    bos, n_ctx = _bos(tokenizer), int(values.n_ctx)
    tokens = np.array(tokenizer.encode(text), np.int32)
    n_chunks = count_chunks(len(tokens), n_ctx, values.n_chunks)
    losses = Losses()
    with contextlib.ExitStack() as stack:
        writer: BaseWriter | None = None
        if values.base is not None:
            writer = stack.enter_context(BaseWriter.open(Path(values.base), n_ctx, model.n_vocab, n_chunks, tokens))
        context = stack.enter_context(_context(values, model, "calculating perplexity", n_ctx, n_chunks))
        tell = stack.enter_context(_progress(n_chunks, context.n_seq_max))
        for scored in score(context, tokens, n_ctx, n_chunks, bos):
            losses.add(losses_of(scored.logits, scored.tokens))
            if writer is not None:
                writer.add(scored.logits)
            if scored.last:
                tell(scored.chunk + 1)
                _print_chunk(values, scored.chunk, losses)
    print()
    if not losses.count:
        return 0
    if losses.error is None:
        print("warning: the losses do not differ, so their error is not known", file=sys.stderr)
    error = losses.error or 0.0
    print(f"Final estimate: PPL = {losses.perplexity:.4f} +/- {error * losses.perplexity:.5f}")
    return n_chunks * n_ctx


def _print_chunk(values: Values, chunk: int, losses: "Losses") -> None:
    if values.output_type == "0":
        print(f"[{chunk + 1}]{losses.perplexity:.4f},", end="", flush=True)
        return
    error = losses.error if losses.error is not None else losses.variance
    print(f"{chunk * values.n_ctx:8d}  {losses.perplexity:.4f}  {losses.mean:4f}  {error:4f}", flush=True)


@contextlib.contextmanager
def _progress(n_chunks: int, n_together: int) -> "Iterator[Callable[[int], None]]":
    """To be told of each chunk before it is printed. A bar, unless stdout is a terminal: what is printed there is progress
    enough. Where there is no bar a line after the first ones, those computed together, says how long all will take."""
    from pyggml_cli.progress import estimate, meter

    start = time.monotonic()

    def say(done: int) -> None:
        if done != n_together or done == n_chunks:
            return
        if line := estimate(done, n_chunks, time.monotonic() - start, "chunk"):
            print(line, file=sys.stderr, flush=True)

    if sys.stdout.isatty():
        yield say
        return
    with meter("scoring", n_chunks, "chunks") as update:

        def tell(done: int) -> None:
            update(done)
            if not sys.stderr.isatty():
                say(done)

        yield tell


def _compare(values: Values, model: "Model", base: "BaseFile") -> int:
    """Divergence from the predictions in a file; the number of tokens computed. Raises UsageError."""
    from pyggml.perplexity import Divergence, score
    from pyggml.tokenizer import Tokenizer

    if base.n_vocab != model.n_vocab:
        raise UsageError(f"{values.base}: predictions of {base.n_vocab} tokens; the model has {model.n_vocab}")
    bos = _bos(Tokenizer.from_metadata(model.file.metadata))
    result = Divergence()
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(_context(values, model, "computing", base.n_ctx, base.n_chunk))
        tell = stack.enter_context(_progress(base.n_chunk, context.n_seq_max))
        for scored in score(context, base.tokens, base.n_ctx, base.n_chunk, bos):
            result.add(scored.logits, base.take(len(scored.tokens)), scored.tokens)
            if scored.last:
                if scored.chunk == 0:
                    print(HEADING)
                tell(scored.chunk + 1)
                print(_row(scored.chunk, result), flush=True)
    print()
    if result.count >= 100:  # statistics on fewer values say nothing
        print(_statistics(result))
    return base.n_chunk * base.n_ctx


HEADING = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS"
    "            Same top p"
)


def _row(chunk: int, result: "Divergence") -> str:
    """llama-perplexity's line of a chunk: all so far."""
    from pyggml.perplexity.divergence import mean

    ppl, ratio, kl = result.perplexity(), result.log_ratio(), mean(result.divergences)
    rms, top = result.rms(), result.same_top()
    return (
        f"{chunk + 1:4d}    {ppl.value:9.4f} ± {ppl.error:9.4f}    {ratio.value:10.5f} ± {ratio.error:10.5f}"
        f"    {kl.value:10.5f} ± {kl.error:10.5f}    {100 * rms.value:6.3f} ± {100 * rms.error:6.3f} %"
        f"    {100 * top.value:6.3f} ± {100 * top.error:6.3f} %"
    )


def _statistics(result: "Divergence") -> str:
    """llama-perplexity's summary."""
    import numpy as np

    from pyggml.perplexity.divergence import mean, percentile

    lines = ["====== Perplexity statistics ======"]
    for what, x in (("Mean PPL(Q)", result.perplexity()), ("Mean PPL(base)", result.base_perplexity())):
        lines.append(f"{what:<30}: {x.value:10.6f} ± {x.error:10.6f}")
    lines.append(f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * result.correlation():6.2f}%")
    ratios = {
        "Mean ln(PPL(Q)/PPL(base))": result.log_ratio(),
        "Mean PPL(Q)/PPL(base)": result.ratio(),
        "Mean PPL(Q)-PPL(base)": result.difference(),
    }
    lines += [f"{what:<30}: {x.value:10.6f} ± {x.error:10.6f}" for what, x in ratios.items()]
    kl = mean(result.divergences)
    lines += ["", "====== KL divergence statistics ======", f"Mean    KLD: {kl.value:10.6f} ± {kl.error:10.6f}"]
    values = np.sort(result.divergences)
    for name, fraction in _FRACTIONS:
        if name not in ("75.0%", "25.0%"):
            lines.append(f"{name:<7} KLD: {percentile(values, fraction):10.6f}")
    change = mean(result.differences)
    lines += ["", "====== Token probability statistics ======"]
    lines.append(f"Mean    Δp: {100 * change.value:6.3f} ± {100 * change.error:5.3f} %")
    values = np.sort(result.differences)
    lines += [f"{name:<7} Δp: {100 * percentile(values, fraction):6.3f}%" for name, fraction in _FRACTIONS]
    rms, top = result.rms(), result.same_top()
    lines.append(f"RMS Δp    : {100 * rms.value:6.3f} ± {100 * rms.error:5.3f} %")
    lines.append(f"Same top p: {100 * top.value:6.3f} ± {100 * top.error:5.3f} %")
    return "\n".join(lines)


_FRACTIONS = (
    ("Maximum", 1.0), ("99.9%", 0.999), ("99.0%", 0.99), ("95.0%", 0.95), ("90.0%", 0.9), ("75.0%", 0.75),
    ("Median", 0.5), ("25.0%", 0.25), ("10.0%", 0.1), (" 5.0%", 0.05), (" 1.0%", 0.01), (" 0.1%", 0.001),
    ("Minimum", 0.0),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
