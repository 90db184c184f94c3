"""`pyggml-inspect`: what is in a model file, for people or, with --json, for programs.

Owns how it is shown. What a file says of itself is printed without the characters that a terminal would obey. (Python's
own library has a module `inspect`: hence the name.)
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pyggml_cli.about import answered
from pyggml_cli.entry import run
from pyggml_cli.flags import Flag, Row, UsageError, Values, help_text, parse

MIB = 1 << 20
LENGTH, ITEMS = 120, 6  # characters of a text and items of an array that are shown unless --full asks for all

ROWS: list[Row] = [
    Flag(("-h", "--help"), "help", "print this page and exit", default=False),
    Flag(("--version",), "version", "print the version and exit", default=False),
    Flag(("--metadata",), "metadata", "show the metadata", default=False),
    Flag(("--types",), "types", "show the sizes by type", default=False),
    Flag(("--tensors",), "tensors", "show the tensors: type, shape, bytes, and where they lie", default=False),
    Flag(("--template",), "template", "show the chat template, and nothing but its text if alone", default=False),
    Flag(("--full",), "full", "do not shorten texts and arrays", default=False),
    Flag(("--json",), "json", "everything, complete, as JSON", default=False),
]
SECTIONS = ("metadata", "types", "tensors", "template")

USAGE = "pyggml-inspect [flags] FILE.gguf"
ABOUT = (
    "Show what is in a model file; of a split model name the first part. Without --metadata, --types, --tensors and "
    "--template all of these are shown."
)


EXAMPLES = (
    ("pyggml-inspect model.gguf", "architecture, type, sizes, tensors and the chat template"),
    ("pyggml-inspect --metadata model.gguf", "its metadata alone"),
    ("pyggml-inspect --json model.gguf | python -m json.tool", "all of it, for programs"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, free=True)
    if answered(values, lambda: help_text(USAGE, ABOUT, {"flags": ROWS}, examples=EXAMPLES)):
        return 0
    if len(values.free) != 1:
        raise UsageError(f"usage: {USAGE}")
    wanted = [section for section in SECTIONS if getattr(values, section)]
    if values.json and wanted:
        raise UsageError(f"--json shows everything; --{wanted[0]} does not go with it")
    from pyggml.gguf import GGUFFile
    from pyggml.inspection import describe
    from pyggml_cli.bus_errors import explain_bus_errors
    from pyggml_cli.loading import model_path

    with explain_bus_errors(), GGUFFile.open(model_path(values.free[0])) as file:
        found = describe(file)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if values.json:
        json.dump(found, sys.stdout, ensure_ascii=True, allow_nan=False)
        print()
    elif wanted == ["template"]:
        if found["chat_template"] is None:
            print("the file has no chat template", file=sys.stderr)
        else:
            print(visible(found["chat_template"]))
    else:
        for line in _lines(values, found, wanted):
            print(line)
    return 0


def visible(text: str) -> str:
    """The text, with line ends and tabs as they are and all else that is not printable as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _lines(values: Values, found: dict[str, Any], wanted: list[str]) -> Iterator[str]:
    show = {
        "metadata": lambda: _metadata(found["metadata"], values.full),
        "types": lambda: _types(found["types"]),
        "tensors": lambda: _tensors(found["tensors"], found["paths"]),
        "template": lambda: _template(found["chat_template"], values.full),
    }
    yield from _summary(found)
    for section in wanted or SECTIONS:
        yield ""
        yield from show[section]()


def _summary(found: dict[str, Any]) -> Iterator[str]:
    for path in found["paths"]:
        yield visible(os.fsencode(path).decode("utf-8", "backslashreplace"))
    bits = found["bits_per_weight"]
    rows = {
        "name": found["name"],
        "architecture": found["architecture"],
        "adapter": _adapter(found["adapter"]),
        "file type": found["file_type"],
        "GGUF version": found["version"],
        "alignment": found["alignment"],
        "tensors": found["n_tensors"],
        "parameters": f"{found['n_parameters']:,}",
        "size": f"{found['n_bytes'] / MIB:.2f} MiB" + (f", {bits:.2f} bits per weight" if bits is not None else ""),
    }
    for what, value in rows.items():
        if value is not None:
            yield f"  {what:<14}{visible(str(value))}"


def _adapter(adapter: dict[str, Any] | None) -> str | None:
    if adapter is None:
        return None
    ranks = " and ".join(map(str, adapter["ranks"])) or "unknown"
    alpha = "none" if adapter["alpha"] is None else f"{adapter['alpha']}"
    return f"{adapter['type'] or 'of an unknown type,'} of {adapter['weights']} weights, rank {ranks}, alpha {alpha}"


def _metadata(metadata: dict[str, Any], full: bool) -> Iterator[str]:
    yield f"metadata: {len(metadata)}"
    width = max(map(len, metadata), default=0)
    for key, value in metadata.items():
        kind = f"{value['items']}[{value['length']}]" if "items" in value else value["type"]
        yield f"  {visible(key):<{width}}  {kind:<14}  {_value(value, full)}"


def _value(entry: dict[str, Any], full: bool) -> str:
    if "items" in entry:
        shown = entry["value"] if full else entry["value"][:ITEMS]
        texts = [_value(x, full) if isinstance(x, dict) else _one(x, full) for x in shown]
        return f"[{', '.join(texts)}{', ...' if len(shown) < entry['length'] else ''}]"
    return _one(entry["value"], full)


def _one(value: Any, full: bool) -> str:
    if not isinstance(value, str):
        return str(value)
    return repr(value) if full or len(value) <= LENGTH else f"{value[:LENGTH]!r} ... ({len(value)} characters)"


def _types(types: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"types: {len(types)}"
    for name, size in types.items():
        bits = f"{size['bits_per_weight']:.2f}" if size["bits_per_weight"] is not None else "-"
        n, count, mib = size["tensors"], size["parameters"], size["bytes"] / MIB
        yield f"  {name:<8}{n:>6} tensor{'s' if n != 1 else ' '} {count:>18,} parameters {mib:>12.2f} MiB  {bits:>5} bits"


def _tensors(tensors: list[dict[str, Any]], paths: list[str]) -> Iterator[str]:
    yield f"tensors: {len(tensors)}"
    names = [visible(tensor["name"]) for tensor in tensors]
    width = max(map(len, names), default=0)
    for name, tensor in zip(names, tensors, strict=True):
        sizes = " x ".join(map(str, tensor["shape"]))
        part = f"  part {paths.index(tensor['path']) + 1}" if len(paths) > 1 else ""
        yield f"  {name:<{width}}  {tensor['type']:<7} {sizes:>16}  {tensor['bytes']:>13,} bytes at {tensor['offset']:,}{part}"


def _template(template: str | None, full: bool) -> Iterator[str]:
    if template is None:
        yield "chat template: none"
        return
    lines = visible(template).split("\n")
    yield f"chat template: {len(template)} characters"
    shown = lines if full else [line[: 2 * LENGTH] for line in lines[:40]]
    yield from (f"  {line}" for line in shown)
    if shown != lines:
        yield "  ... (--full or --template shows all)"


if __name__ == "__main__":
    sys.exit(main())
