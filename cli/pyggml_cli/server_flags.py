"""The flags of pyggml-server: llama-server's (common/arg.cpp, LLAMA_EXAMPLE_SERVER), row by row.

Owns those that are carried out here and not in the completion tool, and what becomes of all others: those of
completion_flags.py that mean the same are taken from there.
"""

from pyggml_cli import completion_flags, embedding, environment, other_flags, speculation, template_flags
from pyggml_cli.flags import Flag, Ignored, Refused, Row, comma_separated, filename, number, seconds, whole

AUTO_SLOTS = 4  # tools/server/server.cpp: of -np -1, over one KV memory


def keys(text: str) -> list[str]:
    """`--api-key`: one or several; an empty one would let everybody in."""
    found = [key.strip() for key in text.split(",")]
    if not all(found):
        raise ValueError("must be keys, comma-separated, none of them empty")
    return found


def slots(text: str) -> int:
    """`--parallel`."""
    if not (number := whole(-1, 256)(text)):
        raise ValueError("must be from 1 to 256, or -1")
    return number


def hosts(text: str) -> str:
    """`--host`: one or several."""
    if not all(host.strip() for host in text.split(",")):
        raise ValueError("must be addresses, comma-separated, none of them empty")
    return text


def sleep_after(text: str) -> float | None:
    """`--sleep-idle-seconds`: -1 is never."""
    return None if text == "-1" else seconds(0.1)(text)


def share(text: str) -> float:
    """`--slot-prompt-similarity`: a share."""
    value = number(text)
    if not 0 <= value <= 1:
        raise ValueError("must be from 0 to 1")
    return value


def prefix(text: str) -> str:
    """`--api-prefix`: a path, without the slash at its end."""
    if text and not text.startswith("/"):
        raise ValueError("must begin with /")
    return text.rstrip("/")


def ping(text: str) -> float:
    """`--sse-ping-interval`: seconds; -1 is never."""
    return 0.0 if text == "-1" else seconds()(text)


SERVER: list[Row] = [
    Flag(("--host",), "host", "addresses to listen on, comma-separated (127.0.0.1)", hosts, "HOST,...", "127.0.0.1"),
    Flag(("--port",), "port", "port to listen on; 0: any free one (9931)", whole(0, 65535), "PORT", 9931),
    Flag(("--api-prefix",), "api_prefix", "path that all routes begin with (none)", prefix, "PREFIX", ""),
    Flag(("-a", "--alias"), "alias", "names of the model, comma-separated (its file's)", comma_separated, "NAME,..."),
    Flag(("--tags",), "tags", "tags of the model, comma-separated; told by /v1/models", comma_separated, "TAG,..."),
    Flag(("-to", "--timeout"), "timeout", "seconds for the whole body of a request to arrive (3600)", seconds(0.1), "SECONDS", 3600.0),
    Flag(("--sse-ping-interval",), "ping", "seconds without a token after which a stream gets a comment; -1: never (30)", ping,
         "SECONDS", 30.0),
    Flag(("--queue-limit",), "queue_limit", "requests that wait for a slot at most; further ones get 503 (256)", whole(0), "N", 256),
    Flag(("--max-body",), "max_body", "MiB of a request at most (32)", whole(1, 4096), "MIB", 32),
    Flag(("--max-connections",), "max_connections", "connections at once; further ones get 503 (1024)", whole(1), "N", 1024),
    Flag(("--header-timeout",), "header_timeout", "seconds for the head of a request to arrive (10)", seconds(0.1), "SECONDS", 10.0),
    Flag(("-v", "--verbose", "--log-verbose"), "verbose", "answers tell what they were made of (__verbose), and what becomes of prompts goes "
         "to stderr", default=False),
    Flag(("--sleep-idle-seconds",), "sleep_after", "seconds without a request after which the model leaves memory, until the next one; -1: never (-1)",
         sleep_after, "SECONDS", None),
    Flag(("--grace",), "grace", "seconds that answers under way get when the server is asked to end (10)", seconds(), "SECONDS", 10.0),
    Flag(("--metrics",), "metrics", "offer /metrics", default=False),
    Flag(("--ui", "--webui"), "ui", "offer a page for browsers at / (on)", default=True, off=("--no-ui", "--no-webui")),
    Flag(("--slots",), "slots", "offer /slots (on)", default=True, off=("--no-slots",)),
]  # fmt: skip

