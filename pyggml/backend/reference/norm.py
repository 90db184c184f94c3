"""RMS_NORM: rows over their root mean square. Knows no weights: those are a MUL of its own.

Source: ggml-cpu/ops.cpp: ggml_compute_forward_rms_norm_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.reference.values import not_among, read, source, write
from pyggml.dtypes import GGMLType
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among([GGMLType.F32], source(node, 0))


def rms_norm(node: Tensor) -> None:
    x, eps = read(source(node, 0)), node.param_f32(0)
    mean = np.mean(x * x, axis=-1, keepdims=True)
    write(node, x * (1.0 / np.sqrt(mean + eps)))


LAWS = {Op.RMS_NORM: (refuse, rms_norm)}
