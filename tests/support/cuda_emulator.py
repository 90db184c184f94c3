"""The CUDA driver's interface on a machine without a GPU: kernels run on the CPU as fibers, memory is the host's.

Owns how a kernel's IR becomes x86 code and what is poisoned and checked. It cannot see what an intrinsic's PTX means
(only the assembler reads that), races between warps that differ from the orders tried, or speed.
"""

import bisect
import ctypes
import functools
import json
import mmap
import multiprocessing
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from cuda_copies import TOO_MANY
from cuda_fibers import LOAD, MAX_RANGES, SHARED_BASE, STORE, WARP, machine
from kept import kept

from pyggml.backend.cuda.compiled import key
from pyggml.errors import DeviceError
from pyggml.kernels.cuda.device import build
from pyggml.kernels.cuda.device.intrinsic import INTRINSICS, PREFIX, TEXT, Intrinsic, split
from pyggml.kernels.cuda.spec import Spec

KINDS = {
    1: "loads outside of all memory", 2: "stores outside of all memory", 3: "loads outside of shared memory",
    4: "stores outside of shared memory", 10: "loads from an odd address", 11: "stores to an odd address",
    12: "loads from an odd shared address", 13: "stores to an odd shared address", 20: "lanes meet at different intrinsics",
    TOO_MANY: "has more copies under way than the emulator has room for",
}  # fmt: skip

_PLACES = {
    "thread": 0,
    "block_x": 1,
    "block_y": 2,
    "block_z": 3,
    "threads": 4,
    "blocks_x": 5,
    "blocks_y": 6,
    "blocks_z": 7,
}
_SHUFFLES = {"shuffle_xor": 1, "shuffle": 2}


_CHECK = (
    "@emu_ranges = external global i64",
    "declare void @emu_check(i64, i32, i32)",
    """define internal void @emu_checked(i64 %a, i32 %size, i32 %kind) alwaysinline {
%n = zext i32 %size to i64
%mask = sub i64 %n, 1
%odd = and i64 %a, %mask
%even = icmp eq i64 %odd, 0
%hit = load i64, ptr getelementptr (i64, ptr @emu_ranges, i64 1)
%at = shl i64 %hit, 1
%range = getelementptr i64, ptr getelementptr (i64, ptr @emu_ranges, i64 2), i64 %at
%from = load i64, ptr %range
%second = getelementptr i64, ptr %range, i64 1
%to = load i64, ptr %second
%end = add i64 %a, %n
%above = icmp sle i64 %from, %a
%below = icmp sle i64 %end, %to
%inside = and i1 %above, %below
%good = and i1 %even, %inside
br i1 %good, label %done, label %other
other:
call void @emu_check(i64 %a, i32 %size, i32 %kind)
br label %done
done:
ret void
}""",
)
"""`emu_checked`: most addresses lie in the range that the last one lay in; the others are emu_check's."""
_SHARED = (
    "@emu_window = external global i8",
    "declare i64 @emu_shared(i32, i32, i32)",
    """define internal i64 @emu_shared_at(i32 %a, i32 %size, i32 %kind) alwaysinline {
%at = sub i32 %a, """
    f"{SHARED_BASE}"
    """
%mask = sub i32 %size, 1
%odd = and i32 %at, %mask
%even = icmp eq i32 %odd, 0
%bytes = load i32, ptr getelementptr (i32, ptr @emu_place, i64 8)
%most = sub i32 %bytes, %size
%above = icmp sge i32 %at, 0
%below = icmp sle i32 %at, %most
%inside = and i1 %above, %below
%good = and i1 %even, %inside
br i1 %good, label %own, label %other
own:
%wide = zext i32 %at to i64
%window = ptrtoint ptr @emu_window to i64
%here = add i64 %window, %wide
br label %done
other:
%there = call i64 @emu_shared(i32 %a, i32 %size, i32 %kind)
br label %done
done:
%r = phi i64 [ %here, %own ], [ %there, %other ]
ret i64 %r
}""",
)
"""`emu_shared_at`: the host's address of a place in shared memory; what is wrong with it emu_shared says."""


