"""A budget of reasoning: when it forces which token, as the reference's tests/test-reasoning-budget.cpp has it."""

from dataclasses import replace

import numpy as np
import pytest

from pyggml.errors import SamplerError
from pyggml.sampler import SamplerChain, SamplerParams
from pyggml.sampler.budget import Budget, BudgetParams, budget_of

PARAMS = BudgetParams(2, (100,), ((101,),), (102, 101))


def budget(params: BudgetParams = PARAMS, *tokens: int) -> Budget:
    made = Budget(params, lambda token: bytes([token]) if token < 256 else b"")
    for token in tokens:
        made.accept(token)
    return made


def test_what_is_forced_and_when() -> None:
    assert budget().wanted is None and budget(PARAMS, 100).wanted is None and budget(PARAMS, 100, 50).wanted is None
    used_up = budget(PARAMS, 100, 50, 51)
    assert used_up.wanted == 102
    used_up.accept(102)
    assert used_up.wanted == 101
    used_up.accept(101)
    assert used_up.wanted is None
    for token in (50, 51, 52, 53):
        used_up.accept(token)
        assert used_up.wanted is None
    assert budget(PARAMS, 50, 51, 52).wanted is None, "it never began"
    assert budget(PARAMS, 100, 50, 101, 51, 52).wanted is None, "it ended by itself"
    assert budget(PARAMS, 100, 50, 101, 100, 51).wanted is None, "the second part has the whole budget"
    assert budget(PARAMS, 100, 50, 101, 100, 51, 52).wanted == 102


def test_none_at_all_and_what_the_prompt_has() -> None:
    none = replace(PARAMS, tokens=0)
    assert budget(none).wanted is None and budget(none, 100).wanted == 102
    assert budget(replace(none, written=(100, 10))).wanted == 102
    assert budget(replace(PARAMS, written=(100, 10)), 50).wanted is None
    assert budget(replace(PARAMS, written=(100, 10)), 50, 51).wanted == 102
    assert budget(replace(none, written=(100, 10, 101))).wanted is None, "the prompt has ended it"
    begun = budget(replace(PARAMS, written=(100,)), 50, 51, 102)
    begun.reset()
    assert begun.wanted is None


def test_reasoning_is_ended_from_outside() -> None:
    """Where it goes on, and nowhere else; with or without a number of tokens."""
    marks = ((100,), ((101,),), ())
    assert budget_of(marks, -1, ()) is None and budget_of(None, -1, (), controlled=True) is None
    endless = budget_of(marks, -1, (102,), controlled=True)
    assert endless is not None
    for begun in ((), (50,), (100, 50, 101), (100, 50, 101, 51)):
        untouched = budget(endless, *begun)
        assert not untouched.end() and untouched.wanted is None, begun
    for begun in ((100,), (100, 50), (100, 50, 101, 100)):
        ended = budget(endless, *begun)
        assert ended.end() and ended.wanted == 102
        ended.accept(102)
        assert not ended.end() and ended.wanted == 101, "it is being ended"
        ended.accept(101)
        assert ended.wanted is None
    text = "€".encode()
    waiting = budget(endless, 100, *text[:2])
    assert waiting.end() and waiting.wanted is None and not waiting.end()
    waiting.accept(text[2])
    assert waiting.wanted == 102


def test_several_ends_of_several_tokens() -> None:
    params = BudgetParams(3, (99, 100), ((101,), (103, 104)), (101,))
    assert budget(params, 100, 1, 2, 3).wanted is None, "half of the beginning"
    assert budget(params, 99, 100, 1, 103, 104, 5, 6).wanted is None
    assert budget(params, 99, 100, 103, 1, 104).wanted == 101


def test_a_character_is_written_to_its_end() -> None:
    text = "a€".encode()
    assert budget(PARAMS, 100, *text[:2]).wanted is None and budget(PARAMS, 100, *text[:3]).wanted is None
    assert budget(PARAMS, 100, *text).wanted == 102


def test_clones_go_on_by_themselves() -> None:
    one = budget(PARAMS, 100, 50)
    other = one.clone()
    other.accept(51)
    assert (one.wanted, other.wanted) == (None, 102)
    other.accept(102)
    third = other.clone()
    third.accept(101)
    assert (other.wanted, third.wanted) == (101, None)


class Bytes:
    n_vocab, eog_ids, eos, eot = 256, frozenset[int](), None, None

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        return bytes([token])

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize("temp", [0.0, 0.8])
def test_a_chain_draws_what_is_forced(temp: float) -> None:
    logits = np.zeros(256, np.float32)
    logits[50] = 30
    chain = SamplerChain(SamplerParams(temp=temp, seed=1, budget=replace(PARAMS, written=(100,))), 256, vocab=Bytes())
    for _ in range(2):
        assert [chain.sample(logits) for _ in range(6)] == [50, 50, 102, 101, 50, 50]
        chain.reset()
    chain.sample(logits), chain.sample(logits)
    assert [chain.clone().sample(logits) for _ in range(2)] == [102, 102]
    chain.accept(7)  # of the prompt: not the reply's
    assert chain.sample(logits) == 102


def test_what_makes_no_budget() -> None:
    for wrong in ({"tokens": -1}, {"start": ()}, {"forced": ()}, {"ends": ((),)}):
        with pytest.raises(SamplerError, match="budget"):
            replace(PARAMS, **wrong)
    with pytest.raises(SamplerError, match="vocabulary"):
        SamplerChain(SamplerParams(budget=PARAMS), 256)
