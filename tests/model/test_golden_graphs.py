"""The graphs of tiny models, node for node, and the CPU's steps for them, fusions and barriers included, against listings
in `golden/`. What builds graphs may be rewritten; what is built changes only on purpose, with a commit that says why:
`python tests/model/test_golden_graphs.py` writes the listings anew.
"""

import contextlib
import difflib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from tiny_model import write_llama

from pyggml.backend.cpu import CPUBackend
from pyggml.dtypes import GGMLType
from pyggml.graph import Graph
from pyggml.lowering.cpu import Builder
from pyggml.model.model import Model
from pyggml.ops import Op
from pyggml.runtime.context import Context
from pyggml.tensor import Tensor

GOLDEN = Path(__file__).parent / "golden"
Options = dict[str, Any]
Shape = tuple[int, int, int]

PROMPT, TOKEN, NO_OUTPUTS, ALL = (5, 256, 1), (1, 256, 1), (5, 256, 0), (5, 256, 5)
SCALED = {"llama.rope.scaling.type": "longrope"}
CASES: dict[str, tuple[Options, Options, tuple[Shape, ...]]] = {
    # of the file, of the context, (tokens, padded cells, outputs) of the graphs
    "dense": ({}, {}, (PROMPT, TOKEN, NO_OUTPUTS, ALL)),
    "own-output-matrix": ({"tied": False, "rope_freqs": True}, {}, (PROMPT,)),
    "biases": ({"biases": True}, {}, (PROMPT, TOKEN)),
    "experts": ({"n_expert": 4}, {}, (PROMPT, TOKEN, NO_OUTPUTS)),
    "longrope": ({"long_factors": True, "strings": SCALED, "floats": {"llama.rope.scaling.factor": 4.0}}, {}, (PROMPT,)),
    "transposed-v": ({"head_k": 24, "head_v": 8}, {"flash_attn": False}, (PROMPT, TOKEN, NO_OUTPUTS)),
    "f32-cache": ({}, {"type_k": GGMLType.F32, "type_v": GGMLType.F32}, (TOKEN,)),
    "quantised-cache": (
        {"head_k": 32, "head_v": 32},
        {"type_k": GGMLType.Q8_0, "type_v": GGMLType.Q4_0},
        (PROMPT, TOKEN),
    ),
}  # fmt: skip


def nodes(graph: Graph) -> Iterator[str]:
    """A line a node: number, op, name, type, shape, sources by number or name, parameters, what it is a view of."""
    number = {id(node): i for i, node in enumerate(graph.nodes)}

    def called(t: Tensor | None) -> str:
        if t is None:
            return "-"
        return f"#{number[id(t)]}" if id(t) in number else f"{t.name or '?'} {t.type.name}{list(t.ne)}"

    for i, node in enumerate(graph.nodes):
        params = node.op_params.rstrip(b"\0").hex()
        view = f" view of {called(node.view_src)} + {node.view_offs}" if node.view_src is not None else ""
        sources = ", ".join(called(s) for s in node.src)
        line = f"{i:3} {Op(node.op).name} {node.name or '?'} {node.type.name}{list(node.ne)} nb {list(node.nb)}"
        yield f"{line} <- {sources}{view}{f' {params}' if params else ''} flags {int(node.flags)}"


def steps(builder: Builder) -> Iterator[str]:
    """A line a step: its kernel and node, and a line where there is a barrier."""
    for step in builder.steps:
        yield f"    {step.spec.module}.{step.spec.factory} {step.node.name or Op(step.node.op).name}"
        if step.sync:
            yield "    ---"


def listing(folder: Path, name: str) -> str:
    file, options, shapes = CASES[name]
    lines = []
    lowered: list[Builder] = []
    lower = CPUBackend._lower

    def noted(self: CPUBackend, *args: Any, **asked: bool) -> Builder:
        lowered.append(lower(self, *args, **asked))
        return lowered[-1]

    model = Model.load(write_llama(folder / f"{name}.gguf", **file))
    with contextlib.closing(model), pytest.MonkeyPatch.context() as patch:
        context = Context(model, n_ctx=512, n_ubatch=8, n_threads=1, **options)
        patch.setattr(CPUBackend, "_lower", noted)
        for n_tokens, n_kv, n_outputs in shapes:
            built, schedule = context.schedule_for(n_tokens, n_kv, n_outputs)
            lines += [f"== {n_tokens} tokens, {n_kv} cells, {n_outputs} outputs", *nodes(built.graph)]
            lowered.clear()
            schedule.begin()
            for builder in lowered:
                lines += ["-- steps", *steps(builder)]
        context.close()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_graphs_are_those_of_the_listings(name: str, tmp_path: Path) -> None:
    want, got = (GOLDEN / f"{name}.txt").read_text(), listing(tmp_path, name)
    assert got == want, "\n".join(difflib.unified_diff(want.splitlines(), got.splitlines(), "listing", "now", n=2))


def test_no_listing_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for case in CASES:
            (GOLDEN / f"{case}.txt").write_text(listing(Path(temporary), case))
