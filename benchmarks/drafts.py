"""Texts that are generated together with drafts of a smaller model: `python benchmarks/drafts.py [MODEL.gguf DRAFT.gguf]`.

Owns how it is measured: in each round so many texts at once, greedy, first without drafts, then with drafts of which each text's is
made by itself, then with those of all texts made together, then with these where they gain (draft_pace.py), as the server has them;
what it has measured it keeps from round to round. Rates are tokens of answers a second of all texts, prompts not counted; a
ratio is that of one round, the median of the rounds is told. All texts are the same to the token, which is checked. Without
files: SmolLM2-135M in F16, and in Q4_0 for drafts. A draft model that is the model itself loses where texts are many: name one file twice.
`--cpu-time` on one thread says what is gained where other programs keep the cores busy.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence as Items
from pathlib import Path

from files import smollm2
from sides import stock
from vs_llamacpp import numbers

from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.draft_model import DraftModel, ModelDrafter, check_same_tokens
from pyggml.runtime.draft_pace import DraftPace
from pyggml.runtime.drafter import Drafter
from pyggml.runtime.sequence import Sequence
from pyggml.sampler import SamplerChain, SamplerParams
from pyggml.tokenizer import Tokenizer

N_CTX = 1024
SUBJECTS = (
    *("rivers", "trains", "glass", "bees", "clocks", "bread", "maps", "salt", "paper", "bridges", "wool", "stars"),
    *("harbours", "rain", "copper", "letters"),
)


seconds = time.perf_counter
"""The clock; with --cpu-time seconds of the processor."""


class ByItself:
    """A drafter whose steps nobody sees, so that it computes them alone."""

    def __init__(self, drafter: ModelDrafter) -> None:
        self._drafter = drafter

    def draft(self, tokens: Items[int], most: int) -> list[int]:
        return self._drafter.draft(tokens, most)

    def kept(self, drafted: int, kept: int) -> None:
        self._drafter.kept(drafted, kept)


def generate(
    context: Context, tokenizer: Tokenizer, drafters: Items[Drafter | None], n: int, pace: DraftPace | None = None
) -> tuple[list[Sequence], float]:
    """The texts, and tokens a second of all but each one's first."""
    context.clear()
    batcher = Batcher(context, context.n_ubatch, pace=pace)
    for place, drafter in zip(batcher.places, drafters, strict=True):
        place.drafter = drafter
    texts = []
    for i in range(context.n_seq_max):
        prompt = tokenizer.encode(f"A short history of {SUBJECTS[i % len(SUBJECTS)]}, part {i + 1}:")
        sampler = SamplerChain(SamplerParams(temp=0.0), context.model.n_vocab)
        texts.append(Sequence(prompt, sampler, max_tokens=n))
        batcher.add(texts[-1])
    while not all(text.ends for text in texts):
        batcher.step()
    before, start = sum(len(text.ends) for text in texts), seconds()
    while not batcher.idle:
        batcher.step()
    took = seconds() - start
    return texts, (sum(len(text.ends) for text in texts) - before) / took


def measure(model: Model, small: Model, texts: int, options: argparse.Namespace) -> None:
    threads = options.threads
    context = Context(model, texts * N_CTX, n_seq_max=texts, n_threads=threads)
    guessing = Context(small, texts * N_CTX, n_seq_max=texts, n_threads=threads)
    check_same_tokens(context, guessing)
    tokenizer = Tokenizer.from_metadata(model.file.metadata)
    drafts = DraftModel(guessing, options.most)
    together = [drafts.drafter(seq) for seq in range(texts)]
    pace = DraftPace(lambda: seconds() - context.seconds_for_graphs - guessing.seconds_for_graphs)
    sides: list[tuple[Items[Drafter | None], DraftPace | None]] = [
        ([None] * texts, None),
        ([ByItself(one) for one in together], None),
        (together, None),
        (together, pace),
    ]
    rates: list[list[float]] = []
    for drafters, _ in sides[:-1]:
        generate(context, tokenizer, drafters, options.most + 2)
    for _ in range(options.rounds):
        found = []
        rates.append([])
        for side in sides:
            made, rate = generate(context, tokenizer, side[0], options.generate, side[1])
            found.append([text.answer for text in made])
            rates[-1].append(rate)
            if side[1] is None:
                kept = sum(text.n_kept for text in made) / max(1, sum(text.n_drafted for text in made))
        assert all(texts == found[0] for texts in found), "the texts differ"
    none, single, all_, gaining = (statistics.median(one[i] for one in rates) for i in range(4))
    always, chosen = (statistics.median(one[i] / one[0] for one in rates) for i in (2, 3))
    print(
        f"  {texts:5} {none:8.1f} {single:8.1f} {all_:8.1f} {gaining:8.1f} {always:7.2f} {chosen:7.2f} "
        f"{rates[0][3] / rates[0][0]:7.2f}   {100 * kept:.0f} % of guesses kept",
        flush=True,
    )
    context.close()
    guessing.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="the model, and the smaller one with the same tokens")
    parser.add_argument("--texts", type=numbers, default="1,4,8,16", help="at once (%(default)s)")
    parser.add_argument("--most", type=int, default=3, help="tokens of a draft at most (%(default)s)")
    parser.add_argument("-n", "--generate", type=int, default=64, help="tokens of an answer (%(default)s)")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, on one thread")
    options = parser.parse_args()
    if options.cpu_time:
        global seconds
        seconds, options.threads = time.process_time, 1
    paths = options.models or [smollm2(stock(), name) for name in ("F16", "Q4_0")]
    if len(paths) != 2:
        parser.error("name two files: the model, and the smaller one")
    model, small = (Model.load(path) for path in paths)
    print(f"{paths[0].name}, drafts of up to {options.most} tokens by {paths[1].name}")
    print(
        "  texts: tokens/s without drafts, each draft by itself, all together, where they gain; over those without: together,"
    )
    print("  where they gain, and of that the first round")
    for texts in options.texts:
        measure(model, small, texts, options)
    model.close()
    small.close()


if __name__ == "__main__":
    main()
