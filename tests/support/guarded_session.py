"""Random graphs through a real session whose buffer and work memory lie between pages that nobody may touch. As a program it is
the child that may die of it; `drive` starts it, and tells which graph it was.

usage: guarded_session.py SEED FIRST COUNT [OP,OP ...|- [WRONG]]   (OP: only graphs of these; WRONG: see WRONGS)
"""

import collections
import ctypes
import faulthandler
import json
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SUPPORT = Path(__file__).parent
sys.path.insert(0, str(SUPPORT))

GUARD = 1 << 38
"""Bytes of forbidden pages on either side: a row number of 32 bits times a stride of megabytes ends there."""
ARENA = 1 << 26
PATIENCE = 300
"""Seconds for one graph, kernels that have to be compiled included."""
POISON = 0xA5
MAX_FAULTS = 5


@dataclass
class Figures:
    """What a number of graphs came to. `faults`: what must not happen, with the graph's number."""

    ran: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def drive(seed: int, first: int, count: int, timeout: float = 3600, only: str = "-", wrong: str = "") -> Figures:
    """Run graphs `first` to `first + count` of a seed in a child, and in another where one has died. With more than
    MAX_FAULTS it ends early."""
    figures, at, started = Figures(), first, time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    while at < first + count:
        command = [
            sys.executable,
            str(SUPPORT / "guarded_session.py"),
            str(seed),
            str(at),
            str(first + count - at),
            only,
            wrong,
        ]
        left = timeout - (time.monotonic() - started)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(left, 1))
        except subprocess.TimeoutExpired as late:
            figures.faults.append(f"graph {_last(late.stdout)} was not done after {timeout} s")
            break
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines[-1].startswith("{"):
            told = json.loads(lines[-1])
            counts.update(told["counts"])
            figures.faults += told["faults"]
            at = first + count
            break
        number = _last(done.stdout)
        figures.faults.append(f"graph {number} ended the process with {done.returncode}: {done.stderr[-2000:]}")
        at = number + 1
        if len(figures.faults) > MAX_FAULTS:
            break
    figures.ran, figures.counts, figures.seconds = at - first, dict(counts), time.monotonic() - started
    return figures


def _last(output: "str | bytes | None") -> int:
    """The number of the graph that was begun last."""
    text = output.decode() if isinstance(output, bytes) else output or ""
    numbers = [line for line in text.splitlines() if line.isdigit()]
    return int(numbers[-1]) if numbers else 0


def _numbers_read_twice() -> None:
    """Results may lie anywhere, and row numbers are read again after the check."""
    import pyggml.ops.rules as rules
    from pyggml.jit import Spec
    from pyggml.kernels.cpu import add_id, rows, ssm

    mutants = {("rows", name) for name in ("get_rows", "set_rows", "set_quantised_rows")}
    mutants |= {("dequant_fallback", "get_rows"), ("add_id", "add_id"), ("ssm", "ssm_scan")}

    def mutant(module: str, factory: str, *rest: tuple[str, ...]) -> Spec:
        return Spec("primitive_kernels.double_reads" if (module, factory) in mutants else module, factory, *rest)

    rules.check_overlap = lambda node: None
    for family in (rows, add_id, ssm):
        family.Spec = mutant  # type: ignore[attr-defined]


def _writes_beside() -> None:
    """A byte behind each result is changed."""
    from pyggml.backend.base import Plan
    from pyggml.backend.cpu import CPUBackend, CPUPlan
    from pyggml.backend.host import HostBuffer

    compute = CPUBackend.compute

    def wrong(self: CPUBackend, plan: Plan) -> None:
        compute(self, plan)
        assert isinstance(plan, CPUPlan)
        for node in plan.nodes:
            assert isinstance(node.buffer, HostBuffer)
            end = node.data + node.nbytes - node.buffer.base
            node.buffer.memory[end % node.buffer.size] ^= 1

    CPUBackend.compute = wrong  # type: ignore[method-assign]


WRONGS = {"numbers read twice": _numbers_read_twice, "writes beside": _writes_beside}
"""What a run must notice."""


