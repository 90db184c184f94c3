"""`python -m pyggml`: the command `pyggml-cli`, found among the commands that were installed. Must not import it by name:
the engine knows no command line."""

import sys
from importlib.metadata import entry_points


def main() -> int:
    """Run it with the arguments given."""
    (command,) = entry_points(group="console_scripts", name="pyggml-cli")
    code: int = command.load()()
    return code


if __name__ == "__main__":
    sys.exit(main())
