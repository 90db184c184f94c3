"""Experts of types that files have, with biases and scales, beside llama.cpp: gpt-oss as it is published (MXFP4), and others."""

from pathlib import Path

import numpy as np
import pytest
from arch_files import TOKENS, ours
from arch_variants import all_files
from edit_gguf import edit
from peer_archs import ArchPeer, Script, nmse

from pyggml.dtypes import GGMLType
from pyggml.gguf import GGUFFile
from pyggml.quants import dequantize_row, quantize_row

LIMIT = 5e-5
"""Activations are rounded to 8 bits, by each side in its way. What 4 bits do to the weights is more than ten times that."""


def apart(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The median of the tokens' NMSE: a few choose another expert, of two that are nearly as good for them."""
    return float(np.median([nmse(a, b) for a, b in zip(theirs, ours, strict=True)]))


@pytest.mark.parametrize("dtype", [GGMLType.MXFP4, GGMLType.Q8_0, GGMLType.Q4_0], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", ["gpt-oss-moe", "gemma4-experts"])
def test_experts_of_a_type(arch_peer: ArchPeer, tmp_path: Path, name: str, dtype: GGMLType) -> None:
    source = all_files(arch_peer)[name]

    def types(tensor: str) -> GGMLType:
        return dtype if tensor.endswith("_exps.weight") else GGMLType.F32

    path = edit(source, tmp_path / "packed.gguf", types=types)
    rounded = {}
    with GGUFFile.open(source) as file:
        for tensor, info in file.tensors.items():
            if types(tensor) == dtype:
                values = info.data.view(np.float32).reshape(-1, info.ne[0])
                values = dequantize_row(dtype, quantize_row(dtype, values), info.ne[0])
                rounded[tensor] = values.reshape(info.ne[2::-1])
    same = edit(source, tmp_path / "rounded.gguf", replace=rounded)
    for flash in (True, False):
        found = ours(path, flash_attn=flash)
        assert apart(arch_peer.rows(path, Script(flash=flash).decode(TOKENS)), found) < LIMIT
        assert apart(ours(same, flash_attn=flash), found) < LIMIT
    assert dtype == GGMLType.Q8_0 or apart(ours(source, flash_attn=False), found) > 10 * LIMIT
