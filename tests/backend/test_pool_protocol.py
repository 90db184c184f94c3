"""The words that threads of a pool share, explored exhaustively: every order of the model's steps is tried
(tests/support/pool_model.py), and mutants of it are caught. What was explored once with the same texts of both is known.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pool_model
import pytest
from kept import kept
from pool_model import Broken, Case, Key, freeze, start, step, thaw

LOCAL = ("begin", "onward")
"""What nobody else can see is no step of its own."""


def successors(case: Case, key: Key) -> Iterator[Key]:
    for i in range(case.n_workers + 1):
        s = thaw(key)
        if step(case, s, i):
            while s.threads[i].pc in LOCAL:
                step(case, s, i)
            yield freeze(s)
    s = thaw(key)
    if s.aborts_left and not s.abort:
        s.abort, s.aborts_left = 1, s.aborts_left - 1
        yield freeze(s)


def explore(case: Case) -> int:
    """Number of states; raises Broken where a promise does not hold, or nothing can go on and not all have ended."""
    first = freeze(start(case))
    seen, left = {first}, [first]
    while left:
        key = left.pop()
        more = False
        for after in successors(case, key):
            more = True
            if after not in seen:
                seen.add(after)
                left.append(after)
        if not more and any(t.pc != "end" for t in thaw(key).threads):
            raise Broken(f"nobody goes on: {[t.pc for t in thaw(key).threads]}")
    return len(seen)


ORDER = ((1, True), (2, True))
PAIR = ((2, True),)
ONE = ((1, True),)
TOGETHER = ((1, False), (1, True))

CASES = {
    "again": Case((PAIR,), ((0, False, False), (0, False, True))),
    "aborted, then a small one alone": Case((ORDER, ONE), ((0, False, True), (1, True, True)), aborts=1),
    "steps that need no barrier": Case((TOGETHER, ONE), ((0, False, True), (1, False, True)), aborts=1),
    "two workers": Case((ONE,), ((0, False, True),), n_workers=2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_order_of_steps_ends_well(name: str) -> None:
    texts = [Path(file).read_text(encoding="utf-8") for file in (__file__, pool_model.__file__)]
    key = hashlib.sha256("\0".join([*texts, repr(CASES[name])]).encode()).hexdigest()[:40]
    n_states = int(kept(f"pool_model-{key}", lambda: str(explore(CASES[name])).encode(), "tests", "explored"))
    assert n_states > 1000


MUTANTS = {
    "parts are counted, not held against a last one": "computed for round|is over with|nobody goes on",
    "nothing is kept": "read after its memory was given back",
    "enters without another look": "read after its memory was given back",
    "sleeps without another look": "nobody goes on",
    "nobody is woken": "nobody goes on",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_the_protocol_are_caught(mutant: str) -> None:
    case = CASES["aborted, then a small one alone"]
    with pytest.raises(Broken, match=MUTANTS[mutant]):
        explore(Case(case.plans, case.script, case.n_workers, case.aborts, mutant))
