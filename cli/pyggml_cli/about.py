"""What every command tells of itself: --help, --version, --list-devices, and notes on flags without effect.

Imports nothing of devices before they are asked for.
"""

import sys
from collections.abc import Callable

from pyggml_cli.flags import Values


def version() -> str:
    """The version installed."""
    from importlib.metadata import version

    return f"pyggml {version('pyggml')}"


def answered(values: Values, page: Callable[[], str]) -> bool:
    """Whether no more was asked than what it tells; `page` is that of --help. Otherwise notes go to stderr."""
    if values.help:
        print(page(), end="")
        return True
    if values.version:
        print(version())
        return True
    for note in values.notes:
        print(note, file=sys.stderr)
    if values.given.get("list_devices"):
        from pyggml_cli.devices import listing, local_devices, offload_devices

        print(listing([*local_devices(), *offload_devices(values.rpc, rpc_timeout=values.rpc_timeout)]))
        return True
    return False
