"""Runs a plan: threads walk its records and take part after part of each step, whichever thread comes first.

Owns the threads' life inside compiled code: taking parts, waiting, sleeping, waking, the abort flag. Knows no op: a
step's kernel is an address.

No thread is ever waited for, only parts: a run goes on without threads that the system does not let run, and ends
without them. That is safe because the words that say how far a step is only grow, from run to run. In round r a step of p
parts gives out its numbers (r - 1) p ... r p - 1 and no other, so a thread that is still in round r when the others are
elsewhere finds nothing left to take and nothing to wait for. It may still read the records: it notes in its own THREAD
which plan it is in, and their memory is kept as long as it is (backend/thread_pool.py). tests/backend/test_pool_protocol.py explores
all interleavings of these words.
"""

from pyggml.jit import Spec
from pyggml.steps import PLAN, POOL, STATUS, STEP, THREAD

WORKER = Spec("executor", "worker", (), "void(u64,i64)")
RUN = Spec("executor", "run", (), "void(u64,u64,i64)")
DISMISS = Spec("executor", "dismiss", (), "void(u64)")
SPIN = Spec("executor", "spin", (), "void(i64)")


def _at(dtype, name):
    return dtype.fields[name][1]


def _threads():
    """-> (address_of(pool, i), sleep(me), wake(pool)): each thread's THREAD record, and how it rests.

    Who sleeps says so first and then looks once more for what it waits for; who wakes makes that true first and then
    looks for sleepers. A post too many only makes a thread look again.
    """
    from pyggml import simd as v

    U = v.U
    n_threads, first, size = U(_at(POOL, "n_threads")), U(POOL.itemsize), U(THREAD.itemsize)
    semaphore = U(_at(THREAD, "semaphore"))
    assert _at(THREAD, "asleep") == 0

    @v.device
    def address_of(pool, i):
        return pool + first + size * U(i)

    @v.device
    def wake(pool):
        who = pool + first
        for _ in range(v.i64_at(pool + n_threads)):
            if v.atomic_load(who) != 0 and v.atomic_replace(who, 1, 0):
                v.sem_post(who + semaphore)
            who += size

    @v.device
    def sleep(me):
        v.sem_wait(me + semaphore)
        v.atomic_replace(me, 1, 0)

    return address_of, sleep, wake


def _walk():
    """-> walk(pool, plan, thread): take part in the plan's present round, until all of it is done."""
    from pyggml import simd as v
    from pyggml.kernels.cpu.record import field

    U = v.U
    address_of, sleep, wake = _threads()
    waiting, spins_at = U(_at(POOL, "waiting")), U(_at(POOL, "spins"))
    round_at, steps_at, count_at, status_at = (U(_at(PLAN, n)) for n in ("round", "steps", "count", "status"))
    sync, kernel, parts_of, due = (field(name) for name in ("sync", "kernel", "parts", "due"))
    taken, done, size = U(_at(STEP, "taken")), U(_at(STEP, "done")), U(STEP.itemsize)
    abort = U(_at(STATUS, "abort"))

    @v.device
    def take(step, thread, last, parts, status):
        """Compute what is left of the step. -> number of parts that this thread saw to."""
        mine = 0
        while True:
            next_one = v.atomic_load(step + taken)
            if next_one >= last:
                return mine
            if v.atomic_load(status + abort) != 0:
                if v.atomic_replace(step + taken, next_one, last):  # all the rest, and computed it is not
                    mine += last - next_one
            elif v.atomic_replace(step + taken, next_one, next_one + 1):
                v.call_step(kernel(step), step, next_one - (last - parts), parts, thread)
                mine += 1

    @v.device
    def wait(pool, me, word, target):
        """Until `word` is `target` or more: look, and at last sleep."""
        spins, limit = 0, v.i64_at(pool + spins_at)
        while v.atomic_load(word) < target:
            spins += 1
            if spins < limit:
                v.pause()
                continue
            v.atomic_add(pool + waiting, 1)
            v.atomic_replace(me, 0, 1)
            if v.atomic_load(word) < target:
                sleep(me)
            else:
                v.atomic_replace(me, 1, 0)
            v.atomic_add(pool + waiting, -1)
            spins = 0

    @v.device
    def walk(pool, plan, thread):
        now = v.atomic_load(plan + round_at)
        step, status = v.u64_at(plan + steps_at), v.u64_at(plan + status_at)
        me = address_of(pool, thread)
        mine = 0
        for _ in range(v.i64_at(plan + count_at)):
            parts = parts_of(step)
            mine += take(step, thread, now * parts, parts, status)
            if sync(step) != 0:
                word, target = step + done, now * due(step)
                if mine != 0 and v.atomic_add(word, mine) + mine == target and v.atomic_load(pool + waiting) != 0:
                    wake(pool)
                mine = 0
                wait(pool, me, word, target)
            step += size

    return walk


