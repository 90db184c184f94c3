"""The table of what kernels can do with each type says what its vector code has, no more and no less."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyggml.dtypes import SIZES, GGMLType
from pyggml.jit import Spec, added
from pyggml.kernels.cpu import formats
from pyggml.kernels.cpu.formats import FORMATS, Form, Format, functions
from pyggml.quants import QUANTS

ALL = [*FORMATS.values()]
BLOCK_SIZE = {Form.FLOATS: {1}, Form.BLOCKS_32: {32}, Form.SUPER_BLOCKS: {256}, Form.WHOLE: {32, 64, 128, 256}}
READS = {Form.FLOATS: "elements", Form.BLOCKS_32: "half", Form.SUPER_BLOCKS: "super_blocks", Form.WHOLE: "dequantise"}
WRITES = {Form.FLOATS: None, Form.BLOCKS_32: "encode_pair", Form.SUPER_BLOCKS: "encode", Form.WHOLE: "encode"}


def wrong(row: Format) -> list[str]:
    """What a row says of its type that is not so."""
    made, size = functions(row.type), SIZES[row.type].block_size
    has = {f.name for f in dataclasses.fields(made) if getattr(made, f.name) is not None}
    wanted = {READS[row.form]}
    if row.writes and row.form is not Form.FLOATS:
        wanted.add(str(WRITES[row.form]))
    if row.multiplies and row.form is Form.BLOCKS_32:
        wanted.add("vector")
    found = [] if has - {"columns"} == wanted else [f"has {sorted(has)}, its row asks for {sorted(wanted)}"]
    if size not in BLOCK_SIZE[row.form]:
        found.append(f"{row.form.name} of blocks of {size}")
    if row.writes != QUANTS[row.type].can_quantize:
        found.append(f"writes: {row.writes}")
    runs_of_16 = signed = False
    if made.super_blocks is not None:
        blocks = made.super_blocks()
        runs_of_16, signed = blocks.run == 16, blocks.signed
    elif made.vector is not None:
        signed = made.vector().signed
    if (row.runs_of_16, row.signed) != (runs_of_16, signed):
        found.append(f"runs_of_16 {runs_of_16}, signed {signed}")
    if (row.room > 0) != (made.encode is not None):
        found.append(f"{row.room} bytes to write a block")
    return found


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.type.name)
def test_a_row_says_what_its_functions_are(row: Format) -> None:
    assert wrong(row) == []


@pytest.mark.parametrize(
    ("dtype", "slip"),
    [
        (GGMLType.Q4_0, "multiplies"),  # what reads others for products is what reads them for all else
        *(
            (t, s)
            for t in (GGMLType.Q4_0, GGMLType.Q6_K, GGMLType.MXFP4)
            for s in ("writes", "runs_of_16", "signed", "form")
        ),
    ],
)
def test_a_wrong_row_is_caught(dtype: GGMLType, slip: str) -> None:
    row = FORMATS[dtype]
    other = Form.WHOLE if row.form is not Form.WHOLE else Form.SUPER_BLOCKS
    wrong_row = dataclasses.replace(row, **{slip: other if slip == "form" else not getattr(row, slip)})
    assert wrong(wrong_row)


def test_each_type_has_a_row() -> None:
    """But for the partner of K types' products, which nothing here needs."""
    assert set(FORMATS) == set(QUANTS) - {GGMLType.Q8_K}
    assert all(row.type is dtype for dtype, row in FORMATS.items())


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (formats.DEQUANTIZABLE, lambda row: True),
        (formats.QUANTIZABLE, lambda row: row.writes),
        (formats.CONVERTIBLE, lambda row: row.writes and row.form is not Form.WHOLE),
        (formats.MULTIPLIED, lambda row: row.multiplies),
        (formats.DEQUANTISED_FIRST, lambda row: row.form is Form.WHOLE),
    ],
)
def test_collections_follow_the_table(
    found: formats.TypesThat, holds: Callable[[Format], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [row.type for row in ALL if holds(row)]
    assert [*found] == expected and len(found) == len(expected) and len(expected) > 0
    assert {t for t in GGMLType if t in found} == set(expected) and "Q4_0" not in found
    late = FORMATS[expected[0]]
    monkeypatch.setattr(added, "_modules", {})
    monkeypatch.setattr(formats, "FORMATS", {t: row for t, row in FORMATS.items() if t != late.type})
    found.fill()
    try:
        assert [*found] == expected[1:] and late.type not in found
        formats.add(late, "elsewhere")
        assert [*found] == [*expected[1:], late.type] and late.type in found
        assert added.modules_of(Spec("tile", "rows", (late.type.name.lower(),))) == ("elsewhere", late.full_module)
    finally:
        monkeypatch.undo()
        for types in formats._COLLECTIONS:
            types.fill()


def block_types_named(text: str) -> list[str]:
    names = "|".join(t.name for t in GGMLType if SIZES[t].block_size > 1)
    return re.findall(rf"\b(?:GGMLType|T)\.(?:{names})\b|\"(?:{names})\"", text)


def test_no_other_file_of_the_kernels_names_a_block_type() -> None:
    files = {f.name: block_types_named(f.read_text()) for f in Path(formats.__file__).parents[1].glob("*.py")}
    assert len(files) > 30 and {name: found for name, found in files.items() if found} == {}
    assert block_types_named('if t.type == GGMLType.Q4_0: ...; HALVES = (T.Q6_K, "IQ2_S")') == [
        "GGMLType.Q4_0", "T.Q6_K", '"IQ2_S"',
    ]  # fmt: skip
