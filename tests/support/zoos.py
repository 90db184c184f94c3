"""A server of several tiny models in this process, and what its tests ask of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyggml_server.app import make_app
from pyggml_server.models import Found, listed_in
from pyggml_server.served import Served
from pyggml_server.settings import Settings
from pyggml_server.zoo import Zoo
from serving import Client, serving_at
from text_model import write_text_model

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.sampler import SamplerParams
from pyggml.tokenizer import Tokenizer

WAIT = 60.0
BODY = {"prompt": "hello", "max_tokens": 12, "ignore_eos": True}


def write_models(made: Path) -> Path:
    """Models a, b, c, and what is none."""
    for i, name in enumerate("ab"):
        write_text_model(made / f"{name}.gguf", n_ctx=2048, seed=5 + i)
    (made / "c").mkdir()
    write_text_model(made / "c" / "weights.gguf", n_ctx=2048, seed=9)
    (made / "c" / "mmproj-weights.gguf").write_bytes(b"x")
    (made / "mtp-a.gguf").write_bytes(b"x")
    (made / "notes.txt").write_bytes(b"x")
    (made / "empty").mkdir()
    (made / "broken.gguf").write_bytes(b"GGUF, but not for long")
    return made


class Opened:
    """What was loaded and closed, in order; `before` may delay a load."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.events: list[str] = []
        self.before: Callable[[str], None] = lambda name: None

    @contextlib.contextmanager
    def __call__(self, name: str, found: Found) -> Iterator[Served]:
        self.before(name)
        assert found.path is not None
        with contextlib.closing(Model.load(found.path, cpu=CPUDevice())) as model:
            context = Context(model, 2 * 2048, n_seq_max=2)
            tokenizer = Tokenizer.from_metadata(model.file.metadata)
            settings = Settings(sampling=SamplerParams(temp=0.0), alias=(name,), **self.settings)
            self.events.append(f"+{name}")
            yield Served(model, Batcher(context, context.n_ubatch), tokenizer, settings)
            self.events.append(f"-{name}")
            context.close()


@contextlib.contextmanager
def zoo(
    folder: Path,
    most: int = 2,
    autoload: bool = True,
    special: dict[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> Iterator[tuple[Client, Opened]]:
    """`special`: what is to be true of models, by name."""
    opened, special = Opened(**settings), special or {}

    def listed() -> dict[str, Found]:
        return {name: replace(found, **special.get(name, {})) for name, found in listed_in(folder).items()}

    made = Zoo(Settings(port=0, grace=1.0, **settings), listed, opened, make_app, most, autoload)
    with serving_at(made) as client:
        yield client, opened
    assert sorted(one.removeprefix("+") for one in opened.events if one[0] == "+") == sorted(
        one.removeprefix("-") for one in opened.events if one[0] == "-"
    ), "all that was loaded is closed"


def statuses(client: Client) -> dict[str, str]:
    return {one["id"]: one["status"]["value"] for one in client.get("/v1/models")[1]["data"]}


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def text(client: Client, name: str) -> str:
    answer = client.ok("/v1/completions", {**BODY, "model": name})
    assert answer["model"] == name
    return str(answer["choices"][0]["text"])
