"""Texts with drafts from the text before beside the same texts without: `python benchmarks/speculation.py [FILE.gguf ...]`.

Owns the texts and how it is told. Ten answers that repeat much of their prompt (code that is edited, passages and records that are
quoted) and two that repeat nothing, greedy, by turns in one process: a ratio is the rate of tokens with drafts / without,
of the answer alone, median of the rounds. Each answer is the same to the token, which is checked. `--peer` asks llama-server the same
with its own --spec-type, in a process with it and one without. Without files: Qwen2.5-Coder-0.5B in Q4_K_M.
"""

import argparse
import json
import os
import statistics
import sys
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from peer_build import PeerMissing
from peer_programs import ensure_programs
from real_models import ensure_model
from server import serving
from vs_llamacpp import numbers

from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.runtime.drafts import NgramDrafter
from pyggml.runtime.generate import generate
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.slot import Slot
from pyggml.sampler import SamplerChain, SamplerParams
from pyggml.tokenizer import Tokenizer

N_CTX = 4096
CODE = '''import csv
import statistics


class Station:
    """A weather station and what it has measured."""

    def __init__(self, name, height):
        self.name = name
        self.height = height
        self.values = []

    def add(self, day, temperature, rain):
        if rain < 0:
            raise ValueError("rain cannot be negative")
        self.values.append((day, temperature, rain))

    def mean_temperature(self):
        return statistics.mean(value[1] for value in self.values)

    def total_rain(self):
        return sum(value[2] for value in self.values)

    def warmest_day(self):
        return max(self.values, key=lambda value: value[1])[0]


def read_stations(path):
    stations = {}
    with open(path) as file:
        for row in csv.DictReader(file):
            name = row["name"]
            if name not in stations:
                stations[name] = Station(name, float(row["height"]))
            stations[name].add(row["day"], float(row["temperature"]), float(row["rain"]))
    return list(stations.values())
'''
REPORT = """The ferry Aurora left Harwich at 6:40 on Tuesday with 212 passengers and 48 cars on board. At 9:15 the engineer noticed that the
temperature of the second engine was rising, and the captain reduced the speed to eleven knots. "We had time, and no reason to take
a risk," she said later. At 10:05 the engine was stopped. The ferry went on with one engine and reached Esbjerg at 23:30, five hours late.
The company said on Wednesday that a valve in the cooling circuit had been stuck. "The valve was inspected in March and showed no fault,"
a spokesman said. The harbour authority has asked for the records of all inspections since January. Passengers praised the crew. "They told
us every half hour what was going on," said a teacher who was travelling with a class of twenty-six. The Aurora was built in 1998 and
carries up to 400 passengers. She will return to service on Friday, when the valve and the pump beside it have been replaced."""
TABLE = "\n".join(
    f"{name}, {town}, {year}, {amount}.00 EUR"
    for name, town, year, amount in (
        ("Anna Berg", "Oslo", 2019, 1250), ("Carlos Diaz", "Sevilla", 2021, 980), ("Dora Egan", "Galway", 2018, 2310),
        ("Emil Fuchs", "Graz", 2020, 640), ("Fatima Haddad", "Rabat", 2022, 1775), ("Georg Ilic", "Split", 2017, 890),
        ("Hana Jelinek", "Brno", 2023, 1430), ("Ivan Kolar", "Zagreb", 2016, 2050), ("Jana Lind", "Uppsala", 2021, 1190),
    )
)  # fmt: skip
ONLY = "Answer with nothing but the whole program."
REPEAT = {
    "rename": f"Rename the method total_rain to rain_sum in this program. {ONLY}\n\n{CODE}",
    "types": f"Add type hints to the parameters of read_stations in this program. {ONLY}\n\n{CODE}",
    "method": f"Add a method driest_day to the class Station of this program. {ONLY}\n\n{CODE}",
    "message": f'Change the error message of this program to "rain must be zero or more". {ONLY}\n\n{CODE}',
    "log": f"Insert print(name) as the first line of the loop in read_stations. {ONLY}\n\n{CODE}",
    "remove": f"Remove the method warmest_day from this program. {ONLY}\n\n{CODE}",
    "quotes": f"Copy the sentences of this report that have a direct quotation, word for word.\n\n{REPORT}",
    "summary": f"Copy the first six sentences of this report word for word, then sum the rest up in one.\n\n{REPORT}",
    "correct": f"Copy this report and correct its mistakes of spelling, if there are any.\n\n{REPORT}",
    "records": f"Copy these records in the same form, and write a title above them.\n\n{TABLE}",
}
FRESH = {
    "story": "Tell a short story about a lighthouse keeper who finds a letter.",
    "advice": "What should one think about before moving to another country?",
}


