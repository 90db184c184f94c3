"""Models quantised into new files, as llama-quantize does it: `make_plan`, then `run`.

Owns the names that other packages use; knows no kernel and no model's graph.
"""

from pyggml.quantize.mixes import COPY, MIXES, Mix, Wishes, find_mix, find_type
from pyggml.quantize.plan import Override, Plan, Task, make_plan
from pyggml.quantize.run import Progress, run

__all__ = [
    "COPY", "MIXES", "Mix", "Override", "Plan", "Progress", "Task", "Wishes", "find_mix", "find_type", "make_plan",
    "run",
]  # fmt: skip
