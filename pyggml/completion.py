"""Completions in the shape that OpenAI's API and llama-cpp-python return: dicts, whole or as a stream.

Owns the loop from prompt text to answer dicts: stop texts, echo, suffix, logprobs. Must not know how a token is
computed: `Llama.generate` gives them.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyggml.arguments import F32, LogitsProcessor, ParameterError, StoppingCriterion, refuse, stops
from pyggml.errors import ContextError
from pyggml.grammar import LlamaGrammar
from pyggml.prefix import common_prefix

if TYPE_CHECKING:
    from pyggml.engine import Llama


class TooLongError(ContextError, ValueError):
    """A prompt that leaves no room in the context."""


@dataclass
class _Answer:
    """What has been generated, and how much of it the caller has seen (streams)."""

    prompt_text: str
    tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # bytes of the answer up to and with each token
    logprobs: list[tuple[float, dict[str, float]]] = field(default_factory=list)  # one a token, if asked for
    data: bytes = b""
    sent_tokens: int = 0
    sent_bytes: int = 0


def create_completion(
    llm: Llama,
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
    refuse(locals())
    if logprobs is not None and not llm._logits_all:
        raise ParameterError("logprobs needs a model made with logits_all=True")
    texts = [stop] if isinstance(stop, str) else list(stop or [])
    if "" in texts:
        raise ParameterError("stop: an empty text ends every answer before it begins")
    tokens, appended = _prompt_tokens(llm, prompt, suffix)
    room = llm.n_ctx() - len(tokens)
    if room <= 0:
        raise TooLongError(f"Requested tokens ({len(tokens)}) exceed context window of {llm.n_ctx()}")
    n = min(max_tokens, room) if max_tokens is not None and max_tokens > 0 else room
    text = prompt if isinstance(prompt, str) else llm.detokenize(prompt).decode("utf-8", "ignore")
    answer = _Answer(text)
    head = {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model if model is not None else llm.model_path,
    }
    sampling = {
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "temp": temperature,
        "typical_p": typical_p,
        "mirostat_mode": mirostat_mode,
        "mirostat_tau": mirostat_tau,
        "mirostat_eta": mirostat_eta,
        "grammar": grammar,
        "repeat_penalty": repeat_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "logit_bias": logit_bias,
    }
    encoded = [text.encode() for text in texts]
    with llm._turns:
        if not stream:
            _look_up(llm, tokens)
        chain = llm._new_chain(llm._next_seed(seed), **sampling)
        said = llm._generate(tokens, chain, logits_processor=logits_processor)
        steps = _run(llm, said, answer, tokens, n, encoded, logprobs, stopping_criteria)
        if stream:
            return _chunks(_in_turns(llm, tokens, answer, steps), answer, head, logprobs, appended)
        reason = [reason for reason, _ in steps][-1]
        _keep(llm, tokens, answer)
        numbers = None if logprobs is None else _all_logprobs(llm, answer, tokens, logprobs, echo)
    whole = answer.data.decode("utf-8", "ignore") + appended
    choice = {
        "text": text + whole if echo else whole,
        "index": 0,
        "logprobs": numbers,
        "finish_reason": reason,
    }
    n_done = len(answer.tokens)
    usage = {"prompt_tokens": len(tokens), "completion_tokens": n_done, "total_tokens": len(tokens) + n_done}
    return {**head, "choices": [choice], "usage": usage}


def _prompt_tokens(llm: Llama, prompt: str | list[int], suffix: str | None) -> tuple[list[int], str]:
    """Tokens to evaluate, and the text to put after the answer."""
    if not isinstance(prompt, str):
        tokens = list(prompt)
        bad = [token for token in tokens if not 0 <= token < llm.n_vocab()]
        if bad:
            raise ParameterError(f"prompt: token {bad[0]} is not in the vocabulary of {llm.n_vocab()}")
        if not tokens:
            raise ParameterError("prompt: no tokens")
        return tokens, suffix or ""
    marks = llm.fim_tokens() if suffix is not None else None
    if suffix is not None and marks is not None:
        before, after, middle = marks
        front = [before, *llm.tokenize(prompt.encode(), add_bos=False, special=False)]
        back = [after, *llm.tokenize(suffix.encode(), add_bos=False, special=False)]
        order = back + front if llm.spm_infill else front + back
        return [*llm.tokenize(b"", add_bos=True), *order, middle], ""
    tokens = llm._tokenizer.encode(prompt, add_special=True, parse_special=True, warn=False)  # here it is a warning
    bos = llm.token_bos()
    if tokens[:2] == [bos, bos]:
        warnings.warn("the prompt begins with BOS, which is added anyway: leave it out", RuntimeWarning, stacklevel=4)
    if not tokens:
        if bos < 0:
            raise ParameterError("prompt: empty, and the model has no BOS token to begin with")
        tokens = [bos]
    return tokens, suffix or ""


def _look_up(llm: Llama, tokens: list[int]) -> None:
    """Take a state out of the cache that has more of the prompt than the context has now."""
    if llm.cache is not None and tokens in llm.cache:
        state = llm.cache[tokens]
        if common_prefix(state.input_ids.tolist(), tokens) > common_prefix(llm._input_ids.tolist(), tokens):
            llm.load_state(state)


def _keep(llm: Llama, tokens: list[int], answer: _Answer) -> None:
    if llm.cache is not None:
        llm.cache[[*tokens, *answer.tokens]] = llm.save_state()


def _in_turns(
    llm: Llama, tokens: list[int], answer: _Answer, steps: Iterator[tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    """The same steps; nobody else computes between a token and what is asked about it."""
    with llm._turns:
        _look_up(llm, tokens)
    while True:
        with llm._turns:
            step = next(steps, None)
            if step is None:
                _keep(llm, tokens, answer)
                return
        yield step


def _run(
    llm: Llama,
    said: Iterator[int],
    answer: _Answer,
    prompt: list[int],
    max_tokens: int,
    stop: list[bytes],
    logprobs: int | None,
    stopping_criteria: Any,
) -> Iterator[tuple[str, int]]:
    """Fill `answer`; after each token (reason or "", bytes of the answer that can no longer change)."""
    for token in said:
        if llm.is_eog(token):
            yield "stop", len(answer.data)
            return
        if logprobs is not None:
            answer.logprobs.append(_logprob(llm, llm.last_logits, token, logprobs))
        answer.tokens.append(token)
        searched = len(answer.data)
        answer.data += llm.detokenize([token], prev_tokens=prompt + answer.tokens[:-1])
        answer.ends.append(len(answer.data))
        found = [at for at in (answer.data.find(s, max(0, searched - len(s) + 1)) for s in stop) if at >= 0]
        if found:
            answer.data = answer.data[: min(found)]
            yield "stop", len(answer.data)
            return
        if stops(np.array(prompt + answer.tokens, np.int32), llm.last_logits, stopping_criteria):
            yield "stop", len(answer.data)
            return
        if len(answer.tokens) >= max_tokens:
            yield "length", len(answer.data)
            return
        yield "", len(answer.data) - max(_partial_stop(answer.data, stop), _partial_character(answer.data))


def _partial_stop(data: bytes, stop: list[bytes]) -> int:
    """Bytes at the end that may be the beginning of a stop text."""
    return max((n for s in stop for n in range(1, min(len(s), len(data) + 1)) if data.endswith(s[:n])), default=0)


def _partial_character(data: bytes) -> int:
    """Bytes at the end that are the beginning of a UTF-8 character, 0 to 3."""
    for n in range(1, min(4, len(data) + 1)):
        byte = data[-n]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return n if n < length else 0
        if byte < 0x80:
            return 0
    return 0


def _chunks(
    steps: Iterator[tuple[str, int]], answer: _Answer, head: dict[str, Any], logprobs: int | None, appended: str
) -> Iterator[dict[str, Any]]:
    """A chunk for each piece of text that can no longer change, and one at the end that carries the reason."""

    def chunk(text: str, info: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {**head, "choices": [{"text": text, "index": 0, "logprobs": info, "finish_reason": reason}]}

    reason = "length"
    for reason, safe in steps:
        last = len(answer.tokens) if reason else sum(end <= safe for end in answer.ends)
        if not reason and logprobs is not None:  # a token's text and its numbers go together
            safe = answer.ends[last - 1] if last else 0
        if safe > answer.sent_bytes or (reason and logprobs is not None and last > answer.sent_tokens):
            text = answer.data[answer.sent_bytes : safe].decode("utf-8", "ignore")
            info = None
            if logprobs is not None:
                offset = len(answer.prompt_text) + len(answer.data[: answer.sent_bytes].decode("utf-8", "ignore"))
                info = _logprobs_dict(answer, answer.sent_tokens, last, offset)
            answer.sent_bytes, answer.sent_tokens = safe, last
            yield chunk(text, info, None)
    if appended:
        yield chunk(appended, None, None)
    yield chunk("", None, reason)


def _logprob(llm: Llama, logits: F32, token: int, n: int) -> tuple[float, dict[str, float]]:
    """The token's log-probability, and those of the n most likely tokens and of itself by their text."""
    row = llm.logits_to_logprobs(logits)
    top = np.argpartition(-row, n)[:n] if n else np.zeros(0, np.int64)
    ranked = [*(int(i) for i in top[np.argsort(-row[top], kind="stable")]), token]
    return float(row[token]), {llm.detokenize([i]).decode("utf-8", "ignore"): float(row[i]) for i in ranked}


