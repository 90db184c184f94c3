"""Embeddings of texts, made of those of their tokens: pooling, a classifier, dense layers.

Owns the order of their nodes, which is llama.cpp's (llama-graph.cpp: build_pooling, build_dense_out); knows no architecture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml import ops
from pyggml.dtypes import GGMLType
from pyggml.memory.ubatch import Ubatch
from pyggml.model.graph import GraphBuilder
from pyggml.model.hparams import Hparams
from pyggml.model.linear import Linear
from pyggml.model.module import Module
from pyggml.model.norms import LayerNorm
from pyggml.tensor import Tensor

POOLINGS = ("none", "mean", "cls", "last", "rank")
"""None: embeddings of tokens; the mean of a text's; that of its first token; of its last; what a classifier says of it."""

ACTIVATIONS = {"gelu": ops.UnaryOp.GELU_ERF, "silu": ops.UnaryOp.SILU, "tanh": ops.UnaryOp.TANH}


class Head(Module):
    """Rows (n_embd, n_tokens) -> (n_embd or what follows gives, n_pooled), or of "none" (..., n_tokens).

    dense       whether the file may have `cls`, which is followed by an activation, and by a norm, `cls.norm`
    n_dense     elements of its result; None: n_embd
    out         whether it may have `cls.output`, (n_embd, classes)
    soft_max    whether the classes' numbers become shares
    activation  where the file says none
    ranked      and how rows are pooled for the classifier: "mean", or "": the first token's, in causal models the last one's
    projected   whether the file may have dense_2 and dense_3, which follow each other whatever the pooling
    n_projected elements of dense_2's result; None: as the file's key says
    of_tokens   the name of a matrix that each row is multiplied with before all else, where the file has it
    """

    def __init__(
        self, hp: Hparams, *, dense: bool = False, n_dense: int | None = None, out: bool = False, soft_max: bool = False,
        activation: str = "tanh", ranked: str = "", projected: bool = False, n_projected: int | None = None,
        of_tokens: str = "",
    ) -> None:  # fmt: skip
        n, keys = hp.n_embd, hp.pooled
        self.soft_max, self.ranked = soft_max, keys.ranked or ranked
        self.activation = ACTIVATIONS[keys.activation or activation]
        self.of_tokens = of_tokens
        if dense:
            self.cls = Linear(n, n_dense or n, required=False)
            setattr(self, "cls.norm", LayerNorm.of(hp, required=False) if n_dense is None else None)
        if of_tokens:
            setattr(self, of_tokens, Linear(n, keys.n_out, required=False))
        if out:
            setattr(self, "cls.output", Linear(n, keys.n_classes, required=False))
        if projected:
            n_mid = hp.u32("dense_2_feat_out", 0, least=0) if n_projected is None else n_projected
            n_in = hp.u32("dense_3_feat_in", 0, least=0)
            self.dense_2 = Linear(n, n_mid, required=False)
            self.dense_3 = Linear(n_in, n, required=False)

    @property
    def ranks(self) -> bool:
        """Whether there is a classifier."""
        return self._there("cls") is not None or (
            self.of_tokens != "cls.output" and self._there("cls.output") is not None
        )

    def __call__(self, g: GraphBuilder, x: Tensor) -> Tensor:
        pooling = g.wanted.pooling
        if (matrix := self._there(self.of_tokens)) is not None:
            x = g.linear(matrix, x)
        if pooling == "rank":
            cur = self._classified(g, self._pooled(g, x, self._for_ranks(g)))
        else:
            cur = x if pooling == "none" else self._pooled(g, x, pooling)
        for name in ("dense_2", "dense_3"):
            if (matrix := self._there(name)) is not None:
                cur = g.linear(matrix, cur)
        return cur

    def _for_ranks(self, g: GraphBuilder) -> str:
        return "mean" if self.ranked == "mean" else "last" if g.wanted.causal else "cls"

    def _pooled(self, g: GraphBuilder, x: Tensor, pooling: str) -> Tensor:
        if pooling == "mean":
            shares = g.input("inp_mean", GGMLType.F32, g.n_tokens, g.n_pooled, fill=_means(g.n_pooled))
            return ops.mul_mat(ops.cont(ops.transpose(x)), shares, name="result_embd_pooled")
        rows = g.input("inp_cls", GGMLType.I32, g.n_pooled, fill=_places(g.n_pooled, last=pooling == "last"))
        return ops.get_rows(x, rows, name="result_embd_pooled")

    def _classified(self, g: GraphBuilder, cur: Tensor) -> Tensor:
        if (first := self._there("cls")) is not None:
            cur = ops.unary(g.linear(first, cur), self.activation)
            norm = getattr(self, "cls.norm")
            cur = cur if norm is None else norm(g, cur)
        if (last := self._there("cls.output")) is not None:
            cur = g.linear(last, cur)
        return ops.soft_max(cur) if self.soft_max else cur

    def _there(self, name: str) -> Linear | None:
        found: Linear | None = getattr(self, name, None)
        return found if found is not None and found.weight.there else None


def _means(n_pooled: int) -> Any:
    """Sequences are numbered from 0."""

    def fill(ub: Ubatch, _: Any) -> NDArray[np.float32]:
        shares = (ub.seq[None, :] == np.arange(n_pooled)[:, None]).astype(np.float32)
        found: NDArray[np.float32] = shares * (np.float32(1) / shares.sum(1, keepdims=True))
        return found

    return fill


def _places(n_pooled: int, *, last: bool) -> Any:
    def fill(ub: Ubatch, _: Any) -> NDArray[np.int32]:
        rows = [np.flatnonzero(ub.seq == seq) for seq in range(n_pooled)]
        places = [found[ub.pos[found].argmax() if last else ub.pos[found].argmin()] for found in rows]
        return np.array(places, np.int32)

    return fill
