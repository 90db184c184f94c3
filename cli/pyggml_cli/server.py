"""`pyggml-server`: serve a model over HTTP, as llama-server does. Its flags are those of server_flags.py.

Owns the step from flags to what pyggml_server serves, and what is told of it: everything goes to stderr but the line that
says where the server listens.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyggml_cli.completion_flags import unescape
from pyggml_cli.entry import run
from pyggml_cli.flags import UsageError, Values, help_text, parse, show_notes
from pyggml_cli.server_flags import AUTO_SLOTS, GROUPS, ROWS, VARIABLES
from pyggml_cli.speculation import drafters_for, wanted_types
from pyggml_cli.text_files import read_text

if TYPE_CHECKING:
    from pyggml_server.settings import Settings

    from pyggml.model.model import Model
    from pyggml.tokenizer import Tokenizer

ABOUT = (
    "Serve a model over HTTP to many users at once: the routes of OpenAI's API (/v1/chat/completions, /v1/completions, "
    "/v1/models) and llama-server's own."
)
END = (
    "Flags and meanings are llama-server's, with two deliberate differences: pages of other origins are refused unless "
    "--cors-origins names them, and there is a limit to how many requests wait. docs/flags.md lists all flags."
)
EXAMPLES = (
    ("pyggml-server", "serve the default model to programs on this machine"),
    (
        "pyggml-server -m model.gguf -np 16 --api-key-file keys.txt --host 192.168.0.2",
        "to those in a network who have a key",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Ctrl-C and SIGTERM end it with 0 once it listens; other exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, os.environ, VARIABLES)
    if values.help:
        print(help_text("pyggml-server [-m FNAME] [flags]", ABOUT, GROUPS, END, EXAMPLES), end="")
        return 0
    if values.version:
        from pyggml_cli.cli import version

        print(version())
        return 0
    if values.list_devices:
        from pyggml_cli.devices import listing, local_devices, offload_devices

        print(listing([*local_devices(), *offload_devices(values.rpc, rpc_timeout=values.rpc_timeout)]))
        return 0
    show_notes(values)
    _check(values)
    return _serve(values)


def _check(values: Values) -> None:
    """What can be known to be wrong before a model is loaded. Raises UsageError."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as reason:
        raise UsageError(f"{reason.name} is missing: pip install 'pyggml[server]'") from None
    if (values.ssl_key is None) != (values.ssl_cert is None):
        raise UsageError("--ssl-key-file and --ssl-cert-file: TLS needs both")
    if values.slot_folder is not None and not os.path.isdir(values.slot_folder):
        raise UsageError(f"--slot-save-path {values.slot_folder}: not a folder")
    wanted_types(values)


def _keys(values: Values) -> tuple[str, ...]:
    found = [key for some in values.api_key for key in some]
    if values.api_key_file is not None:
        lines = [line.strip() for line in read_text(values.api_key_file).splitlines()]
        if not any(lines):
            raise UsageError(f"--api-key-file {values.api_key_file}: there is no key in it")
        found += [line for line in lines if line]
    return tuple(found)


def _settings(values: Values, tokenizer: "Tokenizer", n_ctx: int) -> "Settings":
    from pyggml_server.settings import MIB, Settings

    from pyggml_cli.sampling import sampler_params
    from pyggml_cli.template_flags import template_variables

    return Settings(
        host=values.host,
        port=values.port,
        alias=tuple(values.alias or ()),
        tags=tuple(values.tags or ()),
        api_keys=_keys(values),
        api_prefix=values.api_prefix,
        cors_origins=tuple(values.cors_origins or ()),
        cors_methods=values.cors_methods,
        cors_headers=values.cors_headers,
        cors_credentials=values.cors_credentials,
        ssl_key=values.ssl_key,
        ssl_cert=values.ssl_cert,
        n_predict=max(-1, values.n_predict),
        sampling=sampler_params(values, tokenizer, n_ctx),
        special=values.special,
        cache_prompt=values.cache_prompt,
        stops=tuple(unescape(text) if values.escape else text for text in values.reverse_prompt),
        spm_infill=values.spm_infill,
        reasoning_format=values.reasoning_format,
        template_variables=template_variables(values),
        skip_parsing=values.skip_parsing,
        prefill_assistant=values.prefill_assistant,
        metrics=values.metrics,
        slots=values.slots,
        ui=values.ui,
        queue_limit=values.queue_limit,
        largest_body=values.max_body * MIB,
        body_timeout=values.timeout,
        ping=values.ping,
        grace=values.grace,
        normalize=values.normalize,
        verbose=values.verbose,
        slot_folder=values.slot_folder,
        most_connections=values.max_connections,
        header_timeout=values.header_timeout,
    )


