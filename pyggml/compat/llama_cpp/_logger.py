"""llama_cpp._logger: the logger that programs turn to silence llama.cpp, which is not here: nothing is ever logged to it."""

import logging

logger = logging.getLogger("llama-cpp-python")


def set_verbose(verbose: bool) -> None:
    """Let it say all, or errors alone."""
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
