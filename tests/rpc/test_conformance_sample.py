"""A few of the reference's own op tests for every op, through its RPC client, against our server; all: conformance.py.

Also that a server which is wrong, refuses or breaks is found out. docs/conformance.md says what is to be expected.
"""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance_run import Case, End, Outcome, OwnServer, all_cases, run, sample
from peer import Peer
from programs import Newest
from pyggml_rpc.server import Server
from pyggml_rpc.transport import Listener
from pyggml_rpc.wire import V7, Command

from pyggml.kernels.cpu import FAMILIES
from pyggml.ops import VIEW_OPS, Op

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
ROW = re.compile(r"^\| ([A-Z0-9_]+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def cases(peer: Peer) -> list[Case]:
    return [case for case in all_cases() if case.supported]


@pytest.fixture(scope="module")
def documented() -> dict[str, tuple[int, int, int]]:
    """(passed, failed, refused) of each op, of a run of all cases"""
    found = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    return {op: (int(passed), int(failed), int(refused)) for op, passed, failed, refused in found}


def test_a_sample_of_every_op(cases: list[Case], documented: dict[str, tuple[int, int, int]]) -> None:
    chosen = sample([case for case in cases if case.op in documented], 3)
    assert len(chosen) > 2.5 * len(documented) and {case.op for case in chosen} == set(documented)
    server = OwnServer()
    try:
        outcomes = list(run(chosen, server))
    finally:
        server.close()
    assert [o.case for o in outcomes] == chosen
    wrong = [o for o in outcomes if o.end is End.FAILED]
    assert not wrong, wrong
    complete = {op for op, (_, failed, refused) in documented.items() if not failed and not refused}
    missing = [o for o in outcomes if o.end is End.REFUSED and o.case.op in complete]
    assert not missing, missing


def test_what_is_refused_by_name_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("Refused by name")[2].partition("| op |")[0]
    absent = {op.name for op in Op if op not in FAMILIES and op not in VIEW_OPS}
    assert set(re.findall(r"[A-Z][A-Z0-9_]{5,}", text)) == absent


def test_a_sample_of_the_newest_tests(newest: Newest, documented: dict[str, tuple[int, int, int]]) -> None:
    """Over 8.0.0: one case of each op that is complete, and no refusal of an op that both versions have."""
    complete = {op for op, (_, failed, refused) in documented.items() if not failed and not refused}
    cases = [case for case in all_cases("8") if case.supported and case.op in complete]
    chosen = sample(cases, 1)
    assert len(chosen) > 0.9 * len(complete)
    server = OwnServer(protocol="8")
    try:
        outcomes = list(run(chosen, server))
    finally:
        server.close()
    assert [o.case for o in outcomes] == chosen
    wrong = [o for o in outcomes if o.end is not End.PASSED]
    assert not wrong, wrong


# ---- what would be noticed


class Here:
    """A server in this process, so that what crossed the wire can be read from its counts."""

    protocol = "7"

    def __init__(self, device: Any) -> None:
        self.text = io.StringIO()
        self.handler = logging.StreamHandler(self.text)
        logging.getLogger("pyggml.rpc").addHandler(self.handler)
        self.server = Server([device], protocol=V7)
        self.listener = Listener(self.server, port=0)

    def endpoint(self) -> str:
        return self.listener.endpoint

    def ended(self) -> None:
        return None

    def new_log(self) -> str:
        text = self.text.getvalue()
        self.text.seek(0)
        self.text.truncate()
        return text

    def close(self) -> None:
        logging.getLogger("pyggml.rpc").removeHandler(self.handler)
        self.listener.close()


@pytest.fixture
def scales(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.op == "SCALE" and "type=f32" in case.params]


@pytest.fixture
def outcomes(kit: Any, scales: list[Case]) -> Iterator[Callable[[Any], tuple[list[Outcome], Server]]]:
    servers: list[Here] = []

    def all_of(device: Any) -> tuple[list[Outcome], Server]:
        servers.append(Here(device))
        return list(run(scales, servers[-1])), servers[-1].server

    yield all_of
    for server in servers:
        server.close()


Run = Callable[[Any], tuple[list[Outcome], Server]]


def test_a_right_server_passes(outcomes: Run, kit: Any, scales: list[Case]) -> None:
    ended, server = outcomes(kit.ToyDevice())
    assert [(o.case, o.end) for o in ended] == [(case, End.PASSED) for case in scales]
    assert server.counters.requests[Command.GRAPH_COMPUTE] >= len(scales) >= 4
    assert server.counters.requests[Command.GET_TENSOR] >= len(scales)


def test_a_wrong_server_fails(outcomes: Run, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = type(kit.ToyDevice().open())
    module = sys.modules[backend.__module__]
    right = module.compute_toy

    def wrong(node: Any) -> None:
        right(node)
        module.array(node)[...] *= 1.001

    monkeypatch.setattr(module, "compute_toy", wrong)
    ended, _ = outcomes(kit.ToyDevice())
    assert {o.end for o in ended} == {End.FAILED}
    assert all(re.search(r"\[SCALE\] ERR = ", o.why) for o in ended)


def test_a_refusal_is_told_with_its_reason(outcomes: Run, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit.ToyDevice, "OPS", frozenset())
    ended, server = outcomes(kit.ToyDevice())
    assert {o.end for o in ended} == {End.REFUSED}
    assert all("this device has no such op" in o.why for o in ended)
    assert server.counters.refused == len(ended)


def test_a_fault_of_the_server_fails(outcomes: Run, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit.ToyDevice, "why_not", lambda self, node: 1 // 0)
    ended, _ = outcomes(kit.ToyDevice())
    assert {o.end for o in ended} == {End.FAILED}
    assert all("ZeroDivisionError" in o.why for o in ended)
