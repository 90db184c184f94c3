"""What docs/adding.md says of quant types: a file with the type's meaning, one with its vector code and their two lines are a type,
which every op that takes blocks computes with. None of the package's files is touched."""

from pathlib import Path

import added
import pytest

from pyggml.dtypes import GGMLType, add_type

FILES = {
    "made_up/__init__.py": "",
    "made_up/q4_z.py": '''
        """Q4_Z: 32 values (q - 8) * d in 18 bytes, with the scale behind them; the largest magnitude is 7 * d."""

        import numpy as np

        from pyggml import quants
        from pyggml.dtypes import GGMLType, add_type
        from pyggml.quants.base import Quant
        from pyggml.quants.f16 import f16_to_f32, f32_to_f16
        from pyggml.quants.rounding import join_halves, split_halves

        TYPE = add_type("Q4_Z", 1000, block_size=32, type_size=18)
        LAYOUT = np.dtype([("qs", "u1", (16,)), ("d", "<u2")])


        def quantize(values):
            d = np.abs(values).max(axis=1, keepdims=True) / np.float32(7)
            by = np.where(d != 0, np.float32(1) / d, np.float32(0))
            records = np.empty(len(values), LAYOUT)
            records["d"] = f32_to_f16(d)[:, 0]
            records["qs"] = join_halves((np.rint(values * by) + 8).astype(np.uint8))
            return records


        def dequantize(records):
            q = split_halves(records["qs"]).astype(np.float32) - np.float32(8)
            return q * f16_to_f32(records["d"])[:, None]


        quants.add(Quant(TYPE, LAYOUT, quantize, dequantize, partner=GGMLType.Q8_0))
        ''',
    "made_up/row.py": '''
        """What the CPU can do with Q4_Z."""

        from made_up.q4_z import TYPE

        from pyggml.kernels.cpu import formats
        from pyggml.kernels.cpu.formats import Form, Format

        formats.add(Format(TYPE, Form.BLOCKS_32, "made_up.vector"), "made_up.q4_z", "made_up.row")
        ''',
    "made_up/vector.py": '''
        """How vector code reads and writes Q4_Z."""

        from made_up.q4_z import LAYOUT

        from pyggml import simd as v
        from pyggml.kernels.cpu.formats.forms import Functions, VectorBlocks
        from pyggml.quants.base import field_offsets

        U, np = v.U, v.np
        (QS,), (D,) = field_offsets(LAYOUT, "qs"), field_offsets(LAYOUT, "d")


        def vector():
            quants = lambda blocks: v.nibbles(field_offsets(LAYOUT, "qs", blocks))
            return VectorBlocks(quants, v.columns_of_nibbles(QS), d=D, bias=8)


        def half(which):
            down, low, middle = (v.constant("i32", [x] * 16) for x in (4 * which, 15, 8))
            at, d_at = U(QS), U(D)

            @v.device
            def decode(block):
                q = (v.widen(v.load_u8x16(block + at)) >> down()) & low()
                return v.to_f32(q - middle()) * v.splat_f32(v.f16_at(block + d_at))

            return decode


        def encode_pair():
            four, middle = v.constant("i32", [4] * 16), v.constant("i32", [8] * 16)
            at, d_at = U(QS), U(D)

            @v.device
            def encode(block, x, y):
                d = v.hmax(v.maximum(v.absolute(x), v.absolute(y))) / np.float32(7)
                by = v.splat_f32(np.float32(1) / d if d != np.float32(0) else np.float32(0))
                q = v.truncate_to_i32(v.round_even(x * by)) + middle()
                r = v.truncate_to_i32(v.round_even(y * by)) + middle()
                v.put_f16(block + d_at, d)
                v.store(block + at, v.low_u8(q | (r << four())))

            return encode


        FUNCTIONS = {"Q4_Z": Functions(vector=vector, half=half, encode_pair=encode_pair)}
        ''',
    "made_up/checks.py": '''
        """Q4_Z on the CPU against the plain functions, with guard pages and poison."""

        import made_up.row
        import numpy as np
        from made_up.q4_z import TYPE
        from op_cases import BLOCKS, F16, F32, I32, I64, Case, Operands
        from op_check import check

        from pyggml import ops
        from pyggml.backend.cpu import CPUDevice
        from pyggml.backend.reference import ReferenceDevice
        from pyggml.dtypes import GGMLType, row_size
        from pyggml.quants import dequantize_row, quantize_row

        assert TYPE in BLOCKS


        def alike(nodes, nmse=0.0):
            for make, node in nodes:
                assert CPUDevice().supports_op(node) and ReferenceDevice().supports_op(node)
                check(Case(node, make.contents, nmse), CPUDevice(), 2)


        def operands():
            return Operands(np.random.default_rng(5))


        def names():
            assert GGMLType["Q4_Z"] is GGMLType(1000) is TYPE and TYPE.name == "Q4_Z" and row_size(TYPE, 64) == 36
            assert TYPE in GGMLType and [*GGMLType][-1] is TYPE


        def meaning():
            x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
            assert np.abs(dequantize_row(TYPE, quantize_row(TYPE, x), 64) - x).max() < 0.3


        def products():
            def nodes():
                for k in (96, 576):
                    for m in (1, 3, 13, 33):
                        make = operands()
                        yield make, ops.mul_mat(make.leaf(TYPE, (k, 37), scale=k**-0.5), make.leaf(F32, (k, m)))
                make = operands()
                ids = make.leaf(I32, (2, 5), make.rng.integers(0, 3, 10))
                yield make, ops.mul_mat_id(make.leaf(TYPE, (96, 37, 3)), make.leaf(F32, (96, 1, 5)), ids)

            alike(nodes(), 5e-4)


        def rows():
            def nodes():
                for numbers in (np.array([6, 0, 3, 3]),):
                    make = operands()
                    yield make, ops.get_rows(make.leaf(TYPE, (96, 7)), make.leaf(I32, (4,), numbers))
                    make = operands()
                    rows = make.leaf(F32, (96, 4)), make.leaf(I64, (4,), numbers)
                    yield make, ops.set_rows(make.leaf(TYPE, (96, 7)), *rows)

            alike(nodes())


        def copies():
            def nodes():
                for source in (F32, F16):
                    make = operands()
                    yield make, ops.cpy(make.leaf(source, (96, 7)), make.leaf(TYPE, (96, 7)))
                    make = operands()
                    yield make, ops.cpy(make.leaf(TYPE, (96, 7)), make.leaf(source, (96, 7)))
                make = operands()
                yield make, ops.add(make.leaf(TYPE, (96, 3)), make.leaf(F32, (96, 3)))

            alike(nodes())


        def attention():
            def nodes():
                for n in (1, 9):
                    make = operands()
                    k, v = make.like("planes", TYPE, (96, 97, 2)), make.like("planes", TYPE, (64, 97, 2))
                    yield make, ops.flash_attn_ext(make.like("planes", F32, (96, n, 4)), k, v, None, 0.125)

            alike(nodes(), 1e-5)


        CHECKS = {f.__name__: f for f in (names, meaning, products, rows, copies, attention)}
        ''',
}
MUTANTS = {
    "a middle that is not the type's": (("made_up/vector.py", "(4 * which, 15, 8)", "(4 * which, 15, 7)"), "rows"),
    "a bias that is not the type's": (("made_up/vector.py", "bias=8", "bias=16"), "products"),
    "halves that changed places": (("made_up/vector.py", "4 * which, 15", "4 - 4 * which, 15"), "attention"),
    "another scale": (("made_up/vector.py", "/ np.float32(7)", "/ np.float32(8)"), "copies"),
    "another meaning": (("made_up/q4_z.py", "- np.float32(8)", "- np.float32(9)"), "meaning"),
}


def test_files_of_ones_own_are_a_type(tmp_path: Path) -> None:
    added.put(tmp_path, FILES)
    found = added.results(tmp_path, "made_up.checks")
    assert found == dict.fromkeys(("names", "meaning", "products", "rows", "copies", "attention"), "")


@pytest.mark.parametrize("which", MUTANTS)
def test_a_mutant_is_caught(tmp_path: Path, which: str) -> None:
    mutant, check = MUTANTS[which]
    added.put(tmp_path, FILES, mutant)
    (error,) = added.results(tmp_path, "made_up.checks", check).values()
    assert error.startswith("AssertionError"), error


@pytest.mark.parametrize(("name", "number"), [("Q4_0", 1000), ("Q4_Z", 2), ("q4_z", 1000), ("Q4-Z", 1000)])
def test_a_name_or_a_number_that_is_taken_is_refused(name: str, number: int) -> None:
    before = [*GGMLType]
    with pytest.raises(ValueError, match=f"type {name} = {number}: "):
        add_type(name, number, 32, 18)
    assert [*GGMLType] == before
