"""The sampler against llama.cpp's: every stage and the whole chain on 200 random logit vectors each.

Owns the comparison; must not know how either side computes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyggml.sampler import Candidates, SamplerChain, SamplerParams, Stage
from pyggml.sampler.rng import Mt19937
from pyggml.sampler.stages import Dist, Greedy, LogitBias, MinP, Penalties, Temperature, TopK, TopP

SCRIPT = Path(__file__).parent / "support" / "peer_sampler.py"
ROWS, N = 200, 5003  # no multiple of 32: `largest` has a remainder
HISTORY = [7, 7, 7, 11, 4000, 11, 5002, 0, 12, 13, 7, *range(100, 160)]
BIASES = [(3, 2.5), (4000, -1.0), (5002, float("-inf")), (17, 40.0)]
TWICE = [
    *BIASES,
    (3, 0.25),
]  # in a whole vocabulary both biases count; among shuffled candidates the stock one takes one

# name -> (stock stage and its arguments, ours). Each meets whole vocabularies, and shuffled candidates.
STAGES: dict[str, tuple[list, Callable[[], Stage]]] = {
    "top-k 40": (["top_k", 40], lambda: TopK(40)),
    "top-k 1": (["top_k", 1], lambda: TopK(1)),
    "top-k 300": (["top_k", 300], lambda: TopK(300)),
    "top-k all": (["top_k", 9999], lambda: TopK(9999)),
    "top-p 0.95": (["top_p", 0.95, 0], lambda: TopP(0.95, 0)),
    "top-p 0.3": (["top_p", 0.3, 0], lambda: TopP(0.3, 0)),
    "top-p 0": (["top_p", 0.0, 0], lambda: TopP(0.0, 0)),
    "top-p keeps 400": (["top_p", 0.1, 400], lambda: TopP(0.1, 400)),
    "min-p 0.05": (["min_p", 0.05, 0], lambda: MinP(0.05, 0)),
    "min-p 0.9": (["min_p", 0.9, 0], lambda: MinP(0.9, 0)),
    "min-p keeps 100": (["min_p", 0.5, 100], lambda: MinP(0.5, 100)),
    "min-p 1.5": (["min_p", 1.5, 0], lambda: MinP(1.5, 0)),
    "temp 0.8": (["temp_ext", 0.8, 0.0, 1.0], lambda: Temperature(0.8)),
    "temp 0": (["temp_ext", 0.0, 0.0, 1.0], lambda: Temperature(0.0)),
    "temp -1": (["temp_ext", -1.0, 0.0, 1.0], lambda: Temperature(-1.0)),
    "repeat": (["penalties", 64, 1.3, 0.0, 0.0], lambda: Penalties(64, 1.3, 0.0, 0.0)),
    "all penalties": (["penalties", 8, 1.1, 0.3, 0.7], lambda: Penalties(8, 1.1, 0.3, 0.7)),
    "logit bias": (["logit_bias", *BIASES], lambda: LogitBias(BIASES)),
    "greedy": (["greedy"], Greedy),
    "dist": (["dist", 42], lambda: Dist(42)),
}

CHAINS: dict[str, SamplerParams] = {
    "defaults": SamplerParams(seed=1234),
    "hot": SamplerParams(seed=0, temp=2.5, top_p=1.0, min_p=0.0),
    "greedy": SamplerParams(seed=5, temp=0.0),
    "penalties": SamplerParams(seed=77, penalty_repeat=1.2, penalty_freq=0.2, penalty_present=0.1, penalty_last_n=16),
    "no top-k": SamplerParams(seed=0xFFFFFFFE, top_k=0, logit_bias=TWICE),
    "min keep": SamplerParams(seed=9, top_p=0.2, min_p=0.5, min_keep=12),
    "everything off": SamplerParams(seed=31, top_k=0, top_p=1.0, min_p=0.0, temp=1.0),
    "other order": SamplerParams(seed=3, penalty_repeat=1.4, samplers=("temperature", "min_p", "top_k", "penalties")),
}
LARGE = ("defaults", "no top-k", "penalties")  # on a vocabulary of 49152 as well


def random_logits(rows: int, n: int, seed: int) -> np.ndarray:
    """Rows from flat to peaked. No two logits of a row are equal: std::partial_sort leaves their order open."""
    rng = np.random.default_rng(seed)
    out = np.empty((rows, n), np.float32)
    for i in range(rows):
        values = np.empty(0, np.float32)
        while len(values) < n:
            more = (rng.standard_normal(2 * n) * (0.5 + 6 * i / rows) - 2).astype(np.float32)
            values = np.unique(np.concatenate([values, more]))
        out[i] = rng.permutation(values)[:n]
    return out


def stock_chain(p: SamplerParams) -> list[list]:
    """The stages that llama.cpp's common_sampler_init makes of these parameters."""
    made = {
        "penalties": ["penalties", p.penalty_last_n, p.penalty_repeat, p.penalty_freq, p.penalty_present],
        "top_k": ["top_k", p.top_k],
        "top_p": ["top_p", p.top_p, p.min_keep],
        "min_p": ["min_p", p.min_p, p.min_keep],
        "temperature": ["temp_ext", p.temp, 0.0, 1.0],
    }
    bias = [["logit_bias", *p.logit_bias]] if p.logit_bias else []
    return [*bias, *(made[name] for name in p.samplers), ["dist", p.seed]]


