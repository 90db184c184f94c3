"""Weights, and the modules that declare them. A weight is declared once, by the layer that uses it, and its name in the
file follows from where it stands: `self.attn_q = Linear(...)` in the block number 3 holds blk.3.attn_q.weight.

Owns that naming; knows no file, no graph and no device.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from pyggml.tensor import Tensor

INPUT_LAYER = -1
"""Of weights that turn tokens into embeddings; always on the local CPU."""


class Weight:
    """One tensor that a model has, or may have.

    ne        its shape, innermost first
    required  whether a file without it is refused
    shared    whether its name says nothing of the layer, although each layer has it (rope_freqs.weight)
    bare      whether it is called as the attribute alone (blk.0.ssm_a), not as module and attribute
    alone     whether it is called as the module alone (blk.0.ffn_norm)
    name      in the file, given by `bind`
    layer     INPUT_LAYER, the number of its block, or n_layer for what follows the blocks; given by `bind`
    tensor    once the model is loaded; None where the file has no such tensor
    """

    __slots__ = ("alone", "bare", "layer", "name", "ne", "required", "shared", "tensor")

    def __init__(self, *ne: int, required: bool = True, shared: bool = False, bare: bool = False) -> None:
        self.ne = ne
        self.required = required
        self.shared = shared
        self.bare = bare
        self.alone = False
        self.name = ""
        self.layer = INPUT_LAYER
        self.tensor: Tensor | None = None

    @property
    def there(self) -> bool:
        return self.tensor is not None

    @property
    def value(self) -> Tensor:
        """The tensor of a weight that must be there."""
        assert self.tensor is not None, f"{self.name} is not loaded"
        return self.tensor


class Module:
    """A part of a model. Its attributes that are weights, modules, or lists of modules belong to it.

    `attribute` is what the module is called in the one that holds it, `il` the number of the block that it is part of;
    both are given by `bind`.
    """

    at_input = False  # whether its weights turn tokens into embeddings

    attribute = ""
    il = 0
    number: int | None = None
    """Of a block that uses another one's weights: that one's number, in their names."""

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of it, or items of its lists, in order."""
        for value in vars(self).values():
            if isinstance(value, Module):
                yield value
            elif isinstance(value, list):
                yield from (item for item in value if isinstance(item, Module))

    def own(self) -> Iterator[Weight]:
        """The weights that it declares itself."""
        return (value for value in vars(self).values() if isinstance(value, Weight))

    def wanted(self, tensors: Mapping[str, Any]) -> Iterator[Weight]:
        """Of its own weights those that a file with these tensors (by name) has, or must have."""
        return self.own()

    def passed_over(self, tensors: Container[str]) -> Iterator[str]:
        """Names of tensors that a file may hold beside this module's, although no node reads them."""
        return iter(())

    def modules(self) -> Iterator[Module]:
        """This one and all below it."""
        yield self
        for child in self.children():
            yield from child.modules()

    def tensors(self) -> list[Tensor]:
        """The weights of this module and all below it that are there."""
        weights = [weight.tensor for module in self.modules() for weight in module.own()]
        return [t for t in weights if t is not None]

    def label(self, kind: str = "") -> str:
        """What a node that comes of this module is called: its attribute and the number of its block."""
        return f"{self.attribute}{kind}-{self.il}"


def bind(module: Module, n_layer: int) -> None:
    """Give every module its attribute and block, every weight its name and layer. Outer modules add nothing to a name but
    the number of the block, which is that of the item in the list that is called `blk`."""
    _bind(module, "", "", n_layer)


def _bind(module: Module, attribute: str, prefix: str, layer: int) -> None:
    if module.at_input:
        layer = INPUT_LAYER
    module.attribute, module.il = attribute, layer
    for name, value in vars(module).items():
        if isinstance(value, Weight):
            plain = name if value.bare else attribute if value.alone else f"{attribute}.{name}"
            value.name = plain if value.shared else prefix + plain
            value.layer = layer
        elif isinstance(value, Module):
            _bind(value, name, prefix, layer)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Module):
                    _bind(item, name, f"{name}.{i if item.number is None else item.number}.", i)
