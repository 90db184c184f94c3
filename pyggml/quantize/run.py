"""Carrying out a plan: rows read from the mapped file, converted on several threads, written in order.

Owns the threads and the bound on memory. NumPy, and for K types compiled searches, do the work outside the GIL, on
pieces that are small enough for a core's cache.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyggml.atomic_file import atomic_file
from pyggml.dtypes import GGMLType, row_size
from pyggml.errors import ModelError
from pyggml.gguf import TensorInfo
from pyggml.gguf.header import MAGIC
from pyggml.gguf.write import head, padding
from pyggml.quantize.plan import Part, Plan, Task, part_paths
from pyggml.quants import QUANTS, dequantize_row, quantize_row
from pyggml.quants.base import Searches

Progress = Callable[[int, int, str], None]
"""Called with (bytes of the source that are done, bytes of all tensors, name of the tensor)."""

PIECE = 1 << 17  # values that one thread converts at a time: they stay in its core's cache
AHEAD = 3  # pieces a thread that may wait to be written

Bytes = NDArray[np.uint8]


def run(plan: Plan, dst: str | os.PathLike[str], n_threads: int = 0, progress: Progress | None = None) -> list[Path]:
    """Write the file, or the parts, of a plan; what it wrote. A file appears when it is complete, or not at all.

    n_threads: 0 or less, as many as this process may use cores.
    Raises ModelError for values that are not finite, or become so; OSError; GGUFError; ShapeError.
    """
    paths = part_paths(Path(dst), len(plan.parts))
    _refuse_sources(plan, paths)
    if n_threads <= 0:
        n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    search = None
    if any(task.type != task.source.type and QUANTS[task.type].searches for task in plan.tasks):
        from pyggml.kernels.cpu.search import searches  # loads the compiler's library

        search = searches()
    done, total = 0, plan.n_before

    def tell(n: int, name: str) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total, name)

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_pool(n_threads))
        written = [stack.enter_context(atomic_file(path, "model file", _is_model)) for path in paths]
        for part, (file, _) in zip(plan.parts, written, strict=True):
            _write(part, plan.alignment, file, pool, n_threads * AHEAD, search, tell)
        for _, finish in written:
            finish()
    return paths


def _is_model(head: bytes) -> bool:
    return head.startswith(MAGIC)


def _refuse_sources(plan: Plan, paths: Sequence[Path]) -> None:
    sources = {task.source.path for task in plan.tasks}
    for path in paths:
        if any(path.exists() and path.samefile(source) for source in sources):
            raise ModelError(f"{path}: is the input file, which is never overwritten")


@contextlib.contextmanager
def _pool(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; after an error or Ctrl-C what waits for them is not begun."""
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="quantize")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write(
    part: Part,
    alignment: int,
    file: IO[bytes],
    pool: ThreadPoolExecutor,
    ahead: int,
    search: Searches | None,
    tell: Callable[[int, str], None],
) -> None:
    """Pieces of all tensors one after the other; at most `ahead` of them are in memory."""
    file.write(head(part.pairs, [task.planned for task in part.tasks], alignment))
    under_way: deque[tuple[Future[Any], int, str, int]] = deque()

    def take() -> None:
        future, n_read, name, pad = under_way.popleft()
        file.write(future.result())
        file.write(bytes(pad))
        tell(n_read, name)

    for task in part.tasks:
        for rows, last in _pieces(task):
            pad = padding(task.planned.nbytes, alignment) if last else 0
            under_way.append(
                (pool.submit(convert, task.source, task.type, rows, search), rows.size, task.source.name, pad)
            )
            if len(under_way) >= ahead:
                take()
    while under_way:
        take()


def _pieces(task: Task) -> Iterator[tuple[Bytes, bool]]:
    """Whole rows, some at a time; and whether they are the last."""
    source = task.source
    size = row_size(source.type, source.ne[0])
    step = max(1, PIECE // max(source.ne[0], 1)) * size
    if not source.nbytes:
        yield source.data, True
    for start in range(0, source.nbytes, step or 1):
        yield source.data[start : start + step], start + step >= source.nbytes


def convert(source: TensorInfo, wanted: GGMLType, rows: Bytes, search: Searches | None = None) -> Bytes:
    """Rows of a tensor in another type, or as they are. Raises ModelError when they are not finite, or become so."""
    if not finite(source.type, rows):
        raise ModelError(f"tensor {source.name} holds an infinity or a NaN")
    if wanted == source.type:
        return rows
    ne0 = source.ne[0]
    made = quantize_row(wanted, dequantize_row(source.type, rows, ne0), search).reshape(-1)
    if not finite(wanted, made):
        raise ModelError(f"tensor {source.name} holds values too large for {wanted.name}")
    return made


def finite(dtype: GGMLType, rows: Bytes) -> bool:
    """Whether all numbers, or all scales of blocks, are finite (ggml_validate_row_data); true of types unknown here."""
    if dtype not in QUANTS or not rows.size:
        return True
    records = rows.view(QUANTS[dtype].layout)
    for field in QUANTS[dtype].layout.names or ():
        values = records[field]
        if values.dtype == np.float32:
            if not np.isfinite(values).all():
                return False
        elif values.dtype == np.uint16 and field in _HALVES:
            exponent = np.uint16(0x7F80 if dtype == GGMLType.BF16 else 0x7C00)
            if ((values & exponent) == exponent).any():
                return False
    return True


_HALVES = ("d", "dmin", "m", "h", "b")  # the fields that are half floats or bfloat16
