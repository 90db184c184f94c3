"""What a decoder reads of an encoded text: where it lies, who sees it, and its bytes. That it is the right text's is compared with
llama.cpp in tests/model/test_t5.py."""

from typing import Any

import numpy as np
import pytest
from memory_kinds import HEAD, Runner

from pyggml.dtypes import GGMLType
from pyggml.errors import StateError
from pyggml.memory import MemoryOptions, Need, allocate, make_memory
from pyggml.memory.encoded import STEP, Encoded
from pyggml.memory.kv_tensors import KVLayer, KVShape
from pyggml.memory.ubatch import NOBODY, Ubatch

LAYER = KVLayer(0, HEAD, HEAD, 1)
N_SEQ = 3


def made(unified: bool, transposed_v: bool, n_ubatch: int = 40) -> tuple[Any, Encoded]:
    options = MemoryOptions(256, n_ubatch, N_SEQ, unified, transposed_v=transposed_v)
    memory = make_memory([Need(LAYER, encoded=LAYER)], options)
    runner = Runner()
    allocate(memory, [runner.device], runner)
    (part,) = (part for part in memory.parts if isinstance(part, Encoded))
    return memory, part


def ubatch(*seqs: int, n_seqs: int = 1, first: int = 0) -> Ubatch:
    n = len(seqs)
    return Ubatch(np.zeros(n, "i4"), np.zeros(n, "i4"), np.array(seqs, "i4"), np.ones(n, np.bool_), n_seqs, first)


def fill(part: Encoded, seq: int, tokens: list[int]) -> bytes:
    """Let a sequence have this text, with rows of its tokens; what it dumps then."""
    dtype = np.float32 if part.transposed_v else np.float16
    rows = np.repeat(np.array(tokens, dtype), HEAD)
    part.load(seq, b"".join([np.array([len(tokens), *tokens], "<u4").tobytes(), rows.tobytes(), (-rows).tobytes()]))
    return part.dump(seq)


@pytest.mark.parametrize("transposed_v", [False, True])
@pytest.mark.parametrize("unified", [False, True])
def test_a_token_sees_its_own_text(unified: bool, transposed_v: bool) -> None:
    _, part = made(unified, transposed_v)
    assert part.n_cells_each == 2 * STEP and part.k[0].type == (GGMLType.F32 if transposed_v else GGMLType.F16)
    fill(part, 0, [5] * 40), fill(part, 2, [7] * 3)
    if unified:
        placement = part.place(ubatch(2, 0, NOBODY))
        assert part.shape(placement) == KVShape(5 * STEP)
        seen = [np.flatnonzero(row == 0).tolist() for row in part.mask(placement)]
        assert seen == [[4 * STEP, 4 * STEP + 1, 4 * STEP + 2], list(range(40)), [0]]
        assert part.shape(part.place(ubatch(0))) == KVShape(2 * STEP)
    else:
        placement = part.place(ubatch(1, 2, n_seqs=2, first=1))
        assert part.shape(placement) == KVShape(STEP, 1, 2)
        assert [np.flatnonzero(row == 0).tolist() for row in part.mask(placement)] == [[], [0, 1, 2]]


@pytest.mark.parametrize("transposed_v", [False, True])
@pytest.mark.parametrize("unified", [False, True])
def test_texts_are_copied_saved_and_forgotten(unified: bool, transposed_v: bool) -> None:
    memory, part = made(unified, transposed_v)
    dumps = [fill(part, seq, [seq + 1] * (10 * seq + 2)) for seq in range(N_SEQ)]
    assert [part.dump(seq) for seq in range(N_SEQ)] == dumps and part.dump_size(1) == len(dumps[1])
    memory.copy(1, 0)
    assert part.dump(0) == dumps[1] and part.texts[0] == (2,) * 12
    memory.remove(0)
    assert part.dump(0) == dumps[1] and memory.end(0) == 0  # another answer to the same text may begin
    memory.keep(2)
    assert [bool(text) for text in part.texts] == [False, False, True]
    part.load(1, dumps[0])
    assert part.texts[1] == (1, 1) and part.loads(dumps[0], 5) and not part.loads(part.dump(0), 5)
    memory.clear()
    assert not any(part.texts)
    for wrong, said in ((dumps[0][:-1], "bytes is none of this memory"), (b"", "of 0 bytes")):
        with pytest.raises(StateError, match=said):
            part.load(1, wrong)
    small = made(unified, transposed_v, n_ubatch=8)[1]
    with pytest.raises(StateError, match="of 50 tokens does not fit into 32 cells"):
        small.load(0, fill(part, 0, [1] * 50))
