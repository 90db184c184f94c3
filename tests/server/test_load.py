"""Many clients for a while, a tenth of whom hang up: no lost token, no wrong text, nothing left over."""

import random
import threading
import time

import pytest
from serving import Client, serving

from pyggml.model.model import Model

SECONDS = 8.0
CLIENTS = 16


def loop(client: Client, seed: int, until: float, right: dict[str, str], wrong: list[str], count: list[int]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        prompt = rng.choice(sorted(right))
        body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True}
        if rng.random() < 0.1:
            with client.open_stream("/v1/completions", body) as events:
                for _ in range(rng.randrange(1, 6)):
                    next(events, None)
            count[1] += 1
            continue
        said = "".join(c["text"] for e in client.stream("/v1/completions", body) for c in e["choices"])
        if said != right[prompt]:
            wrong.append(f"{prompt!r}: {said!r}, not {right[prompt]!r}")
        count[0] += 1


@pytest.mark.slow
def test_many_clients(model: Model) -> None:
    prompts = [f"prompt {i} " + "of several words " * (i % 4) for i in range(12)]
    with serving(model, n_slots=4, n_ctx=4 * 256) as client:
        right = {}
        for prompt in prompts:
            body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True}
            right[prompt] = client.ok("/v1/completions", body)["choices"][0]["text"]
        wrong: list[str] = []
        count = [0, 0]
        until = time.monotonic() + SECONDS
        threads = [threading.Thread(target=loop, args=(client, i, until, right, wrong, count)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:3]
        assert count[0] > 2 * CLIENTS and count[1] > 0
        engine = client.served.engine
        for _ in range(200):
            if engine.idle:
                break
            time.sleep(0.05)
        assert engine.idle and not engine._queues and all(place.sequence is None for place in engine.places)
