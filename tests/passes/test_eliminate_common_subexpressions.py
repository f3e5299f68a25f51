"""eliminate-common-subexpressions: merged where nothing can tell the two apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rewrite_kit import apply, ops

from joulec.ir.module import Module
from joulec.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions as Cse

Parse = Callable[..., Module]
X = np.arange(4, dtype=np.float32)


def test_equal_nodes_and_initializers_merge_and_outputs_keep_their_names(parse: Parse) -> None:
    module = parse(
        "agraph (float[4] x) => (float[4] y, float[4] z) <float[1] a = {2.0}, float[1] b = {2.0}> "
        "{ p = Mul(x, a) q = Mul(x, b) r = Exp(p) s = Exp(q) y = Add(r, s) z = Exp(q) }"
    )
    apply(module, Cse(), {"x": X})
    assert ops(module) == ["Mul", "Exp", "Add"]
    assert list(module.graph.initializers) == ["a"]
    assert [value.name for value in module.graph.outputs] == ["y", "z"]


def test_different_masks_zeros_and_random_numbers_stay_apart(parse: Parse) -> None:
    module = parse(
        "agraph (float[4] x) => (float[4] y) <float[2] a = {0.0,0.0}, float[2] b = {0.0,0.0}, "
        "float[2] c = {-0.0,0.0}> { r = RandomNormal<shape=[4]>() s = RandomNormal<shape=[4]>() "
        "t = Concat<axis=0>(a, b) u = Concat<axis=0>(a, c) v = Add(r, s) w = Add(t, u) k = Add(v, w) y = Add(k, x) }"
    )
    module.masks["b"] = np.array([False, True])
    apply(module, Cse())
    assert ops(module).count("RandomNormal") == 2
    assert list(module.graph.initializers) == ["a", "b", "c"]


def test_a_branch_uses_what_the_outer_graph_computed(parse: Parse) -> None:
    module = parse(
        """agraph (bool c, float[4] x) => (float[4] y, float[4] e) {
            e = Exp(x)
            y = If (c) <then_branch = t () => (float[4] u) { f = Exp(x) u = Neg(f) },
                        else_branch = s () => (float[4] v) { v = Abs(x) }>
        }"""
    )
    apply(module, Cse(), {"c": np.array(True), "x": X})
    assert module.node_count() == 4
