"""The one thread that computes: it owns the context and its batcher, takes texts from a queue and tells what became of them.

Owns the queue, who is next, and the counters. Other threads hand in texts and calls; what came of them goes to `post`,
once a step. Without work the thread sleeps.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pyggml.errors import PyggmlError
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.logprobs import TokenLogprobs
from pyggml.runtime.places import Place
from pyggml.runtime.sequence import Finish, Piece
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.stops import partial_character
from pyggml_server.errors import RequestError, without_places
from pyggml_server.pace import Pace

log = logging.getLogger("pyggml.server")
T = TypeVar("T")
ENDING = "the server is ending"
FAILED = "the server has failed; its log says more"
LAST_STEP, LAST_WAIT, AGAIN = 5.0, 1.0, 0.1  # seconds


class Progress(NamedTuple):
    """How far a prompt of `total` tokens is: `cached` were there, `processed` are there now, `seconds` of computing."""

    total: int
    cached: int
    processed: int
    seconds: float


class Update(NamedTuple):
    """What a step brought to a text: bytes that can no longer change, tokens and their log-probabilities, why it ended; or how far
    its prompt is."""

    data: bytes
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finish: Finish | None
    error: Exception | None = None
    progress: Progress | None = None

    @property
    def text(self) -> str:
        """The bytes as a chat shows them: without a character that the answer's end has cut, as llama-server does it
        (tools/server/server-context.cpp: process_token)."""
        cut = 0 if self.finish is None else partial_character(self.data)
        return self.data[: len(self.data) - cut].decode("utf-8", "replace")


class Task:
    """A text and who waits for it. `deliver` is called by whoever `post` hands the update to; `tells`: it is told how far the
    prompt is; `completion`: the answer's id that clients know; `controlled`: its reasoning may be ended by that."""

    def __init__(
        self,
        text: Text,
        deliver: Callable[[Update], None],
        client: str = "",
        tells: bool = False,
        completion: str = "",
        controlled: bool = False,
    ) -> None:
        self.text, self.deliver, self.client = text, deliver, client
        self.completion, self.controlled = completion, controlled
        self._told = -1 if tells else len(text.tokens)  # tokens of the prompt
        self._sent = self._sent_logprobs = 0

    def update(self, pieces: Sequence[Piece]) -> Update:
        """What is new since the last one, with the pieces of a step: several where guesses were right."""
        text = self.text
        settled = len(text.data) if text.finish is not None else pieces[-1].settled if pieces else self._sent
        data = bytes(text.data[self._sent : settled])
        self._sent = max(self._sent, settled)
        logprobs = text.logprobs[self._sent_logprobs :]
        self._sent_logprobs = len(text.logprobs)
        tokens = [piece.token for piece in pieces if piece.finish is not Finish.EOG]
        return Update(data, tokens, logprobs, text.finish, text.error)

    def prompt_updates(self) -> list[Update]:
        """How far the prompt is, if that is to be told and has changed: first what was there before anything was computed."""
        text = self.text
        found: list[Update] = []
        if self._told >= text.n_prompt or text.seq < 0 or text.finish is Finish.FAILED:
            return found
        done = text.n_prompt if text.ends or text.finish else text.n_prompt - len(text.pending)
        for n, seconds in ((text.n_reused, 0.0), (done, text.timings.prompt)):
            if n > self._told:
                self._told = n
                progress = Progress(text.n_prompt, text.n_reused, n, seconds)
                found.append(Update(b"", [], [], None, None, progress))
        return found


def cannot(why: str) -> str:
    """What clients are told while nothing can be computed."""
    return f"the model cannot be computed now: {without_places(why)}"


Post = Callable[[list[tuple[Task, Update]]], None]


