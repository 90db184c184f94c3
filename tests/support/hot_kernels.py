"""Which kernels take most of the time of running a model: those whose assembly is read (tests/ops/test_assembly.py)."""

from levels import Key, assembly_at

QUANTS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K")
SCORES, WEIGH, MANY = ("scores", ("f16", 3)), ("weigh", ("f16", 3)), ("attention_tile", ())
CORE: tuple[Key, ...] = (
    *(("matvec", (t,)) for t in ("F16", "Q4_1", "Q8_0")),
    *(("tile", (t,)) for t in ("Q4_1", "Q8_0")),
    SCORES,
    WEIGH,
    MANY,
)
REST: tuple[Key, ...] = (
    *(("matvec", (t,)) for t in ("F32", "BF16", "Q4_0", "Q5_0", "Q5_1")),
    *(("tile", (t,)) for t in ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q5_1", "Q4_K")),
)
FACTORY = {  # others: kernel "rows" of the module with that name
    "scores": ("attention_rows", "scores"),
    "weigh": ("attention_rows", "weigh"),
    "attention_tile": ("attention_tile", "tiled"),
}


def assembly(level: str, kernels: tuple[Key, ...]) -> dict[Key, str]:
    """Of these, at the level."""
    return assembly_at(level, [(name, *FACTORY.get(name, (name, "rows")), args) for name, args in kernels])
