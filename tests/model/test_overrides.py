"""Where weights go and what is done to them first: overrides, copies, locks, checks, split modes, threads."""

import re
import threading

import numpy as np
import pytest
from fake_devices import FakeDevice
from tiny_model import N_VOCAB, write_llama

from pyggml.backend.cpu import CPUDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import DeviceError, ModelError
from pyggml.gguf import GGUFFile
from pyggml.model import weights
from pyggml.model.model import Model
from pyggml.model.overrides import DENSE, EXPERTS, compile_pattern, cpu_layers, parse_override
from pyggml.model.placement import effective_split, select_devices
from pyggml.quants import QUANTS
from pyggml.runtime.context import Context

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, N_VOCAB, 9)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("overrides") / "tiny.gguf")


def logits(model, **options):
    context = Context(model, n_ctx=256, **options)
    out = [context.decode(TOKENS[:-1]), context.decode(TOKENS[-1:])]
    context.close()
    return np.concatenate(out)


@pytest.fixture(scope="module")
def expected(path):
    model = Model.load(path, cpu=FakeDevice("CPU"))
    out = logits(model)
    model.close()
    return out


def where(model):
    return {w.name: w.buffer.device.name for w in model.tensors()}


def test_tensors_go_to_the_device_of_the_first_pattern_found(path, expected):
    cpu, one, two = FakeDevice("CPU"), FakeDevice("ONE"), FakeDevice("TWO")
    overrides = [
        (compile_pattern("ffn_up"), two),
        (compile_pattern(r"blk\.1\.ffn"), cpu),
        (compile_pattern("ffn_up"), cpu),
    ]
    model = Model.load(path, cpu=cpu, devices=[one], overrides=overrides)
    homes = where(model)
    assert {n: d for n, d in homes.items() if "ffn_up" in n} == {f"blk.{i}.ffn_up.weight": "TWO" for i in (0, 1)}
    assert homes["blk.1.ffn_down.weight"] == "CPU" and homes["blk.0.ffn_down.weight"] == "ONE"
    assert homes["blk.1.attn_q.weight"] == "ONE" and model.devices == [one, two]
    np.testing.assert_array_equal(logits(model), expected)
    assert two.computed and one.computed and cpu.computed
    model.close()


def test_patterns_of_feed_forward_weights():
    names = ["blk.0.ffn_up.weight", "blk.1.ffn_gate.weight", "blk.1.ffn_up_exps.weight", "blk.1.attn_q.weight"]
    names += ["blk.10.ffn_down_exps.weight", "blk.1.ffn_gate_inp.weight"]
    assert [n for n in names if re.search(EXPERTS, n)] == ["blk.1.ffn_up_exps.weight", "blk.10.ffn_down_exps.weight"]
    found = [n for n in names if any(re.search(p, n) for p in cpu_layers(2, DENSE))]
    assert found == ["blk.0.ffn_up.weight", "blk.1.ffn_gate.weight"]


def test_weights_are_read_into_memory(path, expected):
    model = Model.load(path, cpu=FakeDevice("CPU"), use_mmap=False)
    for weight in model._host_weights():
        whole = model.file.tensors[weight.name].data
        assert weight.data != whole.ctypes.data and weight.buffer.get(weight) == whole.tobytes()
    np.testing.assert_array_equal(logits(model), expected)
    model.close()


def locked():
    """Ranges of addresses that the system keeps in memory; memory that was locked before may have been given out again."""
    found, begin, end = [], 0, 0
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if match := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
                begin, end = (int(part, 16) for part in match.groups())
            elif line.startswith("VmFlags:") and "lo" in line.split():
                found.append((begin, end))
    return found


def test_weights_are_locked(path, caplog):
    model = Model.load(path, cpu=FakeDevice("CPU"), use_mlock=True, use_mmap=False)
    ranges, weights_ = locked(), model._host_weights()
    assert weights_
    in_range = [sum(max(0, min(b, w.data + w.nbytes) - max(a, w.data)) for a, b in ranges) for w in weights_]
    kept = in_range == [w.nbytes for w in weights_]
    assert kept or "of weights are locked in memory: " in caplog.text
    model.close()


def test_a_lock_that_is_refused_is_one_warning(path, caplog, monkeypatch):
    monkeypatch.setattr(weights, "mlock", lambda address, size: 12)
    Model.load(path, cpu=FakeDevice("CPU"), use_mlock=True).close()
    assert [r.getMessage() for r in caplog.records] == [
        "warning: only 0 bytes of weights are locked in memory: Cannot allocate memory; ulimit -l tells how many may be"
    ]


