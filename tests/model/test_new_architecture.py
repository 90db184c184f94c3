"""What docs/adding.md says of architectures: a file that a folder of theirs holds is one, found by its name, and the peer agrees
with it."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import mean_kl
from tiny_logits import TOKENS, run
from tiny_model import write_llama

from pyggml.backend.reference import ReferenceDevice
from pyggml.errors import ModelError
from pyggml.model import arch, architectures
from pyggml.model.model import Model
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context

FILES = {
    "qwen2": """
        from pyggml import ops
        from pyggml.model.attention import Attention
        from pyggml.model.blocks import PreNormBlock
        from pyggml.model.hparams import Hparams
        from pyggml.model.layers import CausalLM
        from pyggml.model.mlp import GatedMLP
        from pyggml.model.rope import Rope


        class Block(PreNormBlock):
            def __init__(self, hp: Hparams, il: int) -> None:
                super().__init__(hp, il)
                self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX))
                self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


        class Model(CausalLM):
            block = Block
        """,
    "qwen3": """
        from pyggml import ops
        from pyggml.model.attention import Attention
        from pyggml.model.blocks import PreNormBlock
        from pyggml.model.hparams import Hparams
        from pyggml.model.layers import CausalLM
        from pyggml.model.mlp import GatedMLP
        from pyggml.model.rope import Rope


        class Block(PreNormBlock):
            def __init__(self, hp: Hparams, il: int) -> None:
                super().__init__(hp, il)
                self.attn = Attention(hp, il, rope=Rope(hp, ops.ROPE_NEOX), qk_norm="head")
                self.ffn = GatedMLP(hp.n_embd, hp.n_ff(il))


        class Model(CausalLM):
            block = Block
        """,
}
EXACT: dict[str, Any] = {"flash_attn": False}


@pytest.fixture(params=FILES)
def added(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """An architecture in a folder of its own, and a file of it."""
    name = str(request.param)
    folder = tmp_path / "arch"
    folder.mkdir()
    (folder / f"{name}.py").write_text(textwrap.dedent(FILES[name]))
    sys.modules.pop(f"pyggml.model.arch.{name}", None)  # the package's own
    monkeypatch.setattr(arch, "__path__", [str(folder), *arch.__path__])
    rng = np.random.default_rng(7)
    new = {
        f"blk.{il}.attn_{which}_norm.weight": rng.uniform(0.5, 2, 16).astype(np.float32)
        for il in (0, 1) for which in ("q", "k") if name == "qwen3"
    }  # fmt: skip
    none = [f"blk.{il}.{n}.bias" for il in (0, 1) for n in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")]
    options: dict[str, Any] = {"biases": name == "qwen2", "replace": new, "leave_out": tuple(none)}
    yield name, write_llama(tmp_path / "tiny.gguf", arch=name, **options)
    sys.modules.pop(f"pyggml.model.arch.{name}", None)


def test_a_file_is_an_architecture(added: tuple[str, Path], peer: Any) -> None:
    name, path = added
    assert name in architectures() and "llama" in architectures()
    theirs, ours = peer.logits(path, TOKENS, **EXACT), run(path, TOKENS, **EXACT)
    assert mean_kl(theirs, ours) < 1e-6


def test_and_computes_many_sequences(added: tuple[str, Path]) -> None:
    _, path = added
    model = Model.load(path, cpu=ReferenceDevice())
    context, alone = Context(model, n_ctx=768, n_seq_max=3), Context(model, n_ctx=256)
    prompts = [TOKENS[:5], TOKENS[5:6], TOKENS[6:20]]
    found = context.decode(Batch.join([Batch.of(p, 0, seq) for seq, p in enumerate(prompts)]))
    for row, prompt in zip(found, prompts, strict=True):
        alone.clear()
        np.testing.assert_allclose(row, alone.decode(prompt)[-1], rtol=1e-4, atol=1e-4)
    context.close(), alone.close(), model.close()


def test_without_the_folder_it_is_unknown(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", arch="qwen9")
    with pytest.raises(
        ModelError, match=r"architecture .qwen9. is unknown here .nearest: qwen[23]?.; supported: .*llama"
    ):
        Model.load(path, cpu=ReferenceDevice())


def test_a_weight_that_is_declared_under_another_name_is_an_error_at_load(added: tuple[str, Path]) -> None:
    name, path = added
    from importlib import import_module

    from pyggml.model.linear import Linear

    block = import_module(f"pyggml.model.arch.{name}").Block
    init = block.__init__

    def typo(self: Any, hp: Any, il: int) -> None:
        init(self, hp, il)
        self.attn.attn_outptu = Linear(64, 64)

    block.__init__ = typo
    with pytest.raises(ModelError, match=r"tensor blk\.0\.attn_outptu\.weight is missing"):
        Model.load(path, cpu=ReferenceDevice())
