"""Flags of llama.cpp that pyggml-cli does not carry out: accepted with a note, or refused in one line that says why.

Owns their names (common/arg.cpp) and the reasons. With completion_flags.py it names every flag of llama.cpp's tools, so
that none of them is taken for a mistake.
"""

import re

from pyggml_cli.flags import FALSE, TRUE, Ignored, Refused, Row, choice, number, whole

LAZY_MODES = choice("on", "auto", "off")
NUMA = choice("distribute", "isolate", "numactl", "")
PRIORITY = whole(-1, 3)  # GGML_SCHED_PRIO_LOW to GGML_SCHED_PRIO_REALTIME

MOST_CPUS = 512  # GGML_MAX_N_THREADS


def cpu_mask(text: str) -> str:
    """Parser of CPUs as a mask (parse_cpu_mask in common/common.cpp)."""
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]*", text):
        raise ValueError("must be a mask in hexadecimal digits, such as ff or 0xff")
    return text


def cpu_range(text: str) -> str:
    """Parser of CPUs as a range, whose ends may be missing (parse_cpu_range in common/common.cpp)."""
    found = re.fullmatch(r"([0-9]*)-([0-9]*)", text)
    if not found or any(end and int(end) >= MOST_CPUS for end in found.groups()):
        raise ValueError(f"must be a range of CPUs such as 0-7, of numbers below {MOST_CPUS}")
    return text


def margins(text: str) -> list[int]:
    """Parser of a size in MiB, or of one for each device."""
    try:
        return [whole(0)(part) for part in re.split("[,/]", text)]
    except ValueError:
        raise ValueError("must be MiB, or MiB of each device such as 1024,512") from None


NO_DIFFERENCE: list[Row] = [
    Ignored(("-bs", "--backend-sampling")),  # the same tokens are chosen here
    *(Ignored((name,)) for name in ("--no-host", "--log-disable")),
    Ignored(("--jinja",), off=("--no-jinja",)),
    Ignored(("--warmup",), off=("--no-warmup",)),
    Ignored(("--op-offload",), off=("--no-op-offload",)),
    Ignored(("--repack",), off=("-nr", "--no-repack")),
    Ignored(("--log-prefix",), off=("--no-log-prefix",)),
    Ignored(("--log-timestamps",), off=("--no-log-timestamps",)),
    Ignored(("--mmproj-auto",), off=("--no-mmproj", "--no-mmproj-auto")),
    Ignored(("--mmproj-offload",), off=("--no-mmproj-offload",)),
    Ignored(("-v", "--verbose", "--log-verbose")),
    *(Ignored(names, 1, parse=cpu_mask) for names in (("-C", "--cpu-mask"), ("-Cb", "--cpu-mask-batch"))),
    *(Ignored(names, 1, parse=cpu_range) for names in (("-Cr", "--cpu-range"), ("-Crb", "--cpu-range-batch"))),
    Ignored(("-lzm", "--lazy-mode"), 1, parse=LAZY_MODES),
    Ignored(("-dt", "--defrag-thold"), 1, parse=number),
    Ignored(("-fit", "--fit"), 1, parse=choice(*TRUE, *FALSE)),
    Ignored(("-fitt", "--fit-target"), 1, parse=margins),
    Ignored(("-fitc", "--fit-ctx"), 1, parse=whole(0)),
    Ignored(("-lv", "--verbosity", "--log-verbosity"), 1, parse=whole()),
    Ignored(("-ptc", "--print-token-count"), 1, parse=whole()),
    Ignored(("-cram", "--cache-ram"), 1, parse=whole(-1)),
    *(Ignored((name,), 1, parse=whole(0)) for name in ("--cpu-strict", "--poll", "--cpu-strict-batch", "--poll-batch")),
    *(Ignored((name,), 1, parse=PRIORITY) for name in ("--prio", "--prio-batch")),
    Ignored(("--numa",), 1, parse=NUMA),
    Ignored(("--log-colors",), 1, parse=choice(*TRUE, *FALSE, "auto", "-1")),
]

