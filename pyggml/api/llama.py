"""The `Llama` class: text in, text out, with the constructor and methods that users of llama-cpp-python know.

Owns the step from the constructor's parameters to a model and its context, and their end; what is asked of a
`Llama` afterwards is evaluation.py, completion.py, chat_completion.py, embedding.py.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from pyggml import jit
from pyggml.api.arguments import (
    ATTENTIONS,
    LLAMA_SPLIT_MODE_LAYER,
    OLD_PARAMETERS,
    POOLINGS,
    ROPE_SCALINGS,
    SPLIT_MODES,
    UNSPECIFIED,
    ParameterError,
    unknown,
)
from pyggml.api.cache import BaseLlamaCache
from pyggml.api.checks import check
from pyggml.api.evaluation import told
from pyggml.api.handled_chats import HandledChats, chat_formats
from pyggml.api.hub import download
from pyggml.api.tokenizers import BaseLlamaTokenizer, LlamaTokenizer, with_encoding_of
from pyggml.api.turns import Turns
from pyggml.backend.base import Device, extra_devices
from pyggml.backend.cuda import cuda_devices
from pyggml.backend.host import default_threads
from pyggml.default_model import default_model, is_default
from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError
from pyggml.gguf import GGUFFile
from pyggml.model.model import Model
from pyggml.model.overrides import override_metadata
from pyggml.model.placement import effective_split, select_devices
from pyggml.model.rope_options import RopeOptions
from pyggml.runtime.context import Context
from pyggml.runtime.embedder import Embedder
from pyggml.sampler import LLAMA_DEFAULT_SEED
from pyggml.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called as `progress(bytes done, bytes in all)` while weights travel to their devices."""


