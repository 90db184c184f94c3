"""The sampler against llama.cpp's: every stage and the whole chain on 200 random logit vectors each.

Owns the comparison.
"""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kept import file_digest

from pyggml.gguf import GGUFFile
from pyggml.sampler import Candidates, SamplerChain, SamplerParams, Stage
from pyggml.sampler.adaptive import AdaptiveP, Mirostat, MirostatV2
from pyggml.sampler.dry import DRY, breaker_tails
from pyggml.sampler.rng import Mt19937
from pyggml.sampler.stages import (
    Dist,
    Greedy,
    LogitBias,
    MinP,
    Penalties,
    PlainTemperature,
    Temperature,
    TopK,
    TopP,
)
from pyggml.sampler.truncation import XTC, TopNSigma, Typical
from pyggml.tokenizer import Tokenizer

SCRIPT = Path(__file__).parents[1] / "support" / "peer_sampler.py"
ROWS, N = 200, 5003  # no multiple of 32: `largest` has a remainder
HISTORY = [7, 7, 7, 11, 4000, 11, 5002, 0, 12, 13, 7, *range(100, 150)]
HISTORY += [1000, 1001, 1002, 1003, 1500, 1000, 1001, 1002, 1600, 1001, 1002]  # what DRY looks for
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
    "top-n-sigma 1": (["top_n_sigma", 1.0], lambda: TopNSigma(1.0)),
    "top-n-sigma 2.7": (["top_n_sigma", 2.7], lambda: TopNSigma(2.7)),
    "typical 0.9": (["typical", 0.9, 0], lambda: Typical(0.9, 0)),
    "typical 0.2": (["typical", 0.2, 1], lambda: Typical(0.2, 1)),
    "typical keeps 70": (["typical", 0.3, 70], lambda: Typical(0.3, 70)),
    "xtc 0.5": (["xtc", 0.5, 0.1, 0, 42], lambda: XTC(0.5, 0.1, 0, 42)),
    "xtc 1": (["xtc", 1.0, 0.0001, 1, 7], lambda: XTC(1.0, 0.0001, 1, 7)),
    "xtc keeps 59": (["xtc", 1.0, 0.05, 59, 7], lambda: XTC(1.0, 0.05, 59, 7)),
    "temp 0.8, range 0.5": (["temp_ext", 0.8, 0.5, 1.0], lambda: Temperature(0.8, 0.5, 1.0)),
    "temp 1, range 0.3": (["temp_ext", 1.0, 0.3, 2.5], lambda: Temperature(1.0, 0.3, 2.5)),
    "temp 0.2, range 0.9": (["temp_ext", 0.2, 0.9, 0.3], lambda: Temperature(0.2, 0.9, 0.3)),
    "plain temp": (["temp", 0.7], lambda: PlainTemperature(0.7)),
    "mirostat": (["mirostat", N, 42, 5.0, 0.1, 100], lambda: Mirostat(N, 42, 5.0, 0.1, 100)),
    "mirostat 2": (["mirostat_v2", 42, 5.0, 0.1], lambda: MirostatV2(42, 5.0, 0.1)),
    "mirostat 2, tau 2": (["mirostat_v2", 1, 2.0, 0.4], lambda: MirostatV2(1, 2.0, 0.4)),
    "adaptive-p 0.4": (["adaptive_p", 0.4, 0.9, 42], lambda: AdaptiveP(0.4, 0.9, 42)),
    "adaptive-p off": (["adaptive_p", -1.0, 0.9, 42], lambda: AdaptiveP(-1.0, 0.9, 42)),
    "dry": (["dry", 0.8, 1.75, 2, 64, []], lambda: DRY(0.8, 1.75, 2, 64, {})),
    "dry from 3": (["dry", 1.5, 1.1, 3, 9999, []], lambda: DRY(1.5, 1.1, 3, 9999, {})),
}

CHAINS: dict[str, SamplerParams] = {
    "defaults": SamplerParams(seed=1234),
    "hot": SamplerParams(seed=0, temp=2.5, top_p=1.0, min_p=0.0),
    "greedy": SamplerParams(seed=5, temp=0.0),
    "penalties": SamplerParams(seed=77, penalty_repeat=1.2, penalty_freq=0.2, penalty_present=0.1, penalty_last_n=16),
    "no top-k": SamplerParams(seed=0xFFFFFFFE, top_k=0, logit_bias=TWICE),
    "min keep": SamplerParams(seed=9, top_p=0.2, min_p=0.5, min_keep=12),
    "xtc, typical, sigma, dry": SamplerParams(
        seed=8, xtc_probability=0.6, xtc_threshold=0.05, typ_p=0.8, top_n_sigma=2.5, dry_multiplier=0.7, min_keep=2
    ),
    "dynamic temperature": SamplerParams(seed=6, temp=1.1, dynatemp_range=0.8, dynatemp_exponent=1.5, top_k=0),
    "adaptive-p": SamplerParams(seed=2, adaptive_target=0.3, samplers=("adaptive_p", "top_k", "min_p")),
    "adaptive-p, slow": SamplerParams(
        seed=2, adaptive_target=0.6, adaptive_decay=1.0, samplers=("top_p", "adaptive_p")
    ),
    "infill": SamplerParams(seed=12, samplers=("top_k", "top_p", "infill", "temperature"), top_k=50),
    "mirostat 1": SamplerParams(seed=11, mirostat=1, temp=1.0),
    "mirostat 2": SamplerParams(seed=11, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2, temp=1.0),
    "everything off": SamplerParams(seed=31, top_k=0, top_p=1.0, min_p=0.0, temp=1.0),
    "other order": SamplerParams(seed=3, penalty_repeat=1.4, samplers=("temperature", "min_p", "top_k", "penalties")),
}
LARGE = ("defaults", "no top-k", "penalties", "xtc, typical, sigma, dry", "infill")  # on 49152 tokens as well

DRY_BREAKERS = ["\n", ":", " the", "e o", "ing\u00e9"]  # part of a token, begun by one, spread over several


def dry_histories(count: int) -> list[list[int]]:
    """Texts of few different tokens, some of which are or begin breakers (of SmolLM2's vocabulary, below N)."""
    rng = np.random.default_rng(5)
    return [rng.choice(rng.integers(20, 1200, 6), int(rng.integers(1, 90))).tolist() for _ in range(count)]


DRY_HISTORIES = dry_histories(60)


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


def stock_chain(p: SamplerParams, n_vocab: int) -> list[list]:
    """The stages that llama.cpp's common_sampler_init makes of these parameters."""
    made = {
        "penalties": ["penalties", p.penalty_last_n, p.penalty_repeat, p.penalty_freq, p.penalty_present],
        "top_k": ["top_k", p.top_k],
        "top_p": ["top_p", p.top_p, p.min_keep],
        "min_p": ["min_p", p.min_p, p.min_keep],
        "temperature": ["temp_ext", p.temp, p.dynatemp_range, p.dynatemp_exponent],
        "dry": [
            *("dry", p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n),
            p.dry_sequence_breakers,
        ],
        "top_n_sigma": ["top_n_sigma", p.top_n_sigma],
        "typ_p": ["typical", p.typ_p, p.min_keep],
        "xtc": ["xtc", p.xtc_probability, p.xtc_threshold, p.min_keep, p.seed],
        "infill": ["infill"],
    }
    bias = [["logit_bias", *p.logit_bias]] if p.logit_bias else []
    if p.mirostat == 1:
        return [*bias, ["temp", p.temp], ["mirostat", n_vocab, p.seed, p.mirostat_tau, p.mirostat_eta, 100]]
    if p.mirostat == 2:
        return [*bias, ["temp", p.temp], ["mirostat_v2", p.seed, p.mirostat_tau, p.mirostat_eta]]
    last = ["dist", p.seed]
    if "adaptive_p" in p.samplers:
        last = ["adaptive_p", p.adaptive_target, p.adaptive_decay, p.seed]
    return [*bias, *(made[name] for name in p.samplers if name in made), last]