class EmulatorError(AssertionError):
    """A kernel did what no kernel may do."""


def body(intrinsic: Intrinsic) -> tuple[str, tuple[str, ...]]:
    """The intrinsic's meaning on the host, and the helpers that it calls."""
    name = intrinsic.name
    if intrinsic.plain:
        return intrinsic.body, intrinsic.needs
    if name in _PLACES:
        at = f"getelementptr (i32, ptr @emu_place, i64 {_PLACES[name]})"
        return f"%r = load volatile i32, ptr {at}\nret i32 %r", ()
    if name == "shared":
        return f"ret i32 {SHARED_BASE}", ()
    if name == "barrier":
        return "call void @emu_yield(i32 2)\nret void", ("declare void @emu_yield(i32)",)
    if name == "funnel":
        return "%r = call i32 @llvm.fshr.i32(i32 %a1, i32 %a0, i32 %a2)\nret i32 %r", (
            "declare i32 @llvm.fshr.i32(i32, i32, i32)",
        )
    if name == "pack_f16":
        lines = [f"%h{i} = fptrunc float %a{i} to half\n%b{i} = bitcast half %h{i} to i16" for i in range(2)]
        lines += [f"%w{i} = zext i16 %b{i} to i32" for i in range(2)]
        return "\n".join([*lines, "%u = shl i32 %w1, 16\n%r = or i32 %u, %w0\nret i32 %r"]), ()
    if name == "once":
        return "ret i32 %a0", ()
    if name == "mul_rn":
        return "%r = fmul float %a0, %a1\nret float %r", ()
    if name == "round_down":
        return "%r = call float @llvm.floor.f32(float %a0)\nret float %r", ("declare float @llvm.floor.f32(float)",)
    if name == "add_i32":
        lines = f"call void @emu_checked(i64 %a0, i32 4, i32 {STORE})\n%p = inttoptr i64 %a0 to ptr\n%r = load i32, ptr %p\n"
        return f"{lines}%s = add i32 %r, %a1\nstore i32 %s, ptr %p\nret i32 %r", _CHECK
    if name == "sadd_i32":
        lines = f"%w = call i64 @emu_shared_at(i32 %a0, i32 4, i32 {STORE})\n%p = inttoptr i64 %w to ptr\n%r = load i32, ptr %p\n"
        return f"{lines}%s = add i32 %r, %a1\nstore i32 %s, ptr %p\nret i32 %r", _SHARED
    if name == "rcp":
        return "%r = fdiv float 1.0, %a0\nret float %r", ()
    if name.rpartition("_")[0] in _SHUFFLES:
        mode, is_float = _SHUFFLES[name.rpartition("_")[0]], name.endswith("f32")
        before = "%v = bitcast float %a0 to i32" if is_float else "%v = add i32 %a0, 0"
        call = f"%x = call i32 @emu_shuffle(i32 {mode}, i32 %v, i32 %a1)"
        after = "%r = bitcast i32 %x to float\nret float %r" if is_float else "ret i32 %x"
        return f"{before}\n{call}\n{after}", ("declare i32 @emu_shuffle(i32, i32, i32)",)
    memory = re.search(r"inttoptr i(32|64) %a0 to .* addrspace\(\d\)\*", intrinsic.body)
    if memory:
        return _memory(intrinsic, memory[1] == "64")
    return _helper(intrinsic)


def _memory(intrinsic: Intrinsic, is_global: bool) -> tuple[str, tuple[str, ...]]:
    """A load or store that looks at its address first."""
    size = re.search(r"align (\d+)", intrinsic.body)
    assert size, intrinsic
    kind = STORE if intrinsic.result == "void" else LOAD
    text = re.sub(r"addrspace\(\d\)", "", intrinsic.body)
    text = re.sub(r"to [^\n]*?\*", "to ptr", text)
    text = re.sub(r"(load|store) ([^,]*), [^%]*? %p", r"\1 \2, ptr %p", text)
    if is_global:
        return f"call void @emu_checked(i64 %a0, i32 {size[1]}, i32 {kind})\n{text}", _CHECK
    text = text.replace("inttoptr i32 %a0", "inttoptr i64 %window")
    return f"%window = call i64 @emu_shared_at(i32 %a0, i32 {size[1]}, i32 {kind})\n{text}", _SHARED


def _helper(intrinsic: Intrinsic) -> tuple[str, tuple[str, ...]]:
    """A call of compiled Python; tuples come back through memory."""
    assert intrinsic.name in machine().helpers, f"the emulator does not know the intrinsic {intrinsic.name}"
    kind, count = split(intrinsic.result)
    kinds = [TEXT[a] for a in intrinsic.args]
    arguments = ", ".join(f"{k} %a{i}" for i, k in enumerate(kinds))
    if count == 1:
        need = f"declare {intrinsic.result_text} @emu_{intrinsic.name}({', '.join(kinds)})"
        if kind == "void":
            return f"call void @emu_{intrinsic.name}({arguments})\nret void", (need,)
        return f"%r = call {TEXT[kind]} @emu_{intrinsic.name}({arguments})\nret {TEXT[kind]} %r", (need,)
    lines = [f"%b = alloca [{count} x {TEXT[kind]}], align 16", "%i = ptrtoint ptr %b to i64"]
    lines.append(f"call void @emu_{intrinsic.name}(i64 %i, {arguments})")
    for i in range(count):
        before = "undef" if i == 0 else f"%r{i - 1}"
        lines.append(f"%p{i} = getelementptr {TEXT[kind]}, ptr %b, i32 {i}")
        lines.append(f"%e{i} = load {TEXT[kind]}, ptr %p{i}")
        lines.append(f"%r{i} = insertvalue {intrinsic.result_text} {before}, {TEXT[kind]} %e{i}, {i}")
    need = f"declare void @emu_{intrinsic.name}(i64, {', '.join(kinds)})"
    return "\n".join([*lines, f"ret {intrinsic.result_text} %r{count - 1}"]), (need,)


def host_ir(kernel: build.Kernel) -> str:
    """The kernel's module for this machine, with an entry that reads its parameters from memory."""
    ir = re.sub(r"^target .*\n", "", kernel.ir, flags=re.MULTILINE)
    ir = re.sub(r"^!nvvm.*\n", "", ir, flags=re.MULTILINE)
    ir = re.sub(rf'^declare .*@"?{PREFIX}\w+"?\(.*\n', "", ir, flags=re.MULTILINE)
    ir = re.sub(r'^@"?llvm.used.*\n', "", ir, flags=re.MULTILINE)
    bodies = [(intrinsic, *body(intrinsic)) for intrinsic in kernel.intrinsics]
    needs = dict.fromkeys(need for _, _, needed in bodies for need in needed)
    parts = ["@emu_place = external global i32\n@emu_parameters = external global ptr", ir, *needs]
    for intrinsic, text, _ in bodies:
        arguments = ", ".join(f"{TEXT[kind]} %a{i}" for i, kind in enumerate(intrinsic.args))
        parts.append(
            f"define internal {intrinsic.result_text} @{PREFIX}{intrinsic.name}({arguments}) alwaysinline {{\n{text.strip()}\n}}"
        )
    lines, values = [], []
    for i, kind in enumerate(kernel.parameters):
        lines.append(f"%p{i} = getelementptr i64, ptr %all, i32 {i}\n%v{i} = load {TEXT[kind]}, ptr %p{i}")
        values.append(f"{TEXT[kind]} %v{i}")
    parts.append(
        "define void @emulated() {\n%all = load volatile ptr, ptr @emu_parameters\n"
        + "\n".join(lines)
        + f"\ncall void @{build.ENTRY}({', '.join(values)})\nret void\n}}"
    )
    text = "\n".join(parts)
    return re.sub(rf"^define void @{build.ENTRY}\(", f"define internal void @{build.ENTRY}(", text, flags=re.MULTILINE)


