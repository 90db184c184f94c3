"""What docs/adding.md says of ops: a rule, a plain function and a kernel in files of one's own are an op, which the harness holds
against each other. None of the package's files is touched."""

from pathlib import Path

import added
import pytest

FILES = {
    "made_up/__init__.py": "",
    "made_up/mirror.py": '''
        """MAP_CUSTOM1 as MIRROR: rows from the last element to the first, times a factor. Its rule and builder."""

        from pyggml.dtypes import GGMLType
        from pyggml.ops import Op
        from pyggml.ops.rules import build, need, rule, sources
        from pyggml.tensor import pack_params


        @rule(Op.MAP_CUSTOM1)
        def _mirror(src, node):
            (a,) = sources(Op.MAP_CUSTOM1, src, 1)
            need(a.type == GGMLType.F32, Op.MAP_CUSTOM1, "the source is not F32", a)
            return a.type, a.ne


        def mirror(a, factor):
            return build(Op.MAP_CUSTOM1, (a,), pack_params("f", factor))
        ''',
    "made_up/reference.py": '''
        """What MIRROR means."""

        from pyggml.backend.reference import REFERENCE_OPS
        from pyggml.backend.reference.values import read, source, write
        from pyggml.ops import Op


        def mirror(node):
            write(node, read(source(node, 0))[..., ::-1] * node.param_f32(0))


        REFERENCE_OPS[Op.MAP_CUSTOM1] = (lambda node: None, mirror)
        ''',
    "made_up/kernel.py": '''
        """MIRROR on the CPU."""

        from typing import NamedTuple

        from pyggml.dtypes import GGMLType
        from pyggml.jit import Spec
        from pyggml.kernels.cpu import FAMILIES
        from pyggml.kernels.cpu.layout import refuse_types
        from pyggml.ops import Op

        FAMILIES[Op.MAP_CUSTOM1] = "made_up.kernel"


        def why_not(node):
            return refuse_types([GGMLType.F32], node, node.src[0])


        def lower(builder, node):
            args = MirrorArgs(last=node.ne[0] - 1, factor=node.param_f32(0))
            builder.step(Spec("made_up.kernel", "mirror"), node, (node.src[0],), args=args)


        class MirrorArgs(NamedTuple):
            last: int
            factor: float


        def mirror():
            from pyggml import simd as v
            from pyggml.kernels.cpu import record, step_args

            U, np = v.U, v.np
            rows, d, a = record.rows("dst"), record.row("dst"), record.row("src0")
            nbd, nba = record.field("dst.nb"), record.field("src0.nb")
            last_of, factor = step_args.readers(MirrorArgs)

            def kernel(step, ith, nth, thread):
                count, last, by = rows(step), last_of(step), np.float32(factor(step))
                for row in range(count * ith // nth, count * (ith + 1) // nth):
                    to, x = d(step, row), a(step, row)
                    for i in range(last + 1):
                        v.put_f32(to + U(i * nbd(step)), v.f32_at(x + U((last - i) * nba(step))) * by)

            return kernel
        ''',
    "made_up/checks.py": '''
        """MIRROR on the CPU against the plain function, in all layouts, with guard pages and poison."""

        import made_up.kernel
        import made_up.reference
        import numpy as np
        from made_up.mirror import mirror
        from op_cases import ANY_LAYOUT, F16, F32, Case, Operands
        from op_check import check, run

        from pyggml.backend.cpu import CPUDevice
        from pyggml.backend.reference import ReferenceDevice
        from pyggml.errors import ShapeError
        from pyggml.ops import Op


        def layouts():
            for number, layout in enumerate(ANY_LAYOUT):
                for n in (1, 5, 33):
                    make = Operands(np.random.default_rng(number))
                    node = mirror(make.like(layout, F32, (n, 3, 2, 2)), 0.1)
                    assert CPUDevice().supports_op(node)
                    check(Case(node, make.contents, 0.0), CPUDevice(), 2)


        def meaning():
            make = Operands(np.random.default_rng(0))
            node = mirror(make.leaf(F32, (4,), np.array([1.0, 2.0, 3.0, 4.0])), 2.0)
            for device in (ReferenceDevice(), CPUDevice()):
                assert run(Case(node, make.contents, 0.0), device)[1].reshape(-1).tolist() == [8.0, 6.0, 4.0, 2.0]


        def rules():
            make = Operands(np.random.default_rng(0))
            try:
                mirror(make.leaf(F16, (4,)), 2.0)
            except ShapeError as error:
                assert "MAP_CUSTOM1: the source is not F32" in str(error)
            else:
                raise AssertionError("F16 was not refused")


        CHECKS = {"layouts": layouts, "meaning": meaning, "rules": rules}
        ''',
}
MUTANTS = {
    "one too far": (("made_up/kernel.py", "U((last - i) * nba", "U(max(last - i - 1, 0) * nba"), "layouts"),
    "arguments that changed places": (
        ("made_up/kernel.py", "last_of, factor = step", "factor, last_of = step"),
        "layouts",
    ),
    "another factor": (("made_up/reference.py", "node.param_f32(0)", "0.5 * node.param_f32(0)"), "meaning"),
}


def test_files_of_ones_own_are_an_op(tmp_path: Path) -> None:
    added.put(tmp_path, FILES)
    assert added.results(tmp_path, "made_up.checks") == {"layouts": "", "meaning": "", "rules": ""}


@pytest.mark.parametrize("which", MUTANTS)
def test_a_mutant_is_caught(tmp_path: Path, which: str) -> None:
    mutant, check = MUTANTS[which]
    added.put(tmp_path, FILES, mutant)
    (error,) = added.results(tmp_path, "made_up.checks", check).values()
    assert error.startswith("AssertionError"), error


def test_without_the_files_there_is_no_such_op(tmp_path: Path) -> None:
    lines = [
        "from pyggml.backend.reference import REFERENCE_OPS",
        "from pyggml.kernels.cpu import FAMILIES",
        "from pyggml.ops import RULES, Op",
        "def absent():",
        "    assert not any(Op.MAP_CUSTOM1 in table for table in (REFERENCE_OPS, FAMILIES, RULES))",
        'CHECKS = {"absent": absent}',
    ]
    (tmp_path / "checks.py").write_text("\n".join(lines))
    assert added.results(tmp_path, "checks") == {"absent": ""}
