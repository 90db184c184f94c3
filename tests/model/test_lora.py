"""LoRA adapters: logits held against llama.cpp's, files that are no adapters of the model, adapters that come and go."""

import contextlib

import gguf
import numpy as np
import pytest
from compare import mean_kl
from fake_devices import FakeDevice
from tiny_logits import TOKENS
from tiny_lora import all_weights, write_lora
from tiny_model import write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ContextError, DeviceError
from pyggml.model import lora
from pyggml.model.graph import GraphBuilder
from pyggml.model.model import Model
from pyggml.ops import Op
from pyggml.runtime.batch import Batch
from pyggml.runtime.context import Context
from pyggml.runtime.schedules import Schedules
from pyggml.tensor import Tensor

FIRST, SECOND, THIRD = TOKENS[:20], TOKENS[20:30], TOKENS[30:]
EXPERTS = {"n_expert": 4}
GATES = [f"blk.{il}.ffn_gate_inp_shexp.weight" for il in (0, 1)]
"""The vectors that say how much an expert counts which every token uses (qwen2moe)."""
QWEN = {"general.architecture": "qwen2moe"}


def _shared_experts():
    """Options of a qwen2moe model."""
    rng = np.random.default_rng(3)
    shapes = {"ffn_gate_shexp": (96, 64), "ffn_up_shexp": (96, 64), "ffn_down_shexp": (64, 96)}
    made = {f"blk.{il}.{n}.weight": rng.normal(0, 0.1, s).astype("f4") for il in (0, 1) for n, s in shapes.items()}
    made |= {name: rng.normal(0, 0.1, 64).astype("f4") for name in GATES}
    ints = {f"qwen2moe.expert_{kind}feed_forward_length": 96 for kind in ("", "shared_")}
    return {**EXPERTS, "tied": False, "arch": "qwen2moe", "ints": ints, "replace": made}


SHARED = _shared_experts()

CASES = {
    # of the model; of each adapter: weights and options; scales
    "all weights": ({}, [(all_weights(), {})], [1.0]),
    "one weight, scaled": ({}, [(["blk.1.ffn_down.weight"], {})], [-1.75]),
    "no alpha": ({}, [(all_weights(), {"alpha": None})], [0.5]),
    "two at once": (
        {},
        [(all_weights(), {}), (["blk.0.attn_q.weight", "blk.1.ffn_up.weight"], {"rank": 8, "alpha": 16.0, "seed": 9})],
        [0.75, 1.5],
    ),
    "biases": ({"biases": True}, [(all_weights(), {})], [1.0]),
    "output": ({"tied": False}, [(["output.weight"], {})], [1.0]),
    "token embeddings": ({"tied": False}, [(["token_embd.weight", "blk.0.attn_v.weight"], {})], [1.0]),
    "as large as the weight": ({}, [([f"blk.{i}.attn_q.weight" for i in (0, 1)], {"rank": 64})], [8.0]),
    "experts": (EXPERTS, [(all_weights(n_expert=4), EXPERTS)], [1.0]),
    "gate of a shared expert": (SHARED, [(GATES, {"shapes": {"ffn_gate_inp_shexp": (64, 1)}, "strings": QWEN})], [8.0]),
    "F16 adapter": ({}, [(all_weights(), {"quant": gguf.GGMLQuantizationType.F16, "rank": 32})], [1.0]),
}


def apply(path, adapters, scales, device=None):
    """The logits of the last token, of three decodes: with adapters, without, with them again."""
    with contextlib.closing(Model.load(path, cpu=device or ReferenceDevice())) as model:
        context = Context(model, n_ctx=512, n_ubatch=16, flash_attn=False)
        with contextlib.closing(context):
            loaded = [model.load_adapter(adapter) for adapter in adapters]
            rows = []
            for tokens, used in ((FIRST, scales), (SECOND, [0.0] * len(scales)), (THIRD, scales)):
                context.set_adapters(list(zip(loaded, used, strict=True)))
                rows.append(context.decode(tokens)[0])
            return np.array(rows)


def files(folder, name):
    options, adapters, scales = CASES[name]
    path = write_llama(folder / "tiny.gguf", **options)
    written = [write_lora(folder / f"{i}.gguf", weights, **more) for i, (weights, more) in enumerate(adapters)]
    return path, written, scales


