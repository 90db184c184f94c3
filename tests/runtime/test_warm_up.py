"""After it has been made ready a context waits for no kernel, whatever its texts are, and neither does a draft model's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from text_model import write_text_model

SCRIPT = """
import json, random, sys
from pyggml import jit
from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.draft_model import DraftModel
from pyggml.runtime.sequence import Sequence
from pyggml.runtime.warm_up import warm_up
from pyggml.sampler import SamplerChain, SamplerParams

path, unified, what = sys.argv[1], sys.argv[2] == "unified", sys.argv[3]
model = Model.load(path)
context, small = (Context(model, 6 * 256, n_seq_max=6, kv_unified=unified, n_threads=2) for _ in range(2))
drafts = DraftModel(small, 5)
if what != "nothing":
    warm_up(small)
    warm_up(context, drafts=True)
before = jit.Counts.loaded + jit.Counts.compiled
batcher, rng = Batcher(context, 64), random.Random(1)
for place in batcher.places:
    place.drafter = drafts.drafter(place.seq)
for i in range(18):
    prompt = [rng.randrange(100) for _ in range((1, 2, 3, 5, 9, 30, 100, 200)[i % 8])]
    batcher.add(Sequence(prompt, SamplerChain(SamplerParams(temp=0.0), model.n_vocab), max_tokens=1 + i))
while not batcher.idle:
    batcher.step()
print(json.dumps([before, jit.Counts.loaded + jit.Counts.compiled - before]))
"""


@pytest.mark.parametrize(
    ("unified", "what"), [("streams", "all"), ("unified", "all"), ("streams", "nothing")], ids=lambda one: one
)
def test_kernels_after_the_start(tmp_path: Path, unified: str, what: str) -> None:
    """`nothing` shows that kernels are counted where nothing was made ready."""
    path = write_text_model(tmp_path / "m.gguf", n_ctx=2048)
    argv = [sys.executable, "-c", SCRIPT, str(path), unified, what]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    before, later = json.loads(done.stdout)
    assert before and (later > 0) == (what == "nothing"), (before, later)
