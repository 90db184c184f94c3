"""A model of kernels/cpu/executor.py and backend/thread_pool.py, in which every read or write of shared memory is a step of
its own.

It has to be kept as the code is: each label below is a line there. The order of memory accesses is sequential, as those
of the code are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

CALLER = 0


class Broken(AssertionError):
    pass


@dataclass(frozen=True)
class Case:
    """`plans`: for each its steps as (parts, sync). `script`: runs as (plan, alone, whether it is dropped afterwards)."""

    plans: tuple[tuple[tuple[int, bool], ...], ...]
    script: tuple[tuple[int, bool, bool], ...]
    n_workers: int = 1
    aborts: int = 0
    mutant: str = ""


@dataclass
class Thread:
    pc: str
    locals: dict[str, int] = field(default_factory=dict)
    back: tuple[str, ...] = ()  # where `walk`, `wake` return to
    asleep: int = 0
    semaphore: int = 0
    inside: int = -1


@dataclass
class Plan:
    round: int
    freed: bool
    taken: list[int]
    done: list[int]
    begun: list[int]  # what an observer sees: parts begun and ended in this round, and those left out
    ended: list[int]
    left_out: list[int]


@dataclass
class State:
    run: int
    quit: int
    plan: int  # -1 = none
    abort: int
    waiting: int
    aborts_left: int
    at: int  # place in the script
    read: tuple[int, ...]  # plans that Python keeps for workers
    dropped: tuple[int, ...]
    plans: list[Plan]
    threads: list[Thread]


Key = tuple[object, ...]


def freeze(s: State) -> Key:
    return (
        *(s.run, s.quit, s.plan, s.abort, s.waiting, s.aborts_left, s.at, s.read, s.dropped),
        tuple((p.round, p.freed, *map(tuple, (p.taken, p.done, p.begun, p.ended, p.left_out))) for p in s.plans),
        tuple((t.pc, tuple(sorted(t.locals.items())), t.back, t.asleep, t.semaphore, t.inside) for t in s.threads),
    )


def thaw(k: Key) -> State:
    *scalars, plans, threads = k
    return State(
        *scalars,  # type: ignore[arg-type]
        [Plan(r, f, *map(list, lists)) for r, f, *lists in plans],  # type: ignore[attr-defined, call-arg]
        [Thread(pc, dict(names), *rest) for pc, names, *rest in threads],  # type: ignore[attr-defined]
    )


def start(case: Case) -> State:
    plans = [Plan(0, False, *([0] * len(steps) for _ in range(5))) for steps in case.plans]
    threads = [Thread("next")] + [Thread("idle", {"seen": 0}) for _ in range(case.n_workers)]
    return State(0, 0, -1, 0, 0, case.aborts, 0, (), (), plans, threads)


def touch(s: State, plan: int) -> Plan:
    if s.plans[plan].freed:
        raise Broken(f"plan {plan} is read after its memory was given back")
    return s.plans[plan]


def step(case: Case, s: State, i: int) -> bool:
    """Thread i takes one step; False where it cannot, since it sleeps, has ended, or would only look again."""
    t = s.threads[i]
    return LABELS[t.pc](case, s, i, t, t.locals)


Label = Callable[[Case, State, int, Thread, dict[str, int]], bool]
LABELS: dict[str, Label] = {}


def label(f: Label) -> Label:
    LABELS[f.__name__.rstrip("_")] = f
    return f


def go(t: Thread, pc: str) -> bool:
    t.pc = pc
    return True


def call(t: Thread, pc: str, back: str) -> bool:
    t.back = (*t.back, back)
    return go(t, pc)


def ret(t: Thread) -> bool:
    *rest, t.pc = t.back
    t.back = tuple(rest)
    return True


# ---- ThreadPool.run and run()


@label
def next_(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if s.at == len(case.script):
        s.quit = 1
        return go(t, "count_run")
    s.abort = 0
    v["plan"], v["alone"] = case.script[s.at][:2]
    return go(t, "count_round")


@label
def count_round(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    p = touch(s, v["plan"])
    p.round += 1
    p.begun, p.ended, p.left_out = ([0] * len(p.taken) for _ in range(3))
    if v["alone"]:
        return call(t, "round", "hide")
    return go(t, "show")


@label
def show(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    s.plan = v["plan"]
    return go(t, "count_run")


@label
def count_run(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    s.run += 1
    v["who"] = 0
    return call(t, "wake", "end" if s.quit else "begin")


@label
def begin(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return call(t, "round", "hide")


@label
def hide(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if s.plan == v["plan"]:
        s.plan = -1
    return go(t, "over")


@label
def over(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    plan, _, drop = case.script[s.at]
    p = s.plans[plan]
    parts = [n for n, _ in case.plans[plan]]
    if p.begun != p.ended or [a + b for a, b in zip(p.ended, p.left_out, strict=True)] != parts:
        raise Broken(f"run {s.at} is over with {p.ended} of {parts} parts done, {p.begun} begun, {p.left_out} left out")
    if any(p.left_out) and not s.abort:
        raise Broken(f"run {s.at} left out {p.left_out} and was not aborted")
    s.dropped = (*s.dropped, plan) if drop else s.dropped
    inside = {other.inside for other in s.threads}
    s.read = tuple(sorted(r for r in {*s.read, plan} if r in inside and case.mutant != "nothing is kept"))
    for d in s.dropped:
        s.plans[d].freed = d not in s.read
    s.at += 1
    t.locals = {}
    return go(t, "next")


@label
def end(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return False


# ---- walk(): take, wait


@label
def round_(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    v["now"], v["step"], v["mine"] = touch(s, v["plan"]).round, 0, 0
    return go(t, "take")


@label
def take(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    steps = case.plans[v["plan"]]
    if v["step"] == len(steps):
        for name in ("now", "step", "mine"):
            v.pop(name, None)
        return ret(t)
    p = touch(s, v["plan"])
    if p.taken[v["step"]] < v["now"] * steps[v["step"]][0]:
        v["next"] = p.taken[v["step"]]
        return go(t, "look_abort")
    return go(t, "add" if steps[v["step"]][1] and v["mine"] else "wait" if steps[v["step"]][1] else "onward")


@label
def look_abort(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return go(t, "take_rest" if s.abort else "take_one")


@label
def take_rest(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    p, k, found = touch(s, v["plan"]), v["step"], v.pop("next")
    last = v["now"] * case.plans[v["plan"]][k][0]
    if p.taken[k] == found:
        p.taken[k] = last
        p.left_out[k] += last - found
        v["mine"] += last - found
    return go(t, "take")


@label
def take_one(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    p, k, found = touch(s, v["plan"]), v["step"], v.pop("next")
    if case.mutant == "parts are counted, not held against a last one":
        found = p.taken[k]
        p.taken[k] += 1
    elif p.taken[k] != found:
        return go(t, "take")
    else:
        p.taken[k] += 1
    parts = case.plans[v["plan"]][k][0]
    part = found - (v["now"] - 1) * parts
    if not 0 <= part < parts or v["now"] != p.round:
        raise Broken(f"part {part} of {parts} is computed for round {v['now']} in round {p.round}")
    p.begun[k] += 1
    first = max((j + 1 for j in range(k) if case.plans[v["plan"]][j][1]), default=0)
    for j in range(first):
        if p.ended[j] + p.left_out[j] < case.plans[v["plan"]][j][0]:
            raise Broken(f"step {k} begins before step {j} has ended")
    return go(t, "compute")


@label
def compute(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    touch(s, v["plan"]).ended[v["step"]] += 1
    v["mine"] += 1
    return go(t, "take")


def target(case: Case, v: dict[str, int]) -> int:
    steps, k = case.plans[v["plan"]], v["step"]
    first = max((j + 1 for j in range(k) if steps[j][1]), default=0)
    return v["now"] * sum(n for n, _ in steps[first : k + 1])


@label
def add(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    p = touch(s, v["plan"])
    p.done[v["step"]] += v["mine"]
    v["mine"] = 0
    return go(t, "look_waiting" if p.done[v["step"]] == target(case, v) else "wait")


@label
def look_waiting(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if s.waiting == 0 or case.mutant == "nobody is woken":
        return go(t, "wait")
    v["who"] = 0
    return call(t, "wake", "wait")


@label
def wait(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if touch(s, v["plan"]).done[v["step"]] >= target(case, v):
        return go(t, "onward")
    return go(t, "say_waiting")


@label
def onward(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    v["step"] += 1
    return go(t, "take")


@label
def say_waiting(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    s.waiting += 1
    return go(t, "say_asleep")


@label
def say_asleep(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    t.asleep = 1
    return go(t, "sleep" if case.mutant == "sleeps without another look" else "look_again")


@label
def look_again(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return go(t, "sleep" if touch(s, v["plan"]).done[v["step"]] < target(case, v) else "awake")


@label
def sleep(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if not t.semaphore:
        return False
    t.semaphore -= 1
    return go(t, "awake")


@label
def awake(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    t.asleep = 0
    return go(t, "say_not_waiting")


@label
def say_not_waiting(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    s.waiting -= 1
    return go(t, "wait")


@label
def wake(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if v["who"] == len(s.threads):
        del v["who"]
        return ret(t)
    if s.threads[v["who"]].asleep:
        return go(t, "post")
    v["who"] += 1
    return True


@label
def post(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    other = s.threads[v["who"]]
    if other.asleep:
        other.asleep = 0
        other.semaphore += 1
    v["who"] += 1
    return go(t, "wake")


# ---- worker()


@label
def idle(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return go(t, "read_run" if s.run != v["seen"] else "idle_asleep")


@label
def idle_asleep(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    t.asleep = 1
    return go(t, "idle_look")


@label
def idle_look(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return go(t, "idle_sleep" if s.run == v["seen"] else "idle_awake")


@label
def idle_sleep(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if not t.semaphore:
        return False
    t.semaphore -= 1
    return go(t, "idle_awake")


@label
def idle_awake(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    t.asleep = 0
    return go(t, "idle")


@label
def read_run(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    v["seen"] = s.run
    return go(t, "read_quit")


@label
def read_quit(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return go(t, "end" if s.quit else "read_plan")


@label
def read_plan(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    if s.plan < 0:
        return go(t, "idle")
    v["plan"] = s.plan
    return go(t, "enter")


@label
def enter(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    t.inside = v["plan"]
    if case.mutant == "enters without another look":
        return call(t, "round", "leave")
    return go(t, "still_there")


@label
def still_there(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    return call(t, "round", "leave") if s.plan == v["plan"] else go(t, "leave")


@label
def leave(case: Case, s: State, i: int, t: Thread, v: dict[str, int]) -> bool:
    t.inside = -1
    t.locals = {"seen": v["seen"]}
    return go(t, "idle")
