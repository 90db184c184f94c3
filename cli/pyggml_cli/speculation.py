"""Flags of speculative decoding, as llama.cpp's, and the drafter that they ask for (common/speculative.cpp).

Owns which of pyggml.runtime.drafts is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pyggml_cli import hub
from pyggml_cli.flags import Flag, Row, choice, number, whole

if TYPE_CHECKING:
    from pyggml.runtime.context import Context
    from pyggml.runtime.draft_model import DraftModel
    from pyggml.runtime.draft_pace import DraftPace
    from pyggml.runtime.drafter import Drafter, Steps

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""Of keys and values, the model's and the smaller one's."""
TYPES = ("none", "draft-simple", "ngram-simple", "ngram-map-k")


def types(text: str) -> list[str]:
    """`--spec-type`: one of TYPES, or several, of which the first that has a guess counts."""
    found = text.split(",")
    for name in found:
        if name not in TYPES:
            raise ValueError(f"{name!r} is not one of {', '.join(TYPES)}")
    return [name for name in found if name != "none"]


def probability(text: str) -> float:
    """Parser of a number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise ValueError("must be from 0 to 1")
    return value


FLAGS: list[Row] = [
    Flag(("--spec-type",), "spec_type", "guess tokens, and compute guesses together with the last token: none, "
         "ngram-simple or ngram-map-k (what followed the same tokens before), draft-simple (a smaller model); what is "
         "not chosen is thrown away", types, "TYPE,...", default=None),
    Flag(("--spec-draft-model", "-md", "--model-draft"), "draft_model", "the smaller model that guesses", str, "FNAME",
         default=None),
    Flag(("--spec-draft-hf", "-hfd", "-hfrd", "--hf-repo-draft"), "draft_repo", "the same, of a repository (as -hf)", hub.repo,
         "USER/REPO[:QUANT]", default=None),
    Flag(("--spec-draft-n-max", "--draft", "--draft-n", "--draft-max"), "draft_max", "tokens that it guesses at most",
         whole(1), "N", default=3),
    Flag(("--spec-draft-n-min", "--draft-min", "--draft-n-min"), "draft_min", "fewer guesses are not used", whole(0), "N",
         default=0),
    Flag(("--spec-draft-p-min", "--draft-p-min"), "draft_p_min", "how likely a guess must be", probability, "P",
         default=0.0),
    Flag(("--spec-draft-type-k", "-ctkd", "--cache-type-k-draft"), "draft_type_k", "type of its cached keys", choice(*CACHE_TYPES),
         "TYPE", default="f16"),
    Flag(("--spec-draft-type-v", "-ctvd", "--cache-type-v-draft"), "draft_type_v", "type of its cached values", choice(*CACHE_TYPES),
         "TYPE", default="f16"),
    Flag(("--spec-draft-threads", "-td", "--threads-draft"), "draft_threads", "CPU threads for it (as -t)", whole(1), "N",
         default=None),
    *(
        Flag((f"--spec-{name}-size-{letter}",), f"{name.replace('-', '_')}_{letter}", f"of {name}: {what}", whole(1, 1024),
             "N", default=default)
        for name in ("ngram-simple", "ngram-map-k")
        for letter, what, default in (("n", "tokens that must have stood there before", 12), ("m", "tokens of a guess", 48))
    ),
]  # fmt: skip


class FirstOf:
    """The guess of the first drafter that has one."""

    def __init__(self, drafters: list[Drafter]) -> None:
        self._drafters, self._used = drafters, drafters[0]

    def draft(self, tokens: Any, most: int) -> list[int]:
        from pyggml.runtime.drafter import draft_together

        return draft_together([(self, tokens, most)])[0]

    def steps(self, tokens: Any, most: int) -> Steps:
        """As `draft`; what one of them wants to have computed is left to others."""
        from pyggml.runtime.drafter import Stepwise

        for drafter in self._drafters:
            if isinstance(drafter, Stepwise):
                found = yield from drafter.steps(tokens, most)
            else:
                found = drafter.draft(tokens, most)
            if found:
                self._used = drafter
                return found
        return []

    def lacks(self, tokens: Any) -> int:
        from pyggml.runtime.drafter import lacking

        return sum(lacking(drafter, tokens) for drafter in self._drafters)

    def kept(self, drafted: int, kept: int) -> None:
        self._used.kept(drafted, kept)


def wanted_types(values: Any) -> list[str]:
    """What --spec-type says, or a smaller model where one is named. Raises UsageError."""
    from pyggml_cli.flags import UsageError

    wanted: list[str] | None = values.spec_type
    if wanted is None:
        wanted = ["draft-simple"] if values.draft_model or values.draft_repo else []
    if values.draft_model and values.draft_repo:
        raise UsageError("-md names a file, -hfd a repository: give one of them")
    if "draft-simple" in wanted and not values.draft_model and not values.draft_repo:
        raise UsageError("--spec-type draft-simple: name the smaller model with -md or -hfd")
    return wanted


class Guesses(NamedTuple):
    """What makes a drafter for one of a context's sequences, or none; whether drafts are worth it there; a smaller model's context."""

    make: Callable[[int], Drafter | None]
    pace: DraftPace
    small: Context | None


@contextlib.contextmanager
def guesses_for(values: Any, context: Context) -> Iterator[Guesses]:
    """What the flags ask for. Raises GGUFError, ModelError, DeviceError, ContextError, OSError, UsageError."""
    from pyggml.runtime.draft_pace import DraftPace
    from pyggml.runtime.drafts import NgramDrafter
    from pyggml.runtime.timings import clock

    wanted = wanted_types(values)
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(_smaller_model(values, context)) if "draft-simple" in wanted else None
        contexts = [context] if small is None else [context, small.context]

        def one(name: str, seq: int) -> Drafter:
            if name == "draft-simple":
                assert small is not None
                return small.drafter(seq)
            n, m = (getattr(values, f"{name.replace('-', '_')}_{letter}") for letter in "nm")
            return NgramDrafter(n, m, per_key=name == "ngram-map-k")

        def make(seq: int) -> Drafter | None:
            drafters = [one(name, seq) for name in wanted]
            return FirstOf(drafters) if len(drafters) > 1 else drafters[0] if drafters else None

        yield Guesses(
            make,
            DraftPace(lambda: clock() - sum(one.seconds_for_graphs for one in contexts)),
            None if small is None else small.context,
        )


@contextlib.contextmanager
def _smaller_model(values: Any, context: Context) -> Iterator[DraftModel]:
    """It has as many sequences; on the CPU, whatever the model is on."""
    from pyggml.dtypes import GGMLType
    from pyggml.errors import ModelError
    from pyggml.model.model import Model
    from pyggml.runtime.context import Context
    from pyggml.runtime.draft_model import DraftModel, check_same_tokens

    path = values.draft_model
    if values.draft_repo:
        path = hub.fetch(values.draft_repo, token=values.hf_token, offline=values.offline)
    model = Model.load(path)
    try:
        if model.modules.encodes:
            raise ModelError(
                f"{path}: a {model.config.architecture} model answers a text, it cannot guess how one goes on"
            )
        small = Context(
            model,
            context.n_ctx,
            n_threads=values.draft_threads or (values.n_threads if values.n_threads > 0 else None),
            n_seq_max=context.n_seq_max,
            kv_unified=context.kv_unified,
            type_k=GGMLType[values.draft_type_k.upper()],
            type_v=GGMLType[values.draft_type_v.upper()],
        )
        try:
            check_same_tokens(context, small)
            yield DraftModel(small, values.draft_max, p_min=values.draft_p_min, least=values.draft_min)
        finally:
            small.close()
    finally:
        model.close()
