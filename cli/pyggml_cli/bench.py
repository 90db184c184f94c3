"""`pyggml-bench`: how fast prompts and generation are, with llama-bench's flags, tests and formats.

Owns the list of tests and the stopwatch.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyggml.number_text import whole_number
from pyggml_cli import hub
from pyggml_cli.about import answered
from pyggml_cli.bench_output import PRINTERS, Result
from pyggml_cli.completion_flags import LOAD_MODES, layers
from pyggml_cli.entry import run
from pyggml_cli.flags import (
    WEEK,
    Flag,
    Ignored,
    Refused,
    Row,
    UsageError,
    choice,
    help_text,
    parse,
    proportions,
    seconds,
    whole,
)
from pyggml_cli.interrupts import on_ctrl_c
from pyggml_cli.other_flags import LAZY_MODES, NUMA, PRIORITY, cpu_mask
from pyggml_cli.speculation import CACHE_TYPES
from pyggml_cli.terminal import raw, visible

if TYPE_CHECKING:
    from pyggml.backend.base import Device
    from pyggml.model.model import Model
    from pyggml.runtime.slot import Slot
    from pyggml.tokenizer import Tokenizer

MOST_NUMBERS = 10000  # of one flag


def several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Parser of comma-separated values."""
    return lambda text: [one(part) for part in text.split(",")]


def numbers(text: str) -> list[int]:
    """`512,1024`, and ranges: `1-4`, `1-9+2` (steps), `1-64*2` (factors)."""
    out: list[int] = []
    for part in text.split(","):
        first, dash, rest = part.partition("-")
        sign = "*" if "*" in rest else "+"
        last, _, step = rest.partition(sign)
        try:
            low, high, by = (whole_number(x) for x in (first, last if dash else first, step or "1"))
        except ValueError:
            raise ValueError("must be numbers such as 512,1024 or a range such as 1-64*2") from None
        while low <= high:
            out.append(low)
            following = low * by if sign == "*" else low + by
            if following <= low and low < high:
                raise ValueError(f"the range {part} never ends")
            low = max(following, low + 1)
            if len(out) > MOST_NUMBERS:
                raise ValueError(f"more than {MOST_NUMBERS} numbers")
    return out


def pair(text: str) -> tuple[int, int]:
    """`-pg 512,128`."""
    values = [whole(1)(part) for part in text.split(",")]
    if len(values) != 2:
        raise ValueError("must be two numbers, as in 512,128")
    return values[0], values[1]


def flash(text: str) -> int:
    """llama.cpp's numbers: 1 on, 0 off, -1 auto."""
    return {"on": 1, "1": 1, "off": 0, "0": 0, "auto": -1, "-1": -1}[choice("on", "off", "auto", "1", "0", "-1")(text)]


def slashed(text: str) -> tuple[str, ...] | None:
    """`RPC0/RPC1`; auto: None, all devices."""
    return None if text.strip() == "auto" else tuple(name.strip() for name in text.split("/"))


GENERAL: list[Row] = [
    Flag(("-h", "--help"), "help", "print this page and exit", default=False),
    Flag(("--version",), "version", "print the version and exit", default=False),
    Flag(("--list-devices",), "list_devices", "print the devices (also those of --rpc) and exit", default=False),
    Flag(("-r", "--repetitions"), "reps", "how often each test is measured (5)", whole(1), "N", 5),
    Flag(("--delay",), "delay", "seconds to rest before each test (0)", whole(0, WEEK), "N", 0),
    Flag(("-o", "--output"), "output", "format on stdout (md)", choice(*PRINTERS), "|".join(PRINTERS), "md"),
    Flag(("-oe", "--output-err"), "output_err", "format on stderr (none)", choice("none", *PRINTERS), "FORMAT", "none"),
    Flag(("--progress",), "progress", "say on stderr which test runs", default=False),
    Flag(("--no-warmup",), "no_warmup", "measure at once, without a run before", default=False),
    Flag(("-rpc", "--rpc"), "rpc", "servers to offload layers to: host:port, comma-separated", str, "SERVERS"),
    Flag(("--rpc-timeout",), "rpc_timeout", "seconds for a whole answer of a server (300)", seconds(0.1), "SECONDS"),
    Flag(("--offline",), "offline", "do not fetch the default model if it is missing", default=False),
]

