"""CUDA threads on one CPU thread: fibers, warps and blocks that meet, and the intrinsics that need other threads or memory.

Owns the machine that an emulated kernel runs on: x86-64 code for switching stacks, the schedule of a grid, the check of
each address. Threads of a block are fibers; a warp's lanes run one after the other up to the next point where they
meet. Order of blocks, warps and lanes is the caller's.
"""

import ctypes
import functools
import hashlib
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from cuda_computed import SLOTS, Warp, numbers, tensor_cores
from cuda_copies import Copies
from kept import kept

from pyggml.jit.compiling import _numba  # sets Numba to this machine as the CPU kernels want it

MAX_THREADS = 1024
STACK = 64 * 1024
RUN, WARP, BLOCK, DONE, FAULT = 0, 1, 2, 3, 4
MAX_RANGES = 4096
SHARED_BYTES = 256 * 1024
SHARED_BASE = 1024
"""Where shared memory begins in its own address space, as on GPUs since compute capability 8.0."""

LOAD, STORE = 0, 1


class Machine:
    """The one block that runs at a time. All state lies in arrays whose addresses the compiled code knows."""

    def __init__(self) -> None:
        self.slots = np.zeros(MAX_THREADS * 2 * SLOTS, np.int32)
        self.state = np.zeros(MAX_THREADS, np.int32)
        self.parity = np.zeros(MAX_THREADS, np.int32)
        self.place = np.zeros(16, np.int32)  # thread, block x y z, threads, blocks x y z, shared bytes
        self.ranges = np.zeros(2 + 2 * MAX_RANGES, np.int64)  # count, last hit, then (from, to)
        self.fault = np.zeros(8, np.int64)  # kind, address, size, thread, block
        self.stacks = np.zeros(MAX_THREADS * STACK + 64, np.uint8)
        self.contexts = np.zeros(MAX_THREADS + 1, np.int64)  # stack pointers; the last is the scheduler's
        self.shared = np.zeros(SHARED_BYTES + 64, np.uint8)
        self.shared_at = -(-self.shared.ctypes.data // 64) * 64
        self.half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
        self.kernel = np.zeros(2, np.int64)  # entry, parameters
        self.fresh = np.zeros(MAX_THREADS, np.bool_)
        self.copies = Copies(MAX_THREADS)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        host = llvm.Target.from_default_triple()
        self.cpu, self.features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        self.target = host.create_target_machine(cpu=self.cpu, features=self.features, opt=2, jit=True)
        llvm.add_symbol("emu_place", self.place.ctypes.data)
        llvm.add_symbol("emu_ranges", self.ranges.ctypes.data)
        llvm.add_symbol("emu_window", self.shared_at)
        llvm.add_symbol("emu_parameters", self.kernel.ctypes.data + 8)
        self.engines: list[Any] = []
        self.helpers: dict[str, Any] = {}  # those of intrinsics, by name: what compiles them
        self.cfuncs: dict[str, Any] = {}  # those that a kernel has called for
        self.symbols(self.core())
        self.run_grid = self.build()

    # ---- machine code

    def link(self, text: str, level: int = 1, keep: bool = False) -> Any:
        """`keep`: what it is compiled to is kept on disk; the text names no address of this process."""
        cpu = f"{llvmlite.__version__} {self.target.triple} {self.cpu} {self.features} {level}"
        name = hashlib.sha256(f"{cpu}\0{text}".encode()).hexdigest()
        make = functools.partial(self.compile, text, level)
        code = kept(f"{name[:40]}.o", make, "cuda", "emulated") if keep else make()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self.engines.append(engine)
        return engine

    def compile(self, text: str, level: int) -> bytes:
        """An object file."""
        module = llvm.parse_assembly(text)
        module.verify()
        tuning = llvm.create_pipeline_tuning_options(speed_level=level)
        llvm.create_pass_builder(self.target, tuning).getModulePassManager().run(
            module, llvm.create_pass_builder(self.target, tuning)
        )
        code = self.target.emit_object(module)
        module.close()  # an engine would keep it as long as it lives: more than a megabyte a kernel
        return bytes(code)

    def symbols(self, engine: Any) -> None:
        for name in ("emu_yield", "emu_resume", "emu_entry"):
            address = engine.get_function_address(name)
            llvm.add_symbol(name, address)
            setattr(self, name, address)

    def made(self, name: str) -> Any:
        """A helper, compiled when a kernel first calls it: most take a tenth of a second or more."""
        if name not in self.cfuncs:
            self.cfuncs[name] = self.helpers[name]()
            llvm.add_symbol("emu_" + name, self.cfuncs[name].address)
        return self.cfuncs[name]

    def core(self) -> Any:
        """Switching from a fiber to the scheduler and back (System V x86-64)."""
        switch = (
            "pushq %rbp\\0Apushq %rbx\\0Apushq %r12\\0Apushq %r13\\0Apushq %r14\\0Apushq %r15\\0A"
            "movq %rsp, (%rdi)\\0Amovq (%rsi), %rsp\\0A"
            "popq %r15\\0Apopq %r14\\0Apopq %r13\\0Apopq %r12\\0Apopq %rbx\\0Apopq %rbp\\0Apopq %rcx\\0Ajmpq *%rcx"
        )
        contexts, main = self.contexts.ctypes.data, self.contexts.ctypes.data + 8 * MAX_THREADS
        return self.link(f"""
define internal void @emu_switch(ptr %from, ptr %to) naked noinline {{
  call void asm sideeffect "{switch}", "~{{memory}}"()
  unreachable
}}
define void @emu_yield(i32 %reason) noinline {{
  %tp = inttoptr i64 {self.place.ctypes.data} to ptr
  %t32 = load volatile i32, ptr %tp
  %t = sext i32 %t32 to i64
  %states = inttoptr i64 {self.state.ctypes.data} to ptr
  %s = getelementptr i32, ptr %states, i64 %t
  store volatile i32 %reason, ptr %s
  %all = inttoptr i64 {contexts} to ptr
  %mine = getelementptr i64, ptr %all, i64 %t
  %main = inttoptr i64 {main} to ptr
  call void @emu_switch(ptr %mine, ptr %main)
  ret void
}}
define void @emu_resume(i64 %t) noinline {{
  %all = inttoptr i64 {contexts} to ptr
  %its = getelementptr i64, ptr %all, i64 %t
  %main = inttoptr i64 {main} to ptr
  call void @emu_switch(ptr %main, ptr %its)
  ret void
}}
define void @emu_entry() noinline {{
  br label %again
again:
  %kp = inttoptr i64 {self.kernel.ctypes.data} to ptr
  %k = load volatile ptr, ptr %kp
  call void %k()
  call void @emu_yield(i32 {DONE})
  br label %again
}}""")

    def prepare(self, n: int) -> None:
        """Give each of n threads a stack that begins at the entry."""
        base = -(-self.stacks.ctypes.data // 64) * 64
        stacks = self.stacks
        for t in range(n):
            if self.fresh[t]:
                continue
            top = base + (t + 1) * STACK - 128
            at = top - stacks.ctypes.data
            frame = stacks[at : at + 56].view(np.int64)
            frame[:6] = 0
            frame[6] = self.emu_entry  # type: ignore[attr-defined]
            self.contexts[t] = top
            self.fresh[t] = True

    def build(self) -> Any:
        """The schedule of a grid and the intrinsics that are more than ordinary code, compiled by Numba."""
        numba = _numba()
        from numba.core import types as nt
        from numba.extending import intrinsic

        yield_to = ctypes.CFUNCTYPE(None, ctypes.c_int32)(self.emu_yield)  # type: ignore[attr-defined]
        resume = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self.emu_resume)  # type: ignore[attr-defined]
        a_slots, a_state, a_place = (x.ctypes.data for x in (self.slots, self.state, self.place))
        a_parity, a_ranges, a_fault, a_half = (x.ctypes.data for x in (self.parity, self.ranges, self.fault, self.half))
        shared_at = self.shared_at

        def pointer(element: Any) -> Any:
            @intrinsic
            def cast(context: Any, address: Any) -> Any:
                def generate(ctx: Any, builder: Any, sig: Any, args: Any) -> Any:
                    return builder.inttoptr(args[0], ctx.get_value_type(sig.return_type))

                return nt.CPointer(element)(nt.int64), generate

            return cast

        ints, longs, floats = pointer(nt.int32), pointer(nt.int64), pointer(nt.float32)

        def helper(name: str, sig: str) -> Any:
            def register(function: Any) -> Any:
                self.helpers[name] = functools.partial(numba.cfunc(sig), function)
                return function

            return register

        def fail(kind: Any, address: Any, size: Any) -> None:
            f, p = longs(a_fault), ints(a_place)
            if f[0] == 0:
                f[0] = kind
                f[1] = address
                f[2] = size
                f[3] = p[0]
                f[4] = p[1]
            yield_to(FAULT)

        fail = numba.njit(fail)

        @helper("check", "void(int64,int32,int32)")
        def check(address: Any, size: Any, kind: Any) -> None:
            if address & (size - 1):
                fail(np.int64(10 + kind), address, np.int64(size))
            r = longs(a_ranges)
            last = r[1]
            lo, hi = address, address + size
            # a load takes whole words of 4 bytes: those that a range touches may be loaded
            if kind == LOAD:
                if r[2 + 2 * last] & -4 <= lo and hi <= (r[3 + 2 * last] + 3) & -4:
                    return
            elif r[2 + 2 * last] <= lo and hi <= r[3 + 2 * last]:
                return
            for i in range(r[0]):
                if kind == LOAD:
                    if r[2 + 2 * i] & -4 <= lo and hi <= (r[3 + 2 * i] + 3) & -4:
                        r[1] = i
                        return
                elif r[2 + 2 * i] <= lo and hi <= r[3 + 2 * i]:
                    r[1] = i
                    return
            fail(np.int64(1 + kind), address, np.int64(size))

        @helper("shared", "int64(int32,int32,int32)")
        def shared(address: Any, size: Any, kind: Any) -> Any:
            at = np.int64(address) - SHARED_BASE
            if at & (size - 1):
                fail(np.int64(12 + kind), np.int64(at), np.int64(size))
            if at < 0 or at + size > ints(a_place)[8]:
                fail(np.int64(3 + kind), np.int64(at), np.int64(size))
            return shared_at + at

        def meet(code: Any, n: Any) -> Any:
            """Wait for the warp; -> where lane 0's slots of this meeting are."""
            p, q = ints(a_place), ints(a_parity)
            me = p[0]
            side = q[me]
            q[me] = 1 - side
            ints(a_slots)[(me * 2 + side) * SLOTS + SLOTS - 1] = code
            yield_to(WARP)
            base = ((me & -32) * 2 + side) * SLOTS
            if ints(a_slots)[base + SLOTS - 1] != code:
                fail(np.int64(20), np.int64(code), np.int64(ints(a_slots)[base + SLOTS - 1]))
            return base

        meet = numba.njit(meet)

        def mine() -> Any:
            me = ints(a_place)[0]
            return (me * 2 + ints(a_parity)[me]) * SLOTS

        mine = numba.njit(mine)
        step = 2 * SLOTS  # from lane to lane

        @helper("shuffle", "int32(int32,int32,int32)")
        def shuffle(mode: Any, value: Any, n: Any) -> Any:
            s = ints(a_slots)
            s[mine()] = value
            base = meet(np.int32(1 + mode), np.int32(1))
            lane = ints(a_place)[0] & 31
            other = (lane ^ n) if mode == 1 else n & 31
            if other > 31 or other < 0:
                other = lane
            return s[base + other * step]

        @helper("warp_barrier", "void()")
        def warp_barrier() -> None:
            meet(np.int32(30), np.int32(0))

        numbers(numba, helper)
        tensor_cores(numba, helper, Warp(ints, floats, mine, meet, a_slots, a_place, a_half))

        def row_of(address: Any) -> Any:
            at = np.int64(address) - SHARED_BASE
            if at & 15:
                fail(np.int64(12), at, np.int64(16))
            if at < 0 or at + 16 > ints(a_place)[8]:
                fail(np.int64(3), at, np.int64(16))
            return shared_at + at

        row_of = numba.njit(row_of)

        def matrices(out: Any, address: Any, transposed: Any) -> None:
            s, o = ints(a_slots), ints(out)
            row_of(address)
            s[mine()] = address
            base = meet(np.int32(8 + transposed), np.int32(1))
            lane = ints(a_place)[0] & 31
            for m in range(4):
                if transposed:
                    low = row_of(s[base + (m * 8 + 2 * (lane & 3)) * step]) + 2 * (lane >> 2)
                    high = row_of(s[base + (m * 8 + 2 * (lane & 3) + 1) * step]) + 2 * (lane >> 2)
                    first = (ints(low & -4)[0] >> (8 * (low & 2))) & 0xFFFF
                    second = (ints(high & -4)[0] >> (8 * (high & 2))) & 0xFFFF
                    o[m] = np.int32(first | (second << 16))
                else:
                    o[m] = ints(row_of(s[base + (m * 8 + (lane >> 2)) * step]) + 4 * (lane & 3))[0]

        matrices = numba.njit(matrices)

        @helper("ldmatrix_x4", "void(int64,int32)")
        def ldmatrix_x4(out: Any, address: Any) -> None:
            matrices(out, address, 0)

        @helper("ldmatrix_x4_trans", "void(int64,int32)")
        def ldmatrix_x4_trans(out: Any, address: Any) -> None:
            matrices(out, address, 1)

        def place_of(address: Any, size: Any) -> Any:
            at = np.int64(address) - SHARED_BASE
            if at & (size - 1):
                fail(np.int64(13), at, size)
            if at < 0 or at + size > ints(a_place)[8]:
                fail(np.int64(4), at, size)
            return shared_at + at

        def check_pieces(address: Any, size: Any) -> None:
            """Copies take whole pieces: those that a range touches, as allocations begin and end with whole ones."""
            if address & (size - 1):
                fail(np.int64(10), address, size)
            r = longs(a_ranges)
            for i in range(r[0]):
                if r[2 + 2 * i] & -size <= address and address + size <= (r[3 + 2 * i] + size - 1) & -size:
                    return
            fail(np.int64(1), address, size)

        place_of, check_pieces = numba.njit(place_of), numba.njit(check_pieces)
        forget = self.copies.register(numba, helper, ints, longs, a_place, place_of, check_pieces, fail)

        @numba.njit
        def run_grid(
            gx: Any, gy: Any, gz: Any, n: Any, shared_bytes: Any, blocks: Any, warps: Any, backwards: Any
        ) -> Any:  # fmt: skip
            """0, or what went wrong: -1 threads that wait for each other, else the fault's kind."""
            p, st, f = ints(a_place), ints(a_state), longs(a_fault)
            f[0] = 0
            p[4], p[5], p[6], p[7], p[8] = n, gx, gy, gz, shared_bytes
            n_warps = n // 32
            for number in range(gx * gy * gz):
                b = blocks[number] if number < blocks.shape[0] else number
                p[1], p[2], p[3] = b % gx, (b // gx) % gy, b // (gx * gy)
                for i in range(shared_bytes // 4):
                    ints(shared_at)[i] = -1  # NaN: whoever reads what nobody wrote shall see it
                forget(n)
                for t in range(n):
                    st[t] = RUN
                while True:
                    progress = False
                    for i in range(n_warps):
                        first = warps[i] * 32
                        while True:
                            ran = False
                            for j in range(32):
                                t = first + (31 - j if backwards else j)
                                if st[t] == RUN:
                                    p[0] = t
                                    resume(t)
                                    ran = True
                                    if f[0]:
                                        return f[0]
                            if not ran:
                                break
                            progress = True
                            waiting = 0
                            for j in range(32):
                                waiting += st[first + j] == WARP
                            if waiting == 32:
                                for j in range(32):
                                    st[first + j] = RUN
                    waiting, done = 0, 0
                    for t in range(n):
                        waiting += st[t] == BLOCK
                        done += st[t] == DONE
                    if done == n:
                        break
                    if waiting == n:
                        for t in range(n):
                            st[t] = RUN
                    elif not progress:
                        return -1

        return run_grid


@functools.cache
def machine() -> Machine:
    """The one machine of this process."""
    return Machine()
