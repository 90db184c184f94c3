"""llama-quantize's mixes: their names and numbers, and which type each of a model's tensors gets.

Follows llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type, tensor_type_fallback) and the names of
tools/quantize/quantize.cpp. Owns the choice alone: it sees names and shapes, and must not know any tensor's bytes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyggml.dtypes import SIZES, GGMLType
from pyggml.errors import ModelError, UnsupportedError
from pyggml.quants import QUANTS

T = GGMLType


class Mix(NamedTuple):
    """A kind of file: llama.cpp's name, its number (enum llama_ftype), and the type that most matrices get."""

    name: str
    number: int
    type: GGMLType


COPY = "COPY"
"""The name for: every tensor as it is."""

MIXES: dict[str, Mix] = {
    name: Mix(name, number, dtype)
    for name, number, dtype in (
        ("Q4_0", 2, T.Q4_0), ("Q4_1", 3, T.Q4_1), ("Q5_0", 8, T.Q5_0), ("Q5_1", 9, T.Q5_1), ("Q8_0", 7, T.Q8_0),
        ("Q2_K", 10, T.Q2_K), ("Q2_K_S", 21, T.Q2_K), ("Q3_K_S", 11, T.Q3_K), ("Q3_K_M", 12, T.Q3_K),
        ("Q3_K_L", 13, T.Q3_K), ("Q4_K_S", 14, T.Q4_K), ("Q4_K_M", 15, T.Q4_K), ("Q5_K_S", 16, T.Q5_K),
        ("Q5_K_M", 17, T.Q5_K), ("Q6_K", 18, T.Q6_K), ("IQ4_NL", 25, T.IQ4_NL), ("IQ4_XS", 30, T.IQ4_XS),
        ("F16", 1, T.F16), ("BF16", 32, T.BF16), ("F32", 0, T.F32),
    )
}  # fmt: skip

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

OTHERS = {  # llama-quantize's other mixes, which need an importance matrix or types for single tensors
    "Q1_0": 40, "Q2_0": 41, "MXFP4_MOE": 38, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ2_M": 29, "IQ1_S": 24,
    "IQ1_M": 31, "TQ1_0": 36, "TQ2_0": 37, "IQ3_XXS": 23, "IQ3_S": 26, "IQ3_M": 27, "IQ3_XS": 22,
}  # fmt: skip


def find_mix(text: str) -> Mix | None:
    """The mix of a name, in any case, or of a number; None if there is none. Raises UnsupportedError for OTHERS."""
    name = text.upper()
    name = ALIASES.get(name, name)
    if re.fullmatch("[0-9]{1,9}", name):
        names = {mix.number: mix.name for mix in MIXES.values()} | {number: other for other, number in OTHERS.items()}
        name = names.get(int(name), name)
    if name in OTHERS:
        raise UnsupportedError(f"mix {name} is not supported (supported: {', '.join([*MIXES, COPY])})")
    return MIXES.get(name)