@functools.cache
def kernel_of(spec: Spec) -> build.Kernel:
    """The kernel's IR, from the cache folder if a run before has made it."""
    name = f"{spec.label}-{key(spec, (0, 0))}.json"
    made = kept(name, lambda: _builder().submit(_build, spec).result().encode(), "cuda", "ir")
    ir, parameters, intrinsics, threads, blocks = json.loads(made)
    return build.Kernel(ir, tuple(parameters), tuple(INTRINSICS[w] for w in intrinsics), threads, blocks)


@functools.cache
def _builder() -> ProcessPoolExecutor:
    """Numba keeps some megabytes of each kernel that it compiles, for ever: other processes do, and are replaced. There is
    one, and as many as cores where several are asked for at once."""
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=40)


def _build(spec: Spec) -> str:
    kernel = build.kernel(spec)
    return json.dumps(
        [
            kernel.ir,
            kernel.parameters,
            [intrinsic.name for intrinsic in kernel.intrinsics],
            kernel.threads,
            kernel.blocks,
        ]
    )


@functools.cache
def code(spec: Spec) -> int:
    """Address of the kernel's x86 code."""
    text = host_ir(kernel_of(spec))
    libm = ctypes.CDLL("libm.so.6")
    for name in sorted(set(re.findall(r'^declare [^@]*@"?(__nv_\w+)"?\(', text, flags=re.MULTILINE))):
        function = ctypes.cast(getattr(libm, name.removeprefix("__nv_")), ctypes.c_void_p).value
        assert function
        llvm.add_symbol(name, function)
    for name in re.findall(r'^declare [^@]*@"?([\w.]+)"?\(', text, flags=re.MULTILINE):
        if name.removeprefix("emu_") in machine().helpers:
            machine().made(name.removeprefix("emu_"))
        else:
            assert name.startswith(("llvm.", "__nv_")) or name == "emu_yield", f"{spec.label} calls {name}"
    address: int = machine().link(text, keep=True).get_function_address("emulated")
    return address