def _logprobs_dict(answer: _Answer, first: int, last: int, offset: int) -> dict[str, Any]:
    """The entry for tokens `first` to `last`; `offset`: characters before the first of them."""
    starts = [0, *answer.ends]
    base = starts[first]
    return {
        "tokens": [_text(answer, i) for i in range(first, last)],
        "text_offset": [
            offset + len(answer.data[base : starts[i]].decode("utf-8", "ignore")) for i in range(first, last)
        ],
        "token_logprobs": [answer.logprobs[i][0] for i in range(first, last)],
        "top_logprobs": [answer.logprobs[i][1] for i in range(first, last)],
    }


def _text(answer: _Answer, i: int) -> str:
    return answer.data[answer.ends[i - 1] if i else 0 : answer.ends[i]].decode("utf-8", "ignore")


def _all_logprobs(llm: Llama, answer: _Answer, prompt: list[int], n: int, echo: bool) -> dict[str, Any]:
    """The entry of a whole answer; with `echo` it begins with the prompt, whose first token has no numbers."""
    own = _logprobs_dict(answer, 0, len(answer.tokens), len(answer.prompt_text))
    if not echo:
        return own
    first = 1 if prompt[0] == llm.token_bos() else 0
    pieces = [llm.detokenize([token], prev_tokens=prompt[:i]) for i, token in enumerate(prompt)]
    scored = [_logprob(llm, llm.scores[i - 1], prompt[i], n) for i in range(max(first, 1), len(prompt))]
    blank: list[Any] = [None] * (len(prompt) - first - len(scored))
    entry = {
        "tokens": [piece.decode("utf-8", "ignore") for piece in pieces[first:]] + own["tokens"],
        "text_offset": [len(b"".join(pieces[first:i]).decode("utf-8", "ignore")) for i in range(first, len(prompt))]
        + own["text_offset"],
        "token_logprobs": blank + [value for value, _ in scored] + own["token_logprobs"],
        "top_logprobs": blank + [top for _, top in scored] + own["top_logprobs"],
    }
    if entry["tokens"]:
        entry["token_logprobs"][0] = entry["top_logprobs"][0] = None
    return entry
