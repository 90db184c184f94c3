"""A context that computes nothing: its logits are a function of the tokens in it, so that any order of calls that leads to
the same tokens leads to the same rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyggml.memory.base import Checkpoint
from pyggml.runtime.batch import Batch

N_VOCAB = 256  # a token is a byte
EOG = 0


class Bytes:
    """A vocabulary of bytes. Token 0 ends a text and token 1 is a control token."""

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        if token < 2:
            return b"<%d>" % token if special else b""
        return bytes([token])

    def is_eog(self, token: int) -> bool:
        return token == EOG


class FakeContext:
    """Tokens in order, with an error on demand."""

    def __init__(self, n_ctx: int, fails_at: int | None = None) -> None:
        self.n_ctx, self.fails_at = n_ctx, fails_at
        self.n_ubatch = 8
        self.tokens: list[int] = []
        self.calls: list[tuple[str, int]] = []

    start_token = None
    text: tuple[int, ...] = ()

    def encode(self, tokens: Sequence[int]) -> None:
        raise AssertionError("it has no encoder")

    @property
    def n_past(self) -> int:
        return len(self.tokens)

    def decode(self, tokens: Sequence[int]) -> Any:
        self.calls.append(("decode", len(tokens)))
        for token in tokens:
            if self.n_past == self.fails_at:
                raise RuntimeError("a device failed")
            assert self.n_past < self.n_ctx
            self.tokens.append(token)
        return row(self.tokens)[None]

    def verify(self, tokens: Sequence[int]) -> Any:
        rows = [self.decode([token])[0] for token in tokens]
        self.calls[len(self.calls) - len(rows) :] = [("decode", len(rows))]
        return np.stack(rows)

    def prepare(self, n_tokens: int) -> list[Any]:
        self.calls.append(("prepare", n_tokens))
        return []

    def truncate(self, n: int) -> None:
        assert 0 <= n <= self.n_past
        del self.tokens[n:]

    def shift(self, n_keep: int, n_discard: int) -> None:
        self.calls.append(("shift", n_discard))
        del self.tokens[n_keep : n_keep + n_discard]


def row(tokens: Sequence[int]) -> Any:
    """(N_VOCAB,): what a model that has seen these tokens expects."""
    seed = sum((i + 1) * token for i, token in enumerate(tokens)) % 2**31
    return np.random.default_rng([seed, len(tokens)]).standard_normal(N_VOCAB).astype(np.float32)


class Argmax:
    """The most likely token."""

    def sample(self, logits: Any) -> int:
        return int(logits.argmax())


class Greedy:
    """The most likely token that is a letter."""

    def sample(self, logits: Any) -> int:
        return int(logits[97:123].argmax()) + 97


class Script:
    """These tokens, whatever the logits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def sample(self, logits: Any) -> int:
        return next(self._tokens)


class ForgetfulContext(FakeContext):
    """Goes back `slack` tokens at most, or to the beginning, as windows do, and with 0 recurrent states; it is its own
    memory (pyggml.memory.base.Memory), of one sequence."""

    def __init__(self, n_ctx: int, slack: int = 0) -> None:
        super().__init__(n_ctx)
        self.slack = slack
        self.why_no_shift, self.rewinds = "", False

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        return p0 == 0 or self.n_past - p0 <= self.slack

    def truncate(self, n: int) -> None:
        assert self.can_remove(0, n), (n, self.n_past)
        super().truncate(n)

    def checkpoint(self, seq: int) -> Checkpoint:
        self.calls.append(("checkpoint", self.n_past))
        return Checkpoint(self.n_past, list(self.tokens))

    def restore(self, seq: int, checkpoint: Checkpoint, end: int) -> bool:
        assert checkpoint.end == end
        self.calls.append(("restore", end))
        self.tokens = list(checkpoint.data)
        return True


class ForgetfulSequences:
    """A context of several sequences, each a ForgetfulContext, and its memory; what a Batcher asks of both."""

    start_token = None

    def __init__(self, n_ctx: int, n_seq_max: int, slack: int = 0) -> None:
        self.n_ctx = self.n_ctx_seq = n_ctx
        self.n_seq_max, self.n_ubatch, self.kv_unified = n_seq_max, 8, False
        self.each = [ForgetfulContext(n_ctx, slack) for _ in range(n_seq_max)]
        self.memory = self
        self.why_no_shift, self.rewinds = "", False

    def decode(self, batch: Batch) -> Any:
        rows = []
        for token, pos, seq, output in zip(batch.tokens, batch.pos, batch.seq, batch.outputs, strict=True):
            context = self.each[seq]
            assert context.n_past == pos
            logits = context.decode([int(token)])
            if output:
                rows.append(logits[0])
        return np.array(rows)

    def prepare(self, n_tokens: int) -> list[Any]:
        return []

    def end(self, seq: int) -> int:
        return self.each[seq].n_past

    def truncate(self, n: int, seq: int) -> None:
        self.each[seq].truncate(n)

    def shift(self, n_keep: int, n_discard: int, seq: int) -> None:
        self.each[seq].shift(n_keep, n_discard)

    def can_remove(self, seq: int, p0: int = 0, p1: int | None = None) -> bool:
        return self.each[seq].can_remove(0, p0, p1)

    def checkpoint(self, seq: int) -> Checkpoint:
        return self.each[seq].checkpoint(0)

    def restore(self, seq: int, checkpoint: Checkpoint, end: int) -> bool:
        return self.each[seq].restore(0, checkpoint, end)
