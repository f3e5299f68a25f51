"""fold-constants: what is folded, what is refused and why, partly known shapes, inlined branches, linear work."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rewrite_kit import apply, ops, reasons

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.fold_constants import FoldConstants

Parse = Callable[..., Module]
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def test_chain_of_constants_becomes_one(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,3,4] x) => (float[2,3,4] y) <float[4] w = {1.0,2.0,3.0,4.0}> "
        "{ a = Neg(w) b = Exp(a) c = Sqrt(b) y = Mul(x, c) }"
    )
    assert len(apply(module, FoldConstants(), {"x": X}).rewrites) == 3
    assert ops(module) == ["Mul"]


def test_overridable_initializers_are_not_constants(parse: Parse) -> None:
    module = parse(
        "agraph (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1.0,2.0,3.0,4.0}> { a = Neg(w) y = Mul(x, a) }"
    )
    apply(module, FoldConstants())
    assert ops(module) == ["Neg", "Mul"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Constant<value=int64[2] {100000,1000}>() a = ConstantOfShape(s)", "bytes, the limit is"),
        ("s = Constant<value=int64[1] {100000000000}>() a = ConstantOfShape(s)", "bytes, the limit is"),
        ("o = Constant<value=float[1] {1.0}>() s = Constant<value=int64[1] {1000000}>() a = Expand(o, s)", "the limit"),
        ("o = Constant<value=float[1] {1.0}>() s = Constant<value=int64[1] {1000000}>() a = Tile(o, s)", "the limit"),
        (
            "o = Constant<value=int64 {0}>() l = Constant<value=int64 {900000000}>() d = Constant<value=int64 {1}>() "
            "r = Range(o, l, d) a = Cast<to=1>(r)",
            "the limit",
        ),
        (
            "o = Constant<value=int64[1] {6}>() z = Constant<value=int64[1] {0}>() d = Div(o, z) a = Cast<to=1>(d)",
            "divides integers by zero",
        ),
    ],
)
def test_bombs_and_traps_are_refused(body: str, reason: str, parse: Parse) -> None:
    module = parse(f"agraph (float[1] x) => (float[n] y) {{ {body} y = Mul(x, a) }}")
    start = time.perf_counter()
    result = apply(module, FoldConstants())
    assert any(reason in one for one in reasons(result)), reasons(result)
    assert time.perf_counter() - start < 2.0
    assert module.weight_bytes() < 1000


def test_size_limit_binds_over_the_whole_pass(parse: Parse) -> None:
    grow = " ".join(f"a{i} = ConstantOfShape(s{i}) b{i} = Mul(x, a{i})" for i in range(4))
    sizes = ", ".join(f"int64[1] s{i} = {{100}}" for i in range(4))
    module = parse(
        f"agraph (float[1] x) => (float[100] b0, float[100] b1, float[100] b2, float[100] b3) <{sizes}> {{ {grow} }}"
    )
    apply(module, FoldConstants(size_limit=900))
    assert ops(module).count("ConstantOfShape") == 2


def test_random_and_quantized_weights_stay(parse: Parse) -> None:
    module = parse(
        "agraph (float[4] x) => (float[4] y) <int8[4] w = {1,2,3,4}, float s = {0.5}> "
        "{ d = DequantizeLinear(w, s) r = RandomNormal<shape=[4], seed=1.0>() a = Add(d, r) y = Mul(x, a) }"
    )
    apply(module, FoldConstants())
    assert ops(module) == ["DequantizeLinear", "RandomNormal", "Add", "Mul"]


def test_computed_reshape_of_a_symbolic_batch(parse: Parse) -> None:
    module = parse(
        """agraph (float[N,2,3] x) => (float[M,6] y) <int64[1] b = {0}, int64[1] e = {1}, int32[1] six = {6}> {
            s = Shape(x) c = Cast<to=6>(s) n = Slice(c, b, e) t = Concat<axis=0>(n, six) u = Cast<to=7>(t)
            y = Reshape(x, u)
        }"""
    )
    apply(module, FoldConstants(), {"x": np.ones((5, 2, 3), np.float32)})
    apply(module, EliminateDeadCode(), {"x": np.ones((0, 2, 3), np.float32)})
    assert ops(module) == ["Reshape"]


def test_minus_one_given_beside_a_kept_dimension(parse: Parse) -> None:
    module = parse(
        """agraph (float[N,2,3] x) => (float[M,K] y) <int64 z = {0}, int64[1] a = {0}, int64[1] rest = {-1}> {
            s = Shape(x) n = Gather(s, z) u = Unsqueeze(n, a) t = Concat<axis=0>(u, rest) y = Reshape(x, t)
        }"""
    )
    apply(module, FoldConstants(), {"x": np.ones((5, 2, 3), np.float32)})
    apply(module, EliminateDeadCode())
    assert ops(module) == ["Reshape"]
    (node,) = module.graph
    assert node.inputs[1] is not None and node.inputs[1].const_value is not None
    assert node.inputs[1].const_value.numpy().tolist() == [0, 6]  # known, whatever N


def test_two_unknown_dimensions_are_refused(parse: Parse) -> None:
    module = parse("agraph (float[N,M] x, float[K,L] z) => (float[a,b] y) { s = Shape(z) y = Reshape(x, s) }")
    result = apply(module, FoldConstants())
    assert reasons(result) == {"more than one dimension of its shape is unknown"}
    assert ops(module) == ["Shape", "Reshape"]


def test_shape_of_a_static_tensor_folds_inside_a_branch(parse: Parse) -> None:
    module = parse(
        """agraph (bool c, float[2,3,4] x) => (float[n,m] y) {
            y = If (c) <then_branch = tb () => (float[n,m] u) { s = Shape(x) d = Constant<value=int64[1] {0}>()
                            g = Gather(s, d) r = Constant<value=int64[1] {-1}>() t = Concat<axis=0>(g, r) u = Reshape(x, t) },
                        else_branch = eb () => (float[n,m] v) { w = Constant<value=int64[2] {6,4}>() v = Reshape(x, w) }>
        }"""
    )
    apply(module, FoldConstants(), {"c": np.array(True), "x": X})
    apply(module, EliminateDeadCode(), {"c": np.array(False), "x": X})
    assert module.node_count() == 3


def test_known_condition_inlines_both_ifs_under_fresh_names(parse: Parse) -> None:
    branch = "If (c{i}) <then_branch = t{i} () => (float[4] u) {{ h = Neg({x}) u = Exp(h) }}, else_branch = e{i} () => (float[4] u) {{ u = Abs({x}) }}>"
    body = f"a = {branch.format(i=0, x='x')} y = {branch.format(i=1, x='a')}"
    module = parse(f"agraph (float[4] x) => (float[4] y) <bool c0 = {{1}}, bool c1 = {{1}}> {{ {body} }}")
    apply(module, FoldConstants(), {"x": np.arange(4, dtype=np.float32)})
    assert ops(module) == ["Neg", "Exp", "Neg", "Exp"]
    names = [output.name for node in module.graph for output in node.outputs]
    assert len(set(names)) == len(names)


def test_branch_that_returns_an_outer_value_to_the_graph_is_refused(parse: Parse) -> None:
    module = parse(
        """agraph (float[4] x) => (float[4] y) <bool c = {1}> {
            y = If (c) <then_branch = t () => (float[4] x) { }, else_branch = e () => (float[4] v) { v = Neg(x) }>
        }"""
    )
    before = ops(module)
    result = FoldConstants().run(module, None)  # type: ignore[arg-type]
    assert ops(module) == before == ["If"]
    assert reasons(result) == {"'y' is a graph output and the branch does not compute it"}


def test_masks_follow_transposes_and_stop_arithmetic(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,2] x) => (float[2,2] y, float[2,2] z) <float[2,2] w = {1.0,0.0,2.0,3.0}, "
        "float[2,2] v = {1.0,0.0,2.0,3.0}> { t = Transpose(w) y = MatMul(x, t) e = Exp(v) z = MatMul(x, e) }"
    )
    mask = np.array([[True, False], [True, True]])
    module.masks.update(w=mask, v=mask)
    result = apply(module, FoldConstants(), {"x": np.ones((2, 2), np.float32)})
    assert reasons(result) == {"it computes on a pruned weight, whose mask could not follow"}
    assert ops(module) == ["MatMul", "Exp", "MatMul"]
    moved = next(iter(module.graph)).inputs[1]
    assert moved is not None
    np.testing.assert_array_equal(module.masks[moved.name or ""], mask.T)


def test_function_bodies_fold_by_their_own_opset(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,1] x) => (float[a] y) { y = own.f(x) }", 19,
        '<domain: "own", opset_import: ["" : 11]> f (p) => (q) '
        "{ k = Constant<value=float[2,1] {1.0,2.0}>() s = Softmax(k) q = Add(p, s) }",
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    apply(module, FoldConstants())
    (function,) = module.model.functions.values()
    (kept,) = [node for node in function.graph if node.op_type == "Constant" and node.outputs[0].uses()]
    np.testing.assert_array_equal(kept.attributes["value"].as_tensor().numpy(), [[1.0], [1.0]])


def test_stale_declared_shapes_are_not_believed() -> None:
    info = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["r"]),
        onnx.helper.make_node("Shape", ["r"], ["s"]),
        onnx.helper.make_node("Cast", ["s"], ["y"], to=1),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [3, 4])], [info("y", 1, [2])], value_info=[info("r", 1, [7, 7])]
    )
    module = Module(ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])))
    apply(module, FoldConstants())
    apply(module, EliminateDeadCode(), {"x": np.ones((3, 4), np.float32)})


def _chain(count: int) -> Module:
    info = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Shape", ["x"], ["s0"])]
    for index in range(count):
        nodes.append(onnx.helper.make_node("Add", [f"s{index}", "one"], [f"s{index + 1}"]))
    nodes.append(onnx.helper.make_node("Expand", ["x", f"s{count}"], ["y"]))
    one = onnx.numpy_helper.from_array(np.array([1], np.int64), "one")
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, [1])], [info("y", 1, ["n"])], [one])
    return Module(ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])))


def test_work_is_linear_in_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = []
    monkeypatch.setattr(
        Rewriter, "fresh", lambda self, hint, fresh=Rewriter.fresh: visits.append(1) or fresh(self, hint)
    )
    counts = []
    for size in (1000, 2000):
        visits.clear()
        module = _chain(size)
        FoldConstants().run(module, None)  # type: ignore[arg-type]
        assert ops(module) == ["Expand"]
        counts.append(len(visits))
    assert counts[1] <= 2.1 * counts[0]


def test_a_small_range_folds(parse: Parse) -> None:
    module = parse(
        "agraph (int64[5] x) => (int64[5] y) <int64 o = {0}, int64 l = {5}, int64 d = {1}> "
        "{ r = Range(o, l, d) y = Add(x, r) }"
    )
    apply(module, FoldConstants(), {"x": np.arange(5)})
    assert ops(module) == ["Add"]
