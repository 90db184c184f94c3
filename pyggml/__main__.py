"""`python -m pyggml`: the command `pyggml-cli`, found among the commands that were installed. Must not import it by name:
the engine knows no command line."""

import signal
import sys


def main() -> int:
    """Run it with the arguments given. Until it can catch Ctrl-C, that ends the process as it ends others, without Python's words."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="pyggml-cli")
    code: int = command.load()()
    return code


if __name__ == "__main__":
    sys.exit(main())