TESTS: list[Row] = [
    Flag(("-m", "--model"), "model", "model file (the default model)", several(str), "FNAME", many=True),
    Flag(("-hf", "-hfr", "--hf-repo"), "hf_repo", "model of a repository, as in pyggml-cli", several(hub.repo), "USER/REPO[:QUANT]", many=True),
    Flag(("-hff", "--hf-file"), "hf_file", "the file of it; of several in their order", several(str), "FILE", many=True),
    Flag(("-hft", "--hf-token"), "hf_token", "access token for them (HF_TOKEN)", str, "TOKEN"),
    Flag(("-p", "--n-prompt"), "n_prompt", "tests of a prompt of n tokens (512; 0: none)", numbers, "N", many=True),
    Flag(("-n", "--n-gen"), "n_gen", "tests of generating n tokens (128; 0: none)", numbers, "N", many=True),
    Flag(("-pg",), "n_pg", "test of a prompt and then generation", pair, "PP,TG", many=True),
    Flag(("-d", "--n-depth"), "n_depth", "tokens that are there before the test (0)", numbers, "N", many=True),
    Flag(("-b", "--batch-size"), "n_batch", "logical batch size: the most tokens of one call (2048)", numbers, "N", many=True),
    Flag(("-ub", "--ubatch-size"), "n_ubatch", "physical batch size: the most tokens computed together; 0: as -b (512)", numbers, "N", many=True),
    Flag(
        ("-ctk", "--cache-type-k"), "type_k", "type of the cached keys (f16)", several(choice(*CACHE_TYPES)), "T",
        many=True,
    ),
    Flag(
        ("-ctv", "--cache-type-v"), "type_v", "type of the cached values (f16)", several(choice(*CACHE_TYPES)), "T",
        many=True,
    ),
    Flag(("-t", "--threads"), "n_threads", "CPU threads (one a core)", numbers, "N", many=True),
    Flag(("-ngl", "--n-gpu-layers"), "n_gpu_layers", "layers to offload (-1: all)", several(layers), "N", many=True),
    Flag(("-fa", "--flash-attn"), "flash_attn", "flash attention: on, off, auto (auto)", several(flash), "F", many=True),
    Flag(("-dev", "--device"), "devices", "devices to offload to, slashed; none: the CPU alone (auto: all)", several(slashed), "D0/D1", many=True),
    Flag(
        ("-ts", "--tensor-split"), "tensor_split", "share of each device", several(proportions), "T0/T1", many=True
    ),
]  # fmt: skip

OTHERS: list[Row] = [
    Ignored(("-v", "--verbose")),
    Ignored(("--numa",), 1, parse=NUMA),
    Ignored(("--prio",), 1, parse=PRIORITY),
    Ignored(("-C", "--cpu-mask"), 1, parse=several(cpu_mask)),
    *(Ignored((name,), 1, parse=numbers) for name in ("--cpu-strict", "--poll", "--no-host", "--repack")),
    *(Ignored(names, 1, parse=numbers) for names in (("-ncmoe", "--n-cpu-moe"), ("-mg", "--main-gpu"))),
    Ignored(("-nopo", "--no-op-offload"), 1, parse=numbers),
    Ignored(("-lm", "--load-mode"), 1, parse=several(choice(*LOAD_MODES))),
    Ignored(("-lzm", "--lazy-mode"), 1, parse=several(LAZY_MODES)),
    *(Ignored(names, 1, parse=several(whole(0))) for names in (("-fitt", "--fit-target"), ("-fitc", "--fit-ctx"))),
    Refused(("-sm", "--split-mode"), 1, harmless=("layer",), why="pyggml-cli has it; here -dev chooses devices"),
    Refused(("-nkvo", "--no-kv-offload"), 1, harmless=("0",), why="keys and values lie with their layers"),
    Refused(("-embd", "--embeddings"), 1, harmless=("0",), why="models compute no embeddings here"),
    Refused(("-ot", "--override-tensor"), 1, why="devices are given whole layers"),
]

DEFAULTS: dict[str, list[Any]] = {
    "n_prompt": [512], "n_gen": [128], "n_depth": [0], "n_batch": [2048], "n_ubatch": [512], "type_k": ["f16"],
    "type_v": ["f16"], "n_threads": [0], "n_gpu_layers": [-1], "flash_attn": [-1], "devices": [None],
    "tensor_split": [None], "model": [None],
}  # fmt: skip
ORDER: tuple[str, ...] = (
    "model",
    "n_gpu_layers",
    "devices",
    "tensor_split",
    "n_batch",
    "n_ubatch",
    "type_k",
    "type_v",
    "flash_attn",
)
ORDER += ("n_threads", "n_depth")  # what varies slowest comes first, as in llama-bench

ABOUT = (
    "Measure prompts (pp) and generation (tg) in tokens a second. Values separated by commas, and flags given again, "
    "multiply; ranges are first-last, first-last+step or first-last*factor."
)


