"""The tables of types and tokenizers in the README, and docs/flags.md, are those that the code makes."""

from pathlib import Path

import models_document
import pytest
import readme_flags
import readme_types
from arch_files import LIMIT, LIMITS
from pyggml_cli.environment import VARIABLES

from pyggml.model import architectures

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("make", [readme_types.types, readme_types.tokenizers])
def test_the_tables_of_the_readme_are_made_from_the_code(make) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert make() in text, "the README is out of date: see tests/support/readme_types.py"


def test_the_page_of_flags_is_made_from_the_code() -> None:
    page = readme_flags.page()
    text = (ROOT / "docs/flags.md").read_text(encoding="utf-8")
    assert text == page, "out of date: python tests/support/readme_flags.py > docs/flags.md"
    told = [variable for variable in VARIABLES if f"`{variable}`" in page]
    assert {"LLAMA_ARG_THREADS", "LLAMA_ARG_RPC", "LLAMA_ARG_KV_OFFLOAD"} <= set(told)


def test_a_table_tells_what_a_type_can_do() -> None:
    rows = {row.split(" | ")[0].lstrip("| "): row for row in readme_types.types().splitlines()}
    assert rows["Q4_1"].startswith("| Q4_1 | 5 | x | x | x | ") and rows["F16"].count(" x ") == 4
    assert "Q8_K" not in rows


def test_the_page_of_models_is_made_from_the_code() -> None:
    """But for its numbers, which are measured: those are held to the limits of the tests that compare."""
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert page.startswith(models_document.HEAD), "out of date: python tests/support/models_document.py"
    lines = page[len(models_document.HEAD) :].splitlines()
    assert [line.split(" | ")[0].lstrip("| ") for line in lines] == architectures(), "architectures are missing"
    for name, line in zip(architectures(), lines, strict=True):
        _, text, count, worst = line.strip("| ").split(" | ")
        compared = len(models_document.names_of(name)) or len(models_document.encoders().get(name, []))
        assert (text, int(count)) == (models_document.text_of(name), compared), f"{name} is told otherwise"
        assert 0 <= float(worst) < max([LIMIT, *(LIMITS.values() if name == "hrm-text" else ())])
    assert len(architectures()) > 130, "as the README says"
