"""docs/flags.md, made from the code: `python tests/support/readme_flags.py > docs/flags.md` writes it.

Owns the page's form.
"""

from collections.abc import Iterable, Mapping

from pyggml_cli import batched_bench, bench, completion_flags, embedding, other_flags, rpc_server, server_flags
from pyggml_cli.environment import VARIABLES
from pyggml_cli.flags import Flag, Ignored, Refused, Row

HEAD = """# Flags

Made from the code by `tests/support/readme_flags.py`; a test holds them together. `pyggml-cli` knows every flag of
llama.cpp's tools (its `common/arg.cpp`; a test reads the names there): it is carried out, or accepted with a note because it
makes no difference, or refused in one line that says why. A flag may be written with underscores; the last one given
counts. The environment variables are llama.cpp's. A switch with a negative has a second variable, `LLAMA_ARG_NO_...`, which
turns it off whatever it holds; others hold on, enabled, true or 1, or off, disabled, false or 0. A flag on the command
line counts for more. `pyggml-bench` and `pyggml-rpc-server` read no variables, as their counterparts there."""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def carried_out(rows: Iterable[Row], variables: bool, names: Mapping[str, str] = VARIABLES) -> list[str]:
    """A table of the flags that do something; `names`: variable -> flag."""
    of = {flag: variable for variable, flag in names.items()}
    lines = ["| flag | variable | meaning (default) |", "| --- | --- | --- |"]
    if not variables:
        lines = ["| flag | meaning (default) |", "| --- | --- |"]
    for row in rows:
        if isinstance(row, Flag):
            found = [f"`{of[name]}`" for name in (*row.names, *row.off) if name in of]
            middle = f" {', '.join(found)} |" if variables else ""
            lines.append(f"| `{cell(row.shown)}` |{middle} {cell(row.help)} |")
    return lines


def not_carried_out(rows: Iterable[Row], refused: Iterable[Row]) -> list[str]:
    """Those of `rows` that make no difference, and those of `refused` with their reasons."""
    names = [f"`{name}`" for row in rows if isinstance(row, Ignored) for name in (*row.names, *row.off)]
    lines = ["", "### Accepted, without a difference", "", ", ".join(names)]
    lines += ["", "### Refused", "", "| flags | why |", "| --- | --- |"]
    reasons: dict[str, list[str]] = {}
    for row in refused:
        if isinstance(row, Refused):
            accepted = [f"{row.names[-1]} {value}" for value in row.harmless] + list(row.off)
            but = f" (accepted: {', '.join(f'`{a}`' for a in accepted)})" if accepted else ""
            reasons.setdefault(row.why, []).append(", ".join(f"`{name}`" for name in row.names) + but)
    return lines + [f"| {cell(', '.join(flags))} | {why} |" for why, flags in reasons.items()]


def page() -> str:
    """All of docs/flags.md."""
    lines = [HEAD, "", "## pyggml-cli"]
    for title, rows in completion_flags.GROUPS.items():
        lines += ["", f"### {title.capitalize()}", "", *carried_out(rows, variables=True)]
    lines += not_carried_out(completion_flags.ROWS, other_flags.NOT_HERE + other_flags.DRAFT + other_flags.OTHER_TOOLS)
    lines += ["", "## pyggml-server"]
    shared = [group for group in server_flags.GROUPS if group in completion_flags.GROUPS and group != "general"]
    for title, rows in server_flags.GROUPS.items():
        if title not in shared and "sampling" not in title:
            table = carried_out(rows, variables=True, names=server_flags.VARIABLES)
            lines += ["", f"### {title.capitalize()}, of the server", "", *table]
    lines += ["", f"As for `pyggml-cli`: {', '.join(shared)}; and sampling, for what a request does not say."]
    lines += not_carried_out(server_flags.ROWS, server_flags.ROWS)
    lines += ["", "## pyggml-bench", "", *carried_out([*bench.GENERAL, *bench.TESTS], variables=False)]
    others = [f"`{name}`" for row in bench.OTHERS for name in row.names]
    lines += ["", f"Accepted without a difference, or refused: {', '.join(others)}"]
    lines += ["", "## pyggml-batched-bench", "", *carried_out(batched_bench.TESTS, variables=False)]
    lines += ["", "Model, devices and positions as for `pyggml-cli`."]
    lines += ["", "## pyggml-embedding", "", *carried_out([*embedding.TEXT, *embedding.EMBEDDINGS], variables=False)]
    lines += ["", "Model, devices and positions as for `pyggml-cli`, with its variables, and `LLAMA_ARG_POOLING`."]
    lines += ["", "## pyggml-rpc-server", "", *carried_out(rpc_server.ROWS, variables=False)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
