"""A limit on rewrites stops every exact pass behind the k-th one, wherever that is, with a sound model at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from random_graphs import Grown, graphs

from joulec.ir.allowance import Allowance
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Pass, PassResult
from joulec.passes.default import simplifying_passes
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.target import Target

CONTEXT = Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu"))


def limited(module: Module, one: Pass, limit: int | None) -> tuple[PassResult, Module]:
    """What `one` makes of a copy of `module` in at most `limit` rewrites; verified."""
    copy = module.clone()
    copy.allowance = Allowance(limit)
    result = one.run(copy, CONTEXT)
    infer_shapes(copy)
    Verifier(module).verify(copy)
    return result, copy


def prefixes_hold(module: Module) -> int:
    """Check every limit of every exact pass on `module`; returns how many rewrites there were."""
    total = 0
    for one in simplifying_passes():
        infer_shapes(module)
        whole, after = limited(module, one, None)
        count = len(whole.rewrites)
        assert after.allowance is not None
        assert after.allowance.used == count
        for limit in {0, 1, count // 2, count - 1} & set(range(count)):
            part, _ = limited(module, one, limit)
            assert part.rewrites == whole.rewrites[:limit], one
        module, total = after, total + count
    return total


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(graphs())
def test_the_first_rewrites_are_the_same_under_every_limit(grown: Grown):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # folding draws NaN on purpose
        prefixes_hold(Module(ir.from_proto(grown.model)))


def test_several_rewriters_count_on(parse: Callable[..., Module]):
    module = parse("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Neg(a) }")
    module.allowance = Allowance(3)
    for _ in range(2):
        rewriter = Rewriter(module, "test")
        for node in module.graph:
            with rewriter.rewriting("again", node):
                rewriter.set_op(node, "Abs")
                rewriter.set_op(node, "Neg")
    assert (module.allowance.used, module.allowance.rule) == (3, "again")
    assert [r.rule for r in rewriter.rewrites] == ["again"], "the fourth was left out"
    assert not rewriter.refusals, "a rewrite left out is not one refused"


def test_a_dead_branch_that_stays_is_left_whole(parse: Callable[..., Module]):
    module = parse(
        """g (bool c, float[2] x) => (float[2] y) { y = Neg(x)
        d = If(c) <then_branch = t () => (r) { r = Relu(x) }, else_branch = e () => (r) { r = Abs(x) }> }"""
    )
    result, after = limited(module, EliminateDeadCode(), 0)
    assert not result.changed
    assert all(None not in node.inputs for graph in after.graph.subgraphs() for node in graph)
    assert len(limited(module, EliminateDeadCode(), None)[0].rewrites) == 1


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_rewrite_that_fails_half_way_counts(parse: Callable[..., Module], limit: int):
    module = parse("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Neg(a) }")
    module.allowance, rewriter = Allowance(limit), Rewriter(module, "test")

    def fail(node: ir.Node) -> None:
        with rewriter.rewriting("half", node):
            rewriter.set_op(node, "Abs")
            if node is module.graph.node(1):
                raise KeyError("lost")

    fail(module.graph.node(0))
    if limit > 1:
        with pytest.raises(KeyError):
            fail(module.graph.node(1))
    else:
        fail(module.graph.node(1))
    assert module.allowance.used == limit
