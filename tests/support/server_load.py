"""Many clients of a server in a loop, a tenth of whose requests are hung up at random: each text must be the one that comes alone.

Owns the clients and the count; must not know where the server runs.
"""

import random
import threading
import time
from dataclasses import dataclass, field

from serving import Client

PROMPTS = [f"prompt {i} " + "of several words " * (i % 4) for i in range(12)]
N_TOKENS = 24


@dataclass
class Tally:
    """What came of it: answers that were complete, those hung up, those refused to come again later, and wrong ones."""

    complete: int = 0
    hung_up: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _body(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": N_TOKENS, "ignore_eos": True}


def _loop(client: Client, seed: int, until: float, right: dict[str, str], tally: Tally) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        prompt = rng.choice(PROMPTS)
        path = rng.choice(["/v1/completions", "/completion"])
        if rng.random() < 0.1:
            with client.open_stream(path, _body(prompt)) as events:
                for _ in range(rng.randrange(0, 6)):
                    next(events, None)
            with tally.lock:
                tally.hung_up += 1
            continue
        events = client.stream(path, _body(prompt))
        said = (
            "".join(c["text"] for e in events for c in e["choices"])
            if path[1] == "v"
            else "".join(e["content"] for e in events)
        )
        with tally.lock:
            tally.complete += 1
            if said != right[prompt]:
                tally.wrong.append(f"{prompt!r}: {said!r}, not {right[prompt]!r}")


def load(client: Client, seconds: float, clients: int, seed: int) -> Tally:
    """Runs for so long; an exception of a client counts as a wrong answer."""
    right = {prompt: str(client.ok("/v1/completions", _body(prompt))["choices"][0]["text"]) for prompt in PROMPTS}
    tally, until = Tally(), time.monotonic() + seconds

    def guarded(number: int) -> None:
        try:
            _loop(client, seed + number, until, right, tally)
        except Exception as reason:
            with tally.lock:
                tally.wrong.append(f"client {number}: {reason!r}")

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert not any(thread.is_alive() for thread in threads), "a client waits for ever"
    return tally
