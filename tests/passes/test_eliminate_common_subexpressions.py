"""eliminate-common-subexpressions: merged where nothing can tell the two apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from rewrite_kit import apply, ops

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions as Cse

Parse = Callable[..., Module]
X = np.arange(4, dtype=np.float32)


def ops_of(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


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


BRANCHES = """agraph (bool c, float[4] x) => (float[4] y) {
    y = If (c) <
        then_branch = t () => (float[4] u) <float[4] k = {1.0, 2.0, 3.0, 4.0}> { e = Exp(x) m = Mul(e, k) r = Relu(m) u = Neg(r) },
        else_branch = s () => (float[4] v) <float[4] l = {1.0, 2.0, 3.0, 4.0}> { f = Exp(x) n = Mul(f, l) v = Abs(n) }>
}"""


@pytest.mark.parametrize("decided", [True, False])
def test_what_both_branches_compute_is_computed_in_front(parse: Parse, decided: bool) -> None:
    """Their equal weights first: they make the products equal."""
    module = parse(BRANCHES)
    apply(module, Cse(), {"c": np.array(decided), "x": X})
    assert ops(module) == ["Exp", "Mul", "If"]
    assert [ops_of(branch) for branch in walk.subgraphs(list(module.graph)[-1])] == [["Relu", "Neg"], ["Abs"]]
    assert len(module.graph.initializers) == 1


def test_what_one_branch_computes_stays_there(parse: Parse) -> None:
    text = BRANCHES.replace("f = Exp(x)", "f = Log(x)").replace("{1.0, 2.0, 3.0, 4.0}> { f", "{9.0, 2.0, 3.0, 4.0}> { f")
    module = parse(text)
    apply(module, Cse(), {"c": np.array(True), "x": X})
    assert ops(module) == ["If"] and not module.graph.initializers


def test_results_of_branches_stay_in_them(parse: Parse) -> None:
    module = parse(
        """agraph (bool c, float[4] x) => (float[4] y) {
            y = If (c) <then_branch = t () => (float[4] u) { u = Exp(x) }, else_branch = s () => (float[4] v) { v = Exp(x) }>
        }"""
    )
    apply(module, Cse(), {"c": np.array(True), "x": X})
    assert ops(module) == ["If"]


def test_equal_weights_of_bodies_are_stored_around_them_with_their_masks(parse: Parse) -> None:
    module = parse(BRANCHES.replace("f = Exp(x)", "f = Log(x)").replace("4.0}", "0.0}"))
    module.masks |= {"k": np.array([True] * 3 + [False]), "l": np.array([True] * 3 + [False])}
    apply(module, Cse(), {"c": np.array(False), "x": X})
    (name,) = module.graph.initializers
    assert not module.masks[name][3]
    other = parse(BRANCHES.replace("f = Exp(x)", "f = Log(x)").replace("4.0}", "0.0}"))
    other.masks["k"] = np.array([True] * 3 + [False])
    apply(other, Cse(), {"c": np.array(False), "x": X})
    assert not other.graph.initializers, "weights with different masks stay apart"


def test_what_both_branches_of_a_function_compute_needs_no_type(parse: Parse) -> None:
    module = parse(
        "agraph (bool c, float[4] x) => (float[4] y) { y = own.f(c, x) }", 19,
        """<domain: "own", opset_import: ["" : 19]> f (c, x) => (y) {
            y = If (c) <then_branch = t () => (u) { e = Exp(x) u = Neg(e) }, else_branch = s () => (v) { f = Exp(x) v = Abs(f) }>
        }""",
    )  # fmt: skip
    apply(module, Cse())
    (function,) = module.model.functions.values()
    assert ops_of(function.graph) == ["Exp", "If"]
