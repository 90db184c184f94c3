"""pyggml-server in processes that are forked from one which has imported all of it: a start then takes a tenth of a second.

`python forked_servers.py SOCKET` waits there. A client (CLIENT, a program of its own that imports little) sends its arguments, its
environment and its folder, with its stdout and stderr; it ends as the server ends, and passes signals on.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys
import threading

CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys
def forward(number, frame):
    if not child:
        sys.exit(128 + number)  # the server ends with the link
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass
child = 0
signal.signal(signal.SIGTERM, forward)
signal.signal(signal.SIGINT, forward)
argv = sys.argv[1:]
{change}
with socket.socket(socket.AF_UNIX) as link:
    link.connect({path!r})
    data = json.dumps([argv, dict(os.environ), os.getcwd()]).encode()
    fds = array.array("i", [1, 2])
    link.sendmsg([len(data).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    link.sendall(data)
    answers = link.makefile()
    child = int(answers.readline())
    sys.exit(int(answers.readline() or 1))
"""


def serve(path: str) -> None:
    """Fork for each client until standard input ends."""
    import starlette.middleware  # noqa: F401
    import uvicorn.protocols.http.httptools_impl  # noqa: F401
    from pyggml_cli import devices, loading, sampling, server  # noqa: F401
    from pyggml_server import serve, served  # noqa: F401

    from pyggml.runtime import batcher, context, drafts, embedder  # noqa: F401
    from pyggml.tokenizer import Tokenizer  # noqa: F401

    if os.fork() == 0:  # who waits for the end of whoever has started this
        sys.stdin.read()
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(link)
            link.close()


def _attend(link: socket.socket) -> None:
    """Run a server for a client, and tell it how that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, ancillary, _, _ = link.recvmsg(8, 64)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data)
    with link.makefile("rb") as body:
        argv, environment, folder = json.loads(body.read(int.from_bytes(head, "little")))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            sys.argv = ["pyggml-server", *argv]
            from pyggml_cli.server import main

            if environment.get("LLAMA_SERVER_DEBUG_FAKE_TIMING") and _queues(environment):
                _slow_down()
            code = main(argv)
        finally:
            sys.stdout.flush()
            os._exit(code)
    threading.Thread(target=_end_with, args=(link, child), daemon=True).start()
    with contextlib.suppress(OSError):  # the client has gone
        link.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        link.sendall(f"{abs(os.waitstatus_to_exitcode(status))}\n".encode())
    os._exit(0)


def _queues(environment: dict[str, str]) -> bool:
    """Whether the test that runs is about who waits for a model; of a sample, the one that needs it."""
    what = "queue_client_disconnect" if environment.get("ANSWERS_SAMPLE") else "test_router_queue"
    return what in environment.get("PYTEST_CURRENT_TEST", "")


def _slow_down() -> None:
    """As llama-server is where its tests say so (server-models.cpp: debug_fake_timing): a load and each request take 2 s more."""
    import asyncio
    import time
    from typing import Any

    from pyggml_server.zoo import Entry, Zoo

    load, acquire = Zoo._open_on_thread, Zoo.acquire

    def slowly(zoo: Zoo, entry: Entry) -> Any:
        time.sleep(2)
        return load(zoo, entry)

    async def later(zoo: Zoo, name: str, autoload: bool | None = None) -> Entry:
        entry = await acquire(zoo, name, autoload)
        await asyncio.sleep(2)
        return entry

    Zoo._open_on_thread, Zoo.acquire = slowly, later  # type: ignore[method-assign]


def _end_with(link: socket.socket, child: int) -> None:
    """A client that is killed leaves no server behind."""
    with contextlib.suppress(OSError):
        link.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
