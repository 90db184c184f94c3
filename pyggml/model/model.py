"""A model file's weights, each on its device: mapped where the local CPU computes, uploaded elsewhere.

Owns the choice of place and the upload; knows no graph and no token.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence, Sized

from pyggml import ops
from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.host import HostBuffer
from pyggml.backend.pack import pack
from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError, PyggmlError
from pyggml.gguf import GGUFFile, TensorInfo
from pyggml.model import architecture_of
from pyggml.model.architecture import INPUT_LAYER, Architecture, Spec, Weights
from pyggml.model.config import Config
from pyggml.model.offload import split_layers
from pyggml.model.overrides import Override, Value, device_for, override_metadata
from pyggml.model.rope_options import RopeOptions
from pyggml.model.weights import check_tensors, lock
from pyggml.ops import Op
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

log = logging.getLogger(__name__)

NO_VOCABULARY = ("none", "no_vocab")
"""Values of tokenizer.ggml.model in files whose tokens are numbers alone."""

Progress = Callable[[int, int], None]
"""Called with (bytes uploaded, bytes to upload)."""


class Model:
    """Use `Model.load`; close it when its contexts are closed.

    file           the GGUF file, with the metadata
    config         hyper-parameters
    n_vocab        tokens
    cpu, devices   the local CPU; those that layers were offloaded to
    layer_devices  of layers 0 to n_layer - 1 and, last, of the output
    """

    def __init__(self, file: GGUFFile, architecture: Architecture, config: Config, cpu: Device) -> None:
        self.file = file
        self.architecture = architecture
        self.config = config
        self.cpu = cpu
        self.devices: list[Device] = []
        self.layer_devices: list[Device] = []
        self.weights = Weights(layers=[{} for _ in range(config.n_layer)])
        self.n_vocab = 0
        self._buffers: list[Buffer] = []
        self._process = os.getpid()
        self._mapped = False
        self._asked: set[str] = set()  # names of tensors, there or not, that the architecture wants

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        cpu: Device | None = None,
        devices: Sequence[Device] = (),
        n_gpu_layers: int = -1,
        tensor_split: Sequence[float] = (),
        overrides: Sequence[Override] = (),
        metadata: Mapping[str, Value] | None = None,
        rope: RopeOptions | None = None,
        use_mmap: bool = True,
        use_mlock: bool = False,
        check: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """Open a file and place its weights.

        n_gpu_layers  how many of the last n_layer + 1 layers (the output counts as one) go to `devices`; negative: all
        tensor_split  their shares; empty: in proportion to free memory
        overrides     patterns of tensor names, and the devices that these tensors go to instead
        metadata      values that take the place of the file's
        rope          how positions are turned, in place of what the file says
        use_mmap      weights of the CPU stay in the mapped file; else they are read into memory
        use_mlock     the system is asked to keep them in memory; a warning is logged where it will not
        check         look for infinities and NaNs in all weights first
        Raises GGUFError, ModelError, DeviceError.
        """
        file = GGUFFile.open(path)
        try:
            override_metadata(file, metadata or {})
            if check:
                check_tensors(file.tensors.values(), progress or _unseen)
            architecture = architecture_of(file.metadata)
            config = (rope or RopeOptions()).apply(architecture.config(file.metadata))
            model = cls(file, architecture, config, cpu or _default_cpu())
            model._spread(devices, n_gpu_layers, tensor_split)
            model.devices += [d for d in _used(overrides) if d is not model.cpu and d not in model.devices]
            model._place(overrides, use_mmap, progress or _unseen)
            if use_mlock and (why := lock(model._host_weights())):
                log.warning("warning: %s", why)
        except ModelError as error:
            file.close()
            raise ModelError(f"{os.fspath(path)}: {error}") from None
        except BaseException:
            file.close()
            raise
        return model

    def _spread(self, devices: Sequence[Device], n_gpu_layers: int, tensor_split: Sequence[float]) -> None:
        free = []
        for device in devices:
            memory = device.memory()
            free.append(memory[0] if any(memory) else self.cpu.memory()[0])
        numbers = split_layers(self.config.n_layer, free, n_gpu_layers, tensor_split)
        self.layer_devices = [self.cpu if n is None else devices[n] for n in numbers]
        self.devices = [device for i, device in enumerate(devices) if i in numbers]

    def _place(self, overrides: Sequence[Override], use_mmap: bool, progress: Progress) -> None:
        """Make a tensor for each weight, map or upload it."""
        uploads: dict[int, tuple[Device, dict[str, Tensor]]] = {id(d): (d, {}) for d in (*self.devices, self.cpu)}
        for spec in self.architecture.specs(self.config, self.file.tensors):
            self._asked.add(spec.name)
            info = self.file.tensors.get(spec.name)
            if info is None:
                if spec.required:
                    raise ModelError(f"tensor {spec.name} is missing")
                continue
            weight = _checked(spec, info)
            device = self.cpu if spec.layer == INPUT_LAYER else self.layer_devices[spec.layer]
            device = device_for(spec.name, overrides, device)
            if device is not self.cpu and not device.supports_op(probe(weight, spec.op)):
                device = self.cpu
            if device is self.cpu:
                why = None if device.supports_op(p := probe(weight, spec.op)) else device.why_not(p)
                if why is not None:
                    known = ", ".join(t.name for t in QUANTS)
                    raise ModelError(f"tensor {spec.name} is {info.type.name}: {why} (known types: {known})")
            if device is self.cpu and use_mmap:
                self._mapped = True
                HostBuffer.wrap(device, info.data, Usage.WEIGHTS).place(weight, 0)
            else:
                weight = uploads[id(device)][1].setdefault(spec.name, weight)
            repeating = 0 <= spec.layer < self.config.n_layer
            (self.weights.layers[spec.layer] if repeating else self.weights.top)[spec.key] = weight
        self.n_vocab = self.weights.top["token_embd"].ne[1]
        self._check_vocabulary()
        self._check_all_read()
        self._upload([u for u in uploads.values() if u[1]], progress)

    def _check_vocabulary(self) -> None:
        """Rows of the embedding are tokens: another number of either is another model's (llama.cpp: n_vocab)."""
        metadata = self.file.metadata
        n_tokens, what = None, "the vocabulary has"
        if metadata.get("tokenizer.ggml.model") in NO_VOCABULARY:
            n_tokens, what = metadata.get(f"{self.config.architecture}.vocab_size"), "vocab_size says"
        elif isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), Sized):
            n_tokens = len(tokens)
        if n_tokens is not None and n_tokens != self.n_vocab:
            ne0 = self.weights.top["token_embd"].ne[0]
            raise ModelError(
                f"tensor token_embd.weight is {[ne0, self.n_vocab]}, must be {[ne0, n_tokens]}: {what} {n_tokens} tokens"
            )

    def _check_all_read(self) -> None:
        """A tensor that no node reads means that the model is another one than will be computed (done_getting_tensors)."""
        known = {*self._asked, *self.architecture.unread(self.config, self.file.tensors)}
        if unread := [name for name in self.file.tensors if name not in known]:
            more = f" (nor {len(unread) - 1} others)" if len(unread) > 1 else ""
            what = f"a {self.config.architecture} model of {self.config.n_layer} layers"
            raise ModelError(f"tensor {unread[0]}{more} is not known in {what}: without it the results would be wrong")

    def _upload(self, uploads: list[tuple[Device, dict[str, Tensor]]], progress: Progress) -> None:
        total = sum(tensor.nbytes for _, tensors in uploads for tensor in tensors.values())
        done = 0
        try:
            for device, tensors in uploads:
                self._buffers += pack(device, tensors.values(), Usage.WEIGHTS)
            for _, tensors in uploads:
                for name, tensor in tensors.items():
                    assert tensor.buffer is not None
                    progress(done, total)
                    self.file.check_whole()
                    tensor.buffer.set(tensor, self.file.tensors[name].data)
                    done += tensor.nbytes
            if total:
                progress(total, total)
        except BaseException as error:
            try:
                if isinstance(error, OSError | PyggmlError):
                    self.file.check_whole()  # then that is why
            finally:
                self.close()
            raise

    def _host_weights(self) -> list[Tensor]:
        """Those in this machine's memory, each once."""
        weights = [w for group in (self.weights.top, *self.weights.layers) for w in group.values()]
        return list({w.data: w for w in weights if isinstance(w.buffer, HostBuffer)}.values())

    def check_file(self) -> None:
        """Raises GGUFError when weights are used as they lie in the file, and it has become shorter."""
        if self._mapped:
            self.file.check_whole()

    def close(self) -> None:
        """Free the weights on devices and close the file."""
        self.weights = Weights()
        if self._process == os.getpid():  # else they belong to the process that this one was forked from
            for buffer in self._buffers:
                buffer.free()
        self._buffers = []
        self.file.close()


