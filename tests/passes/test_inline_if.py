"""inline-if, within fold-constants: a known condition leaves the branch that is taken, with its names, weights, captures."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import apply_rules
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.inline_if import InlineIf

TRUE, FALSE = np.array(True), np.array(False)


def inline(module: Module) -> set[str]:
    """Only this rule, verified; returns the reasons it gave."""
    infer_shapes(module)
    verifier, rewriter = Verifier(module), Rewriter(module, "test")
    apply_rules(rewriter, [InlineIf()])
    verifier.verify(module)
    return {refusal.reason for refusal in rewriter.refusals.values()}


HEAD = "(float[2] x) => (float[2] y)"
TWO = "{{ z = If ({}) <then_branch = tb () => (float[2] u) {{ r = Relu(x) u = Abs(r) }}, else_branch = eb () => (float[2] v) {{ v = Neg(x) }}> y = Sign(z) }}"


@pytest.mark.parametrize(("condition", "left"), [(TRUE, ["Relu", "Abs", "Sign"]), (FALSE, ["Neg", "Sign"])])
def test_the_branch_that_is_taken(condition: np.ndarray, left: list[str]) -> None:
    module = build(f"{HEAD} {TWO.format('c')}", c=condition)
    fuse(module, FoldConstants())
    assert ops(module) == left


@pytest.mark.parametrize("condition", [np.array([True]), np.array([[True]])])
def test_a_condition_of_one_element(condition: np.ndarray) -> None:
    module = build(f"{HEAD} {TWO.format('c')}", c=condition)
    assert inline(module) == set()
    assert ops(module) == ["Relu", "Abs", "Sign"]


def test_a_condition_computed_from_a_static_shape() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { s = Shape(x) k = Constant<value=int64[1] {2}>() e = Equal(s, k) "
        "f = Squeeze(e) y = If (f) <then_branch = tb () => (float[2] u) { u = Relu(x) }, else_branch = eb () => "
        "(float[2] v) { v = Neg(x) }> }"
    )
    fuse(module, FoldConstants())
    assert ops(module) == ["Relu"]


def test_an_output_of_the_graph_keeps_its_name() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { y = If (c) <then_branch = tb () => (float[2] u) { u = Relu(x) }, else_branch = "
        "eb () => (float[2] v) { v = Neg(x) }> }", c=TRUE,
    )  # fmt: skip
    fuse(module, FoldConstants())
    assert [value.name for node in module.graph for value in node.outputs] == ["y"]


def test_several_outputs_one_of_them_unused() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { p, q, r = If (c) <then_branch = tb () => (float[2] u, float[2] w, float[2] s) "
        "{ u = Relu(x) w = Abs(u) s = Neg(u) }, else_branch = eb () => (float[2] v, float[2] m, float[2] n) "
        "{ v = Neg(x) m = Abs(v) n = Relu(v) }> y = Add(p, r) }", c=TRUE,
    )  # fmt: skip
    fuse(module, FoldConstants())
    assert ops(module) == ["Relu", "Abs", "Neg", "Add"]


def test_a_branch_that_hands_out_what_it_captured() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { k = Relu(x) z = If (c) <then_branch = tb () => (float[2] u) { u = Identity(k) }, "
        "else_branch = eb () => (float[2] v) { v = Neg(x) }> y = Abs(z) }", c=TRUE,
    )  # fmt: skip
    branch = next(node for node in module.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    (copy,) = branch
    captured = copy.inputs[0]
    assert captured is not None
    branch.outputs[0] = captured
    branch.remove(copy, safe=True)
    infer_shapes(module)
    rewriter = Rewriter(module, "test")
    apply_rules(rewriter, [InlineIf()])
    assert ops(module) == ["Relu", "Abs"]


def test_weights_of_the_branch_and_their_masks_follow() -> None:
    module = build(
        "(float[2,2] x) => (float[2,2] y) { z = If (c) <then_branch = tb () => (float[2,2] u) "
        "<float[2,2] w = {1.0,0.0,0.0,2.0}> { u = MatMul(x, w) }, "
        "else_branch = eb () => (float[2,2] v) { v = Neg(x) }> y = Relu(z) }", c=TRUE,
    )  # fmt: skip
    mask = np.array([[True, False], [False, True]])
    module.masks["w"] = mask
    fuse(module, FoldConstants())  # verifies masks
    (product, _) = module.graph
    np.testing.assert_array_equal(module.masks[product.inputs[1].name], mask)


def test_names_of_both_branches_and_of_another_if_do_not_meet() -> None:
    branches = "<then_branch = tb () => (float[2] u) { t = Relu(x) u = Abs(t) }, else_branch = eb () => (float[2] v) { s = Neg(x) v = Relu(s) }>"
    module = build(f"{HEAD} {{ p = If (c) {branches} q = If (d) {branches} y = Add(p, q) }}", c=TRUE, d=FALSE)
    fuse(module, FoldConstants())
    assert ops(module) == ["Relu", "Abs", "Neg", "Relu", "Add"]
    names = [value.name for node in module.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_ifs_within_ifs() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { p = If (c) <then_branch = tb () => (float[2] u) { u = If (d) <then_branch = ta () => "
        "(float[2] a) { a = Relu(x) }, else_branch = ea () => (float[2] b) { b = Abs(x) }> }, else_branch = eb () => (float[2] v) "
        "{ v = Neg(x) }> y = Sign(p) }", c=TRUE, d=FALSE,
    )  # fmt: skip
    fuse(module, FoldConstants())
    assert ops(module) == ["Abs", "Sign"]


def test_in_the_body_of_a_loop() -> None:
    module = build(
        "(int64 n, float[2] x) => (float[2] y) { y = Loop (n, , x) <body = g (int64 i, bool k, float[2] p) => (bool k2, float[2] r) "
        "{ k2 = Identity(k) r = If (c) <then_branch = tb () => (float[2] u) <float[1] half = {0.5}> { u = Mul(p, half) }, "
        "else_branch = eb () => (float[2] v) { v = Neg(x) }> }> }", c=TRUE,
    )  # fmt: skip
    fuse(module, FoldConstants(), {"n": np.array(3), "x": numbers(2)})
    body = next(iter(module.graph)).attributes["body"].as_graph()
    assert [node.op_type for node in body] == ["Identity", "Mul"]


def test_an_initializer_cannot_become_a_graph_output() -> None:
    module = build(
        f"{HEAD} {{ y = If (c) <then_branch = tb () => (float[2] u) <float[2] u = {{1.0,2.0}}> {{ t = Neg(x) }}, else_branch = "
        "eb () => (float[2] v) { v = Neg(x) }> }", c=TRUE,
    )  # fmt: skip
    assert inline(module) == {"'y' is a graph output and the branch does not compute it"}
    assert ops(module) == ["If"]


def test_a_branch_that_returns_one_value_twice_stays() -> None:
    module = build(
        "(float[2] x) => (float[2] y, float[2] z) { y, z = If (c) <then_branch = tb () => (float[2] u, float[2] u) "
        "{ u = Relu(x) }, else_branch = eb () => (float[2] v, float[2] o) { v = Neg(x) o = Abs(x) }> }", c=TRUE,
    )  # fmt: skip
    assert inline(module) == {"the branch returns one value twice"}
    assert ops(module) == ["If"]


def test_in_a_function() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { y = own.f(x) }",
        functions='<domain: "own", opset_import: ["" : 19]> f (p) => (q) { c = Constant<value=bool {1}>() '
        "q = If (c) <then_branch = tb () => (float[2] u) { u = Relu(p) }, else_branch = eb () => (float[2] v) { v = Neg(p) }> }",
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    fuse(module, FoldConstants())
    (function,) = module.model.functions.values()
    assert [node.op_type for node in function if node.op_type != "Constant"] == ["Relu"]


def test_a_function_has_no_place_for_the_weights_of_a_branch() -> None:
    module = build(
        "(float[2] x) => (float[2] y) { y = own.f(x) }",
        functions='<domain: "own", opset_import: ["" : 19]> f (p) => (q) { c = Constant<value=bool {1}>() '
        "q = If (c) <then_branch = tb () => (float[2] u) <float[1] w = {2.0}> { u = Mul(p, w) }, "
        "else_branch = eb () => (float[2] v) { v = Neg(p) }> }",
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    assert inline(module) == {"the branch holds initializers, which a function cannot"}


def test_conditions_that_are_fed_or_may_be_fed_stay() -> None:
    assert unchanged(build(f"(float[2] x, bool c) => (float[2] y) {TWO.format('c')}"), FoldConstants()) == set()
    assert unchanged(build(f"(float[2] x, bool c) => (float[2] y) {TWO.format('c')}", c=TRUE), FoldConstants()) == set()