ZOO: list[Row] = [
    Flag(("--models-dir",), "models_dir", "serve all models of a folder, each loaded when a request names it (`model`) or /models/load "
         "does; a model of several files in a folder of its own", filename, "PATH"),
    Flag(("--models-preset",), "models_preset", "INI file that says which models there are, or with which flags those of the folder and the caches are "
         "loaded: [NAME] and lines of KEY = VALUE, keys as flags without their dashes; [*] is for all", filename, "FNAME"),
    Flag(("--models-cache",), "models_cache", "serve the models that were fetched before with -hf, here or by llama.cpp (on with --models-preset)",
         default=None, off=("--no-models-cache",)),
    Flag(("--models-max",), "models_max", "models that are loaded at once at most: then the one that was used least recently goes, once "
         "its requests have ended; 0: no limit (4)", whole(0), "N", 4),
    Flag(("--models-autoload",), "models_autoload", "load the model that a request names (on)", default=True, off=("--no-models-autoload",)),
]  # fmt: skip

SECURITY: list[Row] = [
    Flag(("--api-key",), "api_key", "keys of which a request must bring one, comma-separated; may be given again", keys, "KEY,...", many=True),
    Flag(("--api-key-file",), "api_key_file", "file with such keys, one a line", filename, "FNAME"),
    Flag(("--ssl-key-file",), "ssl_key", "private key of TLS, PEM", filename, "FNAME"),
    Flag(("--ssl-cert-file",), "ssl_cert", "its certificate, PEM", filename, "FNAME"),
    Flag(("--cors-origins",), "cors_origins", "origins of pages that may use the server, comma-separated; *: any (none)", comma_separated,
         "ORIGIN,..."),
    Flag(("--cors-methods",), "cors_methods", "methods that they may use (GET, POST, DELETE, OPTIONS)", str, "METHODS",
         "GET, POST, DELETE, OPTIONS"),
    Flag(("--cors-headers",), "cors_headers", "headers that they may send (*)", str, "HEADERS", "*"),
    Flag(("--cors-credentials",), "cors_credentials", "whether they may send cookies and keys (on)", default=True,
         off=("--no-cors-credentials",)),
]  # fmt: skip

SLOTS: list[Row] = [
    Flag(("-np", "--parallel"), "n_parallel", f"texts that are computed at once; -1: {AUTO_SLOTS}, which share the context (-1)", slots,
         "N", -1),
    Flag(("-kvu", "--kv-unified"), "kv_unified", "let all slots share the context, and each grow while there is room (on with -np -1)",
         default=None, off=("-no-kvu", "--no-kv-unified")),
    Flag(("--cache-prompt",), "cache_prompt", "do not compute what a slot has of a prompt (on)", default=True, off=("--no-cache-prompt",)),
    Flag(("-sps", "--slot-prompt-similarity"), "similarity", "what share of a prompt a free slot must have to be taken for that; else the one "
         "that was free longest is (0.1)", share, "SHARE", 0.1),
    Flag(("-cram", "--cache-ram"), "cache_ram", "MiB of prompts of ended answers that are kept when their slots are taken; -1: any; 0: none (8192)",
         whole(-1), "MIB", 8192),
    Flag(("--cache-idle-slots",), "cache_idle", "with --kv-unified: put what idle slots have there when an answer begins, so that it has room (on)",
         default=True, off=("--no-cache-idle-slots",)),
    Flag(("--cache-reuse",), "cache_reuse", "so many tokens in a row that stand further back in a slot than in a prompt are moved, not computed, "
         "although what is before them has changed; 0: none (0)", whole(0), "N", 0),
    Flag(("--slot-save-path",), "slot_folder", "folder of files that /slots/N?action=save and restore write and read", filename, "FOLDER"),
    Flag(("--warmup",), "warmup", "compute a token before listening, so that all kernels are there (on)", default=True, off=("--no-warmup",)),
    Flag(("--spm-infill",), "spm_infill", "/infill: suffix, prefix, middle instead of prefix, suffix, middle", default=False),
    Flag(("--lora-init-without-apply",), "lora_idle", "load LoRA adapters, but use them only once /lora-adapters says so", default=False),
]  # fmt: skip

