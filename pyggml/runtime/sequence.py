"""One text while it is generated: its tokens, what chooses the next one, and when it has said enough.

Owns the step from a row of logits to a piece of text.
"""

import enum
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyggml.runtime.drafter import draft_size
from pyggml.runtime.logprobs import TokenLogprobs, candidate_logprobs, token_logprobs
from pyggml.runtime.stops import Stops, partial_character
from pyggml.runtime.timings import Timings, clock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyggml.model.lora import Applied
    from pyggml.runtime.drafter import Drafter

    Row = NDArray[np.float32]

SPARE = 4  # tokens that a prompt must leave free for what follows, as in llama.cpp's completion tool


class Finish(enum.Enum):
    """Why a text ended."""

    EOG = "a token that ends a text"
    STOP = "a stop text, a reverse prompt, or somebody's own rule"
    LENGTH = "as many tokens as were wanted"
    FULL = "no room in the context"
    CANCELLED = "nobody wants the rest"
    FAILED = "no token could be chosen: `Sequence.error` says why"


class Status(enum.Enum):
    """How far a text is."""

    WAITING = "no token chosen yet: the prompt is to be computed"
    RUNNING = "the token chosen last is to be computed"
    FINISHED = "nothing more to compute"


class Piece(NamedTuple):
    """A token that was chosen.

    data     what it adds to the text; of a token that ends it, what it is called if names are shown
    settled  bytes of `Sequence.data` that can no longer change: a stop text or a character that is not complete may
    finish   why it is the last one, or None
    """

    token: int
    data: bytes
    settled: int
    finish: Finish | None


class Sampler(Protocol):
    """A part of pyggml.sampler.SamplerChain."""

    def sample(self, logits: "Row") -> int:
        """The next token, accepted. `logits`: (n_vocab,) f32."""


