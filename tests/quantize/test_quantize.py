"""Quantised files against llama_model_quantize: the types of tensors, then whole files, byte for byte."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_model import write_llama

from pyggml.dtypes import GGMLType
from pyggml.errors import ModelError, PyggmlError, UnsupportedError
from pyggml.gguf import GGUFFile
from pyggml.quantize import MIXES, Override, Wishes, find_mix, make_plan, run
from pyggml.quantize.mixes import OTHERS, Facts, Mix, Shape, choose, find_type, in_order, quantisable

WORKER = Path(__file__).parents[1] / "support" / "peer_quant.py"
T = GGMLType


def ask(peer: Any, folder: Path, command: str, given: Any) -> Any:
    path = folder / f"{command}.json"
    path.write_text(json.dumps(given))
    peer.run(WORKER, command, str(path))
    return json.loads(path.read_text())


# ---- which type a tensor gets


def random_model(rng: np.random.Generator) -> dict[str, Any]:
    """Names and shapes of a model, with odd ones among them."""
    n_layer = int(rng.choice([1, 2, 7, 8, 16, 31, 32, 80]))
    n_head_kv = int(rng.choice([1, 2, 8]))
    n_head = n_head_kv * int(rng.choice([1, 2, 4, 7, 8]))
    n_expert = int(rng.choice([0, 0, 4, 8]))
    n_embd = int(rng.choice([256, 256, 576, 100, 4096]))
    n_ff = int(rng.choice([512, 96, 1536]))
    tensors: list[tuple[str, int, list[int]]] = []

    def add(name: str, *ne: int) -> None:
        tensors.append((name, int(rng.choice([T.F32, T.F16])), [*ne, 1, 1, 1][:4]))

    add("token_embd.weight", n_embd, 1000)
    add("output_norm.weight", n_embd)
    if rng.random() < 0.5:
        add("output.weight", n_embd, 1000)
    if rng.random() < 0.3:
        add("per_layer_token_embd.weight", n_embd, 64)
    for i in range(n_layer):
        p = f"blk.{i}."
        add(p + "attn_norm.weight", n_embd)
        if rng.random() < 0.1:
            add(p + "attn_qkv.weight", n_embd, 3 * n_embd)
        else:
            for part in ("attn_q", "attn_k", "attn_v"):
                add(f"{p}{part}.weight", n_embd, n_embd)
                add(f"{p}{part}.bias", n_embd)
        add(p + "attn_output.weight", n_embd, n_embd)
        if n_expert:
            add(p + "ffn_gate_inp.weight", n_embd, n_expert)
            add(p + "ffn_gate_exps.weight", n_embd, n_ff, n_expert)
            add(p + "ffn_up_exps.weight", n_embd, n_ff, n_expert)
            add(p + "ffn_down_exps.weight", n_ff, n_embd, n_expert)
        else:
            add(p + "ffn_gate.weight", n_embd, n_ff)
            add(p + "ffn_up.weight", n_embd, n_ff)
            add(p + "ffn_down.weight", n_ff, n_embd)
    for odd in ("rope_freqs.weight", "blk.0.ssm_conv1d.weight", "blk.0.extra", "v.patch_embd.weight", "cls.weight"):
        add(odd, 64, int(rng.integers(1, 3)))
    numbers = {"n_embd": n_embd, "n_ff": n_ff, "n_layer": n_layer, "n_head": n_head, "n_head_kv": n_head_kv}
    numbers |= {"n_expert": n_expert, "n_embd_head_k": 64, "n_embd_head_v": 64}
    by_name = {t[0]: t for t in tensors}
    others = ["falcon"] if n_layer == 80 else ["falcon", "qwen2"]  # the peer's mock knows the 70B size of llama alone
    model = {
        "architecture": str(rng.choice(["llama", "llama", "llama", *others])),
        "numbers": numbers,
        "tensors": [by_name[name] for name in in_order(by_name)],
        "params": {"pure": bool(rng.random() < 0.1), "quantize_output_tensor": bool(rng.random() < 0.8)},
    }
    if rng.random() < 0.2:
        model["params"]["output_tensor_type"] = int(T.Q8_0)
    if rng.random() < 0.2:
        model["params"]["token_embedding_type"] = int(T.Q4_0)
    if rng.random() < 0.2:
        model["tensor_types"] = [(r"blk\.[1-3]\..*attn", int(T.Q8_0)), ("ffn_down|per_layer", int(T.Q5_K))]
    return model


def our_types(model: dict[str, Any], mix: Mix, choose: Any = choose) -> list[int]:
    params = model["params"]
    wishes = Wishes(
        output=T(params["output_tensor_type"]) if "output_tensor_type" in params else None,
        embedding=T(params["token_embedding_type"]) if "token_embedding_type" in params else None,
        leave_output=not params["quantize_output_tensor"],
        pure=params["pure"],
        overrides=[(re.compile(pattern), T(dtype)) for pattern, dtype in model.get("tensor_types", [])],
    )
    n = model["numbers"]
    facts = Facts(model["architecture"], n["n_layer"], n["n_head"], n["n_head_kv"], n["n_expert"])
    shapes = [Shape(name, T(dtype), tuple(ne)) for name, dtype, ne in model["tensors"]]
    return [int(choice.type) for choice in choose(mix, shapes, facts, wishes)]


def test_types_are_the_peers(peer: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    models = [random_model(rng) for _ in range(40)]
    ftypes = [mix.number for mix in MIXES.values()]
    answers = ask(peer, tmp_path, "types", [{**model, "ftypes": ftypes} for model in models])
    mutant = 0
    for model, (allowed, chosen) in zip(models, answers, strict=True):
        leave = not model["params"]["quantize_output_tensor"]
        shapes = [Shape(name, T(dtype), tuple(ne)) for name, dtype, ne in model["tensors"]]
        assert [quantisable(shape, leave) for shape in shapes] == allowed
        for mix, types in zip(MIXES.values(), chosen, strict=True):
            ours = our_types(model, mix)
            assert ours == types, (mix.name, model["architecture"], model["numbers"], model["params"])
            mutant += our_types({**model, "architecture": "other"}, mix) != types
    assert mutant > 10  # models whose architecture is not looked at


def test_names_and_numbers(peer: Any) -> None:
    text = (peer.site / "llama_cpp" / "llama_cpp.py").read_text()
    numbers = {name: int(n) for name, n in re.findall(r"\nLLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+) = (\d+)", text)}
    assert {mix.name: mix.number for mix in MIXES.values()} == {name: numbers[name] for name in MIXES}
    assert {name: numbers[name] for name in OTHERS} == OTHERS
    assert {*numbers} - {*MIXES} - {*OTHERS} == {"NVFP4"}  # llama-quantize has no name for it either
    assert find_mix("q4_k") == find_mix("15") == MIXES["Q4_K_M"] and find_mix("0") == MIXES["F32"]
    assert find_mix("out.gguf") is None and find_mix("4") is None
    for name in ("iq2_xs", "20"):
        with pytest.raises(UnsupportedError, match=r"mix IQ2_XS is not supported \(supported: Q4_0, "):
            find_mix(name)


# ---- whole files

NAMES = [*MIXES]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32; rows of 256, and of 64, which K-quants do not fit."""
    folder = tmp_path_factory.mktemp("quantize")
    options: dict[str, Any] = {"n_embd": 256, "n_ff": 256, "n_head": 4, "n_head_kv": 1, "n_layer": 3, "tied": False}
    return write_llama(folder / "source.gguf", **options, floats={"general.wide": 1.5})


