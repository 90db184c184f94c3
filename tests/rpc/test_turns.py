"""Who is next at a device, and what that leaves the others: by time used, not by who knocks most often."""

import threading
import time

import pytest
from pyggml_rpc.turns import MOST_REMEMBERED, Turns
from waiting import until

from pyggml.errors import ComputeError


def stays() -> bool:
    return False


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """Clients that wait in threads of their own; the test runs their turns one after the other."""

    def __init__(self, places: int = 1) -> None:
        self.clock = Clock()
        self.turns = Turns(places, self.clock)
        self.had: list[str] = []
        self.threads: list[threading.Thread] = []
        self.turns.take("gate", stays)

    def wait(self, *owners: str) -> None:
        for owner in owners:
            before = self.turns.n_waiting
            thread = threading.Thread(target=self._work, args=(owner,))
            thread.start()
            self.threads.append(thread)
            until(lambda n=before: self.turns.n_waiting > n)

    def _work(self, owner: str) -> None:
        self.turns.take(owner, stays)
        self.had.append(owner)
        self.clock.now += 10.0 if owner == "long" else 1.0
        self.turns.give(owner)

    def open(self) -> list[str]:
        self.turns.give("gate")
        for thread in self.threads:
            thread.join(10)
        return self.had


def test_in_the_order_of_coming() -> None:
    queue = Queue()
    queue.wait("a", "b", "c")
    assert queue.open() == ["a", "b", "c"]


def test_many_connections_of_one_client_are_one_client() -> None:
    queue = Queue()
    queue.wait("many", "many", "many", "many", "one")
    assert queue.open() == ["many", "one", "many", "many", "many"]


def test_who_used_little_goes_first() -> None:
    queue = Queue()
    queue.wait("long", "short", "long", "short", "short", "short")
    assert queue.open() == ["long", "short", "short", "short", "short", "long"]


def test_a_pause_saves_nothing_up() -> None:
    """Who comes late begins with what the least served have used: it does not keep the others waiting to catch up."""
    queue = Queue()
    queue.wait(*["a", "b"] * 4)
    assert queue.open() == ["a", "b"] * 4
    queue.had.clear()
    queue.turns.take("gate", stays)
    queue.wait("new", "new", "new", "a", "b")
    assert queue.open().index("b") <= 3


def test_a_client_that_left_waits_no_longer() -> None:
    turns, gone = Turns(), threading.Event()
    turns.take("a", stays)
    failed: list[ComputeError] = []

    def wait() -> None:
        with pytest.raises(ComputeError, match="the client is gone") as caught:
            turns.take("b", gone.is_set)
        failed.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: turns.n_waiting == 1)
    turns.wake()
    time.sleep(0.02)
    assert not failed, "it was only asked whether it is still there"
    gone.set()
    turns.wake()
    thread.join(5)
    assert failed and turns.n_waiting == 0
    turns.give("a")
    with pytest.raises(ComputeError, match="the client is gone"):
        turns.take("b", gone.is_set)
    turns.take("c", stays)
    turns.give("c")


def test_who_overstays_keeps_nobody_waiting() -> None:
    clock = Clock()
    turns = Turns(1, clock, overstay=5.0)
    turns.take("compiles", stays)
    thread = threading.Thread(target=turns.take, args=("b", stays))
    thread.start()
    time.sleep(0.15)
    assert turns.n_waiting == 1
    clock.now = 5.1
    thread.join(5)
    assert not thread.is_alive() and turns.n_waiting == 0
    turns.give("compiles")
    turns.give("b")


def test_no_turn_in_time() -> None:
    turns = Turns()
    turns.take("a", stays)
    with pytest.raises(ComputeError, match="no turn came in time"):
        turns.take("b", stays, 0.02)
    turns.give("a")
    turns.take("b", stays, 0.02)


@pytest.mark.parametrize("places", [1, 3])
def test_never_more_than_there_are_places_nor_two_of_one_owner(places: int) -> None:
    turns, guard, inside, most, twice = Turns(places), threading.Lock(), list[int](), [0], [0]
    served = [0] * 6

    def work(number: int) -> None:
        owner = number % 4
        for _ in range(60):
            turns.take(owner, stays)
            with guard:
                twice[0] += owner in inside
                inside.append(owner)
                most[0] = max(most[0], len(inside))
            time.sleep(0.0001)
            with guard:
                inside.remove(owner)
            turns.give(owner)
            served[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert served == [60] * 6 and most[0] == places and not twice[0]


def test_owners_without_number_are_forgotten() -> None:
    clock = Clock()
    turns = Turns(1, clock)
    for _ in range(3 * MOST_REMEMBERED):
        owner = object()
        turns.take(owner, stays)
        clock.now += 1
        turns.give(owner)
    assert len(turns._used) <= MOST_REMEMBERED + 1
