"""A model file's weights, each on its device: mapped where the local CPU computes, uploaded elsewhere.

Owns loading and the upload; knows no token. Which device a weight goes to is placement.py's business.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized

from pyggml.backend.base import Buffer, Device, Usage
from pyggml.backend.host import HostBuffer
from pyggml.backend.pack import pack
from pyggml.errors import ModelError, PyggmlError, ShapeError
from pyggml.gguf import GGUFFile, TensorInfo
from pyggml.model import architecture_of, make_modules
from pyggml.model.control import ControlVector
from pyggml.model.hparams import Hparams
from pyggml.model.layers import CausalLM
from pyggml.model.lora import Adapter, Applied
from pyggml.model.module import INPUT_LAYER, Weight
from pyggml.model.overrides import Override, Value, device_for, override_metadata
from pyggml.model.placement import readers, split_layers, why_not
from pyggml.model.rope_options import RopeOptions
from pyggml.model.weights import check_tensors, lock
from pyggml.quants import QUANTS
from pyggml.tensor import Tensor

log = logging.getLogger(__name__)

NO_VOCABULARY = ("none", "no_vocab")
"""Values of tokenizer.ggml.model in files whose tokens are numbers alone."""

BESIDE_TEXT = ("v.", "a.", "mm.")
"""How the names of tensors begin that make embeddings of images and sounds (mmproj files of llama.cpp), in files that hold
them beside the text model."""

Progress = Callable[[int, int], None]
"""Called with (bytes uploaded, bytes to upload)."""


class Model:
    """Use `Model.load`; close it when its contexts are closed.

    file           the GGUF file, with the metadata
    config         hyper-parameters
    modules        the layers, with their weights
    n_vocab        tokens
    cpu, devices   the local CPU; those that layers were offloaded to
    layer_devices  of layers 0 to n_layer - 1 and, last, of the output
    adapters       those that `load_adapter` made, which contexts may use
    """

    def __init__(self, file: GGUFFile, config: Hparams, modules: CausalLM, cpu: Device) -> None:
        self.file = file
        self.config = config
        self.modules = modules
        self.n_vocab = modules.n_vocab
        self.cpu = cpu
        self.devices: list[Device] = []
        self.layer_devices: list[Device] = []
        self.adapters: list[Adapter] = []
        self._buffers: list[Buffer] = []
        self._process = os.getpid()
        self._mapped = False

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
            if file.text("general.type") == "adapter":
                raise ModelError("general.type is 'adapter': not a model, but something to use beside one (--lora)")
            override_metadata(file, metadata or {})
            if check:
                check_tensors(file.tensors.values(), progress or _unseen)
            config = Hparams(file.metadata, architecture_of(file.metadata), rope)
            model = cls(file, config, make_modules(config, file.tensors), cpu or _default_cpu())
            model._spread(devices, n_gpu_layers, tensor_split)
            model.devices += [d for d in _used(overrides) if d is not model.cpu and d not in model.devices]
            model._place(overrides, use_mmap, progress or _unseen)
            if use_mlock and (why := lock(model._host_weights())):
                log.warning("warning: %s", why)
        except (ModelError, ShapeError) as error:  # the latter: numbers that fit no operation of the graph
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
        found = self._find()
        reading = readers(self.modules)
        for weight, info in found:
            nodes = reading.get(id(weight.value), [])
            device = self.cpu if weight.layer == INPUT_LAYER else self.layer_devices[weight.layer]
            device = device_for(weight.name, overrides, device)
            if device is not self.cpu and why_not(device, nodes) is not None:
                device = self.cpu
            if device is self.cpu and (why := why_not(device, nodes)) is not None:
                known = ", ".join(t.name for t in QUANTS)
                raise ModelError(f"tensor {weight.name} is {info.type.name}: {why} (known types: {known})")
            if device is self.cpu and use_mmap:
                self._mapped = True
                HostBuffer.wrap(device, info.data, Usage.WEIGHTS).place(weight.value, 0)
            else:
                weight.tensor = uploads[id(device)][1].setdefault(weight.name, weight.value)
        self._check_vocabulary()
        self._upload([u for u in uploads.values() if u[1]], progress)

    def _find(self) -> list[tuple[Weight, TensorInfo]]:
        """The weights that the file has, each with a tensor now. Raises ModelError for what is missing or not known."""
        found: list[tuple[Weight, TensorInfo]] = []
        known: set[str] = set()
        for module in self.modules.modules():
            for weight in module.wanted(self.file.tensors):
                known.add(weight.name)
                info = self.file.tensors.get(weight.name)
                if info is not None:
                    weight.tensor = _checked(weight, info)
                    found.append((weight, info))
                elif weight.required:
                    raise ModelError(f"tensor {weight.name} is missing")
            known.update(module.passed_over(self.file.tensors))
        beside = [name for name in self.file.tensors if name.startswith(BESIDE_TEXT) and name not in known]
        self._say_passed_over([*beside, *self.modules.passed_over(self.file.tensors)])
        self._check_all_read(known.union(beside))
        return found

    def _say_passed_over(self, names: Sequence[str]) -> None:
        """Name what text alone does not need: towers for images and sounds, layers that predict further tokens."""
        here = [name.split(".") for name in names if name in self.file.tensors]
        groups = Counter(".".join(parts[: 2 if parts[0] == "blk" else 1]) for parts in here)
        if groups:
            what = ", ".join(f"{n} {group}.*" for group, n in groups.items())
            log.warning("warning: %s: tensors that text does not need are passed over: %s", self.file.paths[0], what)

    def _check_vocabulary(self) -> None:
        """Rows of the embedding are tokens: another number of either is another model's (llama.cpp: n_vocab)."""
        metadata = self.file.metadata
        n_tokens, what = None, "the vocabulary has"
        if self.file.text("tokenizer.ggml.model") in NO_VOCABULARY:
            what = "vocab_size says"
            if self.config.find("vocab_size")[1] is not None:
                n_tokens = self.config.u32("vocab_size", least=0)
        elif isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), Sized):
            n_tokens = len(tokens)
        if n_tokens is not None and n_tokens != self.n_vocab:
            ne0 = self.config.n_embd
            raise ModelError(
                f"tensor token_embd.weight is {[ne0, self.n_vocab]}, must be {[ne0, n_tokens]}: {what} {n_tokens} tokens"
            )

    def _check_all_read(self, known: set[str]) -> None:
        """A tensor that no node reads means that the model is another one than will be computed (done_getting_tensors)."""
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

    def load_adapter(self, path: str | os.PathLike[str]) -> Adapter:
        """Read a LoRA adapter for this model; its tensors go to the devices of the weights that they belong to. It changes
        nothing until a context uses it, and ends with the model, or by `free_adapter`.

        Raises GGUFError, ModelError, DeviceError.
        """
        with GGUFFile.open(path) as file:
            try:
                weights = {w.name: w for m in reversed([*self.modules.modules()]) for w in m.own() if w.there}
                adapter = Adapter.read(file, self.config.architecture, weights)
                uploads = self._place_adapter(adapter, weights)
            except (ModelError, ShapeError) as error:  # types that no product takes
                raise ModelError(f"{os.fspath(path)}: {error}") from None
            buffers: list[Buffer] = []
            try:
                for device, tensors in uploads:
                    buffers += pack(device, tensors, Usage.WEIGHTS)
                for tensor in adapter.tensors():
                    assert tensor.buffer is not None
                    file.check_whole()
                    tensor.buffer.set(tensor, file.tensors[tensor.name].data)
            except BaseException:
                for buffer in buffers:
                    buffer.free()
                raise
        self._buffers += buffers
        self.adapters.append(adapter)
        return adapter

    def _place_adapter(self, adapter: Adapter, weights: Mapping[str, Weight]) -> list[tuple[Device, list[Tensor]]]:
        """Which device each of its tensors goes to. Raises ModelError for what takes part in no product, or in none that
        is possible here."""
        uploads: dict[int, tuple[Device, list[Tensor]]] = {}
        reading = readers(self.modules, (Applied(adapter, 1.0),))
        for name, pair in adapter.pairs.items():
            buffer = weights[name].value.buffer
            assert buffer is not None
            for tensor in pair:
                nodes = reading.get(id(tensor), [])
                if not nodes:
                    raise ModelError(
                        f"tensor {tensor.name}: {name} takes part in no product that an adapter can add to"
                    )
                device = buffer.device
                if device is not self.cpu and why_not(device, nodes) is not None:
                    device = self.cpu
                if device is self.cpu and (why := why_not(device, nodes)) is not None:
                    raise ModelError(f"tensor {tensor.name} is {tensor.type.name}: {why}")
                uploads.setdefault(id(device), (device, []))[1].append(tensor)
        return list(uploads.values())

    def load_control_vectors(
        self, given: Sequence[tuple[str | os.PathLike[str], float]], first: int = -1, last: int = -1
    ) -> ControlVector:
        """The sum of these files, each times a scale, in layers `first` to `last` (below 1: all that have one). It lies on the
        devices of its layers, and is an adapter: contexts use it, and it ends, as those do.

        Raises GGUFError, ModelError, DeviceError, OSError.
        """
        config = self.config
        vector = ControlVector.read(given, config.n_embd, config.n_layer, first, last)
        buffers: list[Buffer] = []
        try:
            for device in {id(d): d for d in self.layer_devices}.values():
                here = [t for il, t in vector.layers.items() if self.layer_devices[il] is device]
                if here:
                    buffers += pack(device, here, Usage.WEIGHTS)
            for il, tensor in vector.layers.items():
                assert tensor.buffer is not None
                tensor.buffer.set(tensor, vector.vectors[il].tobytes())
        except BaseException:
            for buffer in buffers:
                buffer.free()
            raise
        self._buffers += buffers
        self.adapters.append(vector)
        return vector

    def free_adapter(self, adapter: Adapter) -> None:
        """Give its memory back; no context can use it any more."""
        self.adapters.remove(adapter)
        buffers = {id(t.buffer): t.buffer for t in adapter.tensors() if t.buffer is not None}
        for tensor in adapter.tensors():
            tensor.buffer = None
        if self._process == os.getpid():
            for buffer in buffers.values():
                buffer.free()
        self._buffers = [buffer for buffer in self._buffers if id(buffer) not in buffers]

    def _host_weights(self) -> list[Tensor]:
        """Those in this machine's memory, each once."""
        return list({w.data: w for w in self.tensors() if isinstance(w.buffer, HostBuffer)}.values())

    def tensors(self) -> list[Tensor]:
        """Those of all weights that are there; a tied output is one of its own."""
        return [w.tensor for m in self.modules.modules() for w in m.own() if w.tensor is not None]

    def tensor(self, name: str) -> Tensor:
        """The weight of this name. Raises KeyError."""
        return {t.name: t for t in reversed(self.tensors())}[name]

    def check_file(self) -> None:
        """Raises GGUFError when weights are used as they lie in the file, and it has become shorter."""
        if self._mapped:
            self.file.check_whole()

    def close(self) -> None:
        """Free the weights on devices and close the file."""
        for module in self.modules.modules():
            for weight in module.own():
                weight.tensor = None
        for adapter in self.adapters:
            for tensor in adapter.tensors():
                tensor.buffer = None
        self.adapters = []
        if self._process == os.getpid():  # else they belong to the process that this one was forked from
            for buffer in self._buffers:
                buffer.free()
        self._buffers = []
        self.file.close()


def _checked(weight: Weight, info: TensorInfo) -> Tensor:
    """The weight as a tensor. Raises ModelError when the file's shape is another."""
    ne = (*weight.ne, 1, 1, 1)[:4]
    if info.ne != ne:
        raise ModelError(f"tensor {weight.name} is {list(info.ne)}, must be {list(ne)}")
    return Tensor(info.type, ne, name=weight.name)


def _used(overrides: Sequence[Override]) -> list[Device]:
    return list({id(device): device for _, device in overrides}.values())


def _unseen(done: int, total: int) -> None:
    """Nobody wants to know the progress."""


def _default_cpu() -> Device:
    from pyggml.backend.cpu import CPUDevice  # compiles nothing, but loads Numba: only when it is wanted

    return CPUDevice()