@pytest.fixture(scope="module")
def split(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tensors in several files."""
    folder = tmp_path_factory.mktemp("split")
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=9)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list(folder.iterdir())) == 4
    return folder / "model-00001-of-00004.gguf"


def ours(src: Path, dst: Path, name: str | None, wishes: Wishes | None = None, **options: Any) -> list[Path]:
    n_threads = options.pop("n_threads", 2)
    with GGUFFile.open(src) as file:
        return run(make_plan(file, MIXES[name] if name else None, wishes, **options), dst, n_threads)


def job(
    src: Path, out: Path, name: str | None, kv: Sequence[Any] = (), types: Any = (), **params: Any
) -> dict[str, Any]:
    params |= {"ftype": MIXES[name].number} if name else {"only_copy": True}
    return {"src": str(src), "out": str(out), "params": params, "kv": list(kv), "tensor_types": list(types)}


def test_files_are_the_peers(peer: Any, source: Path, split: Path, tmp_path: Path) -> None:
    """Every mix, every kind of source, every option: the same bytes from the magic to the last padding."""
    f16, bf16, q8 = (ours(source, tmp_path / f"{name}.gguf", name)[0] for name in ("F16", "BF16", "Q8_0"))
    cases: list[tuple[str, Path, str | None, dict[str, Any], dict[str, Any]]]
    cases = [(name, source, name, {}, {}) for name in NAMES if name != "Q2_K_S"]  # that needs an importance matrix
    for name in ("Q4_K_M", "F32", "BF16"):
        cases.append((f"from f16 {name}", f16, name, {}, {}))
        cases.append((f"from bf16 {name}", bf16, name, {}, {}))
    again = {"allow_requantize": True}
    cases.append(("again", q8, "Q3_K_M", again, again))
    cases.append(("copy", q8, None, {}, {}))
    cases.append(("copy of floats", source, None, {}, {}))
    cases.append(("joined", split, "Q4_0", {}, {}))
    cases.append(("pure", source, "Q5_K_M", {"wishes": Wishes(pure=True)}, {"pure": True}))
    leave = {"wishes": Wishes(leave_output=True)}
    cases.append(("leave", source, "Q4_K_S", leave, {"quantize_output_tensor": False}))
    types = Wishes(output=T.Q5_1, embedding=T.Q4_1)
    their_types = {"output_tensor_type": int(T.Q5_1), "token_embedding_type": int(T.Q4_1)}
    cases.append(("types", source, "Q4_K_S", {"wishes": types}, their_types))
    some = Wishes(overrides=[(re.compile(r"blk\.[01]\.attn_[qk]"), T.Q8_0), (re.compile("ffn"), T.Q2_K)])
    their_some = {"types": [(r"blk\.[01]\.attn_[qk]", int(T.Q8_0)), ("ffn", int(T.Q2_K))]}
    cases.append(("some types", source, "Q6_K", {"wishes": some}, their_some))
    kv = [("general.name", "ö"), ("x.y", -7), ("x.z", 0.1), ("llama.attention.causal", True)]
    overrides = [Override(key, value) for key, value in kv]
    cases.append(("overrides", source, "Q8_0", {"overrides": overrides}, {"kv": kv}))
    jobs = [job(src, tmp_path / f"their {what}", name, **theirs) for what, src, name, _, theirs in cases]
    jobs.append(job(split, tmp_path / "kept", "Q4_K_M", keep_split=True))
    assert ask(peer, tmp_path, "files", jobs) == [0] * len(jobs)
    for what, src, name, options, _ in cases:
        (made,) = ours(src, tmp_path / f"our {what}", name, **options)
        assert made.read_bytes() == (tmp_path / f"their {what}").read_bytes(), what
    made_parts = ours(split, tmp_path / "ours.gguf", "Q4_K_M", keep_split=True)
    assert [path.name for path in made_parts] == [f"ours-{i:05}-of-00004.gguf" for i in range(1, 5)]
    for path in made_parts:
        assert path.read_bytes() == path.with_name(path.name.replace("ours", "kept")).read_bytes()


def test_the_peer_computes_the_same_with_our_file(peer: Any, source: Path, tmp_path: Path) -> None:
    (made,) = ours(source, tmp_path / "ours.gguf", "Q4_K_M")
    theirs = peer.quantize_model(source, tmp_path / "theirs.gguf", "Q4_K_M")
    a, b = (peer.logits(path, [0, 5, 17, 90, 3, 44], n_ctx=64) for path in (made, theirs))
    assert np.isfinite(a).all() and a.std() > 0.01
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["Q4_K_M", "Q5_0"])
def test_neither_threads_nor_pieces_change_a_byte(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    module = sys.modules["pyggml.quantize.run"]
    (whole,) = ours(source, tmp_path / "whole", name, n_threads=1)
    for piece, n_threads in ((5000, 3), (100_000, 1), (30_000, 2)):
        monkeypatch.setattr(module, "PIECE", piece)
        (made,) = ours(source, tmp_path / "made", name, n_threads=n_threads)
        assert made.read_bytes() == whole.read_bytes()


def test_few_pieces_are_in_memory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are begun and not yet written never exceed the bound."""
    import sys
    import threading

    module = sys.modules["pyggml.quantize.run"]
    lock, begun, most = threading.Lock(), 0, 0
    convert = module.convert

    def counted(*args: Any) -> Any:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun)
        return convert(*args)

    def told(done: int, total: int, name: str) -> None:
        nonlocal begun
        with lock:
            begun -= 1

    monkeypatch.setattr(module, "convert", counted)
    monkeypatch.setattr(module, "PIECE", 4096)
    with GGUFFile.open(source) as file:
        run(make_plan(file, MIXES["Q4_0"]), tmp_path / "made", 2, told)
    assert begun == 0 and 1 < most <= 2 * module.AHEAD


