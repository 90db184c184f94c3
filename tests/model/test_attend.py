"""Attention over what a memory keeps, against NumPy over all tokens: windows of both kinds, values that are in keys, layers that
read another layer's cache, in the layouts with and without flash attention, one sequence and several, in pieces."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from pyggml import ops
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType, row_size
from pyggml.memory import MemoryOptions, Need, SharedKV, allocate, kv, kv_tensors, make_memory
from pyggml.memory.kv_tensors import KVLayer
from pyggml.memory.window import Window
from pyggml.model.graph import GraphBuilder, UbatchShape
from pyggml.runtime.batch import Batch, split

N_SEQ, N_CTX, N_UBATCH, HEAD, N_HEAD, N_HEAD_KV = 3, 96, 8, 16, 4, 2


class Kind(NamedTuple):
    """Layer 1 attends; where `shared` it reads what layer 0 keeps. n_v elements of a value, of n_k of a key."""

    window: int | None = None
    chunked: bool = False
    shared: bool = False
    v_in_k: bool = False
    n_k: int = HEAD
    n_v: int = HEAD


KINDS = {
    "all": Kind(),
    "window": Kind(window=7),
    "chunked": Kind(window=7, chunked=True),
    "shared": Kind(shared=True),
    "shared window": Kind(window=7, shared=True),
    "values in keys": Kind(v_in_k=True, n_k=24, n_v=16),
    "window of values in keys": Kind(window=7, v_in_k=True, n_k=24, n_v=16),
}


@pytest.fixture(autouse=True)
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kv, kv_tensors):
        monkeypatch.setattr(module, "CELL_STEP", 4)


class Layers:
    """Layers 0 and 1 of a memory of this kind; layer 0 keeps twice as many heads, so that layouts differ."""

    def __init__(self, kind: Kind, transposed_v: bool, unified: bool, cache: GGMLType, device: Any) -> None:
        self.kind = kind
        n_first = N_HEAD_KV if kind.shared else 2 * N_HEAD_KV
        first = KVLayer(0, kind.n_k, kind.n_v, n_first, v_in_k=kind.v_in_k)
        needs = [Need(first, kind.window, chunked=kind.chunked)]
        if kind.shared:
            needs.append(Need(shared=SharedKV(1, 0)))
        else:
            second = KVLayer(1, kind.n_k, kind.n_v, N_HEAD_KV, v_in_k=kind.v_in_k)
            needs.append(Need(second, kind.window, chunked=kind.chunked))
        type_v = GGMLType.F16 if transposed_v and cache == GGMLType.Q8_0 else cache
        options = MemoryOptions(N_CTX, N_UBATCH, N_SEQ, unified, cache, type_v, transposed_v=transposed_v)
        self.memory = make_memory(needs, options)
        self.backend = device.open(1)
        self.scheduler = Scheduler([self.backend])
        allocate(self.memory, [device] * 2, self.run_memory)
        self.hp: Any = SimpleNamespace(n_layer=2)

    def run_memory(self, graph: Any, inputs: Any) -> None:
        raise AssertionError("nothing is moved here")

    def close(self) -> None:
        self.scheduler.close(), self.memory.free(), self.backend.close()

    def attend(self, batch: Batch, q: Any, k: Any, v: Any) -> np.ndarray:
        """q (n, N_HEAD, n_k), k (n, heads of layer 0, n_k), v likewise -> (n, N_HEAD * n_v) of layer 1, which has the first
        heads of k and v where it keeps its own."""
        kind, out = self.kind, np.zeros((batch.n, N_HEAD * self.kind.n_v), np.float32)
        for ub, rows in split(batch, N_UBATCH, self.memory.n_streams, N_SEQ):
            placement = self.memory.place(ub)
            assert placement is not None
            shape: Any = self.memory.shape(placement)
            g = GraphBuilder(self.hp, self.memory, UbatchShape(ub.n, ub.n, shape, ub.n_seqs))

            def given(name: str, data: Any, rows: Any = rows, g: Any = g) -> Any:
                values = np.where((rows >= 0)[:, None, None], data[rows], np.float32(0))
                return g.input(name, GGMLType.F32, *values.shape[::-1], fill=lambda ub, placement: values)

            for il in (0, 1):
                n = N_HEAD_KV if il else k.shape[1]
                own = not (il and kind.shared)
                cur = g.attend(
                    il,
                    given(f"q{il}", q),
                    given(f"k{il}", k[:, :n]) if own else None,
                    given(f"v{il}", v[:, :n]) if own and not kind.v_in_k else None,
                    scale=kind.n_k**-0.5,
                )
            cur = ops.cont(cur)
            built = g.finish(cur)
            schedule = self.scheduler.schedule(built.graph)
            for tensor, values in built.values(ub, placement):
                schedule.set_input(tensor, np.ascontiguousarray(values))
            self.memory.prepare(placement)
            schedule.run()
            found = np.asarray(schedule.get(cur)).reshape(ub.n, -1)
            self.memory.commit(placement)
            out[rows[rows >= 0]] = found[rows >= 0]
        return out


def plain(kind: Kind, texts: "dict[int, list[tuple[Any, Any, Any]]]") -> dict[int, np.ndarray]:
    """The same of whole texts: for each (q, k, v) of a token."""
    result = {}
    for seq, text in texts.items():
        q, k, v = (np.stack(x).astype(np.float64) for x in zip(*text, strict=True))
        v = k[..., : kind.n_v] if kind.v_in_k else v
        pos = np.arange(len(q))
        seen = pos[None, :] <= pos[:, None]
        if kind.window and kind.chunked:
            seen &= pos[None, :] // kind.window == pos[:, None] // kind.window
        elif kind.window:
            seen &= pos[:, None] - pos[None, :] < kind.window
        rows = []
        for h in range(N_HEAD):
            kv_head = h // (N_HEAD // N_HEAD_KV)
            score = np.where(seen, q[:, h] @ k[:, kv_head].T * kind.n_k**-0.5, -np.inf)
            weight = np.exp(score - score.max(axis=1, keepdims=True))
            rows.append(weight / weight.sum(axis=1, keepdims=True) @ v[:, kv_head])
        result[seq] = np.concatenate(rows, axis=1)
    return result


def worst(layers: Layers, n_steps: int = 6) -> float:
    """The largest difference, of random texts of three sequences in pieces of random lengths."""
    kind, rng = layers.kind, np.random.default_rng(3)
    n_kv = layers.memory.parts[0].layers[0].n_head_kv  # type: ignore[attr-defined]
    texts: dict[int, list[tuple[Any, Any, Any]]] = {seq: [] for seq in range(N_SEQ)}
    found: dict[int, list[np.ndarray]] = {seq: [] for seq in range(N_SEQ)}
    for step in range(n_steps):
        pieces = {seq: 1 if step % 2 else int(rng.integers(1, 9)) for seq in range(N_SEQ) if rng.random() < 0.8} or {
            0: 1
        }
        batch = Batch.join([Batch.of([0] * n, len(texts[seq]), seq, "all") for seq, n in pieces.items()])
        q = rng.normal(size=(batch.n, N_HEAD, kind.n_k)).astype(np.float32) * 3
        k = rng.normal(size=(batch.n, n_kv, kind.n_k)).astype(np.float32)
        v = rng.normal(size=(batch.n, n_kv, kind.n_v)).astype(np.float32)
        out = layers.attend(batch, q, k, v)
        for i, seq in enumerate(batch.seq.tolist()):
            texts[seq].append((q[i], k[i], v[i]))
            found[seq].append(out[i])
    expected = plain(kind, {seq: text for seq, text in texts.items() if text})
    return max(float(np.abs(np.stack(found[seq]) - rows).max()) for seq, rows in expected.items())


@pytest.mark.parametrize("unified", [False, True], ids=["streams", "unified"])
@pytest.mark.parametrize("transposed_v", [False, True], ids=["fused", "products"])
@pytest.mark.parametrize("name", KINDS)
def test_is_that_of_all_tokens(name: str, transposed_v: bool, unified: bool) -> None:
    layers = Layers(KINDS[name], transposed_v, unified, GGMLType.F32, ReferenceDevice())
    assert worst(layers) < (1e-5 if transposed_v else 1e-2)  # flash attention reads an F32 cache as F16
    layers.close()


@pytest.mark.parametrize(
    ("transposed_v", "cache", "error"),
    [(False, GGMLType.F16, 1e-2), (True, GGMLType.F16, 1e-2), (False, GGMLType.Q8_0, 0.2), (True, GGMLType.Q8_0, 0.2)],
    ids=["fused", "products", "blocks, fused", "blocks, products"],
)
def test_keys_of_the_size_of_deepseek2_on_the_cpu(transposed_v: bool, cache: GGMLType, error: float) -> None:
    layers = Layers(Kind(v_in_k=True, n_k=576, n_v=512), transposed_v, False, cache, CPUDevice())
    (part,) = layers.memory.parts
    assert part.n_bytes < 1.1 * sum(t.nbytes for t in part.k)  # type: ignore[attr-defined]
    assert worst(layers, 4) < error
    layers.close()


def _a_token_more(self: Window, pos: Any) -> Any:
    return pos - self.n


def _never_anew(self: Window, pos: Any) -> Any:
    return pos - self.n + 1


def _the_last_elements(self: Any, i: int, shape: Any) -> Any:
    layer, k = self.layers[i], self.k[i]
    skipped = row_size(k.type, layer.head_k - layer.head_v)
    ne = (layer.head_v, layer.n_head_kv, shape.n_kv, shape.n_streams)
    nb1, nb3 = row_size(k.type, layer.head_k), k.nb[1] * self.n_cells
    return ops.permute(ops.view(k, ne, (nb1, k.nb[1], nb3), skipped + shape.first * nb3), 0, 2, 1, 3)


MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "a window is a token longer": ("window", Window, "first", _a_token_more),
    "a chunked window slides": ("chunked", Window, "first", _never_anew),
    "values are the last elements of keys": ("values in keys", kv_tensors.KVTensors, "read_v", _the_last_elements),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, owner, method, wrong = MUTANTS[name]
    monkeypatch.setattr(owner, method, wrong)
    layers = Layers(KINDS[kind], False, False, GGMLType.F32, ReferenceDevice())
    assert worst(layers) > 0.1
    layers.close()


def test_shared_layers_keep_nothing_of_their_own() -> None:
    layers = Layers(KINDS["shared"], False, False, GGMLType.F16, ReferenceDevice())
    assert [len(part.k) for part in layers.memory.parts] == [1]  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="where they are a layer's own"):
        layers.kind = Kind()
        k = np.zeros((1, N_HEAD_KV, HEAD), np.float32)
        layers.attend(Batch.of([0], 0), np.zeros((1, N_HEAD, HEAD), np.float32), k, k)
    layers.close()
    with pytest.raises(AssertionError, match="layer 2 is to share the cache of layer 0, which has none"):
        make_memory([Need(shared=SharedKV(2, 0))], MemoryOptions(N_CTX))
