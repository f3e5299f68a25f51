"""eliminate-failing-branches: a branch goes only where no run through it can succeed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.passes.eliminate_failing_branches import EliminateFailingBranches

HEAD = "(float[N,4,L] x) => (float[a,b,c] y)"
SQUEEZE = (
    "last = Constant<value = int64 {-1}>() one = Constant<value = int64 {1}>() axis = Constant<value = int64[1] {-1}>() "
    "front = Constant<value = int64[1] {2}>() sx = Shape(x) l = Gather(sx, last) single = Equal(l, one) "
    "z = If(single) <then_branch = squeezed () => (float[N,4] s) { s = Squeeze(x, axis) }, "
    "else_branch = kept () => (float[N,4,L] k) { k = Identity(x) }> "
)
LSTM = {"w": numbers(1, 12, 4), "r": numbers(1, 12, 3)}


def once(module: Module) -> list[str]:
    """Run the pass; the outputs are compared where the If's condition holds."""
    result = fuse(module, EliminateFailingBranches(), {"x": numbers(2, 4, 1)})
    assert result.changed
    return [op for op in ops(module) if op not in ("Shape", "Gather", "Equal")]


def test_what_follows_takes_one_rank_only() -> None:
    assert once(build(f"{HEAD} {{ {SQUEEZE} u = Unsqueeze(z, front) y = Conv(u, w) }}", w=numbers(2, 4, 1))) == ["Squeeze", "Unsqueeze", "Conv"]
    body = f"{SQUEEZE} zero = Constant<value = int64[1] {{0}}>() u = Unsqueeze(z, zero) h, y, c = LSTM<hidden_size = 3>(u, w, r) "
    assert once(build(f"{HEAD} {{ {body} }}", **LSTM)) == ["Squeeze", "Unsqueeze", "LSTM"]


def test_a_question_about_the_rank_is_answered_too() -> None:
    """Exporters ask for the rank again, and branch on it: with the wrong rank, both of those branches fail."""
    again = (
        "two = Constant<value = int64 {2}>() zs = Shape(z) zr = Size(zs) flat = Equal(zr, two) "
        "v = If(flat) <then_branch = more () => (float[N,4,1] p) { p = Unsqueeze(z, front) }, "
        "else_branch = most () => (float[N,4,L,1] q) { q = Unsqueeze(z, front) }> y = Conv(v, w)"
    )
    assert once(build(f"{HEAD} {{ {SQUEEZE} {again} }}", w=numbers(2, 4, 1))) == ["Squeeze", "Unsqueeze", "Conv"]


def test_an_if_in_a_branch_is_found() -> None:
    inner = f"{SQUEEZE} u = Unsqueeze(z, front) yes = Conv(u, w)"
    body = f"all = ReduceMax<keepdims = 0>(x) low = Constant<value = float {{-99.0}}>() on = Greater(all, low) y = If(on) <then_branch = t () => (float[a,b,c] yes) {{ {inner} }}, else_branch = e () => (float[a,b,c] no) {{ no = Neg(x) }}>"
    module = build(f"{HEAD} {{ {body} }}", w=numbers(2, 4, 1))
    result = fuse(module, EliminateFailingBranches(), {"x": numbers(2, 4, 1)})
    assert [rewrite.rule for rewrite in result.rewrites][:2] == ["only-then-can-run", "inline-if"]
    assert ops(module).count("If") == 1


@pytest.mark.parametrize(
    "rest",
    [
        "y = Relu(z)",  # takes every rank
        "y = Squeeze(z)",
        "f = Flatten(z) y = Unsqueeze(f, front)",
    ],
)
def test_where_both_ranks_can_run_both_branches_stay(rest: str) -> None:
    head = HEAD.replace("float[a,b,c] y", "float y") if "Relu" in rest else HEAD
    module = build(f"{head.replace('float y', 'float[a,b,c] y')} {{ {SQUEEZE} {rest} }}")
    assert unchanged(module, EliminateFailingBranches()) == set()


def test_a_declared_output_proves_nothing() -> None:
    """The file says rank 2; what runs may make rank 3, and runtimes let it."""
    module = build(f"(float[N,4,L] x) => (float[a,b] y) {{ {SQUEEZE} y = Relu(z) }}")
    assert unchanged(module, EliminateFailingBranches()) == set()


def test_a_model_that_no_input_can_run_is_left_alone() -> None:
    module = build(f"{HEAD} {{ {SQUEEZE} v = Unsqueeze(x, front) y = Conv(v, w) }}", w=numbers(2, 4, 1))
    assert unchanged(module, EliminateFailingBranches()) == set()


def test_tries_are_bounded() -> None:
    module = build(f"{HEAD} {{ {SQUEEZE} u = Unsqueeze(z, front) y = Conv(u, w) }}", w=numbers(2, 4, 1))
    assert unchanged(module, EliminateFailingBranches(tries=0)) == set()


def test_a_weight_of_a_branch_is_not_taken_for_one_of_another() -> None:
    """Both branches call their large weight `w`, of different shapes: only one can be hoisted in a skeleton."""
    branch = "{{ u = MatMul(x, w{0}) {1} = Relu(u) }}"
    then, other = branch.format(1, "yes"), branch.format(2, "no")
    module = build(
        f"(float[N,64] x, bool on) => (float[N,c] y) {{ y = If(on) <then_branch = t () => (float[N,c] yes) {then}, "
        f"else_branch = e () => (float[N,c] no) {other}> }}",
        w1=np.zeros((64, 8), np.float32), w2=np.zeros((64, 16), np.float32),
    )  # fmt: skip
    for name, inside in (("w1", "then_branch"), ("w2", "else_branch")):
        graph = next(iter(module.graph)).attributes[inside].as_graph()
        weight = module.graph.initializers.pop(name)
        node = next(iter(graph))
        inner = ir.Value(name="w", shape=weight.shape, type=weight.type, const_value=weight.const_value)
        graph.register_initializer(inner)
        node.replace_input_with(1, inner)
    assert unchanged(module, EliminateFailingBranches()) == set()
    infer_shapes(module)
    made = [str(node.outputs[0].shape) for inside in ("then_branch", "else_branch") for node in next(iter(module.graph)).attributes[inside].as_graph()]
    assert made == ["[N,8]", "[N,c]", "[N,16]", "[N,c]"]
