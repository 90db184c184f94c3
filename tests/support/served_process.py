"""`pyggml-server` as a process of its own."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

from serving import Client

SCRIPT = "import sys; from pyggml_cli.server import main; sys.exit(main())"


@contextlib.contextmanager
def running(
    *flags: str, script: str = SCRIPT, stderr: IO[str] | None = None
) -> Iterator[tuple["subprocess.Popen[str]", Client]]:
    """The process, which must end with 0 when it was told to, and a client of it."""
    argv = [sys.executable, "-c", script, "--port", "0", *flags]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:"), line
            yield process, Client(line.split()[-1])
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