def main(seed: int, first: int, count: int, only: str = "-", wrong: str = "") -> None:
    import numpy as np
    from pyggml_rpc.connection import Request
    from pyggml_rpc.errors import RefusedError
    from pyggml_rpc.server import Server
    from pyggml_rpc.session import Session
    from pyggml_rpc.wire import NEWEST, Command
    from random_graphs import SIZE, random_graph
    from random_ops import MAKERS

    from pyggml.backend import cpu
    from pyggml.backend.base import Usage
    from pyggml.backend.host import HostBuffer
    from pyggml.ops import Op

    if wrong:
        WRONGS[wrong]()
    chosen = tuple(MAKERS) if only == "-" else tuple(Op[name] for name in only.split(","))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def guarded(size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        private_anonymous_noreserve = 0x4022
        at = libc.mmap(None, size + 2 * GUARD, 0, private_anonymous_noreserve, -1, 0)
        assert at not in (None, ctypes.c_void_p(-1).value), ctypes.get_errno()
        assert libc.mprotect(at + GUARD, size, 3) == 0
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at + GUARD))

    memory, arena = guarded(SIZE), guarded(ARENA)

    class Guarded(HostBuffer):
        def free(self) -> None:
            self.size = 0

    def work_memory(size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """Up to the forbidden page, and full of what nobody wrote. One graph at a time has it."""
        whole = -(-size // 64) * 64
        if whole > ARENA:
            raise MemoryError(f"{size} bytes of work memory")
        part = arena[ARENA - whole :][:size]
        part[:] = POISON
        return part

    cpu._zeros = work_memory
    device = cpu.CPUDevice()
    device.alloc_buffer = lambda size, usage=Usage.ANY: Guarded(device, memory, usage)  # type: ignore[method-assign]
    server = Server([device], n_threads=2)

    def request(command: Command, body: bytes | bytearray) -> Request:
        return Request(command, body, NEWEST.commands[command].request)

    def greet() -> tuple[Session, int, int]:
        session = Session(server, "guarded")
        lent = session.execute(request(Command.ALLOC_BUFFER, struct.pack("<IQ", 0, SIZE)))
        handle, _ = struct.unpack("<QQ", b"".join(map(bytes, lent or ())))
        told = session.execute(request(Command.BUFFER_GET_BASE, struct.pack("<Q", handle)))
        return session, handle, struct.unpack("<Q", b"".join(map(bytes, told or ())))[0]

    fresh = np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)
    floats = fresh[: SIZE // 2].view(np.float32)
    floats[:] = np.random.default_rng(seed + 1).standard_normal(floats.size)
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    session, handle, base = greet()
    faulthandler.enable()
    for number in range(first, first + count):
        print(number, flush=True)
        if not (number - first) % 64:
            memory[:] = fresh
        made = random_graph(seed, number, handle, base, chosen)
        for offset, value in made.fills:
            memory[offset : offset + len(value)] = np.frombuffer(value, np.uint8)
        before = memory.copy()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            session.execute(request(Command.GRAPH_COMPUTE, made.body))
            session.settle(wait=True)
            counts["computed"] += 1
            counts.update({f"computed {name}": 1 for name in made.what if name.isupper()})
        except RefusedError as error:
            counts["refused"] += 1
            counts["row numbers"] += "row index" in str(error)
            counts["overlaps"] += "overlaps" in str(error)
            if "\n" in str(error):
                faults.append(f"graph {number} {made.what}: more than a line: {error}")
        except Exception as error:
            faults.append(f"graph {number} {made.what}: {type(error).__name__}: {error}")
            session.close()
            session, handle, base = greet()
        signal.setitimer(signal.ITIMER_REAL, 0)
        changed = memory != before
        for low, high in made.results or [(0, SIZE)]:
            changed[max(low, 0) : max(high, 0)] = False
        if changed.any():
            faults.append(
                f"graph {number} {made.what}: wrote at {np.flatnonzero(changed)[:4].tolist()}, beside its results"
            )
    session.close()
    server.close()
    print(json.dumps({"counts": counts, "faults": faults}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
