"""llama.cpp of protocol 8.0.0 as tests see it: its programs as client and server."""

import contextlib
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from peer import PeerServer, _wait_until_listening
from peer_programs import Programs

QUIET = {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}


class Newest:
    def __init__(self, programs: Programs) -> None:
        self.bin, self.source = programs

    def run(self, name: str, *args: object, timeout: float = 300, **env: str) -> "subprocess.CompletedProcess[str]":
        """A failure shows the end of what it said."""
        done = subprocess.run(
            [str(self.bin / name), *map(str, args)],
            env={**os.environ, **QUIET, **env},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return done

    def run_whole(self, name: str, last: str, *args: object, **env: str) -> tuple["re.Match[str]", str, str]:
        """(what `last` finds at the end of what it says, stdout, stderr). What it says is another thread's work, which at its
        end is not always done, and with 0 all the same: then once more. (Beside four busy processes on two cores, in three of four runs.)"""
        for _ in range(100):
            done = self.run(name, *args, **env)
            if found := re.search(last, done.stdout + done.stderr):
                return found, done.stdout, done.stderr
        raise AssertionError(f"{name} ended without its last line:\n{done.stderr[-4000:]}")

    def perplexity(self, *args: object) -> float:
        """llama-perplexity's last word."""
        last = r"Final estimate: PPL = (\d+\.\d+)"
        found, _, _ = self.run_whole("llama-perplexity", last, *args, "-t", 1, "-dev", "none", "--no-warmup")
        return float(found[1])

    def complete(
        self, model: Path, prompt: str, n: int, *args: object, endpoints: Sequence[str] = (), **env: str
    ) -> tuple[str, str]:
        """(greedy text, log) of llama-completion; with `endpoints` all layers are on these servers."""
        where = ("--rpc", ",".join(endpoints), "-ngl", 99) if endpoints else ("-dev", "none")
        options = (
            "-m",
            model,
            "-p",
            prompt,
            "-n",
            n,
            "--temp",
            0,
            "-no-cnv",
            "-t",
            1,
            "-c",
            512,
            "--no-warmup",
            *where,
        )
        _, text, log = self.run_whole("llama-completion", r"graphs reused = +\d+", *options, *args, **env)
        return text, log

    @contextlib.contextmanager
    def rpc_server(self, n_threads: int = 1) -> Iterator[PeerServer]:
        """A stock server at a free port of 127.0.0.1 that logs each command it serves; killed at the end."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "server.log"
            command = [str(self.bin / "ggml-rpc-server"), "-p", str(port), "-t", str(n_threads), "-d", "CPU"]
            env = {**os.environ, **QUIET, "GGML_RPC_DEBUG": "1"}
            with open(output, "wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=env) as process:
                server = PeerServer(f"127.0.0.1:{port}", process, output)
                try:
                    _wait_until_listening(server, port)
                    yield server
                finally:
                    process.kill()
