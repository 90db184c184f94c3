"""Architectures for tests whose layers remember in different ways: windows, chunks, states, and mixtures of these; and their files.

Owns these architectures, which are files of a folder that the test names, and exist nowhere else. A state is the sum of all
tokens so far, so that it depends on each of them.
"""

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from text_model import write_text_model

from pyggml.backend.reference import ReferenceDevice
from pyggml.memory import kv, kv_tensors
from pyggml.model import arch
from pyggml.model.model import Model

WINDOW = 6

KINDS = {
    "tinywindow": ("window", "window"),
    "tinymixed": ("window", "all"),
    "tinychunks": ("chunks", "all"),
    "tinystates": ("states", "states"),
    "tinyhybrid": ("all", "states"),
    "tinythree": ("states", "window"),
}
"""What layers 0 and 1 remember."""

TEXT = """
    from pyggml import ops
    from pyggml.memory import Need
    from pyggml.memory.recurrent import StateLayer
    from pyggml.model.attention import Attention
    from pyggml.model.blocks import PreNormBlock
    from pyggml.model.layers import CausalLM, Remembers
    from pyggml.model.linear import Linear
    from pyggml.model.mlp import GatedMLP
    from pyggml.model.rope import Rope

    LAYERS = {layers!r}


    class Sum(Remembers):
        def __init__(self, hp, il):
            self.n = hp.n_embd
            self.attn_q = Linear(self.n, self.n)
            self.attn_output = Linear(self.n, self.n)

        def need(self):
            return Need(states=StateLayer(self.il, {{"sum": self.n}}))

        def __call__(self, g, x):
            each = g.n_tokens // g.n_seqs
            x = ops.reshape(g.linear(self.attn_q, x), self.n, each, g.n_seqs)
            before = ops.reshape(g.state(self.il, "sum"), 1, self.n, g.n_seqs)
            sums = ops.add(ops.cumsum(ops.cont(ops.transpose(x))), before)
            last = ops.view(sums, (1, self.n, g.n_seqs), sums.nb[1:3], (each - 1) * sums.nb[0])
            g.set_state(self.il, "sum", ops.reshape(ops.cont(last), self.n, g.n_seqs))
            y = ops.cont(ops.transpose(ops.unary(sums, ops.UnaryOp.TANH)))
            return g.linear(self.attn_output, ops.reshape(y, self.n, g.n_tokens))


    class Block(PreNormBlock):
        def __init__(self, hp, il):
            super().__init__(hp, il)
            kind = LAYERS[il]
            if kind == "states":
                self.attn = Sum(hp, il)
            else:
                window = None if kind == "all" else {window}
                self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NORMAL), window=window)
                if kind == "chunks":
                    plain = self.attn.need
                    self.attn.need = lambda: Need(plain().kv, window, chunked=True)
            self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


    class Model(CausalLM):
        block = Block
    """


@contextmanager
def tiny_archs(folder: Path) -> Iterator[dict[str, Path]]:
    """While this lasts these architectures are known, and caches are padded to few cells; a file of each, by name."""
    (folder / "arch").mkdir()
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arch, "__path__", [*arch.__path__, str(folder / "arch")])
        for module in (kv, kv_tensors):
            patch.setattr(module, "CELL_STEP", 4)
        for name, layers in KINDS.items():
            text = textwrap.dedent(TEXT).format(layers=layers, window=WINDOW)
            (folder / "arch" / f"{name}.py").write_text(text)
            absent = tuple(f"blk.{il}.attn_{which}.weight" for il in (0, 1) if layers[il] == "states" for which in "kv")
            options: dict[str, Any] = {"arch": name, "leave_out": absent}
            paths[name] = write_text_model(folder / f"{name}.gguf", n_ctx=128, **options)
        yield paths
        for name in KINDS:
            sys.modules.pop(f"pyggml.model.arch.{name}", None)


@contextmanager
def tiny_models(folder: Path) -> Iterator[dict[str, Model]]:
    """`tiny_archs`, loaded."""
    with tiny_archs(folder) as paths:
        made = {name: Model.load(path, cpu=ReferenceDevice()) for name, path in paths.items()}
        yield made
        for model in made.values():
            model.close()
