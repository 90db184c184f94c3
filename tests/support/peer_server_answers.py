"""A plugin for llama-server's own tests: where it says something else of our files than a test has of the real models, its answer counts.

Runs inside those tests' pytest, not ours. With ANSWERS_MODE=record, while they ask llama-server, what its tests compare is noted
where the comparison fails; with ANSWERS_MODE=replay, while they ask another server, those comparisons are with what was noted, and
all others are as they stand. A comparison is known by its test, its line, and how often it was reached.
"""

import json
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODE, FILE = os.environ["ANSWERS_MODE"], Path(os.environ["ANSWERS_FILE"])
REPORT = Path(os.environ["ANSWERS_REPORT"])
_known: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if MODE == "replay" else {}
_noted: dict[str, dict[str, Any]] = {}
_reached: Counter[str] = Counter()
_test = ""
_results: dict[str, tuple[str, str]] = {}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


os.environ["PORT"] = str(_free_port())


def same(line: int, seen: Any, wanted: Any) -> bool:
    """`seen == wanted`, or what llama-server's answer makes of it."""
    _reached[f"{line}"] += 1
    key = f"{line}:{_reached[f'{line}']}"
    if MODE == "record":
        if seen != wanted:
            _noted.setdefault(_test, {})[key] = seen
        return True
    known = _known.get(_test, {})
    allowed = [wanted, *([known[key]] if key in known else [])]  # the test's own, and llama-server's
    assert seen in allowed, f"{seen!r}, not {' or '.join(map(repr, allowed))}"
    return True


def match_regex(regex: str, text: str) -> bool:
    """The tests' own, or whether the text is llama-server's."""
    _reached[f"/{regex}"] += 1
    key = f"/{regex}:{_reached[f'/{regex}']}"
    found = re.search(regex, text, re.IGNORECASE | re.MULTILINE | re.DOTALL) is not None
    if MODE == "record":
        if not found:
            _noted.setdefault(_test, {})[key] = text
        return True
    if key in _known.get(_test, {}):
        assert text == _known[_test][key], f"{text!r} is not llama-server's {_known[_test][key]!r}"
        return True
    return found


@pytest.fixture(autouse=True)
def _one_test(request: pytest.FixtureRequest) -> Iterator[None]:
    global _test
    _test = request.node.nodeid
    _reached.clear()
    random.seed(0)
    yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of what is not offered are not run; of a sample, each function with its first arguments alone."""
    patterns = json.loads(os.environ["ANSWERS_REFUSED"])
    away = [item for item in items if any(re.search(pattern, item.nodeid) for pattern in patterns)]
    _results.update({item.nodeid: ("refused", "") for item in away})
    seen: set[str] = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if item not in away and os.environ.get("ANSWERS_SAMPLE"):
            if name in seen:
                away.append(item)
            seen.add(name)
    config.hook.pytest_deselected(items=away)
    items[:] = [item for item in items if item not in away]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep how each test ended, and its error's last line."""
    ended = _results.get(report.nodeid, ("passed", ""))[0]
    if report.outcome != "passed" and ended == "passed":
        text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or "")
        lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")] or text.splitlines()[-1:]
        _results[report.nodeid] = (report.outcome, " ".join(lines)[:400])
    else:
        _results.setdefault(report.nodeid, ("passed", ""))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was noted and how the tests ended, of each process of xdist in a file of its own. The environment does not tell
    which that is: the tests that run these tests may themselves be in such a process."""
    worker = getattr(session.config, "workerinput", {}).get("workerid", "")
    if MODE == "record":
        FILE.with_name(f"{FILE.name}.{worker}.json").write_text(json.dumps(_noted))
    REPORT.with_name(f"{REPORT.name}.{worker}.json").write_text(json.dumps(_results))
