"""A CUDA kernel's PTX and SASS, made without a GPU and kept in the cache folder under the name of the kernel's cubin.

Owns what is kept and when it is made anew.
"""

import functools
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from cuda_emulator import kernel_of
from kept import kept

from pyggml.backend.cuda.compiled import key
from pyggml.kernels.cuda.device import build
from pyggml.kernels.cuda.spec import Spec

FOLDER = "cuda", "text"
_DISASSEMBLERS = "lib/python*/site-packages/nvidia/*/bin/nvdisasm"


class MachineCode(NamedTuple):
    ptx: str
    cubin: build.Cubin


def machine_code(spec: Spec, cc: tuple[int, int]) -> MachineCode:
    """For GPUs of this compute capability."""

    def make() -> bytes:
        text = build.ptx(kernel_of(spec), cc)
        made = build.assemble(text, cc)
        return json.dumps([text, made.image.hex(), made.log]).encode()

    text, image, log = json.loads(kept(f"{spec.label}-{key(spec, cc)}.json", make, *FOLDER))
    return MachineCode(text, build.Cubin(bytes.fromhex(image), log))


@functools.cache
def disassembler() -> tuple[str, str] | None:
    """Path and version of nvdisasm; None = it is not installed."""
    packaged = next(Path(sys.prefix).glob(_DISASSEMBLERS), None)
    if packaged is not None:
        return str(packaged), importlib.metadata.version("nvidia-cuda-nvdisasm")
    found = shutil.which("nvdisasm")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return found, said


def sass(image: bytes) -> str:
    """Machine code as text. The caller asks for `disassembler` first."""
    tool = disassembler()
    assert tool is not None

    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.cubin"
            file.write_bytes(image)
            return subprocess.run([tool[0], "-c", str(file)], capture_output=True, check=True).stdout

    name = hashlib.sha256(tool[1].encode() + image).hexdigest()
    return kept(f"{name[:40]}.sass", make, *FOLDER).decode()
