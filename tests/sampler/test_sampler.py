"""The sampler: what each stage keeps, what a chain remembers, what it refuses.

Owns the properties that need no second implementation.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyggml.errors import SamplerError
from pyggml.sampler import (
    LLAMA_DEFAULT_SEED,
    Candidates,
    SamplerChain,
    SamplerParams,
    parse_logit_bias,
    samplers_from_chars,
    samplers_from_names,
)
from pyggml.sampler.candidates import descending, largest, softmax
from pyggml.sampler.rng import Mt19937
from pyggml.sampler.stages import Dist, Greedy, MinP, Penalties, TopK, TopP

few = settings(deadline=None, max_examples=60)
# Values that often coincide, and both zeros: ties are where selection goes wrong.
coarse = st.sampled_from([-3.5, -1.0, -0.0, 0.0, 0.25, 2.0, 7.0, float("-inf")])
plain = st.floats(-40, 40, width=32)
vectors = hnp.arrays(np.float32, st.integers(1, 300), elements=st.one_of(coarse, plain))
seeds = st.integers(0, 2**32 - 1)


def candidates(logits: np.ndarray) -> Candidates:
    return Candidates(np.arange(len(logits), dtype=np.int32), logits)


def drawable(logits: np.ndarray) -> np.ndarray:
    """With at least one finite logit."""
    out = logits.copy()
    out[len(out) // 2] = 0.5
    return out


def tied(n: int, levels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-levels, levels, n).astype(np.float32)


# Selection


def check_descending(order_of, logits):
    """Specification: sorted by (-logit, position)."""
    assert order_of(logits).tolist() == sorted(range(len(logits)), key=lambda i: (-logits[i], i))


@few
@given(vectors)
def test_descending_is_stable(logits):
    check_descending(descending, logits)


@pytest.mark.parametrize("levels", [1, 5, 5000])
def test_descending_is_stable_on_long_vectors(levels):
    logits = tied(5000, levels, 1) * np.float32(0.37)
    logits[::97], logits[::89], logits[::83] = -np.inf, -0.0, 1e-42
    check_descending(descending, logits)


def test_an_unstable_sort_is_caught():
    with pytest.raises(AssertionError):
        check_descending(lambda logits: np.argsort(-logits[::-1], kind="stable"), tied(5000, 5, 1))


def check_largest(select, n, levels, k, seed):
    logits = tied(n, levels, seed)
    assert select(logits, k).tolist() == descending(logits)[:k].tolist()


lengths, levels, counts = st.integers(1, 6000), st.sampled_from([1, 3, 40, 10**6]), st.integers(1, 200)


@few
@given(lengths, levels, counts, seeds)
def test_largest_is_the_head_of_the_order(n, levels, k, seed):
    check_largest(largest, n, levels, k, seed)


def test_a_selection_that_forgets_ties_or_the_remainder_is_caught():
    def breaks_ties_anyhow(logits, k):
        part = np.argpartition(-logits, k - 1)[:k]
        return part[np.argsort(-logits[part], kind="stable")]

    def forgets_the_remainder(logits, k):
        return descending(logits[: len(logits) // 32 * 32])[:k]

    for mutant in (breaks_ties_anyhow, forgets_the_remainder):
        with pytest.raises(AssertionError):
            for seed in range(40):
                check_largest(mutant, 5003, 40 if mutant is breaks_ties_anyhow else 10**6, 60, seed)


# Stages


@few
@given(vectors, st.integers(1, 400))
def test_top_k_keeps_the_largest(logits, k):
    c = candidates(logits)
    TopK(k).apply(c)
    assert c.size == min(k, len(logits)) and c.sorted
    rest = np.delete(logits, c.ids)
    assert (logits[c.ids] == c.logits).all() and (np.diff(c.logits[np.isfinite(c.logits)]) <= 0).all()
    assert rest.size == 0 or rest.max() <= c.logits[-1]


@few
@given(vectors)
def test_probabilities_add_up_to_one(logits):
    c = candidates(drawable(logits))
    softmax(c)
    assert c.p is not None and c.p.min() >= 0
    assert abs(float(c.p.sum(dtype=np.float64)) - 1) < 3e-5  # 300 roundings of half an ulp: 1.8e-5
    chain = SamplerChain(SamplerParams(seed=1), len(logits))
    token = chain.sample(drawable(logits))
    ids, p = chain.probs
    assert abs(float(p.sum(dtype=np.float64)) - 1) < 1e-6 and token in ids and (np.diff(p) <= 0).all()


@few
@given(vectors, st.floats(0, 1), st.integers(0, 30))
def test_top_p_is_the_shortest_head_that_reaches_p(logits, p, min_keep):
    logits = drawable(logits)
    c = candidates(logits)
    TopP(p, min_keep).apply(c)
    if p >= 1:
        return
    full = candidates(logits)
    softmax(full)
    full.sort()
    assert c.ids.tolist() == full.ids[: c.size].tolist()
    assert full.p is not None
    head = full.p.astype(np.float64).cumsum()
    assert c.size == len(logits) or (head[c.size - 1] >= p - 1e-5 and c.size >= min_keep)
    assert c.size <= max(min_keep, 1) or head[c.size - 2] < p + 1e-5


@few
@given(vectors, st.floats(0.001, 1), st.integers(0, 30))
def test_min_p_keeps_what_is_likely_enough(logits, p, min_keep):
    logits = drawable(logits)
    c, s = candidates(logits), candidates(logits)
    s.sort()
    MinP(p, min_keep).apply(c)
    MinP(p, min_keep).apply(s)
    assert sorted(c.ids) == sorted(s.ids)
    enough = np.flatnonzero(logits - logits.max() >= np.log(p) + 1e-4)
    assert set(enough) <= set(c.ids.tolist())
    assert c.size >= min(min_keep, len(logits))
    assert c.size <= max(min_keep, 1) or c.logits.min() - logits.max() >= np.log(p) - 1e-4


@few
@given(vectors, seeds)
def test_the_order_of_the_vocabulary_does_not_matter(logits, seed):
    """Permuted candidates with distinct logits give the same tokens, in the same order after top-k."""
    logits = np.unique(drawable(logits))
    ids = np.random.default_rng(seed).permutation(len(logits)).astype(np.int32)
    a, b = candidates(logits), Candidates(ids, logits[ids])
    for c in (a, b):
        for stage in (TopK(40), TopP(0.9, 0), MinP(0.05, 0), Dist(seed)):
            stage.apply(c)
    assert a.ids.tolist() == b.ids.tolist() and a.selected == b.selected


@few
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 20))
def test_penalties_count_the_last_n(history, last_n):
    logits = np.linspace(-2, 3, 10, dtype=np.float32)
    stage = Penalties(last_n, 1.25, 0.5, 0.25)
    for token in history:
        stage.accept(token)
    c = candidates(logits)
    stage.apply(c)
    want = logits.copy()
    for token in set(history[-last_n:]):
        want[token] = want[token] * 1.25 if want[token] <= 0 else want[token] / 1.25
        want[token] -= history[-last_n:].count(token) * 0.5 + 0.25
    np.testing.assert_allclose(c.logits, want, rtol=1e-6, atol=1e-6)


def frequencies(chain: SamplerChain, logits: np.ndarray, draws: int) -> np.ndarray:
    return np.bincount([chain.sample(logits) for _ in range(draws)], minlength=len(logits)) / draws


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    off = SamplerParams(seed=11, top_p=1.0, min_p=0.0, temp=1.0)
    got = frequencies(SamplerChain(off, 4), logits, 20_000)
    np.testing.assert_allclose(got, [0.5, 0.3, 0.15, 0.05], atol=0.012)  # 3.4 standard deviations of the largest
    hot = frequencies(SamplerChain(replace(off, temp=2.0), 4), logits, 20_000)
    assert np.abs(hot - got).max() > 0.05  # the bound above can fail


# Random numbers


def test_mt19937_is_that_of_the_standard():
    """[rand.predef]: the 10000th output of a default-seeded std::mt19937 is 4123659995."""
    rng = Mt19937(5489)
    assert [rng.next_u32() for _ in range(10_000)][-1] == 4123659995
    assert [Mt19937(5488).next_u32() for _ in range(10_000)][-1] != 4123659995


@few
@given(seeds, st.integers(0, 700))
def test_a_cloned_generator_goes_on_alike(seed, before):
    rng = Mt19937(seed)
    for _ in range(before):
        assert 0 <= rng.uniform() < 1
    other = rng.clone()
    ahead = [rng.uniform() for _ in range(5)]
    assert [other.uniform() for _ in range(5)] == ahead


def test_a_uniform_double_takes_two_outputs_the_low_one_first():
    a, b = Mt19937(3), Mt19937(3)
    low, high = a.next_u32(), a.next_u32()
    assert b.uniform() == (high * 2.0**32 + low) / 2.0**64
    assert b.next_u32() == a.next_u32()


# The chain

N = 1000
LOGITS = np.random.default_rng(4).standard_normal((40, N)).astype(np.float32) * 2


def texts(chain: SamplerChain) -> list[int]:
    return [chain.sample(row) for row in LOGITS]


def test_seed_gives_the_text():
    params = SamplerParams(seed=8, penalty_repeat=1.1)
    first = texts(SamplerChain(params, N))
    assert texts(SamplerChain(params, N)) == first
    assert texts(SamplerChain(replace(params, seed=9), N)) != first


def test_reset_starts_anew_and_a_clone_goes_on():
    chain = SamplerChain(SamplerParams(seed=8, penalty_repeat=1.5, penalty_freq=3.0), N)
    for token in (1, 2, 3):
        chain.accept(token)
    copy = chain.clone()
    first = texts(chain)
    assert texts(copy) == first
    assert texts(chain) != first  # history and random numbers have moved on
    chain.reset()
    fresh = texts(chain)
    for token in (1, 2, 3):
        copy.accept(token)  # a clone is independent: this changes neither
    chain.reset()
    assert texts(chain) == fresh


def test_a_random_seed_is_told():
    a, b = (SamplerChain(SamplerParams(), N) for _ in range(2))
    assert a.seed is not None and a.seed != b.seed  # equal once in 4e9 runs
    assert texts(SamplerChain(SamplerParams(seed=a.seed), N)) == texts(a)
    before = a.seed
    a.reset()
    assert a.seed != before
    assert SamplerParams(seed=-1).seed == LLAMA_DEFAULT_SEED


@few
@given(vectors)
def test_temperature_zero_takes_the_first_of_the_largest(logits):
    logits = drawable(logits)
    chain = SamplerChain(SamplerParams(seed=1, temp=0.0), len(logits))
    assert chain.sample(logits) == int(logits.argmax())
    greedy = SamplerChain(SamplerParams(), len(logits), [Greedy()])
    assert greedy.sample(logits) == int(logits.argmax()) and greedy.seed is None
    assert abs(float(greedy.probs[1].sum(dtype=np.float64)) - 1) < 1e-5


def test_a_draw_leaves_the_logits_alone():
    params = SamplerParams(seed=1, penalty_repeat=2.0, logit_bias={5: 1.0})
    for samplers in (params.samplers, (), ("temperature",), ("penalties",)):
        row = LOGITS[0].copy()
        row.flags.writeable = False
        chain = SamplerChain(replace(params, samplers=samplers), N)
        chain.accept(7)
        chain.sample(row)
        assert (row == LOGITS[0]).all()


def test_draw_does_not_accept():
    chain = SamplerChain(SamplerParams(seed=1, temp=0.0, penalty_repeat=1.0, penalty_freq=100.0), N)
    assert [chain.draw(LOGITS[0]) for _ in range(3)] == [int(LOGITS[0].argmax())] * 3
    assert len({chain.sample(LOGITS[0]) for _ in range(3)}) == 3


def test_bias_bans_and_forces():
    best = int(LOGITS[0].argmax())
    banned = SamplerChain(SamplerParams(seed=1, temp=0.0, logit_bias={best: float("-inf")}), N)
    assert banned.sample(LOGITS[0]) == int(np.argsort(-LOGITS[0])[1])
    forced = SamplerChain(SamplerParams(seed=1, logit_bias=[(3, 60.0), (3, 40.0)]), N)
    assert texts(forced) == [3] * len(LOGITS)
    assert str(forced).startswith("logits -> logit-bias -> ?penalties -> ?dry -> ?top-n-sigma -> top-k")


def test_the_chain_prints_as_llama_cpp_does():
    chain = "logits -> ?penalties -> ?dry -> ?top-n-sigma -> top-k -> ?typical -> top-p -> min-p -> ?xtc -> temp-ext"
    assert str(SamplerChain(SamplerParams(), N)) == chain + " -> dist"
    off = SamplerParams(top_k=0, top_p=1.0, min_p=0.0, temp=1.0, samplers=("temp", "top-k", "min-p", "top-p"))
    assert str(SamplerChain(off, N)) == "logits -> ?temp-ext -> ?top-k -> ?min-p -> ?top-p -> dist"


# Bad numbers

wild = st.sampled_from([float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 0.0, 1.0, 5.0, 1e-40])


@few
@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=wild),
    st.sampled_from([0.0, 1e-45, 1e-3, 0.8, 1e30]),
    st.sampled_from([1e-38, 0.5, 1.0, 1e38]),
    st.integers(0, 40),
)
def test_no_logits_crash_it(logits, temp, repeat, top_k):
    """NaN is never chosen, +inf counts as the largest number, and with no token left it says so."""
    n = len(logits)
    params = SamplerParams(seed=1, temp=temp, penalty_repeat=repeat, penalty_freq=1.0, top_k=top_k)
    chain = SamplerChain(params, n)
    chain.accept(0)
    usable = logits > -np.inf
    if not usable.any():
        with pytest.raises(SamplerError, match=f"all {n} logits are NaN or -inf"):
            chain.sample(logits)
        return
    try:
        token = chain.sample(logits)
    except SamplerError:  # a penalty or a tiny temperature took all tokens below the smallest f32
        highest = float(logits[usable].max()) - 1  # penalty_freq
        assert (repeat == 1e38 and usable.sum() == 1) or (0 < temp < 1 and highest / temp < -3e38)
        return
    assert usable[token]
    assert np.isfinite(chain.probs[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty_repeat": 0.0}, r"--repeat-penalty 0\.0: "),
        ({"penalty_repeat": 1e-46}, r"--repeat-penalty 1e-46: "),
        ({"penalty_repeat": float("nan")}, r"--repeat-penalty nan: "),
        ({"penalty_freq": float("inf")}, r"--frequency-penalty inf: "),
        ({"penalty_present": 1e39}, r"--presence-penalty 1e\+39: "),
        ({"penalty_last_n": -1}, r"--repeat-last-n -1: "),
        ({"top_k": 1 << 31}, r"--top-k 2147483648: "),
        ({"top_k": 2.5}, r"--top-k 2\.5: "),
        ({"top_p": float("nan")}, r"--top-p nan: "),
        ({"min_p": float("nan")}, r"--min-p nan: "),
        ({"temp": float("inf")}, r"--temp inf: "),
        ({"typ_p": float("nan")}, r"--typical nan: "),
        ({"xtc_probability": float("inf")}, r"--xtc-probability inf: "),
        ({"xtc_threshold": float("nan")}, r"--xtc-threshold nan: "),
        ({"top_n_sigma": float("nan")}, r"--top-n-sigma nan: "),
        ({"dynatemp_range": float("nan")}, r"--dynatemp-range nan: "),
        ({"dynatemp_exponent": 1e39}, r"--dynatemp-exp 1e\+39: "),
        ({"dry_multiplier": float("nan")}, r"--dry-multiplier nan: "),
        ({"dry_base": float("inf")}, r"--dry-base inf: "),
        ({"dry_allowed_length": 0.5}, r"--dry-allowed-length 0\.5: "),
        ({"dry_penalty_last_n": -1}, r"--dry-penalty-last-n -1: "),
        ({"dry_sequence_breakers": "*:"}, r"--dry-sequence-breaker \*:: "),
        ({"adaptive_target": float("nan")}, r"--adaptive-target nan: "),
        ({"adaptive_decay": float("nan")}, r"--adaptive-decay nan: "),
        ({"mirostat": 3}, r"--mirostat 3: "),
        ({"mirostat_tau": float("nan")}, r"--mirostat-ent nan: "),
        ({"mirostat_eta": float("inf")}, r"--mirostat-lr inf: "),
        ({"seed": 1 << 32}, r"--seed 4294967296: "),
        ({"seed": -2}, r"--seed -2: "),
        ({"min_keep": -1}, r"min_keep -1: "),
        ({"logit_bias": {-4: 1.0}}, r"--logit-bias -4\+1: "),
        ({"logit_bias": [(4, float("nan"))]}, r"--logit-bias 4\+nan: "),
        ({"logit_bias": [(4, float("inf"))]}, r"--logit-bias 4\+inf: "),
    ],
)
def test_a_bad_parameter_names_flag_and_number(change, message):
    with pytest.raises(SamplerError, match=f"^{message}") as error:
        SamplerParams(**change)
    assert "\n" not in str(error.value)


def test_chain_refuses_what_does_not_fit():
    with pytest.raises(SamplerError, match="token 1000 is not in the vocabulary of 1000"):
        SamplerChain(SamplerParams(logit_bias={N: 1.0}), N)
    with pytest.raises(SamplerError, match=r"logits of shape \(5,\) for a vocabulary of 1000"):
        SamplerChain(SamplerParams(), N).sample(np.zeros(5, np.float32))
    with pytest.raises(SamplerError, match="no stage of the chain selects a token: logits -> top-k"):
        SamplerChain(SamplerParams(), N, [TopK(3)]).sample(LOGITS[0])
    with pytest.raises(SamplerError, match="--dry-sequence-breaker needs the model's vocabulary"):
        SamplerChain(SamplerParams(dry_multiplier=0.8), N)
    with pytest.raises(SamplerError, match="infill needs the model's vocabulary"):
        SamplerChain(SamplerParams(samplers=("infill",)), N)
    with pytest.raises(SamplerError, match=r"unknown sampler 'topkk' \(known: penalties, dry"):
        SamplerChain(SamplerParams(samplers=("topkk",)), N)
    with pytest.raises(SamplerError, match="all 2 logits"):
        SamplerChain(SamplerParams(), 2).sample(np.array([np.nan, -np.inf], np.float32))


def test_names_letters_and_biases_parse():
    written = ["penalties", "DRY", "top-n-sigma", "Top-K", "typ", "topp", "min_p", "xtc", "temp"]
    assert samplers_from_names(written) == SamplerParams().samplers
    assert samplers_from_names(["nucleus", "typp", "topnsigma", "infill", "adaptive-p"]) == (
        *("top_p", "typ_p", "top_n_sigma", "infill", "adaptive_p"),
    )
    assert samplers_from_chars("edskypmxt") == SamplerParams().samplers
    assert samplers_from_chars("ia") == ("infill", "adaptive_p")
    with pytest.raises(SamplerError, match=r"--sampling-seq: unknown sampler 'z' \(known: e, d, s, k, y, p, m, x"):
        samplers_from_chars("kz")
    assert parse_logit_bias("15043+1") == (15043, 1.0)
    assert parse_logit_bias("2-inf") == (2, float("-inf"))
    assert parse_logit_bias("7-1.5e-3") == (7, -0.0015)
    for bad in ("", "5", "5+", "-1", "+2", "a+1", "5+nan", "5--1", "5+1x"):
        with pytest.raises(SamplerError, match="--logit-bias"):
            parse_logit_bias(bad)


def test_plain_use_imports_no_compiler():
    script = "import sys, pyggml.sampler; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
