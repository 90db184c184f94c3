"""A model at work: decode tokens of one or many sequences, get logits, go back.

Owns the memory and the micro-batches; knows no text and no sampling.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyggml.backend.base import Backend, Device
from pyggml.backend.host import default_threads
from pyggml.backend.scheduler import Schedule, Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError, ContextError, DeviceError
from pyggml.graph import Graph
from pyggml.memory import MemoryOptions, allocate, make_memory
from pyggml.memory.blocks import Blocks
from pyggml.memory.cells import FREE
from pyggml.memory.encoded import Encoded
from pyggml.memory.kv import KVCache
from pyggml.memory.kv_tensors import KVShape, pad_cells
from pyggml.memory.layered import Layered
from pyggml.memory.ubatch import Ubatch
from pyggml.model.graph import BuiltGraph, UbatchShape
from pyggml.model.lora import Adapter, Applied
from pyggml.model.model import Model
from pyggml.runtime import encoding
from pyggml.runtime.batch import Batch, place_part, split
from pyggml.runtime.schedules import Schedules
from pyggml.tensor import Tensor

if TYPE_CHECKING:
    from pyggml.jit import Job

MAX_SEQUENCES = 256  # llama.cpp: LLAMA_MAX_SEQ

_PARENTS: list[object] = []
"""In a forked process: what only the parent may end. Without threads or a connection of its own it would wait for ever."""


class Context:
    """`n_ctx` tokens at most (0: as many as the model was trained on).

    n_seq_max          sequences 0 to n_seq_max - 1, which share n_ctx: each has a stream of n_ctx / n_seq_max tokens
    kv_unified         they share one stream instead, and each may grow while there is room
    swa_full           layers with a sliding window keep all tokens too, so that a sequence can go back to any
    n_past             tokens of sequence 0 decoded, for who has one sequence alone: `decode` of tokens, `truncate`, `shift`
    n_batch, n_ubatch  a call may bring any number of tokens; they are computed min(n_batch, n_ubatch) at a time,
                       n_batch where n_ubatch is 0
    type_k, type_v     of the cache, one of kv_tensors.TYPES; a V in blocks needs flash_attn
    flash_attn         attention in one fused node; without it as products and soft max
    n_threads          of the CPU, None: one a core; n_threads_batch: for more than one token, None: the same
    offload_kqv        the cache lies with its layers; else on the CPU, where attention is then computed
    adapters           LoRA adapters of the model and their scales, as for `set_adapters`
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
        n_seq_max: int = 1,
        kv_unified: bool = False,
        swa_full: bool = False,
        adapters: Sequence[tuple[Adapter, float]] = (),
    ) -> None:
        """Raises ContextError, DeviceError, UnsupportedError."""
        if n_ctx < 0 or n_batch < 1 or n_ubatch < 0:
            raise ContextError(f"n_ctx {n_ctx}, n_batch {n_batch}, n_ubatch {n_ubatch}: must be at least 0, 1 and 0")
        if n_ctx > FREE:
            raise ContextError(f"n_ctx {n_ctx}: must be at most {FREE}, as positions have 32 bits")
        if not 1 <= n_seq_max <= MAX_SEQUENCES:
            raise ContextError(f"n_seq_max {n_seq_max}: must be 1 to {MAX_SEQUENCES}")
        if not model.modules.speaks:
            what = "fills in masked tokens" if model.modules.output else "makes embeddings (pyggml-embedding)"
            raise ContextError(f"a {model.config.architecture} model {what}, it cannot go on from left to right")
        self.model = model
        self.n_ctx = n_ctx or model.config.n_ctx_train
        self.n_seq_max, self.kv_unified = n_seq_max, kv_unified
        self.n_ctx_seq = self.n_ctx  # tokens that one sequence can have
        if n_seq_max > 1 and not kv_unified:
            self.n_ctx_seq = pad_cells(max(1, self.n_ctx // n_seq_max))
            self.n_ctx = self.n_ctx_seq * n_seq_max
        self.n_ubatch = min(n_batch, n_ubatch or n_batch, self.n_ctx)
        self.adapters = Applied.of(adapters, self.model.adapters)
        self.computed_with: tuple[Applied, ...] | None = self.adapters  # None: some tokens with others than the rest
        self._reserved: set[frozenset[Adapter]] = set()  # sets of adapters whose largest graphs have room
        self._schedules = Schedules(model, n_seq_max)
        self._backends: list[Backend] = []
        self._scheduler: Scheduler | None = None
        self._memory: Layered | None = None
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
            memory = make_memory(
                model.modules.needs(),
                MemoryOptions(
                    self.n_ctx_seq,
                    self.n_ubatch,
                    n_seq_max,
                    kv_unified,
                    type_k,
                    type_v,
                    transposed_v=not flash_attn,
                    swa_full=swa_full,
                ),
            )
            allocate(memory, places, self._compute)
            self._memory = memory
            self._schedules.use(memory, self._scheduler)
            self._reserve()
        except BaseException:
            self.close()
            raise

    def _reserve(self) -> None:
        """The largest graph first, so that no buffer moves later; all logits of a batch are allowed to move it."""
        used = frozenset(applied.adapter for applied in self.adapters)
        if used in self._reserved:
            return
        make = self._schedules.make
        self.scheduler.reserve(make(self.shape(self.n_ubatch, self.n_ctx, 1), self.adapters)[1].sizes)
        if self.n_seq_max > 1:
            n = min(self.n_seq_max, self.n_ubatch)
            self.scheduler.reserve(make(self.shape(n, self.n_ctx, n, self.memory.n_streams), self.adapters)[1].sizes)
        if self.encodes:
            self.scheduler.reserve(make(encoding.shape(self, self.n_ubatch), self.adapters)[1].sizes)
        self._reserved.add(used)

    def _open(self, device: Device) -> Backend:
        return device.open(max(self._n_threads or 0, self._n_threads_batch or 0) or None)

    @property
    def scheduler(self) -> Scheduler:
        self._after_fork()
        assert self._scheduler is not None, "the context is closed"
        return self._scheduler

    @property
    def memory(self) -> Layered:
        self._after_fork()
        assert self._memory is not None, "the context is closed"
        return self._memory

    @property
    def cache(self) -> KVCache:
        """The memory of a model all of whose layers keep keys and values of all tokens."""
        (part,) = self.memory.parts
        assert isinstance(part, KVCache), part
        return part

    @property
    def seconds_for_graphs(self) -> float:
        """That micro-batches of shapes which were not kept have taken so far, before they were computed."""
        return self._schedules.seconds

    @property
    def n_past(self) -> int:
        """Tokens of sequence 0 that are decoded."""
        return self.memory.end(0)

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
        _PARENTS.append((self._backends, self._scheduler))
        self._backends = [self._open(model.cpu)]
        self._scheduler = Scheduler(self._backends)
        assert self._memory is not None
        self._schedules.use(self._memory, self._scheduler)

    def set_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Use these LoRA adapters of the model, each with a scale, and no others (llama_set_adapters_lora); 0 is as not
        given. What is decoded already stays as it was computed. Raises ContextError, DeviceError."""
        before, self.adapters = self.adapters, Applied.of(adapters, self.model.adapters)
        if self.adapters == before:
            return
        try:
            self._reserve()
        except BaseException:
            self.adapters = before
            raise

    def decode(
        self, tokens: Batch | Sequence[int] | NDArray[np.int32], n_past: int | None = None,
        logits: Literal["last", "all", "none"] = "last", one_by_one: bool = False,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Compute a batch; or `tokens` of sequence 0 after its first `n_past` (default: all so far).

        -> the logits (n_out, n_vocab) of a batch's outputs, in its order; of the last of `tokens` or of all.
        one_by_one: each of `tokens` has the bits that it has when it is computed alone, on devices that promise it.
        On an error sequences end with the last micro-batch that was completed. Raises ContextError, ComputeError.
        """
        if isinstance(tokens, Batch):
            tokens.check(self.model.n_vocab, self.n_seq_max, self.n_ctx_seq, self.memory.end)
            encoding.check(self, np.unique(tokens.seq).tolist())
            return self._decode(tokens)
        ids = np.asarray(tokens, np.int32).reshape(-1)
        if n_past is not None:
            self.truncate(n_past)
        if ids.size == 0:
            raise ContextError("no tokens to decode")
        start = self.n_past
        if start + ids.size > self.n_ctx_seq:
            raise ContextError(f"{ids.size} tokens after {start} do not fit into a context of {self.n_ctx_seq}")
        bad = np.flatnonzero((ids < 0) | (ids >= self.model.n_vocab))
        if bad.size:
            raise ComputeError(f"token {ids[bad[0]]} is outside the vocabulary of {self.model.n_vocab}")
        encoding.check(self, [0])
        return self._decode_alone(ids, start, logits, one_by_one and ids.size > 1)

    def verify(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """`decode`, with the logits of all tokens, which are those that each would have alone."""
        return self.decode(tokens, logits="all", one_by_one=True)

    def _decode_alone(
        self, ids: NDArray[np.int32], start: int, logits: str, one_by_one: bool = False
    ) -> NDArray[np.float32]:
        """Tokens of sequence 0: what `_decode` does with a batch of them, with less ado."""
        self.begin()
        n_out = {"last": 1, "all": ids.size, "none": 0}[logits]
        out = np.empty((n_out, self.model.n_vocab), np.float32)  # takes no memory until it is written
        for at in range(0, ids.size, self.n_ubatch):
            part = ids[at : at + self.n_ubatch]
            end = at + part.size
            outputs = np.full(part.size, logits == "all")
            if logits == "last" and end == ids.size:
                outputs[-1] = True
            pos = np.arange(start + at, start + end, dtype=np.int32)
            ub = Ubatch(part, pos, np.zeros(part.size, np.int32), outputs, one_by_one=one_by_one)
            placement = self.memory.place(ub)
            if placement is None:
                raise ContextError(f"no room for {part.size} tokens in a context of {self.n_ctx}")
            result = self._decode_ubatch(ub, placement)
            if result is None:
                continue
            if result.shape == out.shape and result.flags.writeable:
                out = result  # needs no second copy
            else:
                out[at if logits == "all" else 0 :][: len(result)] = result
        return out

    @property
    def encodes(self) -> bool:
        """Whether a sequence answers a text, which `encode` has read before."""
        return self.model.modules.encodes

    def encode(self, tokens: Sequence[int] | NDArray[np.int32], seq: int = 0) -> None:
        """Let an encoder read the text that a sequence's tokens will be an answer to; those that it has are forgotten. All of it is
        computed at once (llama_encode). Raises ContextError, ComputeError."""
        encoding.encode(self, np.asarray(tokens, np.int32).reshape(-1), seq)

    @property
    def start_token(self) -> int | None:
        """What each answer to an encoded text begins with."""
        return self.model.modules.start_token

    @property
    def text(self) -> tuple[int, ...]:
        """The tokens of the text that sequence 0 answers, where there is an encoder."""
        return encoding.text_of(self, 0)

    def begin(self) -> None:
        """What comes before each call that computes. Raises ContextError for an adapter that is gone."""
        self.scheduler.aborted = False
        for applied in self.adapters:
            if applied.adapter not in self.model.adapters:
                raise ContextError(f"{applied.adapter.path}: this adapter is freed, but in use")
        if self.computed_with != self.adapters:
            fresh = not any(self.memory.end(seq) for seq in range(self.n_seq_max))
            self.computed_with = self.adapters if fresh else None

    def _decode(self, batch: Batch) -> NDArray[np.float32]:
        self.begin()
        out = np.empty((int(np.count_nonzero(batch.outputs)), self.model.n_vocab), np.float32)
        row_of = np.cumsum(batch.outputs) - 1
        cut = self.n_ubatch, self.memory.n_streams, self.n_seq_max
        for part in split(batch, *cut):
            placed = place_part(part, self.memory.place, *cut)
            if not placed:
                raise ContextError(f"no room for {int((part[1] >= 0).sum())} tokens in a context of {self.n_ctx}")
            for ub, its_rows, placement in placed:
                result = self._decode_ubatch(ub, placement)
                if result is None:
                    continue
                its_rows = its_rows[ub.outputs]
                real = its_rows >= 0
                if real.all() and batch.outputs[its_rows].all():
                    places = row_of[its_rows]
                    if result.flags.writeable and np.array_equal(places, np.arange(len(out))):
                        out = result  # all that is wanted, in its order: megabytes that need no second copy
                    else:
                        out[places] = result
                else:
                    real[real] = batch.outputs[its_rows[real]]
                    out[row_of[its_rows[real]]] = result[real]
        return out

    def prepare(self, n_tokens: int) -> list[Job]:
        """Begin to make ready for a prompt of so many tokens and for single ones after it, so that all kernels that this
        machine has yet to compile are compiled together; the jobs to wait for (jit.wait)."""
        start = self.n_past
        size = min(n_tokens, self.n_ctx_seq - start)
        shapes = []
        for done in range(0, size, self.n_ubatch):
            n = min(self.n_ubatch, size - done)
            shapes.append(self.shape(n, start + done + n, int(done + n == size)))
        if start + size < self.n_ctx_seq:
            shapes.append(self.shape(1, start + size + 1, 1))
        different = {(s.n_tokens, s.n_outputs): s for s in shapes}  # the last ones are needed last
        return self.prepare_shapes(different.values())

    def prepare_shapes(self, shapes: Iterable[UbatchShape]) -> list[Job]:
        """Begin to make ready for micro-batches of these shapes; the jobs to wait for."""
        return list(dict.fromkeys(job for s in shapes for job in self._ready(s)[1].begin()))

    def shape(self, n_tokens: int, n_used: int, n_outputs: int, n_streams: int = 1) -> UbatchShape:
        """Of a micro-batch of the first sequences that sees `n_used` cells of each stream."""
        n_seqs = min(n_streams, n_tokens)
        parts: list[Hashable] = []
        for part in self.memory.parts:
            if isinstance(part, KVCache):
                parts.append(KVShape(part.n_kv(n_used), 0, min(n_seqs, part.n_streams)))
            elif isinstance(part, Blocks):
                parts.append(part.shape_of(n_used, n_seqs))
            else:
                parts.append(part.shape_of_first(n_seqs) if isinstance(part, Encoded) else n_seqs)
        return UbatchShape(n_tokens, n_outputs, tuple(parts), n_seqs)

    def _decode_ubatch(self, ub: Ubatch, placement: Any) -> NDArray[np.float32] | None:
        shape: Any = self.memory.shape(placement)
        wanted = UbatchShape(ub.n, ub.n_outputs, shape, ub.n_seqs, one_by_one=ub.one_by_one)
        result = self.compute(ub, wanted, placement)
        self.memory.commit(placement)
        return result

    def compute(self, ub: Ubatch, shape: UbatchShape, placement: Any) -> NDArray[np.float32] | None:
        """Run a micro-batch's graph; the rows of its outputs. `placement` is where it lies in memory, None: nowhere yet."""
        self.model.check_file()
        n_threads = self._n_threads if ub.n == 1 else self._n_threads_batch
        if n_threads is not None:
            for backend in self._backends:
                backend.use_threads(n_threads)
        built, schedule = self._ready(shape)
        for tensor, values in built.values(ub, placement):
            schedule.set_input(tensor, values)
        if placement is not None:
            self.memory.prepare(placement)
        schedule.run()
        return None if built.logits is None else schedule.get(built.logits).reshape(ub.n_outputs, -1)

    def schedule_for(self, n_tokens: int, n_kv: int, n_outputs: int) -> tuple[BuiltGraph, Schedule]:
        """The graph of a micro-batch of one sequence that sees `n_kv` cells."""
        return self._ready(self.shape(n_tokens, n_kv, n_outputs))

    def _ready(self, shape: UbatchShape) -> tuple[BuiltGraph, Schedule]:
        return self._schedules.ready(shape, self.adapters)

    def _compute(self, graph: Graph, inputs: Sequence[tuple[Tensor, NDArray[Any]]]) -> None:
        """Run a graph of the memory's."""
        self.scheduler.aborted = False
        schedule = self.scheduler.schedule(graph)
        for tensor, values in inputs:
            schedule.set_input(tensor, values)
        schedule.run()

    # ---- one sequence

    def truncate(self, n: int, seq: int = 0) -> None:
        """Forget all tokens of a sequence but the first `n`. Raises ContextError when there are not so many, or when what they saw is
        kept no more."""
        n_past = self.memory.end(seq)
        if not 0 <= n <= n_past:
            raise ContextError(f"cannot keep {n} tokens, {n_past} are decoded")
        if not self.memory.remove(seq, n):
            raise ContextError(f"cannot go back to {n} tokens: the cache no longer holds what they attended to")

    def shift(self, n_keep: int, n_discard: int, seq: int = 0) -> None:
        """Forget `n_discard` tokens of a sequence after the first `n_keep`; those behind them move up, so that there is room again.

        What they were computed from stays in their keys and values: no logits are computed anew. As
        llama_memory_seq_rm and llama_memory_seq_add do it for a context that is full. Raises ContextError, ComputeError.
        """
        first, n_past = n_keep + n_discard, self.memory.end(seq)
        if n_keep < 0 or n_discard < 0 or first > n_past:
            raise ContextError(f"cannot forget {n_discard} tokens after {n_keep}, {n_past} are decoded")
        if n_discard:
            if why := self.memory.why_no_shift or self.memory.why_not_shift(seq, first, None, -n_discard):
                raise ContextError(f"cannot forget {n_discard} tokens after {n_keep}: {why}")
            removed = self.memory.remove(seq, n_keep, first)
            assert removed, "a memory that shifts forgets tokens in the midst"
            self.memory.shift(seq, first, None, -n_discard)

    def clear(self) -> None:
        """Forget all tokens of all sequences."""
        self.memory.clear()

    def abort(self) -> None:
        """Make a running `decode` end with ComputeError; from any thread."""
        self.scheduler.abort()

    def close(self) -> None:
        """Free cache and compute buffers, stop the backends' threads; twice does nothing."""
        self._schedules.clear()
        if self._process == os.getpid():
            if self._memory is not None:
                self._memory.free()
            if self._scheduler is not None:
                self._scheduler.close()
            for backend in self._backends:
                backend.close()
        else:  # what devices hold is the parent's to give back
            _PARENTS.append((self._memory, self._backends, self._scheduler))
        self._memory, self._scheduler, self._backends = None, None, []
