"""Weights that nodes compute are stored for the passes that change their numbers, and only for those."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from joulec.backends import backend
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes import materialize_weights
from joulec.passes.base import Context
from joulec.passes.materialize_weights import computes_weights, materialize
from joulec.passes.prune_magnitude import PruneMagnitude

Parse = Callable[..., Module]
CONTEXT = Context(backend("cpu").target)

COMPUTED = """agraph (float[1,16] x) => (float[1,16] y, float[16,16] z)
    <int64[2] dims = {16, 16}, float[1] half = {0.5}> {
    filled = ConstantOfShape<value = float[1] {2.0}>(dims)
    w = Mul(filled, half)
    m = MatMul(x, w)
    other = ConstantOfShape<value = float[1] {3.0}>(dims)
    y = Relu(m)
    z = Identity(other)
}"""


def materialized(module: Module) -> list[str]:
    rewriter = Rewriter(module, "test")
    materialize(rewriter, ("MatMul", "Conv"))
    return [rewrite.rule for rewrite in rewriter.rewrites]


def test_a_chain_of_generators_becomes_an_initializer(parse: Parse) -> None:
    module = parse(COMPUTED)
    assert computes_weights(module)
    assert materialized(module) == ["materialize", "materialize"]
    assert [node.op_type for node in module.graph] == ["MatMul", "ConstantOfShape", "Relu", "Identity"]
    weight = module.graph.node(0).inputs[1]
    assert weight is not None and weight.is_initializer() and weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), np.ones((16, 16), np.float32))


def test_a_weight_that_depends_on_an_input_stays(parse: Parse) -> None:
    module = parse(COMPUTED.replace("Mul(filled, half)", "Mul(filled, x)"))
    assert not computes_weights(module)
    assert materialized(module) == []


def test_beyond_the_limit_it_stays_and_that_is_said(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialize_weights, "LIMIT", 100)
    module = parse(COMPUTED)
    rewriter = Rewriter(module, "test")
    materialize(rewriter, ("MatMul",))
    assert not rewriter.rewrites
    assert any(r.rule == "materialize" for r in rewriter.refusals.values())


def test_pruning_stores_what_it_prunes(parse: Parse) -> None:
    module = parse(COMPUTED)
    result = PruneMagnitude(sparsity=0.5).run(module, CONTEXT)
    assert result.changed
    (mask,) = module.masks.values()
    assert mask.sum() == 128


def test_constant_nodes_are_pruned_too(parse: Parse) -> None:
    numbers = ", ".join(str(0.1 + index / 100) for index in range(64))
    graph = f"agraph (float[1,8] x) => (float[1,8] y) {{ w = Constant<value = float[8,8] {{{numbers}}}>() y = MatMul(x, w) }}"
    module = parse(graph)
    PruneMagnitude(sparsity=0.25).run(module, CONTEXT)
    assert [int(mask.sum()) for mask in module.masks.values()] == [48]
