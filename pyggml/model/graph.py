"""The graph of one micro-batch, as it is built: its inputs, which fill themselves, and what models build with.

GraphBuilder owns the only places where weights are multiplied with (`linear`, `linear_id`, `linear_each`) or tokens looked up
(`rows`), so that adapters are one place too, and the order in which memory is written and read; knows no architecture and no device.
Orders follow llama-graph.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.graph import Graph, build_forward
from pyggml.memory.base import Placement
from pyggml.memory.encoded import Encoded
from pyggml.memory.kv import KVCache, KVInputs
from pyggml.memory.kv_tensors import KVShape, KVTensors, transposed
from pyggml.memory.layered import Layered
from pyggml.memory.recurrent import RecurrentState
from pyggml.memory.ubatch import Ubatch
from pyggml.memory.window import Window
from pyggml.model.hparams import Hparams
from pyggml.model.linear import ExpertLinear, Linear
from pyggml.model.lora import Applied
from pyggml.model.module import Weight
from pyggml.model.uncached import attend_uncached, mask_of
from pyggml.tensor import Flag, Tensor

Fill = Callable[[Ubatch, Any], NDArray[Any]]
"""(micro-batch, placement of the memory) -> the input's elements."""


class Wanted(NamedTuple):
    """What a context wants of its graphs.

    pooling  "": logits; else embeddings, by one of pooling.POOLINGS
    causal   a token sees those before it alone: where no keys are kept, which otherwise are of the tokens before
    fused    attention in one node, where no keys are kept
    n_ctx    tokens that positions are scaled for; 0: as many as the cache holds
    encodes  a text is read by an encoder, and what the decoder reads of it is kept: neither logits nor embeddings
    """

    pooling: str = ""
    causal: bool = True
    fused: bool = True
    n_ctx: int = 0
    encodes: bool = False


LOGITS = Wanted()

Choose = Callable[[Tensor, Tensor], Tensor]
"""(what lies beside cached keys (n, n_kv, 1, n_streams), mask (n_kv, n_tokens of each stream, 1, n_streams)) -> the mask of what
tokens read."""


class UbatchShape(NamedTuple):
    """All that a graph depends on. `memory` is the memory's shape of the placement, `n_pooled` the number of sequences that
    embeddings are made of; `one_by_one`: each token has the bits that it has alone (ops/one_by_one.py)."""

    n_tokens: int
    n_outputs: int
    memory: tuple[Hashable, ...]
    n_seqs: int = 1
    wanted: Wanted = LOGITS
    n_pooled: int = 0
    one_by_one: bool = False

    @property
    def form(self) -> Hashable:
        """What nodes and the likeness of layers depend on, but for the size of tensors (FewLayers)."""
        streams = tuple(part.n_streams > 1 for part in self.memory if isinstance(part, KVShape))
        return (
            self.n_tokens == self.n_outputs,
            self.n_outputs > 0,
            self.n_seqs > 1,
            self.n_tokens == self.n_seqs,
            streams,
            self.wanted,
            self.one_by_one,
        )


class Input(NamedTuple):
    """A tensor that is filled before each run, and what fills it."""

    tensor: Tensor
    fill: Fill


class BuiltGraph(NamedTuple):
    """`logits` (n_vocab, n_outputs) F32, or embeddings, is None when no output was asked for; `inputs` are those that nodes read; `ends`: the
    last node of each layer, but for a last one that only writes to memory."""

    graph: Graph
    inputs: list[Input]
    logits: Tensor | None
    ends: list[Tensor]

    def values(self, ub: Ubatch, placement: Placement) -> list[tuple[Tensor, NDArray[Any]]]:
        """What each input is for this micro-batch."""
        return [(tensor, fill(ub, placement)) for tensor, fill in self.inputs]


