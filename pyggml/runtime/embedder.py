"""A model that makes embeddings: whole texts go in, vectors come out, and nothing is kept in between.

Owns how texts are put together into micro-batches; knows no text and no tokenizer. (llama-context.cpp: encode)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Backend
from pyggml.backend.scheduler import Scheduler
from pyggml.errors import ComputeError, ContextError, DeviceError, UnsupportedError
from pyggml.graph import Graph
from pyggml.memory import MemoryOptions, allocate, make_memory
from pyggml.memory.kv_tensors import pad_cells
from pyggml.memory.layered import Layered
from pyggml.memory.ubatch import Ubatch
from pyggml.model.encoder import Encoder
from pyggml.model.graph import UbatchShape, Wanted
from pyggml.model.lora import Adapter, Applied
from pyggml.model.model import Model
from pyggml.model.pooling import POOLINGS
from pyggml.runtime.schedules import Schedules

MAX_TEXTS = 256
"""Texts of a micro-batch at most (llama.cpp: LLAMA_MAX_SEQ)."""

_PARENTS: list[object] = []
"""In a forked process: what only the parent may end."""


class Embedder:
    """`encode` computes texts; models that generate make embeddings too. Those that need more than keys and values of their own,
    such as states, get a memory and compute a text at a time.

    pooling    one of POOLINGS; None: as the file says, and "none" where it says nothing
    causal     whether tokens see those before them alone; None: as the file says. Encoders never let them
    n_ubatch   tokens that are computed at once: a text has no more
    n_ctx      tokens that positions are scaled for, where that depends on their number (longrope); 0: as many as the model was
               trained on
    n_threads  of the CPU, None: one a core
    adapters   LoRA adapters of the model, each with its scale
    n_out      numbers of a vector
    """

    def __init__(
        self, model: Model, *, n_ubatch: int = 512, n_ctx: int = 0, pooling: str | None = None, causal: bool | None = None,
        flash_attn: bool = True, n_threads: int | None = None, adapters: Sequence[tuple[Adapter, float]] = (),
    ) -> None:  # fmt: skip
        """Raises ContextError, UnsupportedError, DeviceError."""
        if n_ubatch < 1:
            raise ContextError(f"n_ubatch {n_ubatch}: must be at least 1")
        modules, keys = model.modules, model.config.pooled
        if modules.encodes:
            raise UnsupportedError(
                f"embeddings of a {model.config.architecture} model, which has an encoder and a decoder: llama-embedding makes none either"
            )
        self.pooling = pooling or keys.pooling or "none"
        if self.pooling not in POOLINGS:
            raise ContextError(f"pooling {pooling!r:.40}: known are {', '.join(POOLINGS)}")
        if self.pooling == "rank" and not modules.head.ranks:
            raise ContextError("pooling rank needs a classifier, this model has none")
        if isinstance(modules, Encoder):
            causal = modules.causal()
        self.causal = keys.causal if causal is None else causal
        self.model, self.n_ubatch, self.n_threads = model, n_ubatch, n_threads
        self._why_kept = why_kept(model)
        if self._why_kept is not None and not self.causal:
            raise UnsupportedError(
                f"attention to tokens behind: not in a {model.config.architecture} model: {self._why_kept}"
            )
        self._wanted = Wanted(self.pooling, self.causal, flash_attn, n_ctx or model.config.n_ctx_train)
        self._adapters = tuple(Applied(adapter, float(scale)) for adapter, scale in adapters if scale)
        options = MemoryOptions(pad_cells(n_ubatch), n_ubatch, transposed_v=not flash_attn)
        self._memory = Layered([], {}) if self._why_kept is None else make_memory(modules.needs(), options)
        self._schedules = Schedules(model, MAX_TEXTS)
        self._backends: list[Backend] = []
        self._scheduler: Scheduler | None = None
        self._process = os.getpid()
        try:
            for device in (*model.devices, model.cpu):
                self._backends.append(device.open(n_threads))
            self._scheduler = Scheduler(self._backends)
            allocate(self._memory, model.layer_devices[: model.config.n_layer], _no_moves)
            self._schedules.use(self._memory, self._scheduler)
        except BaseException:
            self.close()
            raise

    def encode(self, texts: Sequence[Sequence[int] | NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """The embedding of each text, in their order: (n_out,), of a classifier one number a class; with pooling "none"
        (tokens of the text, n_out). Raises ContextError, ComputeError."""
        ids = [np.asarray(text, np.int32).reshape(-1) for text in texts]
        for i, text in enumerate(ids):
            self._check(i, text)
        found: list[NDArray[np.float32]] = []
        for first, end in self.together([text.size for text in ids]):
            rows = self._compute(ids[first:end])
            if self.pooling == "none":
                found += np.split(rows, np.cumsum([text.size for text in ids[first : end - 1]]))
            else:
                found += list(rows)
        return found

    def _check(self, i: int, text: NDArray[np.int32]) -> None:
        if not text.size:
            raise ContextError(f"text {i} has no tokens")
        if text.size > self.n_ubatch:
            raise ContextError(
                f"text {i} has {text.size} tokens, at most {self.n_ubatch} are computed at once (n_ubatch)"
            )
        most = self.model.config.n_ctx_train
        if text.size > most and getattr(self.model.modules, "position_embd", None) is not None:
            raise ContextError(f"text {i} has {text.size} tokens, the model knows {most} positions")
        bad = np.flatnonzero((text < 0) | (text >= self.model.n_vocab))
        if bad.size:
            raise ComputeError(f"token {text[bad[0]]} is outside the vocabulary of {self.model.n_vocab}")

    def together(self, sizes: list[int]) -> Iterator[tuple[int, int]]:
        """Ranges of texts, of so many tokens each, that a micro-batch has room for: those of a range give the same alone."""
        first = tokens = 0
        most = MAX_TEXTS if self._why_kept is None else 1
        for i, size in enumerate(sizes):
            if i > first and (tokens + size > self.n_ubatch or i - first == most):
                yield first, i
                first, tokens = i, 0
            tokens += size
        if sizes:
            yield first, len(sizes)

    def _compute(self, texts: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        if self._scheduler is None:
            raise ContextError("this embedder is closed")
        self._after_fork()
        self.model.check_file()
        self._scheduler.aborted = False
        for applied in self._adapters:
            if applied.adapter not in self.model.adapters:
                raise ContextError(f"{applied.adapter.path}: this adapter is freed, but in use")
        tokens = np.concatenate(texts)
        pos = np.concatenate([np.arange(text.size, dtype=np.int32) for text in texts])
        seq = np.repeat(np.arange(len(texts), dtype=np.int32), [text.size for text in texts])
        ub = Ubatch(tokens, pos, seq, np.ones(tokens.size, np.bool_))
        self._memory.clear()
        placement: Any = self._memory.place(ub)
        assert placement is not None, "the memory holds a micro-batch"
        shape: Any = self._memory.shape(placement)
        n_pooled = 0 if self.pooling == "none" else len(texts)
        wanted = UbatchShape(ub.n, ub.n, shape, wanted=self._wanted, n_pooled=n_pooled)
        built, schedule = self._schedules.ready(wanted, self._adapters)
        for tensor, values in built.values(ub, placement):
            schedule.set_input(tensor, values)
        self._memory.prepare(placement)
        schedule.run()
        self._memory.commit(placement)
        assert built.logits is not None
        rows: NDArray[np.float32] = schedule.get(built.logits).reshape(n_pooled or ub.n, -1)
        return rows

    def _after_fork(self) -> None:
        """In a child process that os.fork() made, the CPU's threads start anew. Raises DeviceError where other devices take
        part, whose connections are the parent's."""
        if self._process == os.getpid():
            return
        if others := [backend.device.name for backend in self._backends if backend.device is not self.model.cpu]:
            raise DeviceError(
                f"this embedder was made by process {self._process}, which this one was forked from: {', '.join(others)} "
                "cannot be used by both; load the model anew here"
            )
        self._process = os.getpid()
        _PARENTS.append((self._backends, self._scheduler))
        self._backends = [self.model.cpu.open(self.n_threads)]
        self._scheduler = Scheduler(self._backends)
        self._schedules.use(self._memory, self._scheduler)

    def abort(self) -> None:
        """Make a running `encode` end with ComputeError; from any thread."""
        if self._scheduler is not None:
            self._scheduler.abort()

    def close(self) -> None:
        """Free compute buffers, stop the backends' threads; twice does nothing."""
        self._schedules.clear()
        if self._process == os.getpid():
            if self._scheduler is not None:
                self._scheduler.close()
            self._memory.free()
            for backend in self._backends:
                backend.close()
        else:  # what devices hold is the parent's to give back
            _PARENTS.append((self._memory, self._backends, self._scheduler))
        self._scheduler, self._backends = None, []


