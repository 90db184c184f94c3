"""Runs by the hour what the tests run for seconds, and prints figures. Not collected by pytest.

usage: python tests/soak.py guardfuzz COUNT [--seed S] [--first N] [--ops OP,OP ...]
       python tests/soak.py hang-ups SECONDS [--threads N]
       python tests/soak.py memory SECONDS [--mem MIB] [--clients N]
       python tests/soak.py server SECONDS [--clients N]
       python tests/soak.py stalls SECONDS [--clients N] [--model FILE] [--seed S] [-- FLAGS]
       python tests/soak.py layers SECONDS [--devices NAME] [--seed S]
"""

import argparse
import os
import random
import secrets
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

STRETCH = 20_000
"""Graphs that one process runs before another goes on."""


def guardfuzz(args: argparse.Namespace) -> int:
    """Random graphs through a session between forbidden pages (support/guarded_session.py); each stretch has its own seed."""
    from guarded_session import drive

    done, seconds, faults = 0, 0.0, 0
    counts: dict[str, int] = {}
    while done < args.count:
        many = min(STRETCH, args.count - done)
        seed = args.seed + done // STRETCH
        figures = drive(seed, args.first, many, timeout=3600, only=args.ops)
        done, seconds = done + many, seconds + figures.seconds
        for name, count in figures.counts.items():
            counts[name] = counts.get(name, 0) + count
        for fault in figures.faults:
            faults += 1
            print(f"seed {seed}: {fault}", flush=True)
        whole = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("computed", "refused"))
        print(f"seeds {args.seed} to {seed}: {done} graphs in {seconds:.0f} s: {whole}, {faults} faults", flush=True)
    print(
        ", ".join(
            f"{name.removeprefix('computed ')} {n}"
            for name, n in sorted(counts.items())
            if name.startswith("computed ")
        )
    )
    print(
        f"of the refused: {counts.get('overlaps', 0)} overlaps; {counts.get('row numbers', 0)} row numbers out of range"
    )
    return 1 if faults else 0


def hang_ups(args: argparse.Namespace) -> int:
    """Clients that hang up while their graph is computed, beside two that add numbers (support/hang_ups.py)."""
    from hang_ups import run
    from pyggml_rpc.server import Server
    from pyggml_rpc.transport import Listener

    from pyggml.backend.cpu import CPUDevice

    with Listener(Server([CPUDevice()], n_threads=args.threads), port=0) as listener:
        tally = run(listener.endpoint, args.seconds, secrets.randbelow(1 << 31))
    print(f"{tally.hang_ups} hang-ups, {tally.sums} graphs of others, all answered and right")
    return 0