def probe(weight: Tensor, op: Op) -> Tensor:
    """A node that uses the weight as the model will: what a device is asked before it gets the weight."""
    ne0 = weight.ne[0]
    if op == Op.GET_ROWS:
        return ops.get_rows(weight, Tensor(GGMLType.I32, (1,)))
    if op == Op.MUL_MAT:
        return ops.mul_mat(weight, Tensor(GGMLType.F32, (ne0, 1)))
    if op == Op.MUL_MAT_ID:
        return ops.mul_mat_id(weight, Tensor(GGMLType.F32, (ne0, 1, 1)), Tensor(GGMLType.I32, (1, 1)))
    if op == Op.REPEAT:
        return ops.repeat(ops.reshape(weight, 1, ne0), 1, ne0, 2)
    if op == Op.ROPE:
        return ops.rope(Tensor(GGMLType.F32, (2 * ne0, 1, 1)), Tensor(GGMLType.I32, (1,)), 2 * ne0, factors=weight)
    assert op in (Op.MUL, Op.ADD), op
    return (ops.mul if op == Op.MUL else ops.add)(Tensor(GGMLType.F32, (ne0, 1)), weight)


def _checked(spec: Spec, info: TensorInfo) -> Tensor:
    """The weight as a tensor. Raises ModelError when the file's shape is another."""
    ne = (*spec.ne, 1, 1, 1)[:4]
    if info.ne != ne:
        raise ModelError(f"tensor {spec.name} is {list(info.ne)}, must be {list(ne)}")
    return Tensor(info.type, ne, name=spec.name)


def _used(overrides: Sequence[Override]) -> list[Device]:
    return list({id(device): device for _, device in overrides}.values())


def _unseen(done: int, total: int) -> None:
    """Nobody wants to know the progress."""


def _default_cpu() -> Device:
    from pyggml.backend.cpu import CPUDevice  # compiles nothing, but loads Numba: only when it is wanted

    return CPUDevice()