def why_kept(model: Model) -> str | None:
    """Why a model's layers cannot do without a memory; None: they can."""
    for need in model.modules.needs():
        if need.states is not None:
            return "its layers have states"
        if need.shared is not None:
            return "its layers share keys and values"
        if need.blocks is not None:
            return "its layers keep rows for blocks of tokens"
        if need.kv is not None and need.kv.v_in_k:
            return "its values are a part of its keys"
        if need.kv is not None and need.kv.beside:
            return "an indexer's keys lie beside its own"
    return None


def _no_moves(graph: Graph, inputs: Any) -> None:
    raise AssertionError("a text is computed once and forgotten: nothing of it is moved")


def _norm(x: NDArray[np.float64], p: int) -> float:
    """Where powers are too large or too small for numbers, they are taken of parts of the largest: the reference then has 0."""
    with np.errstate(over="ignore", under="ignore"):
        length = float((x**p).sum() ** (1.0 / p))
        largest = float(x.max(initial=0.0))
        if largest and not 0 < length < np.inf:
            length = largest * float(((x / largest) ** p).sum() ** (1.0 / p))
    return length


def normalised(x: NDArray[np.float32], kind: int = 2) -> NDArray[np.float32]:
    """An embedding of a length that makes it comparable (common.cpp: common_embd_normalize): kind -1: as it is, 0: the largest
    is 32760, 2: the root of the sum of squares is 1, else the kind-norm is."""
    wide = x.astype(np.float64)
    if kind < 0:
        return x
    if kind == 0:
        length = float(np.abs(wide).max(initial=0)) / 32760.0
    elif kind == 2:
        length = float(np.sqrt((wide**2).sum()))
    else:
        length = _norm(np.abs(wide), kind)
    factor = np.float32(1.0 / length) if length > 0 else np.float32(0)
    return x * factor
