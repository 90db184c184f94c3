"""From a command line's values to a model in memory, with the waiting shown.

Owns that step and the progress of it.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyggml.backend.base import Device
from pyggml.backend.host import default_threads
from pyggml.default_model import default_model, is_default
from pyggml.dtypes import GGMLType
from pyggml.model.lora import Adapter
from pyggml.model.model import Model
from pyggml.regular_file import open_regular
from pyggml_cli import hub
from pyggml_cli.bus_errors import explain_bus_errors
from pyggml_cli.devices import holder, local_devices, note_no_offload, offload_devices
from pyggml_cli.fetching import fetch_progress
from pyggml_cli.flags import UsageError
from pyggml_cli.progress import Meter, meter


def model_path(name: str | None, offline: bool = False) -> Path:
    """The file named, or the default model. Raises DownloadError; OSError for one that cannot be read."""
    if name is None or is_default(name):
        return default_model(offline, fetch_progress)
    with open_regular(name):  # the system's own words for what is wrong
        pass
    return Path(name)


def named_model(values: Any) -> Path:
    """The file that -m or -hf name, or the default model. Raises UsageError, HubError, DownloadError, OSError."""
    if values.hf_repo is None:
        if values.hf_file is not None:
            raise UsageError("--hf-file names a file of a repository: give that with -hf")
        return model_path(values.model, values.offline)
    if values.model is not None:
        raise UsageError("-m names a file, -hf a repository: give one of them")
    return hub.fetch(values.hf_repo, values.hf_file, values.hf_token, values.offline)


@contextlib.contextmanager
def load_model(
    path: Path,
    devices: Sequence[Device],
    n_gpu_layers: int,
    tensor_split: Sequence[float] | None,
    **options: Any,
) -> Iterator[Model]:
    """The model, closed at the end. `options` are further ones of Model.load."""
    with explain_bus_errors():
        with meter("sending weights" if devices else "loading weights") as update:
            model = Model.load(
                path,
                devices=devices,
                n_gpu_layers=n_gpu_layers,
                tensor_split=tensor_split or (),
                progress=update,
                **options,
            )
        try:
            yield model
        finally:
            model.close()


def model_for(values: Any) -> contextlib.AbstractContextManager[Model]:
    """The model that the flags of MODEL and DEVICES ask for, as `loaded` gives it. Raises UsageError, DeviceError."""
    from pyggml.model.overrides import DENSE, EXPERTS, compile_pattern, cpu_layers, parse_override
    from pyggml.model.placement import effective_split, select_devices
    from pyggml.model.rope_options import RopeOptions

    path = named_model(values)
    devices = select_devices(
        offload_devices(values.rpc, values.device, values.rpc_timeout), values.split_mode, values.main_gpu
    )
    if "n_gpu_layers" in values.seen and list(values.device or ()) != ["none"]:
        note_no_offload(values.n_gpu_layers, devices)
    cpu = local_devices()[0]
    here = [EXPERTS] if values.cpu_moe else []
    here += [*cpu_layers(values.n_cpu_moe, EXPERTS), *cpu_layers(values.n_cpu_ffn, DENSE)]
    try:
        metadata = dict(parse_override(item) for items in values.override_kv for item in items)
    except ValueError as reason:
        raise UsageError(f"--override-kv: {reason}") from None
    try:
        overrides = [
            (compile_pattern(pattern), holder([cpu, *devices], name))
            for pairs in values.override_tensor
            for pattern, name in [*pairs]
        ]
    except ValueError as reason:
        raise UsageError(f"-ot: {reason}") from None
    return load_model(
        path,
        devices,
        values.n_gpu_layers,
        effective_split(values.tensor_split, values.split_mode),
        cpu=cpu,
        overrides=[*overrides, *((compile_pattern(pattern), cpu) for pattern in here)],
        metadata=metadata,
        rope=RopeOptions(
            *(values.rope_scaling, values.rope_freq_base, values.rope_freq_scale, values.yarn_orig_ctx),
            *(values.yarn_ext_factor, values.yarn_attn_factor, values.yarn_beta_fast, values.yarn_beta_slow),
        ),
        use_mmap=values.mmap and values.load_mode in ("auto", "mmap", "mmap+mlock"),
        use_mlock=values.mlock or values.load_mode in ("mlock", "mmap+mlock"),
        check=values.check_tensors,
    )


@contextlib.contextmanager
def compile_progress() -> Iterator[None]:
    """While this lasts, kernels that are compiled for the first time on this machine show a progress bar."""
    from pyggml import jit

    bar: Meter | None = None  # kernels come in batches, each with a bar of its own; a plain line is enough once
    told = False

    def show(done: int, total: int, kernel: str) -> None:
        nonlocal bar, told
        if bar is None and (not told or sys.stderr.isatty()):
            bar = Meter("compiling kernels, once", total, "kernels", within_text=True)
        if bar is not None:
            bar(done, total)
            told = told or bar.shown
            if done == total:
                bar.close()
                bar = None

    jit.on_compile(show)
    try:
        yield
    finally:
        jit.on_compile(None)
        if bar is not None:
            bar.close()


def context_arguments(values: Any, model: Model) -> dict[str, Any]:
    """Arguments of Context, from the flags that commands share; adapters and control vectors are loaded now. Raises GGUFError,
    ModelError, DeviceError, OSError."""
    return {
        "adapters": adapters_of(values, model),
        "n_batch": values.n_batch,
        "n_ubatch": values.n_ubatch,
        "type_k": GGMLType[values.type_k.upper()],
        "type_v": GGMLType[values.type_v.upper()],
        "flash_attn": values.flash_attn != "off",
        "n_threads": values.n_threads if values.n_threads > 0 else None,
        "n_threads_batch": _batch_threads(values.n_threads_batch),
        "offload_kqv": values.kv_offload,
        "swa_full": values.swa_full,
    }


def _batch_threads(given: int | None) -> int | None:
    return default_threads() if given is not None and given < 1 else given


def adapters_of(values: Any, model: Model) -> list[tuple[Adapter, float]]:
    """LoRA adapters and control vectors of the command line, each with its scale. Raises GGUFError, ModelError, DeviceError,
    OSError, UsageError."""
    adapters = [(model.load_adapter(name), scale) for some in values.lora for name, scale in some]
    first, last = values.control_layers or (-1, -1)
    if 0 < last < first:
        raise UsageError(f"--control-vector-layer-range {first} {last}: the last layer lies before the first")
    if vectors := [one for some in values.control for one in some]:
        adapters.append((model.load_control_vectors(vectors, first, last), 1.0))
    return adapters


def embedder_arguments(values: Any, model: Model) -> dict[str, Any]:
    """Arguments of Embedder, as context_arguments. A text may have as many tokens as a batch or the context has."""
    threads = _batch_threads(values.n_threads_batch) or (values.n_threads if values.n_threads > 0 else None)
    return {
        "adapters": adapters_of(values, model),
        "n_ubatch": max(values.n_batch, values.n_ctx),
        "n_ctx": values.n_ctx,
        "pooling": values.pooling,
        "causal": None if values.attention is None else values.attention == "causal",
        "flash_attn": values.flash_attn != "off",
        "n_threads": threads,
    }