OF_MODEL = (
    *("n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "vocab_only", "use_mmap", "use_mlock", "kv_overrides"),
)
OF_NEITHER = ("model_path", "chat_format", "chat_handler", "draft_model", "tokenizer", "verbose", "progress", "devices")


class Llama(HandledChats):
    """A model loaded, with one context: calls from several threads take turns, a stream that another call has overtaken
    raises OvertakenError.

    >>> llm = Llama()  # the default model, or the path of another
    >>> llm("Hello, my name is", max_tokens=8, temperature=0)["choices"][0]["text"]

    Parameters as in llama_cpp.Llama. What has no effect is said once, with verbose; of a keyword that nobody knows there is
    a warning.
    Besides those there are:

    model_path   None or "default": the default model, fetched once into the cache folder
    rpc_servers  "host:port,host:port": servers to offload layers to (then n_gpu_layers defaults to all of them)
    rpc_timeout  seconds for a whole answer of a server (300); a prompt may have to be computed for it
    devices      Device objects instead, in order; layers that are not offloaded stay on this machine's CPU
    progress     called with (bytes done, bytes in all) while weights are loaded

    With embedding=True there are `embed`, `create_embedding` and, for models with a classifier, `rank`. Models that make
    embeddings and no text have nothing else.

    Differences: `chat_format` may also be one of llama.cpp's names (llama3, command-r...), by default the file's template
    counts;
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
        tokenizer: BaseLlamaTokenizer | None = None,
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
        check(self._given)
        for name in old:
            if name not in OLD_PARAMETERS:
                warnings.warn(unknown(name, self._given), stacklevel=2)
        if rope_scaling_type not in ROPE_SCALINGS:
            raise ParameterError(f"rope_scaling_type={rope_scaling_type} is not implemented; known: {ROPE_SCALINGS}")
        kinds: tuple[tuple[str, int, Mapping[int, object]], ...] = (
            ("pooling_type", pooling_type, POOLINGS),
            ("attention_type", attention_type, ATTENTIONS),
        )
        for name, kind, there in kinds:
            if kind not in there:
                raise ParameterError(f"{name}={kind!r} is not known; known are {', '.join(map(str, there))}")
            if kind != UNSPECIFIED and not embedding:
                raise ParameterError(f"{name}={kind} counts for embeddings: give embedding=True too")
        if rpc_timeout is not None and not rpc_timeout > 0:
            raise ParameterError(f"rpc_timeout={rpc_timeout}: must be above 0 seconds")
        if rpc_servers is not None and devices is not None:
            raise ParameterError("rpc_servers and devices: give one of them")
        for name, value in (("n_ctx", n_ctx), ("n_batch", n_batch - 1), ("n_ubatch", n_ubatch)):
            if value < 0:
                raise ParameterError(f"{name} must be at least {1 if name == 'n_batch' else 0}")
        if chat_format is not None and chat_format not in chat_formats():
            known = ", ".join(chat_formats())
            raise ParameterError(f"chat_format={chat_format!r:.40} is not known; known: {known}")
        start = time.perf_counter()
        self.model_path = os.fspath(default_model() if model_path is None or is_default(model_path) else model_path)
        self.chat_format = chat_format
        self.verbose = verbose
        self.no_perf = no_perf
        self.last_n_tokens_size = last_n_tokens_size
        self.spm_infill = spm_infill
        self.tensor_split = tensor_split
        self.lora_base, self.lora_scale, self.lora_path = lora_base, lora_scale, lora_path
        self.seed = LLAMA_DEFAULT_SEED
        self.set_seed(seed)
        jit.announce(told if verbose else None)
        self._turns = Turns()
        self.cache: BaseLlamaCache | None = None
        self._closed = False
        self._context: Context | None = None
        self._model: Model | None = None
        self._noted = set()
        self.vocab_only = vocab_only
        self.chat_handler, self.draft_model = chat_handler, draft_model
        self.n_threads = n_threads or default_threads()
        self.n_threads_batch = n_threads_batch or self.n_threads
        if "\0" in self.model_path or not os.path.exists(self.model_path):
            raise ParameterError(f"Model path does not exist: {self.model_path}")
        self._noting(self._given)
        for name in old:
            if name in OLD_PARAMETERS:
                self._say(f"{name}={old[name]!r:.60} is without effect, as in llama-cpp-python")
        if vocab_only:
            with GGUFFile.open(self.model_path) as file:
                override_metadata(file, kv_overrides or {})
                self._read(file, tokenizer)
            trained = self.metadata.get(f"{self.metadata.get('general.architecture')}.context_length", 0)
            self._n_ctx, self.n_batch = n_ctx or int(trained), n_batch
            return
        if devices is not None:
            offload = list(devices)
        else:
            times = {} if rpc_timeout is None else {"io_timeout": rpc_timeout}
            offload = extra_devices("rpc", rpc_servers, **times) if rpc_servers else []
            offload += cuda_devices() if n_gpu_layers else []
        if split_mode not in SPLIT_MODES:
            raise ParameterError(f"split_mode={split_mode} is not implemented; known: {SPLIT_MODES}")
        offload = select_devices(offload, SPLIT_MODES[split_mode], main_gpu)
        n_gpu_layers = (-1 if offload else 0) if n_gpu_layers is None else n_gpu_layers
        self._model = model = Model.load(
            self.model_path,
            devices=offload,
            n_gpu_layers=n_gpu_layers,
            tensor_split=effective_split(tensor_split, SPLIT_MODES[split_mode]),
            metadata=kv_overrides,
            rope=RopeOptions(
                *(ROPE_SCALINGS[rope_scaling_type], rope_freq_base, rope_freq_scale, yarn_orig_ctx),
                *(yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow),
            ),
            use_mmap=use_mmap,
            use_mlock=use_mlock,
            progress=progress,
        )
        self._read(model.file, tokenizer)
        n_ctx = self._n_ctx = n_ctx or model.config.n_ctx_train
        self.n_batch = min(n_ctx, n_batch)
        adapters = [(model.load_adapter(lora_path), lora_scale)] if lora_path else []
        if embedding:
            self._embedder = Embedder(
                model,
                n_ubatch=self.n_batch,
                n_ctx=n_ctx,
                pooling=POOLINGS[pooling_type],
                causal=ATTENTIONS[attention_type],
                flash_attn=flash_attn,
                n_threads=n_threads_batch or n_threads or None,
                adapters=adapters,
            )
        if model.modules.speaks:
            self._context = Context(
                model,
                n_ctx=n_ctx,
                n_batch=self.n_batch,
                n_ubatch=n_ubatch,
                type_k=GGMLType.F16 if type_k is None else GGMLType(type_k),
                type_v=GGMLType.F16 if type_v is None else GGMLType(type_v),
                flash_attn=flash_attn,
                n_threads=n_threads or None,  # 0: as many as there are, as in llama-cpp-python
                n_threads_batch=n_threads_batch or None,
                offload_kqv=offload_kqv,
                swa_full=bool(swa_full),
                adapters=adapters,
            )
            self._start(self.n_batch, logits_all or draft_model is not None)
        elif not embedding:
            raise ParameterError(
                f"a {model.config.architecture} model makes embeddings and no text: give embedding=True"
            )
        if lora_base:
            self._say("lora_base is without effect, as in llama-cpp-python: an adapter is added to the model as it is")
        needs = model.modules.needs() if model.modules.speaks else []
        with_states = [need for need in needs if need.states is not None]
        self._is_recurrent = bool(with_states) and all(need.kv is None for need in needs)
        self._is_hybrid = bool(with_states) and not self._is_recurrent
        self._say(f"{self.model_path}: ready in {time.perf_counter() - start:.2f} s")

    def _read(self, file: GGUFFile, tokenizer: BaseLlamaTokenizer | None) -> None:
        """What the file says of texts, and in few words of itself."""
        self.metadata = {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in file.metadata.items()
            if isinstance(value, str | int | float)
        }
        self._tokenizer = Tokenizer.from_metadata(file.metadata)
        self._own_tokenizer = LlamaTokenizer(self)
        self.tokenizer_ = tokenizer or self._own_tokenizer
        if tokenizer is not None:
            self._tokenizer = with_encoding_of(self._tokenizer, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: list[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A model of a repository of huggingface-hub, fetched once; the other parameters are the constructor's.

        filename          a name or pattern that fits one file; None: the one GGUF file there is
        additional_files  patterns of the further parts of a model in several files
        """
        path = download(repo_id, filename, additional_files, local_dir, cache_dir)
        return cls(model_path=path, **kwargs)

    @property
    def model_params(self) -> SimpleNamespace:
        """What was asked of the model, under the constructor's names; to read."""
        return SimpleNamespace(**{name: self._given[name] for name in OF_MODEL})

    @property
    def context_params(self) -> SimpleNamespace:
        """What was asked of the context, under the constructor's names, with sizes and threads as they are; to read."""
        given = {name: value for name, value in self._given.items() if name not in (*OF_MODEL, *OF_NEITHER)}
        given |= {"n_ctx": self._n_ctx, "n_batch": self.n_batch, "embeddings": self._given["embedding"]}
        given |= {"n_ubatch": min(self.n_batch, self._given["n_ubatch"] or self.n_batch), "n_seq_max": 1}
        return SimpleNamespace(**{**given, "n_threads": self.n_threads, "n_threads_batch": self.n_threads_batch})

    @property
    def _ctx(self) -> SimpleNamespace:
        """Programs for llama_cpp ask whether `_ctx.ctx` is None: whether it is closed."""
        return SimpleNamespace(ctx=None if self._closed else self)

    def _check_open(self) -> None:
        if self._closed:
            raise ContextError("this Llama is closed")

    @property
    def context(self) -> Context:
        """The context; raises ContextError after `close`."""
        model = self.model
        if self._context is None:
            raise ContextError(f"a {model.config.architecture} model makes embeddings and no text")
        return self._context

    @property
    def model(self) -> Model:
        """The model; raises ContextError after `close`."""
        self._check_open()
        if self._model is None:
            raise ContextError("vocab_only=True: this Llama has a vocabulary and no weights")
        return self._model

    # ---- the end

    def close(self) -> None:
        """Give memory, threads and connections back; twice does nothing."""
        if "_turns" not in vars(self):  # its constructor was refused
            return
        with self._turns as turns:
            turns.begin()
            self._closed = True
            for part in (self._context, self._embedder, self._model):
                if part is not None:
                    part.close()
            self._context = self._embedder = self._model = None

    def __reduce__(self) -> tuple[Callable[..., Llama], tuple[dict[str, Any]]]:
        """Pickled are the parameters: the copy loads the file anew and has evaluated nothing (llama_cpp: __getstate__)."""
        return _made_again, (self._given,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _made_again(given: dict[str, Any]) -> Llama:
    return Llama(**given)
