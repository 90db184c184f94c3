"""Random graphs of every op, right and damaged, through a session between forbidden pages: none ends the server, none writes
beside its results, and each is computed or refused in one line.

The graphs are other ones in every run. A failure names seed and graph, and how to run that one again; `tests/soak.py
guardfuzz` runs as many as one likes.
"""

import re
import secrets

import pytest
from guarded_session import WRONGS, drive
from random_graphs import random_graph
from random_ops import MAKERS

from pyggml.ops import RULES

COUNT = 2000
BY_NUMBER = "GET_ROWS,SET_ROWS,ADD_ID,SSM_SCAN"


def test_every_op_has_graphs() -> None:
    assert MAKERS.keys() == RULES.keys()


def test_a_number_is_a_graph() -> None:
    one, same, other = (random_graph(5, number, 17, 1 << 32) for number in (3, 3, 4))
    assert (one.body, one.fills) == (same.body, same.fills) and one.body != other.body


def test_random_graphs_end_well() -> None:
    seed = secrets.randbelow(1 << 31)
    figures = drive(seed, 0, COUNT, timeout=1200)
    again = f"python tests/soak.py guardfuzz 1 --seed {seed} --first GRAPH"
    print(f"seed {seed}: {figures.ran} graphs in {figures.seconds:.0f} s, {figures.counts}")
    assert not figures.faults, f"seed {seed}, again with `{again}`: {figures.faults}"
    ops = [name for name in figures.counts if name.startswith("computed ")]
    assert figures.ran == COUNT and figures.counts["computed"] > COUNT // 4 and len(ops) > 50, figures.counts
    assert figures.counts["row numbers"] > 5 and figures.counts["overlaps"] > 20


@pytest.mark.parametrize(
    ("wrong", "seen"), [("numbers read twice", r"ended the process with -(11|7):"), ("writes beside", "wrote at")]
)
def test_a_wrong_server_is_noticed(wrong: str, seen: str) -> None:
    """Graphs of a fixed seed: what they find is known. (Signal 7 is SIGBUS: an address too large to be one, through rbp.)"""
    assert wrong in WRONGS
    figures = drive(1, 0, 1000, timeout=600, only=BY_NUMBER, wrong=wrong)
    assert any(re.search(seen, fault) for fault in figures.faults), figures
