"""A short convolution between two gates in the place of attention (llama.cpp: models/lfm2.cpp, build_shortconv_block). Owns
the order of its nodes; knows no architecture's name.
"""

from __future__ import annotations

from pyggml import ops
from pyggml.memory import Need
from pyggml.memory.recurrent import StateLayer
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.layers import Remembers
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.states import Convolution, by_sequence
from pyggml.tensor import Tensor

IN, CONV, OUT = "shortconv.in_proj", "shortconv.conv", "shortconv.out_proj"


class ShortConvolution(Remembers):
    """x (n_embd, n_tokens) -> out(c * conv(b * x')), where b, c and x' are the thirds of in(x)."""

    def __init__(self, hp: Hparams, il: int) -> None:
        n = self.n = hp.n_embd
        parts: dict[str, Module] = {
            IN: Linear(n, 3 * n),
            CONV: Convolution(hp.u32("shortconv.l_cache", least=2), n),
            OUT: Linear(n, n),
        }
        for name, module in parts.items():
            setattr(self, name, module)

    def need(self) -> Need:
        return Need(states=StateLayer(self.il, {"conv": getattr(self, CONV).size}))

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        both = g.linear(getattr(self, IN), x)
        b, c, inner = (ops.view(both, (self.n, g.n_tokens), (both.nb[1],), i * self.n * both.nb[0]) for i in range(3))
        y = getattr(self, CONV)(g, by_sequence(g, ops.mul(b, inner)))
        return g.linear(getattr(self, OUT), ops.mul(c, ops.reshape(y, self.n, g.n_tokens)))