@pytest.mark.parametrize(
    "name", ["F32", "F16", "BF16", *(t.name for t in QUANTS if t.name[0] in "QIT" and t.name != "Q8_K")]
)
def test_bad_numbers_in_weights_are_found(name):
    dtype = GGMLType[name]
    rng = np.random.default_rng(3)
    if dtype in weights._BITS:
        data = rng.normal(0, 1, 512).astype(np.float32)
        raw = {"F32": data.view(np.uint8), "F16": data.astype(np.float16).view(np.uint8)}.get(name)
        raw = (data.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8) if raw is None else raw
        where_bad, bits = 5, {"F32": 0x7FC00001, "F16": 0xFC00, "BF16": 0x7F80}[name]
        bad = raw.copy()
        bad.view({"F32": "<u4"}.get(name, "<u2"))[where_bad] = bits
    else:
        quant = QUANTS[dtype]
        raw = np.zeros(8 * quant.type_size, np.uint8)
        if quant.can_quantize:
            raw = quant.quantize(rng.normal(0, 1, (8, quant.block_size)).astype(np.float32)).reshape(-1)
        bad, where_bad = raw.copy(), 3
        if name == "IQ1_M":  # four bits in each of four numbers
            bad.view(quant.layout)["scales"][where_bad] = [0x0FFF, 0x0FFF, 0xEFFF, 0x7FFF]
        else:
            bad.view(quant.layout)["d"][where_bad] = 0x7E00
    info = type("Info", (), {"name": "w", "type": dtype, "nbytes": raw.size, "data": raw})
    weights.check_tensors([info], lambda done, total: None)
    info.data = bad
    with pytest.raises(ModelError, match=f"^tensor w has invalid data: {name} block or element {where_bad}$"):
        weights.check_tensors([info], lambda done, total: None)


def test_a_model_with_bad_weights_is_refused_if_asked(tmp_path):
    down = np.ones((64, 96), np.float32)
    down[3, 5] = np.nan
    path = write_llama(tmp_path / "nan.gguf", replace={"blk.1.ffn_down.weight": down})
    Model.load(path, cpu=FakeDevice("CPU")).close()
    with pytest.raises(ModelError, match=f"tensor blk.1.ffn_down.weight has invalid data: F32 .* {3 * 96 + 5}$"):
        Model.load(path, cpu=FakeDevice("CPU"), check=True)


def test_metadata_are_overridden(path):
    values = {"llama.context_length": 99, "general.name": "other", "llama.rope.freq_base": 5e5, "new.key": True}
    model = Model.load(path, cpu=FakeDevice("CPU"), metadata=values)
    assert (model.config.n_ctx_train, model.config.name, model.config.rope.freq_base) == (99, "other", 5e5)
    assert model.file.get_bool("new.key") is True and model.file.get_u32("llama.context_length") == 99
    model.close()
    with GGUFFile.open(path) as file:
        assert file.metadata["llama.context_length"] == 1024
    for key, value, words in (
        ("llama.context_length", 1.5, "U32 in the file, a float cannot take its place"),
        ("llama.context_length", True, "a bool cannot"),
        ("general.architecture", 1, "STRING in the file, an integer cannot"),
    ):
        with pytest.raises(ModelError, match=f"^{re.escape(str(path))}: {key} is .*{words}"):
            Model.load(path, cpu=FakeDevice("CPU"), metadata={key: value})


def test_overrides_are_read():
    assert parse_override("a.b=int:-5") == ("a.b", -5)
    assert parse_override("a=float:1e3") == ("a", 1000.0) and parse_override("a=str:x=y:z") == ("a", "x=y:z")
    assert parse_override("a=bool:true") == ("a", True) and parse_override("a=bool:false") == ("a", False)
    bad = ["a", "=int:1", "a=int", "a=int:x", "a=int:9223372036854775808", "a=bool:1", "a=float:y", "a=list:1"]
    for text in [*bad, "a=str:" + 128 * "x", 128 * "k" + "=int:1"]:
        with pytest.raises(ValueError, match=r"must be KEY=TYPE:VALUE|is no|the type is one of"):
            parse_override(text)


def test_split_modes():
    devices = [FakeDevice("ONE"), FakeDevice("TWO")]
    assert select_devices(devices, "layer", 9) == select_devices(devices, "row", 1) == devices
    assert select_devices(devices, "none", 1) == devices[1:] and select_devices(devices, "none", -1) == []
    assert select_devices([], "none", 3) == []
    with pytest.raises(DeviceError, match=r"^main device 2: there are 2, numbered from 0$"):
        select_devices(devices, "none", 2)
    assert effective_split([0.0, 1.0], "none") == () == effective_split(None, "layer")
    assert effective_split([3.0, 1.0], "row") == [3.0, 1.0]


def test_the_cache_can_stay_on_the_cpu(path, expected):
    cpu, one = FakeDevice("CPU"), FakeDevice("ONE")
    model = Model.load(path, cpu=cpu, devices=[one])
    context = Context(model, n_ctx=256, offload_kqv=False)
    assert {k.buffer.device for k in (*context.cache.k, *context.cache.v)} == {cpu}
    context.close()
    np.testing.assert_array_equal(logits(model, offload_kqv=False), expected)
    model.close()


@pytest.mark.parametrize("threads", [(1, 3), (3, 1), (2, None), (None, 2)])
def test_prompts_may_have_threads_of_their_own(path, threads):
    model = Model.load(path, cpu=CPUDevice())
    before = threading.active_count()
    context = Context(model, n_ctx=256, n_threads=threads[0], n_threads_batch=threads[1])
    used = []
    for n in (5, 1, 1, 2):
        context.decode(TOKENS[:n])
        used.append(context._backends[-1].pool.n_threads)
    one, many = context._n_threads, threads[1] or threads[0]
    assert used == [many, one, one, many] and (threads[0] is None or one == threads[0])
    context.close()
    assert threading.active_count() == before
    np.testing.assert_array_equal(
        logits(model, n_threads=threads[0], n_threads_batch=threads[1]), logits(model, n_threads=1)
    )
    model.close()