def memory(args: argparse.Namespace) -> int:
    """Clients that want all of a server's memory, in every way (support/heavy_clients.py): what its process takes."""
    import subprocess

    from heavy_clients import MIB, resident_of, run

    command = [sys.executable, "-m", "pyggml_cli.rpc_server", "-p", "0", "-t", "2", "-m", str(args.mem)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "endpoint" in line)
        seed = secrets.randbelow(1 << 31)
        tally = run(line.split(":", 1)[1].strip(), server.pid, args.mem * MIB, args.seconds, seed, args.clients)
        time.sleep(5)
        after = resident_of(server.pid)
        server.terminate()
    done = ", ".join(f"{count} {name}" for name, count in sorted(tally.done.items()))
    sizes = (size // MIB for size in (tally.before, tally.most, after))
    print("-m {}: {} MiB at the start, {} at most, {} after 5 s alone; {}".format(args.mem, *sizes, done))
    return 0


def server(args: argparse.Namespace) -> int:
    """Clients of pyggml-server in a loop, a tenth of whose requests are hung up (support/server_load.py): texts, and memory."""
    import tempfile
    import threading

    from heavy_clients import MIB, resident_of
    from served_process import running
    from server_load import load
    from text_model import write_text_model

    with tempfile.TemporaryDirectory() as folder:
        model = write_text_model(Path(folder) / "text.gguf", n_ctx=2048)
        flags = ("-m", str(model), "-np", "8", "-c", "2048", "--temp", "0", "--cache-ram", "8")
        with running(*flags) as (process, client):
            sizes: list[int] = []
            done = threading.Event()

            def watch() -> None:
                while not done.wait(args.seconds / 20):
                    sizes.append(resident_of(process.pid) // MIB)

            watcher = threading.Thread(target=watch)
            watcher.start()
            tally = load(client, args.seconds, args.clients, secrets.randbelow(1 << 31))
            done.set()
            watcher.join()
            time.sleep(2)
            busy = sum(slot["is_processing"] for slot in client.get("/slots")[1])
    for wrong in tally.wrong[:5]:
        print(wrong)
    print(
        f"{tally.complete} answers, {len(tally.wrong)} wrong, {tally.hung_up} hung up, {busy} slots left busy; "
        f"MiB in memory, twenty times: {' '.join(map(str, sizes))}"
    )
    return 1 if tally.wrong or busy else 0


def stalls(args: argparse.Namespace) -> int:
    """Users of pyggml-server whose number changes at random (support/server_stalls.py): gaps between two tokens. Where one waits for long
    the server prints what each of its threads does."""
    from peer_build import ensure_smollm2
    from served_process import SCRIPT, running
    from server_stalls import LONG, change

    script = (
        "import faulthandler, signal, sys; faulthandler.enable(); faulthandler.register(signal.SIGUSR1)\n"
        "from pyggml_server.pace import Pace\n"
        "took = Pace.took\n"
        "def noted(pace, seconds, running, n_prompt):\n"
        "    if running and seconds > 10 * pace._plain.get(running.bit_length(), seconds):\n"
        "        print(f'a step of {running} texts and {n_prompt} tokens of prompts took {seconds:.2f} s', file=sys.stderr)\n"
        "    took(pace, seconds, running, n_prompt)\n"
        f"Pace.took = noted\n{SCRIPT}"
    )
    model = args.model or ensure_smollm2()
    flags = ("-m", str(model), "-np", str(args.clients), "-c", str(1024 * args.clients), "--temp", "0", *args.flags)
    told = 0
    with running(*flags, script=script) as (process, client):

        def stalled(seconds: float) -> None:
            nonlocal told
            told += 1
            if told <= 5:
                print(f"a stream has waited for {seconds:.2f} s", file=sys.stderr, flush=True)
                os.kill(process.pid, signal.SIGUSR1)

        found = change(client, args.seconds, args.clients, args.seed, stalled)
    for wrong in found.failed[:5]:
        print(wrong)
    for bits, seconds in found.usual().items():
        mine = [gap.seconds for gap in found.gaps if gap.users.bit_length() == bits]
        print(f"up to {2**bits - 1:2} users: {len(mine):6} gaps, usually {seconds:.4f} s, at most {max(mine):.4f} s")
    long = found.long()
    for gap in long[:8]:
        print(f"at {gap.at:.2f} s, {gap.users} users: {gap.seconds:.3f} s")
    print(
        f"seed {args.seed}: {found.answers} answers, {len(found.gaps)} gaps, {len(long)} above {LONG} times the usual one"
    )
    return 1 if found.failed else 0


def layers(args: argparse.Namespace) -> int:
    """Random layers of which a few stand for all, beside all of them (support/random_layers.py)."""
    from few_compare import assert_same
    from layer_devices import scheduler_of
    from random_layers import compare, drawn

    rng, until = random.Random(args.seed), time.monotonic() + args.seconds
    done = enough = different = 0
    with scheduler_of(args.devices) as scheduler:
        while time.monotonic() < until:
            kinds, order, cut = drawn(rng)
            done += 1
            try:
                enough += compare(scheduler, kinds, order, assert_same, cut)
            except AssertionError as reason:
                different += 1
                print(f"{kinds}, order {order}, cut {cut}: {str(reason)[:300]}", flush=True)
    print(
        f"{args.devices}, seed {args.seed}: {done} models, few layers were enough in {enough}, {different} were different"
    )
    return 1 if different else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    guard = commands.add_parser("guardfuzz", help=guardfuzz.__doc__)
    guard.add_argument("count", type=int, help="graphs to run")
    guard.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="default: another one each time")
    guard.add_argument("--first", type=int, default=0, help="number of the first graph")
    guard.add_argument("--ops", default="-", help="only graphs of these ops, e.g. GET_ROWS,SET_ROWS")
    guard.set_defaults(run=guardfuzz)
    hang = commands.add_parser("hang-ups", help=hang_ups.__doc__)
    hang.add_argument("seconds", type=float)
    hang.add_argument("--threads", type=int, default=2, help="of the server (default: 2)")
    hang.set_defaults(run=hang_ups)
    heavy = commands.add_parser("memory", help=memory.__doc__)
    heavy.add_argument("seconds", type=float)
    heavy.add_argument("--mem", type=int, default=1000, help="MiB that the server lends (default: 1000)")
    heavy.add_argument("--clients", type=int, default=16, help="at once (default: 16)")
    heavy.set_defaults(run=memory)
    served = commands.add_parser("server", help=server.__doc__)
    served.add_argument("seconds", type=float)
    served.add_argument("--clients", type=int, default=32)
    served.set_defaults(run=server)
    held = commands.add_parser("stalls", help=stalls.__doc__)
    held.add_argument("seconds", type=float)
    held.add_argument("--clients", type=int, default=8, help="at once at most (default: %(default)s)")
    held.add_argument("--model", type=Path, help="default: SmolLM2-135M")
    held.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="default: another one each time")
    held.add_argument("flags", nargs="*", help="further ones of the server, behind --")
    held.set_defaults(run=stalls)
    few = commands.add_parser("layers", help=layers.__doc__)
    few.add_argument("seconds", type=float)
    few.add_argument("--devices", default="two GPUs", help="a name of support/layer_devices.py (default: %(default)s)")
    few.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="default: another one each time")
    few.set_defaults(run=layers)
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