class EmulatedGPU:
    """One GPU of `memory` bytes. Its interface is that of `pyggml.backend.cuda.driver.GPU`.

    `allowed`: ranges of addresses that kernels may touch; None = all that is allocated.
    """

    name = "Emulated GPU"
    multiprocessors = 4
    shared_limit = 96 * 1024

    def __init__(self, number: int = 0, memory: int = 1 << 30, cc: tuple[int, int] = (9, 0), seed: int = 0) -> None:
        self.number, self.cc, self.total = number, cc, memory
        self.allocations: dict[int, np.ndarray] = {}
        self.starts: list[int] = []  # of the allocations, in order
        self.used = 0
        self.rng = np.random.default_rng(seed)
        self._narrowed = threading.local()
        self.captured: list[tuple[Any, ...]] | None = None
        self.launches = 0
        self.replays = 0
        self.lost: str | None = None

    @property
    def allowed(self) -> list[tuple[int, int]] | None:
        """What kernels may touch that the calling thread launches; None: all that is allocated."""
        ranges: list[tuple[int, int]] | None = getattr(self._narrowed, "ranges", None)
        return ranges

    @allowed.setter
    def allowed(self, ranges: list[tuple[int, int]] | None) -> None:
        self._narrowed.ranges = ranges

    # ---- memory

    def memory(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    def alloc(self, size: int) -> int:
        if size > self.memory()[0]:
            raise DeviceError(f"{self.name}: cannot allocate {size} bytes")
        block = np.frombuffer(mmap.mmap(-1, size + 256), np.uint8)  # addresses as large as a GPU's, beyond all sizes
        block[:] = 0xFF  # whoever reads what nobody wrote shall see NaNs
        address = -(-block.ctypes.data // 256) * 256
        self.allocations[address] = block
        bisect.insort(self.starts, address)
        self.used += size
        return int(address)

    def free(self, address: int) -> None:
        self.used -= self.allocations.pop(address).size - 256
        self.starts.remove(address)

    def pin(self, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def unpin(self, memory: np.ndarray) -> None:
        pass

    def _inside(self, address: int, size: int) -> None:
        at = bisect.bisect_right(self.starts, address) - 1
        if at >= 0 and address + size <= self.starts[at] + self.allocations[self.starts[at]].size - 256:
            return
        raise EmulatorError(f"{size} bytes at {address:#x} are not allocated")

    def upload(self, to: int, source: int, size: int) -> None:
        self._inside(to, size)
        ctypes.memmove(to, source, size)

    def download(self, to: int, source: int, size: int) -> None:
        self._inside(source, size)
        ctypes.memmove(to, source, size)

    def copy(self, to: int, source: int, size: int) -> None:
        self._inside(to, size)
        self._inside(source, size)
        ctypes.memmove(to, source, size)

    def fill(self, to: int, value: int, size: int) -> None:
        self._inside(to, size)
        ctypes.memset(to, value, size)

    def event(self) -> object:
        return object()

    def record(self, event: object) -> None:
        assert self.captured is None

    def wait(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        assert self.captured is None, "synchronized while a graph is being captured"

    # ---- kernels

    def load(self, spec: Spec) -> Spec:
        code(spec)
        return spec

    def prepare(self, kernel: Spec, shared: int) -> None:
        if shared > self.shared_limit:
            raise EmulatorError(f"{kernel.label}: {shared} bytes of shared memory")

    def launch(self, kernel: Spec, grid: tuple[int, int, int], threads: int, shared: int, parameters: int) -> None:
        if self.captured is not None:
            self.captured.append((kernel, grid, threads, shared, parameters))
            return
        self.launches += 1
        assert threads % 32 == 0 and 0 < threads <= kernel_of(kernel).threads, (kernel, threads)
        assert all(g > 0 for g in grid) and grid[0] < 2**31 and grid[1] < 65536 and grid[2] < 65536, (kernel, grid)
        m = machine()
        m.prepare(threads)
        ranges = self.allowed
        if ranges is None:
            ranges = [(start, start + block.size - 256) for start, block in self.allocations.items()]
        assert 0 < len(ranges) <= MAX_RANGES, len(ranges)
        m.ranges[:2] = len(ranges), 0
        m.ranges[2 : 2 + 2 * len(ranges)] = np.array(ranges, np.int64).reshape(-1)
        pointers = (ctypes.c_int64 * len(kernel_of(kernel).parameters)).from_address(parameters)
        values = np.array([ctypes.c_int64.from_address(p).value for p in pointers] or [0], np.int64)
        m.kernel[0], m.kernel[1] = code(kernel), values.ctypes.data
        m.parity[:threads] = 0
        n = grid[0] * grid[1] * grid[2]
        blocks, warps = self.rng.permutation(min(n, 4096)), self.rng.permutation(threads // 32)
        result = m.run_grid(*grid, threads, shared, blocks, warps, bool(self.rng.integers(2)))
        if result:
            m.fresh[:] = False
            self.explain(kernel, result)

    def explain(self, kernel: Spec, result: int) -> None:
        m = machine()
        _, address, size, thread, block = (int(x) for x in m.fault[:5])
        if result == -1:
            waiting = int((m.state == WARP).sum())
            raise EmulatorError(f"{kernel.label}: threads wait for each other ({waiting} for their warp)")
        raise EmulatorError(
            f"{kernel.label}: {KINDS[result]}: {size} bytes at {address:#x}, thread {thread}, block {block}"
        )

    def begin_capture(self) -> None:
        assert self.captured is None
        self.captured = []

    def end_capture(self) -> Any:
        graph, self.captured = self.captured, None
        return graph

    def replay(self, graph: Any) -> None:
        self.replays += 1
        for entry in graph:
            self.launch(*entry)

    def drop(self, graph: Any) -> None:
        pass

    def close(self) -> None:
        pass