class Stock:
    """What the stock samplers made of every job, row by row."""

    def __init__(self, peer, vocab: Path, folder: Path) -> None:
        rng = np.random.default_rng(99)
        self.logits = random_logits(ROWS, N, 1)
        self.ids = rng.permutation(N).astype(np.int32)  # shuffled candidates: position is not id
        self.jobs = []
        for stage, _ in STAGES.values():
            self.jobs += [{"stages": [stage], "logits": "logits", "history": HISTORY}]
            self.jobs += [{"stages": [stage], "logits": "logits", "history": HISTORY, "ids": "ids"}]
            self.jobs += [{"stages": [["top_k", 60], stage], "logits": "logits", "history": HISTORY}]
        for p in CHAINS.values():
            self.jobs += [{"stages": stock_chain(p, N), "logits": "logits", "history": HISTORY, "draw": True}]
        self.large = random_logits(40, 49152, 2)
        for name in LARGE:
            stages = stock_chain(CHAINS[name], 49152)
            self.jobs += [{"stages": stages, "logits": "large", "history": HISTORY, "draw": True}]
        self.first_dry = len(self.jobs)
        for history in DRY_HISTORIES:
            for stage in (["dry", 0.8, 1.75, 2, 50, DRY_BREAKERS], ["dry", 0.3, 1.2, 0, 50, []]):
                self.jobs += [{"stages": [stage], "logits": "few", "history": history}]
        self.few = self.logits[:2]
        arrays = {"logits": self.logits, "large": self.large, "ids": self.ids, "few": self.few}
        asked = [self.jobs, file_digest(vocab), {k: hashlib.sha256(a.tobytes()).hexdigest() for k, a in arrays.items()}]

        def make() -> bytes:
            np.savez(folder / "in.npz", jobs=json.dumps(self.jobs), vocab=str(vocab), **arrays)
            peer.run(SCRIPT, str(folder / "in.npz"), str(folder / "out.npz"))
            return (folder / "out.npz").read_bytes()

        loaded = np.load(io.BytesIO(peer.kept(SCRIPT, asked, make)))
        self.out = {key: loaded[key] for key in loaded.files}
        self.names = json.loads(str(self.out["names"]))

    def row(self, job: int, row: int) -> Candidates:
        start = int(self.out[f"size_{job}"][:row].sum())
        part = slice(start, start + int(self.out[f"size_{job}"][row]))
        ids, logits, p = (self.out[f"{key}_{job}"][part] for key in ("ids", "logits", "p"))
        return Candidates(ids, logits, p, bool(self.out[f"sorted_{job}"][row]), int(self.out[f"selected_{job}"][row]))


@pytest.fixture(scope="module")
def stock(peer, smollm2, tmp_path_factory) -> Stock:
    return Stock(peer, smollm2, tmp_path_factory.mktemp("sampler"))


@pytest.fixture(scope="module")
def tokenizer(stock, smollm2) -> Tokenizer:
    tokenizer = Tokenizer.from_metadata(GGUFFile.open(smollm2).metadata)
    tokenizer.eot = int(stock.out["eot"])  # of several tokens that may be EOT, that side takes one by a hash's order
    return tokenizer


def assert_same(ours: Candidates, theirs: Candidates, derived: bool = False) -> None:
    """Ids, order, logits and choice exactly; probabilities within 2 ulp: expf is rounded differently in rare cases.
    So are logits if they are derived from probabilities, and then the probabilities derived from these.
    """
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    if derived:
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-6)
    else:
        np.testing.assert_array_equal(ours.logits, theirs.logits)
    assert ours.selected == theirs.selected
    if ours.p is None:
        assert not theirs.p.any()
    else:
        np.testing.assert_allclose(
            ours.p, theirs.p, rtol=1e-5 if derived else 2.4e-7, atol=1e-44
        )  # ulp: 1.2e-7; 1.4e-45 where subnormal


def assert_same_typical(logits: np.ndarray, ids: np.ndarray, ours: Candidates, theirs: Candidates) -> None:
    """The same number, and in the order of the distance to the entropy; of equal distances (f32: within 5e-4 here)
    std::sort leaves the order open, so any may come first and any may be the last one in.
    """
    p = np.exp(logits.astype(np.float64) - logits.max())
    surprise = -np.log(p / p.sum())
    distance = np.empty(N)
    distance[ids] = np.abs(surprise - (p / p.sum() * surprise).sum())
    for side in (ours, theirs):
        assert (np.diff(distance[side.ids]) > -5e-4).all()
    assert ours.size == theirs.size and not ours.sorted
    odd = np.setxor1d(ours.ids, theirs.ids)
    assert len(odd) < 4 and (distance[odd] > distance[theirs.ids].max() - 5e-4).all()


def run_stage(stock: Stock, name: str, job: int, make: Callable[[], Stage]) -> None:
    """Our stage on the rows of job 0 (vocabulary), 1 (shuffled) or 2 (after top-k 60) of this name."""
    index = 3 * list(STAGES).index(name) + job
    stage = make()  # lives through all rows, as the stock one does
    for token in HISTORY:
        stage.accept(token)
    for row in range(ROWS):
        ids = stock.ids if job == 1 else np.arange(N, dtype=np.int32)
        c = Candidates(ids, stock.logits[row])
        if job == 2:
            TopK(60).apply(c)
        with np.errstate(all="ignore"):
            stage.apply(c)
        theirs = stock.row(index, row)
        if isinstance(stage, Typical) and job < 2:
            assert_same_typical(stock.logits[row], ids, c, theirs)
        else:
            assert_same(c, theirs, isinstance(stage, AdaptiveP) or getattr(stage, "range", 0) > 0)


@pytest.mark.parametrize("job", [0, 1, 2], ids=["vocabulary", "shuffled", "after top-k"])
@pytest.mark.parametrize("name", STAGES)
def test_each_stage_equals_the_stock_one(stock, name, job):
    run_stage(stock, name, job, STAGES[name][1])


