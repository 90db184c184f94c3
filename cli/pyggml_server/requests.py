"""From a request's fields to texts for the engine: the prompt's tokens, what chooses further ones, and what ends them.

Owns what completions of all protocols have in common; the grammar is checked and tokens are made here, on a thread of
the request, not on the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pyggml.errors import GrammarError, PyggmlError, SamplerError
from pyggml.runtime.sequence import Sequence as Text
from pyggml.runtime.stops import StopTexts
from pyggml.sampler import LLAMA_DEFAULT_SEED, SamplerChain, SamplerParams
from pyggml_server.budget import budget, controlled
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.lines import Lines
from pyggml_server.sampling import grammar_of, sampler_params
from pyggml_server.served import Served

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyggml.grammar.lazy import LazyGrammar
    from pyggml.grammar.vocabulary import GrammarState
    from pyggml.model.lora import Applied

MOST_STOPS = 64
LONGEST_STOP = 4096  # characters
LONGEST_TEXT = 1 << 23  # characters: each takes 5 bytes while it becomes tokens, each token 60
MOST_CHOICES = 64
MOST_LOGPROBS = 100


@dataclass
class Options:
    """Of one request.

    special     names of control tokens are part of the text; shown  those of these
    post_probs  log-probabilities are those of the sampler's candidates
    slot        the one that it wants
    progress, timings_per_token, verbose  what is told besides the answer
    messages    tokens of the prompt that begin a message of a user, by number
    adapters    LoRA adapters and scales; None: those of the server
    controlled  the reasoning may be ended by the answer's id
    ping        seconds without a token after which a stream gets a comment; 0: never
    n_keep, n_discard  what a full context keeps of the prompt, and forgets of the rest, where it goes on
    n_indent, seconds  of Lines, which ends it at a line
    """

    params: SamplerParams
    max_tokens: int
    stops: list[str]
    n: int = 1
    n_logprobs: int | None = None
    special: bool = False
    reuses: bool = True
    stream: bool = False
    include_usage: bool = False
    shown: frozenset[int] = frozenset()
    post_probs: bool = False
    slot: int | None = None
    progress: bool = False
    timings_per_token: bool = False
    verbose: bool = False
    adapters: tuple[Applied, ...] | None = None
    messages: tuple[int, ...] = ()
    controlled: bool = False
    ping: float = 0.0
    n_keep: int = 0
    n_discard: int = 0
    n_indent: int = 0
    seconds: float = 0.0


def options(fields: Fields, served: Served, grammar: str | None = None) -> Options:
    """What a request says apart from its prompt; `grammar` instead of one of its own. Raises RequestError."""
    settings = served.settings
    params = sampler_params(
        fields,
        settings.sampling,
        served.tokenizer,
        served.n_ctx,
        grammar_of(fields) if grammar is None else grammar,
        settings.ignore_eos,
    )
    params = replace(params, budget=budget(fields, served))
    longest = fields.first("max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens")
    stops = [*settings.stops, *fields.texts("stop", MOST_STOPS)]
    for text in stops:
        if len(text) > LONGEST_STOP:
            raise RequestError(
                f"stop: a text of {len(text)} characters, at most {LONGEST_STOP} are taken", param="stop"
            )
    usage = fields.object("stream_options")
    wanted = fields.integer(longest, settings.n_predict, low=-1)
    stream = fields.boolean("stream", False)
    slot = fields.integer("id_slot", -1, -1, max(0, served.engine.n_slots - 1))
    return Options(
        params,
        wanted,
        [text for text in stops if text],
        fields.integer(fields.first("n", "n_cmpl"), 1, 1, MOST_CHOICES),
        special=settings.special,
        reuses=fields.boolean("cache_prompt", settings.cache_prompt),
        stream=stream,
        include_usage=usage is not None and usage.boolean("include_usage", False),
        post_probs=fields.boolean("post_sampling_probs", False),
        slot=None if slot < 0 else slot,
        progress=stream and fields.boolean("return_progress", False),
        timings_per_token=stream and fields.boolean("timings_per_token", False),
        verbose=fields.boolean("verbose", settings.verbose),
        adapters=served.applied(_scales(fields, served)),
        controlled=controlled(fields),
        ping=max(0.0, fields.integer("sse_ping_interval", settings.ping, -1)),
        n_keep=fields.integer("n_keep", settings.n_keep, -1),
        n_discard=fields.integer("n_discard", 0, 0),
        n_indent=fields.integer("n_indent", 0, 0),
        seconds=fields.integer("t_max_predict_ms", -1, -1, (1 << 63) - 1) / 1e3,
    )


def _scales(fields: Fields, served: Served) -> dict[int, float] | None:
    """`lora`: scales of this request, by the adapter's number; None, also where none are named: those of the server."""
    if not fields.items("lora", []):
        return None
    return {entry.integer("id", low=0): scale_of(entry, served) for entry in fields.objects("lora")}