class Vocabulary(Protocol):
    """A part of pyggml.tokenizer.Tokenizer."""

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """What the token adds to the text; of control tokens only with `special`."""

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a text."""


class Sequence:
    """`push` takes a row of logits and gives a piece; `pending` are the tokens to compute before the next row.

    tokens      prompt, answer and what `extend` brought; not a token that ended it
    source      the prompt where it is a text that an encoder reads; `tokens` are those of the answer alone then
    vocabulary  None: tokens alone count, there is no text and none of them ends it
    special     whether control tokens add their names to the text; a set: those of these tokens
    max_tokens  below 0: without end
    stops       texts that end it
    stop_when   called with the sequence, a token longer, and the row that it was chosen from: whether that is enough, or why it
                is; it may cut off the end of `data`
    n_logprobs  also note each token's log-probability and those of so many of the most likely
    timings     to add to
    cancelled   an event that ends it before the next token; `cancel` sets it
    drafter     makes guesses at the next tokens, which are computed together with the last one
    messages    which tokens of the prompt begin a message of a user, by number: places to go back to
    reuses      whether tokens that are computed already, of a text before, need not be computed again
    candidates  gives tokens that could have been chosen last and their probabilities, the most likely first: log-probabilities
                are of these then, not the model's
    wants       the number of the context's sequence that it is to have; None: any
    after       a text with the same prompt, which is computed once, for that one
    shift       tokens that stay when the context is full and goes on, and how many are forgotten then, 0: half of the others; None:
                as its slot has it
    adapters    LoRA adapters with their scales that a batcher computes it with; None: those that the context has
    """

    def __init__(
        self,
        prompt: Items[int],
        sampler: Sampler,
        vocabulary: Vocabulary | None = None,
        *,
        special: bool | Set[int] = False,
        max_tokens: int = -1,
        stops: Stops | None = None,
        stop_when: "Callable[[Sequence, Row], bool | Finish | None] | None" = None,
        n_logprobs: int | None = None,
        timings: Timings | None = None,
        cancelled: threading.Event | None = None,
        messages: Items[int] = (),
        reuses: bool = True,
        drafter: "Drafter | None" = None,
        candidates: "Callable[[], tuple[NDArray[np.int32], Row]] | None" = None,
        wants: int | None = None,
        after: "Sequence | None" = None,
        shift: tuple[int, int] | None = None,
        adapters: "tuple[Applied, ...] | None" = None,
    ) -> None:
        self.tokens = list(prompt)
        self.source: list[int] = []
        self._first = len(self.tokens)
        self.pending = list(self.tokens)
        self.sampler = sampler
        self.vocabulary = vocabulary
        self.special = special
        self.max_tokens = max_tokens
        self.stops = stops
        self.stop_when = stop_when
        self.n_logprobs = n_logprobs
        self.timings = timings or Timings()
        self.n_reused = 0  # tokens of the prompt that were not computed
        self.data = bytearray()  # the answer
        self.cut_off = b""  # what a stop text has taken off its end
        self.ends: list[int] = []  # bytes of the answer up to and with each of its tokens
        self.logprobs: list[TokenLogprobs] = []  # one a token of the answer, if they were asked for
        self.finish: Finish | None = Finish.LENGTH if max_tokens == 0 else None
        self.error: Exception | None = None  # of Finish.FAILED
        self._cancelled = cancelled or threading.Event()
        self._messages = list(messages)
        self.reuses = reuses
        self.drafter = drafter
        self.candidates, self.wants, self.after, self.adapters = candidates, wants, after, adapters
        self.shift = shift
        self.seq = -1  # the context's sequence that it has, or had last
        self.n_drafts = self.n_shifted = 0  # drafts that were computed, and tokens that a context shift has forgotten
        self.n_drafted = self.n_kept = 0  # tokens of drafts, and those of them that were chosen

    @property
    def points(self) -> list[int]:
        """Tokens from the beginning of each message of a user to the end of the text."""
        return [len(self.tokens) - first for first in self._messages]

    @property
    def status(self) -> Status:
        """How far it is."""
        if self.finish is not None:
            return Status.FINISHED
        return Status.RUNNING if self.ends else Status.WAITING

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt; those of `extend` are among them."""
        return self.tokens[self._first :]

    @property
    def n_chosen(self) -> int:
        """Tokens that were chosen, the one that ended the text among them."""
        return len(self.ends) + (self.finish is Finish.EOG)

    @property
    def prompt(self) -> list[int]:
        """The tokens that it answers or goes on from."""
        return self.source or self.tokens[: self._first]

    @property
    def n_prompt(self) -> int:
        """How many those are."""
        return len(self.source) or self._first

    def answer_to(self, start_token: int | None) -> None:
        """The prompt is a text for an encoder, and what answers it begins with this token; None: there is no encoder."""
        if start_token is not None and not self.source:
            self.source, self.tokens, self.pending = self.tokens, [start_token], [start_token]
            self._first, self._messages = 1, []

    @property
    def cancelled(self) -> bool:
        """Whether somebody has called `cancel`."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Choose no further token; from any thread."""
        self._cancelled.set()

    def fail(self, error: Exception) -> None:
        """Choose no further token, as `error` came of it or of computing it."""
        self.finish, self.error = Finish.FAILED, error

    def reuse(self, n: int) -> None:
        """The first `n` tokens need not be computed."""
        if not self.ends:
            self.n_reused = n
        del self.pending[:n]

    def extend(self, tokens: Items[int]) -> None:
        """Somebody else's tokens after those there, which nobody chose."""
        self.tokens += tokens
        self.pending += tokens

    def guesses_wanted(self, room: int) -> int:
        """Guesses at the tokens after those there that are of use at most; 0: none are."""
        if self.drafter is None or self.finish is not None:
            return 0
        left = self.max_tokens - len(self.ends) - 1 if self.max_tokens >= 0 else room
        return max(0, min(room, left))

    def draft(self, room: int) -> list[int]:
        """Guesses at the tokens after those there, at most so many as are wanted and have room."""
        most = self.guesses_wanted(room)
        guesses = self.drafter.draft(self.tokens, most) if self.drafter is not None and most else []
        return guesses[: draft_size(min(most, len(guesses)))]

    def check(self, draft: Items[int], rows: "Iterable[Row]") -> "Iterator[Piece]":
        """The pieces of `rows`, which are those after the last token and after each of the draft's: until one is another
        than was guessed, or ends the text. Then `pending` is the last token, which is not computed."""
        kept = 0
        for guess, row in zip((*draft, None), rows, strict=True):
            piece = self.push(row)
            going_on = self.finish is None and piece.token == guess
            if going_on:
                kept += 1
                self.pending = []
            elif self.drafter is not None and draft:
                self.n_drafts += 1
                self.n_drafted, self.n_kept = self.n_drafted + len(draft), self.n_kept + kept
                self.drafter.kept(len(draft), kept)
            yield piece
            if not going_on:
                return

    def _logprobs(self, logits: "Row", token: int, n: int) -> TokenLogprobs:
        if self.candidates is None:
            return token_logprobs(logits, token, n)
        return candidate_logprobs(*self.candidates(), token, n)

    def shows(self, token: int) -> bool:
        """Whether the name of this token, if it is a control token, is part of the text."""
        return self.special if isinstance(self.special, bool) else token in self.special

    def push(self, logits: "Row") -> Piece:
        """Choose a token. logits (n_vocab,): those after all of `pending`. Raises SamplerError, GrammarError."""
        assert self.finish is None, self.finish
        start = clock()
        token = self.sampler.sample(logits)
        self.timings.sample += clock() - start
        self.timings.n_sample += 1
        vocabulary = self.vocabulary
        data = b"" if vocabulary is None else vocabulary.token_bytes(token, self.shows(token))
        if vocabulary is not None and vocabulary.is_eog(token):
            self.finish = Finish.EOG
            return Piece(token, data, len(self.data), self.finish)
        if self.n_logprobs is not None:
            self.logprobs.append(self._logprobs(logits, token, self.n_logprobs))
        self.tokens.append(token)
        self.pending = [token]
        self.data += data
        self.ends.append(len(self.data))
        cut = None if self.stops is None else self.stops.push(token, data)
        if cut is not None:
            self.cut_off = bytes(self.data[len(self.data) - cut :])
            del self.data[len(self.data) - cut :]
            self.finish = Finish.STOP
        elif self.stop_when is not None and (why := self.stop_when(self, logits)):
            self.finish = why if isinstance(why, Finish) else Finish.STOP
        elif len(self.ends) == self.max_tokens:
            self.finish = Finish.LENGTH
        settled = len(self.data)
        if self.finish is None:
            settled -= max(partial_character(self.data), 0 if self.stops is None else self.stops.held())
        return Piece(token, data, settled, self.finish)
