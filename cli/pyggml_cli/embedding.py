"""`pyggml-embedding`: texts as vectors, and what a reranker says of them, with llama-embedding's flags and formats.

Owns the command line; what is printed is embedding_output.py's.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml_cli.about import answered
from pyggml_cli.completion_flags import DEVICES, GENERAL, LISTS, MODEL, ROPE, SAMPLING, unescape
from pyggml_cli.embedding_output import FORMATS, Printed
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
    from pyggml.runtime.embedder import Embedder
    from pyggml.tokenizer import Tokenizer

KEPT = {"-ub", "-ctk", "-ctv", "--swa-full"}
"""Flags of a cache, and of micro-batches: a batch is computed at once, and nothing is kept of it."""
HELP = {
    "n_ctx": "a text has as many tokens as this or -b at most (0: as -b)",
    "n_batch": "the most tokens computed together (2048)",
}


def _here(row: Row) -> Row:
    """A row of the completion tool with what it means here."""
    if isinstance(row, Flag) and row.dest in HELP:
        return dataclasses.replace(row, help=HELP[row.dest])
    return row


TEXT: list[Row] = [
    Flag(("-p", "--prompt"), "prompt", "the texts, one a line unless --embd-separator says otherwise", str, "TEXT"),
    Flag(("-f", "--file"), "file", "a file of them (-: standard input), less one newline at its end", filename, "FNAME"),
    Flag(("-bf", "--binary-file"), "binary_file", "a file of them (-: standard input) as it is", filename, "FNAME"),
    Flag(("-e", "--escape"), "escape", r"read \n \r \t \' \" \\ and \xHH in texts (on)", default=True,
         off=("--no-escape",)),
    Flag(("--embd-separator",), "separator", "what stands between texts (a line feed)", str, "STRING", "\n"),
    Flag(("--cls-separator",), "cls_separator", "what stands between query and document, for --pooling rank (a tab)", str,
         "STRING", "\t"),
    Flag(("--verbose-prompt",), "verbose_prompt", "print the tokens of each text first, on stderr", default=False),
]  # fmt: skip
EMBEDDINGS: list[Row] = [
    Flag(("--pooling",), "pooling", "how the tokens' vectors become one: none, mean, cls (the first), last, rank (a "
         "classifier's scores); as the file says, or none", choice("none", "mean", "cls", "last", "rank"), "KIND"),
    Flag(("--attention",), "attention", "causal: tokens see those before them; non-causal: all of their text (as the file "
         "says)", choice("causal", "non-causal"), "KIND"),
    Flag(("--embd-normalize",), "normalize", "lengths: -1: as they are, 0: the largest is 32760, 1: taxicab, 2: Euclidean, "
         "above: p-norm (2; scores of rank stay as they are)", whole(-1, (1 << 31) - 1), "N", 2),
    Flag(("--embd-output-format",), "format", "array: [[],...]; json: as OpenAI's; json+: with cosine similarities; raw: a "
         "line each; else for people", choice("", *FORMATS), "FORMAT", ""),
    Flag(("--perf",), "perf", "print how long it took, on stderr (on)", default=True, off=("--no-perf",)),
]  # fmt: skip
GROUPS = {
    "general": GENERAL,
    "model": [_here(row) for row in MODEL if not KEPT & set(row.names)],
    "texts": TEXT,
    "embeddings": EMBEDDINGS,
    "devices": DEVICES,
    "positions": ROPE,
}
_HERE = {name for group in GROUPS.values() for row in group for name in row.names}
OTHERS: list[Row] = [
    *without_effect(SAMPLING),
    Ignored(("-kvu", "--kv-unified"), off=("-no-kvu", "--no-kv-unified")),  # nothing is kept
    Ignored(("-np", "--parallel"), 1, parse=whole(-1)),
    Ignored(("--embedding", "--embeddings")),
    *without_effect(row for row in MODEL if KEPT & set(row.names)),
    *(Refused(row.names, why="pyggml-cli prints that") for row in LISTS),
    *(row for row in NO_DIFFERENCE if not _HERE & set(row.names)),
    *(row for row in NOT_HERE if "--parallel" not in row.names and not _HERE & set(row.names)),
    Refused(("--embd-gemma-default",), why="models are not fetched by name: give a file with -m"),
]  # fmt: skip
ROWS: list[Row] = [row for group in GROUPS.values() for row in group] + OTHERS

ABOUT = (
    "Turn texts into vectors that lie near each other if the texts mean alike, or let a reranker say how well documents "
    "answer a query. The results go to stdout."
)
EXAMPLES = (
    ('pyggml-embedding -m bge-small.gguf -p "a cat\\na kitten\\na car"', "three vectors, and how alike they are"),
    ("pyggml-embedding -m nomic.gguf -f texts.txt --embd-output-format json", "one a line of the file, as JSON"),
    (
        'pyggml-embedding -m reranker.gguf --pooling rank -p "who?\\tI am.\\nwho?\\tNo."',
        "scores of documents for a query",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, os.environ, VARIABLES | {"LLAMA_ARG_POOLING": "--pooling"})
    if answered(
        values, lambda: help_text("pyggml-embedding -m FNAME -p TEXT [flags]", ABOUT, GROUPS, examples=EXAMPLES)
    ):
        return 0
    texts = _texts(values)
    from pyggml_cli.loading import compile_progress, model_for

    with compile_progress(), model_for(values) as model:
        _embed(values, model, texts)
    return 0


def _texts(values: Values) -> list[str]:
    """Raises UsageError, OSError."""
    given = [name for name in ("prompt", "file", "binary_file") if name in values.seen]
    if len(given) != 1:
        raise UsageError("give one of -p, -f and -bf" if given else "no text: give one with -p or -f")
    if not values.separator or not values.cls_separator:
        raise UsageError("--embd-separator and --cls-separator: must not be empty")
    if values.prompt is not None:
        text = str(values.prompt)
    else:
        data = read_bytes(values.file or values.binary_file, stdin=True)
        text = (data.removesuffix(b"\n") if values.file else data).decode("utf-8", "surrogateescape")
    return (unescape(text) if values.escape else text).split(values.separator)


def _embed(values: Values, model: "Model", texts: list[str]) -> None:
    from pyggml.runtime.embedder import Embedder, normalised
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.loading import embedder_arguments

    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    embedder = Embedder(model, **embedder_arguments(values, model))
    try:
        ids = [_tokens(values, embedder, tokenizer, text) for text in texts]
        _check(ids, embedder.n_ubatch)
        if any(not one or one[-1] not in (tokenizer.sep, tokenizer.eos) for one in ids):
            print("warning: a text ends with neither SEP nor EOS: the file's tokenizer.ggml.add_eos_token may be wrong",
                  file=sys.stderr)  # fmt: skip
        if values.verbose_prompt:
            for one in ids:
                print(*(f"{i}:{tokenizer.decode([i], special=True)!r}" for i in one), file=sys.stderr)
        start = time.perf_counter()
        with on_ctrl_c(embedder.abort):
            found = embedder.encode(ids)
        took = time.perf_counter() - start
    finally:
        embedder.close()
    kind = -1 if embedder.pooling == "rank" and "normalize" not in values.seen else values.normalize
    rows = [row for text in found for row in (text if embedder.pooling == "none" else [text])]
    labels = model.file.metadata.get(f"{model.config.architecture}.classifier.output_labels")
    printed = Printed([normalised(row, kind) for row in rows], texts, embedder.pooling, values.normalize == 0, labels)
    data = printed.page(values.format).encode("utf-8", "surrogateescape")
    with contextlib.suppress(AttributeError):  # a stream of text alone, in tests
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        data = b""
    print(data.decode("utf-8", "replace"), end="")
    if values.perf:
        n = sum(map(len, ids))
        print(f"total time = {took:.2f} s for {n} tokens ({n / took:.2f} tokens per second)", file=sys.stderr)


def _check(ids: list[list[int]], most: int) -> None:
    """Raises ContextError."""
    from pyggml.errors import ContextError

    for i, one in enumerate(ids, 1):
        what = f"text {i} of {len(ids)}"
        if not one:
            raise ContextError(f"{what} is empty, and this model puts no token before or after a text")
        if len(one) > most:
            raise ContextError(
                f"{what} has {len(one)} tokens, at most {most} are computed at once: -b {len(one)} takes it"
            )


def _tokens(values: Values, embedder: "Embedder", tokenizer: "Tokenizer", text: str) -> list[int]:
    from pyggml.runtime.ranking import joined

    if embedder.pooling == "rank" and values.cls_separator in text:
        text = joined(tokenizer, embedder.model.file.metadata, text.split(values.cls_separator))
    return tokenizer.encode(text.encode("utf-8", "surrogateescape"), add_special=True, parse_special=True)


if __name__ == "__main__":
    sys.exit(main())
