"""What end-to-end tests share: model files by type, our engine in a few lines, and the commands as processes.

Owns starting and ending them.
"""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyggml.model.model import Model
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context
from pyggml.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model_file(request: pytest.FixtureRequest, smollm2: Path) -> Callable[[str], Path]:
    """SmolLM2 with its matrices in this type: the Q4_1 file as it is, others requantised from it by the peer."""

    def find(ftype: str) -> Path:
        if ftype == "Q4_1":
            return smollm2
        path: Path = request.getfixturevalue("peer").quantize_model(smollm2, None, ftype)
        return path

    return find


@pytest.fixture(scope="session")
def tokenize(smollm2: Path) -> Callable[[str], list[int]]:
    model = Model.load(smollm2)
    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    model.close()
    return lambda text: tokenizer.encode(text, add_special=True)


def follow(context: Context, prompt: Sequence[int], forced: Sequence[int] | None, n: int) -> Iterator[np.ndarray]:
    """The prompt in one call, then one token a call, `forced` or the most likely: n rows of logits."""
    logits = context.decode(prompt, n_past=0)[-1]
    for i in range(n):
        yield logits
        if i + 1 < n:
            logits = context.decode([int(logits.argmax()) if forced is None else forced[i]])[-1]


ALONE = 3
"""Texts that are generated one after another, a token a call; others are together, a token of each a call."""


def greedy(model: Model, prompts: Sequence[Sequence[int]], n: int, n_threads: int = 1) -> np.ndarray:
    """The n most likely tokens after each prompt, (prompts, n): of the first ALONE each by itself, of the others in one batch."""
    with contextlib.closing(Context(model, n_ctx=256, n_threads=n_threads)) as context:
        found = [[int(row.argmax()) for row in follow(context, prompt, None, n)] for prompt in prompts[:ALONE]]
    many = prompts[ALONE:]
    seqs = range(len(many))
    with contextlib.closing(Context(model, n_ctx=64 * len(many), n_seq_max=len(many), n_threads=n_threads)) as context:
        rows = np.concatenate(
            [context.decode(Batch.of(prompt, 0, seq)) for seq, prompt in zip(seqs, many, strict=True)]
        )
        steps = [rows.argmax(-1)]
        for i in range(n - 1):
            rows = context.decode(Batch.of_each(steps[-1], [len(prompt) + i for prompt in many], seqs))
            steps.append(rows.argmax(-1))
    return np.concatenate([found, np.stack(steps, 1)])


@pytest.fixture(scope="session", name="greedy")
def greedy_fixture() -> Callable[..., np.ndarray]:
    return greedy


@pytest.fixture(scope="session", name="follow")
def follow_fixture() -> Callable[..., Iterator[np.ndarray]]:
    return follow


class Process:
    """A command of ours as a process; what it prints is gathered from the start, so that no pipe fills up."""

    def __init__(self, module: str, *args: object, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", f"pyggml_cli.{module}", *map(str, args)]
        everything = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=everything)
        self._said = {"out": bytearray(), "err": bytearray()}
        self._more = threading.Condition()
        streams = {"out": self.process.stdout, "err": self.process.stderr}
        self._threads = [threading.Thread(target=self._gather, args=item, daemon=True) for item in streams.items()]
        for thread in self._threads:
            thread.start()

    def _gather(self, name: str, stream: Any) -> None:
        with stream:
            while data := stream.read1(4096):
                with self._more:
                    self._said[name] += data
                    self._more.notify_all()

    @property
    def out(self) -> str:
        return self._said["out"].decode(errors="replace")

    @property
    def err(self) -> str:
        return self._said["err"].decode(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 180) -> "re.Match[str]":
        """Until stdout has this; a process that ends before, or is silent about it, is a failure."""
        with self._more:
            alive = self._more.wait_for(lambda: re.search(pattern, self.out), seconds)
        assert alive, f"{self.process.args}: {pattern!r} did not come: {self.out!r} {self.err!r}"
        found = re.search(pattern, self.out)
        assert found
        return found

    def wait(self, seconds: float = 180) -> int:
        """The exit code, when all that it printed is here. Raises subprocess.TimeoutExpired."""
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(seconds)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.wait()


@dataclass
class Server:
    process: Process
    endpoint: str


@pytest.fixture(scope="session")
def command() -> Iterator[Callable[..., Process]]:
    """Starts `python -m pyggml_cli.MODULE ARGS...`; what still runs at the end is killed."""
    started: list[Process] = []

    def start(module: str, *args: object, **options: Any) -> Process:
        started.append(Process(module, *args, **options))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()


@pytest.fixture(scope="session")
def serve(command: Callable[..., Process]) -> Callable[..., Server]:
    """Starts a pyggml-rpc-server on a free port."""

    def start(*args: object) -> Server:
        process = command("rpc_server", "-p", 0, *args)
        endpoint = process.wait_for(r"endpoint +: (\S+)\n")[1]
        return Server(process, endpoint)

    return start


@pytest.fixture(scope="session")
def two_servers(serve: Callable[..., Server]) -> tuple[Server, Server]:
    """With unequal numbers of threads, which must make no difference."""
    return serve("-t", 2), serve("-t", 1)
