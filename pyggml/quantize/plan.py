"""From an open model file and a mix to a plan: which tensors in which order become what, under which metadata.

Follows llama_model_quantize_impl (llama-quant.cpp), so that the file will be the same byte for byte.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ModelError, UnsupportedError
from pyggml.gguf import GGUFFile, TensorInfo, ValueType
from pyggml.gguf.header import DEFAULT_ALIGNMENT
from pyggml.gguf.write import Pair, Planned
from pyggml.quantize.mixes import MIXES, Facts, Mix, Shape, Wishes, choose, in_order, needs_importance
from pyggml.quants import QUANTS

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
GUESSED = 1024  # LLAMA_FTYPE_GUESSED: set where a file does not say what kind it is
_WHOLE = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)  # what may be quantised without a further loss
_SPLIT = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class Override:
    """A metadata entry that the user sets: a bool, an int, a float or a str."""

    key: str
    value: bool | int | float | str

    @property
    def pair(self) -> Pair:
        """Whole numbers become U32 without their sign, as llama-quantize writes them."""
        if isinstance(self.value, bool):
            return Pair(self.key, ValueType.BOOL, self.value)
        if isinstance(self.value, int):
            return Pair(self.key, ValueType.U32, abs(self.value) & 0xFFFFFFFF)
        if isinstance(self.value, float):
            return Pair(self.key, ValueType.F32, self.value)
        return Pair(self.key, ValueType.STRING, self.value)


@dataclass(frozen=True)
class Task:
    """One tensor: what it is and what it becomes. `instead_of` is the type that its rows are too short for."""

    source: TensorInfo
    type: GGMLType
    instead_of: GGMLType | None = None

    @property
    def planned(self) -> Planned:
        return Planned(self.source.name, self.type, self.source.ne)


@dataclass(frozen=True)
class Part:
    """One file to write."""

    pairs: list[Pair]
    tasks: list[Task]


@dataclass(frozen=True)
class Plan:
    """All that is to be done; `n_before` and `n_after` are bytes of tensors."""

    parts: list[Part]
    alignment: int

    @property
    def tasks(self) -> list[Task]:
        return [task for part in self.parts for task in part.tasks]

    @property
    def n_before(self) -> int:
        return sum(task.source.nbytes for task in self.tasks)

    @property
    def n_after(self) -> int:
        return sum(task.planned.nbytes for task in self.tasks)

    @property
    def n_elements(self) -> int:
        sizes = (task.source.ne for task in self.tasks)
        return sum(ne[0] * ne[1] * ne[2] * ne[3] for ne in sizes)


def make_plan(
    file: GGUFFile,
    mix: Mix | None,
    wishes: Wishes | None = None,
    overrides: Sequence[Override] = (),
    *,
    allow_requantize: bool = False,
    keep_split: bool = False,
    check: bool = True,
) -> Plan:
    """What turns the model into the mix; None copies every tensor.

    keep_split  as many files as there are now, each with its tensors
    check       raise for what could not be carried out; a plan that is only looked at need not
    Raises ModelError, UnsupportedError, ShapeError, GGUFError.
    """
    if file.text("general.type") == "adapter":
        raise ModelError(f"{file.paths[0]}: general.type is 'adapter': not a model, and only models are quantised")
    pairs = {key: Pair(key, file.value_types[key], value) for key, value in file.metadata.items()}
    order = in_order(file.tensors)
    shapes = [Shape(name, file.tensors[name].type, file.tensors[name].ne) for name in order]
    number = mix.number if mix is not None else file_type_number(file, (shape.type for shape in shapes))
    new = [Override("general.quantization_version", QUANTIZATION_VERSION), Override("general.file_type", number)]
    for override in [*new, *overrides]:
        pairs.pop(override.key, None)  # what is set goes to the end
        pairs[override.key] = override.pair
    for key in _SPLIT:
        if all(override.key != key for override in overrides):
            pairs.pop(key, None)
    if keep_split:
        paths = {path: i for i, path in enumerate(file.paths)}
        order.sort(key=lambda name: (paths[file.tensors[name].path], file.tensors[name].offset))
        shapes = [Shape(name, file.tensors[name].type, file.tensors[name].ne) for name in order]
    if mix is None:
        tasks = [Task(file.tensors[name], file.tensors[name].type) for name in order]
    else:
        chosen = choose(mix, shapes, _facts(pairs), wishes)
        tasks = [Task(file.tensors[name], c.type, c.instead_of) for name, c in zip(order, chosen, strict=True)]
        for task, shape in zip(tasks, shapes, strict=True):
            _check_type(task)
            if check:
                _check(task, shape, mix, allow_requantize)
    alignment = pairs["general.alignment"].value if "general.alignment" in pairs else DEFAULT_ALIGNMENT
    return Plan(_parts(file, list(pairs.values()), tasks, keep_split), alignment)


def _parts(file: GGUFFile, pairs: list[Pair], tasks: list[Task], keep_split: bool) -> list[Part]:
    n = len(file.paths) if keep_split else 1
    if n == 1:
        return [Part(pairs, tasks)]
    parts = []
    for i, path in enumerate(file.paths):
        split = [Pair("split.no", ValueType.U16, i), Pair("split.count", ValueType.U16, n)]
        split.append(Pair("split.tensors.count", ValueType.I32, len(tasks)))
        parts.append(Part([*(pairs if i == 0 else []), *split], [t for t in tasks if t.source.path == path]))
    return parts


def _check_type(task: Task) -> None:
    """That the type can be had for this shape."""
    name, source = task.source.name, task.source.type
    if task.type != source and source not in QUANTS:
        raise UnsupportedError(f"tensor {name} is {source.name}, which is not supported")
    if task.source.ne[0] % SIZES[task.type].block_size:
        size = SIZES[task.type].block_size
        raise ModelError(
            f"tensor {name}: row length {task.source.ne[0]} is not a multiple of the block size {size} of {task.type.name}"
        )


def _check(task: Task, shape: Shape, mix: Mix, allow_requantize: bool) -> None:
    name, source = task.source.name, task.source.type
    if needs_importance(mix, shape, task.type):
        raise UnsupportedError(
            f"{mix.name} makes tensor {name} {task.type.name}, which needs an importance matrix; these are not supported"
        )
    if task.type != source and source not in _WHOLE and not allow_requantize:
        raise ModelError(
            f"tensor {name} is {source.name} already: quantising it again loses quality (--allow-requantize)"
        )


def _facts(pairs: dict[str, Pair]) -> Facts:
    """From the metadata as they will be."""
    architecture = _value(pairs, "general.architecture", str)

    def number(key: str, default: int | None = None) -> int:
        return int(_value(pairs, f"{architecture}.{key}", int, default))

    n_head = number("attention.head_count")
    return Facts(
        architecture=architecture,
        n_layer=number("block_count"),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv", n_head),
        n_expert=number("expert_count", 0),
    )


def _value(pairs: dict[str, Pair], key: str, kind: type, default: Any = None) -> Any:
    """A number for each layer counts as the first layer's."""
    if key not in pairs:
        if default is None:
            raise ModelError(f"key {key!r} is missing")
        return default
    value = pairs[key].value
    if pairs[key].type is ValueType.ARRAY and kind is int and len(value) and not isinstance(value[0], str):
        value = value[0].item() if hasattr(value[0], "item") else value[0]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelError(f"{key} is {value!r}, must be of type {kind.__name__}")
    return value


def file_type_number(file: GGUFFile, types: Iterable[GGMLType]) -> int:
    """The number of the mix that a file is: what it says, else llama.cpp's guess by the type that most tensors have."""
    if "general.file_type" in file.metadata:
        return file.get_u32("general.file_type")
    counts: dict[GGMLType, int] = {}
    most = GGMLType.F32
    for dtype in types:
        counts[dtype] = counts.get(dtype, 0) + 1
        if counts[dtype] > counts.get(most, 0) or most not in counts:
            most = dtype
    names = {GGMLType.Q3_K: "Q3_K_M", GGMLType.Q4_K: "Q4_K_M", GGMLType.Q5_K: "Q5_K_M"}
    mix = MIXES.get(names.get(most, most.name))
    return (mix.number if mix is not None else 0) | GUESSED


def part_paths(dst: Path, n: int) -> list[Path]:
    """The files that `n` parts of `dst` are written to (llama_split_path)."""
    if n == 1:
        return [dst]
    stem = dst.name.removesuffix(".gguf")
    return [dst.with_name(f"{stem}-{i:05}-of-{n:05}.gguf") for i in range(1, n + 1)]