def test_progress_ends_at_the_whole(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with GGUFFile.open(source) as file:
        run(make_plan(file, MIXES["Q8_0"]), tmp_path / "made", 1, lambda done, total, name: seen.append((done, total)))
        assert seen[-1] == (file.n_bytes, file.n_bytes) and [d for d, _ in seen] == sorted(d for d, _ in seen)


# ---- what cannot be done


@pytest.mark.parametrize(
    ("value", "name", "words"),
    [
        (np.inf, "Q4_0", "blk.1.ffn_up.weight holds an infinity or a NaN"),
        (np.nan, None, "blk.1.ffn_up.weight holds an infinity or a NaN"),
        (7e4, "F16", "blk.1.ffn_up.weight holds values too large for F16"),
        (1e7, "Q8_0", "blk.1.ffn_up.weight holds values too large for Q8_0"),
    ],
)
def test_numbers_that_are_none(value: float, name: str | None, words: str, tmp_path: Path, peer: Any) -> None:
    """An error that names the tensor, where the peer fails as well; and no file is left."""
    weight = np.ones((96, 64), np.float32)
    weight[50, 3] = value
    src = write_llama(tmp_path / "odd.gguf", replace={"blk.1.ffn_up.weight": weight})
    with pytest.raises(ModelError, match=re.escape(words)):
        ours(src, tmp_path / "made.gguf", name)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.gguf"]
    assert ask(peer, tmp_path, "files", [job(src, tmp_path / "theirs", name)]) == [1]


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("Q4_0", {}, ModelError, "output.weight is Q8_0 already"),
        (
            "Q2_K_S",
            {"allow_requantize": True},
            UnsupportedError,
            "Q2_K_S makes tensor blk.0.attn_k.weight Q2_K, which needs",
        ),
        ("Q4_K_M", {"wishes": Wishes(embedding=T.Q4_K), "allow_requantize": True}, None, ""),
    ],
)
def test_refusals(
    name: str, options: dict[str, Any], error: type[PyggmlError] | None, words: str, source: Path, tmp_path: Path
) -> None:
    (src,) = ours(source, tmp_path / "q8.gguf", "Q8_0")
    if error is None:
        ours(src, tmp_path / "made.gguf", name, **options)
        return
    with pytest.raises(error, match=re.escape(words)):
        ours(src, tmp_path / "made.gguf", name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["q8.gguf"]


def test_a_type_whose_blocks_rows_cannot_hold(tmp_path: Path) -> None:
    src = write_llama(tmp_path / "narrow.gguf")
    with pytest.raises(
        ModelError, match=r"token_embd.weight: row length 64 is not a multiple of the block size 256 of Q4_K"
    ):
        ours(src, tmp_path / "made.gguf", "Q4_K_M", Wishes(embedding=T.Q4_K))


def test_the_source_is_not_written(source: Path, split: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is the input file, which is never overwritten"):
        ours(source, source, "Q8_0")
    with pytest.raises(ModelError, match="is the input file, which is never overwritten"):
        ours(split, split.with_name("model.gguf"), "Q8_0", keep_split=True)
    assert source.stat().st_size > 1e6 and len(list(split.parent.iterdir())) == 4


def test_metadata_that_do_not_say_enough(tmp_path: Path) -> None:
    src = write_llama(tmp_path / "odd.gguf", leave_out=("llama.attention.head_count",))
    with pytest.raises(ModelError, match=r"key 'llama.attention.head_count' is missing"):
        ours(src, tmp_path / "made.gguf", "Q8_0")
    src = write_llama(tmp_path / "odd2.gguf", strings={"llama.expert_count": "two"})
    with pytest.raises(ModelError, match=r"llama.expert_count is 'two', must be of type int"):
        ours(src, tmp_path / "made.gguf", "Q8_0")


def test_types_by_name() -> None:
    assert find_type("q4_K") is T.Q4_K and find_type("bf16") is T.BF16
    for name in ("q8_1", "iq2_xs", "nonsense"):
        with pytest.raises(UnsupportedError, match=rf"quantising to {name} is not supported \(supported: F32, "):
            find_type(name)
