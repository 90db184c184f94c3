"""Which code multiplies with weights: GraphBuilder alone, so that adapters are added in one place."""

import sys
from typing import Any

import pytest
from arch_files import NAMES, NOT_THERE, known
from peer_archs import ArchPeer

from pyggml import ops
from pyggml.backend.reference import ReferenceDevice
from pyggml.model.graph import GraphBuilder
from pyggml.model.model import Model
from pyggml.tensor import Tensor

ALLOWED = {f"GraphBuilder.{name}" for name in ("linear", "linear_id", "linear_each")}


def callers(path: Any, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The functions that call MUL_MAT or MUL_MAT_ID with a weight of this file's model as the first source, when a graph of one
    token is built."""
    calls: list[tuple[str, Tensor]] = []

    def noting(plain: Any) -> Any:
        def noted(a: Tensor, *args: Any, **more: Any) -> Tensor:
            calls.append((sys._getframe(1).f_code.co_qualname, a.view_src or a))
            result: Tensor = plain(a, *args, **more)
            return result

        return noted

    with monkeypatch.context() as patch:
        for name in ("mul_mat", "mul_mat_id"):
            patch.setattr(ops, name, noting(getattr(ops, name)))
        model = Model.load(path, cpu=ReferenceDevice())
    weights = {id(tensor) for tensor in model.tensors()}
    model.close()
    return {caller for caller, a in calls if id(a) in weights}


@pytest.mark.parametrize("name", [name for name in NAMES if known(name) and name not in NOT_THERE])
def test_weights_are_multiplied_with_in_one_place(
    arch_peer: ArchPeer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = callers(arch_peer.files()[name], monkeypatch)
    assert found and found <= ALLOWED, found


def test_another_place_is_found(arch_peer: ArchPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: GraphBuilder, weight: Tensor, x: Tensor, name: str = "") -> Tensor:
        return ops.mul_mat(weight, x, name=name)

    monkeypatch.setattr(GraphBuilder, "linear_each", elsewhere)
    found = callers(arch_peer.files()["deepseek2-moe"], monkeypatch)
    assert any("elsewhere" in caller for caller in found), found
