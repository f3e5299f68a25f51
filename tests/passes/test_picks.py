"""simplify-movement: what Gather picks, products of flat rows, and what stays."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers
from rewrite_kit import apply, ops, reasons

from joulec.ir.module import Module
from joulec.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from joulec.passes.simplify_movement import SimplifyMovement

X = numbers(3, 4, 6, 8)
F = {
    "ones": np.array([1, 1, 1]), "uneven": np.array([1, 2]), "i0": np.array([0]), "i1": np.array([1]), "i2": np.array([2]), "i3": np.array([3]),
    "i4": np.array([4]), "end": np.array([2**63 - 1]), "neg": np.array([-1]), "neg2": np.array([-2]), "three": np.array([3]), "last": np.array([-1]),
}  # fmt: skip
HEAD = "(float[3,4,6,8] x) => (float[A,B,C,D] y)"


def module(body: str, head: str = HEAD, opset: int = 17, **more: np.ndarray) -> Module:
    used = set(re.findall(r"\w+", body))
    return build(f"{head} {{ {body} }}", opset, **{name: array for name, array in {**F, **more}.items() if name in used})


def moved(body: str, head: str = HEAD, opset: int = 17) -> list[str]:
    made = module(body, head, opset)
    apply(made, SimplifyMovement(), {"x": X})
    return ops(made)


SMALL = "(float[3,4,6,8] x) => (float[B,C,D] y)"
SPLIT = "a, b, c = Split<axis = 0>(x, ones) "


@pytest.mark.parametrize(
    ("body", "opset", "left"),
    [
        ("a = Slice(x, i1, i2, i0) y = Squeeze(a, i0)", 17, ["Gather"]),
        ("a = Slice(x, neg, end, i0) y = Squeeze(a, i0)", 17, ["Gather"]),
        ("a = Slice(x, neg2, neg, i1) y = Squeeze(a, i1)", 17, ["Gather"]),
    ],
)
def test_parts_of_one_are_picked(body: str, opset: int, left: list[str]) -> None:
    assert [op for op in moved(body, SMALL, opset) if op not in ("Add", "Mul")] == left


@pytest.mark.parametrize(
    ("body", "head", "kept"),
    [
        (SPLIT + "d = Squeeze(a, i0) e = Squeeze(b, i0) y = Mul(d, e)", SMALL, "Split"),  # slower as Gathers
        ("a = Slice(x, i1, i2, i0) b = Squeeze(a, i0) c = Relu(a) y = Add(b, c)", HEAD, "Slice"),
        ("a = Slice(x, i1, i3, i0) b = Slice(a, i0, i1, i1) y = Squeeze(b, i1)", SMALL, "Slice"),
    ],
)
def test_what_is_not_only_picked_stays(body: str, head: str, kept: str) -> None:
    assert kept in moved(body, head)


def test_a_part_that_is_an_output_stays() -> None:
    head = "(float[3,4,6,8] x) => (float[A,B,C,D] y, float[E,G,H] z)"
    assert moved("y, b, c = Split<axis = 0>(x, ones) d = Squeeze(b, i0) z = Relu(d)", head) == ["Split", "Squeeze", "Relu"]


# -- rolls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "a = Slice(x, i2, end, i1) b = Slice(x, i0, i2, i1) y = Concat<axis = 1>(a, b)",
        "a = Slice(x, neg2, end, i1) b = Slice(x, i0, neg2, i1) y = Concat<axis = -3>(a, b)",
        "a = Slice(x, i0, end, i1, i2) b = Slice(x, i1, end, i1, i2) y = Concat<axis = 1>(a, b)",
        "a = Slice(x, i3, i4, i1) y = Concat<axis = 1>(a, a, a)",
    ],
)
def test_rolls_are_one_gather(body: str) -> None:
    assert moved(body) == ["Gather"]


BLOCKS = "what lies behind one index is not known to be 32 elements or more"


@pytest.mark.parametrize(
    ("body", "head", "reason"),
    [
        ("a = Slice(x, i2, end, i3) b = Slice(x, i0, i2, i3) y = Concat<axis = 3>(a, b)", HEAD, BLOCKS),
        ("a = Slice(x, i2, end, i1) b = Slice(x, i0, i2, i1) y = Concat<axis = 1>(a, b)", "(float[3,4,N,8] x) => (float[A,B,C,D] y)", BLOCKS),
        ("a = Slice(x, i2, end, i1) b = Slice(x, i0, i2, i1) y = Concat<axis = 1>(a, b)", "(float[3,N,6,8] x) => (float[A,B,C,D] y)", None),
        ("a = Slice(x, i2, end, i1) b = Slice(x, i0, i2, i1) y = Concat<axis = 2>(a, b)", HEAD, None),
        ("a = Slice(x, i2, end, i1) b = Slice(x, i0, i2, i1) c = Concat<axis = 1>(b, a) d = Relu(a) y = Concat<axis = 1>(a, c, d)", HEAD, None),
        ("a = Slice(x, i4, end, i1) b = Slice(x, end, end, i1) y = Concat<axis = 1>(a, b)", HEAD, None),
    ],
)
def test_other_joins_stay(body: str, head: str, reason: str | None) -> None:
    made = module(body, head)
    result = apply(made, SimplifyMovement(), {"x": X})
    assert "Gather" not in ops(made)
    assert reason is None or reason in reasons(result)


def test_slices_of_one_slice_are_merged_where_all_are() -> None:
    both = "a = Slice(x, i0, end, i2, i2) b = Slice(a, i0, end, i3, i2) c = Slice(a, i1, end, i3, i2) y = Concat<axis = 1>(b, c)"
    assert [op for op in moved(both) if op == "Slice"] == ["Slice"] * 3  # the first has no reader left
    kept = both.replace("Concat<axis = 1>(b, c)", "Concat<axis = 3>(b, c, a)")
    made = module(kept)
    assert not apply(made, SimplifyMovement(), {"x": X}).changed


# -- flat products ----------------------------------------------------------------------------------------------------

W = {"w": numbers(8, 5), "v": numbers(8, 5, seed=2), "b": numbers(5), "b2": numbers(6, 5), "t": np.array([3, -1, 8]), "u": np.array([2, 9, -1, 5]), "keep": np.array([0, -1, 5])}
FLAT = "a = Reshape(x, t) m = MatMul(a, w) p = Add(m, b) "


def test_products_between_reshapes_are_flat() -> None:
    made = module(FLAT + "y = Reshape(p, u)", **W)
    fuse(made, SimplifyMovement())
    assert ops(made) == ["Reshape", "Gemm", "Reshape"]


def test_products_of_the_same_rows_share_them() -> None:
    body = FLAT + "n = MatMul(a, v) q = Add(b, n) r = Reshape(p, u) s = Reshape(q, u) y = Mul(r, s)"
    made = module(body, **W)
    fuse(made, SimplifyMovement())
    fuse(made, EliminateCommonSubexpressions())
    assert sorted(ops(made)) == ["Gemm", "Gemm", "Mul", "Reshape", "Reshape", "Reshape"]


@pytest.mark.parametrize(
    "body",
    [
        FLAT + "y = Reshape(p, keep)",
        FLAT + "r = Reshape(p, u) k = Relu(a) l = Reshape(k, t) z = MatMul(l, w) y = Add(z, b)",
        FLAT.replace("Add(m, b)", "Relu(m)") + "y = Reshape(p, u)",
        FLAT + "r = Reshape(p, u) s = Relu(m) y = Reshape(s, u)",
        "a = Relu(x) m = MatMul(a, w) p = Add(m, b) y = Reshape(p, u)",
    ],
)
def test_other_products_stay(body: str) -> None:
    head = "(float[3,4,6,8] x) => (float[A,B,C] y)" if "keep" in body or "z = " in body else HEAD
    made = module(body, head, **W)
    fuse(made, SimplifyMovement())
    assert "Gemm" not in ops(made)


def test_a_bias_for_each_row_stays() -> None:
    made = module("a = Reshape(x, t) m = MatMul(a, w) p = Add(m, b2) y = Reshape(p, u)", "(float[3,2,3,8] x) => (float[A,B,C,D] y)", **{**W, "u": np.array([-1, 3, 2, 5])})
    fuse(made, SimplifyMovement())
    assert "Gemm" not in ops(made)