CHAT: list[Row] = [
    *template_flags.VARIABLES,
    Flag(("--prefill-assistant",), "prefill_assistant", "where the last message is the assistant's, go on with it (on)", default=True,
         off=("--no-prefill-assistant",)),
]  # fmt: skip

_TEXT = (
    "n_predict",
    "context_shift",
    "ctx_checkpoints",
    "checkpoint_min_step",
    "keep",
    "reverse_prompt",
    "ignore_eos",
    "special",
    "escape",
)
TEXT: list[Row] = [row for row in completion_flags.TEXT if isinstance(row, Flag) and row.dest in _TEXT]
TEMPLATE: list[Row] = [
    row
    for row in completion_flags.CHAT
    if isinstance(row, Flag) and row.dest in ("chat_template", "chat_template_file")
]
LISTS: list[Row] = [row for row in completion_flags.GENERAL if isinstance(row, Flag)]

GUESSES: list[Row] = [row for row in speculation.FLAGS if isinstance(row, Flag)]

NO_DIFFERENCE: list[Row] = [
    Ignored(("-cb", "--cont-batching"), off=("-nocb", "--no-cont-batching")),
    Ignored(("--threads-http",), 1, parse=whole(-1)),
    Ignored(("--kv-unified-per-slot",), 1, parse=whole(0)),
    Ignored(("--reuse-port",)),
    Ignored(("--perf", "--show-timings"), off=("--no-perf", "--no-show-timings")),
    Ignored(("--mtmd-batch-max-tokens",), 1, parse=whole()),
]

_PAGE, _AGENT = (
    "the page is part of the package, and has its settings in the browser",
    "there are no agents, and tools are the client's to run",
)
NOT_HERE: list[Row] = [
    *(Refused((name,), 1, why=_PAGE) for name in ("--ui-config", "--webui-config", "--ui-config-file", "--webui-config-file", "--path")),
    Refused(("--ui-mcp-proxy", "--webui-mcp-proxy"), why=_AGENT, off=("--no-ui-mcp-proxy", "--no-webui-mcp-proxy")),
    Refused(("-ag", "--agent"), why=_AGENT, off=("-no-ag", "--no-agent")),
    *(Refused((name,), 1, why=_AGENT) for name in ("--tools", "--tools-runtime", "--mcp-servers-config", "--mcp-servers-json")),
    Refused(("--media-path",), 1, why=other_flags.TEXT_ONLY),
    Refused(("--props",), why="properties are set by flags"),
    *(Refused((f"--fim-qwen-{size}",), why=other_flags.DOWNLOADS) for size in (
        "1.5b-default", "3b-default", "7b-default", "7b-spec", "14b-spec", "30b-default")),
]  # fmt: skip

EMBEDDINGS: list[Row] = [
    Flag(("--embedding", "--embeddings"), "embedding", "make embeddings (/v1/embeddings), and no text", default=False),
    Flag(("--rerank", "--reranking"), "rerank", "the same, with --pooling rank, for /v1/rerank", default=False),
    *(row for row in embedding.EMBEDDINGS if isinstance(row, Flag) and row.dest in ("pooling", "attention", "normalize")),
]  # fmt: skip

GROUPS = {
    "general": LISTS,
    "server": SERVER,
    "several models": ZOO,
    "security": SECURITY,
    "slots": SLOTS,
    "model": completion_flags.MODEL,
    "answers": TEXT,
    "chat": TEMPLATE + CHAT,
    "sampling, where a request does not say": completion_flags.SAMPLING,
    "guesses": GUESSES,
    "embeddings": EMBEDDINGS,
    "devices": completion_flags.DEVICES,
    "positions": completion_flags.ROPE,
}
_OWN: list[Row] = [row for group in GROUPS.values() for row in group] + NO_DIFFERENCE + NOT_HERE
_KNOWN = {name for row in _OWN for name in (*row.names, *row.off)}


