"""simplify-movement: parts that are cut out of one value come out of one Split, or keep the dimension at once."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fusion_kit import build, numbers
from rewrite_kit import apply, ops

from joulec.ir.module import Module
from joulec.passes.eliminate_identity import EliminateIdentity
from joulec.passes.simplify_movement import SimplifyMovement

X = numbers(3, 4, 6)
F = {f"i{n}": np.array([n]) for n in range(5)} | {
    "s1": np.array(1), "sneg": np.array(-1), "end": np.array([2**63 - 1]), "neg": np.array([-1]), "neg2": np.array([-2]),
    "i12": np.array([1, 2]), "i23": np.array([2, 3]), "i21": np.array([2, 1]), "ineg": np.array([-2, -1]),
    "zeros": np.array([0, 0]), "ends": np.array([2**63 - 1] * 2), "axes": np.array([0, 2]), "ones": np.array([1, 1]),
}  # fmt: skip


def moved(body: str, opset: int = 17, head: str = "(float[3,4,6] x) => (float[A,B,C] y)") -> list[str]:
    used = set(re.findall(r"\w+", body))
    made = build(f"{head} {{ {body} }}", opset, **{name: array for name, array in F.items() if name in used})
    apply(made, SimplifyMovement(), {"x": X})
    return ops(made)


@pytest.mark.parametrize("index", ["s1", "sneg"])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_picked_part_keeps_its_dimension(index: str, opset: int) -> None:
    back = "Unsqueeze(g, i1)" if opset >= 13 else "Unsqueeze<axes = [1]>(g)"
    assert moved(f"g = Gather<axis = -2>(x, {index}) y = {back}", opset) == ["Gather"]


@pytest.mark.parametrize(
    "body",
    ["g = Gather<axis = 1>(x, s1) y = Unsqueeze(g, i0)", "g = Gather<axis = 1>(x, i1) y = Unsqueeze(g, i1)"],
)
def test_other_dimensions_are_added_by_themselves(body: str) -> None:
    head = "(float[3,4,6] x) => (float[A,B,C,D] y)" if "i1) y" in body else "(float[3,4,6] x) => (float[A,B,C] y)"
    assert moved(body, 17, head) == ["Gather", "Unsqueeze"]


def test_a_picked_part_with_another_reader_stays() -> None:
    head = "(float[3,4,6] x) => (float[A,B,C] y, float[D,E] z)"
    assert moved("g = Gather<axis = 1>(x, s1) y = Unsqueeze(g, i1) z = Neg(g)", 17, head) == ["Gather", "Unsqueeze", "Neg"]


TWO = "(float[3,4,6] x) => (float[A,B,C] y, float[D,E,F] z)"


@pytest.mark.parametrize("opset", [10, 12, 13, 17, 18])
@pytest.mark.parametrize(
    "parts",
    [
        "a = Slice(x, i0, i1, i1) b = Slice(x, i1, end, i1)",
        "b = Slice(x, neg2, end, i1) a = Slice(x, i0, i2, neg2)",
        "a = Gather<axis = 1>(x, i0) b = Slice(x, i1, i4, i1)",
        "a = Slice(x, i0, i2, i1) b = Gather<axis = 1>(x, ineg)",
    ],
)
def test_parts_that_tile_a_dimension_are_one_split(parts: str, opset: int) -> None:
    assert moved(f"{parts} y = Neg(a) z = Abs(b)", opset, TWO) == ["Split", "Neg", "Abs"]


@pytest.mark.parametrize(
    "parts",
    [
        "a = Slice(x, i0, i1, i1) b = Slice(x, i2, i4, i1)",  # a gap
        "a = Slice(x, i0, i2, i1) b = Slice(x, i1, i4, i1)",  # both have one
        "a = Slice(x, i0, i2, i1) b = Slice(x, i2, i3, i1)",  # the last is nobody's
        "a = Slice(x, i0, i1, i0) b = Slice(x, i1, i4, i1)",  # different dimensions
        "a = Slice(x, i0, end, i1, i2) b = Slice(x, i1, end, i1, i2)",
        "a = Slice(x, i0, i1, i1) b = Gather<axis = 1>(x, i21)",
    ],
)
def test_other_parts_stay(parts: str) -> None:
    assert "Split" not in moved(f"{parts} y = Neg(a) z = Abs(b)", 17, TWO)


def test_parts_of_an_unknown_dimension_stay() -> None:
    head = "(float[3,T,6] x) => (float[A,B,C] y, float[D,E,F] z)"
    assert "Split" not in moved("a = Slice(x, i0, i1, i1) b = Slice(x, i1, end, i1) y = Neg(a) z = Abs(b)", 17, head)


def test_the_split_stands_before_all_its_parts() -> None:
    body = "n = Neg(x) b = Slice(n, i2, end, i1) z = Abs(b) a = Slice(n, i0, i2, i1) y = Exp(a)"
    assert moved(body, 17, TWO) == ["Neg", "Split", "Abs", "Exp"]


def test_graph_outputs_may_be_parts() -> None:
    assert moved("y = Slice(x, i0, i2, i1) z = Slice(x, i2, i4, i1)", 17, TWO) == ["Split"]


# -- means of one element, slices of everything -----------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(("keep", "left"), [(1, []), (0, ["Squeeze"])])
def test_a_mean_of_one_element_is_that_element(opset: int, keep: int, left: list[str]) -> None:
    rank = "A,B,C" if keep else "A,B"
    mean = f"ReduceMean<keepdims = {keep}>(a, i1)" if opset >= 18 else f"ReduceMean<axes = [1], keepdims = {keep}>(a)"
    made = build(f"(float[3,1,6] x) => (float[{rank}] y) {{ a = Neg(x) m = {mean} y = Abs(m) }}", opset, i1=np.array([1]))
    feed = X[:, :1].copy()
    feed[0, 0, 0], feed[1, 0, 0], feed[2, 0, 0] = np.inf, np.nan, -0.0
    apply(made, SimplifyMovement(), {"x": feed})
    assert ops(made) == ["Neg", *left, "Abs"]


def test_a_mean_of_one_keeps_the_sign_of_zero() -> None:
    made = build("(float[2,1] x) => (float[2,1] y) { a = Neg(x) m = ReduceMean<axes = [1]>(a) y = Reciprocal(m) }", 13)
    apply(made, SimplifyMovement(), {"x": np.array([[0.0], [-0.0]], np.float32)})
    assert ops(made) == ["Neg", "Reciprocal"]


def whole(body: str) -> Module:
    used = set(re.findall(r"\w+", body))
    made = build(f"(float[N,M,K] x) => (float[A,B,C] y) {{ {body} }}", 17, **{n: a for n, a in F.items() if n in used})
    apply(made, EliminateIdentity(), {"x": X})
    return made


@pytest.mark.parametrize("cut", ["x, zeros, ends", "x, zeros, ends, axes", "x, i0, end, i2, i1", "x, zeros, ends, axes, ones"])
def test_a_slice_from_the_first_to_the_end_goes(cut: str) -> None:
    assert ops(whole(f"a = Slice({cut}) y = Neg(a)")) == ["Neg"]


@pytest.mark.parametrize("cut", ["x, i0, end, i2, i2", "x, i1, end, i1", "x, i0, neg, i1", "x, end, i0, i1, neg"])
def test_other_slices_stay(cut: str) -> None:
    assert ops(whole(f"a = Slice({cut}) y = Neg(a)")) == ["Slice", "Neg"]