EXAMPLES = (
    ("pyggml-bench", "the default model: a prompt of 512 tokens, 128 tokens generated"),
    ("pyggml-bench -m a.gguf -m b.gguf -p 0 -n 64 -t 1,2", "two models decoding, on one thread and on two"),
    ("pyggml-bench -m model.gguf -d 0,4096 -o csv > rates.csv", "at two depths, as CSV"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


@dataclass(frozen=True)
class Case:
    """One test to run; the fields are columns of the output."""

    model: str | None
    n_gpu_layers: int
    devices: tuple[str, ...] | None
    tensor_split: tuple[float, ...] | None
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: int
    n_threads: int
    n_depth: int
    n_prompt: int = 0
    n_gen: int = 0

    @property
    def placing(self) -> tuple[Any, ...]:
        """Cases of the same placing share one loaded model."""
        return self.model, self.n_gpu_layers, self.devices, self.tensor_split


def cases(values: Any) -> Iterator[Case]:
    """All tests that the flags ask for."""
    lists: dict[str, list[Any]] = {}
    for name, default in DEFAULTS.items():
        given = getattr(values, name)
        lists[name] = list(itertools.chain.from_iterable(given)) if given else default
    lists["tensor_split"] = [tuple(split) if split else None for split in lists["tensor_split"]]
    for combination in itertools.product(*(lists[name] for name in ORDER)):
        chosen = dict(zip(ORDER, combination, strict=True))
        for n in lists["n_prompt"]:
            if n:
                yield Case(**chosen, n_prompt=n)
        for n in lists["n_gen"]:
            if n:
                yield Case(**chosen, n_gen=n)
        for n_prompt, n_gen in values.n_pg:
            yield Case(**chosen, n_prompt=n_prompt, n_gen=n_gen)


def _command(argv: Sequence[str]) -> int:
    values = parse([*GENERAL, *TESTS, *OTHERS], argv)
    if answered(
        values,
        lambda: help_text("pyggml-bench [flags]", ABOUT, {"general": GENERAL, "tests": TESTS}, examples=EXAMPLES),
    ):
        return 0
    from pyggml_cli.devices import offload_devices

    values.given["model"].extend(_fetched(values))
    return _run(values, list(cases(values)), offload_devices(values.rpc, rpc_timeout=values.rpc_timeout))


def _fetched(values: Any) -> list[list[str]]:
    """Models of repositories. Raises UsageError, HubError."""
    repos = list(itertools.chain.from_iterable(values.hf_repo))
    files = list(itertools.chain.from_iterable(values.hf_file))
    if len(files) > len(repos):
        raise UsageError(f"-hff names {len(files)} files of {len(repos)} repositories: give these with -hf")
    pairs = itertools.zip_longest(repos, files)
    return [[str(hub.fetch(repo, file, values.hf_token, values.offline))] for repo, file in pairs]


def _run(values: Any, todo: list[Case], offload: "list[Device]") -> int:
    from pyggml_cli.devices import note_no_offload, pick
    from pyggml_cli.loading import compile_progress, load_model, model_path

    printers = [PRINTERS[values.output](sys.stdout.write, values.seen)]
    if values.output_err != "none":
        results = raw(sys.stderr)  # whose loss is an error, unlike that of what else is told there
        printers.append(PRINTERS[values.output_err](lambda text: results.write(visible(text)), values.seen))
    n_done = 0
    with compile_progress():
        for placing, group in itertools.groupby(todo, lambda case: case.placing):
            name, n_gpu_layers, names, split = placing
            devices = offload if names is None else [] if names == ("none",) else pick(offload, names)
            if "n_gpu_layers" in values.seen and names != ("none",):
                note_no_offload(n_gpu_layers, devices)
            path = model_path(name, values.offline)
            with load_model(path, devices, n_gpu_layers, split) as model:
                facts = model_facts(model, path, "RPC" if offload else "CPU")
                for case in group:
                    n_done += 1
                    say = f"benchmark {n_done}/{len(todo)}: " if values.progress else ""
                    result = measure(model, case, facts, values.reps, not values.no_warmup, values.delay, say)
                    for printer in printers:
                        printer.add(result)
                    sys.stdout.flush()
    for printer in printers:
        printer.end()
    return 0


def model_facts(model: "Model", path: Path, backends: str) -> dict[str, Any]:
    """The columns that say what was measured, and where."""
    from importlib.metadata import version

    from pyggml.inspection import long_file_type

    n_params = sum(math.prod(tensor.ne) for tensor in model.file.tensors.values())
    label = model.file.text("general.size_label") or f"{n_params / 1e6:.0f}M"
    return {
        "build_commit": f"pyggml-{version('pyggml')}",
        "cpu_info": model.cpu.description,
        "gpu_info": ", ".join(device.description for device in model.devices),
        "backends": backends,
        "model_filename": str(path),
        "model_type": f"{model.config.architecture} {label} {long_file_type(model.file)}",
        "model_size": model.file.n_bytes,
        "model_n_params": n_params,
    }


def measure(
    model: "Model", case: Case, facts: dict[str, Any], reps: int, warm_up: bool, delay: int, say: str = ""
) -> Result:
    """Run one test `reps` times after a warm-up. Raises ContextError, DeviceError, ComputeError."""
    from pyggml.backend.host import default_threads
    from pyggml.dtypes import GGMLType
    from pyggml.runtime.context import Context
    from pyggml.runtime.slot import Slot
    from pyggml.tokenizer import Tokenizer

    class Measured(Slot):
        def prepare(self, n: int) -> None:
            """Nothing: what has to be compiled is compiled in the warm-up."""

    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    n_threads = case.n_threads or default_threads()
    columns = {name: getattr(case, name) for name in ("n_batch", "n_ubatch", "type_k", "type_v", "n_gpu_layers")}
    columns |= {name: getattr(case, name) for name in ("flash_attn", "n_prompt", "n_gen", "n_depth")}
    columns["n_threads"] = n_threads
    if case.devices is not None:
        columns["devices"] = "/".join(case.devices)
    if case.tensor_split is not None:
        columns["tensor_split"] = "/".join(f"{share:.2f}" for share in case.tensor_split)
    result = Result({**facts, **columns, "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    if delay:
        time.sleep(delay)
    context = Context(
        model,
        case.n_depth + case.n_prompt + case.n_gen,
        n_batch=case.n_batch,
        n_ubatch=case.n_ubatch,
        type_k=GGMLType[case.type_k.upper()],
        type_v=GGMLType[case.type_v.upper()],
        flash_attn=case.flash_attn != 0,
        n_threads=n_threads,
    )
    tokens = Tokens(tokenizer, model.n_vocab)
    slot = Measured(context, spare=0, n_batch=case.n_batch)

    def work(what: str, n_prompt: int, n_gen: int) -> None:
        if say:
            print(f"{say}{what}", file=sys.stderr)
        compute(slot, tokens, n_prompt, n_gen)

    try:
        with on_ctrl_c(context.abort):
            if warm_up:
                work("warm-up", case.n_prompt, min(case.n_gen, 1))
                slot.go_back(0)
            if case.n_depth:
                work("depth", case.n_depth, 0)
            for i in range(reps):
                slot.go_back(case.n_depth)
                start = time.perf_counter_ns()
                work(f"run {i + 1}/{reps}", case.n_prompt, case.n_gen)
                result.samples_ns.append(time.perf_counter_ns() - start)
    finally:
        context.close()
    return result


class Tokens:
    """Tokens to compute with: any will do, they are drawn from the vocabulary with a fixed seed."""

    def __init__(self, tokenizer: "Tokenizer", n_vocab: int) -> None:
        import random

        self._draw = random.Random(0)
        self._n_vocab = n_vocab
        self._bos = tokenizer.bos if tokenizer.add_bos else None

    def take(self, n: int, n_past: int) -> list[int]:
        """`n` tokens for the position `n_past`; a text begins with BOS where the model wants it."""
        drawn = self._draw.choices(range(self._n_vocab), k=n)
        if n_past == 0 and self._bos is not None:
            drawn[0] = self._bos
        return drawn

    def sample(self, logits: object) -> int:
        """The next token, whatever the logits say: what is measured is how long they take."""
        return self.take(1, 1)[0]


def compute(slot: "Slot", tokens: Tokens, n_prompt: int, n_gen: int) -> None:
    """Go on with a prompt of `n_prompt` tokens, and then with `n_gen` tokens one at a time."""
    from pyggml.runtime.generate import generate
    from pyggml.runtime.sequence import Sequence as Text

    if not n_prompt and not n_gen:
        return
    single = n_gen if n_prompt else n_gen - 1  # the first token is a prompt in any case
    text = Text(tokens.take(n_prompt or 1, len(slot.tokens)), tokens, max_tokens=single + 1 if single else 0)
    for _ in generate(slot, text, begin=False):  # the last one that is drawn is not computed
        pass


if __name__ == "__main__":
    sys.exit(main())
