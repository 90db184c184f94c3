"""What `pyggml-embedding` prints: for people, and as array, json, json+ and raw; byte for byte as llama-embedding's stdout.

Owns the formats (llama.cpp: examples/embedding/embedding.cpp).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

FORMATS = ("array", "json", "json+", "raw")


class Printed:
    """rows     vectors, of a classifier its scores
    texts    they are of; with pooling none there are more vectors than texts
    whole    numbers are printed without decimals
    labels   of the classifier's scores
    """

    def __init__(
        self,
        rows: Sequence[Vector],
        texts: Sequence[str],
        pooling: str,
        whole: bool,
        labels: Iterable[Any] | None = None,
    ) -> None:
        self.rows, self.texts, self.pooling, self.whole = rows, texts, pooling, whole
        self.labels = [str(label) for label in labels or ()]

    def page(self, kind: str) -> str:
        """All of it; it ends with an empty line."""
        if kind == "raw":
            return "".join(f"{' '.join(map(self._exact, row))}\n" for row in self.rows) + "\n"
        if kind:
            return self._array() if kind == "array" else self._json(similarities=kind == "json+")
        return "\n" + {"none": self._tokens, "rank": self._scores}.get(self.pooling, self._vectors)() + "\n"

    def _exact(self, x: float) -> str:
        return f"{x:1.0f}" if self.whole else f"{x:1.7f}"

    def _short(self, x: float) -> str:
        return f"{x:6.0f} " if self.whole else f"{x:9.6f} "

    def _list(self, row: Vector) -> str:
        return f"[{','.join(map(self._exact, row))}]"

    def _array(self) -> str:
        return f"[{','.join(map(self._list, self.rows))}]\n\n"

    def _json(self, similarities: bool) -> str:
        items = [
            f'    {{\n      "object": "embedding",\n      "index": {i},\n      "embedding": {self._list(row)}\n    }}'
            for i, row in enumerate(self.rows)
        ]
        page = '{\n  "object": "list",\n  "data": [\n' + ",\n".join(items) + "\n  ]"
        if similarities and len(self.texts) > 1:
            lines = [f"    [{', '.join(f'{x:6.2f}' for x in line)} ]" for line in self._similar()]
            page += ',\n  "cosineSimilarity": [\n' + ",\n".join(lines) + "\n  ]"
        return page + "\n}\n\n"

    def _similar(self) -> list[list[float]]:
        return [[cosine(a, b) for b in self.rows] for a in self.rows]

    def _tokens(self) -> str:
        lines = []
        for i, row in enumerate(self.rows):
            first, last = ("".join(map(self._short, part)) for part in (row[:3], row[-3:]))
            lines.append(f"embedding {i}: {first} ... {last}\n")
        return "".join(lines)

    def _scores(self) -> str:
        lines = []
        for i, row in enumerate(self.rows):
            for k, score in enumerate(row):
                name = self.labels[k] if k < len(self.labels) and self.labels[k] else str(k)
                lines.append(f"rerank score {i}: {score:8.3f}" + (f" [{name}]\n" if len(row) > 1 else "\n"))
        return "".join(lines)

    def _vectors(self) -> str:
        shown = 16 if len(self.rows) > 1 else None
        page = "".join(f"embedding {i}: {''.join(map(self._short, row[:shown]))}\n" for i, row in enumerate(self.rows))
        if len(self.rows) == 1:
            return page
        page += "\ncosine similarity matrix:\n\n" + "".join(f"{_cut(text, 6, 6)} " for text in self.texts) + "\n"
        for text, line in zip(self.texts, self._similar(), strict=True):
            page += "".join(f"{x:6.2f} " for x in line) + f"{_cut(text, 10, 1)}\n"
        return page


def _cut(text: str, most: int, least: int) -> str:
    """At most and at least so many bytes, spaces first."""
    data = text.encode("utf-8", "surrogateescape")[:most].rjust(least)
    return data.decode("utf-8", "surrogateescape")


def cosine(a: Vector, b: Vector) -> float:
    """How alike two directions are, 1 for the same; nothing is like nothing (common.cpp: common_embd_similarity_cos)."""
    import numpy as np

    x, y = a.astype(np.float64), b.astype(np.float64)
    length = float(np.sqrt((x**2).sum()) * np.sqrt((y**2).sum()))
    if not length:
        return 1.0 if not x.any() and not y.any() else 0.0
    return float((x * y).sum()) / length
