"""Times the whole sampler chain, ours and llama.cpp's in turn: `python benchmarks/sampler.py [--rounds N]`.

Owns the measurement. A ratio below 1 means that ours is faster. Both sides start from an array of logits and end with
an accepted token. Medians of 300 draws, best round of each. llama.cpp copies the logits into an array of structs first;
NumPy does that for it here, so its time is given without that copy as well ("stages"), and the ratio to this smaller
time too.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from peer import Peer
from sides import stock as stock_engine

from pyggml.sampler import SamplerChain, SamplerParams

DRAWS = 300
SCRIPT = Path(__file__).resolve().parent.parent / "tests" / "support" / "peer_sampler.py"
CASES = {
    "default chain": SamplerParams(seed=1),
    "--temp 0": SamplerParams(seed=1, temp=0.0),
    "--repeat-penalty 1.1": SamplerParams(seed=1, penalty_repeat=1.1),
    "--top-k 0": SamplerParams(seed=1, top_k=0),
}


def stock_stages(p: SamplerParams) -> list[list]:
    return [
        ["penalties", p.penalty_last_n, p.penalty_repeat, p.penalty_freq, p.penalty_present],
        ["top_k", p.top_k],
        ["top_p", p.top_p, p.min_keep],
        ["min_p", p.min_p, p.min_keep],
        ["temp_ext", p.temp, 0.0, 1.0],
        ["dist", p.seed],
    ]


def ours(p: SamplerParams, logits: np.ndarray) -> float:
    chain, seconds = SamplerChain(p, logits.shape[1]), []
    for i in range(DRAWS):
        start = time.perf_counter()
        chain.sample(logits[i % len(logits)])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e6


def stock(peer: Peer, logits: np.ndarray) -> np.ndarray:
    """Microseconds, (2, cases): whole draws, and without the copy."""
    jobs = [{"stages": stock_stages(p), "logits": "logits", "draw": True, "times": DRAWS} for p in CASES.values()]
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npz", f"{folder}/out.npz"
        np.savez(source, jobs=json.dumps(jobs), logits=logits)
        peer.run(SCRIPT, source, target)
        out = np.load(target)
        return np.stack([out[f"us_{i}"] for i in range(len(jobs))], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="The sampler's time a token, beside llama.cpp's.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    peer = stock_engine()
    print(
        f"{'logits':>7}  {'chain':<22} {'ours us':>8} {'llama.cpp us':>13} {'ratio':>6} {'stages us':>10} {'ratio':>6}"
    )
    for n in (49_152, 128_256):
        rng = np.random.default_rng(0)
        logits = (rng.standard_normal((16, n)) * 3).astype(np.float32)
        best = np.full((3, len(CASES)), np.inf)
        for _ in range(rounds):
            best[0] = np.minimum(best[0], [ours(p, logits) for p in CASES.values()])
            best[1:] = np.minimum(best[1:], stock(peer, logits))
        for name, a, b, c in zip(CASES, *best, strict=True):
            print(f"{n:>7}  {name:<22} {a:>8.1f} {b:>13.1f} {a / b:>6.2f} {c:>10.1f} {a / c:>6.2f}")


if __name__ == "__main__":
    main()
