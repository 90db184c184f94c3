"""`--context-shift`, `--keep` and `--prompt-cache`: a context's slot and its file, as the flags want them.

Owns the step from flags to these and what is told of them.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyggml_cli.flags import Values

if TYPE_CHECKING:
    from pyggml.runtime.context import Context
    from pyggml.runtime.prompt_cache import PromptCache
    from pyggml.runtime.slot import Slot


def slot_for(values: Values, context: "Context", prompt: Sequence[int], adds_bos: bool) -> "Slot":
    """For a text that begins with `prompt`; `adds_bos`: whether the tokenizer puts a BOS token before it. Raises ContextError
    for a model whose context cannot be shifted."""
    from pyggml.runtime.checkpoints import CheckpointRule
    from pyggml.runtime.slot import Slot, n_kept

    shifts = bool(values.context_shift) and values.n_predict != -2
    n_keep = n_kept(values.keep, len(prompt), adds_bos)
    rule = CheckpointRule(values.ctx_checkpoints, values.checkpoint_min_step)
    return Slot(context, shifts=shifts, n_keep=n_keep, memory=context.memory, rule=rule)


def full(slot: "Slot") -> str:
    """What to tell when there is no room."""
    hint = "" if slot.shifts else "; with --context-shift it goes on without the oldest"
    return f"[context full: {slot.context.n_ctx} tokens{hint}]"


def prompt_cache(values: Values, context: "Context") -> "PromptCache":
    """Raises StateError for a file that is damaged or belongs to something else."""
    from pyggml.runtime.prompt_cache import PromptCache

    return PromptCache(
        context,
        values.prompt_cache,
        read_only=bool(values.prompt_cache_ro),
        whole_text=bool(values.prompt_cache_all),
        tell=lambda text: print(text, file=sys.stderr),
    )