def scale_of(entry: Fields, served: Served) -> float:
    """The scale that an entry of `lora` gives its adapter. Raises RequestError."""
    if entry.integer("id", low=0) >= len(served.adapters):
        raise entry.wrong("id", f"there are {len(served.adapters)} adapters, numbered from 0")
    return float(entry.number("scale"))


def refuse_unknown(fields: Fields, names: Sequence[str], why: str) -> None:
    """Raises RequestError where one of these fields asks for something."""
    for name in names:
        if fields.has(name) and fields.data[name] not in (False, [], "none", "", {}):
            raise RequestError(f"{fields.name(name)}: {why}", status=400, param=fields.name(name))


def texts(served: Served, prompts: Sequence[list[int]], options: Options) -> list[Text]:
    """A text for each choice of each prompt; they share what was made of the grammar. Raises RequestError."""
    served.engine.check_number(len(prompts) * options.n)
    for prompt in prompts:
        served.check_prompt(prompt)
    made: list[Text] = []
    grammar = None
    for i, prompt in enumerate(prompt for prompt in prompts for _ in range(options.n)):
        params = options.params
        if params.seed != LLAMA_DEFAULT_SEED:
            params = replace(params, seed=(params.seed + i) & 0xFFFFFFFF)
        sampler = chain(served, params, prompt, grammar)
        grammar = sampler.grammar
        first = made[i - i % options.n] if i % options.n else None
        made.append(
            Text(
                prompt,
                sampler,
                served.tokenizer,
                special=options.special or options.shown,
                max_tokens=options.max_tokens,
                stops=StopTexts([text.encode() for text in options.stops]) if options.stops else None,
                stop_when=Lines(options.n_indent, options.seconds) if options.n_indent or options.seconds > 0 else None,
                n_logprobs=options.n_logprobs,
                candidates=partial(_candidates, sampler) if options.post_probs else None,
                reuses=options.reuses,
                drafter=served.make_drafter(),
                wants=options.slot,
                after=first if options.reuses else None,
                shift=(_kept(served, prompt, options.n_keep), options.n_discard),
                adapters=options.adapters,
                messages=options.messages,
            )
        )
    return made


def _kept(served: Served, prompt: Sequence[int], n_keep: int) -> int:
    """Tokens that a context shift keeps (tools/server/server-context.cpp: pre_decode)."""
    kept = len(prompt) if n_keep < 0 else n_keep
    return max(0, min(kept + served.tokenizer.add_bos, served.n_ctx - 4))


def _candidates(sampler: SamplerChain) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return sampler.probs


