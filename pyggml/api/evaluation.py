"""What a `Llama` has evaluated, and what comes next: tokens, logits, samplers, states.

Owns the calls of llama_cpp.Llama that deal in tokens.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyggml.api.arguments import (
    F32,
    LogitsProcessor,
    ParameterError,
    SamplingError,
    StoppingCriterion,
    apply_logits_processors,
    sampler_chain,
    sampling,
    should_stop,
    without_effect,
    without_flags,
)
from pyggml.api.cache import BaseLlamaCache
from pyggml.api.checks import ParameterTypeError, check, tokens_of
from pyggml.api.facts import LlamaFacts
from pyggml.api.scored_slot import ScoredSlot
from pyggml.api.state import LlamaState
from pyggml.api.turns import Turns
from pyggml.errors import SamplerError, StateError
from pyggml.grammar import LlamaGrammar
from pyggml.prefix import common_prefix
from pyggml.runtime.draft_pace import DraftPace
from pyggml.runtime.generate import generate
from pyggml.runtime.logprobs import log_softmax
from pyggml.runtime.sequence import Piece, Sampler
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.state import parse, parts
from pyggml.runtime.timings import clock
from pyggml.sampler import LLAMA_DEFAULT_SEED, SamplerChain


def told(text: str) -> None:
    """A line of a `Llama` with verbose=True."""
    print(f"pyggml: {text}", file=sys.stderr, flush=True)


class _Processed:
    """A sampler that sees logits after the user's own functions."""

    def __init__(self, chain: Sampler, processors: Any, ids: Callable[[], NDArray[np.int32]]) -> None:
        self._chain, self._processors, self._ids = chain, processors, ids

    def sample(self, logits: F32) -> int:
        return self._chain.sample(apply_logits_processors(logits, self._ids(), self._processors))