DOWNLOADS = "models are fetched from repositories (-hf) alone; give other files with -m"
TEXT_ONLY = "text is all that models read here, no images, sound or video"
SPECULATION = "of drafts, ngram-simple, ngram-map-k and a smaller model on the CPU are there"
WHOLE = "devices are given whole layers"

NOT_HERE: list[Row] = [
    Refused(("--log-jsonl",), why="there is no log", off=("--no-log-jsonl",)),
    Refused(("--log-file",), 1, why="there is no log; what is not text goes to stderr"),
    Refused(("--log-prompts-dir",), 1, why="prompts are not kept; --verbose-prompt shows one"),
    Refused(("-np", "--parallel"), 1, harmless=("1", "-1"), why="one sequence at a time"),
    Refused(("-gan", "--grp-attn-n"), 1, harmless=("1",), why="positions are not grouped"),
    Refused(("-gaw", "--grp-attn-w"), 1, harmless=("512",), why="positions are not grouped"),
    Refused(("-mm", "--mmproj"), 1, why=TEXT_ONLY),
    Refused(("-mmu", "--mmproj-url"), 1, why=TEXT_ONLY),
    Refused(("-mmdev", "--mmproj-device"), 1, harmless=("none",), why=TEXT_ONLY),
    Refused(("--image", "--audio", "--video"), 1, why=TEXT_ONLY),
    *(Refused((name,), 1, why=TEXT_ONLY) for name in ("--image-min-tokens", "--image-max-tokens", "--video-fps")),
    *(Refused((name,), 1, why=TEXT_ONLY) for name in ("--video-timestamp-interval", "--video-ffmpeg-dir")),
    Refused(("-mu", "--model-url"), 1, why=DOWNLOADS),
    Refused(("-dr", "--docker-repo"), 1, why=DOWNLOADS),
    *(Refused((name,), why=DOWNLOADS) for name in ("--gpt-oss-20b-default", "--gpt-oss-120b-default")),
    *(Refused((name,), why=DOWNLOADS) for name in ("--vision-gemma-4b-default", "--vision-gemma-12b-default")),
    Refused(("--server-base",), 1, why="the model is computed by this process, or by servers of --rpc"),
    Refused(("-o", "--output", "--output-file"), 1, why="the text goes to stdout, send it into a file there"),
]

_DRAFT_SWITCHES = (("--spec-draft-cpu-moe", "-cmoed", "--cpu-moe-draft"), ("--spec-default",))
_DRAFT = """
    --spec-draft-threads-batch -tbd --threads-batch-draft; --spec-draft-cpu-mask -Cd --cpu-mask-draft;
    --spec-draft-cpu-range -Crd --cpu-range-draft; --spec-draft-cpu-strict --cpu-strict-draft;
    --spec-draft-prio --prio-draft; --spec-draft-poll --poll-draft;
    --spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft; --spec-draft-cpu-range-batch -Crbd --cpu-range-batch-draft;
    --spec-draft-cpu-strict-batch --cpu-strict-batch-draft; --spec-draft-prio-batch --prio-batch-draft;
    --spec-draft-poll-batch --poll-batch-draft;
    --spec-draft-override-tensor -otd --override-tensor-draft;
    --spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft;
    --spec-draft-p-split --draft-p-split;  --spec-draft-device -devd --device-draft;
    --spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft;
    --spec-synth-len; --spec-synth-rates; --spec-ngram-mod-n-min; --spec-ngram-mod-n-max; --spec-ngram-mod-n-match;
      --spec-ngram-simple-min-hits;
      --spec-ngram-map-k-min-hits;
    --spec-ngram-map-k4v-size-n; --spec-ngram-map-k4v-size-m; --spec-ngram-map-k4v-min-hits;
      -lcs --lookup-cache-static; -lcd --lookup-cache-dynamic;
    --spec-ngram-size-n; --spec-ngram-size-m; --spec-ngram-min-hits
"""
DRAFT: list[Row] = [
    *(Refused(tuple(names.split()), 1, why=SPECULATION) for names in _DRAFT.split(";")),
    *(Refused(names, why=SPECULATION) for names in _DRAFT_SWITCHES),
    Refused(("--spec-draft-backend-sampling",), why=SPECULATION, off=("--no-spec-draft-backend-sampling",)),
]