def prompt_of(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


Rates = list[tuple[float, float]]
"""Of each round tokens a second with drafts and without."""
Ask = Callable[[str, int], tuple[Rates, str]]
"""A question and the tokens wanted of the answer -> rates and what else there is to say."""


def ours(path: Path, options: argparse.Namespace) -> Ask:
    model = Model.load(path)
    context = Context(model, n_ctx=N_CTX, n_threads=options.threads)
    tokenizer = Tokenizer.from_metadata(model.file.metadata)

    def answer(tokens: list[int], n: int, drafter: NgramDrafter | None) -> tuple[Sequence, float]:
        """The text, and tokens a second of all but the first, which is the prompt's."""
        context.clear()
        sampler = SamplerChain(SamplerParams(temp=0.0), model.n_vocab)
        sequence = Sequence(tokens, sampler, max_tokens=n, vocabulary=tokenizer, drafter=drafter)
        for _ in generate(Slot(context, memory=context.memory), sequence):
            pass
        return sequence, (len(sequence.answer) - 1) / (sequence.timings.eval + sequence.timings.sample)

    def ask(question: str, n: int) -> tuple[Rates, str]:
        tokens = tokenizer.encode(prompt_of(question), parse_special=True)
        answer(tokens, 8, None)
        rates, said = [], ""
        for _ in range(options.rounds):
            drafter = NgramDrafter(options.size, options.most, per_key=options.type == "ngram-map-k")
            fast, fast_rate = answer(tokens, n, drafter)
            plain, rate = answer(tokens, n, None)
            assert fast.answer == plain.answer, f"the texts differ: {question[:60]}"
            rates.append((fast_rate, rate))
            said = f"{len(plain.answer)} tokens, {fast.n_kept} of {fast.n_drafted} guesses kept"
        return rates, said

    return ask


def theirs(path: Path, options: argparse.Namespace, stack: ExitStack) -> Ask:
    """llama-server, once with drafts and once without."""
    server = str(ensure_programs().bin / "llama-server")
    drafts = ["--spec-type", options.type, f"--spec-{options.type}-size-n", str(options.size)]
    drafts += [f"--spec-{options.type}-size-m", str(options.most)]
    addresses = []
    for port, more in zip(options.ports, (drafts, []), strict=True):
        given = ("-m", path, "-c", N_CTX, "-np", 1, "-t", options.threads, "--host", "127.0.0.1", "--port", port)
        addresses.append(stack.enter_context(serving([server, *map(str, given), *more], None)))

    def rate(address: str, question: str, n: int) -> float:
        body = {"prompt": prompt_of(question), "n_predict": n, "temperature": 0, "cache_prompt": False}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/completion", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as reply:
            return float(json.load(reply)["timings"]["predicted_per_second"])

    def ask(question: str, n: int) -> tuple[Rates, str]:
        rates = [(rate(addresses[0], question, n), rate(addresses[1], question, n)) for _ in range(options.rounds)]
        return rates, ""

    return ask


def tell(ask: Ask, texts: dict[str, str], n: int) -> list[float]:
    """A line each; the ratios."""
    ratios = []
    for name, question in texts.items():
        rates, said = ask(question, n)
        ratios.append(statistics.median(fast / plain for fast, plain in rates))
        fast, plain = (statistics.median(rate[i] for rate in rates) for i in (0, 1))
        print(f"  {name:10} {fast:8.1f} {plain:8.1f} {ratios[-1]:7.2f}   {said}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="whose chat template is ChatML's")
    parser.add_argument("--type", choices=("ngram-simple", "ngram-map-k"), default="ngram-simple")
    parser.add_argument("--size", type=int, default=12, help="tokens that must have stood there before (%(default)s)")
    parser.add_argument("--most", type=int, default=48, help="tokens of a draft at most (%(default)s)")
    parser.add_argument("-n", "--generate", type=int, default=256, help="tokens of an answer (%(default)s)")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", action="store_true", help="llama-server too")
    parser.add_argument("--ports", type=numbers, default="18082,18083", help="two free ones for it (%(default)s)")
    options = parser.parse_args()
    try:
        models = options.models or [ensure_model("qwen2")]
        for path in models:
            with ExitStack() as stack:
                sides = {"pyggml": ours(path, options)}
                if options.peer:
                    sides["llama-server"] = theirs(path, options, stack)
                for side, ask in sides.items():
                    print(f"{path.name}, {side}, {options.type} {options.size}: tokens/s with drafts, without, ratio")
                    ratios = tell(ask, REPEAT, options.generate)
                    fresh = tell(ask, FRESH, options.generate)
                    print(
                        f"  texts that repeat: median {statistics.median(ratios):.2f}, geometric mean "
                        f"{statistics.geometric_mean(ratios):.2f}; least of all {min(*ratios, *fresh):.2f}",
                        flush=True,
                    )
    except PeerMissing as reason:
        raise SystemExit(str(reason)) from None


if __name__ == "__main__":
    main()
