"""`Llama.set_cache`: states of texts computed before, by their tokens, as llama-cpp-python keeps them in memory.

Owns which states are kept and which one is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from pyggml.api.state import LlamaState
from pyggml.prefix import common_prefix


class LlamaRAMCache:
    """A mapping from tokens to states of at most `capacity_bytes` together; the one used longest ago goes first.

    `cache[tokens]` is the state that has the most tokens at the beginning in common; KeyError where none has any.
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes
        self.cache_state: OrderedDict[tuple[int, ...], LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """Bytes of all states."""
        return sum(state.llama_state_size for state in self.cache_state.values())

    def _nearest(self, tokens: Sequence[int]) -> tuple[int, ...] | None:
        found = max(self.cache_state, key=lambda key: common_prefix(key, tokens), default=None)
        return found if found is not None and common_prefix(found, tokens) else None

    def __getitem__(self, tokens: Sequence[int]) -> LlamaState:
        key = self._nearest(tokens)
        if key is None:
            raise KeyError("no state begins with these tokens")
        self.cache_state.move_to_end(key)
        return self.cache_state[key]

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return self._nearest(tokens) is not None

    def __setitem__(self, tokens: Sequence[int], state: LlamaState) -> None:
        key = tuple(int(token) for token in tokens)
        self.cache_state.pop(key, None)
        self.cache_state[key] = state
        while self.cache_state and self.cache_size > self.capacity_bytes:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache
