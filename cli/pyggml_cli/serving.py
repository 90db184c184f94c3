"""From a command line's values to a model that pyggml_server can serve, and what is told of it. Owns its end, too."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyggml_cli.flags import Values
from pyggml_cli.server_flags import AUTO_SLOTS
from pyggml_cli.speculation import guesses_for

if TYPE_CHECKING:
    from pyggml_server.served import Served
    from pyggml_server.settings import Settings

    from pyggml.model.model import Model
    from pyggml.tokenizer import Tokenizer

Settle = Callable[[Values, "Tokenizer", int], "Settings"]
"""Settings for a tokenizer and so many tokens of a text."""


@contextlib.contextmanager
def opened(values: Values, template: str | None, settle: Settle) -> Iterator[tuple["Served", str]]:
    """The model of these flags, ready to be served, and a line about it. Raises what loading raises."""
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.loading import model_for

    with model_for(values) as model:
        tokenizer = Tokenizer.from_metadata(model.file.metadata)
        if values.embedding or values.rerank:
            with _embedder(values, model, tokenizer, settle) as made:
                yield made
        else:
            with _generator(values, model, tokenizer, template, settle) as made:
                yield made


@contextlib.contextmanager
def _embedder(values: Values, model: "Model", tokenizer: "Tokenizer", settle: Settle) -> Iterator[tuple["Served", str]]:
    from pyggml_server.served import Served

    from pyggml.runtime.embedder import Embedder
    from pyggml_cli.loading import embedder_arguments

    pooling = {"pooling": "rank"} if values.rerank else {}
    embedder = Embedder(model, **{**embedder_arguments(values, model), **pooling})
    try:
        served = Served(model, None, tokenizer, settle(values, tokenizer, embedder.n_ubatch), embedder=embedder)
        yield served, f"{served.name}: texts of up to {embedder.n_ubatch} tokens, pooling {embedder.pooling}"
    finally:
        embedder.close()


@contextlib.contextmanager
def _generator(
    values: Values, model: "Model", tokenizer: "Tokenizer", template: str | None, settle: Settle
) -> Iterator[tuple["Served", str]]:
    from pyggml_server.served import Served
    from pyggml_server.settings import MIB

    from pyggml.runtime.batcher import Batcher
    from pyggml.runtime.checkpoints import CheckpointRule
    from pyggml.runtime.context import Context
    from pyggml.runtime.idle_prompts import IdlePrompts
    from pyggml.runtime.warm_up import warm_up
    from pyggml_cli.loading import context_arguments

    arguments = context_arguments(values, model)
    loras = arguments["adapters"][: len(_loras(values))]  # behind them control vectors
    if values.lora_idle:
        loras = [(adapter, 0.0) for adapter, _ in loras]
        arguments["adapters"] = [*loras, *arguments["adapters"][len(loras) :]]
    auto = values.n_parallel < 1
    context = Context(
        model,
        values.n_ctx,
        n_seq_max=AUTO_SLOTS if auto else values.n_parallel,
        kv_unified=auto if values.kv_unified is None else values.kv_unified,
        **arguments,
    )
    try:
        settings = settle(values, tokenizer, context.n_ctx_seq)
        idle = None if not values.cache_ram else IdlePrompts(None if values.cache_ram < 0 else values.cache_ram * MIB)
        batcher = Batcher(
            context,
            context.n_ubatch,
            shifts=bool(values.context_shift),
            rule=CheckpointRule(values.ctx_checkpoints, values.checkpoint_min_step),
            similarity=values.similarity,
            idle=idle,
            clears=context.kv_unified and values.cache_idle,
            chunk=values.cache_reuse,
        )
        if values.verbose:
            batcher.stored.on_idle = tell
            if batcher.stored.clears:
                tell("prompts of idle slots are kept outside the context: __TEST_TAG_CACHE_IDLE_SLOTS_ENABLED__")
        with guesses_for(values, context) as guesses:
            for place in batcher.places:
                place.drafter = guesses.make(place.seq)
            batcher.pace = guesses.pace if batcher.places[0].drafter is not None else None
            served = Served(model, batcher, tokenizer, settings, template, loras, small=guesses.small)
            if values.warmup:
                if guesses.small is not None:
                    warm_up(guesses.small)
                warm_up(context, drafts=batcher.pace is not None)
            yield served, _slots(served.name, context)
    finally:
        context.close()


def _loras(values: Values) -> list[tuple[str, float]]:
    return [one for some in values.lora for one in some]


def tell(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def _slots(name: str, context: Any) -> str:
    shared = "sharing" if context.kv_unified else "each with"
    n = context.n_ctx if context.kv_unified else context.n_ctx_seq
    return f"{name}: {context.n_seq_max} slots, {shared} a context of {n} tokens"