@dataclass
class Counters:
    """Since the start; seconds are of work."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    reused_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    busy: int = 0  # slots, summed over the steps
    largest_prompt: int = 0
    drafts: int = 0
    drafted: int = 0
    draft_kept: int = 0
    told: "Counters | None" = None  # as they were when /metrics was asked last


class Call(NamedTuple):
    """What is to run between two steps, once no text has the place `free`."""

    future: "Future[Any]"
    function: Callable[[], Any]
    free: Place | None

    def run(self, told: Callable[[Exception], Exception]) -> bool:
        """Whether it was its time. `told` says what the caller is told of an error."""
        if self.free is not None and self.free.sequence is not None:
            return self.future.cancelled()
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function())
            except Exception as reason:  # whatever it is: it is the caller's
                self.future.set_exception(told(reason))
        return True


class Engine:
    """`queue_limit`: texts that wait for a slot at most. Call `start` once `post` is set, and `close` at the end. Without a batcher
    no texts are taken, only calls.

    lost        asked why nothing can be computed any more when something went wrong; None: it can
    failed      why the engine has ended by itself, for the log; "" otherwise
    on_failure  told so, on the engine's thread
    """

    def __init__(self, batcher: Batcher | None, queue_limit: int) -> None:
        self.batcher = batcher
        self.places = [] if batcher is None else batcher.places
        self.n_slots = len(self.places)
        self.queue_limit = queue_limit
        self.counters = Counters()
        self.post: Post = lambda updates: None
        self.lost: Callable[[], str | None] = lambda: None
        self.failed = ""
        self.on_failure: Callable[[str], None] = lambda why: log.warning("nothing can be computed any more: %s", why)
        self._pace = Pace(1 if batcher is None else batcher.context.n_ubatch)
        self._changed = threading.Condition()
        self._queues: OrderedDict[str, deque[Task]] = OrderedDict()  # by client; who was served last comes last
        self._calls: list[Call] = []
        self._tasks: dict[Text, Task] = {}  # those that the batcher has
        self._closing = ""  # why, once it is
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ---- for other threads

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def check_number(self, n: int) -> None:
        """Raises RequestError where a request has more answers than could ever wait together."""
        if self.batcher is not None and n > (most := self.queue_limit + self.n_slots):
            raise RequestError(f"{n} answers in one request: at most {most} are taken")

    def submit(self, tasks: Sequence[Task]) -> None:
        """Compute these, all or none. Raises RequestError where too many wait."""
        with self._changed:
            if self._closing:
                raise RequestError(self._closing, status=503)
            if self.batcher is None:
                raise RequestError("this server makes embeddings, no text: start one without --embedding", status=501)
            self.check_number(len(tasks))
            waiting = self.n_waiting
            if waiting + len(tasks) > self.queue_limit + max(0, self.n_slots - len(self._tasks)):
                raise RequestError(
                    f"{waiting} requests are waiting, at most {self.queue_limit} may: come again later", status=503
                )
            for task in tasks:
                self._queues.setdefault(task.client, deque()).append(task)
            self._changed.notify()

    def cancel(self, tasks: Sequence[Task]) -> None:
        """Nobody wants the rest of these; their slots are free before the next token."""
        with self._changed:
            for task in tasks:
                queue = self._queues.get(task.client)
                if queue is not None and task in queue:
                    queue.remove(task)
                    if not queue:
                        del self._queues[task.client]
                task.text.cancel()

    def call(self, function: Callable[[], T], free: Place | None = None) -> "Future[T]":
        """Have a function run between two steps, where it may touch the batcher and its context; as soon as no text has the
        place `free`, before another one gets it (server-context.cpp defers such tasks)."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise RequestError(self._closing, status=503)
            self._calls.append(Call(future, function, free))
            self._changed.notify()
        return future

    def under_way(self, completion: str) -> list[Task]:
        """The texts of an answer that have slots; for calls (`call`)."""
        return [task for task in self._tasks.values() if task.completion == completion]

    @property
    def n_waiting(self) -> int:
        """Texts in the queue."""
        return sum(map(len, self._queues.values()))

    @property
    def n_busy(self) -> int:
        """Texts that have a slot."""
        return len(self._tasks)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._tasks and not self._queues

    def close(
        self,
        why: str = ENDING,
        abort: Callable[[], None] = lambda: None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        """End the thread after its present step; texts that are not complete fail, and say why. A step that takes longer than
        LAST_STEP is ended (`abort`): an RPC server that has fallen silent would keep it for minutes. Where that does not help
        within LAST_WAIT, as nothing is computed yet, the devices are given up."""
        with self._changed:
            self._closing = self._closing or why
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(LAST_STEP)
            end = time.monotonic() + LAST_WAIT
            while self._thread.is_alive():
                abort()
                if time.monotonic() > end:
                    give_up()
                self._thread.join(AGAIN)  # between two graphs nobody hears it

    # ---- the thread

    def _run(self) -> None:
        try:
            self._work()
        except Exception:  # a fault of ours: nobody is to wait for ever for a thread that is gone
            log.exception("the engine has failed")
            with self._changed:
                self.failed = self.failed or FAILED
                self._closing = self._closing or FAILED
        for call in self._calls:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(RequestError(self._closing, status=503))
        left = [*self._tasks.values(), *(task for queue in self._queues.values() for task in queue)]
        for task in left:
            task.text.fail(RequestError(self._closing, status=503))
        self._tasks.clear()
        self._queues.clear()
        self.post([(task, task.update(())) for task in left])
        if self.failed:
            self.on_failure(self.failed)

    def _told(self, fault: Exception) -> Exception:
        """What those are told whom it befell. If all is lost, the engine ends."""
        with self._changed:
            if not self._closing and (why := self.lost()):
                self.failed, self._closing = why, cannot(why)
            return RequestError(self._closing, status=503) if self._closing else fault

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._calls or self._queues or self._tasks):
                    self._changed.wait()
                if self._closing:
                    return
                self._admit()
                calls, self._calls = self._calls, []
            later = [call for call in calls if not call.run(self._told)]
            if later:
                with self._changed:
                    self._calls = [*later, *self._calls]
            if self._tasks and not self.failed:
                self._step()

    def _admit(self) -> None:
        """Fill free slots, a text of each client in turn; one that wants a certain slot waits for that."""
        assert self.batcher is not None or not self._queues
        while self._queues and len(self._tasks) < self.n_slots:
            task = self._next()
            if task is None:
                return
            try:
                self.batcher.add(task.text)  # type: ignore[union-attr]
            except PyggmlError as reason:
                task.text.fail(self._told(reason))
                self.post([(task, task.update(()))])
                continue
            self._tasks[task.text] = task

    def _next(self) -> Task | None:
        """The first task, of the client who was served longest ago, whose slot is free."""
        taken = {text.wants for text in self._tasks if text.wants is not None}
        taken |= {place.seq for place in self.places if place.sequence is not None}
        for client, queue in self._queues.items():
            task = next((one for one in queue if one.text.wants is None or one.text.wants not in taken), None)
            if task is not None:
                queue.remove(task)
                del self._queues[client]
                if queue:
                    self._queues[client] = queue
                return task
        return None

    def _step(self) -> None:
        batcher = self.batcher
        assert batcher is not None
        clock = batcher.clock  # a later step of the same shape needs no new graph
        before = clock()
        running = sum(len(text.pending) == 1 for text in batcher.active)
        room = self._pace.room(running, len(self._tasks) - running)
        context = batcher.context
        if context.kv_unified:  # all that is computed together is one graph's, whose sizes are to be few
            batcher.n_batch = max(context.n_ubatch, running + 1)
            batcher.prompt_room = max(room - running, 1) if room else 0
        else:
            batcher.n_batch, batcher.prompt_room = context.n_ubatch + running, room
        n_prompt = self._prompt_tokens()
        try:
            said = batcher.step()
        except Exception as fault:
            reason = self._told(fault)
            if not isinstance(fault, PyggmlError):
                log.exception("a step failed")
            elif not self._closing:
                log.warning("a step failed: %s", fault)
            for text in (*batcher.active, *batcher.drop()):
                text.fail(reason)
            said = [*batcher.step(), *((text, None) for text in self._tasks if text not in batcher.active)]
        n_prompt = self._prompt_tokens() - n_prompt
        self._pace.took(clock() - before, running, n_prompt)
        self.counters.steps += 1
        self.counters.busy += len(self._tasks)
        pieces: dict[Text, list[Piece]] = {}
        for text, piece in said:
            pieces.setdefault(text, []).extend([] if piece is None else [piece])
        updates = [(task, update) for task in self._tasks.values() for update in task.prompt_updates()]
        for text, its in pieces.items():
            task = self._tasks[text]
            updates.append((task, task.update(its)))
            if text.finish is not None:
                self._count(text)
                with self._changed:
                    del self._tasks[text]
        if updates:
            self.post(updates)

    def _prompt_tokens(self) -> int:
        return sum(text.timings.n_prompt for text in self._tasks)

    def _count(self, text: Text) -> None:
        c, t = self.counters, text.timings
        c.prompt_tokens += t.n_prompt
        c.prompt_seconds += t.prompt
        c.reused_tokens += text.n_reused
        c.tokens += text.n_chosen
        c.seconds += t.eval + t.sample
        c.largest_prompt = max(c.largest_prompt, text.n_prompt)
        c.drafts += text.n_drafts
        c.drafted += text.n_drafted
        c.draft_kept += text.n_kept
