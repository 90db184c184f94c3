"""docs/models.md: which architectures there are, and how close each is to llama.cpp. `python tests/support/models_document.py`
writes it anew, and compares those that it lacks or has with another number of files; with `--all` all, minutes.
tests/test_documents.py holds the page's names and texts to the code, and its numbers to the limits.

Owns the page's form.
"""

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import tiny_encoders
import tiny_t5
from arch_files import DENOISERS, LIMIT, NAMES, NOT_THERE, TOKENS, decode_in, differences, known, pieces_of
from arch_files import architecture as of_file
from arch_variants import VARIANTS, all_files
from peer_archs import ArchPeer, Script, nmse
from peer_programs import ensure_programs
from real_models import REAL
from written_archs import WRITTEN

from pyggml.model import architectures
from pyggml.model.model import Model
from pyggml.runtime.context import Context
from pyggml.runtime.embedder import Embedder

PAGE = Path(__file__).resolve().parents[2] / "docs/models.md"
HEAD = f"""# Architectures

Of each: what it is, how far our numbers are from llama.cpp's (build 11549) on tiny files with random weights in F32, and how many
files those were. The number is the worst NMSE, the sum of squares of the differences by the sum of squares of llama.cpp's, over
fused and unfused attention, whole prompts and pieces over the window's edge, and three sequences at once beside each alone; for models of embeddings of each token, unfused. Between its
own fused and unfused attention llama.cpp shows up to 2e-7; a test fails above {LIMIT:g}. All that have logits are compared over the wire
too, our client on our server and on a stock one, and a stock client on our server (`tests/rpc/test_archs_rpc.py`). For the special
parts of each there are mutants that the comparison must catch (`tests/model/test_*_mutants.py`). Real files, beside llama.cpp by greedy
text, KL and perplexity: llama (SmolLM2-135M), {", ".join(f"{name} ({real.file.removesuffix('.gguf')})" for name, real in REAL.items())}.

This page is made by `python tests/support/models_document.py`.

| `general.architecture` | what it is | files | NMSE |
| --- | --- | --- | --- |
"""


def encoders() -> dict[str, list[str]]:
    """Files of models that make embeddings, or that answer what an encoder has read, by architecture."""
    found: dict[str, list[str]] = {"t5": list(tiny_t5.NAMES)}
    for name in tiny_encoders.NAMES:
        found.setdefault(tiny_encoders.architecture(name).replace("_", "-"), []).append(name)
    return found


def text_of(architecture: str) -> str:
    """What the file's docstring says, without the name in front and the source behind."""
    doc = import_module(f"pyggml.model.arch.{architecture.replace('-', '_')}").__doc__ or ""
    text = " ".join(doc.split())
    text = re.sub(r" ?\((?:after )?llama\.cpp: [^)]*\)", "", text).rstrip(".")
    return re.sub(
        r"^[\w.-]+(?: and [\w.-]+)*( \([^)]*\))?: ", lambda m: f"{m[1].strip()[1:-1]}: " if m[1] else "", text
    )


def rows(measure: Mapping[str, Callable[[], float]], known_: Mapping[str, tuple[int, str]]) -> str:
    lines = []
    for name in architectures():
        count = len(names_of(name)) or len(encoders().get(name, []))
        before, worst = known_.get(name, (0, ""))
        if before != count:
            worst = rounded(measure[name]())
        lines.append(f"| {name} | {text_of(name)} | {count} | {worst} |")
    return "\n".join(lines) + "\n"


def page_rows(page: str) -> dict[str, tuple[int, str]]:
    """By architecture: how many files, and the number."""
    found = re.findall(r"^\| ([\w.-]+) \| .* \| (\d+) \| (\S+) \|$", page, re.MULTILINE)
    return {name: (int(count), worst) for name, count, worst in found}


def rounded(value: float) -> str:
    """Up, to one digit."""
    if not value:
        return "0"
    digits = np.floor(np.log10(value))
    return f"{np.ceil(value / 10**digits) * 10**digits:.0e}".replace("e-0", "e-")


def names_of(architecture: str) -> list[str]:
    """The tiny files of text models that are compared."""
    files = [name for name in NAMES if known(name) and name not in NOT_THERE and _base(name) == architecture]
    files += [name for name in WRITTEN if _base(name) == architecture]
    return files + [name for name, variant in VARIANTS.items() if _base(variant.base) == architecture]


def _base(name: str) -> str:
    return of_file(name).replace("_", "-")


def main() -> None:
    peer = ArchPeer(ensure_programs())
    files = all_files(peer)

    def text_model(name: str) -> float:
        print(name, file=sys.stderr)
        return _denoiser(peer, files[name]) if name in DENOISERS else max(differences(peer, files[name]).values())

    def embedding_model(name: str) -> float:
        if name in tiny_t5.NAMES:
            return _answering(peer, tiny_t5.ensure_t5()[name])
        return _encoder(peer, tiny_encoders.ensure_encoders()[name])

    measure: dict[str, Callable[[], float]] = {}
    for name in architectures():
        one, names = (text_model, names_of(name)) if names_of(name) else (embedding_model, encoders()[name])
        measure[name] = lambda one=one, names=names: max(map(one, names))  # type: ignore[misc]
    before = {} if "--all" in sys.argv or not PAGE.exists() else page_rows(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(HEAD + rows(measure, before), encoding="utf-8")


def _denoiser(peer: ArchPeer, path: Path) -> float:
    model = Model.load(path)
    embedder = Embedder(model, pooling="none")
    try:
        return nmse(peer.rows(path, Script(flash=True).decode(TOKENS)), embedder.encode([TOKENS])[0])
    finally:
        embedder.close(), model.close()


def _answering(peer: ArchPeer, path: Path) -> float:
    """The answer to a text, fused and unfused, whole and in pieces."""
    model, found = Model.load(path), []
    text, tokens = ([token % tiny_t5.N_VOCAB for token in some] for some in (TOKENS[:40], TOKENS))
    for flash in (True, False):
        script = Script(flash=flash).encode([(token, i, 0) for i, token in enumerate(text)]).decode(tokens)
        theirs = peer.rows(path, script)
        context = Context(model, n_ctx=256, n_ubatch=256, flash_attn=flash)
        context.encode(text)
        found.append(nmse(theirs, context.decode(tokens, logits="all")))
        context.truncate(0)
        found.append(nmse(theirs, decode_in(context, pieces_of(tokens))))
        context.close()
    model.close()
    return max(found)


def _encoder(peer: ArchPeer, path: Path) -> float:
    """Embeddings of each token."""
    model = Model.load(path)
    tokens = [token % tiny_encoders.N_VOCAB for token in TOKENS[:40]]
    embedder = Embedder(model, pooling="none", flash_attn=False)
    try:
        script = Script(n_ctx=512, n_ubatch=512, embeddings=True, pooling=0).decode(tokens)
        return nmse(peer.rows(path, script), embedder.encode([tokens])[0])
    finally:
        embedder.close(), model.close()


if __name__ == "__main__":
    main()