def theirs_of(peer, path, written, scales):
    used = [[i, scale] for i, scale in enumerate(scales)]
    steps = [("open", "a"), ("adapt", "a", used), ("decode", "a", FIRST), ("adapt", "a", []), ("decode", "a", SECOND)]
    steps += [("adapt", "a", used), ("decode", "a", THIRD)]
    return peer.steps(path, steps, adapters=written)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_peer(name, tmp_path, peer):
    path, written, scales = files(tmp_path, name)
    theirs = theirs_of(peer, path, written, scales)
    without = apply(path, [], [])
    for device in (ReferenceDevice(), CPUDevice()):
        ours = apply(path, written, scales, device)
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())
        assert mean_kl(theirs, ours) < 1e-5
    for i in (0, 2):
        assert mean_kl(theirs[i : i + 1], without[i : i + 1]) > 1e-4, "the adapter matters"


class NoRank(lora.Applied):
    """A mutant: the scale alone, whatever alpha and rank."""

    def factor(self, pair):
        return self.scale


class Exchanged(lora.Applied):
    """A mutant: A and B in each other's place, where their shapes allow it."""

    def add(self, weight, x, y):
        swapped = {name: lora.Pair(pair.b, pair.a) for name, pair in self.adapter.pairs.items()}
        other = lora.Adapter(self.adapter.path, self.adapter.alpha, swapped, self.adapter.digest)
        return lora.Applied(other, self.scale).add(weight, x, y)


class FirstExpert(lora.Applied):
    """A mutant: the experts that A was chosen by do not choose B, all take the first one's."""

    def add_id(self, weight, x, ids, y):
        from pyggml import ops

        pair = self.adapter.pairs.get(weight.name)
        if pair is None:
            return y
        first = ops.view(pair.b, pair.b.ne[:2], pair.b.nb[1:2], 0)
        return self._sum(pair, y, ops.mul_mat(first, ops.mul_mat_id(pair.a, x, ids)))


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (NoRank, "all weights"),
        (NoRank, "token embeddings"),
        (Exchanged, "as large as the weight"),
        (FirstExpert, "experts"),
    ],
)
def test_the_comparison_catches_a_mutant(mutant, name, tmp_path, peer, monkeypatch):
    path, written, scales = files(tmp_path, name)
    theirs = theirs_of(peer, path, written, scales)
    monkeypatch.setattr("pyggml.runtime.context.Applied", mutant)
    assert mean_kl(theirs, apply(path, written, scales)) > 1e-4


# ---- nodes


def nodes(context, n_tokens=5):
    """(op, name, shape) of each node of a prompt."""
    built, _ = context.schedule_for(n_tokens, 256, 1)
    return [(Op(node.op).name, node.name, node.ne) for node in built.graph.nodes]


@pytest.fixture
def opened(tmp_path):
    """A function of the model's options, adapters and a device: the model, a context, the adapters loaded."""
    with contextlib.ExitStack() as stack:

        def opening(adapters, device=None, options=None, **more):
            path = write_llama(tmp_path / "tiny.gguf", **(options or {}))
            devices = [device] if device else []
            model = stack.enter_context(contextlib.closing(Model.load(path, cpu=ReferenceDevice(), devices=devices)))
            loaded = [
                model.load_adapter(write_lora(tmp_path / f"{i}.gguf", weights, seed=i))
                for i, weights in enumerate(adapters)
            ]
            context = Context(model, n_ctx=512, n_ubatch=16, **more)
            return model, stack.enter_context(contextlib.closing(context)), loaded

        yield opening


def test_no_adapter_or_none_of_it_is_the_graph_of_before(opened):
    _, context, (adapter,) = opened([all_weights()])
    before = nodes(context)
    context.set_adapters([(adapter, 0.0)])
    assert nodes(context) == before and context.adapters == ()
    context.set_adapters([(adapter, 1.0)])
    assert len(nodes(context)) == len(before) + 4 * len(all_weights())
    context.set_adapters([])
    assert nodes(context) == before