def run():
    """-> run(pool, plan, alone): compute the plan as thread 0, with the workers' help unless `alone`."""
    from pyggml import simd as v

    U = v.U
    walk = _walk()
    _, _, wake = _threads()
    run_at, plan_at, n_threads = (U(_at(POOL, n)) for n in ("run", "plan", "n_threads"))
    round_at = U(_at(PLAN, "round"))

    def kernel(pool, plan, alone):
        v.atomic_add(plan + round_at, 1)
        if alone == 0 and v.i64_at(pool + n_threads) > 1:
            v.atomic_store(pool + plan_at, v.np.int64(plan))
            v.atomic_add(pool + run_at, 1)
            wake(pool)
        walk(pool, plan, 0)
        v.atomic_replace(pool + plan_at, v.np.int64(plan), 0)

    return kernel


def dismiss():
    """-> dismiss(pool): wake the workers after `quit` was set, and do not wait for them."""
    from pyggml import simd as v

    _, _, wake = _threads()
    run_at = v.U(_at(POOL, "run"))

    def kernel(pool):
        v.atomic_add(pool + run_at, 1)
        wake(pool)

    return kernel


def worker():
    """-> worker(pool, ith): take part in runs until the pool's `quit` is set."""
    from pyggml import simd as v

    U = v.U
    walk = _walk()
    address_of, sleep, _ = _threads()
    run_at, plan_at, quit_at = (U(_at(POOL, n)) for n in ("run", "plan", "quit"))
    inside_at = U(_at(THREAD, "inside"))
    spins_at, yields_at = U(_at(POOL, "idle_spins")), U(_at(POOL, "idle_yields"))

    def kernel(pool, ith):
        me = address_of(pool, ith)
        seen = v.np.int64(0)
        while True:
            waits, spins = 0, v.i64_at(pool + spins_at)
            yields = spins + v.i64_at(pool + yields_at)
            while v.atomic_load(pool + run_at) == seen:
                waits += 1
                if waits < spins:
                    v.pause()
                elif waits < yields:
                    v.sched_yield()
                else:
                    v.atomic_replace(me, 0, 1)
                    if v.atomic_load(pool + run_at) == seen:
                        sleep(me)
                    else:
                        v.atomic_replace(me, 1, 0)
            seen = v.atomic_load(pool + run_at)
            if v.i64_at(pool + quit_at) != 0:
                return
            plan = v.atomic_load(pool + plan_at)
            if plan != 0:
                v.atomic_replace(me + inside_at, 0, plan)
                if v.atomic_load(pool + plan_at) == plan:  # it was not over before this thread had said so
                    walk(pool, U(plan), ith)
                v.atomic_store(me + inside_at, 0)

    return kernel


def spin():
    """-> spin(n): look n times, as a waiting thread does, for how long that takes."""
    from pyggml import simd as v

    def kernel(n):
        for _ in range(n):
            v.pause()

    return kernel
