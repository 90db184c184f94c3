"""`python -m pyggml.compat PROGRAM ARGS...`: run a Python program in which `import llama_cpp` finds pyggml.

PROGRAM is a file, `-m MODULE`, or the name of an installed command such as `llm`. Owns finding and running it.
"""

import os
import runpy
import sys
from importlib.metadata import entry_points

from pyggml import compat

USAGE = "usage: python -m pyggml.compat (FILE.py | -m MODULE | COMMAND) [ARGS...]"


def main() -> int:
    """Run it with the arguments given; 2 where it is not there."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    compat.install()
    if args[0] == "-m":
        if len(args) < 2:
            print(USAGE, file=sys.stderr)
            return 2
        sys.argv = args[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        return 0
    if os.path.isfile(args[0]):
        sys.argv = args
        sys.path.insert(0, os.path.dirname(os.path.abspath(args[0])))
        runpy.run_path(args[0], run_name="__main__")
        return 0
    commands = list(entry_points(group="console_scripts", name=args[0]))
    if not commands:
        print(f"error: {args[0]}: neither a file nor a command of an installed package", file=sys.stderr)
        return 2
    sys.argv = args
    result = commands[0].load()()
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