@pytest.mark.parametrize("biases", [False, True])
def test_nodes_are_in_the_peers_order(opened, biases):
    """W x, A x, B A x, times the scale, the sum, and only then the bias (llama-graph.cpp: build_lora_mm)."""
    _, context, (adapter,) = opened([["blk.0.ffn_up.weight"]], options={"biases": biases})
    context.set_adapters([(adapter, 1.0)])
    found = nodes(context)
    at = [name for _, name, _ in found].index("ffn_up-0")
    n = found[at][2][1]
    assert found[at : at + 5] == [
        ("MUL_MAT", "ffn_up-0", (96, n, 1, 1)),
        ("MUL_MAT", "", (4, n, 1, 1)),
        ("MUL_MAT", "", (96, n, 1, 1)),
        ("SCALE", "", (96, n, 1, 1)),
        ("ADD", "", (96, n, 1, 1)),
    ]
    assert (found[at + 5][1] == "ffn_up_b-0") == biases


@pytest.mark.parametrize(("weight", "quant", "ops"), [
    ("attn_q", "F32", ["MUL_MAT", "MUL", "MUL_MAT", "MUL_MAT", "SCALE", "ADD"]),
    ("ffn_up", "F32", ["MUL_MAT", "MUL_MAT", "MUL_MAT", "SCALE", "ADD", "MUL"]),
    ("ffn_up", "NVFP4", ["MUL_MAT", "MUL", "MUL_MAT", "MUL_MAT", "SCALE", "ADD"]),
])  # fmt: skip
def test_scales_of_weights_and_adapters(opened, weight, quant, ops):
    """In feed-forward networks the scale is for the adapter's product too, as in build_ffn, but not that of an NVFP4 weight,
    which is a part of its blocks; llama.cpp ends there."""
    name = f"blk.0.{weight}.weight"
    scale = {name.replace(".weight", ".scale"): np.array([0.5], np.float32)}
    _, context, (adapter,) = opened([[name]], options={"replace": scale})
    if quant != "F32":  # what follows asks for the type alone
        weights = [w for m in context.model.modules.modules() for w in m.own() if w.name == name]
        weights[0].tensor = Tensor(GGMLType[quant], weights[0].value.ne, name=name)
    built = context.model.modules.build(
        GraphBuilder(context.model.config, context.memory, context.shape(1, 1, 1), (lora.Applied(adapter, 1.0),))
    )
    found = [(Op(node.op).name, [source.name for source in node.src if source]) for node in built.graph.nodes]
    at = next(i for i, (op, sources) in enumerate(found) if op == "MUL_MAT" and name in sources)
    assert [op for op, _ in found[at : at + 6]] == ops


def test_embeddings_that_are_the_output_too(tmp_path, peer):
    """What goes in has the adapter, what comes out is multiplied with the matrix as it is: as in a file with two matrices."""
    tied = write_llama(tmp_path / "tied.gguf")
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(tied).tensors}
    tensors["output.weight"] = tensors["token_embd.weight"]
    two = write_llama(tmp_path / "two.gguf", tied=False, replace=tensors)
    adapter = write_lora(tmp_path / "a.gguf", ["token_embd.weight"])
    theirs = theirs_of(peer, two, [adapter], [1.0])
    for path in (tied, two):
        assert mean_kl(theirs, apply(path, [adapter], [1.0])) < 1e-5
    assert mean_kl(theirs, apply(tied, [], [])) > 1e-4


# ---- contexts


def test_schedules_of_adapters_are_kept(opened):
    _, context, (first, second) = opened([all_weights(), ["blk.0.attn_q.weight"]])
    makers = [[], [(first, 1.0)], [(first, 0.5)], [(first, 1.0), (second, 1.0)]]
    made = []
    for adapters in makers:
        context.set_adapters(adapters)
        made.append(context.schedule_for(1, 256, 1))
    assert len({id(schedule) for _, schedule in made}) == len(makers)
    for adapters, (built, schedule) in zip(makers, made, strict=True):
        context.set_adapters(adapters)
        assert context.schedule_for(1, 256, 1) == (built, schedule)


def test_going_back_to_adapters_builds_nothing(opened, monkeypatch):
    _, context, (first, second) = opened([all_weights(), ["blk.0.attn_q.weight"]])
    ways = [[(first, 1.0)], [(second, 1.0)], [(first, 1.0), (second, 1.0)], []]
    for adapters in ways:
        context.set_adapters(adapters)
        context.decode([1])
    built = []
    make = Schedules.make
    monkeypatch.setattr(Schedules, "make", lambda self, shape, used: (built.append(shape), make(self, shape, used))[1])
    for adapters in (*ways, *ways):
        context.set_adapters(adapters)
        context.decode([1])
    assert not built
    context.set_adapters([(first, 0.25)])
    context.decode([1])
    assert [shape.n_tokens for shape in built] == [1], "another scale needs no more room"