class Stock:
    """What the stock samplers made of every job, row by row."""

    def __init__(self, peer, folder: Path) -> None:
        rng = np.random.default_rng(99)
        self.logits = random_logits(ROWS, N, 1)
        self.ids = rng.permutation(N).astype(np.int32)  # shuffled candidates: position is not id
        self.jobs = []
        for stage, _ in STAGES.values():
            self.jobs += [{"stages": [stage], "logits": "logits", "history": HISTORY}]
            self.jobs += [{"stages": [stage], "logits": "logits", "history": HISTORY, "ids": "ids"}]
            self.jobs += [{"stages": [["top_k", 60], stage], "logits": "logits", "history": HISTORY}]
        for p in CHAINS.values():
            self.jobs += [{"stages": stock_chain(p), "logits": "logits", "history": HISTORY, "draw": True}]
        self.large = random_logits(40, 49152, 2)
        for name in LARGE:
            self.jobs += [{"stages": stock_chain(CHAINS[name]), "logits": "large", "history": HISTORY, "draw": True}]
        arrays = {"logits": self.logits, "large": self.large, "ids": self.ids}
        np.savez(folder / "in.npz", jobs=json.dumps(self.jobs), **arrays)
        peer.run(SCRIPT, str(folder / "in.npz"), str(folder / "out.npz"))
        loaded = np.load(folder / "out.npz")
        self.out = {key: loaded[key] for key in loaded.files}
        self.names = json.loads(str(self.out["names"]))

    def row(self, job: int, row: int) -> Candidates:
        start = int(self.out[f"size_{job}"][:row].sum())
        part = slice(start, start + int(self.out[f"size_{job}"][row]))
        ids, logits, p = (self.out[f"{key}_{job}"][part] for key in ("ids", "logits", "p"))
        return Candidates(ids, logits, p, bool(self.out[f"sorted_{job}"][row]), int(self.out[f"selected_{job}"][row]))


@pytest.fixture(scope="module")
def stock(peer, tmp_path_factory) -> Stock:
    return Stock(peer, tmp_path_factory.mktemp("sampler"))


def assert_same(ours: Candidates, theirs: Candidates) -> None:
    """Ids, order, logits and choice exactly; probabilities within 2 ulp: expf is rounded differently in rare cases."""
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    assert ours.selected == theirs.selected
    if ours.p is None:
        assert not theirs.p.any()
    else:
        np.testing.assert_allclose(ours.p, theirs.p, rtol=2.4e-7, atol=1e-44)  # ulp: 1.2e-7; 1.4e-45 where subnormal


def run_stage(stock: Stock, name: str, job: int, make: Callable[[], Stage]) -> None:
    """Our stage on the rows of job 0 (vocabulary), 1 (shuffled) or 2 (after top-k 60) of this name."""
    index = 3 * list(STAGES).index(name) + job
    for row in range(ROWS):
        ids = stock.ids if job == 1 else np.arange(N, dtype=np.int32)
        c = Candidates(ids, stock.logits[row])
        if job == 2:
            TopK(60).apply(c)
        stage = make()
        for token in HISTORY:
            stage.accept(token)
        if row and isinstance(stage, Dist):  # the stock chain lives through all rows: one draw a row
            for _ in range(row):
                stage._rng.uniform()
        stage.apply(c)
        assert_same(c, stock.row(index, row))


@pytest.mark.parametrize("job", [0, 1, 2], ids=["vocabulary", "shuffled", "after top-k"])
@pytest.mark.parametrize("name", STAGES)
def test_each_stage_equals_the_stock_one(stock, name, job):
    run_stage(stock, name, job, STAGES[name][1])


