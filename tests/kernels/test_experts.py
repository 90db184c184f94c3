"""The table of MUL_MAT_ID: each id is read once, so that the table is that of the ids which were checked."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml import jit
from pyggml.jit import Spec
from pyggml.kernels.cpu.experts import HEAD, GatherArgs
from pyggml.kernels.cpu.step_args import packed
from pyggml.steps import STATUS, STEP

SPARE = 1 << 12


def table_of(ids: np.ndarray, n_experts: int, width: int, at: int | None) -> tuple[bytes, int]:
    """The table that `gather` makes (without what it is made with), and the status; `at`: the word of the table at which the
    ids lie when it begins, None for elsewhere."""
    tokens, used = ids.shape
    pairs = ids.size
    panels = HEAD + 4 * min(n_experts, pairs)
    lists = panels + 2 * (pairs // width + min(n_experts, pairs))
    counts = lists + 2 * pairs
    memory = np.zeros(counts + n_experts + pairs + SPARE, "<i8")
    memory[counts + n_experts + pairs :] = -7
    elsewhere = ids.astype("<i4").copy()
    place = elsewhere.ctypes.data
    if at is not None:
        place = memory.ctypes.data + 8 * at
        ctypes.memmove(place, elsewhere.ctypes.data, elsewhere.nbytes)
    raw = np.zeros(STEP.itemsize + 64, np.uint8)
    step = raw[-raw.ctypes.data % 64 :][: STEP.itemsize].view(STEP)
    status = np.zeros(1, STATUS)
    step["status"] = status.ctypes.data
    step["ints"][0, :5] = packed(GatherArgs(n_experts, width, panels, lists, counts))
    step["dst"]["data"] = memory.ctypes.data
    source = step["src"][0, 0]
    source["data"], source["ne"], source["nb"] = place, (used, tokens, 1, 1), (4, 4 * used, 4 * pairs, 4 * pairs)
    jit.function(Spec("experts", "gather"))(step.ctypes.data, 0, 1, 0)
    assert (memory[counts + n_experts + pairs :] == -7).all(), "wrote behind the table"
    return memory[:HEAD].tobytes() + memory[lists:counts].tobytes(), int(status["abort"][0])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4), st.integers(1, 20), st.sampled_from([1, 2, 8]))
def test_ids_that_change_while_the_table_is_made_change_nothing(
    seed: int, n_experts: int, used: int, tokens: int, width: int
) -> None:
    """They lie where the lists of pairs are written, which happens last."""
    ids = np.random.default_rng(seed).integers(0, n_experts, (tokens, used))
    pairs = ids.size
    lists = HEAD + 4 * min(n_experts, pairs) + 2 * (pairs // width + min(n_experts, pairs))
    assert table_of(ids, n_experts, width, lists) == table_of(ids, n_experts, width, None)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_a_bad_id_makes_no_table(bad: int) -> None:
    ids = np.array([[0, 3], [1, bad], [2, 2]])
    assert table_of(ids, 4, 2, None)[1] == 2
