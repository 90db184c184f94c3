"""What ends an answer at a line, as editors that fill in code want it: too little indentation, and a time that is over.

Owns both rules (tools/server/server-context.cpp: process_token).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyggml.runtime.sequence import Finish
from pyggml.runtime.timings import clock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyggml.runtime.sequence import Sequence as Text


class Lines:
    """A Sequence's `stop_when`.

    n_indent  blanks that every line but the first must begin with; the one that has fewer is cut off behind them. 0: any
    seconds   from the first token on after which the answer ends at the next line break; 0: never
    """

    def __init__(self, n_indent: int, seconds: float) -> None:
        self._n_indent, self._seconds = n_indent, seconds
        self._start: float | None = None
        self._line = self._seen = 0  # where the line that is looked at begins, 0: the first; bytes that were looked at

    def __call__(self, text: Text, row: NDArray[np.float32]) -> Finish | None:
        """Called with each token."""
        if self._start is None:
            self._start = clock()
        if self._n_indent and self._cuts(text.data):
            return Finish.LENGTH
        broken = text.data.find(b"\n", self._seen) >= 0
        self._seen = len(text.data)
        late = self._seconds > 0 and clock() - self._start > self._seconds
        return Finish.LENGTH if broken and late else None

    def _cuts(self, data: bytearray) -> bool:
        """Whether a line begins with too few blanks; its rest is cut off."""
        while True:
            if self._line:
                blanks = len(data) - self._line - len(data[self._line :].lstrip(b" \t"))
                if blanks < self._n_indent and self._line + blanks < len(data):
                    del data[self._line + blanks :]
                    return True
            broken = data.find(b"\n", self._line)
            if broken < 0:
                return False
            self._line = broken + 1
