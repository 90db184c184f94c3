"""A measurement as llama-bench writes it: the same columns, as a Markdown table, JSON, JSON lines, CSV or SQL.

Owns column names and formats (llama-bench.cpp, `test` and its printers).
"""

import json
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

# name -> value; a number or bool where llama-bench has one, and its default for what is not to be chosen here
COLUMNS: dict[str, Any] = {
    "build_commit": "",
    "build_number": 0,
    "cpu_info": "",
    "gpu_info": "",
    "backends": "",
    "model_filename": "",
    "model_type": "",
    "model_size": 0,
    "model_n_params": 0,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 0,
    "cpu_mask": "0x0",
    "cpu_strict": False,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": -1,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "auto",
    "lazy_mode": "auto",
    "embeddings": False,
    "no_op_offload": 0,
    "no_host": False,
    "repack": True,
    "fit_target": 0,
    "fit_min_ctx": 0,
    "n_prompt": 0,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "",
}
WIDTHS = {"model": -30, "t/s": 20, "size": 10, "params": 10, "n_gpu_layers": 3, "n_threads": 7, "n_batch": 7}
WIDTHS |= {"n_ubatch": 8, "type_k": 6, "type_v": 6, "flash_attn": 3, "devices": -12, "test": 15}
SHORT = {"n_gpu_layers": "ngl", "n_threads": "threads", "flash_attn": "fa", "devices": "dev", "tensor_split": "ts"}


@dataclass
class Result:
    """One test: `facts` are COLUMNS that differ from their default, `samples_ns` the time of each repetition."""

    facts: dict[str, Any]
    samples_ns: list[int] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Tokens a second, of each repetition."""
        n_tokens = self.facts["n_prompt"] + self.facts["n_gen"]
        return [1e9 * n_tokens / ns for ns in self.samples_ns]

    def row(self) -> dict[str, Any]:
        """All columns in llama-bench's order."""
        assert self.facts.keys() <= COLUMNS.keys(), self.facts.keys() - COLUMNS.keys()
        return {
            **COLUMNS,
            **self.facts,
            "avg_ns": round(statistics.fmean(self.samples_ns)),
            "stddev_ns": round(_deviation(self.samples_ns)),
            "avg_ts": round(statistics.fmean(self.rates), 6),
            "stddev_ts": round(_deviation(self.rates), 6),
        }

    def test(self) -> str:
        """The test's short name: pp512, tg128, pp512+tg128, with the depth if there is one."""
        p, n, depth = (self.facts[key] for key in ("n_prompt", "n_gen", "n_depth"))
        name = f"pp{p}" if not n else f"tg{n}" if not p else f"pp{p}+tg{n}"
        return f"{name} @ d{depth}" if depth else name


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


class Printer:
    """Writes results as they come. `varied` are the columns that the command line set."""

    def __init__(self, write: Callable[[str], Any], varied: Collection[str] = ()) -> None:
        self.write, self.varied = write, varied
        self.n = 0

    def add(self, result: Result) -> None:
        """One more result."""
        raise NotImplementedError

    def end(self) -> None:
        """Nothing comes any more."""


class Markdown(Printer):
    """The table: a column for what was varied, besides those that are always shown."""

    fields: tuple[str, ...] = ()

    def add(self, result: Result) -> None:
        row = result.row()
        if not self.fields:
            self._head(row)
        cells = {
            "model": row["model_type"],
            "size": _size(row["model_size"]),
            "params": _count(row["model_n_params"]),
            "backend": row["backends"],
            "test": result.test(),
            "t/s": f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
        }
        self._line([_cell(name, str(cells.get(name, row.get(name)))) for name in self.fields])

    def _head(self, row: dict[str, Any]) -> None:
        on_cpu = row["backends"] == "CPU"
        fields = ["model", "size", "params", "backend"]
        if not on_cpu:
            fields.append("n_gpu_layers")
        optional = ("n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "devices", "tensor_split")
        fields += [name for name in optional if name in self.varied or (name == "n_threads" and on_cpu)]
        self.fields = (*fields, "test", "t/s")
        self._line([_cell(name, SHORT.get(name, name)) for name in self.fields])
        self._line(["-" * (abs(w) - 1) + (":" if w > 0 else "-") for w in map(_width, self.fields)])

    def _line(self, cells: list[str]) -> None:
        self.write("| " + " | ".join(cells) + " |\n")


def _width(name: str) -> int:
    """Positive: right-aligned."""
    if name in WIDTHS:
        return WIDTHS[name]
    width = max(len(name), 10)
    return -width if isinstance(COLUMNS.get(name, ""), str) else width


def _cell(name: str, text: str) -> str:
    width = _width(name)
    return text.rjust(width) if width > 0 else text.ljust(-width)


def _size(n: int) -> str:
    return f"{n / 2**20:.2f} MiB" if n < 2**30 else f"{n / 2**30:.2f} GiB"


def _count(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 10**9 else f"{n / 1e9:.2f} B"


class Csv(Printer):
    """A line of names, then a line for each result; every value in quotes, as there."""

    def add(self, result: Result) -> None:
        row = result.row()
        if not self.n:
            self.write(",".join(row) + "\n")
        self.n += 1
        texts = (str(int(value) if isinstance(value, bool) else value) for value in row.values())
        self.write(",".join('"' + text.replace('"', '""') + '"' for text in texts) + "\n")


def _with_samples(result: Result) -> dict[str, Any]:
    return {**result.row(), "samples_ns": result.samples_ns, "samples_ts": [round(rate, 6) for rate in result.rates]}


class Jsonl(Printer):
    """One object a line."""

    def add(self, result: Result) -> None:
        self.write(json.dumps(_with_samples(result)) + "\n")


class Json(Printer):
    """One array."""

    def add(self, result: Result) -> None:
        self.write(",\n" if self.n else "[\n")
        self.n += 1
        lines = json.dumps(_with_samples(result), indent=2).splitlines()
        self.write("\n".join("  " + line for line in lines))

    def end(self) -> None:
        self.write("\n]\n" if self.n else "[]\n")


class Sql(Printer):
    """A table and a statement for each result; every value is a text there, too, and SQLite makes numbers of them."""

    def add(self, result: Result) -> None:
        row = result.row()
        if not self.n:
            columns = ",\n".join(f"  {name} {_affinity(value)}" for name, value in row.items())
            self.write(f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n\n")
        self.n += 1
        texts = (str(int(value) if isinstance(value, bool) else value).replace("'", "''") for value in row.values())
        values = ", ".join(f"'{text}'" for text in texts)
        self.write(f"INSERT INTO llama_bench ({', '.join(row)}) VALUES ({values});\n")


def _affinity(value: Any) -> str:
    return "TEXT" if isinstance(value, str) else "REAL" if isinstance(value, float) else "INTEGER"


PRINTERS: dict[str, type[Printer]] = {"md": Markdown, "json": Json, "jsonl": Jsonl, "csv": Csv, "sql": Sql}
