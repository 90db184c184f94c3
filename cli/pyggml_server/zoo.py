"""Several models in one process: which there are, which are loaded, and which one goes where another has no room.

Owns the order of loading and unloading; must not know how a model is loaded, nor what is asked of it. All but `close` is
the event loop's. What llama-server does with a process a model (tools/server/server-models.cpp) is done with a thread each.
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
from pathlib import Path

from starlette.applications import Starlette

from pyggml.errors import PyggmlError
from pyggml_server.engine import Post
from pyggml_server.errors import RequestError
from pyggml_server.served import Served
from pyggml_server.settings import Settings

log = logging.getLogger("pyggml.server")
UNLOADED, LOADING, LOADED, UNLOADING = "unloaded", "loading", "loaded", "unloading"

Opening = Callable[[str, Path], AbstractContextManager[Served]]
"""What loads a model of a name and a path, and closes it. Raises PyggmlError, OSError, MemoryError."""


@dataclass
class Entry:
    """A model. `failed` is why it could not be loaded the last time, `used` counts on with each request."""

    name: str
    path: Path
    status: str = UNLOADED
    failed: str = ""
    served: Served | None = None
    app: Starlette | None = None
    users: int = 0
    used: int = 0
    gone: bool = False  # its file is
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
        listed: Callable[[], Mapping[str, Path]],
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
        self._turns = asyncio.Lock()  # who loads or unloads
        self._count = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[str, AbstractContextManager[Served]] = {}
        self._closed = False
        self._guard = threading.Lock()  # of these two
        self.entries = {name: Entry(name, path) for name, path in listed().items()}

    # ---- what a server needs (serve.py)

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return all(entry.served is None or entry.served.idle for entry in self.entries.values())

    def start(self, post: Post) -> None:
        """Engines give their updates to `post`."""
        self._post = post

    def close(self) -> None:
        """Close all models; one that is being loaded is closed by its own thread."""
        with self._guard:
            self._closed = True
            left = list(self._open)
        for name in left:
            self._shut(name)

    # ---- requests

    def find(self, name: str) -> Entry:
        """Raises RequestError."""
        if name not in self.entries:
            raise RequestError(f"model '{name[:200]}' not found", param="model")
        return self.entries[name]

    async def acquire(self, name: str, autoload: bool | None = None) -> Entry:
        """A model that is loaded and stays so until `release`. Raises RequestError."""
        entry = self.find(name)
        if not (self.autoload if autoload is None else autoload) and not entry.running:
            raise RequestError("model is not loaded", param="model")
        while entry.status != LOADED:  # it may have gone again before our turn to use it came
            await self._loaded(entry)
        entry.users += 1
        entry.unused.clear()
        entry.used = next(self._count)
        return entry

    def release(self, entry: Entry) -> None:
        """One request less."""
        entry.users -= 1
        if not entry.users:
            entry.unused.set()

    # ---- loading and unloading

    def load(self, name: str) -> None:
        """Begin to. Raises RequestError."""
        if name not in self.entries:
            raise RequestError("model is not found", status=404, param="model")
        entry = self.entries[name]
        if entry.running:
            raise RequestError("model is already running", param="model")
        entry.status = LOADING
        self._begin(entry)

    def unload(self, name: str) -> None:
        """Begin to, once its requests have ended. Raises RequestError."""
        if name not in self.entries:
            raise RequestError("model is not found", param="model")
        if not self.entries[name].running:
            raise RequestError("model is not running", param="model")
        self._begin_unloading(self.entries[name])

    def reload(self) -> None:
        """Look for models again: new ones are listed, and those whose files are gone unloaded and forgotten."""
        found = self._listed()
        for name, path in found.items():
            entry = self.entries.get(name)
            if entry is None:
                self.entries[name] = Entry(name, path)
            elif not entry.running:
                entry.path, entry.gone = path, False
        for name, entry in list(self.entries.items()):
            if name in found:
                continue
            entry.gone = True
            if entry.running:
                self._begin_unloading(entry)
            else:
                del self.entries[name]

    def _begin(self, entry: Entry) -> None:
        async def work() -> None:
            with contextlib.suppress(RequestError):  # entry.failed says it
                await self._loaded(entry)

        self._keep(asyncio.ensure_future(work()))

    def _begin_unloading(self, entry: Entry) -> None:
        async def work() -> None:
            async with self._turns:
                if entry.status == LOADED:
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
                return
            if entry.gone:
                raise RequestError(f"model '{entry.name}' not found", param="model")
            entry.status = LOADING
            try:
                await self._make_room(entry)
                served = await asyncio.to_thread(self._open_on_thread, entry)
            except RequestError as reason:
                entry.status, entry.failed = UNLOADED, str(reason)
                raise
            entry.app = self._make_app(served)
            entry.served, entry.status, entry.failed = served, LOADED, ""
            entry.used = next(self._count)
            served.start(self._post)

    async def _make_room(self, entry: Entry) -> None:
        """Unload those that were used least recently; of those first who have no requests."""
        while self.most > 0:
            others = [one for one in self.entries.values() if one.status == LOADED and one is not entry]
            if len(others) < self.most:
                return
            await self._unload(min(others, key=lambda one: (one.users > 0, one.used)))

    async def _unload(self, entry: Entry) -> None:
        """Its requests end first; new ones wait until it can be loaded again."""
        entry.status = UNLOADING
        if entry.users:
            await entry.unused.wait()
        await asyncio.to_thread(self._shut, entry.name)
        entry.served, entry.app, entry.status = None, None, UNLOADED

    def _open_on_thread(self, entry: Entry) -> Served:
        manager = self._opening(entry.name, entry.path)
        try:
            served = manager.__enter__()
        except (PyggmlError, OSError, MemoryError) as reason:
            told = " ".join(str(reason).split()) or type(reason).__name__
            log.warning("%s cannot be loaded: %s", entry.name, told)
            told = told.replace(str(entry.path), entry.path.name)  # where it lies is nobody's business
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


def listed_in(folder: Path) -> dict[str, Path]:
    """The models of a folder as llama-server names them (common/preset.cpp: load_from_models_dir): files by their names without
    .gguf, folders in it by theirs; of a split model the first part. Raises OSError."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            models = [file for file in sorted(path.iterdir()) if _is_model(file)]
            first = [file for file in models if "-00001-of-" in file.name]
            if models:
                found[path.name] = (first or models)[0]
        elif _is_model(path):
            found[path.name.replace(".gguf", "")] = path
    return found


def _is_model(path: Path) -> bool:
    """Whether it is one of its own, and not a part of another."""
    if not path.name.endswith(".gguf") or not path.is_file():
        return False
    return "mmproj" not in path.name and not path.name.startswith(("mtp-", "dspark-", "dflash-"))
