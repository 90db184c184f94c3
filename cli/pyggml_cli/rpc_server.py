"""`pyggml-rpc-server`: offer this machine's devices to ggml RPC clients, ours and llama.cpp's.

Owns its flags and what it prints. Everything it says goes to stdout, warnings to stderr.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pyggml_cli.about import answered
from pyggml_cli.entry import run
from pyggml_cli.flags import Flag, Row, Values, choice, comma_separated, filename, help_text, parse, seconds, whole

if TYPE_CHECKING:
    from pyggml.backend.base import Device

MIB = 1 << 20
SWITCH = (
    0.0005  # seconds that a thread keeps the interpreter while others want it: many of a server's threads do little
)

ROWS: list[Row] = [
    Flag(("-h", "--help"), "help", "print this page and exit", default=False),
    Flag(("--version",), "version", "print the version and exit", default=False),
    Flag(("-p", "--port"), "port", "port to listen on; 0: any free one (50052)", whole(0, 65535), "PORT", 50052),
    Flag(("-H", "--host"), "host", "address to listen on (127.0.0.1)", str, "HOST", "127.0.0.1"),
    Flag(
        ("-d", "--device"),
        "device",
        "devices to offer, comma-separated (all GPUs, else CPU)",
        comma_separated,
        "DEV,...",
    ),
    Flag(("-t", "--threads"), "n_threads", "CPU threads, at most 1024 (one a core)", whole(1, 1024), "N"),
    Flag(
        ("-m", "--mem"),
        "memory",
        "most memory of each device to lend, in MiB (what is free, less a margin)",
        whole(1),
        "MIB",
    ),
    Flag(
        ("--client-share",),
        "share",
        "most that one client gets of what the others leave, in percent (90)",
        whole(1, 100),
        "PERCENT",
        90,
    ),
    Flag(("--max-clients",), "clients", "most clients at once; silent ones make room (64)", whole(1, 4096), "N", 64),
    Flag(("--max-per-address",), "per_address", "most clients of one other machine (half of all)", whole(1), "N"),
    Flag(("--greeting-timeout",), "greeting", "seconds for a client's whole HELLO (10)", seconds(0.1), "SECONDS", 10.0),
    Flag(
        ("--idle-timeout",),
        "idle",
        "hang up on clients that are silent for so long; 0: never (0)",
        seconds(),
        "SECONDS",
        0.0,
    ),
    Flag(
        ("--graph-timeout",),
        "graph",
        "most seconds that one graph may compute; 0: any (3600)",
        seconds(),
        "SECONDS",
        3600.0,
    ),
    Flag(
        ("-v", "--verbose"), "verbose", "log each connection, buffer and graph (also: GGML_RPC_DEBUG=1)", default=False
    ),
    Flag(
        ("--no-warmup",),
        "no_warmup",
        "listen at once; kernels are then compiled when a client first needs them",
        default=False,
    ),
    Flag(
        ("--protocol",),
        "protocol",
        "version to speak: 7 (7.0.0, llama.cpp before October 2026) or 8 (8.0.0)",
        choice("7", "7.0.0", "8", "8.0.0"),
        "N",
        "8",
    ),
    Flag(
        ("--comm",),
        "comm",
        "servers that it may add up tensors with (-sm tensor of llama.cpp): addresses, networks, names, or none "
        "(those of this machine where -H is of this machine, else none)",
        comma_separated,
        "HOST,...",
    ),
    Flag(("-c", "--cache"), "cache", "keep large weights on disk, so that they travel once", default=False),
    Flag(
        ("--cache-limit",),
        "cache_limit",
        "most MiB of weights on disk (65536, or half of what is free)",
        whole(1),
        "MIB",
    ),
    Flag(
        ("--cache-preload",),
        "preload",
        "model file whose large weights every client that has them as well is spared sending; may be repeated; "
        "anyone who knows a weight's hash can read it",
        filename,
        "FNAME",
        many=True,
    ),
]

ABOUT = (
    "Offer this machine's devices to ggml RPC clients. The protocol has neither passwords nor encryption: whoever "
    "reaches the port can use the machine's memory and processor. Listen on a network only where you trust everyone."
)


EXAMPLES = (
    ("pyggml-rpc-server", "lend this machine's memory and cores to programs on it"),
    ("pyggml-rpc-server -H 192.168.0.2 -c", "to a network where everyone is trusted, and keep weights on disk"),
    ("pyggml-rpc-server --cache-preload model.gguf", "weights of a model that clients use need not travel at all"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Ctrl-C and SIGTERM end it with 0; other exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv)
    if answered(values, lambda: help_text("pyggml-rpc-server [flags]", ABOUT, {"flags": ROWS}, examples=EXAMPLES)):
        return 0
    with _held_back() as (wait, end):
        return _serve(values, wait, end)


@contextlib.contextmanager
def _held_back() -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """Hold SIGTERM and Ctrl-C back from all threads begun meanwhile -> (waits for one of them, ends that wait).

    So there is neither a handler, which may raise anywhere, nor a question which thread a signal interrupts. Importing
    NumPy starts threads: this comes before.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    if not hasattr(signal, "sigwait"):  # not POSIX
        over = threading.Event()
        with contextlib.suppress(KeyboardInterrupt):
            yield over.wait, over.set
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        yield lambda: signal.sigwait(ends), lambda: os.kill(os.getpid(), signal.SIGTERM)
    finally:
        while signal.sigpending() & ends:  # asked again while it was ending
            signal.sigwait(ends)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _log(verbose: bool) -> None:
    """Lines about clients, with the time, on stderr; how many of one kind is limited."""
    from pyggml_rpc.logs import LimitRate

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.addFilter(LimitRate())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pyggml.rpc").setLevel(logging.DEBUG if verbose else logging.INFO)


