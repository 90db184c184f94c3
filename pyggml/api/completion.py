"""Completions in the shape that OpenAI's API and llama-cpp-python return: dicts, whole or as a stream.

Owns the step from a prompt's text to a sequence, and from its pieces to answer dicts: echo, suffix, logprobs.
"""

from __future__ import annotations

import time
import uuid
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pyggml.api.arguments import LogitsProcessor, ParameterError, StoppingCriterion, sampling
from pyggml.api.checks import tokens_of
from pyggml.api.draft_model import Asked, DraftModel
from pyggml.api.evaluation import Evaluation
from pyggml.api.tokenizers import LlamaTokenizer, Spoken
from pyggml.errors import ContextError
from pyggml.grammar import LlamaGrammar
from pyggml.prefix import common_prefix
from pyggml.runtime.logprobs import TokenLogprobs, token_logprobs
from pyggml.runtime.sequence import Finish, Piece, Vocabulary
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.stops import StopTexts


class TooLongError(ContextError, ValueError):
    """A prompt that leaves no room in the context."""


class Completions(Evaluation):
    """The part of `Llama` that continues texts."""

    model_path: str
    spm_infill: bool
    draft_model: DraftModel | None

    def create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | list[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriterion | Iterable[StoppingCriterion] | None = None,
        logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None = None,
        grammar: str | LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Any:
        """Continue `prompt` (text, or tokens used as they are); a dict, or with `stream` an iterator of dicts.

        max_tokens  None or <= 0: until the text ends or the context is full
        stop        texts that end the answer and are not part of it
        logprobs    also give the log-probability of each token and of the n most likely; needs logits_all=True
        suffix      appended; a model with fill-in-the-middle tokens generates what comes between prompt and suffix
        seed        default: derived from the Llama's seed, another one for each call; random where it has none

        Raises ParameterError and ContextError, which are also ValueErrors here.
        """
        given = self._noting(locals())
        if logprobs is not None and not self._logits_all:
            raise ParameterError("logprobs needs a model made with logits_all=True")
        texts = [stop] if isinstance(stop, str) else list(stop or [])
        if "" in texts:
            raise ParameterError("stop: an empty text would end every answer at once")
        tokens, appended = self._prompt_tokens(prompt, suffix)
        room = self.n_ctx() - len(tokens)
        if room <= 0:
            raise TooLongError(f"Requested tokens ({len(tokens)}) exceed context window of {self.n_ctx()}")
        prompt_text = prompt if isinstance(prompt, str) else self.detokenize(tokens).decode("utf-8", "ignore")
        head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model if model is not None else self.model_path,
        }
        with self._turns:
            if not stream:
                self._look_up(tokens)
            chain = self._new_chain(self._next_seed(seed), **sampling(given))
            answer = Text(
                tokens,
                self._sampler(chain, logits_processor, lambda: np.array(answer.tokens, np.int32)),
                self._vocabulary(tokens),
                special=grammar.shown if isinstance(grammar, LlamaGrammar) else False,
                max_tokens=min(max_tokens, room) if max_tokens is not None and max_tokens > 0 else room,
                stops=StopTexts([text.encode() for text in texts]),
                stop_when=self._rule(stopping_criteria, whole=True),
                n_logprobs=logprobs,
                drafter=None if self.draft_model is None else Asked(self.draft_model, self.n_vocab()),
            )
            pieces = self._kept(answer, looks_up=stream)
            if stream:
                return self._chunks(pieces, answer, head, len(prompt_text), appended)
            for _ in pieces:
                pass
            numbers = None if logprobs is None else self._all_logprobs(answer, len(prompt_text), echo)
        whole = answer.data.decode("utf-8", "ignore") + appended
        choice = {
            "text": prompt_text + whole if echo else whole,
            "index": 0,
            "logprobs": numbers,
            "finish_reason": _reason(answer),
        }
        n_done = len(answer.answer)
        usage = {"prompt_tokens": len(tokens), "completion_tokens": n_done, "total_tokens": len(tokens) + n_done}
        return {**head, "choices": [choice], "usage": usage}

    __call__ = create_completion

    def _vocabulary(self, prompt: list[int]) -> Vocabulary:
        """What says which text an answer's tokens are."""
        given = self.tokenizer_
        return self._tokenizer if isinstance(given, LlamaTokenizer) else Spoken(given, self._tokenizer, prompt)

    def _prompt_tokens(self, prompt: str | list[int], suffix: str | None) -> tuple[list[int], str]:
        """Tokens to evaluate, and the text to put after the answer."""
        if not isinstance(prompt, str):
            tokens = tokens_of("prompt", prompt)
            bad = [token for token in tokens if not 0 <= token < self.n_vocab()]
            if bad:
                raise ParameterError(f"prompt: token {bad[0]} is not in the vocabulary of {self.n_vocab()}")
            if not tokens:
                raise ParameterError("prompt: it has no tokens")
            return tokens, suffix or ""
        marks = self.fim_tokens() if suffix is not None else None
        if suffix is not None and marks is not None:
            before, after, middle = marks
            front = [before, *self.tokenize(prompt.encode(), add_bos=False, special=False)]
            back = [after, *self.tokenize(suffix.encode(), add_bos=False, special=False)]
            order = back + front if self.spm_infill else front + back
            return [*self.tokenize(b"", add_bos=True), *order, middle], ""
        tokens = self._tokenizer.encode(
            prompt, add_special=True, parse_special=True, warn=False
        )  # here it is a warning
        bos = self.token_bos()
        if tokens[:2] == [bos, bos]:
            warnings.warn(
                "the prompt begins with BOS, which is added anyway: leave it out", RuntimeWarning, stacklevel=3
            )
        if not tokens:
            if bos < 0:
                raise ParameterError("prompt: empty, and the model has no BOS token to begin with")
            tokens = [bos]
        return tokens, suffix or ""

    def _look_up(self, tokens: list[int]) -> None:
        """Take a state out of the cache that has more of the prompt than the context has now."""
        if self.cache is not None and tokens in self.cache:
            state = self.cache[tokens]
            if common_prefix(state.input_ids.tolist(), tokens) > common_prefix(self._slot.tokens, tokens):
                self.load_state(state)

    def _kept(self, answer: Text, looks_up: bool) -> Iterator[Piece]:
        """The pieces; the state before them comes out of the cache with `looks_up`, the one after them goes there."""
        if looks_up:
            with self._turns:
                self._look_up(answer.tokens)
        yield from self._pieces(answer)
        if self.cache is not None:
            with self._turns:
                n = self.n_tokens  # the last token may not be evaluated; and perhaps somebody else has begun something
                if n >= len(answer.tokens) - 1 and self._slot.tokens == answer.tokens[:n]:
                    self.cache[answer.tokens] = self.save_state()

    def _chunks(
        self, pieces: Iterator[Piece], answer: Text, head: dict[str, Any], n_prompt: int, appended: str
    ) -> Iterator[dict[str, Any]]:
        """A chunk for each piece of text that can no longer change, and one at the end that carries the reason. `n_prompt`:
        characters of the prompt."""

        def chunk(text: str, info: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
            return {**head, "choices": [{"text": text, "index": 0, "logprobs": info, "finish_reason": reason}]}

        numbers = answer.n_logprobs is not None
        sent_bytes = sent_tokens = 0
        for piece in pieces:
            settled = piece.settled
            last = len(answer.ends) if piece.finish else bisect_right(answer.ends, settled)
            if numbers and not piece.finish:  # a token's text and its numbers go together
                settled = answer.ends[last - 1] if last else 0
            if settled > sent_bytes or (numbers and piece.finish and last > sent_tokens):
                text = answer.data[sent_bytes:settled].decode("utf-8", "ignore")
                info = None
                if numbers:
                    offset = n_prompt + len(answer.data[:sent_bytes].decode("utf-8", "ignore"))
                    info = self._logprobs(answer, sent_tokens, last, offset)
                sent_bytes, sent_tokens = settled, last
                yield chunk(text, info, None)
        if appended:
            yield chunk(appended, None, None)
        yield chunk("", None, _reason(answer))

    def _top(self, token: int, numbers: TokenLogprobs) -> dict[str, float]:
        """The log-probabilities of the most likely tokens and of the token itself, by their text."""
        ranked = [*numbers.top, (token, numbers.value)]
        return {self.detokenize([i]).decode("utf-8", "ignore"): value for i, value in ranked}

    def _logprobs(self, answer: Text, first: int, last: int, offset: int) -> dict[str, Any]:
        """The entry for the answer's tokens `first` to `last`; `offset`: characters before the first of them."""
        starts = [0, *answer.ends]
        data, base, chosen = answer.data + answer.cut_off, starts[first], answer.answer
        texts = [data[starts[i] : starts[i + 1]].decode("utf-8", "ignore") for i in range(first, last)]
        return {
            "tokens": texts,
            "text_offset": [offset + len(data[base : starts[i]].decode("utf-8", "ignore")) for i in range(first, last)],
            "token_logprobs": [answer.logprobs[i].value for i in range(first, last)],
            "top_logprobs": [self._top(chosen[i], answer.logprobs[i]) for i in range(first, last)],
        }

    def _all_logprobs(self, answer: Text, n_prompt: int, echo: bool) -> dict[str, Any]:
        """The entry of a whole answer; with `echo` it begins with the prompt, whose first token has no numbers."""
        n = answer.n_logprobs
        assert n is not None
        own = self._logprobs(answer, 0, len(answer.answer), n_prompt)
        if not echo:
            return own
        prompt = answer.prompt
        first = 1 if prompt[0] == self.token_bos() else 0
        pieces = [self.detokenize([token], prev_tokens=prompt[:i]) for i, token in enumerate(prompt)]
        scored = [token_logprobs(self.scores[i - 1], prompt[i], n) for i in range(max(first, 1), len(prompt))]
        blank: list[Any] = [None] * (len(prompt) - first - len(scored))
        tops = [
            self._top(token, numbers)
            for token, numbers in zip(prompt[len(prompt) - len(scored) :], scored, strict=True)
        ]
        entry = {
            "tokens": [piece.decode("utf-8", "ignore") for piece in pieces[first:]] + own["tokens"],
            "text_offset": [len(b"".join(pieces[first:i]).decode("utf-8", "ignore")) for i in range(first, len(prompt))]
            + own["text_offset"],
            "token_logprobs": blank + [numbers.value for numbers in scored] + own["token_logprobs"],
            "top_logprobs": blank + tops + own["top_logprobs"],
        }
        if entry["tokens"]:
            entry["token_logprobs"][0] = entry["top_logprobs"][0] = None
        return entry


def _reason(answer: Text) -> str:
    return "length" if answer.finish is Finish.LENGTH else "stop"
