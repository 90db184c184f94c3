"""CUDA plans made from a few layers do what those made from all do: the same launches with the same words, but for where work
memory lies, and on an emulated GPU the same bits. Each part of the proof has a mutant.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_device import EmulatedDevice
from cuda_recording import RecordingGPU
from few_compare import assert_same, count_nodes
from few_model import opened
from random_layers import Layer, compare, compare_many
from tiny_model import write_llama

import pyggml.backend.scheduler as scheduler_module
import pyggml.graph as graph_module
from pyggml import ops
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.cuda import device as device_module
from pyggml.backend.cuda.device import CudaDevice
from pyggml.backend.cuda.plan import CudaPlan
from pyggml.backend.repeats import PlaceWatch
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.errors import ComputeError
from pyggml.graph import IrregularError, Leafs, LeafSpans, Pattern, Repeats, build_forward
from pyggml.kernels.cuda.spec import Scratch, Spec, i32, i64
from pyggml.lowering.cuda_layers import LayerBuilder
from pyggml.tensor import Tensor

F32, F16, Q8_0 = GGMLType.F32, GGMLType.F16, GGMLType.Q8_0


# ---- models

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {}),
    "biases": ({"biases": True, "tied": False}, {}),
    "blocks": ({"quant": 2, "head_k": 64, "head_v": 64}, {}),
    "experts": ({"n_expert": 4}, {}),
    "rope factors": ({"rope_freqs": True}, {}),
    "quantised cache": ({"head_k": 64, "head_v": 64}, {"type_k": Q8_0, "type_v": GGMLType.Q4_0}),
}
SHAPES = [(5, 256, 1), (1, 256, 1), (2, 256, 2), (3, 512, 1), (7, 512, 7), (4, 256, 0)]


def recording() -> CudaDevice:
    return CudaDevice(RecordingGPU())


@pytest.mark.parametrize("name", MODELS)
def test_models_are_lowered_from_a_few_layers_as_from_all(name: str, tmp_path: Path) -> None:
    file, options = MODELS[name]
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9, **file), [recording()], **options) as few:
        for shape in SHAPES:
            few.schedule(*shape)  # the first of its form is built whole
            assert_same(few.schedule(*shape)[1], few.whole(*shape)[1])
        few.asked.clear()
        few.schedule(6, 512, 1)
        few.schedule(6, 512, 6)
        assert all(len(layers) <= 5 for layers in few.asked) and len(few.asked) == 2, few.asked


@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_models_of_few_layers(n_layer: int, tmp_path: Path) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=n_layer), [recording()]) as few:
        for shape in SHAPES * 2:
            assert_same(few.schedule(*shape)[1], few.whole(*shape)[1])


@pytest.mark.parametrize("name", ["dense", "blocks", "experts"])
def test_results_are_the_same_bits(name: str, tmp_path: Path) -> None:
    """In work memory of their own, too."""
    file, options = MODELS[name]
    with opened(write_llama(tmp_path / "m.gguf", n_layer=7, **file), [EmulatedDevice()], **options) as few:
        context = few.context
        texts = ([3, 1, 4, 1, 5], [9], [2], [6, 5])
        context._schedules.make = lambda shape, _: few.whole_of(shape)  # type: ignore[method-assign]
        want = [context.decode(tokens) for tokens in texts]
        context.clear()
        context._schedules.make = lambda shape, _: few.schedule_of(shape)  # type: ignore[method-assign]
        context._schedules.clear()
        for shape in SHAPES[:2]:
            few.schedule(*shape)
        few.asked.clear()
        got = [context.decode(tokens) for tokens in texts]
        assert few.asked and max(map(len, few.asked)) < 7, few.asked
        assert all((a == b).all() for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize(
    ("gpus", "offloaded", "n_layer"), [(2, 99, 14), (3, 99, 18), (1, 6, 14), (2, 9, 14), (2, 99, 6), (1, 2, 6)]
)
def test_layers_over_several_devices(gpus: int, offloaded: int, n_layer: int, tmp_path: Path) -> None:
    """GPUs, and the CPU where not all are offloaded: a few layers of each."""
    devices = [CudaDevice(RecordingGPU(number=i)) for i in range(gpus)]
    with opened(write_llama(tmp_path / "m.gguf", n_layer=n_layer), devices, n_gpu_layers=offloaded) as few:
        for shape in SHAPES:
            few.schedule(*shape)
            few.asked.clear()
            found = few.schedule(*shape)[1]
            few_built = min(map(len, few.asked))
            assert_same(found, few.whole(*shape)[1])
            assert n_layer < 8 or few_built < n_layer, few.asked
        splits = {split.device for split in found.splits}
        assert len(splits) == gpus + 1


def test_an_error_names_the_layer(tmp_path: Path) -> None:
    with opened(write_llama(tmp_path / "m.gguf", n_layer=9), [EmulatedDevice()]) as few:
        few.schedule(2, 256, 2)
        built, schedule = few.schedule(2, 256, 2)
        rows = next(one for one in built.inputs if one.tensor.name.startswith("k_rows") or "rows" in one.tensor.name)
        whole = few.whole(2, 256, 2)[1]
        schedule.bind()
        whole.bind()
        (a,) = (split.plan for split in schedule.splits if isinstance(split.plan, CudaPlan))
        (b,) = (split.plan for split in whole.splits if isinstance(split.plan, CudaPlan))
        told = 0
        for i in range(count_nodes(b)):
            name, _, rest = a.name(i).partition(" (in layer ")
            if rest:
                layer, _, stands = rest.rstrip(")").partition(", for which layer ")
                stand = stands.partition(" ")[0]
                name = name.replace(f"-{stand}'", f"-{layer}'").replace(f"_l{stand}", f"_l{layer}")
                told += 1
            assert name == b.name(i)
        assert told > count_nodes(b) / 2
        schedule.set_input(
            rows.tensor, np.full(rows.tensor.ne[::-1], 1 << 20, np.int64).reshape(-1)[: rows.tensor.nelements]
        )
        with pytest.raises(ComputeError, match="row index 1048576"):
            schedule.run()


def test_addresses_that_could_be_sizes_are_not_guessed() -> None:
    low = Tensor(F32, (4,))
    low.data = 4096
    with pytest.raises(IrregularError, match="addresses such as 0x1000 could be sizes"):
        LeafSpans([low]).numbers(np.array([4096]), 1 << 40)
    low.data = 1 << 41
    words = np.array([0, -1, 4096, (1 << 41) - 1, 1 << 41, (1 << 41) + 15, (1 << 41) + 16])
    assert LeafSpans([low]).numbers(words, 1 << 40).tolist() == [-1, -1, -1, -1, 0, 0, -1]


# ---- the parts of the proof


class Work(NamedTuple):
    at: i64
    number: i32


class Chain:
    """A LayerBuilder of four layers of two nodes, of which the second stands for those behind it, and one node behind all."""

    def __init__(self) -> None:
        buffer = recording().alloc_buffer(1 << 16)
        self.leafs = [[Tensor(F32, (8,), name=f"w{i}")] for i in range(6)]
        for i, (leaf,) in enumerate(self.leafs):
            buffer.place(leaf, 4096 * i)
        self.shared = Tensor(F32, (8,), name="shared")
        buffer.place(self.shared, 60_000)
        x, ends, nodes = self.shared, [], []
        for layer in (0, 1, 5):
            x = ops.add(x, self.leafs[layer][0])
            nodes.append(x)
            x = ops.scale(x, 2.0)
            nodes.append(x)
            ends.append(x)
        nodes.append(ops.scale(x, 3.0))
        for i, node in enumerate(nodes):
            buffer.place(node, 32_000 + 64 * i)
        graph = build_forward([nodes[-1]])
        pattern = Pattern((0, 1, 5), (0, 1, 1, 1, 1, 2), 1, 2)
        graph.repeats = Repeats(pattern, ends, Leafs(self.leafs))
        self.nodes = nodes
        self.builder = LayerBuilder((9, 0), 132, 1 << 16, graph, nodes)

    def lower(self, **special: Callable[[LayerBuilder], None]) -> LayerBuilder:
        """Each node with one launch, and what is asked for at node n{number}."""
        builder = self.builder
        for number, node in enumerate(self.nodes):
            builder.begin_group([node], number)
            builder.launch(
                Spec("unary", "scale"), (1,), 32, Work(node.src[-1].data if len(node.src) > 1 else 0, number + 1)
            )
            special.get(f"n{number}", lambda builder: None)(builder)
            builder.end_group([node])
        builder.check()
        builder.place_scratch()
        return builder


def use(scratch: Scratch) -> Callable[[LayerBuilder], None]:
    return lambda builder: builder.launch(Spec("unary", "scale"), (1,), 32, Work(scratch.at(), 0))


def test_a_chain_is_copied() -> None:
    chain = Chain()
    packed = chain.lower().pack()
    assert len(packed.heads) == 2 * 6 + 1
    words = packed.values.reshape(-1, 2)
    assert words[0:12:2, 0].tolist() == [leaf.data for (leaf,) in chain.leafs]
    assert words[:, 1].tolist() == list(range(1, 14))
    assert chain.builder.where()(6) == (2, " (in layer 3, for which layer 1 stands)")
    assert chain.builder.where()(10) == (4, "") and chain.builder.where()(12) == (6, "")


def test_what_may_serve_several_layers_is_not_copied() -> None:
    chain = Chain()
    with pytest.raises(IrregularError, match="what is made of 'shared' may serve several layers"):
        chain.lower(n2=lambda builder: builder.remember("key", 1, chain.shared))
    for number in (0, 4, 6):  # by layers that stand for no others
        again = Chain()
        again.lower(**{f"n{number}": lambda builder, c=again: builder.remember("key", 1, c.shared)})
    own = Chain()
    own.lower(n3=lambda builder: builder.remember("key", 1, own.nodes[2]))
    weight = Chain()
    weight.lower(n3=lambda builder: builder.remember("key", 1, weight.leafs[1][0]))


def test_what_layers_share_must_last() -> None:
    chain = Chain()

    def forget(builder: LayerBuilder) -> None:
        assert builder.remembered("key") == "made"
        builder.wrote(chain.shared)

    make = {"n0": lambda builder: builder.remember("key", "made", chain.shared)}
    with pytest.raises(IrregularError, match="what layers share is forgotten: key"):
        chain.lower(**make, n2=forget)
    chain = Chain()
    chain.lower(n0=lambda builder: builder.remember("key", "made", chain.shared), n2=lambda b: b.remembered("key"))


def test_work_memory_is_a_layers_own_or_lasts_to_the_last_one() -> None:
    crossing = Scratch(100)
    with pytest.raises(IrregularError, match="work memory is kept from one layer to the next"):
        Chain().lower(n3=use(crossing), n4=use(crossing))
    shared, own, other = Scratch(100), Scratch(100), Scratch(100)
    chain = Chain()
    chain.lower(n0=use(shared), n2=use(shared), n3=use(own), n6=use(other))
    assert own.offset != shared.offset, "the copies still need it"
    assert other.offset in (own.offset, shared.offset)


def test_nodes_of_two_layers_are_not_computed_together() -> None:
    chain = Chain()
    builder = chain.builder
    builder.begin_group(chain.nodes[:1], 0)
    builder.end_group(chain.nodes[:1])
    builder.begin_group(chain.nodes[1:3], 1)
    with pytest.raises(IrregularError, match="computed together with a node of the layer before"):
        builder.end_group(chain.nodes[1:3])


# ---- random layers


@pytest.fixture(scope="module")
def scheduler():
    backends = [recording().open(), CPUDevice().open(2)]
    made = Scheduler(backends)
    yield made
    made.close()
    for backend in backends:
        backend.close()


def test_random_layers_come_out_as_if_all_were_built(scheduler: Scheduler) -> None:
    compare_many(scheduler, assert_same, 150)


# ---- mutants


class AnyPlace(PlaceWatch):
    """Wrong: the compute buffer is taken to be the same before and after each layer."""

    def check(self, places: object) -> None:
        pass


class Still(LeafSpans):
    """Wrong: all layers read the same weights."""

    def numbers(self, words, lowest):
        return np.full(len(words), -1, np.int64)


class OneNumber(LayerBuilder):
    """Wrong: nodes of all layers are reported under the number of one."""

    def _node_numbers(self, few) -> list[int]:
        return []


MUTANTS: list[tuple[Any, str, type, list[Layer], list[int]]] = [
    (scheduler_module, "PlaceWatch", AnyPlace, [[("product", 0, F32)]], [0] * 9),
    (device_module, "LayerBuilder", OneNumber, [[("product", 0, F32), ("store", 1)]], [0] * 9),
    (graph_module, "LeafSpans", Still, [[("product", 0, F32)]], [0] * 9),
]


@pytest.mark.parametrize(
    ("module", "name", "mutant", "kinds", "order"), MUTANTS, ids=[mutant.__name__ for _, _, mutant, _, _ in MUTANTS]
)
def test_a_wrong_form_is_noticed(
    module: Any, name: str, mutant: type, kinds: list[Layer], order: list[int], scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Layers of these kinds, in this order; the right form passes."""
    compare(scheduler, kinds, order, assert_same)
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(AssertionError):
        compare(scheduler, kinds, order, assert_same)
