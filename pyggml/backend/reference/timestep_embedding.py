"""TIMESTEP_EMBEDDING: cosines and sines of steps times frequencies.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_timestep_embedding_f32.
"""

from __future__ import annotations

import math

import numpy as np

from pyggml.backend.reference.values import not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0))


def timestep_embedding(node: Tensor) -> None:
    steps, dim = read(source(node, 0)).reshape(-1, 1), node.param_i32(0)
    half = dim // 2
    frequencies = np.exp(-math.log(node.param_i32(1)) * np.arange(half) / max(half, 1))
    angles = (steps.astype(np.float32) * frequencies.astype(np.float32)).astype(np.float64)  # rounded as in ggml
    parts = [np.cos(angles), np.sin(angles), np.zeros((len(steps), dim % 2))]
    write(node, np.concatenate(parts, axis=1)[None, None])


REFERENCE_OPS = {Op.TIMESTEP_EMBEDDING: (refuse, timestep_embedding)}
