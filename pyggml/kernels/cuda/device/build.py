"""From a kernel to machine code: numba-cuda's front end, libNVVM, nvJitLink. None of them needs a GPU.

Owns the steps and their options. numba-cuda is used up to its LLVM IR and no further: its dispatcher costs 13 us a
launch.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from numba.cuda import types
from numba.cuda.compiler import _compile_pyfunc_with_fixup

from pyggml.kernels.cuda.device.intrinsic import INTRINSICS, PREFIX, Intrinsic
from pyggml.kernels.cuda.launch_args import fields
from pyggml.kernels.cuda.spec import EARLY, Spec, make
from pyggml.quick_numba import no_collector, quicken

ENTRY = "pyggml_kernel"
NEWEST = (9, 0)
"""libNVVM 13.0 takes this dialect of LLVM IR up to here; for newer GPUs the same PTX is assembled."""

_TYPES = {"i64": types.int64, "i32": types.int32, "f32": types.float32}


class Kernel(NamedTuple):
    """A kernel in LLVM IR that calls intrinsics by name.

    ir          the module's text; the entry point is ENTRY
    parameters  their types, names of spec.KINDS
    intrinsics  those it calls, in order of their names
    threads     most threads a block, which bounds its registers
    blocks      so many of them a multiprocessor is to hold
    """

    ir: str
    parameters: tuple[str, ...]
    intrinsics: tuple[Intrinsic, ...]
    threads: int
    blocks: int = 1


def front_end(function: Any) -> Kernel:
    """Type and lower a function that `launch_args.entry` has made a kernel."""
    kinds = tuple(kind for _, kind in fields(function.args))
    quicken("numba.cuda")
    with warnings.catch_warnings(), no_collector():
        warnings.simplefilter("ignore")
        library, _ = _compile_pyfunc_with_fixup(
            function, types.void(*(_TYPES[k] for k in kinds)), device=False, cc=NEWEST, abi="numba", fastmath=False
        )
    assert len(library.llvm_strs) == 1, function
    ir = library.llvm_strs[0].replace(f'@"{library._entry_name}"', f"@{ENTRY}")
    ir = re.sub(r"^@\S*NumbaEnv.*\n", "", ir, flags=re.MULTILINE)
    called = re.findall(rf'^declare .*@"?{PREFIX}(\w+)"?\(.*\n', ir, flags=re.MULTILINE)
    intrinsics = tuple(INTRINSICS[name] for name in sorted(set(called)))
    return Kernel(ir, kinds, intrinsics, function.threads, function.blocks)


WAIT = 'call void asm sideeffect "griddepcontrol.wait;", "~{memory}"() #1'
"""For all that the kernels ahead have written; nothing is read or written before."""
GO_ON = 'call void asm sideeffect "griddepcontrol.launch_dependents;", "~{memory}"() #1'
"""When all blocks have come here, those of the next kernel may take the room that is left, and wait in their turn. It stands
behind the wait: so only one kernel waits, and all before the one that it waits for have ended."""


def with_words(kernel: Kernel, early: bool) -> str:
    """The module with the intrinsics' bodies in it, as libNVVM reads it. `early`: for GPUs that may begin it early."""
    ir = re.sub(rf'^declare .*@"?{PREFIX}\w+"?\(.*\n', "", kernel.ir, flags=re.MULTILINE)
    if early:
        ir, found = re.subn(
            rf"(^define void @{ENTRY}\(.*\)\s*\{{\nentry:\n)", rf"\1  {WAIT}\n  {GO_ON}\n", ir, flags=re.MULTILINE
        )
        assert found == 1, "no beginning of the kernel"
    needs = dict.fromkeys(need for intrinsic in kernel.intrinsics for need in intrinsic.needs)
    missing = [need for need in needs if not _declared(need, ir)]
    parts = [ir, *missing, *(intrinsic.definition for intrinsic in kernel.intrinsics)]
    parts.append("attributes #0 = { alwaysinline convergent nounwind }\nattributes #1 = { convergent nounwind }")
    bounds = f'!{{ {_kernel_reference(ir)}, !"maxntidx", i32 {kernel.threads}, !"minctasm", i32 {kernel.blocks} }}'
    text = "\n".join(parts)
    number = 1 + max(int(n) for n in re.findall(r"^!(\d+) =", text, flags=re.MULTILINE))
    text = re.sub(r"^(!nvvm.annotations = !\{.*?)\s*\}", rf"\1, !{number} }}", text, flags=re.MULTILINE)
    return f"{text}\n!{number} = {bounds}\n"


def _declared(need: str, ir: str) -> bool:
    name = re.search(r"@[\w.]+", need)
    assert name, need
    return re.search(rf'^declare .*@"?{re.escape(name[0][1:])}"?\(', ir, flags=re.MULTILINE) is not None


def _kernel_reference(ir: str) -> str:
    found = re.search(rf"(void \([^)]*\)\*) @{ENTRY}\b", ir)
    assert found, "no annotation of the kernel"
    return f"{found[1]} @{ENTRY}"


def ptx(kernel: Kernel, cc: tuple[int, int]) -> str:
    """PTX for GPUs of this compute capability and later ones."""
    from cuda.pathfinder import find_bitcode_lib
    from numba.cuda.cudadrv import nvvm

    arch = min(cc, NEWEST)
    unit = nvvm.CompilationUnit({"opt": 3, "arch": f"compute_{arch[0]}{arch[1]}"})
    unit.add_module(nvvm.llvm_replace(with_words(kernel, arch >= EARLY)).encode())
    unit.verify()
    # numba's own search for this file wants NVRTC, which nothing here needs
    unit.lazy_add_module(Path(find_bitcode_lib("device")).read_bytes())
    return str(unit.compile().decode()).strip("\0").strip() + "\n"


class Cubin(NamedTuple):
    """Machine code, and what the assembler said of it."""

    image: bytes
    log: str

    def count(self, pattern: str) -> int:
        return max((int(n) for n in re.findall(pattern, self.log)), default=0)

    @property
    def registers(self) -> int:
        return self.count(r"Used (\d+) registers")

    @property
    def spilled_bytes(self) -> int:
        return self.count(r"(\d+) bytes spill stores") + self.count(r"(\d+) bytes spill loads")

    @property
    def stack_bytes(self) -> int:
        return self.count(r"(\d+) bytes stack frame")


def assemble(text: str, cc: tuple[int, int]) -> Cubin:
    from cuda.bindings import nvjitlink

    handle = nvjitlink.create(3, [f"-arch=sm_{cc[0]}{cc[1]}", "-O3", "-verbose"])
    try:
        code = text.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), ENTRY)
        nvjitlink.complete(handle)
        image = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, image)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    return Cubin(bytes(image), log.decode(errors="replace").strip("\0"))


@cache
def kernel(spec: Spec) -> Kernel:
    """The kernel's IR, which is the same for all GPUs."""
    return front_end(make(spec))


def code(spec: Spec, cc: tuple[int, int]) -> bytes:
    """What the driver loads: machine code, or for a GPU that nvJitLink is too old to know PTX, which the driver compiles."""
    from cuda.bindings.nvjitlink import nvJitLinkError

    text = ptx(kernel(spec), cc)
    try:
        return assemble(text, cc).image
    except nvJitLinkError:
        if cc <= NEWEST:
            raise
        return text.encode() + b"\0"
