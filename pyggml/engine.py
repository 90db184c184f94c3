"""The `Llama` class: text in, text out, with the constructor and methods that users of llama-cpp-python know.

Owns the state of one conversation with one model: tokens evaluated, logits, sampler. Must not know how a graph is
built or computed, nor what a completion's dict looks like (completion.py).
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pyggml import jit
from pyggml.arguments import (
    CHAT_FORMATS,
    F32,
    LLAMA_SPLIT_MODE_LAYER,
    OLD_PARAMETERS,
    ROPE_SCALINGS,
    SPLIT_MODES,
    UNSPECIFIED,
    LogitsProcessor,
    ParameterError,
    StoppingCriterion,
    processed,
    refuse,
    sampler_chain,
    stops,
)
from pyggml.backend.base import Device, extra_devices
from pyggml.backend.cuda import cuda_devices
from pyggml.chat import built_in_names
from pyggml.chat_completion import create_chat_completion
from pyggml.completion import create_completion
from pyggml.default_model import default_model, is_default
from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError
from pyggml.grammar import LlamaGrammar
from pyggml.llama_cache import LlamaRAMCache
from pyggml.llama_facts import LlamaFacts
from pyggml.llama_state import load_state, save_state
from pyggml.model.context import Context
from pyggml.model.model import Model
from pyggml.model.offload import chosen
from pyggml.model.rope_options import RopeOptions
from pyggml.prefix import common_prefix
from pyggml.sampler import LLAMA_DEFAULT_SEED, SamplerChain
from pyggml.tokenizer import Tokenizer
from pyggml.turns import Turns

Progress = Callable[[int, int], None]
"""Called as `progress(bytes done, bytes in all)` while weights travel to their devices."""


class Llama(LlamaFacts):
    """A model loaded, with one context: calls from several threads take turns, a stream that another call has overtaken
    raises OvertakenError.

    >>> llm = Llama()  # the default model, or the path of another
    >>> llm("Hello, my name is", max_tokens=8, temperature=0)["choices"][0]["text"]

    Parameters as in llama_cpp.Llama; one that is not implemented raises ParameterError when it asks for something.
    Besides those there are:

    model_path   None or "default": the default model, fetched once into the cache folder
    rpc_servers  "host:port,host:port": servers to offload layers to (then n_gpu_layers defaults to all of them)
    rpc_timeout  seconds for a whole answer of a server (300); a prompt may have to be computed for it
    devices      Device objects instead, in order; layers that are not offloaded stay on this machine's CPU
    progress     called with (bytes done, bytes in all) while weights are loaded

    Differences: `chat_format` is one of llama.cpp's names (chatml, llama3...), by default the file's template counts;
    `seed` is random unless given, also for completions; attention is fused unless flash_attn=False;
    without logits_all, `scores` holds one row, the logits of the last token.

    scores    (n_ctx, n_vocab) f32 with logits_all: row i are the logits after token i; else (1, n_vocab)
    n_tokens  tokens evaluated; may be set to a smaller number to go back
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        *,
        n_gpu_layers: int | None = None,
        split_mode: int = LLAMA_SPLIT_MODE_LAYER,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int = LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = UNSPECIFIED,
        pooling_type: int = UNSPECIFIED,
        attention_type: int = UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = -1.0,
        yarn_beta_fast: float = -1.0,
        yarn_beta_slow: float = -1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool = True,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Any = None,
        draft_model: Any = None,
        tokenizer: Any = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        rpc_servers: str | None = None,
        rpc_timeout: float | None = None,
        devices: Sequence[Device] | None = None,
        progress: Progress | None = None,
        **old: Any,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name not in ("self", "old")}
        refuse(self._given)
        if unknown := [name for name in old if name not in OLD_PARAMETERS]:
            raise TypeError(f"Llama() has no parameter {unknown[0]!r}")
        if rope_scaling_type not in ROPE_SCALINGS:
            raise ParameterError(f"rope_scaling_type={rope_scaling_type} is not implemented; known: {ROPE_SCALINGS}")
        if rpc_timeout is not None and not rpc_timeout > 0:
            raise ParameterError(f"rpc_timeout={rpc_timeout}: must be above 0 seconds")
        if rpc_servers is not None and devices is not None:
            raise ParameterError("rpc_servers and devices: give one of them")
        for name, value in (("n_ctx", n_ctx), ("n_batch", n_batch - 1), ("n_ubatch", n_ubatch - 1)):
            if value < 0:
                raise ParameterError(f"{name} must be at least {0 if name == 'n_ctx' else 1}")
        if chat_format is not None and CHAT_FORMATS.get(chat_format, chat_format) not in built_in_names():
            known = ", ".join([*built_in_names(), *CHAT_FORMATS])
            raise ParameterError(f"chat_format={chat_format!r:.40} is not known; known: {known}")
        start = time.perf_counter()
        self.model_path = os.fspath(default_model() if model_path is None or is_default(model_path) else model_path)
        self.chat_format = chat_format
        self.verbose = verbose
        self.no_perf = no_perf
        self.last_n_tokens_size = last_n_tokens_size
        self.spm_infill = spm_infill
        self.tensor_split = tensor_split
        self.seed = LLAMA_DEFAULT_SEED
        self.set_seed(seed)
        self._logits_all = logits_all
        self._prepared = False  # whether the kernels for prompts and single tokens are there
        jit.announce(_told if verbose else None)
        self._turns = Turns()
        self.cache: LlamaRAMCache | None = None
        self._context: Context | None = None
        self._model: Model | None = None
        if not Path(self.model_path).exists():
            raise ParameterError(f"Model path does not exist: {self.model_path}")
        if devices is not None:
            offload = list(devices)
        else:
            times = {} if rpc_timeout is None else {"io_timeout": rpc_timeout}
            offload = extra_devices("rpc", rpc_servers, **times) if rpc_servers else []
            offload += cuda_devices() if n_gpu_layers else []
        if split_mode not in SPLIT_MODES:
            raise ParameterError(f"split_mode={split_mode} is not implemented; known: {SPLIT_MODES}")
        offload = chosen(offload, SPLIT_MODES[split_mode], main_gpu)
        n_gpu_layers = (-1 if offload else 0) if n_gpu_layers is None else n_gpu_layers
        self._model = model = Model.load(
            self.model_path,
            devices=offload,
            n_gpu_layers=n_gpu_layers,
            tensor_split=tensor_split or (),
            metadata=kv_overrides,
            rope=RopeOptions(
                *(ROPE_SCALINGS[rope_scaling_type], rope_freq_base, rope_freq_scale, yarn_orig_ctx),
                *(yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow),
            ),
            use_mmap=use_mmap,
            use_mlock=use_mlock,
            progress=progress,
        )
        self.metadata = {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in model.file.metadata.items()
            if isinstance(value, str | int | float)
        }
        self._tokenizer = Tokenizer.from_metadata(model.file.metadata)
        n_ctx = n_ctx or model.config.n_ctx_train
        self.n_batch = min(n_ctx, n_batch)
        self._context = context = Context(
            model,
            n_ctx=n_ctx,
            n_batch=self.n_batch,
            n_ubatch=min(self.n_batch, n_ubatch),
            type_k=GGMLType.F16 if type_k is None else GGMLType(type_k),
            type_v=GGMLType.F16 if type_v is None else GGMLType(type_v),
            flash_attn=flash_attn,
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            offload_kqv=offload_kqv,
        )
        self.n_tokens = 0
        self.input_ids: NDArray[np.int32] = np.zeros(context.n_ctx, np.int32)
        self.scores: F32 = np.zeros((context.n_ctx if logits_all else 1, self.n_vocab()), np.float32)
        self._scored = -1  # position of the token that the newest logits belong to
        if old:
            self._say(f"of older versions of llama-cpp-python, and without effect: {', '.join(old)}")
        self._say(f"{self.model_path}: ready in {time.perf_counter() - start:.2f} s")

    def _say(self, text: str) -> None:
        if self.verbose:
            _told(text)

    @property
    def context(self) -> Context:
        """The context; raises ContextError after `close`."""
        if self._context is None:
            raise ContextError("this Llama is closed")
        return self._context

    # ---- evaluating

    @property
    def _input_ids(self) -> NDArray[np.int32]:
        return self.input_ids[: self.n_tokens]

    @property
    def _scores(self) -> F32:
        return self.scores[: self.n_tokens]

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens evaluated."""
        return deque(self._input_ids.tolist(), maxlen=self.n_ctx())

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Their logits; without logits_all the last row."""
        return deque(self._scores.tolist(), maxlen=self.n_ctx() if self._logits_all else 1)

    @property
    def last_logits(self) -> F32:
        """(n_vocab,): the logits after the last token evaluated. Raises ContextError when there is none."""
        if not self._scored == self.n_tokens - 1 >= 0:
            raise ContextError("no logits: nothing was evaluated since the last reset or step back")
        row: F32 = self.scores[self._scored if self._logits_all else 0]
        return row

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

    def reset(self) -> None:
        """Forget the tokens evaluated."""
        with self._turns as turns:
            turns.begin()
            self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those there. Raises ContextError when they do not fit."""
        with self._turns as turns:
            turns.begin()
            self._eval(tokens)

    def _eval(self, tokens: Sequence[int]) -> None:
        context = self.context
        if self.n_tokens + len(tokens) > context.n_ctx:
            raise ContextError(f"{self.n_tokens} + {len(tokens)} tokens exceed the context of {context.n_ctx}")
        if context.n_past > self.n_tokens:
            context.truncate(self.n_tokens)
        if not self._prepared and not self._logits_all:
            self._prepared = True
            jit.wait(context.prepare(len(tokens)))
        for at in range(0, len(tokens), self.n_batch):
            batch = [int(token) for token in tokens[at : at + self.n_batch]]
            first, end = self.n_tokens, self.n_tokens + len(batch)
            logits = context.decode(batch, logits="all" if self._logits_all else "last")
            self.input_ids[first:end] = batch
            if self._logits_all:
                self.scores[first:end] = logits
            else:
                self.scores[0] = logits[-1]
            self.n_tokens = end
            self._scored = end - 1

    # ---- sampling

    def _new_chain(self, seed: int | None = None, **sampling: Any) -> SamplerChain:
        return sampler_chain(
            self.n_vocab(),
            seed=self.seed if seed is None else seed,
            last_n=self.last_n_tokens_size,
            vocab=self._tokenizer,
            **sampling,
        )

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
        refuse(locals())
        if idx is None or idx == self.n_tokens - 1:
            logits = self.last_logits
        elif not self._logits_all or not 0 <= idx < self.n_tokens:
            raise ParameterError(f"idx={idx}: there are no logits of that token (logits_all={self._logits_all})")
        else:
            logits = self.scores[idx]
        chain = self._new_chain(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            grammar=grammar,
        )
        return chain.sample(processed(logits, self._input_ids, logits_processor))

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
        refuse(locals())
        chain = self._new_chain(
            logit_bias=logit_bias,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            grammar=grammar,
        )
        return self._generate(tokens, chain, reset, logits_processor, stopping_criteria)

    def _generate(
        self,
        tokens: Sequence[int],
        chain: SamplerChain,
        reset: bool = True,
        logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Iterable[StoppingCriterion] | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        pending = [int(token) for token in tokens]
        with self._turns as turns:
            number = turns.begin()
            if reset:
                pending = pending[self._reuse(pending) :]
        while True:
            with turns:
                turns.check(number)
                self._eval(pending)
                token = chain.sample(processed(self.last_logits, self._input_ids, logits_processor))
                if stops(np.append(self._input_ids, np.int32(token)), self.last_logits, stopping_criteria):
                    return
            more = yield token
            pending = [token, *(more or ())]

    def _reuse(self, tokens: list[int]) -> int:
        """Go back to what is common with `tokens`, and to where logits can come from; how many are kept."""
        common = self.longest_token_prefix(self._input_ids.tolist(), tokens)
        live = common == len(tokens) == self.n_tokens and self._scored == common - 1
        keep = common if live else min(common, len(tokens) - 1)
        self.n_tokens = max(keep, 0)
        if keep > 0:
            self._say(f"{keep} of {len(tokens)} prompt tokens are already there")
        return self.n_tokens

    longest_token_prefix = staticmethod(common_prefix)

    def set_cache(self, cache: LlamaRAMCache | None) -> None:
        """Completions keep their states in this cache, and begin with the one that has most of their prompt."""
        self.cache = cache

    @staticmethod
    def logits_to_logprobs(logits: F32 | Sequence[float], axis: int = -1) -> F32:
        """log softmax in f32."""
        values = np.asarray(logits, np.float32)
        shifted = values - values.max(axis=axis, keepdims=True)
        total: F32 = np.exp(shifted).sum(axis=axis, keepdims=True)
        logprobs: F32 = shifted - np.log(total)
        return logprobs

    create_completion = create_completion
    __call__ = create_completion
    create_chat_completion = create_chat_completion
    save_state = save_state
    load_state = load_state

    # ---- the end

    def close(self) -> None:
        """Give memory, threads and connections back; twice does nothing."""
        if "_turns" not in vars(self):  # its constructor was refused
            return
        with self._turns as turns:
            turns.begin()
            for part in (self._context, self._model):
                if part is not None:
                    part.close()
            self._context = self._model = None

    def __reduce__(self) -> tuple[Callable[..., Llama], tuple[dict[str, Any]]]:
        """Pickled are the parameters: the copy loads the file anew and has evaluated nothing (llama_cpp: __getstate__)."""
        return _made_again, (self._given,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _told(text: str) -> None:
    print(f"pyggml: {text}", file=sys.stderr, flush=True)


def _made_again(given: dict[str, Any]) -> Llama:
    return Llama(**given)