def run_chain(stock: Stock, params: SamplerParams, logits: np.ndarray, job: int) -> None:
    chain = SamplerChain(params, logits.shape[1])
    for token in HISTORY:
        chain.accept(token)
    for row in range(len(logits)):
        token = chain.sample(logits[row])
        theirs = stock.row(job, row)
        assert chain.candidates is not None
        assert_same(chain.candidates, theirs)
        assert token == theirs.ids[theirs.selected]
    assert str(chain) == " -> ".join(["logits", *stock.names[job]])


@pytest.mark.parametrize("name", CHAINS)
def test_chain_draws_the_same_tokens(stock, name):
    run_chain(stock, CHAINS[name], stock.logits, 3 * len(STAGES) + list(CHAINS).index(name))


@pytest.mark.parametrize("name", LARGE)
def test_chain_draws_the_same_tokens_from_a_large_vocabulary(stock, name):
    run_chain(stock, CHAINS[name], stock.large, 3 * len(STAGES) + len(CHAINS) + LARGE.index(name))


def test_the_chains_differ_and_are_random_enough(stock):
    """That two sides agree says something only if there was something to choose."""
    first = 3 * len(STAGES)
    drawn = {
        name: [int(c.ids[c.selected]) for c in (stock.row(first + i, row) for row in range(ROWS))]
        for i, name in enumerate(CHAINS)
    }
    best = stock.logits.argmax(axis=1)
    assert sum(np.array(drawn["defaults"]) != best) > 50
    assert drawn["greedy"] == best.tolist()
    assert len({tuple(tokens) for tokens in drawn.values()}) == len(CHAINS)


# Wrong twins: each has one plausible mistake, and the comparison has to see it.


class DividesNegativeLogits(Penalties):
    def apply(self, c: Candidates) -> None:
        seen = np.isin(c.ids, list(self._counts))
        c.logits = np.where(seen, c.logits / self.repeat, c.logits)


class CountsTheWholeHistory(Penalties):
    def accept(self, token: int) -> None:
        self._prev.append(token)
        self._counts[token] += 1


class StopsBeforeP(TopP):
    def _reach(self, cumulated: np.ndarray) -> int:
        return max(int(np.searchsorted(cumulated, self.p)), 1)


class ComparesWithP(MinP):
    def apply(self, c: Candidates) -> None:
        self._log_p = self.p
        super().apply(c)


class MultipliesByTheInverse(Temperature):
    def apply(self, c: Candidates) -> None:
        c.logits = c.logits * (np.float32(1) / self.temp)


class DropsTheOthers(Temperature):
    def apply(self, c: Candidates) -> None:
        c.take(slice(int(c.logits.argmax()), int(c.logits.argmax()) + 1))


class DoesNotSort(TopK):
    def apply(self, c: Candidates) -> None:
        c.take(np.sort(np.argpartition(c.logits, -self.k)[-self.k :]))


class HighWordFirst(Mt19937):
    def uniform(self) -> float:
        high, low = self.next_u32(), self.next_u32()
        return (high << 32 | low) / 2.0**64


class DrawsTheHighWordFirst(Dist):
    def reset(self) -> None:
        self._rng = HighWordFirst(self.seed)


class TakesPositionsForIds(LogitBias):
    def apply(self, c: Candidates) -> None:
        logits = c.logits.copy()
        logits[self.tokens] += self.biases
        c.logits = logits


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("repeat", lambda: DividesNegativeLogits(64, 1.3, 0.0, 0.0)),
        ("all penalties", lambda: CountsTheWholeHistory(8, 1.1, 0.3, 0.7)),
        ("top-p 0.95", lambda: StopsBeforeP(0.95, 0)),
        ("top-p keeps 400", lambda: TopP(0.1, 0)),
        ("min-p 0.05", lambda: ComparesWithP(0.05, 0)),
        ("temp 0.8", lambda: MultipliesByTheInverse(0.8)),
        ("temp 0", lambda: DropsTheOthers(0.0)),
        ("top-k 40", lambda: DoesNotSort(40)),
        ("top-k 40", lambda: TopK(39)),
        ("dist", lambda: Dist(43)),
        ("dist", lambda: DrawsTheHighWordFirst(42)),
        ("logit bias", lambda: TakesPositionsForIds(BIASES)),
    ],
)
def test_a_wrong_twin_is_caught(stock, name, twin):
    with pytest.raises(AssertionError):
        run_stage(stock, name, 1, twin)
