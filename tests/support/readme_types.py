"""The README's tables of types and of tokenizers, made from the code: run as a program it prints them.

Owns the tables' form.
"""

from pyggml.dtypes import SIZES
from pyggml.kernels.cpu.formats import MULTIPLIED
from pyggml.memory import kv_tensors
from pyggml.quantize.mixes import MIXES
from pyggml.quants import QUANTS
from pyggml.tokenizer import Tokenizer
from pyggml.tokenizer.pretokenizers import PRE_TOKENIZERS

INNER = ("Q8_1", "Q8_K")  # of activations, never in files


def types() -> str:
    """What can be done with each block type that files have."""
    mixes: dict[str, list[str]] = {}
    for name, mix in MIXES.items():
        mixes.setdefault(mix.type.name, []).append(name)
    lines = [
        "| type | bits a weight | dequantised | quantised | multiplied | KV cache | mixes of `pyggml-quantize` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype, quant in QUANTS.items():
        if dtype.name in INNER:
            continue
        size = SIZES[dtype]
        bits = f"{size.type_size * 8 / size.block_size:g}"
        product, cache = ("x" if dtype in group else "" for group in (MULTIPLIED, kv_tensors.TYPES))
        made = "x" if quant.can_quantize else ""
        lines.append(
            f"| {dtype.name} | {bits} | x | {made} | {product} | {cache} | {', '.join(mixes.get(dtype.name, []))} |"
        )
    return "\n".join(lines)


def tokenizers() -> str:
    """Kinds of vocabularies, and how those of the first kind cut text into words."""
    lines = ["| `tokenizer.ggml.model` | what it is | `tokenizer.ggml.pre` |", "| --- | --- | --- |"]
    for name, kind in sorted(Tokenizer.kinds.items()):
        text = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")
        pres = ", ".join(sorted(PRE_TOKENIZERS)) if name == "gpt2" else ""
        lines.append(f"| {name} | {text} | {pres} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(types(), tokenizers(), sep="\n\n")
