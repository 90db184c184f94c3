"""llama_cpp.llama_cpp: constants of llama.h and ggml.h, and the few functions that compute nothing.

Owns their values, after llama_cpp.py of 0.3.36. The other functions and structures of the C API raise AttributeError.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from pyggml.compat.llama_cpp._vocabulary import (
    llama_model_get_vocab,
    llama_token_to_piece,
    llama_vocab_bos,
    llama_vocab_eos,
    llama_vocab_get_text,
    llama_vocab_is_eog,
    llama_vocab_n_tokens,
    llama_vocab_nl,
)
from pyggml.dtypes import GGMLType
from pyggml.sampler import LLAMA_DEFAULT_SEED

NOT_HERE = "pyggml has llama-cpp-python's classes and constants, and no C API"

_TYPES = {
    *("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"),
    *("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64"),
    *("IQ1_M", "BF16", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"),
}


def _numbered(prefix: str, names: str, first: int = 0) -> None:
    """Names that count upwards; `NAME=n` goes on from n."""
    number = first
    for entry in names.split():
        name, _, given = entry.partition("=")
        number = int(given) if given else number
        globals()[f"{prefix}_{name}"] = number
        number += 1


for _type in GGMLType:
    if _type.name in _TYPES:
        globals()[f"GGML_TYPE_{_type.name}"] = int(_type)
GGML_TYPE_COUNT = 43
LLAMA_MAX_DEVICES = 16
LLAMA_TOKEN_NULL = -1
LLAMA_FILE_MAGIC_GGLA, LLAMA_FILE_MAGIC_GGSN, LLAMA_FILE_MAGIC_GGSQ = 0x67676C61, 0x6767736E, 0x67677371
LLAMA_SESSION_MAGIC, LLAMA_SESSION_VERSION = LLAMA_FILE_MAGIC_GGSN, 10
LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION = LLAMA_FILE_MAGIC_GGSQ, 3
GGML_ROPE_TYPE_NEOX, GGML_ROPE_TYPE_MROPE, GGML_ROPE_TYPE_IMROPE, GGML_ROPE_TYPE_VISION = 2, 8, 40, 24
LLAMA_ROPE_SCALING_TYPE_MAX_VALUE = 3

_numbered("LLAMA_VOCAB_TYPE", "NONE SPM BPE WPM UGM RWKV PLAMO2 TEST")
_numbered(
    "LLAMA_VOCAB_PRE_TYPE",
    "DEFAULT LLAMA3 DEEPSEEK_LLM DEEPSEEK_CODER FALCON MPT STARCODER GPT2 REFACT COMMAND_R STABLELM2 QWEN2 OLMO DBRX SMAUG "
    "PORO CHATGLM3 CHATGLM4 VIKING JAIS TEKKEN SMOLLM CODESHELL BLOOM GPT3_FINNISH EXAONE CHAMELEON MINERVA DEEPSEEK3_LLM "
    "GPT4O SUPERBPE TRILLION BAILINGMOE LLAMA4 PIXTRAL SEED_CODER",
)
_numbered("LLAMA_ROPE_TYPE", "NONE NORM NEOX=2 MROPE=8 IMROPE=40 VISION=24", -1)
_numbered("LLAMA_TOKEN_TYPE", "UNDEFINED NORMAL UNKNOWN CONTROL USER_DEFINED UNUSED BYTE")
_numbered(
    "LLAMA_TOKEN_ATTR",
    "UNDEFINED UNKNOWN UNUSED NORMAL=4 CONTROL=8 USER_DEFINED=16 BYTE=32 NORMALIZED=64 LSTRIP=128 RSTRIP=256 "
    "SINGLE_WORD=512",
)
_numbered("LLAMA_FTYPE", "ALL_F32 GUESSED=1024")
_numbered(
    "LLAMA_FTYPE_MOSTLY",
    "F16 Q4_0 Q4_1 Q8_0=7 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS "
    "IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 TQ1_0=36 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0",
    1,
)
_numbered("LLAMA_ROPE_SCALING_TYPE", "UNSPECIFIED NONE LINEAR YARN LONGROPE", -1)
_numbered("LLAMA_POOLING_TYPE", "UNSPECIFIED NONE MEAN CLS LAST RANK", -1)
_numbered("LLAMA_ATTENTION_TYPE", "UNSPECIFIED CAUSAL NON_CAUSAL", -1)
_numbered("LLAMA_FLASH_ATTN_TYPE", "AUTO DISABLED ENABLED", -1)
_numbered("LLAMA_SPLIT_MODE", "NONE LAYER ROW TENSOR")
_numbered("LLAMA_LOAD_MODE", "AUTO NONE MMAP MLOCK MMAP_MLOCK DIRECT_IO", -1)
_numbered("LLAMA_LAZY_MODE", "OFF AUTO ON")
_numbered("LLAMA_CONTEXT_TYPE", "DEFAULT MTP")
_numbered("LLAMA_KV_OVERRIDE_TYPE", "INT FLOAT BOOL STR")
_numbered(
    "LLAMA_MODEL_META_KEY_SAMPLING",
    "SEQUENCE TOP_K TOP_P MIN_P XTC_PROBABILITY XTC_THRESHOLD TEMP PENALTY_LAST_N PENALTY_REPEAT MIROSTAT MIROSTAT_TAU "
    "MIROSTAT_ETA",
)
_numbered("LLAMA_PROCESS_TYPE", "ENCODE DECODE")
_numbered("GGML_NUMA_STRATEGY", "DISABLED DISTRIBUTE ISOLATE NUMACTL MIRROR COUNT")
_numbered("LLAMA_STATE_SEQ_FLAGS", "NONE SWA_ONLY PARTIAL_ONLY=1 ON_DEVICE")

LogCallback = Callable[[int, bytes, Any], None]
_LEVELS = ((logging.ERROR, 4), (logging.WARNING, 3), (logging.INFO, 2))


class _ToCallback(logging.Handler):
    def __init__(self, callback: LogCallback, user_data: Any) -> None:
        super().__init__()
        self._callback, self._user_data = callback, user_data

    def emit(self, record: logging.LogRecord) -> None:
        level = next((number for least, number in _LEVELS if record.levelno >= least), 1)
        self._callback(level, f"{record.getMessage()}\n".encode(), self._user_data)


def llama_log_callback(callback: LogCallback) -> LogCallback:
    """A decorator for what `llama_log_set` takes: a function of (level, line as bytes, user_data)."""
    return callback


def llama_log_set(callback: LogCallback | None, user_data: Any = None) -> None:
    """Lines that pyggml logs go to this function and nowhere else; None: where Python's logging has them."""
    logger = logging.getLogger("pyggml")
    kept: Iterable[logging.Handler] = [h for h in logger.handlers if not isinstance(h, _ToCallback)]
    logger.handlers = [*kept, *([] if callback is None else [_ToCallback(callback, user_data)])]
    logger.propagate = callback is None


