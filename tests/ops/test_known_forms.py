"""Nodes that were found well-formed are not looked at again, unless something that their rule looks at is another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_rules import FOREIGN, t

from pyggml import ops
from pyggml.backend.reference import ReferenceDevice
from pyggml.dtypes import GGMLType
from pyggml.errors import ShapeError, UnsupportedError
from pyggml.ops import Op, rules
from pyggml.tensor import Tensor, pack_params


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_node_is_known_again_by_all_that_its_rule_looks_at(data: st.DataObject) -> None:
    """A right node, then the same one with one field damaged: asked with what the first left behind, and without."""
    make = data.draw(st.sampled_from(FOREIGN))
    node = make()
    rules.check(node)
    operand = data.draw(st.sampled_from([node, *(s for s in node.src if s is not None)]))
    what = data.draw(st.sampled_from(["type", "ne", "nb", "op_params", "src"]))
    if what == "type":
        operand.type = data.draw(st.sampled_from(list(GGMLType)))
    elif what == "op_params":
        words = bytearray(node.op_params)
        words[data.draw(st.integers(0, 63))] ^= 1 << data.draw(st.integers(0, 7))
        node.op_params = bytes(words)
    elif what == "src":
        node.src = data.draw(st.sampled_from([node.src[:-1], (*node.src, None), (*node.src, node), node.src[::-1]]))
    else:
        values = list(getattr(operand, what))
        index = data.draw(st.integers(0, 3))
        values[index] = max(0, values[index] + data.draw(st.sampled_from([-1, 1, 32])))
        setattr(operand, what, tuple(values))
    answers = []
    for known in (rules._well_formed, rules.Forms()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "_well_formed", known)
            try:
                rules.check(node)
                answers.append("")
            except (ShapeError, UnsupportedError) as error:
                answers.append(str(error))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("lacks", range(6))
def test_a_form_that_lacks_something_is_noticed(lacks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above, for forms without the op, its parameters, type, shape, strides, or sources."""

    def part(node: Tensor) -> rules.Form:
        form = whole(node)
        return (*form[:lacks], *form[lacks + 1 :]) if lacks < 5 else form[:5]

    whole = rules.form_of
    monkeypatch.setattr(rules, "form_of", part)
    monkeypatch.setattr(rules, "_well_formed", rules.Forms())
    right = {  # a right node, and a wrong one that differs by what is left out
        0: (ops.sqr(t(4, 3)), Tensor(GGMLType.F32, (4, 3), op=Op.SUM_ROWS, src=(t(4, 3),))),
        1: (ops.rms_norm(t(4), 1.0), Tensor(GGMLType.F32, (4,), op=Op.RMS_NORM, op_params=pack_params("f", -1.0), src=(t(4),))),
        2: (ops.sqr(t(4)), Tensor(GGMLType.I32, (4,), op=Op.SQR, src=(t(4),))),
        3: (ops.sqr(t(4, 3, 1)), Tensor(GGMLType.F32, (4, 3, 2), (4, 16, 48, 48), op=Op.SQR, src=(t(4, 3, 1),))),
        4: (ops.set_rows(t(4, 3), t(4, 2), Tensor(GGMLType.I64, (2,))),
            Tensor(GGMLType.F32, (4, 3), (4, 32, 96, 96), op=Op.SET_ROWS, src=(t(4, 2), Tensor(GGMLType.I64, (2,)), t(4, 3)))),
        5: (ops.sqr(t(4)), Tensor(GGMLType.F32, (4,), op=Op.SQR, src=(t(5),))),
    }  # fmt: skip
    good, bad = right[lacks]
    rules.check(good)
    rules.check(bad)  # not noticed
    monkeypatch.setattr(rules, "form_of", whole)
    with pytest.raises(ShapeError):
        rules.check(bad)


def test_a_known_form_in_another_place_is_held_against_its_sources() -> None:
    device = ReferenceDevice()
    buffer = device.alloc_buffer(256)
    for at, refused in ((64, False), (8, True), (64, False), (8, True)):
        a = t(4, 3)
        node = ops.mul_mat(a, t(4, 3))
        buffer.place(a, 0)
        buffer.place(node, at)
        if refused:
            with pytest.raises(ShapeError, match="overlaps source 0"):
                rules.check(node)
        else:
            rules.check(node)


def test_no_more_forms_are_kept_than_there_is_room_for() -> None:
    forms = rules.Forms()
    for i in range(3 * rules.MAX_FORMS):
        forms.add((i,))
        assert (i,) in forms and len(forms) <= rules.MAX_FORMS