def chain(
    served: Served, params: SamplerParams, prompt: Sequence[int], grammar: GrammarState | LazyGrammar | None = None
) -> SamplerChain:
    """What chooses tokens after `prompt`; the last of its tokens count for penalties. `grammar`: that of `params`, if a chain has
    one already. Raises RequestError."""
    tokenizer = served.tokenizer
    bias = [*params.logit_bias, *((token, float("-inf")) for token in tokenizer.suppressed)]
    try:
        made = SamplerChain(replace(params, logit_bias=bias), served.model.n_vocab, vocab=tokenizer, grammar=grammar)
        if made.grammar is not None:
            made.grammar.mask()  # what is slow about the first token is done here
    except GrammarError as reason:
        raise RequestError(str(reason), param="grammar") from None
    except SamplerError as reason:
        raise RequestError(str(reason).removeprefix("--")) from None
    seen = max(params.penalty_last_n, params.dry_penalty_last_n)
    for token in prompt[-seen:] if seen else ():
        made.accept(token)
    return made


def prompt_tokens(served: Served, fields: Fields, name: str = "prompt", empty: bool = False) -> list[list[int]]:
    """Prompts: a text, tokens, an array of both in one, an object with a text, or an array of several of these
    (tokenize_input_prompts). One without tokens is BOS, unless it may be `empty`."""
    value = fields.raw(name)
    if value == []:
        raise fields.wrong(name, "must not be empty")
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return [one_prompt(served, fields, name, part, empty=empty) for part in value]
    if isinstance(value, list) and value and any(isinstance(part, list) for part in value):
        return [one_prompt(served, fields, name, part, empty=empty) for part in value]
    if isinstance(value, list) and len(value) > 1 and all(isinstance(part, str) for part in value):
        return [one_prompt(served, fields, name, part, empty=empty) for part in value]
    return [one_prompt(served, fields, name, value, empty=empty)]


def encoded(served: Served, name: str, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
    """The tokens of a text of the field `name`. Raises RequestError."""
    if len(text) > LONGEST_TEXT:
        raise RequestError(f"{name} has {len(text)} characters, at most {LONGEST_TEXT} are taken", param=name)
    try:
        return served.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
    except PyggmlError as reason:
        raise RequestError(f"{name}: {reason}", param=name) from None


def object_text(prompt: Fields) -> str:
    """The text of a prompt that is an object: {"prompt_string": text} or {"content": [{"type": "text", "text": text}]}.
    Raises RequestError where there is more than text."""
    if prompt.has("multimodal_data") and prompt.data["multimodal_data"] != []:
        name = prompt.name("multimodal_data")
        raise RequestError(f"{name}: text is all that this model reads", param=name)
    if prompt.has("prompt_string"):
        return str(prompt.text("prompt_string"))
    if not prompt.has("content"):
        raise RequestError(f"{prompt.path} must have prompt_string or content", param=prompt.path)
    said = []
    for part in prompt.objects("content"):
        if part.text("type") != "text":
            raise RequestError(f"{part.name('type')}: text is all that this model reads", param=part.name("type"))
        said.append(str(part.text("text")))
    return "".join(said)


def one_prompt(
    served: Served,
    fields: Fields,
    name: str,
    value: object,
    special: bool = True,
    bos: bool = True,
    empty: bool = False,
) -> list[int]:
    """The tokens of one prompt; of none BOS, unless it may be `empty`. Raises RequestError."""
    tokenizer = served.tokenizer
    if isinstance(value, dict):
        value = object_text(Fields(value, fields.name(name)))
    if not isinstance(value, list | str):
        raise fields.wrong(name, "must be a text, an array of tokens, or an array of these")
    parts = value if isinstance(value, list) else [value]
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            tokens += encoded(served, fields.name(name), part, add_special=bos and i == 0, parse_special=special)
        elif isinstance(part, int) and not isinstance(part, bool) and 0 <= part < served.model.n_vocab:
            tokens.append(part)
        else:
            raise fields.wrong(name, f"must be a text, or tokens from 0 to {served.model.n_vocab - 1}")
    if not tokens and not empty and tokenizer.bos is not None:
        tokens = [tokenizer.bos]
    return tokens