def llama_backend_init(numa: bool = False) -> None:
    """Nothing need be prepared."""


def llama_backend_free() -> None:
    """Each `Llama` gives back what it had when it is closed."""


def llama_supports_mmap() -> bool:
    """Weights may stay in the mapped file."""
    return True


def llama_supports_mlock() -> bool:
    """The system may be asked to keep them in memory."""
    return True


def llama_supports_rpc() -> bool:
    """Servers on the network may have layers."""
    return True


def llama_supports_gpu_offload() -> bool:
    """Whether there is a GPU that layers may be put on."""
    from pyggml.backend.cuda import cuda_devices

    return bool(cuda_devices())


def llama_max_devices() -> int:
    """Devices that a model may be spread over."""
    return LLAMA_MAX_DEVICES


def llama_time_us() -> int:
    """Microseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1000


def llama_print_system_info() -> bytes:
    """The kind of processor that kernels are compiled for."""
    from pyggml.jit.machine import level

    return f"CPU : {level()}".encode()


def __getattr__(name: str) -> object:
    raise AttributeError(f"llama_cpp.{name}: {NOT_HERE}" if name[:2] != "__" else name)


__all__ = [
    "LLAMA_DEFAULT_SEED",
    "llama_model_get_vocab",
    "llama_token_to_piece",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_get_text",
    "llama_vocab_is_eog",
    "llama_vocab_n_tokens",
    "llama_vocab_nl",
]
__all__ += [name for name in globals() if name.startswith(("GGML_", "LLAMA_", "llama_")) and name not in __all__]