def _compile_kernels(device: "Device") -> bool:
    """Have the kernels compiled that most models need, once on a machine; False when it was asked to end meanwhile.
    Where that does not work a client will be told why."""
    from pyggml import jit
    from pyggml.errors import PyggmlError
    from pyggml.model.usual import usual_kernels

    try:
        jobs = usual_kernels(device)
    except PyggmlError as reason:
        print(f"warning: the usual kernels cannot be compiled: {reason}", file=sys.stderr)
        return True
    if jobs:
        print(f"compiling {len(jobs)} kernels, which later starts find on disk ...", flush=True)
    while not all(job.done.wait(0.1) for job in jobs):
        if hasattr(signal, "sigpending") and signal.sigpending() & {signal.SIGTERM, signal.SIGINT}:
            return False
    jit.announce(logging.getLogger("pyggml.rpc").info)  # of others, which a client's model needs
    return True


def _serve(values: Values, wait: Callable[[], object], end: Callable[[], object] = lambda: None) -> int:
    """Until `wait` returns, which `end` makes it do: when all devices are lost, so that whoever watches this program may
    start it again."""
    from pyggml_rpc.addresses import bare_host, is_local
    from pyggml_rpc.cache import WeightCache
    from pyggml_rpc.memory import return_early
    from pyggml_rpc.preload import Preload
    from pyggml_rpc.server import Server
    from pyggml_rpc.transport import Limits, Listener
    from pyggml_rpc.wire import PROTOCOLS

    from pyggml.backend.base import Kind
    from pyggml.cachedir import cache_dir
    from pyggml.errors import DeviceError
    from pyggml_cli.descriptors import affordable
    from pyggml_cli.devices import gpu_devices, local_devices, pick

    return_early()
    clients = affordable(values.clients, "--max-clients", each=2)  # its connection, and a weight that is read for it
    _log(values.verbose or os.environ.get("GGML_RPC_DEBUG", "") not in ("", "0"))
    gpus = gpu_devices()
    if values.device is not None:
        devices = pick([*gpus, *local_devices()], values.device)
    else:
        devices = gpus or local_devices()
    preload = Preload(values.preload) if values.preload else None
    for device in devices:
        if device.kind is Kind.CPU and not values.no_warmup and not _compile_kernels(device):
            return 0
    cache_limit = values.cache_limit * MIB if values.cache_limit is not None else None
    cache = WeightCache(cache_dir("rpc"), cache_limit) if values.cache else None
    limit = values.memory * MIB if values.memory is not None else None
    (spoken,) = (p for p in PROTOCOLS if str(p).startswith(values.protocol))
    server = Server(
        devices,
        n_threads=values.n_threads,
        memory_limit=limit,
        client_share=values.share / 100,
        graph_timeout=values.graph or None,
        cache=cache,
        preload=preload,
        protocol=spoken,
    )
    limits = Limits(
        max_clients=clients,
        max_clients_of_one=values.per_address or max(1, clients // 2),
        greeting_timeout=values.greeting,
        idle_timeout=values.idle or None,
    )
    sys.setswitchinterval(SWITCH)
    with Listener(server, values.host, values.port, limits=limits, comm=values.comm, when_lost=end) as listener:
        if not is_local(listener.address[0]):
            print(
                f"warning: {bare_host(values.host)} is open to other machines, and the protocol has neither passwords nor encryption: "
                "serve only a network where you trust everyone",
                file=sys.stderr,
            )
        for served in server.devices:
            print(f"using {served.device.backend_name or served.device.kind.value} backend")
        print(f"Starting RPC server v{server.protocol}")
        print(f"  endpoint       : {listener.endpoint}")
        print(f"  local cache    : {cache.folder if cache is not None else 'n/a'}")
        if preload is not None:
            print(f"  preloaded      : {preload.n_tensors} tensors, {preload.n_bytes // MIB} MiB")
        print("Devices:")
        for served in server.devices:
            free, total = served.memory()
            print(f"  {served.device.name}: {served.device.description} ({total // MIB} MiB, {free // MIB} MiB free)")
        sys.stdout.flush()
        wait()
        lost = server.lost
    if lost is not None:
        raise DeviceError(lost)
    return 0


if __name__ == "__main__":
    sys.exit(main())
