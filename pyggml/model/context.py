"""A model at work on one sequence of tokens: decode some, get logits, go back.

Owns the cache, the micro-batches and the schedules that are used again; knows no text and no sampling.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Backend, Device
from pyggml.backend.host import default_threads
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, ContextError, DeviceError
from pyggml.model.architecture import Built
from pyggml.model.kv_cache import KVCache
from pyggml.model.model import Model
from pyggml.model.shift import shift_graph
from pyggml.tensor import Tensor

if TYPE_CHECKING:
    from pyggml.jit import Job

KEPT_SCHEDULES = 8

_PARENTS: list[object] = []
"""In a forked process: what only the parent may end. Without threads or a connection of its own it would wait for ever."""


class Context:
    """`n_ctx` tokens at most (0: as many as the model was trained on), `n_past` of them decoded.

    n_batch, n_ubatch  a call may bring any number of tokens; they are computed min(n_batch, n_ubatch) at a time
    type_k, type_v     of the cache, one of kv_cache.TYPES; a V in blocks needs flash_attn
    flash_attn         attention in one fused node; without it as products and soft max
    n_threads          of the CPU, None: one a core; n_threads_batch: for more than one token, None: the same
    offload_kqv        the cache lies with its layers; else on the CPU, where attention is then computed
    """

    def __init__(
        self,
        model: Model,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        type_k: GGMLType = GGMLType.F16,
        type_v: GGMLType = GGMLType.F16,
        flash_attn: bool = True,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        offload_kqv: bool = True,
    ) -> None:
        """Raises ContextError, DeviceError, UnsupportedError."""
        if n_ctx < 0 or n_batch < 1 or n_ubatch < 1:
            raise ContextError(f"n_ctx {n_ctx}, n_batch {n_batch}, n_ubatch {n_ubatch}: must not be negative or zero")
        self.model = model
        self.n_ctx = n_ctx or model.config.n_ctx_train
        self.n_ubatch = min(n_batch, n_ubatch, self.n_ctx)
        self.n_past = 0
        self._schedules: OrderedDict[tuple[int, int, int], tuple[Built, Schedule]] = OrderedDict()
        self._backends: list[Backend] = []
        self._scheduler: Scheduler | None = None
        self._cache: KVCache | None = None
        self._process = os.getpid()
        if n_threads_batch is not None:
            n_threads = n_threads or default_threads()
        self._n_threads = n_threads
        self._n_threads_batch = n_threads_batch or self._n_threads
        config = model.config
        places = model.layer_devices[: config.n_layer] if offload_kqv else [model.cpu] * config.n_layer
        try:
            for device in (*model.devices, model.cpu):
                self._backends.append(self._open(device))
            self._scheduler = Scheduler(self._backends)
            self._cache = KVCache(
                places, self.n_ctx, config.n_embd_head_k, config.n_embd_head_v,
                config.n_head_kv, type_k, type_v, transposed_v=not flash_attn,
            )  # fmt: skip
            # the largest graph first, so that no buffer moves later; all logits of a batch are allowed to move it
            largest = self._make(self.n_ubatch, self._cache.n_cells, 1)[1]
            self._scheduler.reserve(largest.sizes)
        except BaseException:
            self.close()
            raise

    def _open(self, device: Device) -> Backend:
        return device.open(max(self._n_threads or 0, self._n_threads_batch or 0) or None)

    @property
    def scheduler(self) -> Scheduler:
        self._after_fork()
        assert self._scheduler is not None, "the context is closed"
        return self._scheduler

    @property
    def cache(self) -> KVCache:
        self._after_fork()
        assert self._cache is not None, "the context is closed"
        return self._cache

    def _after_fork(self) -> None:
        """In a child process that os.fork() made, the CPU's threads start anew: they did not come along, the memory did.
        Raises DeviceError where other devices take part, whose connections are the parent's."""
        if self._process == os.getpid() or not self._backends:
            return
        model = self.model
        if others := [backend.device.name for backend in self._backends if backend.device is not model.cpu]:
            raise DeviceError(
                f"this context was made by process {self._process}, which this one was forked from: "
                f"{', '.join(others)} cannot be used by both; load the model anew here"
            )
        self._process = os.getpid()
        self._schedules.clear()
        _PARENTS.append((self._backends, self._scheduler))
        self._backends = [self._open(model.cpu)]
        self._scheduler = Scheduler(self._backends)

    def decode(
        self, tokens: Sequence[int] | NDArray[np.int32], n_past: int | None = None,
        logits: Literal["last", "all", "none"] = "last",
    ) -> NDArray[np.float32]:  # fmt: skip
        """Compute `tokens` after the first `n_past` (default: all so far); logits (n_out, n_vocab) of the last or all.

        On an error `n_past` stays at the last micro-batch that was completed. Raises ContextError, ComputeError.
        """
        ids = np.asarray(tokens, np.int32).reshape(-1)
        if n_past is not None:
            self.truncate(n_past)
        if ids.size == 0:
            raise ContextError("no tokens to decode")
        if self.n_past + ids.size > self.n_ctx:
            raise ContextError(f"{ids.size} tokens after {self.n_past} do not fit into a context of {self.n_ctx}")
        bad = np.flatnonzero((ids < 0) | (ids >= self.model.n_vocab))
        if bad.size:
            raise ComputeError(f"token {ids[bad[0]]} is outside the vocabulary of {self.model.n_vocab}")
        self.scheduler.aborted = False
        n_out = {"last": 1, "all": ids.size, "none": 0}[logits]
        out = np.empty((n_out, self.model.n_vocab), np.float32)
        for start in range(0, ids.size, self.n_ubatch):
            batch = ids[start : start + self.n_ubatch]
            end = start + batch.size
            n_outputs = batch.size if logits == "all" else int(logits == "last" and end == ids.size)
            result = self._decode_ubatch(batch, n_outputs)
            if result is not None:
                out[start if logits == "all" else 0 :][:n_outputs] = result
            self.n_past += batch.size
        return out

    def prepare(self, n_tokens: int) -> list[Job]:
        """Begin to make ready for a prompt of so many tokens and for single ones after it, so that all kernels that this
        machine has yet to compile are compiled together; the jobs to wait for (jit.wait)."""
        size = min(n_tokens, self.n_ctx - self.n_past)
        shapes = []
        for done in range(0, size, self.n_ubatch):
            n = min(self.n_ubatch, size - done)
            shapes.append((n, self.cache.n_kv(self.n_past + done + n), int(done + n == size)))
        if self.n_past + size < self.n_ctx:
            shapes.append((1, self.cache.n_kv(self.n_past + size + 1), 1))
        different = {(n, outputs): (n, n_kv, outputs) for n, n_kv, outputs in shapes}  # the last ones are needed last
        return list(dict.fromkeys(job for key in different.values() for job in self.schedule_for(*key)[1].begin()))

    def _decode_ubatch(self, ids: NDArray[np.int32], n_outputs: int) -> NDArray[np.float32] | None:
        self.model.check_file()
        cache = self.cache
        n_kv = cache.n_kv(self.n_past + ids.size)
        n_threads = self._n_threads if ids.size == 1 else self._n_threads_batch
        if n_threads is not None:
            for backend in self._backends:
                backend.use_threads(n_threads)
        built, schedule = self.schedule_for(ids.size, n_kv, n_outputs)
        cells = np.arange(self.n_past, self.n_past + ids.size, dtype=np.int64)
        schedule.set_input(built.tokens, ids)
        schedule.set_input(built.positions, cells.astype(np.int32))
        schedule.set_input(built.k_rows, cells)
        if built.v_rows is not built.k_rows:
            schedule.set_input(built.v_rows, cache.v_rows(cells))
        if n_outputs or self.model.config.n_layer > 1:
            schedule.set_input(built.mask, cache.mask(cells, n_kv))
        if built.out_ids is not None:
            schedule.set_input(built.out_ids, np.arange(ids.size - n_outputs, ids.size, dtype=np.int32))
        schedule.run()
        return None if built.logits is None else schedule.get(built.logits)

    def schedule_for(self, n_tokens: int, n_kv: int, n_outputs: int) -> tuple[Built, Schedule]:
        """The graph of such a micro-batch, made on first need; the most recently used ones are kept."""
        key = n_tokens, n_kv, n_outputs
        made = self._schedules.get(key)
        if made is None:
            made = self._make(*key)
            self._schedules[key] = made
            if len(self._schedules) > KEPT_SCHEDULES:
                self._schedules.popitem(last=False)
        self._schedules.move_to_end(key)
        return made

    def _make(self, n_tokens: int, n_kv: int, n_outputs: int) -> tuple[Built, Schedule]:
        model = self.model
        built = model.architecture.build(model.config, model.weights, self.cache, n_tokens, n_kv, n_outputs)
        return built, self.scheduler.schedule(built.graph)

    def truncate(self, n: int) -> None:
        """Forget all tokens but the first `n`. Raises ContextError when there are not so many."""
        if not 0 <= n <= self.n_past:
            raise ContextError(f"cannot keep {n} tokens, {self.n_past} are decoded")
        self.n_past = n

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Forget `n_discard` tokens after the first `n_keep`; those behind them move up, so that there is room again.

        What they were computed from stays in their keys and values: no logits are computed anew. As
        llama_memory_seq_rm and llama_memory_seq_add do it for a context that is full. Raises ContextError, ComputeError.
        """
        first = n_keep + n_discard
        if n_keep < 0 or n_discard < 0 or first > self.n_past:
            raise ContextError(f"cannot forget {n_discard} tokens after {n_keep}, {self.n_past} are decoded")
        if 0 < n_discard < self.n_past - n_keep:
            model = self.model

            def rotate(keys: Tensor, positions: Tensor, il: int) -> Tensor:
                return model.architecture.rotate(model.config, model.weights, self.cache, keys, positions, il)

            self.scheduler.aborted = False
            graph, turns = shift_graph(self.cache, rotate, first, self.n_past, n_discard)
            schedule = self.scheduler.schedule(graph)
            schedule.set_input(turns, np.full(turns.ne[0], -n_discard, np.int32))
            end, self.n_past = self.n_past, n_keep  # all that is left of a run that breaks off
            schedule.run()
            self.n_past = end
        self.n_past -= n_discard

    def clear(self) -> None:
        """Forget all tokens."""
        self.n_past = 0

    def abort(self) -> None:
        """Make a running `decode` end with ComputeError; from any thread."""
        self.scheduler.abort()

    def close(self) -> None:
        """Free cache and compute buffers, stop the backends' threads; twice does nothing."""
        self._schedules.clear()
        if self._process == os.getpid():
            if self._cache is not None:
                self._cache.free()
            if self._scheduler is not None:
                self._scheduler.close()
            for backend in self._backends:
                backend.close()
        else:  # what devices hold is the parent's to give back
            _PARENTS.append((self._cache, self._backends, self._scheduler))
        self._cache, self._scheduler, self._backends = None, None, []