class GraphBuilder:
    """One micro-batch's graph.

    hp, memory   of the context
    n_tokens, n_seqs, n_outputs, n_pooled, wanted   of the micro-batch's shape
    n_ctx        cells that a token can see at most, or what is wanted
    tokens       I32 (n_tokens)
    positions    I32 (n_tokens)
    handed_on    what one part of a model leaves for others, by name
    adapters     LoRA adapters in use, each with its scale
    last         number of the last layer
    """

    def __init__(self, hp: Hparams, memory: Layered, shape: UbatchShape, adapters: tuple[Applied, ...] = ()) -> None:
        assert 0 <= shape.n_outputs <= shape.n_tokens, shape
        self.hp, self.memory, self.shape, self.adapters = hp, memory, shape, adapters
        self.n_tokens, self.n_outputs, self.n_seqs = shape.n_tokens, shape.n_outputs, shape.n_seqs
        self.wanted, self.n_pooled = shape.wanted, shape.n_pooled
        self.n_ctx = shape.wanted.n_ctx or max(
            (part.n_ctx for part in memory.parts if isinstance(part, KVCache)), default=0
        )
        self._order: list[Tensor] = []  # nodes that must be computed in this order, each with all it needs
        self._inputs: list[Input] = []
        self._shared: dict[str, Tensor] = {}
        self.handed_on: dict[str, Tensor] = {}
        self.last = hp.n_layer - 1
        self._kv: dict[int, KVInputs] = {}
        self._slots: dict[int, Tensor] = {}
        self.tokens = self.input("inp_tokens", GGMLType.I32, self.n_tokens, fill=lambda ub, _: ub.tokens)
        self.positions = self.input("inp_pos", GGMLType.I32, self.n_tokens, fill=lambda ub, _: ub.pos)
        self._out_ids: Tensor | None = None
        if 0 < self.n_outputs < self.n_tokens:  # all tokens are outputs, or none is: nothing to pick
            self._out_ids = self.input("out_ids", GGMLType.I32, self.n_outputs, fill=_out_ids)

    @cached_property
    def positions4(self) -> Tensor:
        """I32 (4 n_tokens): of a token of text three times its position, and 0 (llm_graph_input_pos::set_input)."""

        def fill(ub: Ubatch, _: Any) -> NDArray[Any]:
            return np.concatenate([ub.pos, ub.pos, ub.pos, np.zeros_like(ub.pos)])

        return self.input("inp_pos4", GGMLType.I32, 4 * self.n_tokens, fill=fill)

    def input(self, name: str, dtype: GGMLType, *ne: int, fill: Fill) -> Tensor:
        """A tensor that is filled before each run."""
        tensor = Tensor(dtype, ne, flags=Flag.INPUT, name=name)
        self._inputs.append(Input(tensor, fill))
        return tensor

    def shared_input(self, name: str, dtype: GGMLType, *ne: int, fill: Fill) -> Tensor:
        """An input that several layers read: the first one makes it."""
        if name not in self._shared:
            self._shared[name] = self.input(name, dtype, *ne, fill=fill)
        return self._shared[name]

    # ---- order

    def expand(self, il: int, *nodes: Tensor) -> None:
        """These nodes of layer `il` are computed next, with all they need (ggml_build_forward_expand); or not at all, where
        nobody wants more of the last layer than what it writes to memory."""
        if self.n_outputs or il != self.last:
            self._order += nodes

    def store(self, *nodes: Tensor) -> None:
        """These nodes write to memory: they are computed next, whoever wants what."""
        self._order += nodes

    def select_outputs(self, il: int, *xs: Tensor) -> tuple[Tensor, ...]:
        """In the last layer the columns that logits are wanted of; else all, as they are."""
        if self._out_ids is None or il != self.last:
            return xs
        return tuple(ops.get_rows(x, self._out_ids) for x in xs)

    # ---- weights

    def linear(self, layer: Linear, x: Tensor) -> Tensor:
        """x (n_in, n_tokens) -> (n_out, n_tokens): the product, what adapters add to it, the bias, and the scale, which
        comes first of these in attention (llama-graph.cpp: build_qkv), last in feed-forward networks (build_ffn)."""
        y = ops.mul_mat(layer.weight.value, x, name=layer.title)
        if layer.scale.tensor is not None and not layer.scale_last:
            y = ops.mul(y, layer.scale.tensor, name=layer.label("_s"))
        # an NVFP4 weight is only with its scale what the adapter was trained beside
        adapters_last = layer.scale.tensor is not None and layer.weight.value.type == GGMLType.NVFP4
        if not adapters_last:
            y = self._adapted(layer, x, y)
        if layer.bias.tensor is not None:
            y = ops.add(y, layer.bias.tensor, name=layer.label("_b"))
        if layer.scale.tensor is not None and layer.scale_last:
            y = ops.mul(y, layer.scale.tensor, name=layer.label("_s"))
        return self._adapted(layer, x, y) if adapters_last else y

    def _adapted(self, layer: Linear, x: Tensor, y: Tensor) -> Tensor:
        for applied in self.adapters:
            y = applied.add(layer.weight, x, y)
        return y

    def linear_id(self, layer: ExpertLinear, x: Tensor, ids: Tensor) -> Tensor:
        """x (n_in, 1 or n_used, n_tokens), ids (n_used, n_tokens) -> the chosen experts' products (n_out, n_used,
        n_tokens), each with the scale of its expert, and what adapters add (llama-graph.cpp: build_lora_mm_id)."""
        y = ops.mul_mat_id(layer.weight.value, x, ids, name=layer.title)
        scale, n = layer.scale.tensor, layer.n_expert
        if scale is not None:
            scales = ops.repeat(ops.reshape(scale, 1, n), 1, n, ids.ne[1])
            y = ops.mul(y, ops.get_rows(scales, ids), name=layer.label("_s"))
        if layer.bias.tensor is not None:
            y = ops.add_id(y, layer.bias.tensor, ids, name=layer.label("_b"))
        for applied in self.adapters:
            y = applied.add_id(layer.weight, x, ids, y)
        return y

    def linear_each(self, weight: Tensor, x: Tensor, name: str = "") -> Tensor:
        """x (n_in, n_tokens, n), weight (n_in, n_out, n), a matrix for each of n parts of x -> (n_out, n_tokens, n). No adapter
        adds to it: llama.cpp multiplies with such matrices by ggml_mul_mat, not by build_lora_mm."""
        return ops.mul_mat(weight, x, name=name)

    def rows(self, weight: Weight, il: int, name: str) -> Tensor:
        """The rows (n, n_tokens) of this micro-batch's tokens, read before all else, and what adapters add
        (llama-graph.cpp: build_inp_embd)."""
        y = ops.get_rows(weight.value, self.tokens, name=name)
        self.expand(il, y)
        for applied in self.adapters:
            y = applied.add_rows(weight, self.tokens, y)
        return y

    def steer(self, il: int, x: Tensor) -> Tensor:
        """x (n_embd, n_tokens), the result of layer `il` -> what the next one reads (llama-graph.cpp: build_cvec)."""
        for applied in self.adapters:
            x = applied.adapter.steer(il, x)
        return x

    # ---- memory

    def attend(
        self,
        il: int,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        *,
        scale: float,
        softcap: float = 0.0,
        sinks: Weight | None = None,
        max_bias: float = 0.0,
        window: Window | None = None,
        beside: Tensor | None = None,
        choose: Choose | None = None,
        only: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | None = None,
        more: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Store k and v, then attention of q over all that its tokens see (llama-graph.cpp: build_attn, build_attn_mha).

        q (head_k, n_head, n_tokens), k (head_k, n_head_kv, n_tokens), v (head_v, n_head_kv, n_tokens)
        -> (head_v * n_head, n_tokens). `max_bias`: of ALiBi, which lets scores fall with the distance.
        No v: values are in keys (KVLayer.v_in_k); neither: the layer reads the cache that it shares (SharedKV).
        Where the layer has no cache, tokens see those of the micro-batch; `window` is said for that alone. `bias` (cells seen,
        tokens of each stream, n_head, n_streams) is added to scores: fused attention knows none.
        `more`: keys behind the cached ones, which are values too (head_k, n, n_head_kv, n_streams), and their mask.
        `beside` (n, n_tokens) is stored behind k; `choose` makes another mask of all that lies there, `only` one of the
        mask alone.
        """
        if self.wanted.encodes or il not in self.memory.where:
            assert k is not None and v is not None, f"layer {il} has no keys and values of its own, and no cache"
            self.expand(il, q, k, v)
            fused, given = self.wanted.fused and bias is None, None if sinks is None else sinks.value
            mask = self._mask(window, max_bias > 0, fused)
            cur = attend_uncached(
                il, q, k, v, mask, fused=fused, scale=scale, softcap=softcap, sinks=given, max_bias=max_bias, bias=bias
            )
            self.expand(il, cur)
            return cur
        part, i, cache = self.memory.of(il, KVCache)
        assert (k is None) == (cache.layers[i].il != il), f"layer {il}: keys are stored where they are a layer's own"
        assert (v is None) == (k is None or cache.layers[i].v_in_k), f"layer {il}: values are stored beside keys"
        shape, inputs = self.kv_inputs(part, cache)
        q = cache.query(i, q)
        self.expand(il, q)
        written = [] if k is None else [cache.write_k(i, k, inputs.k_rows, beside)]
        written += [] if v is None else [cache.write_v(i, v, inputs.v_rows[i])]
        self.store(*(t for t in (v, k) if t is not None), *written)
        mask = inputs.mask if choose is None else choose(cache.read_beside(i, shape), inputs.mask)
        mask = mask if only is None else only(mask)
        given = None if sinks is None else sinks.value
        return self._over(
            il,
            cache,
            i,
            shape,
            q,
            mask,
            scale=scale,
            softcap=softcap,
            max_bias=max_bias,
            sinks=given,
            bias=bias,
            more=more,
        )

    def _over(
        self, il: int, cache: KVTensors, i: int, shape: KVShape, q: Tensor, mask: Tensor, *, scale: float,
        softcap: float = 0.0, max_bias: float = 0.0, sinks: Tensor | None = None, bias: Tensor | None = None,
        more: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Attention of q over what layer number i of `cache` holds, of which tokens see what `mask` says."""
        if shape.n_streams > 1:
            each = self.n_tokens // shape.n_streams
            q = ops.view(q, (*q.ne[:2], each, shape.n_streams), (q.nb[1], q.nb[2], each * q.nb[2]))
        q = ops.permute(q, 0, 2, 1, 3)
        cached_k, cached_v = cache.read_k(i, shape), cache.read_v(i, shape)
        if more is not None:
            cached_k, mask = ops.concat(cached_k, more[0], 1, name=f"k_all-{il}"), ops.concat(mask, more[1], 0)
            cached_v = transposed(cached_k) if cache.transposed_v else cached_k
        if cache.transposed_v or bias is not None:
            kq = ops.mul_mat(cached_k, q, name=f"kq-{il}")
            if softcap:  # softcap * tanh(scaled / softcap)
                kq = ops.unary(ops.scale(kq, scale / softcap), ops.UnaryOp.TANH)
                kq, scale = ops.scale(kq, softcap), 1.0
            if bias is not None:
                kq = ops.add(kq, bias, name=f"kq_plus_kq_b-{il}")
            kq = ops.soft_max(kq, mask, scale, max_bias, sinks=sinks, name=f"kq_soft_max-{il}")
            cached_v = cached_v if cache.transposed_v else transposed(cached_v)
            kqv = ops.permute(ops.mul_mat(cached_v, kq, name=f"kqv-{il}"), 0, 2, 1, 3)
            cur = ops.cont(kqv, kqv.ne[0] * kqv.ne[1], self.n_tokens, name=f"kqv_out-{il}")
        else:
            cached_k, cached_v = _as_f16(cached_k), _as_f16(cached_v)
            cur = ops.flash_attn_ext(q, cached_k, cached_v, mask, scale, max_bias, softcap, sinks, name=f"fattn-{il}")
            cur = ops.reshape(cur, cur.ne[0] * cur.ne[1], self.n_tokens, name=f"kqv_out-{il}")
        cur = cache.result(i, cur)
        self.expand(il, cur)
        return cur

    def kv_inputs(self, part: int, cache: KVCache) -> tuple[KVShape, KVInputs]:
        """What a cache, part number `part` of the memory, shows of itself, and its inputs."""
        shape: Any = self.shape.memory[part]
        if part not in self._kv:
            self._kv[part] = cache.inputs(self.input, self.n_tokens, shape, part)
        return shape, self._kv[part]

    def transposed_v(self, il: int) -> bool:
        """Whether attention of this layer is computed in several nodes, which read V transposed."""
        return self.memory.of(il, KVCache)[2].transposed_v

    def keep_encoded(self, il: int, k: Tensor, v: Tensor) -> None:
        """Keep k (head_k, n_head_kv, n_tokens) and v (head_v, n_head_kv, n_tokens) of the text that is encoded."""
        _, i, encoded = self.memory.of(il, Encoded)
        n = v.ne[0] * v.ne[1] if encoded.transposed_v else 0
        k_rows, v_rows = (encoded.rows_input(self.shared_input, self.n_tokens, each) for each in (0, n))
        self.store(encoded.write_k(i, k, k_rows), encoded.write_v(i, v, v_rows))

    def attend_encoded(self, il: int, q: Tensor, *, scale: float) -> Tensor:
        """Attention of q (head_k, n_head, n_tokens) over the text that was encoded -> (head_v * n_head, n_tokens)."""
        part, i, encoded = self.memory.of(il, Encoded)
        shape: Any = self.shape.memory[part]
        self.expand(il, q)
        mask = encoded.mask_input(self.shared_input, self.n_tokens, shape, part)
        return self._over(il, encoded, i, shape, q, mask, scale=scale)

    def _mask(self, window: Window | None, distances: bool, fused: bool) -> Tensor:
        """For layers without a cache; one input for all that have this window. All layers of a model are fused, or none."""
        causal = self.wanted.causal

        def fill(ub: Ubatch, _: Any) -> NDArray[Any]:
            return mask_of(ub, causal, window, distances).astype(np.float16 if fused else np.float32)

        name = "kq_mask" if window is None else f"kq_mask-{window.n}"
        return self.shared_input(name, GGMLType.F16 if fused else GGMLType.F32, self.n_tokens, self.n_tokens, fill=fill)

    def state(self, il: int, name: str) -> Tensor:
        """The state of this micro-batch's sequences in a layer: (elements, n_seqs). It is read here in the order of nodes,
        before whatever `set_state` keeps."""
        part, i, states = self.memory.of(il, RecurrentState)
        read = states.read(i, name, self._rows(part, states))
        self.store(read)
        return read

    def states(self, il: int, name: str) -> tuple[Tensor, Tensor]:
        """All rows of a state (elements, rows), and which of them are this micro-batch's: I32 (n_seqs)."""
        part, i, states = self.memory.of(il, RecurrentState)
        return states.states[i][name], self._rows(part, states)

    def set_state(self, il: int, name: str, x: Tensor) -> None:
        """Keep x (elements, n_seqs) for the tokens that follow."""
        part, i, states = self.memory.of(il, RecurrentState)
        self.store(states.write(i, name, x, self._rows(part, states)))

    def _rows(self, part: int, states: RecurrentState) -> Tensor:
        if part not in self._slots:
            self._slots[part] = states.inputs(self.input, self.n_seqs, part)
        return self._slots[part]

    # ---- the end

    def finish(self, logits: Tensor | None, ends: Sequence[Tensor] = ()) -> BuiltGraph:
        """The graph of all that was expanded, and of the logits; `ends`: the layers' results."""
        if logits is not None:
            logits.flags |= Flag.OUTPUT
            self.store(logits)
        graph = build_forward(self._order)
        graph.ends = frozenset(map(id, ends))
        if self.shape.one_by_one:
            ops.ask_one_by_one(graph.nodes)
        read = {id(leaf) for leaf in graph.leafs}
        inputs = [one for one in self._inputs if id(one.tensor) in read]
        return BuiltGraph(graph, inputs, logits, list(ends if logits is not None else ends[:-1]))


def _out_ids(ub: Ubatch, _: Any) -> NDArray[Any]:
    return ub.outputs.nonzero()[0].astype("i4")


def _as_f16(t: Tensor) -> Tensor:
    """For flash attention an F32 cache is converted to F16 in each run, as llama.cpp does; other types are read as they
    are."""
    return t if t.type != GGMLType.F32 else ops.cpy(t, Tensor(GGMLType.F16, t.ne, name=f"{t.name} (f16)"))
