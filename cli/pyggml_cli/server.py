"""`pyggml-server`: serve a model over HTTP, as llama-server does. Its flags are those of server_flags.py.

Owns the step from flags to what pyggml_server serves, and what is told of it: everything goes to stderr but the line that
says where the server listens.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pyggml_cli.about import answered
from pyggml_cli.completion_flags import unescape
from pyggml_cli.descriptors import BESIDE, affordable
from pyggml_cli.entry import run
from pyggml_cli.flags import UsageError, Values, help_text, parse
from pyggml_cli.server_flags import GROUPS, ROWS, VARIABLES
from pyggml_cli.several import Several, of_several
from pyggml_cli.speculation import wanted_types
from pyggml_cli.text_files import read_text

if TYPE_CHECKING:
    from pyggml_server.models import Found
    from pyggml_server.settings import Settings

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
    if answered(values, lambda: help_text("pyggml-server [-m FNAME] [flags]", ABOUT, GROUPS, END, EXAMPLES)):
        return 0
    _check(values)
    return _serve(values, argv)


def _check(values: Values) -> None:
    """What can be known to be wrong before a model is loaded. Raises UsageError."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as reason:
        raise UsageError(f"{reason.name} is missing: pip install 'pyggml[server]'") from None
    if (values.ssl_key is None) != (values.ssl_cert is None):
        raise UsageError("--ssl-key-file and --ssl-cert-file: TLS needs both")
    if several := of_several(values):
        if values.model is not None or values.hf_repo is not None:
            raise UsageError(f"{several} serves several models, -m and -hf one: give one of them")
        if values.alias:
            raise UsageError(f"--alias names one model; those of {several} have names already")
        if values.sleep_after is not None:
            raise UsageError(f"--sleep-idle-seconds: of one model, not of {several}, which unloads the least used")
        if values.models_dir is not None and not os.path.isdir(values.models_dir):
            raise UsageError(f"--models-dir {values.models_dir}: not a folder")
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


def front_settings(values: Values, settings: "Settings") -> "Settings":
    """What is the same for all models."""
    from pyggml_server.settings import MIB

    return replace(
        settings,
        host=values.host,
        port=values.port,
        api_keys=_keys(values),
        api_prefix=values.api_prefix,
        cors_origins=tuple(values.cors_origins or ()),
        cors_methods=values.cors_methods,
        cors_headers=values.cors_headers,
        cors_credentials=values.cors_credentials,
        ssl_key=values.ssl_key,
        ssl_cert=values.ssl_cert,
        ui=values.ui,
        largest_body=values.max_body * MIB,
        body_timeout=values.timeout,
        grace=values.grace,
        most_connections=values.max_connections,
        header_timeout=values.header_timeout,
    )


def settings_of(values: Values, tokenizer: "Tokenizer", n_ctx: int) -> "Settings":
    """How the flags want the server of a loaded model to be. Raises UsageError."""
    from pyggml_server.settings import Settings

    from pyggml_cli.sampling import sampler_params
    from pyggml_cli.template_flags import template_variables

    return replace(
        front_settings(values, Settings()),
        alias=tuple(
            values.alias or ([f"{values.hf_repo.name}:{values.hf_repo.quant}".rstrip(":")] if values.hf_repo else ())
        ),
        tags=tuple(values.tags or ()),
        n_predict=max(-1, values.n_predict),
        n_batch=values.n_batch,
        n_keep=values.keep,
        sampling=sampler_params(values, tokenizer, n_ctx),
        special=values.special,
        cache_prompt=values.cache_prompt,
        stops=tuple(unescape(text) if values.escape else text for text in values.reverse_prompt),
        spm_infill=values.spm_infill,
        reasoning_format=values.reasoning_format,
        reasoning_budget=values.reasoning_budget,
        reasoning_budget_message=values.reasoning_budget_message,
        template_variables=template_variables(values),
        skip_parsing=values.skip_parsing,
        prefill_assistant=values.prefill_assistant,
        metrics=values.metrics,
        slots=values.slots,
        queue_limit=values.queue_limit,
        ping=values.ping,
        normalize=values.normalize,
        verbose=values.verbose,
        slot_folder=values.slot_folder,
    )


def template_of(values: Values) -> str | None:
    """The chat template that flags give, None: the file's. Raises UsageError."""
    if values.chat_template is not None and values.chat_template_file is not None:
        raise UsageError("give one of --chat-template and --chat-template-file")
    return read_text(values.chat_template_file) if values.chat_template_file is not None else values.chat_template


def _serve(values: Values, argv: Sequence[str]) -> int:
    from pyggml_server.listening import LATE

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    values.given["max_connections"] = affordable(values.max_connections, "--max-connections", beside=BESIDE + LATE)
    if of_several(values):
        return _serve_zoo(values, argv)
    return _serve_single(values, template_of(values))


def _serve_single(values: Values, template: str | None) -> int:
    from pyggml_server.app import make_app
    from pyggml_server.serve import serve
    from pyggml_server.served import Served
    from pyggml_server.single import Single

    from pyggml_cli.bus_errors import explain_bus_errors
    from pyggml_cli.loading import compile_progress
    from pyggml_cli.serving import opened

    told: list[str] = []

    @contextlib.contextmanager
    def opening() -> Iterator[Served]:
        with opened(values, template, settings_of) as (served, what):
            told.append(what)
            yield served

    with compile_progress(), explain_bus_errors():
        single = Single(opening, make_app, values.sleep_after)
        try:
            serve(single, lambda address: _ready(told[0], address))
        finally:
            single.close()
    return 0


def _serve_zoo(values: Values, argv: Sequence[str]) -> int:
    from pyggml_server.app import make_app
    from pyggml_server.serve import serve
    from pyggml_server.served import Served
    from pyggml_server.settings import Settings
    from pyggml_server.zoo import Zoo

    from pyggml_cli.bus_errors import explain_bus_errors
    from pyggml_cli.loading import compile_progress
    from pyggml_cli.serving import opened, tell

    several = Several(values, argv, os.environ)

    @contextlib.contextmanager
    def opening(name: str, found: "Found") -> Iterator[Served]:
        own = several.values_of(name, found)
        with opened(own, template_of(own), settings_of) as (served, what):
            tell(what)
            yield served

    zoo = Zoo(
        front_settings(values, Settings()), several.listed, opening, make_app, values.models_max, values.models_autoload
    )
    for note in several.notes:
        tell(note)
    if not zoo.entries:
        raise UsageError(several.nothing)
    at_start = sum(entry.found.at_start for entry in zoo.entries.values())
    if zoo.most and at_start > zoo.most:
        raise UsageError(
            f"{at_start} models have load-on-startup, and --models-max is {zoo.most}: it must be at least as many"
        )
    most = f"at most {zoo.most} loaded at once" if zoo.most else "all of which may be loaded at once"
    what = f"{several.where}: {len(zoo.entries)} models, {most}"
    with compile_progress(), explain_bus_errors():
        serve(zoo, lambda address: _ready(what, address))
    return 0


def _ready(what: str, address: str) -> None:
    print(what, file=sys.stderr)
    print(f"listening on {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
