"""Sequences of known content become tensors, CastLike a Cast, and a constant output a Constant."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build
from rewrite_kit import apply, ops, reasons, run

from joulec.ir.module import Module
from joulec.passes.fold_constants import FoldConstants

X = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
NUMBERS = {
    "zero": np.array(0), "one": np.array(1), "two": np.array(2), "three": np.array(3), "four": np.array(4),
    "last": np.array(-1), "far": np.array(9), "parts": np.array([1, 2, 3]), "nine": np.array(9, np.int32),
}  # fmt: skip


def module(body: str, opset: int = 18, head: str = "(float[2,6,2] x, float[2,2,2] z) => (float[A,B,C] y)") -> Module:
    used = {name: array for name, array in NUMBERS.items() if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()}
    return build(f"{head} {{ {body} }}", opset, **used)


def folded(body: str, opset: int = 18, head: str = "(float[2,6,2] x, float[2,2,2] z) => (float[A,B,C] y)") -> list[str]:
    """The operators left; the outputs are the same bits."""
    made = module(body, opset, head)
    feed = {"x": X, "z": X[:, :2]}
    apply(made, FoldConstants(), {value.name or "": feed[value.name or ""] for value in made.inputs()})
    return ops(made)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = SplitToSequence<axis = 1>(x, two) a = SequenceAt(s, zero) b = SequenceAt(s, last) y = Add(a, b)", ["Split", "Add"]),
        ("s = SplitToSequence<axis = 1>(x, four) a = SequenceAt(s, zero) b = SequenceAt(s, one) y = Concat<axis = 1>(b, a)", ["Split", "Concat"]),
        ("s = SplitToSequence<axis = 1>(x, parts) a = SequenceAt(s, two) b = SequenceAt(s, one) y = Concat<axis = -2>(a, b)", ["Split", "Concat"]),
        ("s = SplitToSequence<axis = -2>(x, parts) y = SequenceAt(s, two)", ["Slice"]),
        ("s = SplitToSequence<axis = 1>(x, nine) y = SequenceAt(s, zero)", ["Slice"]),
        ("s = SplitToSequence<axis = 1>(x) a = SequenceAt(s, two) b = SequenceAt(s, last) y = Sub(a, b)", ["Split", "Sub"]),
        ("s = SplitToSequence<axis = 1, keepdims = 1>(x) y = SequenceAt(s, two)", ["Slice"]),
        ("s = SplitToSequence<axis = 1>(x, two) l = SequenceLength(s) f = Cast<to = 1>(l) y = Mul(x, f)", ["Mul"]),
        ("s = SequenceConstruct(z, x) y = SequenceAt(s, one)", ["Identity"]),
        ("s = SequenceConstruct(x, z) a = SequenceAt(s, last) y = Neg(a)", ["Neg"]),
        ("s = SequenceConstruct(x, z) y = ConcatFromSequence<axis = 1>(s)", ["Concat"]),
        ("e = SequenceEmpty() s = SequenceInsert(e, x) t = SequenceInsert(s, z, zero) y = ConcatFromSequence<axis = 1>(t)", ["Concat"]),
        ("s = SequenceConstruct(x, z) t = SequenceErase(s, zero) u = SequenceInsert(t, x) y = ConcatFromSequence<axis = 1>(u)", ["Concat"]),
    ],
)
def test_known_sequences(body: str, left: list[str]) -> None:
    assert [op for op in folded(body) if "Sequence" not in op] == left


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18])
def test_split_is_spelled_as_the_opset_has_it(opset: int) -> None:
    body = "s = SplitToSequence<axis = 1>(x, two) a = SequenceAt(s, zero) b = SequenceAt(s, one) y = Add(a, b)"
    assert folded(body, opset) == ["Split", "Add"]


def test_a_dimension_that_is_dropped_is_gathered() -> None:
    head = "(float[2,6,2] x) => (float[A,B] y)"
    body = "s = SplitToSequence<axis = 1, keepdims = 0>(x) a = SequenceAt(s, last) b = SequenceAt(s, one) y = Sub(a, b)"
    assert [op for op in folded(body, head=head) if op != "SplitToSequence"] == ["Gather", "Gather", "Sub"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = SplitToSequence<axis = 1>(x, two) t = SequenceInsert(s, z) y = ConcatFromSequence<axis = 1>(t)", "the sequence is used as a whole"),
        ("s = SplitToSequence<axis = 1, keepdims = 0>(x) a = SequenceAt(s, far) y = Identity(a)", "it is not known how many parts the sequence has"),
        ("s = SequenceConstruct(z, z) y = ConcatFromSequence<axis = 1, new_axis = 1>(s)", "each part would need an Unsqueeze of its own"),
    ],
)
def test_what_is_not_known_stays(body: str, reason: str) -> None:
    assert reason in reasons(apply(module(body), FoldConstants()))


def test_sizes_that_are_not_known_keep_the_sequence() -> None:
    made = module("s = SplitToSequence<axis = 1>(x, two) y = SequenceAt(s, zero)", head="(float[2,N,2] x) => (float[A,B,C] y)")
    assert not apply(made, FoldConstants(), {"x": X}).changed


def test_one_part_under_two_output_names_stays() -> None:
    body = "s = SplitToSequence<axis = 1>(x, two) y = SequenceAt(s, one) w = SequenceAt(s, one)"
    made = module(body, head="(float[2,6,2] x) => (float[A,B,C] y, float[A,B,C] w)")
    assert "two graph outputs, or an output and a value, would be one" in reasons(apply(made, FoldConstants(), {"x": X}))


def test_two_parts_that_are_outputs_keep_their_names() -> None:
    body = "s = SplitToSequence<axis = 1>(x, two) y = SequenceAt(s, one) w = SequenceAt(s, zero)"
    made = module(body, head="(float[2,6,2] x) => (float[A,B,C] y, float[A,B,C] w)")
    apply(made, FoldConstants(), {"x": X})
    assert ops(made) == ["Split"]


def test_a_sequence_that_a_branch_takes_apart_stays() -> None:
    branch = "g () => (float[A,B,C] t) { t = SequenceAt(s, one) }"
    other = "h () => (float[A,B,C] u) { u = SequenceAt(s, zero) }"
    body = f"s = SplitToSequence<axis = 1>(x, two) y = If(on) <then_branch = {branch}, else_branch = {other}>"
    made = module(body, head="(float[2,6,2] x, bool on) => (float[A,B,C] y)")
    result = apply(made, FoldConstants(), {"x": X, "on": np.array(True)})
    assert "it is taken apart in another graph, or in a function" in reasons(result)


# -- CastLike ---------------------------------------------------------------------------------------------------------


def test_a_cast_to_the_type_of_something_known_is_folded() -> None:
    made = build("(float16[3] x) => (float16[3] y) { c = CastLike(half, x) y = Mul(x, c) }", 18, half=np.array(0.5, np.float32))
    apply(made, FoldConstants(), {"x": np.ones(3, np.float16)})
    assert ops(made) == ["Mul"]


def test_a_cast_like_inside_a_function_stays() -> None:
    body = "k = Constant<value_float = 1.0>() c = CastLike(k, a) b = Add(a, c)"
    function = f'<domain: "own", opset_import: ["" : 18]> f (a) => (b) {{ {body} }}'
    made = build("(double[3] x) => (double[3] y) { y = own.f(x) }", 18, function)
    made.model.opset_imports["own"] = 1
    result = apply(made, FoldConstants(), {"x": np.ones(3)})
    assert not any(rewrite.rule == "known-cast-like" for rewrite in result.rewrites)


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_that_is_known_becomes_a_constant() -> None:
    made = build("(float[2,3] x) => (int64[2] y, float[2,3] w) { y = Shape(x) w = Neg(x) }")
    apply(made, FoldConstants(), {"x": np.ones((2, 3), np.float32)})
    assert ops(made) == ["Neg"]
    assert [value.name for value in made.graph.outputs] == ["y", "w"]


def test_an_output_computed_from_constants_becomes_a_constant() -> None:
    made = build("(float[2] x) => (float[2] y, float[2] w) { y = Add(a, a) w = Add(x, y) }", a=np.ones(2, np.float32))
    apply(made, FoldConstants(), {"x": np.ones(2, np.float32)})
    assert ops(made) == ["Add"]


def test_a_size_that_is_not_known_stays_computed() -> None:
    made = build("(float[N,3] x) => (int64[2] y) { y = Shape(x) }")
    assert not apply(made, FoldConstants(), {"x": np.ones((2, 3), np.float32)}).changed
    assert run(made, {"x": np.ones((4, 3), np.float32)})["y"].tolist() == [4, 3]
