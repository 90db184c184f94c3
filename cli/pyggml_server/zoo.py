"""Several models in one process: which there are, which are loaded, and which one goes where another has no room.

Owns the order of loading and unloading. All but `close` is the event loop's. What llama-server does with a process a
model (tools/server/server-models.cpp) is done with a thread each.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from starlette.applications import Starlette

from pyggml.errors import PyggmlError
from pyggml_server.engine import Post, cannot
from pyggml_server.errors import RequestError, told_of
from pyggml_server.loads import Loads
from pyggml_server.models import Found
from pyggml_server.served import Served
from pyggml_server.settings import Settings

log = logging.getLogger("pyggml.server")
UNLOADED, LOADING, LOADED, UNLOADING = "unloaded", "loading", "loaded", "unloading"

Opening = Callable[[str, Found], AbstractContextManager[Served]]
"""What loads a model of a name, and closes it. Raises PyggmlError, OSError, MemoryError."""


@dataclass
class Entry:
    """A model. `failed` is why it could not be loaded the last time, or could not go on, `used` counts on with each request."""

    name: str
    found: Found
    status: str = UNLOADED
    failed: str = ""
    served: Served | None = None
    app: Starlette | None = None
    users: int = 0
    used: int = 0
    gone: bool = False  # it is listed no more
    lost: bool = False  # what computed it, since it was loaded last
    waiting: int = 0  # requests that wait until it is loaded
    asked: bool = False  # it is to be loaded even if nobody waits for it
    begun: bool = False  # it is being loaded: there is no way back
    loading: "asyncio.Task[None] | None" = None
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        """Whether it takes a place."""
        return self.status != UNLOADED


class Zoo:
    """listed    the models that there are, by name
    opening   loads one; called on a thread, and so is what it returns
    make_app  the application of a model that is loaded
    most      models that are loaded at once at most; 0: any number
    autoload  whether a request loads the model that it names
    """

    def __init__(
        self,
        settings: Settings,
        listed: Callable[[], Mapping[str, Found]],
        opening: Opening,
        make_app: Callable[[Served], Starlette],
        most: int = 4,
        autoload: bool = True,
    ) -> None:
        self.settings, self.most, self.autoload = settings, most, autoload
        self.ending = False
        self.started = int(time.time())
        self._listed, self._opening, self._make_app = listed, opening, make_app
        self._post: Post = lambda updates: None
        self.loads = Loads()
        self._turns = asyncio.Lock()  # who loads or unloads
        self._listing = asyncio.Lock()  # who looks for models
        self._count = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[str, AbstractContextManager[Served]] = {}
        self._closed = False
        self._guard = threading.Lock()  # of these two
        self.entries = {name: Entry(name, found) for name, found in listed().items()}

    # ---- what a server needs (serve.py)

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return all(entry.served is None or entry.served.idle for entry in self.entries.values())

    def start(self, post: Post) -> None:
        """Engines give their updates to `post`. Begins to load what is to be there from the start."""
        self._post = post
        for entry in self.entries.values():
            if entry.found.at_start:
                entry.status = LOADING
                self._begin(entry)

    def close(self) -> None:
        """Close all models; one that is being loaded is closed by its own thread."""
        with self._guard:
            self._closed = True
            left = list(self._open)
        for name in left:
            self._shut(name)

    # ---- requests

    def find(self, name: str, why: str = "", status: int = 400) -> Entry:
        """The model of a name, which may be another name of it. Raises RequestError, with `why`."""
        entry = self.entries.get(name)
        if entry is None:
            entry = next((one for one in self.entries.values() if name in one.found.aliases), None)
        if entry is None:
            raise RequestError(why or f"model '{name[:200]}' not found", status=status, param="model")
        return entry

    async def acquire(self, name: str, autoload: bool | None = None) -> Entry:
        """A model that is loaded and stays so until `release`. Raises RequestError."""
        entry = self.find(name)
        lost = self._look(entry)
        if not (self.autoload if autoload is None else autoload) and (lost or not entry.running):
            raise RequestError("model is not loaded", param="model")
        if entry.status == LOADED and not lost:
            entry.users += 1
        else:
            await self._wait_for(entry)
        entry.unused.clear()
        entry.used = next(self._count)
        return entry

    async def _wait_for(self, entry: Entry) -> None:
        """Until it is loaded, and ours, before others make room for theirs. If nobody waits any more before that has begun, no other
        model has to go for it. Raises RequestError."""
        task = self._wanted(entry)
        entry.waiting += 1
        try:
            await asyncio.shield(task)
        except BaseException:
            if task.done() and not task.cancelled() and task.exception() is None:
                self.release(entry)
            else:
                entry.waiting -= 1
                if not (entry.waiting or entry.asked or entry.begun):
                    task.cancel()
                    entry.loading = None
            raise

    @staticmethod
    def _hand_over(entry: Entry) -> None:
        """Who waited for it has it now."""
        entry.users, entry.waiting = entry.users + entry.waiting, 0
        if entry.users:
            entry.unused.clear()

    def release(self, entry: Entry) -> None:
        """One request less."""
        entry.users -= 1
        if not entry.users:
            entry.unused.set()

    # ---- loading and unloading

    def load(self, name: str) -> None:
        """Begin to. Raises RequestError."""
        entry = self.find(name, "model is not found", 404)
        if entry.running:
            raise RequestError("model is already running", param="model")
        entry.status = LOADING
        self._begin(entry)

    def unload(self, name: str) -> None:
        """Begin to, once its requests have ended. Raises RequestError."""
        entry = self.find(name, "model is not found")
        if not entry.running:
            raise RequestError("model is not running", param="model")
        self._begin_unloading(entry)

    def look(self) -> None:
        """Unload the models that can be computed no more, as far as that is known."""
        for entry in self.entries.values():
            self._look(entry)

    def _look(self, entry: Entry) -> bool:
        """Whether it is loaded and can be computed no more, for which it is then unloaded."""
        if entry.served is not None and (why := entry.served.lost):
            self._lost(entry, entry.served, why)
        return entry.lost and entry.served is not None

    def _lost(self, entry: Entry, served: Served, why: str) -> None:
        if entry.served is not served or entry.lost or self.ending:
            return
        entry.lost, entry.failed, served.away = True, why, cannot(why)
        log.warning("%s cannot be computed: %s; it is unloaded, and loaded again when it is asked for", entry.name, why)
        self._begin_unloading(entry)

    async def reload(self) -> None:
        """Look for models again: new ones are listed, those that are others now unloaded, and those that are gone forgotten, too.
        Raises RequestError where it cannot be found out, and nothing changes."""
        try:
            async with self._listing:  # however many ask
                found = await self.loads.run(self._listed)
        except (PyggmlError, OSError) as reason:
            log.warning("the models cannot be listed: %s", reason)
            raise RequestError("the models cannot be listed; the server's log says more", status=500) from None
        for name, one in found.items():
            entry = self.entries.get(name)
            if entry is None:
                self.entries[name] = Entry(name, one)
                continue
            other, entry.found, entry.gone = entry.found != one, one, False
            if other and entry.running:
                self._begin_unloading(entry)
        for name, entry in list(self.entries.items()):
            if name in found:
                continue
            entry.gone = True
            if entry.running:
                self._begin_unloading(entry)
            else:
                del self.entries[name]

    def _begin(self, entry: Entry) -> None:
        entry.asked = True
        self._wanted(entry)

    def _wanted(self, entry: Entry) -> "asyncio.Task[None]":
        """What loads it, in the order in which models were wanted; one for all who wait."""
        if entry.loading is None or entry.loading.done():
            entry.loading = asyncio.ensure_future(self._loaded(entry))
            entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # entry.failed says it
            self._keep(entry.loading)
        return entry.loading

    def _begin_unloading(self, entry: Entry) -> None:
        served = entry.served

        async def work() -> None:
            async with self._turns:
                if entry.status == LOADED and served in (None, entry.served):
                    await self._unload(entry)
            if entry.gone and self.entries.get(entry.name) is entry:
                del self.entries[entry.name]

        self._keep(asyncio.ensure_future(work()))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _loaded(self, entry: Entry) -> None:
        """Have it loaded, when it is our turn. Raises RequestError."""
        async with self._turns:
            if entry.status == LOADED:
                self._hand_over(entry)
                return
            if entry.gone:
                raise RequestError(f"model '{entry.name}' not found", param="model")
            entry.status = LOADING
            try:
                await self._make_room(entry)
                entry.begun = True
                served = await self.loads.run(self._open_on_thread, entry)
            except RequestError as reason:
                entry.status, entry.failed = UNLOADED, str(reason)
                raise
            except asyncio.CancelledError:
                entry.status = UNLOADED
                raise
            finally:
                entry.asked = entry.begun = False
            entry.app = self._make_app(served)
            entry.served, entry.status, entry.failed = served, LOADED, ""
            entry.used = next(self._count)
            self._watch(entry, served)
            served.start(self._post)
            if entry.lost:
                log.warning("%s is loaded again", entry.name)
            entry.lost = False
            self._hand_over(entry)

    def _watch(self, entry: Entry, served: Served) -> None:
        loop = asyncio.get_running_loop()

        def failed(why: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._lost, entry, served, why)

        served.engine.on_failure = failed

    async def _make_room(self, entry: Entry) -> None:
        """Unload those that were used least recently; of those first who have no requests."""
        while self.most > 0:
            others = [one for one in self.entries.values() if one.status == LOADED and one is not entry]
            if len(others) < self.most:
                return
            await self._unload(min(others, key=lambda one: (one.users > 0, one.used)))

    async def _unload(self, entry: Entry) -> None:
        """Its requests end first, or are cut off where they have only so long; new ones wait until it can be loaded again. Who is
        cancelled meanwhile leaves it loaded."""
        entry.status = UNLOADING
        try:
            if entry.users and not entry.lost:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(entry.unused.wait(), entry.found.patience)
        except asyncio.CancelledError:
            entry.status = LOADED
            raise
        closing = asyncio.ensure_future(self._close(entry))
        self._keep(closing)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _close(self, entry: Entry) -> None:
        if entry.users:
            assert entry.served is not None, "it was loaded"
            await self.loads.run(entry.served.close, entry.served.away or f"model '{entry.name}' is being unloaded")
            await entry.unused.wait()
        await self.loads.run(self._shut, entry.name)
        entry.served, entry.app, entry.status = None, None, UNLOADED

    def _open_on_thread(self, entry: Entry) -> Served:
        manager = self._opening(entry.name, entry.found)
        try:
            served = manager.__enter__()
        except (PyggmlError, OSError, MemoryError) as reason:
            log.warning("%s cannot be loaded: %s", entry.name, " ".join(str(reason).split()) or type(reason).__name__)
            told = told_of(reason, entry.found.path)
            raise RequestError(f"model '{entry.name}' cannot be loaded: {told}", status=500) from None
        except Exception:
            log.exception("%s cannot be loaded", entry.name)
            raise RequestError(
                f"model '{entry.name}' cannot be loaded; the server's log says more", status=500
            ) from None
        with self._guard:
            if not self._closed:
                self._open[entry.name] = manager
                return served
        served.close()
        manager.__exit__(None, None, None)
        raise RequestError("the server is ending", status=503)

    def _shut(self, name: str) -> None:
        with self._guard:
            manager = self._open.pop(name, None)
        served = self.entries[name].served if name in self.entries else None
        if served is not None:
            served.close()
        if manager is not None:
            manager.__exit__(None, None, None)
