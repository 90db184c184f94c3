"""How many launches a token takes: those of a plan for the shape of an 8B llama, on a GPU whose memory is addresses alone."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed: pip install '.[cuda]'")

from cuda_recording import VirtualGPU

from pyggml.backend.base import Usage
from pyggml.backend.cpu import CPUDevice
from pyggml.backend.cuda.device import CudaDevice
from pyggml.backend.pack import pack
from pyggml.backend.scheduler import Scheduler
from pyggml.dtypes import GGMLType
from pyggml.memory import MemoryOptions, allocate, make_memory
from pyggml.model import make_modules
from pyggml.model.graph import GraphBuilder, UbatchShape
from pyggml.model.hparams import Hparams
from pyggml.model.usual import blank_weights
from pyggml.runtime.batch import Batch, split

T = GGMLType
LAYERS = 32
SHAPE = {
    "embedding_length": 4096, "block_count": LAYERS, "feed_forward_length": 14336, "attention.head_count": 32,
    "attention.head_count_kv": 8, "attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 128,
    "context_length": 8192, "vocab_size": 128256, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
CELLS = 1024


def launches(arch: str, dtype: GGMLType, n_tokens: int = 1, layers: bool = True) -> list[str]:
    """Of a graph of so many tokens behind 512 others; each layer's weights have the type. `layers`: whether it is known where
    they end."""
    device, cpu = CudaDevice(VirtualGPU()), CPUDevice()
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        **{f"{arch}.{key}": value for key, value in SHAPE.items()},
    }
    hp = Hparams(metadata, arch)
    matrix = SimpleNamespace(ne=(hp.n_embd, SHAPE["vocab_size"], 1, 1), type=dtype)
    modules = make_modules(hp, {"token_embd.weight": matrix, "output.weight": matrix})
    pack(device, blank_weights(modules, dtype), Usage.WEIGHTS)
    scheduler = Scheduler([device.open(), cpu.open(1)])
    memory = make_memory(modules.needs(), MemoryOptions(CELLS))
    allocate(memory, [device] * hp.n_layer, lambda graph, inputs: None)
    before = memory.place(tokens(512, 0))
    assert before is not None
    memory.commit(before)
    placement: Any = memory.place(tokens(n_tokens, 512))
    built = modules.build(GraphBuilder(hp, memory, UbatchShape(n_tokens, 1, memory.shape(placement))))
    if not layers:
        built.graph.ends = frozenset()
    scheduler.schedule(built.graph).run()
    scheduler.close()
    return [line.removeprefix("launch ") for line in device.gpu.log if line.startswith("launch ")]


def tokens(n: int, start: int) -> Any:
    ((ub, _),) = split(Batch.of(np.ones(n, np.int32), start), n, 1, 1)
    return ub


@pytest.mark.parametrize("dtype", [T.Q4_0, T.Q4_K, T.F16], ids=lambda t: t.name)
def test_a_token_takes_seven_launches_a_layer(dtype: GGMLType) -> None:
    """The norm; its three products; rotations and the cache; attention; its product, the residual and its norm; the GLU; its
    product and the residual."""
    found = Counter(launches("llama", dtype))
    assert found.total() == 7 * LAYERS + 3 <= 230
    name = f"matvec_one-products-{dtype.name}"
    assert found[name] == 3 * LAYERS + 1 and found["attention_tile-attend-128-1-0"] == LAYERS
    assert found["rope_cache-rope_cache"] == found[f"matvec_one-glu-{dtype.name}"] == LAYERS
    assert not found["activations-quantize"]


def test_where_layers_are_not_known_the_norm_behind_one_is_made_by_its_last_launch() -> None:
    """As of the graph of a client."""
    assert len(launches("llama", T.Q4_0, layers=False)) == 6 * LAYERS + 3


def test_a_prompt_takes_fewer_than_a_launch_a_node() -> None:
    found = Counter(launches("llama", T.Q4_0, 64))
    assert found["mma-integers-Q4_0"] >= 7 * LAYERS - 4  # behind the last attention one token is computed
    assert found.total() < 18 * LAYERS


@pytest.mark.parametrize(("arch", "most"), [("qwen2", 7), ("qwen3", 11)])
def test_biases_and_norms_of_heads(arch: str, most: int) -> None:
    """A bias costs no launch; norms of queries and keys do, one each, and so do their rotations."""
    found = Counter(launches(arch, T.Q4_K))
    assert found.total() <= most * LAYERS + 4, found
