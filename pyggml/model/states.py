"""What layers with states share: their keys in a file, which layers they are, tokens by sequence, and the short convolution
whose last columns are a state. Knows no architecture's name.
"""

from __future__ import annotations

from pyggml import ops
from pyggml.errors import ModelError
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.module import Module, Weight
from pyggml.tensor import Tensor


class StateKeys:
    """The keys of state-space models (llama-arch.cpp: LLM_KV_SSM_*), in elements and numbers.

    d_conv    tokens that a convolution sees, itself among them
    d_inner   channels
    d_state   elements of the state of one channel
    n_head    heads of Mamba 2 and of gated delta nets; of Mamba 1 the rank of the steps (time_step_rank)
    n_group   groups of heads that share keys and queries (in Mamba's terms B and C); 0 where the file has none
    """

    def __init__(self, hp: Hparams) -> None:
        self.hp = hp
        self.d_conv = hp.u32("ssm.conv_kernel", least=2)
        self.d_inner = hp.u32("ssm.inner_size")
        self.d_state = hp.u32("ssm.state_size")
        self.n_head = hp.u32("ssm.time_step_rank")
        self.n_group = hp.u32("ssm.group_count", 0, least=0)

    @classmethod
    def headed(cls, hp: Hparams, *, groups: bool = True) -> StateKeys:
        """Those of layers with heads, which are in groups. Raises ModelError where the numbers do not fit each other."""
        keys, full = cls(hp), f"key {hp.architecture}.ssm"
        if keys.d_inner % keys.n_head:
            raise ModelError(f"{full}.time_step_rank is {keys.n_head}, must divide inner_size ({keys.d_inner})")
        if groups and (not keys.n_group or keys.n_head % keys.n_group):
            raise ModelError(f"{full}.group_count is {keys.n_group}, must divide time_step_rank ({keys.n_head})")
        return keys

    @property
    def head(self) -> int:
        """Elements of a head."""
        return self.d_inner // self.n_head


def is_recurrent(hp: Hparams, il: int, period: int = 4) -> bool:
    """Whether layer `il` has a state in place of attention: as the file says, else all but every full_attention_interval-th,
    by default every `period`-th (llama.cpp: models/qwen35.cpp)."""
    if hp.find("attention.recurrent_layers")[1] is not None:
        return hp.flags("attention.recurrent_layers", hp.n_layer_all)[il]
    return bool((il + 1) % hp.u32("full_attention_interval", period))


def by_sequence(g: GraphBuilder, x: Tensor) -> Tensor:
    """(n, n_tokens), rows perhaps apart, as (n, tokens of a sequence, sequences)."""
    each = g.n_tokens // g.n_seqs
    return ops.view(x, (x.ne[0], each, g.n_seqs), (x.nb[1], x.nb[1] * each))


class Bias(Module):
    """A bias that stands alone."""

    def __init__(self, n: int, *, required: bool = True) -> None:
        self.bias = Weight(n, required=required)


class Convolution(Module):
    """Each channel with weights of its own over a token and the d_conv - 1 before it, of which the last are kept
    (ggml_ssm_conv; llama.cpp: build_conv_state).

    biased  None: there is no bias; else whether the file must have it
    state   what the state is called in the layer's StateLayer, `size` its elements
    flat    whether the weights are (d_conv, n), else (d_conv, 1, n)
    """

    def __init__(
        self, d_conv: int, n: int, *, biased: bool | None = None, state: str = "conv", flat: bool = True
    ) -> None:
        self.weight = Weight(d_conv, n) if flat else Weight(d_conv, 1, n)
        self.bias = None if biased is None else Weight(n, required=biased)
        self.n, self.d_conv, self.state, self.size = n, d_conv, state, (d_conv - 1) * n

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        """(n, tokens of a sequence, sequences), rows perhaps apart -> the same, dense."""
        kernel = ops.reshape(self.weight.value, self.d_conv, self.n)
        before = ops.reshape(g.state(self.il, self.state), self.d_conv - 1, self.n, g.n_seqs)
        line = ops.concat(before, ops.transpose(x), 0, name=self.label("_input"))
        last = ops.view(line, before.ne, line.nb[1:], x.ne[1] * line.nb[0])
        g.set_state(self.il, self.state, ops.reshape(ops.cont(last), self.size, g.n_seqs))
        y = ops.ssm_conv(line, kernel, name=self.label())
        return y if self.bias is None or self.bias.tensor is None else ops.add(y, self.bias.tensor)