@dataclass(frozen=True)
class Facts:
    """What the choice depends on beside names and shapes, as the metadata have it."""

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int

    @property
    def n_gqa(self) -> int:
        """Query heads that share a key head."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """The model that llama.cpp knows by this size (load_arch_hparams of llama, qwen2, deci and olmo)."""
        if self.architecture == "llama":
            return self.n_layer == 80 and self.n_head != self.n_head_kv and self.n_expert != 8
        return self.n_layer == 80 and self.architecture in ("qwen2", "deci", "olmo")


class Shape(NamedTuple):
    """A tensor, as far as the choice is concerned."""

    name: str
    type: GGMLType
    ne: tuple[int, int, int, int]


@dataclass(frozen=True)
class Wishes:
    """What a user may ask for beside the mix.

    output, embedding  types of output.weight and of the token embeddings
    leave_output       output.weight stays as it is
    pure               every tensor gets the mix's own type
    overrides          (regular expression, type): the first one that is found in a tensor's name decides
    """

    output: GGMLType | None = None
    embedding: GGMLType | None = None
    leave_output: bool = False
    pure: bool = False
    overrides: Sequence[tuple[re.Pattern[str], GGMLType]] = ()


class Choice(NamedTuple):
    """The type that a tensor gets; `instead_of` is the one that its row length does not allow."""

    type: GGMLType
    instead_of: GGMLType | None = None


_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

_LEFT = (  # parts of the names of matrices that stay as they are: small, or sensitive
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    *(f"time_mix_{x}.weight" for x in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip

_LEFT_BY = {  # more of them, by architecture
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
        *(f"{x}.weight" for x in ("ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta", "attn_kv_a_mqa", "attn_k_b", "attn_v_b")),
    ),
}  # fmt: skip
_EIGHT_BITS_BY = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}  # these have Q8_0 at the least


def quantisable(tensor: Shape, leave_output: bool = False, architecture: str = "") -> bool:
    """Whether a tensor is a matrix, or a stack of them, that llama-quantize converts (tensor_allows_quantization)."""
    name = tensor.name
    if max(tensor.ne[1:]) < 2 or not name.endswith("weight"):
        return False
    if name in ("position_embd.weight", "token_types.weight") or (leave_output and name == "output.weight"):
        return False
    return not any(part in name for part in (*_LEFT, *_LEFT_BY.get(architecture, ())))


_SMALLER = {  # what a type with longer blocks becomes where rows are no multiple of them
    T.IQ4_XS: T.IQ4_NL, T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0,
    T.Q2_0: T.Q4_0, T.TQ1_0: T.Q4_0, T.TQ2_0: T.Q4_0,
}  # fmt: skip


def that_fits(wanted: GGMLType, ne0: int) -> Choice:
    """The type, or its substitute for rows of this length (tensor_type_fallback)."""
    if ne0 % SIZES[wanted].block_size == 0:
        return Choice(wanted)
    smaller = _SMALLER.get(wanted, wanted)
    return Choice(smaller if ne0 % SIZES[smaller].block_size == 0 else T.F16, wanted)


def category(name: str) -> str:
    """Which part of a model a tensor is (tensor_get_category)."""
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "embedding"
    for part in ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"):
        if part in name:
            return "attn_v"
    for part in ("attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    for part in ("ffn_up", "ffn_gate", "ffn_down"):
        if part in name:
            return part
    return "other"


def in_order(names: Iterable[str]) -> list[str]:
    """The order in which llama-quantize takes and writes tensors: by layer, then by name (weight_name_comparer)."""

    def layer(name: str) -> int:
        found = re.match(r"blk\.(\d+)\.", name)
        return int(found[1]) if found else -1

    return sorted(names, key=lambda name: (layer(name), name.encode()))


def choose(mix: Mix, tensors: Sequence[Shape], facts: Facts, wishes: Wishes | None = None) -> list[Choice]:
    """The type of each tensor; `tensors` are all of the model's, in the order of `in_order`.

    Raises ModelError and UnsupportedError.
    """
    wishes = wishes or Wishes()
    rules = _Rules(mix, tensors, facts, wishes)
    return [
        rules.choice(t) if quantisable(t, wishes.leave_output, facts.architecture) else Choice(t.type) for t in tensors
    ]


class _Rules:
    """One walk over the tensors of a model: some types depend on how many of a kind came before."""

    def __init__(self, mix: Mix, tensors: Sequence[Shape], facts: Facts, wishes: Wishes) -> None:
        self.mix, self.facts, self.wishes = mix, facts, wishes
        kinds = [category(t.name) for t in tensors]
        self.tied = "output" not in kinds
        self.n_v = kinds.count("attn_v")
        self.i_v = self.i_down = 0

    def choice(self, tensor: Shape) -> Choice:
        """llama_tensor_get_type."""
        kind, wishes = category(tensor.name), self.wishes
        named = next((dtype for pattern, dtype in wishes.overrides if pattern.search(tensor.name)), None)
        if kind == "embedding" and wishes.embedding is not None and (tensor.name == _EMBEDDINGS[0] or named is None):
            return Choice(wishes.embedding)
        if kind == "output" and wishes.output is not None:
            return Choice(wishes.output)
        if self.mix.type in (T.F32, T.F16, T.BF16):
            return Choice(self.mix.type)
        if named is not None:
            return that_fits(named, tensor.ne[0])
        return that_fits(self.mix.type if wishes.pure else self.standard(tensor, kind), tensor.ne[0])

    def standard(self, tensor: Shape, kind: str) -> GGMLType:
        """llama_tensor_get_type_impl, for the mixes that there are here and without an importance matrix."""
        mine, eight = self.mix.type, self.facts.n_expert == 8
        if any(part in tensor.name for part in _EIGHT_BITS_BY.get(self.facts.architecture, ())):
            return T.Q8_0
        if kind == "output" or (kind == "embedding" and self.tied):
            if self.wishes.output is not None:
                return self.wishes.output
            if self.facts.architecture == "falcon" or tensor.ne[0] % SIZES[mine].block_size or mine == T.Q8_0:
                return T.Q8_0
            return T.Q6_K
        if kind == "attn_v":
            i, self.i_v = self.i_v, self.i_v + 1
            return T.Q8_0 if eight else self.values(i)
        if kind == "attn_k":
            return T.Q8_0 if eight else mine
        if kind == "ffn_down":
            i, self.i_down = self.i_down, self.i_down + 1
            return self.down(self.layer(tensor.name) if self.facts.n_expert > 1 else i)
        if kind in ("ffn_gate", "ffn_up") and self.facts.n_expert > 1:
            self.layer(tensor.name)
        if kind == "attn_output":
            return self.attention_output(eight)
        return mine

    def values(self, i: int) -> GGMLType:
        """attn_v, the i-th of its kind."""
        name, mine, shared = self.mix.name, self.mix.type, self.facts.n_gqa >= 4
        if name == "Q2_K":
            mine = T.Q4_K if shared else T.Q3_K
        elif name == "Q2_K_S" and shared:
            mine = T.Q4_K
        elif name == "Q3_K_M":
            mine = T.Q5_K if i < 2 else T.Q4_K
        elif name == "Q3_K_L" or (name in ("IQ4_NL", "IQ4_XS") and shared):
            mine = T.Q5_K
        elif name in ("Q4_K_M", "Q5_K_M") and more_bits(i, self.n_v):
            mine = T.Q6_K
        elif name == "Q4_K_S" and i < 4:
            mine = T.Q5_K
        return T.Q5_K if self.facts.is_70b and mine in (T.Q3_K, T.Q4_K) else mine

    def down(self, i: int) -> GGMLType:
        """ffn_down: the i-th, or, where there are experts, that of layer i."""
        name, n, falcon = self.mix.name, self.facts.n_layer, self.facts.architecture == "falcon"
        if name == "Q2_K":
            return T.Q3_K
        if name == "Q2_K_S" and i < n // 8:
            return T.Q4_K
        if name == "Q3_K_M":
            return T.Q5_K if i < n // 16 else T.Q3_K if falcon and not more_bits(i, n) else T.Q4_K
        if name == "Q3_K_L":
            return T.Q4_K if falcon else T.Q5_K
        if name == "Q4_K_M" and falcon:
            return T.Q6_K if i < n // 16 else T.Q5_K if more_bits(i, n) else T.Q4_K
        if name in ("Q4_K_M", "Q5_K_M") and more_bits(i, n):
            return T.Q6_K
        if i < n // 8 and (name in ("IQ4_NL", "IQ4_XS") or (name == "Q4_K_S" and not falcon)):
            return T.Q5_K
        return self.mix.type

    def attention_output(self, eight: bool) -> GGMLType:
        name, mine = self.mix.name, self.mix.type
        if self.facts.architecture == "falcon":
            return T.Q4_K if name == "Q3_K_L" else mine
        if eight:
            better = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return T.Q5_K if name in better else mine
        return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(name, mine)

    def layer(self, name: str) -> int:
        """Raises ModelError."""
        found = re.match(r"blk\.(\d+)\.", name)
        n = self.facts.n_layer
        if not found or int(found[1]) >= n:
            raise ModelError(f"tensor {name}: in a model of {n} layers of experts its name must begin with a layer's")
        return int(found[1])


def more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and each third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def needs_importance(mix: Mix, tensor: Shape, chosen: GGMLType) -> bool:
    """Whether llama-quantize refuses this without an importance matrix (tensor_requires_imatrix)."""
    matters = quantisable(tensor) and tensor.name not in (*_EMBEDDINGS, "output.weight")
    return matters and mix.name == "Q2_K_S" and chosen == T.Q2_K


def find_type(text: str) -> GGMLType:
    """A type by its name, in any case. Raises UnsupportedError for one that is not quantised here."""
    known = {t.name: t for t, quant in QUANTS.items() if quant.can_quantize and t not in (T.Q8_1, T.Q8_K)}
    if text.upper() not in known:
        raise UnsupportedError(f"quantising to {text} is not supported (supported: {', '.join(known)})")
    return known[text.upper()]
