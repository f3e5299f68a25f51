"""eliminate-dead-code: what no output depends on goes, graph inputs stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rewrite_kit import apply, ops

from joulec.ir.module import Module
from joulec.passes.eliminate_dead_code import EliminateDeadCode

Parse = Callable[..., Module]


def test_unused_nodes_initializers_and_functions_go(parse: Parse) -> None:
    module = parse(
        "agraph (float[4] x, float[4] unused) => (float[4] y) <float[1] w = {1.0}> "
        "{ a = Mul(x, w) b = Exp(a) y = Neg(x) }", 19,
        '<domain: "own", opset_import: ["" : 19]> f (p) => (q) { q = Neg(p) }',
    )  # fmt: skip
    module.masks["w"] = np.array([True])
    apply(module, EliminateDeadCode(), {"x": np.ones(4, np.float32), "unused": np.ones(4, np.float32)})
    assert ops(module) == ["Neg"]
    assert not module.graph.initializers
    assert not module.masks
    assert not module.model.functions
    assert [value.name for value in module.graph.inputs] == ["x", "unused"]


def test_arguments_that_a_function_no_longer_reads_are_not_passed(parse: Parse) -> None:
    """ONNX Runtime refuses four bits for an input of a function whose body says nothing of its type."""
    inner = '<domain: "own", opset_import: ["" : 24]> inner (a, b, s) => (c) { d = DequantizeLinear(a, s) c = Neg(b) }'
    outer = '<domain: "own", opset_import: ["" : 24, "own" : 1]> outer (a, b, s) => (c) { c = own.inner(a, b, s) }'
    module = parse(
        "agraph (float[4] x) => (float[4] y) <float s = {1.0}> "
        "{ z = Constant<value = uint4 {0}>() q = QuantizeLinear(x, s, z) y = own.outer(q, x, s) }", 24,
        f"{inner}\n{outer}",
    )  # fmt: skip
    apply(module, EliminateDeadCode())
    (call,) = module.graph
    assert [value and value.name for value in call.inputs] == [None, "x", None]
    assert not module.graph.initializers


def test_a_dead_if_releases_what_its_branches_captured(parse: Parse) -> None:
    module = parse(
        """agraph (bool c, float[4] x) => (float[4] y) {
            e = Exp(x)
            d = If (c) <then_branch = t () => (float[4] u) { u = Neg(e) }, else_branch = s () => (float[4] v) { v = Abs(e) }>
            y = Neg(x)
        }"""
    )
    apply(module, EliminateDeadCode())
    assert ops(module) == ["Neg"]
