"""simplify-shapes: one computation for each size, whatever the sizes are; what stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rewrite_kit import apply, ops

from joulec.ir.module import Module
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.simplify_shapes import SimplifyShapes

Parse = Callable[..., Module]
HEAD = (
    "agraph (float[N,M,4] x, float[N,K] z) => (int64[a] y) <int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0}, "
    "int64[1] a1 = {1}, int64[1] two = {2}>"
)
FEEDS = [
    {"x": np.ones((n, m, 4), np.float32), "z": np.ones((n, k), np.float32)} for n, m, k in ((2, 3, 5), (0, 1, 2), (1, 0, 0))
]


def simplified(body: str, parse: Parse) -> list[str]:
    found: list[list[str]] = []
    for feed in FEEDS:
        module = parse(f"{HEAD} {{ {body} }}")
        apply(module, SimplifyShapes(), feed)
        apply(module, EliminateDeadCode(), feed)
        found.append(ops(module))
    assert found[0] == found[1] == found[2]
    return found[0]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # the same size of another value
        ("r = Relu(x) s = Shape(x) t = Shape(r) y = Add(s, t)", ["Shape", "Add"]),
        # two ways to the same numbers
        ("s = Shape(x) n = Gather(s, a0) d = Mul(n, two) p = Shape(z) m = Slice(p, a0, a1) e = Add(m, m) y = Concat<axis=0>(d, e)", ["Shape", "Gather", "Mul", "Concat"]),
        # assembled from one Shape
        ("s = Shape(x) n = Gather(s, i0) m = Gather(s, i1) u = Unsqueeze(n, a0) v = Unsqueeze(m, a0) c = Concat<axis=0>(v, u) y = Neg(c)", ["Shape", "Gather", "Neg"]),
        # a run inside of a Concat
        ("s = Shape(x) n = Gather(s, i0) m = Gather(s, i1) u = Unsqueeze(n, a0) v = Unsqueeze(m, a0) c = Concat<axis=0>(two, v, u) y = Neg(c)", ["Shape", "Gather", "Concat", "Neg"]),
        # the longer way round to one dimension
        ("s = Shape(x) n = Gather(s, i0) u = Unsqueeze(n, a0) d = Mul(u, two) e = Div(d, two) y = Neg(e)", ["Shape", "Gather", "Neg"]),
    ],
)  # fmt: skip
def test_what_is_computed_once(body: str, left: list[str], parse: Parse) -> None:
    assert simplified(body, parse) == left


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = Shape(x) t = Shape(z) y = Concat<axis=0>(s, t)", ["Shape", "Shape", "Concat"]),  # M is not K
        ("s = Shape(x) d = Add(s, two) e = Mul(s, two) y = Concat<axis=0>(d, e)", ["Shape", "Add", "Mul", "Concat"]),
        ("s = Shape(x) c = Cast<to=6>(s) d = Cast<to=7>(c) e = Neg(c) f = Cast<to=7>(e) y = Add(d, f)", ["Shape", "Cast", "Neg", "Cast", "Add"]),
    ],
)  # fmt: skip
def test_what_stays(body: str, left: list[str], parse: Parse) -> None:
    assert simplified(body, parse) == left


def test_a_branch_uses_what_was_computed_before_it_and_not_the_other_way_round(parse: Parse) -> None:
    module = parse(
        """agraph (bool c, float[N,M] x) => (int64[a] y, int64[b] w) {
            s = Shape(x)
            y = If (c) <then_branch = t () => (int64[2] u) { r = Relu(x) p = Shape(r) u = Neg(p) },
                        else_branch = e () => (int64[2] v) { q = Abs(x) o = Shape(q) d = Add(o, o) v = Neg(d) }>
            d2 = Add(s, s) w = Neg(d2)
        }"""
    )
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": np.ones((2, 3), np.float32)}
        one = module.clone()
        apply(one, SimplifyShapes(), feed)
        apply(one, EliminateDeadCode(), feed)
        assert one.node_count() == 7  # Shape, If, Neg | Add, Neg | Add, Neg


def test_graph_outputs_keep_their_names(parse: Parse) -> None:
    module = parse("agraph (float[N,M] x) => (int64[2] y, int64[2] w) { y = Shape(x) w = Shape(x) }")
    apply(module, SimplifyShapes(), {"x": np.ones((2, 3), np.float32)})
    assert ops(module) == ["Shape", "Shape"]
    assert [value.name for value in module.graph.outputs] == ["y", "w"]