def run_chain(stock: Stock, vocab: Tokenizer, params: SamplerParams, logits: np.ndarray, job: int) -> None:
    chain = SamplerChain(params, logits.shape[1], vocab=vocab)
    for token in HISTORY:
        chain.accept(token)
    for row in range(len(logits)):
        token = chain.sample(logits[row])
        theirs = stock.row(job, row)
        assert chain.candidates is not None
        assert_same(chain.candidates, theirs, params.dynatemp_range > 0 or "adaptive_p" in params.samplers)
        assert token == theirs.ids[theirs.selected]
    assert str(chain) == " -> ".join(["logits", *stock.names[job]])


@pytest.mark.parametrize("name", CHAINS)
def test_chain_draws_the_same_tokens(stock, tokenizer, name):
    run_chain(stock, tokenizer, CHAINS[name], stock.logits, 3 * len(STAGES) + list(CHAINS).index(name))


@pytest.mark.parametrize("name", LARGE)
def test_chain_draws_the_same_tokens_from_a_large_vocabulary(stock, tokenizer, name):
    run_chain(stock, tokenizer, CHAINS[name], stock.large, 3 * len(STAGES) + len(CHAINS) + LARGE.index(name))


def test_dry_finds_the_same_repetitions(stock, tokenizer):
    tails, changed = breaker_tails(tokenizer, DRY_BREAKERS), 0
    assert () in tails[tokenizer.encode(":", add_special=False)[0]]
    for i, history in enumerate(DRY_HISTORIES):
        for j, make in enumerate((lambda: DRY(0.8, 1.75, 2, 50, tails), lambda: DRY(0.3, 1.2, 0, 50, {}))):
            stage = make()
            for token in history:
                stage.accept(token)
            for row in range(2):
                c = Candidates(np.arange(N, dtype=np.int32), stock.few[row])
                stage.apply(c)
                assert_same(c, stock.row(stock.first_dry + 2 * i + j, row))
                changed += int((c.logits != stock.few[row]).any())
    assert changed > len(DRY_HISTORIES)


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


# Mutants: each has one plausible mistake, and the comparison has to see it.


class DropsTheSurprisingOnes(Typical):
    def _distance(self, p: np.ndarray) -> np.ndarray:
        return -np.log(p)


class ForgetsTheLastOne(XTC):
    def apply(self, c: Candidates) -> None:
        size = c.size
        super().apply(c)
        if c.size < size:
            c.take(slice(1, None))


class DividesByTheLargestEntropyTwice(Temperature):
    def _dynamic(self, c: Candidates) -> np.float32:
        return super()._dynamic(c) / np.float32(np.log(c.size))


class NeverLearns(MirostatV2):
    def apply(self, c: Candidates) -> None:
        mu = self.mu
        super().apply(c)
        self.mu = mu


class CountsFromAllLogits(TopNSigma):
    def apply(self, c: Candidates) -> None:
        limit = c.logits.max() - self.n * c.logits.std(ddof=1)
        c.logits = np.where(c.logits < limit, np.float32(-np.inf), c.logits)
        c.logits[c.logits.argmin()] = -np.inf


class CountsTheNewToken(DRY):
    def _penalty(self, length: int) -> float:
        return super()._penalty(length + 1)


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
    ("name", "mutant"),
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
        ("typical 0.2", lambda: DropsTheSurprisingOnes(0.2, 1)),
        ("typical keeps 70", lambda: Typical(0.3, 0)),
        ("xtc 0.5", lambda: XTC(0.5, 0.1, 0, 43)),
        ("xtc 1", lambda: ForgetsTheLastOne(1.0, 0.0001, 1, 7)),
        ("temp 0.8, range 0.5", lambda: DividesByTheLargestEntropyTwice(0.8, 0.5, 1.0)),
        ("mirostat", lambda: Mirostat(N + 500, 42, 5.0, 0.1, 100)),
        ("mirostat 2", lambda: NeverLearns(42, 5.0, 0.1)),
        ("adaptive-p 0.4", lambda: AdaptiveP(0.41, 0.9, 42)),
        ("top-n-sigma 2.7", lambda: CountsFromAllLogits(2.7)),
        ("dry", lambda: CountsTheNewToken(0.8, 1.75, 2, 64, {})),
        ("dist", lambda: Dist(43)),
        ("dist", lambda: DrawsTheHighWordFirst(42)),
        ("logit bias", lambda: TakesPositionsForIds(BIASES)),
    ],
)
def test_a_mutant_is_caught(stock, name, mutant):
    with pytest.raises(AssertionError):
        run_stage(stock, name, 1, mutant)
