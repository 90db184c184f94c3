"""`pyggml-rpc-server`: offer this machine's devices to ggml RPC clients, ours and llama.cpp's.

Owns its flags and what it prints; must not know the protocol. Everything it says goes to stdout, warnings to stderr.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from pyggml_cli.entry import run
from pyggml_cli.flags import Flag, Row, help_text, listed, parse, whole

MIB = 1 << 20

ROWS: list[Row] = [
    Flag(("-h", "--help"), "help", "print this page and exit", default=False),
    Flag(("--version",), "version", "print the version and exit", default=False),
    Flag(("-p", "--port"), "port", "port to listen on; 0: any free one (50052)", whole(0, 65535), "PORT", 50052),
    Flag(("-H", "--host"), "host", "address to listen on (127.0.0.1)", str, "HOST", "127.0.0.1"),
    Flag(("-d", "--device"), "device", "devices to offer, comma-separated (all)", listed, "DEV,..."),
    Flag(("-t", "--threads"), "n_threads", "CPU threads (one a core)", whole(1), "N"),
    Flag(("-m", "--mem"), "memory", "most memory of each device to lend, in MiB (all)", whole(1), "MIB"),
    Flag(("-c", "--cache"), "cache", "keep large weights on disk, so that they travel once", default=False),
]

ABOUT = (
    "Offer this machine's devices to ggml RPC clients. The protocol has neither passwords nor encryption: whoever "
    "reaches the port can use the machine's memory and processor. Listen on a network only where you trust everyone."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Ctrl-C and SIGTERM end it with 0; other exit codes: see entry.run."""
    return run(_command, argv)


class _Terminated(Exception):
    """SIGTERM or Ctrl-C came."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv)
    if values.help:
        print(help_text("pyggml-rpc-server [flags]", ABOUT, {"flags": ROWS}), end="")
        return 0
    if values.version:
        from pyggml_cli.cli import version

        print(version())
        return 0
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _serve(values.host, values.port, values.device, values.n_threads, values.memory, values.cache)
    except _Terminated:
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(host: str, port: int, names: list[str] | None, n_threads: int | None, memory: int | None, keep: bool) -> int:
    from pyggml_rpc.cache import WeightCache
    from pyggml_rpc.server import Server
    from pyggml_rpc.transport import Listener
    from pyggml_rpc.wire import PROTOCOL

    from pyggml.cachedir import cache_dir
    from pyggml_cli.devices import local_devices, pick

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    devices = local_devices()
    if names is not None:
        devices = pick(devices, names)
    cache = WeightCache(cache_dir("rpc")) if keep else None
    limit = memory * MIB if memory is not None else None
    server = Server(devices, n_threads=n_threads, memory_limit=limit, cache=cache)
    with Listener(server, host, port) as listener:
        if host not in ("127.0.0.1", "localhost", "::1"):
            print(
                f"warning: {host} is open to other machines, and the protocol has neither passwords nor encryption: "
                "serve only a network where you trust everyone",
                file=sys.stderr,
            )
        for slot in server.slots:
            print(f"using {slot.device.kind.value} backend")
        print(f"Starting RPC server v{'.'.join(map(str, PROTOCOL))}")
        print(f"  endpoint       : {listener.endpoint}")
        print(f"  local cache    : {cache.folder if cache is not None else 'n/a'}")
        print("Devices:")
        for slot in server.slots:
            free, total = slot.memory()
            print(f"  {slot.device.name}: {slot.device.description} ({total // MIB} MiB, {free // MIB} MiB free)")
        sys.stdout.flush()
        listener.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
