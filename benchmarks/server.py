"""pyggml-server beside llama-server on the same file: `python benchmarks/server.py [FILE.gguf ...]`.

Owns what the users do and how it is told. Both servers run at once, and answer in turn: in each round so many users at once
each send one request after another, a prompt of their own that nothing is known of (`cache_prompt` is off), and read the stream
of the answer. Rates are tokens of answers a second of all users together, from the first request to the last token; "first" is
the 95th percentile of the times to a first token. A ratio is ours / llama-server's of one round; of times less than 1 is
better. "gap" is how many times longer than alone an answer waits for its next token while a long prompt comes in (means; each
server by itself). Without files: SmolLM2-135M in Q4_0.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from files import smollm2
from limits import Limits
from result_files import json_file
from sides import stock, stock_env
from vs_llamacpp import machine, numbers

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from peer_build import PeerMissing  # noqa: E402
from peer_programs import ensure_programs  # noqa: E402

WAIT = 120  # seconds for a server to be ready
LIMIT = 600  # seconds for a round


def flags(model: Path, options: argparse.Namespace, port: int) -> list[str]:
    """What both programs are given."""
    most = max(options.users)
    each = -(-(options.prompt + options.generate + 8) // 256) * 256
    given = {"-m": model, "-c": each * most, "-np": most, "-t": options.threads, "--port": port, "--host": "127.0.0.1"}
    return [str(part) for pair in given.items() for part in pair]


@contextmanager
def serving(command: Sequence[str], env: dict[str, str] | None) -> Iterator[str]:
    """A server's address, once it answers."""
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
            until = time.monotonic() + WAIT
            while not asyncio.run(_healthy(address)):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{command[0]} does not answer at {address}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


async def _healthy(address: str) -> bool:
    try:
        status, _, writer = await _request(address, "GET", "/health", b"")
        writer.close()
        return status == 200
    except OSError:
        return False


async def _request(
    address: str, method: str, path: str, body: bytes
) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    line = await reader.readline()
    while (await reader.readline()).strip():
        pass
    return int(line.split()[1]) if line else 0, reader, writer


async def _ask(address: str, prompt: list[int], n: int) -> tuple[float, int]:
    """Seconds to the first token, and tokens of an answer."""
    body = {
        "prompt": prompt,
        "n_predict": n,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": False,
    }
    body["return_tokens"] = True
    start = time.perf_counter()
    status, reader, writer = await _request(address, "POST", "/completion", json.dumps(body).encode())
    assert status == 200, (address, status, await reader.read())
    first, count = 0.0, 0
    async for line in reader:
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - start
            event = json.loads(line[6:])
            if event.get("stop"):
                count = event["tokens_predicted"]
    writer.close()
    assert count == n, (count, n)
    return first, count


async def _user(address: str, prompts: Sequence[list[int]], n: int) -> list[tuple[float, int]]:
    return [await _ask(address, prompt, n) for prompt in prompts]


