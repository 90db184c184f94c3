"""How much of prompts a step takes beside texts under way, on a machine of which all is known."""

import pytest
from pyggml_server.pace import SMALLEST, Pace


def steps(pace: Pace, plain: float, token: float, running: int, waiting: int, n: int = 60) -> list[float]:
    """Seconds of each step of a machine that takes `plain` for a token of each text, and `token` for one of a prompt."""
    took = []
    for _ in range(n):
        seconds = plain
        pace.took(seconds, running, 0)
        room = pace.room(running, waiting)
        seconds = plain + token * room
        pace.took(seconds, running, room)
        took.append(seconds)
    return took


@pytest.mark.parametrize("token", [0.0001, 0.0007, 0.002])
def test_a_step_with_a_prompt_takes_less_than_three_times_as_long(token: float) -> None:
    took = steps(Pace(512), 0.005, token, 1, 1)
    longest = max(3 * 0.005, 0.005 + SMALLEST * token)
    assert max(took[5:]) < longest + 1e-9
    assert min(took[5:]) >= 0.005 + token * SMALLEST


def test_more_is_taken_where_more_wait() -> None:
    few, many = (steps(Pace(512), 0.005, 0.0007, 1, waiting)[-1] for waiting in (1, 15))
    assert many > 4 * few


def test_with_nobody_under_way_all_is_taken() -> None:
    assert Pace(512).room(0, 3) == 512
    assert Pace(8).room(1, 1) <= 8
