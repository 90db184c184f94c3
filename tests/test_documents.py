"""The README and docs say what the code says: tables that are made from it, folders, and the files that they name."""

import re
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


def test_the_layout_names_all_folders_and_documents() -> None:
    layout = (ROOT / "README.md").read_text().split("## Repository layout")[1].split("\n## ")[0]
    folders = {path.parent.name for path in (ROOT / "pyggml").glob("*/__init__.py")}
    assert len(folders) > 15
    assert {name for name in folders if f"pyggml/{name}/" not in layout} == set()
    documents = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in documents if f"`{name}`" not in layout} == set()


NAMED = re.compile(r"`(?:python )?((?:[\w.-]+/)*\w+\.(?:py|md|js|toml))(?:: ([\w, ]+)| [^`]*)?`")


def missing(text: str, files: dict[str, str]) -> list[str]:
    """Files that a text names in backquotes and `files` (path -> contents) do not have, and, behind a colon, names that the
    file does not hold."""
    found = []
    for path, names in NAMED.findall(text):
        held = [body for name, body in files.items() if f"/{name}".endswith(f"/{path}")]
        found += [] if held else [path]
        found += [f"{path}: {name}" for name in names.split(", ") if held and name and not any(name in h for h in held)]
    return found


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{n}.md" for n in ("adding", "architecture", "security", "benchmarks"))]
)
def test_documents_name_files_that_are_there(name: str) -> None:
    folders = ("pyggml", "rpc", "cli", "tests", "benchmarks", "docs")
    paths = [
        path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".md", ".js")
    ]
    files = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in [*paths, ROOT / "pyproject.toml"]
    }
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(NAMED.findall(text)) > 3
    assert missing(text, files) == []
    assert missing("`runtime/context.py: Context, Contexts`, `runtime/contexts.py`", files) == [
        "runtime/context.py: Contexts", "runtime/contexts.py"
    ]  # fmt: skip
