"""What is served: a model with its tokenizer and template, the engine that computes it, and how the server is set up.

Owns what all routes share.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyggml.backend.base import Device
from pyggml.chat import ChatTemplate
from pyggml.model.lora import Adapter, Applied
from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.drafter import Drafter
from pyggml.runtime.embedder import Embedder
from pyggml.runtime.encoding import why_not
from pyggml.tokenizer import Tokenizer
from pyggml_server.engine import ENDING, Engine, Post, cannot
from pyggml_server.errors import RequestError
from pyggml_server.loads import Loads
from pyggml_server.settings import Settings


class Served:
    """template      a name or Jinja's text instead of the file's
    adapters      LoRA files that were loaded, with their scales
    make_drafter  makes what guesses a text's next tokens, for each text one
    embedder      of a server without a batcher, which makes embeddings and no text
    small         the context of a model that drafters ask
    away          why the model is not in memory and nothing can be computed, as clients are told; "": it is, or it sleeps
    """

    def __init__(
        self,
        model: Model,
        batcher: Batcher | None,
        tokenizer: Tokenizer,
        settings: Settings,
        template: str | None = None,
        adapters: list[tuple[Adapter, float]] | None = None,
        make_drafter: Callable[[], Drafter | None] = lambda: None,
        embedder: Embedder | None = None,
        small: Context | None = None,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self._context = None if batcher is None else batcher.context
        self.embedder, self._small = embedder, small
        self.engine = Engine(batcher, settings.queue_limit)
        self.engine.lost = self._lost
        self.adapters = list(adapters or ())
        self.make_drafter = make_drafter
        self.started = int(time.time())
        self.ending = False
        self.sleeping = False  # not in memory (single.py)
        self.away = ""
        self.loads = Loads()
        self.path = Path(str(model.file.paths[0]))
        self.n_bytes = sum(
            os.path.getsize(path) for path in model.file.paths
        )  # now: files may be removed while they are in use
        self._wanted = template
        self.plain_template = self.template()

    @property
    def idle(self) -> bool:
        """Whether no answer is under way."""
        return self.engine.idle

    def start(self, post: Post) -> None:
        """Begin to work; updates go to `post`."""
        self.engine.post = post
        self.engine.start()

    def close(self, why: str = ENDING) -> None:
        """End after the present step; what is not complete fails, and says why."""
        self.engine.close(why, self._abort, self._give_up)

    def _abort(self) -> None:
        """Give up what is being computed; for any thread."""
        for computing in (self._context, self._small, self.embedder):
            if computing is not None:
                computing.abort()

    def _give_up(self) -> None:
        for device in self._devices:
            device.give_up()

    @property
    def _devices(self) -> list[Device]:
        return [*self.model.devices, *(() if self._small is None else self._small.model.devices)]

    def _lost(self) -> str | None:
        return next((why for device in self._devices if (why := device.lost)), None)

    @property
    def trouble(self) -> str:
        """Why nothing can be computed now, as clients are told; "" where it can."""
        return self.away or (cannot(why) if (why := self.lost) else "")

    @property
    def lost(self) -> str:
        """Why nothing can be computed any more, for the log; "" where nothing is known of that."""
        return self.engine.failed or self._lost() or ""

    @property
    def name(self) -> str:
        """What the model is called in answers: of several names the first of the alphabet, as llama-server has it."""
        return min(self.settings.alias) if self.settings.alias else self.path.name

    @property
    def n_ctx(self) -> int:
        """Tokens that one text can have, prompt and answer."""
        if self._context is None:
            return 0 if self.embedder is None else self.embedder.n_ubatch
        return self._context.n_ctx_seq

    @property
    def rewinds(self) -> bool:
        """Whether what is remembered of a text can go back to any of its tokens."""
        return self._context is None or self._context.memory.rewinds

    @property
    def context(self) -> Context:
        """Raises RequestError where there is none."""
        if self._context is None:
            raise RequestError("this server makes embeddings, no text: start one without --embedding", status=501)
        return self._context

    def applied(self, scales: Mapping[int, float] | None = None) -> tuple[Applied, ...] | None:
        """Adapters that a text is computed with: with these scales, by number, and 0 for the others; None: with the server's own.
        None where there are none."""
        if self._context is None or not self.adapters:
            return None
        own = [adapter for adapter, _ in self.adapters]
        others = [one for one in self._context.adapters if one.adapter not in own]  # control vectors
        wanted = [scale if scales is None else scales.get(i, 0.0) for i, (_, scale) in enumerate(self.adapters)]
        return (*(Applied(adapter, float(scale)) for adapter, scale in zip(own, wanted, strict=True) if scale), *others)

    def template(self, tools: bool = False) -> ChatTemplate:
        """The chat template; with `tools` the one that the file has for them. Raises ChatError."""
        return ChatTemplate.choose(self.model.file.metadata, self.tokenizer, self._wanted, tools)

    def check_prompt(self, tokens: list[int]) -> None:
        """Raises RequestError for a prompt that cannot be answered."""
        if not tokens:
            raise RequestError("the prompt is empty, and the model has no BOS token to begin with", param="prompt")
        if len(tokens) > self.n_ctx - 1:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, which exceeds the available context size of {self.n_ctx} tokens, one of "
                "them for the answer",
                param="prompt",
                kind="exceed_context_size_error",
                n_prompt_tokens=len(tokens),
                n_ctx=self.n_ctx,
            )
        if self._context is not None and self._context.encodes and (why := why_not(self._context, len(tokens))):
            raise RequestError(why, param="prompt")

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's."""
        return self.model.file.metadata
