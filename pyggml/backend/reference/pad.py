"""PAD, PAD_REFLECT_1D, ROLL: more around a tensor, or the tensor turned round.

Sources: ggml-cpu/ops.cpp: ggml_compute_forward_pad_f32, ggml_compute_forward_pad_reflect_1d,
ggml_compute_forward_roll_f32.
"""

from __future__ import annotations

import numpy as np

from pyggml.backend.host import ELEMENTS, view_of
from pyggml.backend.reference.values import not_among, source
from pyggml.ops import Op
from pyggml.tensor import Tensor


def refuse(node: Tensor) -> str | None:
    return not_among(ELEMENTS, node)


def pad(node: Tensor) -> None:
    pads = [(node.param_i32(2 * i), node.param_i32(2 * i + 1)) for i in reversed(range(4))]
    view_of(node)[...] = np.pad(view_of(source(node, 0)), pads, mode="wrap" if node.param_i32(8) else "constant")


def pad_reflect_1d(node: Tensor) -> None:
    pads = [(0, 0)] * 3 + [(node.param_i32(0), node.param_i32(1))]
    view_of(node)[...] = np.pad(view_of(source(node, 0)), pads, mode="reflect")


def roll(node: Tensor) -> None:
    shifts = tuple(node.param_i32(i) for i in reversed(range(4)))
    view_of(node)[...] = np.roll(view_of(source(node, 0)), shifts, axis=(0, 1, 2, 3))


REFERENCE_OPS = {Op.PAD: (refuse, pad), Op.PAD_REFLECT_1D: (refuse, pad_reflect_1d), Op.ROLL: (refuse, roll)}
