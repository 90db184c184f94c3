"""What a text asks of who makes guesses at its next tokens, how many of them are used, and how several texts are asked for at once.
Makes none: drafts.py and draft_model.py do."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Row = NDArray[np.float32]

DRAFT_SIZES = (1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63)
"""Lengths that drafts are cut to: with the token chosen last mostly multiples of 4, which kernels take at once, and few, so that few
graphs serve them all."""


def draft_size(n: int) -> int:
    """The longest of these lengths that is at most n tokens, 0 for none."""
    return max((size for size in DRAFT_SIZES if size <= n), default=0)


class Drafter(Protocol):
    """Of one text, or of several one after the other."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that may follow; none where there is no idea."""

    def kept(self, drafted: int, kept: int) -> None:
        """How many of a draft's tokens were chosen."""


class Computes(Protocol):
    """A model whose context has a sequence for each of several texts."""

    def compute(self, wanted: Sequence[tuple[int, list[int]]]) -> list[Row | None]:
        """Compute tokens of these sequences, each once, after those there; the logits (n_vocab,) after the last of each. None:
        they found no room."""


class Wanted(NamedTuple):
    """What is to be computed before a draft goes on: tokens of a sequence of a model."""

    model: Computes
    seq: int
    tokens: list[int]


Steps = Generator[Wanted, "Row | None", list[int]]
"""A draft on its way: it yields what is to be computed, is sent the logits after that, and returns the guesses."""


@runtime_checkable
class Stepwise(Protocol):
    """A drafter whose drafts are made step by step, so that those of several texts can be computed together."""

    def steps(self, tokens: Sequence[int], most: int) -> Steps:
        """As `Drafter.draft`, but others compute."""

    def lacks(self, tokens: Sequence[int]) -> int:
        """How many of these tokens of a text a model computes before it can guess."""


def lacking(drafter: Drafter, tokens: Sequence[int]) -> int:
    """`lacks` of any drafter: nothing where no model is asked."""
    return drafter.lacks(tokens) if isinstance(drafter, Stepwise) else 0


def draft_together(asked: Sequence[tuple[Drafter, Sequence[int], int]]) -> list[list[int]]:
    """`draft` of several drafters at once, each with its tokens and how many are wanted at most: what they want of one model
    is computed in one batch, a step of each."""
    drafts: list[list[int]] = [[] for _ in asked]
    going: dict[int, tuple[Steps, Wanted]] = {}

    def go_on(i: int, steps: Steps, row: Any) -> None:
        try:
            going[i] = steps, steps.send(row)
        except StopIteration as end:
            drafts[i] = end.value

    for i, (drafter, tokens, most) in enumerate(asked):
        if isinstance(drafter, Stepwise):
            go_on(i, drafter.steps(tokens, most), None)
        else:
            drafts[i] = drafter.draft(tokens, most)
    while going:
        by_model: dict[int, list[int]] = {}
        for i, (_, wanted) in going.items():
            by_model.setdefault(id(wanted.model), []).append(i)
        for group in by_model.values():
            now = [(i, *going.pop(i)) for i in group]
            rows = now[0][2].model.compute([(wanted.seq, wanted.tokens) for _, _, wanted in now])
            for (i, steps, _), row in zip(now, rows, strict=True):
                go_on(i, steps, row)
    return drafts