def _template(values: Values) -> str | None:
    if values.chat_template is not None and values.chat_template_file is not None:
        raise UsageError("give one of --chat-template and --chat-template-file")
    return read_text(values.chat_template_file) if values.chat_template_file is not None else values.chat_template


def _serve(values: Values) -> int:
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.loading import compile_progress, model_for

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    template = _template(values)
    with compile_progress(), model_for(values) as model:
        tokenizer = Tokenizer.from_metadata(model.file.metadata)
        if values.embedding or values.rerank:
            return _serve_embeddings(values, model, tokenizer)
        return _serve_model(values, model, tokenizer, template)


def _serve_embeddings(values: Values, model: "Model", tokenizer: "Tokenizer") -> int:
    from pyggml_server.serve import serve
    from pyggml_server.served import Served

    from pyggml.runtime.embedder import Embedder
    from pyggml_cli.loading import embedder_arguments

    pooling = {"pooling": "rank"} if values.rerank else {}
    embedder = Embedder(model, **{**embedder_arguments(values, model), **pooling})
    try:
        settings = _settings(values, tokenizer, embedder.n_ubatch)
        served = Served(model, None, tokenizer, settings, embedder=embedder)
        what = f"{served.name}: texts of up to {embedder.n_ubatch} tokens, pooling {embedder.pooling}"
        serve(served, lambda address: _ready(what, address))
    finally:
        embedder.close()
    return 0


def _serve_model(values: Values, model: "Model", tokenizer: "Tokenizer", template: str | None) -> int:
    from pyggml_server.serve import serve
    from pyggml_server.served import Served
    from pyggml_server.settings import MIB

    from pyggml.runtime.batcher import Batcher
    from pyggml.runtime.checkpoints import CheckpointRule
    from pyggml.runtime.context import Context
    from pyggml.runtime.idle_prompts import IdlePrompts
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
        settings = _settings(values, tokenizer, context.n_ctx_seq)
        idle = None if not values.cache_ram else IdlePrompts(None if values.cache_ram < 0 else values.cache_ram * MIB)
        batcher = Batcher(
            context,
            context.n_ubatch,
            shifts=bool(values.context_shift),
            n_keep=max(0, values.keep),
            rule=CheckpointRule(values.ctx_checkpoints, values.checkpoint_min_step),
            similarity=values.similarity,
            idle=idle,
            clears=context.kv_unified and values.cache_idle,
        )
        if values.verbose:
            batcher.stored.on_idle = _tell
            if batcher.stored.clears:
                _tell("prompts of idle slots are kept outside the context: __TEST_TAG_CACHE_IDLE_SLOTS_ENABLED__")
        with drafters_for(values, context) as make_drafter:
            for place in batcher.places:
                place.drafter = make_drafter(place.seq)
            served = Served(model, batcher, tokenizer, settings, template, loras)
            if values.warmup:
                _warm_up(context)
            serve(served, lambda address: _ready(_slots(served.name, context), address))
    finally:
        context.close()
    return 0


def _loras(values: Values) -> list[tuple[str, float]]:
    return [one for some in values.lora for one in some]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _warm_up(context: Any) -> None:
    """Have the kernels compiled and the weights read once."""
    from pyggml import jit

    jit.wait(context.prepare(min(context.n_ubatch, context.n_ctx_seq - 1)))
    context.decode([0])
    context.clear()


def _slots(name: str, context: Any) -> str:
    shared = "sharing" if context.kv_unified else "each with"
    n = context.n_ctx if context.kv_unified else context.n_ctx_seq
    return f"{name}: {context.n_seq_max} slots, {shared} a context of {n} tokens"


def _ready(what: str, address: str) -> None:
    print(what, file=sys.stderr)
    print(f"listening on {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
