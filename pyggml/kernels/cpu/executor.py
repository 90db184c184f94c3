"""Runs a plan: all threads walk its records together and meet at a barrier where a step asks for it.

Owns the threads' life inside compiled code: waiting, waking, the barrier, the abort flag. Knows no op: a step's kernel
is an address. Waiting threads first spin, then give their time slice away (two teams may share the cores), and
between runs at last sleep on a semaphore.
"""

from pyggml.jit import Spec
from pyggml.steps import SLEEPER, STATUS, STEP, TEAM

WORKER = Spec("executor", "worker", (), "void(u64,i64)")
RUN = Spec("executor", "run", (), "void(u64)")
DISMISS = Spec("executor", "dismiss", (), "void(u64)")

SPINS = 200  # at a barrier, before the time slice is given away
IDLE_SPINS = 3000  # between runs: about 50 us
IDLE_YIELDS = 2000  # then about 1 ms of giving the time slice away, then sleep


def _at(dtype, name):
    return dtype.fields[name][1]


def _walk():
    """-> walk(team, ith, nth): run the team's plan as thread `ith`."""
    from pyggml import simd as v
    from pyggml.kernels.cpu.record import field

    U = v.U
    arrived, passed, stop = (U(_at(TEAM, n)) for n in ("arrived", "passed", "stop"))
    steps_at, count_at, status_at = (U(_at(TEAM, n)) for n in ("steps", "count", "status"))
    sync, kernel = field("sync"), field("kernel")
    size, spins_max = U(STEP.itemsize), SPINS
    abort = U(_at(STATUS, "abort"))

    @v.device
    def barrier(team, nth, status):
        """True = leave the run: the last to arrive reads the abort flag, so that all decide alike."""
        generation = v.atomic_load(team + passed)
        if v.atomic_add(team + arrived, 1) == nth - 1:
            v.atomic_store(team + stop, v.atomic_load(status + abort))
            v.atomic_store(team + arrived, 0)
            v.atomic_store(team + passed, generation + 1)
        else:
            spins = 0
            while v.atomic_load(team + passed) == generation:
                spins += 1
                if spins < spins_max:
                    v.pause()
                else:
                    v.sched_yield()
        return v.atomic_load(team + stop) != 0

    @v.device
    def walk(team, ith, nth):
        step = v.u64_at(team + steps_at)
        count = v.i64_at(team + count_at)
        status = v.u64_at(team + status_at)
        for _ in range(count):
            v.call_kernel(kernel(step), step, ith, nth)
            if sync(step) != 0 and barrier(team, nth, status):
                return
            step += size
        barrier(team, nth, status)

    return walk


def _wake():
    """-> wake(team): count a new run and wake the workers that sleep."""
    from pyggml import simd as v

    U = v.U
    run_at, n_threads = U(_at(TEAM, "run")), U(_at(TEAM, "n_threads"))
    sleeper, first = U(SLEEPER.itemsize), U(TEAM.itemsize)
    semaphore = U(_at(SLEEPER, "semaphore"))

    @v.device
    def wake(team):
        v.atomic_add(team + run_at, 1)
        who = team + first
        for _ in range(1, v.i64_at(team + n_threads)):
            if v.atomic_add(who, 0) != 0:
                v.sem_post(who + semaphore)
            who += sleeper

    return wake


def run():
    """-> run(team): start the workers on the plan in TEAM, work along as thread 0, return when all are done."""
    from pyggml import simd as v

    wake, walk = _wake(), _walk()
    n_threads = v.U(_at(TEAM, "n_threads"))

    def kernel(team):
        nth = v.i64_at(team + n_threads)
        if nth > 1:
            wake(team)
        walk(team, 0, nth)

    return kernel


def dismiss():
    """-> dismiss(team): wake the workers after `quit` was set, and do not wait for them."""
    wake = _wake()

    def kernel(team):
        wake(team)

    return kernel


def worker():
    """-> worker(team, ith): take part in every run until the team's `quit` is set."""
    from pyggml import simd as v

    U = v.U
    walk = _walk()
    run_at, n_threads, quit_at = (U(_at(TEAM, n)) for n in ("run", "n_threads", "quit"))
    sleeper, first = U(SLEEPER.itemsize), U(TEAM.itemsize)
    semaphore = U(_at(SLEEPER, "semaphore"))
    idle_spins, idle_yields = IDLE_SPINS, IDLE_SPINS + IDLE_YIELDS

    def kernel(team, ith):
        me = team + first + sleeper * U(ith - 1)
        seen = 0
        while True:
            waits = 0
            while v.atomic_load(team + run_at) == seen:
                waits += 1
                if waits < idle_spins:
                    v.pause()
                elif waits < idle_yields:
                    v.sched_yield()
                else:
                    v.atomic_add(me, 1)
                    if v.atomic_add(team + run_at, 0) == seen:
                        v.sem_wait(me + semaphore)
                    v.atomic_store(me, 0)
            seen += 1
            if v.i64_at(team + quit_at) != 0:
                return
            walk(team, ith, v.i64_at(team + n_threads))

    return kernel