def _rest() -> list[Row]:
    """The other flags of llama.cpp's tools, as pyggml-cli has them; its own ones are refused."""
    others = [*other_flags.NO_DIFFERENCE, *other_flags.NOT_HERE, *other_flags.DRAFT, *other_flags.OTHER_TOOLS]
    rows: list[Row] = [row for row in others if not _KNOWN & {*row.names, *row.off}]
    known = _KNOWN | {name for row in rows for name in (*row.names, *row.off)}
    for row in completion_flags.ROWS:
        if isinstance(row, Flag) and not known & {*row.names, *row.off}:
            why = "a flag of the completion tool, not of the server"
            rows.append(Refused(row.names, row.count if row.parse else 0, why=why, off=row.off))
    return rows


REST = _rest()
ROWS: list[Row] = _OWN + REST
VARIABLES = {
    **environment.VARIABLES,
    "LLAMA_ARG_KV_UNIFIED": "--kv-unified",
    "LLAMA_ARG_KV_UNIFIED_PER_SLOT": "--kv-unified-per-slot",
    "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT": "--checkpoint-min-step",
    "LLAMA_ARG_CACHE_IDLE_SLOTS": "--cache-idle-slots",
    "LLAMA_ARG_POOLING": "--pooling",
    "LLAMA_ARG_CACHE_RAM": "--cache-ram",
    "LLAMA_ARG_CONT_BATCHING": "--cont-batching",
    "LLAMA_ARG_MTMD_BATCH_MAX_TOKENS": "--mtmd-batch-max-tokens",
    "LLAMA_ARG_ALIAS": "--alias",
    "LLAMA_ARG_TAGS": "--tags",
    "LLAMA_ARG_HOST": "--host",
    "LLAMA_ARG_PORT": "--port",
    "LLAMA_ARG_REUSE_PORT": "--reuse-port",
    "LLAMA_ARG_STATIC_PATH": "--path",
    "LLAMA_ARG_CORS_ORIGINS": "--cors-origins",
    "LLAMA_ARG_CORS_METHODS": "--cors-methods",
    "LLAMA_ARG_CORS_HEADERS": "--cors-headers",
    "LLAMA_ARG_CORS_CREDENTIALS": "--cors-credentials",
    "LLAMA_ARG_API_PREFIX": "--api-prefix",
    "LLAMA_ARG_UI": "--ui",
    "LLAMA_ARG_UI_CONFIG": "--ui-config",
    "LLAMA_ARG_UI_CONFIG_FILE": "--ui-config-file",
    "LLAMA_ARG_UI_MCP_PROXY": "--ui-mcp-proxy",
    "LLAMA_ARG_TOOLS": "--tools",
    "LLAMA_ARG_TOOLS_RUNTIME": "--tools-runtime",
    "LLAMA_ARG_MCP_SERVERS_CONFIG": "--mcp-servers-config",
    "LLAMA_ARG_MCP_SERVERS_JSON": "--mcp-servers-json",
    "LLAMA_ARG_AGENT": "--agent",
    "LLAMA_ARG_EMBEDDINGS": "--embedding",
    "LLAMA_ARG_RERANKING": "--rerank",
    "LLAMA_API_KEY": "--api-key",
    "LLAMA_ARG_API_KEY_FILE": "--api-key-file",
    "LLAMA_ARG_SSL_KEY_FILE": "--ssl-key-file",
    "LLAMA_ARG_SSL_CERT_FILE": "--ssl-cert-file",
    "LLAMA_ARG_TIMEOUT": "--timeout",
    "LLAMA_ARG_SSE_PING_INTERVAL": "--sse-ping-interval",
    "LLAMA_ARG_THREADS_HTTP": "--threads-http",
    "LLAMA_ARG_CACHE_PROMPT": "--cache-prompt",
    "LLAMA_ARG_CACHE_REUSE": "--cache-reuse",
    "LLAMA_ARG_ENDPOINT_METRICS": "--metrics",
    "LLAMA_ARG_ENDPOINT_PROPS": "--props",
    "LLAMA_ARG_ENDPOINT_SLOTS": "--slots",
    "LLAMA_ARG_SLOT_SAVE_PATH": "--slot-save-path",
    "LLAMA_ARG_MODELS_DIR": "--models-dir",
    "LLAMA_ARG_MODELS_PRESET": "--models-preset",
    "LLAMA_ARG_MODELS_MAX": "--models-max",
    "LLAMA_ARG_MODELS_AUTOLOAD": "--models-autoload",
    "LLAMA_ARG_PREFILL_ASSISTANT": "--prefill-assistant",
}