_TOOLS = {
    "llama-server": """
        --kv-unified-per-slot --cache-idle-slots --no-cache-idle-slots --spm-infill -cb
        --cont-batching -nocb --no-cont-batching --mtmd-batch-max-tokens -a --alias --tags --host --port --reuse-port
        --path --cors-origins --cors-methods --cors-headers --cors-credentials --no-cors-credentials --api-prefix
        --ui-config --webui-config --ui-config-file --webui-config-file --ui-mcp-proxy --webui-mcp-proxy
        --no-ui-mcp-proxy --no-webui-mcp-proxy --tools --tools-runtime --mcp-servers-config --mcp-servers-json -ag
        --agent -no-ag --no-agent --ui --webui --no-ui --no-webui --rerank --reranking --api-key --api-key-file
        --ssl-key-file --ssl-cert-file -to --timeout --sse-ping-interval --threads-http --cache-prompt
        --no-cache-prompt --cache-reuse --metrics --props --slots --no-slots --slot-save-path --media-path
        --models-dir --models-preset --models-max --models-autoload --no-models-autoload --prefill-assistant
        --no-prefill-assistant -sps --slot-prompt-similarity --lora-init-without-apply --sleep-idle-seconds
        --fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default --fim-qwen-7b-spec --fim-qwen-14b-spec
        --fim-qwen-30b-default -kvu --kv-unified -no-kvu --no-kv-unified""",
    "llama-perplexity": """
        --chunks --hellaswag --hellaswag-tasks --winogrande --winogrande-tasks --multiple-choice
        --multiple-choice-tasks --kl-divergence --save-all-logits --kl-divergence-base --ppl-stride
        --ppl-output-type""",
    "llama-imatrix": """
        --in-file -ofreq --output-frequency --output-format --save-frequency --process-output --ppl --no-ppl --chunk
        --from-chunk --show-statistics --parse-special""",
    "llama-embedding": """
        --pooling --attention --embd-output-format --embd-separator --cls-separator --embd-normalize --embedding
        --embeddings --embd-gemma-default""",
    "llama-parallel": "-ns --sequences --junk",
    "llama-passkey": "--pos",
    "llama-fit-params": "-fitp --fit-print",
    "llama download": "--mtp --dflash --eagle3",
    "llama-retrieval": "--context-file --chunk-size --chunk-separator",
    "llama-tokenize": "--ids --stdin --no-bos --no-parse-special --show-count",
    "llama-batched-bench": "-pps -tgs -npp -ntg -npl",
    "llama-cvector-generator": "--positive-file --negative-file --pca-batch --pca-iter --method",
    "llama-tts": "--tts-lang --tts-speaker-file",
    "llama-diffusion-cli": """
        --diffusion-steps --diffusion-visual --diffusion-eps --diffusion-algorithm --diffusion-alg-temp
        --diffusion-block-length --diffusion-cfg-scale --diffusion-add-gumbel-noise""",
    "llama-finetune": """
        -lr --learning-rate -lr-min --learning-rate-min -decay-epochs --learning-rate-decay-epochs -wd --weight-decay
        -val-split --val-split -epochs --epochs -opt --optimizer""",
    "llama-results": "--check",
    "llama-debug": "--save-logits --logits-output-dir --tensor-filter",
}
OTHER_TOOLS: list[Row] = [
    Refused((name,), why=f"a flag of {tool}, not of the completion tool")
    for tool, names in _TOOLS.items()
    for name in names.split()
]
