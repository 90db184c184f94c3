"""Seconds of the processor that a text of a million characters takes to become tokens: `python benchmarks/encoding.py FILE.gguf ...`.

Owns the measurement: one line a vocabulary, texts of several kinds; each twice, of which the second counts, so that what is compiled
or made once for long texts is not in it.
"""

import argparse
import random
import time

from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer


def texts(n: int) -> dict[str, str]:
    """Of `n` characters each; "prose" is made of words of a fixed list, as often as chance has it."""
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randrange(1, 10))) for _ in range(5000)]
    points = [*range(0x20, 0xD800), *range(0xE000, 0x20000)]
    return {
        "prose": " ".join(chance.choices(words, k=n))[:n],
        "one letter": n * "x",
        "spaces": n * " ",
        "digits": n * "7",
        "lines": n * "\n",
        "letters": "".join(chance.choices(letters, k=n)),
        "ideographs": "".join(map(chr, chance.choices(range(0x4E00, 0x9FFF), k=n))),
        "Unicode": "".join(map(chr, chance.choices(points, k=n))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE.gguf")
    parser.add_argument("-n", type=int, default=1_000_000, help="characters (default: a million)")
    values = parser.parse_args()
    made = texts(values.n)
    for file in values.files:
        with GGUFFile.open(file) as opened:
            tokenizer = Tokenizer.from_metadata(opened.metadata)
        found = []
        for name, text in made.items():
            tokenizer.encode(text)
            start = time.process_time()
            tokenizer.encode(text)
            found.append(f"{name} {time.process_time() - start:.2f}")
        print(f"{file.rsplit('/', 1)[-1]} ({type(tokenizer).__name__}): {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
