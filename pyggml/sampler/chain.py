"""The sampler chain: an ordered list of stages, and the state between tokens.

Owns the order and what goes in and out.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pyggml.errors import GrammarError, SamplerError
from pyggml.grammar.lazy import LazyGrammar
from pyggml.grammar.vocabulary import GrammarState
from pyggml.sampler.adaptive import AdaptiveP, Mirostat, MirostatV2
from pyggml.sampler.budget import Budget
from pyggml.sampler.candidates import F32, I32, Candidates, softmax
from pyggml.sampler.params import SamplerParams
from pyggml.sampler.stages import Dist, LogitBias, PlainTemperature, Random, Stage
from pyggml.sampler.table import STAGES, samplers_from_names
from pyggml.sampler.vocabulary import Vocabulary

MIROSTAT_M = 100  # common/sampling.cpp


class SamplerChain:
    """Logits in, token out: llama.cpp's common_sampler (common/sampling.cpp).

    The same parameters, seed and logits give the same tokens. `stages` may be given instead of those that the
    parameters make; the last one has to select. `vocab` (a Tokenizer) is needed for a grammar, for the breakers of
    DRY and for infill. Raises SamplerError for a biased token outside the vocabulary, GrammarError for a bad grammar.

    Of a token drawn, the grammar is asked whether it fits. Only if not, all tokens that do not fit are banned and the
    stages draw again (so that their random numbers advance twice); `grammar_first` bans them before every draw.
    `grammar`: what another chain made of the same grammar, at its beginning; both share what they learn of it.
    """

    def __init__(
        self,
        params: SamplerParams,
        n_vocab: int,
        stages: Sequence[Stage] | None = None,
        vocab: Vocabulary | None = None,
        grammar_first: bool = False,
        grammar: GrammarState | LazyGrammar | None = None,
    ) -> None:
        self.params = params
        self.n_vocab = n_vocab
        self.candidates: Candidates | None = None  # what the last draw left; None before the first
        self.stages = list(stages) if stages is not None else self._build(vocab)
        self.grammar_first = grammar_first
        self.grammar = None if grammar is None else grammar.clone()
        if params.grammar and grammar is None:
            if vocab is None:
                raise SamplerError("a grammar needs the model's vocabulary: give SamplerChain a vocab")
            trigger = params.grammar_trigger
            lazy = None if trigger is None else LazyGrammar(params.grammar, vocab, trigger)
            self.grammar = lazy or GrammarState(params.grammar, vocab)
        self.budget: Budget | None = None
        if params.budget is not None:
            if vocab is None:
                raise SamplerError("a budget of reasoning needs the model's vocabulary: give SamplerChain a vocab")
            self.budget = Budget(params.budget, vocab.token_bytes)
        self._ids: I32 = np.arange(n_vocab, dtype=np.int32)
        self._ids.flags.writeable = False

    def _build(self, vocab: Vocabulary | None) -> list[Stage]:
        p = self.params
        bias = LogitBias.from_params(p)
        outside = bias.tokens[bias.tokens >= self.n_vocab]
        if len(outside):
            raise SamplerError(f"--logit-bias: token {outside[0]} is not in the vocabulary of {self.n_vocab}")
        first: list[Stage] = [] if bias.disabled else [bias]
        if p.mirostat == 1:
            last: Stage = Mirostat(self.n_vocab, p.seed, p.mirostat_tau, p.mirostat_eta, MIROSTAT_M)
            return [*first, PlainTemperature.from_params(p), last]
        if p.mirostat == 2:
            return [*first, PlainTemperature.from_params(p), MirostatV2.from_params(p)]
        names = samplers_from_names(p.samplers)
        ordered = [STAGES[name].from_params(p, vocab) for name in names if STAGES[name] is not AdaptiveP]
        last = AdaptiveP.from_params(p) if "adaptive_p" in names else Dist.from_params(p)
        return [*first, *ordered, last]

    def sample(self, logits: F32) -> int:
        """The next token, accepted. `logits`: (n_vocab,) f32, read only.

        A token whose logit is NaN is never chosen; +inf counts as the largest f32. Raises SamplerError when no token
        is left (every logit NaN or -inf), or when no stage selects.
        """
        token = self.draw(logits)
        self.accept(token, drawn=True)
        return token

    def draw(self, logits: F32) -> int:
        """As `sample`, without accepting the token (the random numbers do advance)."""
        logits = np.asarray(logits, np.float32)
        if logits.shape != (self.n_vocab,):
            raise SamplerError(f"logits of shape {logits.shape} for a vocabulary of {self.n_vocab}")
        top = logits.max()  # NaN if any is
        if not np.isfinite(top):
            logits = np.nan_to_num(logits, nan=-np.inf, posinf=None, neginf=-np.inf)
            if logits.max() == -np.inf:
                raise SamplerError(f"no token is left to choose: all {self.n_vocab} logits are NaN or -inf")
        if self.budget is not None and (wanted := self.budget.wanted) is not None:
            return self._run(np.where(self._ids == wanted, np.float32(0), np.float32(-np.inf)))
        if self.grammar is None:
            return self._run(logits)
        if not self.grammar_first:
            token = self._run(logits)
            if self.grammar.allows(token):
                return token
        fitting = np.where(self.grammar.mask(), logits, np.float32(-np.inf))
        if fitting.max() == -np.inf:
            raise GrammarError(f"grammar: none of the {self.n_vocab} tokens fits here")
        return self._run(fitting)

    def _run(self, logits: F32) -> int:
        """All stages, on all tokens."""
        c = self.candidates = Candidates(self._ids, logits)
        with np.errstate(all="ignore"):  # inf is a result here: extreme biases and temperatures are the user's choice
            for stage in self.stages:
                if not stage.disabled:
                    stage.apply(c)
        if c.selected < 0:
            raise SamplerError(f"no stage of the chain selects a token: {self}")
        return int(c.ids[c.selected])

    @property
    def probs(self) -> tuple[I32, F32]:
        """Token ids and probabilities of the last draw's candidates, the most likely first; p adds up to 1."""
        assert self.candidates is not None, "nothing drawn yet"
        c = self.candidates
        if c.p is None:
            softmax(c)
        assert c.p is not None
        order = np.argsort(-c.p, kind="stable")
        return c.ids[order], c.p[order]

    @property
    def seed(self) -> int | None:
        """The seed in use, also when it was chosen at random; None without a random stage."""
        return next((stage.seed_cur for stage in reversed(self.stages) if isinstance(stage, Random)), None)

    def accept(self, token: int, drawn: bool = False) -> None:
        """Tells the stages of a token of the text: those of the prompt, and any drawn without `sample`.

        Grammar and budget hear of those `drawn` alone; GrammarError is raised if one does not fit.
        """
        assert 0 <= token < self.n_vocab, (token, self.n_vocab)
        if drawn and self.grammar is not None:
            self.grammar.accept(token)
        if drawn and self.budget is not None:
            self.budget.accept(token)
        for stage in self.stages:
            stage.accept(token)

    def reset(self) -> None:
        """As newly made: no history, the random numbers from the start (a random seed is chosen again)."""
        self.candidates = None
        if self.grammar is not None:
            self.grammar.reset()
        if self.budget is not None:
            self.budget.reset()
        for stage in self.stages:
            stage.reset()

    def clone(self) -> "SamplerChain":
        """A chain that goes on exactly as this one would, independently of it."""
        stages = [stage.clone() for stage in self.stages]
        other = SamplerChain(
            replace(self.params, grammar="", budget=None), self.n_vocab, stages, None, self.grammar_first
        )
        other.params = self.params
        other.grammar = self.grammar.clone() if self.grammar is not None else None
        other.budget = self.budget.clone() if self.budget is not None else None
        return other

    def __str__(self) -> str:
        """llama.cpp's "sampler chain:" line (common_sampler_print); "?" marks a stage that changes nothing."""
        return " -> ".join(["logits", *map(str, self.stages)])