class Evaluation(LlamaFacts):
    """The part of `Llama` between the model and a completion. A constructor calls `_start` once its context is there.

    scores    (n_ctx, n_vocab) f32 with logits_all: row i are the logits after token i; else (1, n_vocab)
    n_tokens  tokens evaluated; may be set to a smaller number to go back
    """

    _slot: ScoredSlot
    _turns: Turns
    verbose: bool
    last_n_tokens_size: int
    seed: int
    cache: BaseLlamaCache | None
    _noted: set[str]
    _draft_pace: DraftPace

    def _start(self, n_batch: int, logits_all: bool) -> None:
        """Begin with nothing evaluated."""
        context = self.context
        self._draft_pace = DraftPace(lambda: clock() - context.seconds_for_graphs)
        self._slot = ScoredSlot(self.context, n_batch, logits_all, self._say)

    def _begun_slot(self) -> ScoredSlot:
        """Also after `close`. Raises ContextError where the model makes no text."""
        return self._slot if "_slot" in vars(self) else self._open_slot()

    def _open_slot(self) -> ScoredSlot:
        """Raises ContextError after `close`."""
        _ = self.context
        return self._slot

    def _say(self, text: str) -> None:
        if self.verbose:
            told(text)

    def _noting(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say once of each parameter that has no effect so; gives back what was given. Raises ParameterTypeError."""
        check(given)
        for name, line in without_effect(given).items():
            if name not in self._noted:
                self._noted.add(name)
                self._say(line)
        return given

    # ---- what is evaluated

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated."""
        return len(self._begun_slot().tokens)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._begun_slot().go_back(n)

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """(n_ctx,): the tokens evaluated, zeros behind them."""
        ids = np.zeros(self._begun_slot().context.n_ctx, np.int32)
        ids[: self.n_tokens] = self._slot.tokens
        return ids

    @property
    def scores(self) -> F32:
        """(n_ctx, n_vocab) f32 with logits_all: row i are the logits after token i; else (1, n_vocab)."""
        return self._begun_slot().scores

    @property
    def _logits_all(self) -> bool:
        return self._slot.logits_all

    @property
    def _input_ids(self) -> NDArray[np.int32]:
        return np.array(self._slot.tokens, np.int32)

    @property
    def _scores(self) -> F32:
        return self.scores[: self.n_tokens]

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens evaluated."""
        return deque(self._slot.tokens, maxlen=self.n_ctx())

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Their logits; without logits_all the last row."""
        return deque(self._scores.tolist(), maxlen=self.n_ctx() if self._logits_all else 1)

    @property
    def last_logits(self) -> F32:
        """(n_vocab,): the logits after the last token evaluated. Raises ContextError when there is none."""
        return self._slot.last_logits

    def reset(self) -> None:
        """Forget the tokens evaluated."""
        with self._turns as turns:
            turns.begin()
            self._slot.go_back(0)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those there. Raises ContextError when they do not fit."""
        with self._turns as turns:
            turns.begin()
            slot = self._open_slot()
            if given := tokens_of("tokens", tokens):
                slot.decode(given)

    # ---- choosing

    def set_seed(self, seed: int) -> None:
        """The seed that those of the following calls are derived from; -1: each of them is random."""
        self.seed = LLAMA_DEFAULT_SEED if seed == -1 else seed

    def _next_seed(self, given: int | None) -> int:
        """The seed of a call: the one given; else derived from that of the call before, as llama-cpp-python does it, or
        random where nobody has given this Llama a seed."""
        seed = LLAMA_DEFAULT_SEED if given in (None, -1) else given
        if given is None and self.seed != LLAMA_DEFAULT_SEED:
            seed = random.Random(self.seed).randint(0, 2**32) & 0xFFFFFFFF
        if self.seed != LLAMA_DEFAULT_SEED != seed:
            self.seed = seed
        return seed

    def _new_chain(self, seed: int | None = None, **sampling: Any) -> SamplerChain:
        try:
            return sampler_chain(
                self.n_vocab(),
                seed=(self.seed if seed is None else seed) & 0xFFFFFFFF,
                last_n=self.last_n_tokens_size,
                vocab=self._tokenizer,
                **sampling,
            )
        except SamplerError as reason:
            raise SamplingError(without_flags(str(reason))) from None

    def _sampler(
        self, chain: SamplerChain, processors: Any, ids: Callable[[], NDArray[np.int32]] | None = None
    ) -> Sampler:
        """`ids`: the tokens so far, for the user's functions; None: those evaluated."""
        return chain if processors is None else _Processed(chain, processors, ids or (lambda: self._input_ids))

    def _rule(self, criteria: Any, whole: bool = False) -> Callable[[Text, F32], bool] | None:
        """The user's own functions as a sequence asks them: with all tokens so far, and the last row of logits. `whole`: the
        sequence has all of them."""
        if criteria is None:
            return None

        def rule(text: Text, row: F32) -> bool:
            ids = text.tokens if whole else [*self._slot.tokens, text.tokens[-1]]
            return should_stop(np.array(ids, np.int32), row, criteria)

        return rule

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None = None,
        grammar: str | LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """A token after the last one, or after token `idx`."""
        given = self._noting(locals())
        if idx is None or idx == self.n_tokens - 1:
            logits = self.last_logits
        elif not self._logits_all or not 0 <= idx < self.n_tokens:
            raise ParameterError(f"idx={idx}: there are no logits of that token (logits_all={self._logits_all})")
        else:
            logits = self.scores[idx]
        return self._sampler(self._new_chain(**sampling(given)), logits_processor).sample(logits)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Iterable[StoppingCriterion] | None = None,
        grammar: str | LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens after `tokens`, without end: a ContextError when the context is full. What is sent in is evaluated too.

        With `reset` the tokens replace what was evaluated before, and their common prefix is not evaluated again.
        """
        chain = self._new_chain(**sampling(self._noting(locals())))
        return self._generate(tokens, chain, reset, logits_processor, stopping_criteria)

    def _generate(
        self,
        tokens: Sequence[int],
        chain: SamplerChain,
        reset: bool,
        logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None,
        stopping_criteria: StoppingCriterion | Iterable[StoppingCriterion] | None,
    ) -> Generator[int, Sequence[int] | None, None]:
        sampler, rule = self._sampler(chain, logits_processor), self._rule(stopping_criteria)
        text = Text(tokens_of("tokens", tokens), sampler, stop_when=rule)
        for piece in self._pieces(text, reset):
            if piece.finish is not None:
                return
            more = yield piece.token
            text.extend(tokens_of("tokens", [] if more is None else more))

    def _pieces(self, text: Text, reset: bool = True) -> Iterator[Piece]:
        """What `generate` gives, each piece in a turn of its own. Raises OvertakenError."""
        with self._turns as turns:
            number = turns.begin()
            steps = generate(self._open_slot(), text, begin=reset, pace=self._draft_pace)
        while True:
            with turns:
                turns.check(number)
                piece = next(steps, None)
            if piece is None:
                return
            yield piece
            if piece.finish is not None:  # nothing more is computed: who has overtaken it does no harm
                return

    longest_token_prefix = staticmethod(common_prefix)

    @staticmethod
    def logits_to_logprobs(logits: F32 | Sequence[float], axis: int = -1) -> F32:
        """log softmax in f32."""
        return log_softmax(logits, axis)

    # ---- states

    def save_state(self) -> LlamaState:
        """A copy of all that the tokens evaluated have left behind; it may be pickled."""
        with self._turns:
            context, slot = self.context, self._slot
            slot.settle()
            data = b"".join(parts(context, slot.tokens, checkpoints=slot.checkpoints.kept))
            return LlamaState(self._input_ids, slot.kept_scores(), self.n_tokens, data, len(data), self.seed)

    def load_state(self, state: LlamaState) -> None:
        """Go on from there. Raises StateError when it is of another model, or longer than this context."""
        if not isinstance(state, LlamaState):
            raise ParameterTypeError(f"state={state!r:.60}: must be what save_state gave")
        saved = parse(state.llama_state, "state")
        if len(saved.tokens) > self.n_ctx():
            raise StateError(f"state: {len(saved.tokens)} tokens do not fit into a context of {self.n_ctx()}")
        with self._turns as turns:
            turns.begin()
            n = saved.restore(self.context, len(saved.tokens))
            self._slot.restore(saved.tokens[:n].tolist(), state.scores, saved.checkpoints(self.context, n))
            self.seed = state.seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Completions keep their states in this cache, and begin with the one that has most of their prompt."""
        if cache is not None and not all(
            hasattr(cache, name) for name in ("__contains__", "__getitem__", "__setitem__")
        ):
            raise ParameterTypeError(f"cache={cache!r:.60}: must be a LlamaCache, or have its methods")
        self.cache = cache
