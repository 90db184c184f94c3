"""Where the installed commands begin: a function each, before anything that takes time is imported.

Owns what Ctrl-C does until a command can catch it. While modules are imported nobody can, and Python would show where it was; so
the system's own action ends the process, without a word, until `interruptible` takes over. Owns the settings of libraries
that are read while they are imported.
"""

import os
import signal


def plain_ctrl_c() -> None:
    """Unless who started us ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def no_blas_threads() -> None:
    """NumPy's OpenBLAS starts a thread for each core when it is imported, which on two cores doubles what the import takes of
    the processor, and no command multiplies matrices with it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _run(module: str) -> int:
    plain_ctrl_c()
    no_blas_threads()
    from importlib import import_module

    code: int = import_module(f"pyggml_cli.{module}").main()
    return code


def cli() -> int:
    return _run("cli")


def rpc_server() -> int:
    return _run("rpc_server")


def server() -> int:
    return _run("server")


def bench() -> int:
    return _run("bench")


def batched_bench() -> int:
    return _run("batched_bench")


def quantize() -> int:
    return _run("quantize")


def perplexity() -> int:
    return _run("perplexity")


def embedding() -> int:
    return _run("embedding")


def inspection() -> int:
    return _run("inspection")
