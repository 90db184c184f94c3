"""The README's table of samplers is the one that the code makes."""

from pathlib import Path

import readme_samplers

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_table_of_samplers_is_made_from_the_code() -> None:
    table = readme_samplers.table()
    assert table in README.read_text(encoding="utf-8"), f"in the README there should be\n{table}"
    assert table.count("\n") == 14 and "| dry | d | 2 |" in table
