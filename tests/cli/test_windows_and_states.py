"""Commands and `Llama` on models with windows and recurrent states: prompt caches, states, checkpoints, the context shift."""

import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyggml_cli import cli
from tiny_archs import KINDS, tiny_archs

from pyggml import Llama

PROMPT = "the quick brown fox jumps over the lazy dog"  # 41 tokens


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with tiny_archs(tmp_path_factory.mktemp("archs")) as made:
        yield made


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Path:
    return paths[request.param]


@pytest.fixture
def run(call: Callable[..., Any], reference: None) -> Callable[..., Any]:
    def complete(path: Path, *args: object) -> Any:
        return call(cli.main, "-m", path, "--temp", 0, "-c", 96, "-ub", 16, "-no-cnv", "--ignore-eos", *args)

    return complete


def n_evaluated(outcome: Any) -> int:
    found = re.search(r"prompt eval time = .* / +(\d+) tokens", outcome.err)
    assert found, outcome.err
    return int(found.group(1))


def test_a_prompt_cache(path: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    kept = ["-p", PROMPT, "-n", 6, "--prompt-cache", tmp_path / "cache"]
    first, second = run(path, *kept), run(path, *kept)
    assert first.code == second.code == 0 and first.out == second.out and len(first.out) > len(PROMPT)
    assert n_evaluated(first) == 41 and n_evaluated(second) in (1, 4)
    assert f"{tmp_path / 'cache'}: holds 41 of 41 tokens of the prompt" in second.err
    longer = run(path, "-p", PROMPT + " and goes", "-n", 6, "--prompt-cache", tmp_path / "cache", "--prompt-cache-all")
    assert n_evaluated(longer) == 9 and longer.out == run(path, "-p", PROMPT + " and goes", "-n", 6).out
    more = run(path, "-n", 4, "--prompt-cache", tmp_path / "cache")
    assert n_evaluated(more) in (1, 9)  # from the last token on, or from where the prompt was near its end
    assert more.out == run(path, "-p", PROMPT + " and goes", "-n", 9).out  # the last one was not computed
    other = run(path, "-p", PROMPT[:25] + "!!", "-n", 6, "--prompt-cache", tmp_path / "cache")
    assert n_evaluated(other) <= 27 and other.out == run(path, "-p", PROMPT[:25] + "!!", "-n", 6).out


def test_a_damaged_prompt_cache_is_one_line(paths: dict[str, Path], run: Callable[..., Any], tmp_path: Path) -> None:
    kept = ["-p", PROMPT, "-n", 1, "--prompt-cache", tmp_path / "cache"]
    run(paths["tinythree"], *kept)
    whole = (tmp_path / "cache").read_bytes()
    for damaged in (whole[:-1], whole[:100], whole + b"x", whole[:200] + b"?" + whole[201:]):
        (tmp_path / "cache").write_bytes(damaged)
        outcome = run(paths["tinythree"], *kept)
        assert outcome.code == 1 and outcome.out == ""
        assert re.fullmatch(rf"error: {tmp_path}/cache: damaged: .*\n", outcome.err), outcome.err
    (tmp_path / "cache").write_bytes(whole)
    outcome = run(paths["tinyhybrid"], *kept)
    assert outcome.code == 1 and outcome.err == f"error: {tmp_path}/cache: belongs to another model\n"


def test_the_context_shift(path: Path, run: Callable[..., Any]) -> None:
    outcome = run(path, "-p", PROMPT, "-n", 150, "--context-shift", "--keep", 4)
    if "states" in KINDS[path.stem]:
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(r"error: no context shift with this model: a recurrent state [^\n]*\n", outcome.err)
    else:
        assert outcome.code == 0 and re.search(r" 149 runs", outcome.err)
        assert outcome.out == run(path, "-p", PROMPT, "-n", 150, "--context-shift", "--keep", 4, "--swa-full").out


def test_a_conversation_is_said_again_from_a_checkpoint_on(
    path: Path, run: Callable[..., Any], monkeypatch: Any
) -> None:
    """/regen goes back; without checkpoints all is computed anew, and says the same."""
    said = {}
    template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    for n in (32, 0):
        args = ["-cnv", "-p", PROMPT, "-n", 5, "--chat-template", template, "--ctx-checkpoints", n]
        read, write = os.pipe()
        os.write(write, b"/regen\n/exit\n")
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            outcome = run(path, *[a for a in args if a != "-no-cnv"])
        assert outcome.code == 0, outcome.err
        said[n] = outcome.out, n_evaluated(outcome)
    assert said[32][0] == said[0][0]
    if "states" in KINDS[path.stem]:
        assert said[32][1] < said[0][1]
    assert said[32][1] <= said[0][1] + 4  # a window may still hold what it is to go back to


def test_states_of_llama(path: Path, reference: None) -> None:
    """save_state, load_state; and a prompt that begins alike is not evaluated again."""
    told: list[str] = []
    with Llama(path, n_ctx=96, n_ubatch=16, verbose=False) as llm:
        llm._slot._tell = told.append
        whole = llm(PROMPT, max_tokens=9, temperature=0)["choices"][0]["text"]
        assert llm(PROMPT, max_tokens=9, temperature=0)["choices"][0]["text"] == whole
        assert told and all(re.match(r"(37|40|41) of 41 prompt tokens are already there", line) for line in told), told
        tokens = llm.tokenize(PROMPT.encode())
        llm.reset()
        llm.eval(tokens)
        state = pickle.loads(pickle.dumps(llm.save_state()))
        following = [token for token, _ in zip(llm.generate([], temp=0, reset=False), range(5), strict=False)]
    with Llama(path, n_ctx=96, n_ubatch=16, verbose=False) as other:
        other.load_state(state)
        assert other.n_tokens == len(tokens)
        again = [token for token, _ in zip(other.generate([], temp=0, reset=False), range(5), strict=False)]
        assert again == following
        other.n_tokens = 20
        assert (
            other.eval(tokens[20:]) is None
            and other(PROMPT, max_tokens=9, temperature=0)["choices"][0]["text"] == whole
        )
    with Llama(path, n_ctx=96, n_ubatch=16, verbose=False, swa_full=True) as full:
        full.load_state(state)
        assert full(PROMPT, max_tokens=9, temperature=0)["choices"][0]["text"] == whole
