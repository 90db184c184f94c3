"""Where the installed commands begin: a function each, before anything that takes time is imported.

Owns what Ctrl-C does until a command can catch it. While modules are imported nobody can, and Python would show where it was; so
the system's own action ends the process, without a word, until `interruptible` takes over.
"""

import signal


def plain_ctrl_c() -> None:
    """Unless who started us ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def cli() -> int:
    plain_ctrl_c()
    from pyggml_cli.cli import main

    return main()


def rpc_server() -> int:
    plain_ctrl_c()
    from pyggml_cli.rpc_server import main

    return main()


def server() -> int:
    plain_ctrl_c()
    from pyggml_cli.server import main

    return main()


def bench() -> int:
    plain_ctrl_c()
    from pyggml_cli.bench import main

    return main()


def batched_bench() -> int:
    plain_ctrl_c()
    from pyggml_cli.batched_bench import main

    return main()


def quantize() -> int:
    plain_ctrl_c()
    from pyggml_cli.quantize import main

    return main()


def perplexity() -> int:
    plain_ctrl_c()
    from pyggml_cli.perplexity import main

    return main()


def embedding() -> int:
    plain_ctrl_c()
    from pyggml_cli.embedding import main

    return main()


def inspection() -> int:
    plain_ctrl_c()
    from pyggml_cli.inspection import main

    return main()