def test_what_was_decoded_stays(opened):
    """Adapters count for the tokens decoded with them: keys and values of before are as they were computed."""
    _, context, (adapter,) = opened([all_weights()])
    context.decode(FIRST)
    context.set_adapters([(adapter, 1.0)])
    changed = context.decode(SECOND)
    context.clear()
    context.decode(FIRST)
    anew = context.decode(SECOND)
    assert mean_kl(changed, anew) > 1e-5


def test_sequences_side_by_side(opened):
    _, context, (adapter,) = opened([all_weights()], n_seq_max=2)
    context.set_adapters([(adapter, 1.0)])
    batch = Batch(
        np.array([*FIRST, *SECOND], np.int32),
        np.array([*range(len(FIRST)), *range(len(SECOND))], np.int32),
        np.array([0] * len(FIRST) + [1] * len(SECOND), np.int32),
        np.arange(len(FIRST) + len(SECOND)) >= len(FIRST) - 1,
        np.zeros(len(FIRST) + len(SECOND), np.bool_),
    )
    both = context.decode(batch)
    context.clear()
    np.testing.assert_allclose(both[0], context.decode(FIRST)[0], atol=1e-4)
    context.clear()
    np.testing.assert_allclose(both[-1], context.decode(SECOND)[0], atol=1e-4)


def test_adapters_that_cannot_be_used(opened, tmp_path):
    model, context, (adapter, other) = opened([all_weights(), all_weights()])
    context.set_adapters([(adapter, 1.0)])
    before = context.decode(FIRST)
    for wrong, why in (
        ([(adapter, float("nan"))], "a scale of nan, must be a finite number"),
        ([(adapter, 1.0), (adapter, 2.0)], "2 adapters, of which 1 are different: give each one scale"),
    ):
        with pytest.raises(ContextError, match=why):
            context.set_adapters(wrong)
    context.clear()
    np.testing.assert_array_equal(context.decode(FIRST), before)
    model.free_adapter(other)
    with pytest.raises(ContextError, match="not an adapter of this model, or freed"):
        context.set_adapters([(other, 1.0)])
    model.free_adapter(adapter)
    with pytest.raises(ContextError, match="is freed, but in use"):
        context.decode(FIRST)
    context.set_adapters([])
    context.decode(FIRST)


# ---- devices


class Picky(FakeDevice):
    """Multiplies with no B of an adapter."""

    def why_not(self, node):
        source = node.src[0] if node.src else None
        return "no B here" if source is not None and source.name.endswith("lora_b") else super().why_not(node)


@pytest.mark.parametrize("kind", [FakeDevice, Picky])
def test_matrices_lie_with_their_weights(kind, opened):
    device = kind()
    weights = [*all_weights(), "token_embd.weight"]
    model, context, (adapter,) = opened([weights], device)
    assert model.tensor("blk.0.attn_q.weight").buffer.device is device
    for name, pair in adapter.pairs.items():
        home = model.cpu if name == "token_embd.weight" else device
        assert pair.a.buffer.device is home
        assert pair.b.buffer.device is (model.cpu if kind is Picky else home)
    context.set_adapters([(adapter, 1.0)])
    there = context.decode(FIRST)
    _, local, (same,) = opened([weights])
    local.set_adapters([(same, 1.0)])
    np.testing.assert_allclose(there, local.decode(FIRST), atol=1e-5)


def test_memory_is_given_back(opened):
    device = FakeDevice()
    model, _, (first, second) = opened([all_weights(), all_weights()], device)
    used = [tensor.buffer for tensor in (*first.tensors(), *second.tensors())]
    model.free_adapter(first)
    assert not first.placed and second.placed
    model.close()
    assert not second.placed and not any(buffer.memory.size for buffer in used)


def test_no_memory_for_an_adapter(opened, tmp_path):
    device = FakeDevice()
    model, _, _ = opened([], device)
    device.max_size = 1000
    with pytest.raises(DeviceError, match=r"lora_a needs 1024 bytes, a buffer has at most 1000"):
        model.load_adapter(write_lora(tmp_path / "a.gguf", all_weights()))
    assert not model.adapters