async def _round(address: str, users: int, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Tokens a second, and the 95th percentile of seconds to the first token."""
    rng = random.Random(seed)
    prompts = [
        [
            [rng.randrange(min(1000, options.vocab // 2), options.vocab) for _ in range(options.prompt)]
            for _ in range(options.requests)
        ]
        for _ in range(users)
    ]
    start = time.perf_counter()
    async with asyncio.timeout(LIMIT):
        found = await asyncio.gather(*(_user(address, mine, options.generate) for mine in prompts))
    took = time.perf_counter() - start
    firsts = sorted(first for one in found for first, _ in one)
    return sum(n for one in found for _, n in one) / took, firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))]


def measure(model: Path, options: argparse.Namespace, sides: Sequence[tuple[list[str], Any]]) -> list[dict[str, Any]]:
    """All numbers of users, ours first in each round."""
    results = []
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(serving([*command, *flags(model, options, options.ports[i])], env))
            for i, (command, env) in enumerate(sides)
        ]
        for users in options.users:
            found: list[list[tuple[float, float]]] = [[] for _ in addresses]
            for turn in range(options.rounds + options.warm_up):
                for address, list_ in zip(addresses, found, strict=True):
                    one = asyncio.run(_round(address, users, options, turn))
                    if turn >= options.warm_up:
                        list_.append(one)
            for unit, i in (("tokens/s", 0), ("s", 1)):
                of = [[one[i] for one in list_] for list_ in found]
                test = f"{'answers' if i == 0 else 'first'} x {users}"
                ratio = [a / b for a, b in zip(*of, strict=True)] if len(of) > 1 else []
                results.append(
                    {
                        "model": model.name,
                        "test": test,
                        "unit": unit,
                        "ours": of[0],
                        "llama-server": of[-1],
                        "ratio": ratio,
                    }
                )
    return results


async def _gaps(address: str, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Seconds between two tokens of an answer under way, on average: alone, which is before and after, and while a long prompt
    comes in."""
    rng = random.Random(seed)
    long = [rng.randrange(min(1000, options.vocab // 2), options.vocab) for _ in range(options.gap)]
    body = {"prompt": long[:16], "n_predict": 2000, "stream": True, "ignore_eos": True, "cache_prompt": False}
    status, reader, writer = await _request(address, "POST", "/completion", json.dumps(body).encode())
    assert status == 200, status
    before, beside, after = [], [], []
    gaps = before  # where the next one goes: the one in which the other prompt was sent is beside it, however short it took
    other: asyncio.Task[tuple[float, int]] | None = None
    last = time.perf_counter()
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
        if other is None and len(before) == 24:
            other = asyncio.ensure_future(_ask(address, long, 1))
            gaps = beside
        elif other is not None and other.done():
            gaps = after
        if len(after) == 24:
            break
    writer.close()
    assert other is not None
    await other
    return statistics.fmean((*before[4:], *after[4:])), statistics.fmean(beside)


def measure_gaps(
    model: Path, options: argparse.Namespace, sides: Sequence[tuple[list[str], Any]]
) -> list[dict[str, Any]]:
    """How much longer a running answer waits for its next token while a prompt of `--gap` tokens comes in."""
    found: list[list[tuple[float, float]]] = []
    for (command, env), port in zip(sides, options.ports, strict=False):
        c = 2 * (-(-(options.gap + 256) // 256) * 256)
        given = ["-m", str(model), "-c", str(c), "-np", "2", "-t", str(options.threads), "--port", str(port)]
        with serving([*command, *given, "--host", "127.0.0.1"], env) as address:
            turns = range(options.rounds + options.warm_up)
            found.append([asyncio.run(_gaps(address, options, turn)) for turn in turns][options.warm_up :])
    made = {"model": model.name, "test": f"gap beside {options.gap}", "unit": "x"}
    of = [[beside / alone for alone, beside in one] for one in found]
    ratio = [a / b for a, b in zip(*of, strict=True)] if len(of) > 1 else []
    return [{**made, "ours": of[0], "llama-server": of[-1], "ratio": ratio}]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("-u", "--users", type=numbers, default="1,4,16", metavar="N,...")
    parser.add_argument("-p", "--prompt", type=int, default=128, help="tokens of a prompt (128)")
    parser.add_argument("-n", "--generate", type=int, default=64, help="tokens of an answer (64)")
    parser.add_argument("-q", "--requests", type=int, default=2, help="requests of a user in a round (2)")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-w", "--warm-up", type=int, default=1, help="rounds before them that do not count (1)")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "-g",
        "--gap",
        type=int,
        default=4000,
        help="tokens of a prompt that comes in beside an answer; 0: none (%(default)s)",
    )
    parser.add_argument("--ports", type=numbers, default="18080,18081", help="two free ones (%(default)s)")
    parser.add_argument("--vocab", type=int, default=20000, help="prompts are random tokens below this (20000)")
    parser.add_argument("--alone", action="store_true", help="ours alone")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the figures to a file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the servers end too
    ours = [sys.executable, "-c", "import sys; from pyggml_cli.server import main; sys.exit(main())"]
    sides: list[tuple[list[str], Any]] = [(ours, None)]
    models = list(options.models)
    if not (options.alone and models):
        peer = stock()
        models = models or [smollm2(peer, "Q4_0")]
        try:
            program = ensure_programs().bin / "llama-server"
        except PeerMissing as reason:
            sys.exit(f"nothing to compare with: {reason}")
        if not options.alone:
            sides.append(([str(program), "-fa", "on", "--no-ui"], stock_env(peer)))
    report: dict[str, Any] = {"machine": machine(options, Limits(options.threads)), "results": []}
    print(", ".join(f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in report["machine"].items()))
    for model in models:
        gaps = measure_gaps(model, options, sides) if options.gap else []
        for result in (*gaps, *measure(model, options, sides)):
            report["results"].append(result)
            spread = [f"{statistics.median(result[side]):9.2f}" for side in ("ours", "llama-server")]
            ratio = (
                f"{statistics.median(result['ratio']):.2f} ({min(result['ratio']):.2f} .. {max(result['ratio']):.2f})"
                if result["ratio"]
                else "-"
            )
            print(
                f"{model.name}  {result['test']:<12} ours {spread[0]}  llama-server {spread[1]} {result['unit']:<8} ratio {ratio}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
