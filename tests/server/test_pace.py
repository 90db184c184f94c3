"""How much of prompts a step takes beside texts under way, on a machine of which all is known."""

from typing import Any

import pytest
from mutants import Mutant, assert_caught
from pyggml_server.pace import LONGER, MOST, SMALLEST, STALE, Pace


def steps(
    pace: Pace, plain: float, token: float, running: int, waiting: int, n: int = 60, fixed: float = 0.0
) -> list[tuple[float, int]]:
    """(seconds, tokens of prompts) of each step of a machine that takes `plain` for a token of each text, `fixed` more for any
    of a prompt, and `token` for each of these."""
    took = []
    for _ in range(n):
        room = pace.room(running, waiting)
        seconds = plain + (fixed if room else 0.0) + token * room
        pace.took(seconds, running, room)
        took.append((seconds, room))
    return took


@pytest.mark.parametrize("fixed", [0.0, 0.003])
@pytest.mark.parametrize("token", [0.0001, 0.0007, 0.002])
def test_a_step_with_a_prompt_takes_less_than_three_times_as_long(token: float, fixed: float) -> None:
    took = steps(Pace(512), 0.005, token, 1, 1, 200, fixed=fixed)
    longest = max(3 * 0.005, 0.005 + fixed + SMALLEST * token)
    assert took[0] == (0.005, 0), "how long a step without prompts takes is found out first"
    assert max(seconds for seconds, _ in took[5:]) < longest + 1e-9
    rooms = [room for _, room in took[5:]]
    assert all(room == 0 or room >= SMALLEST for room in rooms)
    fits = fixed + SMALLEST * token <= LONGER * 0.005
    assert rooms.count(0) <= (len(rooms) / STALE + 1 if fits else len(rooms) / 2), "the prompt gets on"


@pytest.mark.parametrize("token", [0.002, 0.006])
def test_where_the_smallest_part_takes_long_steps_without_one_come_between(token: float) -> None:
    """As late in a long prompt, all of which each token of it looks at."""
    took = steps(Pace(512), 0.005, token, 1, 1, 200)[20:]
    rooms = [room for _, room in took]
    assert set(rooms) == {0, SMALLEST}
    assert sum(seconds for seconds, _ in took) / len(took) < 3 * 0.005


def test_a_prompt_gets_on_however_long_a_part_takes() -> None:
    rooms = [room for _, room in steps(Pace(512), 0.005, 0.1, 1, 1)]
    assert rooms.count(SMALLEST) > 10


def test_more_is_taken_where_more_wait() -> None:
    few, many = (steps(Pace(512), 0.005, 0.0007, 1, waiting)[-1][1] for waiting in (1, 15))
    assert many > 4 * few


@pytest.mark.parametrize("waiting", [7, 31, 1000])
def test_however_many_wait_nobody_waits_for_ever(waiting: int) -> None:
    took = steps(Pace(1 << 16), 0.005, 0.0004, 1, waiting, 400)[20:]
    assert max(seconds for seconds, _ in took) <= 0.005 * (1 + LONGER * MOST), (
        "7 that wait would allow 98 times as much"
    )
    assert max(room for _, room in took) >= 256


def test_three_that_wait_beside_one_are_computed_in_large_parts() -> None:
    assert steps(Pace(512), 0.005, 0.00043, 1, 3)[-1][1] == 256


def test_what_is_the_same_for_few_and_many_tokens_does_not_make_parts_small() -> None:
    """16 texts under way and 16 that wait: 128 tokens of a prompt fit beside them, whatever was measured of fewer."""
    assert steps(Pace(2048), 0.026, 0.0004, 16, 16, fixed=0.008)[-1][1] == 128


@pytest.mark.parametrize("waiting", [1, 15])
def test_a_step_that_something_held_up_says_nothing_of_the_next(waiting: int) -> None:
    pace = Pace(512)
    for waits in (1, waiting):
        steps(pace, 0.005, 0.0001, 1, waits)
    usual = pace.room(1, waiting)
    pace.took(1.0, 1, usual)
    assert pace.room(1, waiting) == usual


def test_a_machine_that_becomes_slower() -> None:
    pace = Pace(512)
    steps(pace, 0.005, 0.0001, 1, 1)
    for _ in range(60):
        pace.took(0.005, 1, 0)
        pace.took(0.005 + 0.0005 * (room := pace.room(1, 1)), 1, room)
    assert 0.0005 * room <= 2 * 1.5 * 0.005


def seconds_of_prompt(
    pace: Pace, slower: float, tokens: int = 2000, running: int = 3, fixed: float = 0.005
) -> tuple[float, int]:
    """How long a prompt takes, and its steps, where a step takes 10 ms, and one with a part of the prompt `fixed` and 0.1 ms a
    token more, all of it so many times as long."""
    took, steps = 0.0, 0
    while tokens > 0:
        room = min(tokens, pace.room(running, 1))
        seconds = slower * (0.01 + (fixed + 0.0001 * room if room else 0.0))
        pace.took(seconds, running, room)
        tokens, took, steps = tokens - room, took + seconds, steps + 1
    return took, steps


@pytest.mark.parametrize("fixed", [0.0, 0.005])
@pytest.mark.parametrize("slower", [3, 10, 30])
def test_a_machine_that_becomes_slower_while_prompts_follow_each_other(slower: int, fixed: float) -> None:
    """There is no step without prompts unless one is asked for: what was quick once is no measure."""
    pace = Pace(512)
    pace.took(0.01, 3, 0)
    usual, _ = seconds_of_prompt(pace, 1, fixed=fixed)
    for _ in range(3):
        took, _ = seconds_of_prompt(pace, slower, fixed=fixed)
        assert took < 2.5 * slower * usual
    for _ in range(12):
        took, steps = seconds_of_prompt(pace, 1, fixed=fixed)
    assert took / steps < 3 * 0.01, "and when it is quick again, others wait no longer than before"


def test_few_tokens_that_take_as_long_as_many_are_not_all_that_is_taken() -> None:
    took, _ = seconds_of_prompt(Pace(512), 1, fixed=0.02)
    assert took < 8.0, "parts of 4 tokens would take 20 s"


MUTANTS: dict[str, tuple[Mutant, Any]] = {
    "what was quick once is a measure": ((Pace, "room", "self._steps - self._seen[running.bit_length()] > STALE", "False"),
                                         test_a_machine_that_becomes_slower_while_prompts_follow_each_other),
    "the fewest, whatever they take": ((Pace, "room", "self._steps - self._when.get(SMALLEST, -STALE) < STALE", "False"),
                                       test_few_tokens_that_take_as_long_as_many_are_not_all_that_is_taken),
    "no end to how long one waits for many": ((Pace, "room", ", MOST)", ", 1e9)"), test_however_many_wait_nobody_waits_for_ever),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, test = MUTANTS[mutant]
    assert_caught(monkeypatch, wrong, test, slower=10, fixed=0.005, waiting=31)


def test_with_nobody_under_way_all_is_taken() -> None:
    assert Pace(512).room(0, 3) == 512
    assert Pace(8).room(1, 1) <= 8
