"""fuse-gather: products with one-hot rows become look-ups, and what follows a look-up is done on its table."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.values import constant
from joulec.passes.fuse_gather import MAX_GROWTH, FuseGather

TABLE = numbers(5, 4)
CLASSES = np.arange(5, dtype=np.int32).reshape(1, 1, 5)
INSIDE_AND_OUTSIDE = {"i": np.array([[[0], [4], [2]], [[-1], [5], [-5]], [[2**31 - 1], [-(2**31)], [1]]], np.int32)}
HOT = "(int32[N,3,1] i) => (float[N,3,4] y)"
ROWS = "(int64[N,3] i) => (float[N,3,4] y)"
FEED = {"i": np.array([[0, 4, 2], [-1, -5, 3]], np.int64)}


def test_a_one_hot_product_becomes_a_look_up_also_of_what_is_no_class() -> None:
    module = build(f"{HOT} {{ e = Equal(i, c) h = Cast<to=1>(e) y = MatMul(h, w) }}", c=CLASSES, w=TABLE)
    fuse(module, FuseGather(), INSIDE_AND_OUTSIDE)
    assert ops(module) == ["Clip", "Squeeze", "Gather"]


def test_operands_may_be_swapped_and_opset_12_squeezes_by_attribute() -> None:
    module = build(f"{HOT} {{ e = Equal(c, i) h = Cast<to=1>(e) y = MatMul(h, w) }}", opset=12, c=CLASSES, w=TABLE)
    fuse(module, FuseGather(), INSIDE_AND_OUTSIDE)
    assert ops(module) == ["Clip", "Squeeze", "Gather"]


@pytest.mark.parametrize(
    ("opset", "changed", "reasons"),
    [
        (11, {}, {"indices are clipped by an operator that integers have from opset 12 on"}),
        (19, {"w": np.full((5, 4), np.nan, np.float32)}, {"a row that is not finite reaches every product"}),
        (19, {"c": CLASSES[:, :, ::-1].copy()}, set()),  # not counted upwards: another order of rows
        (19, {"c": np.arange(5, dtype=np.int32).reshape(5, 1)}, set()),
    ],
)
def test_what_is_no_one_hot_product_stays(opset: int, changed: dict[str, np.ndarray], reasons: set[str]) -> None:
    body = "e = Equal(i, c) h = Cast<to=1>(e) y = MatMul(h, w)"
    numbers_ = {"c": CLASSES, "w": TABLE} | changed
    assert unchanged(build(f"{HOT} {{ {body} }}", opset=opset, **numbers_), FuseGather()) == reasons


def test_comparisons_that_somebody_else_reads_stay() -> None:
    graph = "(int32[N,3,1] i) => (float[N,3,4] y, bool[N,3,5] e) { e = Equal(i, c) h = Cast<to=1>(e) y = MatMul(h, w) }"
    assert unchanged(build(graph, c=CLASSES, w=TABLE), FuseGather()) == set()


BIAS = numbers(1, 1, 4, seed=3)
GELU = "a = Add(g, b) t = Tanh(a) o = Add(t, k) y = Mul(a, o)"


@pytest.mark.parametrize("body", ["y = Relu(g)", "y = Sub(k, g)", "y = Mul(g, g)", "y = Add(g, b)", GELU])
def test_arithmetic_behind_a_look_up_is_done_on_the_table(body: str) -> None:
    constants = {"b": BIAS, "k": np.array(0.5, np.float32)}
    used = {name: array for name, array in constants.items() if f"{name})" in body or f"({name}" in body}
    module = build(f"{ROWS} {{ g = Gather(w, i) {body} }}", w=TABLE, **used)
    fuse(module, FuseGather(), FEED)
    assert ops(module) == ["Gather"]


def test_what_is_used_outside_ends_the_chain() -> None:
    """Two values leave: the last place where only one does is the bias."""
    graph = f"{ROWS} {{ g = Gather(w, i) a = Add(g, b) s = Mul(a, a) m = ReduceMean(s, n) y = Sub(a, m) }}"
    module = build(graph, w=TABLE, b=BIAS, n=np.array([-1], np.int64))
    fuse(module, FuseGather(), FEED)
    assert ops(module) == ["Gather", "Mul", "ReduceMean", "Sub"]


def test_an_output_keeps_its_name() -> None:
    module = build(f"{ROWS} {{ g = Gather(w, i) y = Exp(g) }}", w=TABLE)
    fuse(module, FuseGather(), FEED)
    gather = next(node for node in module.graph if node.op_type == "Gather")
    assert gather.outputs[0].name == "y"
    np.testing.assert_allclose(constant(gather.inputs[0]), np.exp(TABLE), rtol=1e-6)


@pytest.mark.parametrize(
    ("graph", "extra"),
    [
        ("{ g = Gather(w, i) y = Add(g, r) }", {"r": numbers(3, 4)}),  # differs from row to row
        ("{ g = Gather(w, i) y = Mul(g, x) }", {}),  # two flows meet
        ("{ g = Gather<axis=1>(w, i) y = Relu(g) }", {}),
        ("{ g = Gather(w, i) y = Concat<axis=0>(g, g) }", {}),
    ],
)
def test_what_is_not_the_same_for_every_row_stays(graph: str, extra: dict[str, np.ndarray]) -> None:
    inputs = "(int64[N,3] i, float[N,3,4] x) => (float[M,K,L] y)"
    assert unchanged(build(f"{inputs} {graph}", w=TABLE, **extra), FuseGather()) == set()


def test_a_constant_that_raises_the_rank_or_widens_stays() -> None:
    graph = "(int64[3] i) => (float[1,1,3,4] y) { g = Gather(w, i) y = Add(g, b) }"
    assert unchanged(build(graph, w=TABLE, b=BIAS[None]), FuseGather()) == set()
    graph = "(int64[3] i) => (float[3,4] y) { g = Gather(w, i) y = Add(g, b) }"
    assert unchanged(build(graph, w=numbers(5, 1), b=numbers(4)), FuseGather()) == set()


def test_a_large_table_with_two_users_is_not_stored_twice() -> None:
    rows = MAX_GROWTH // 16 + 1
    graph = "(int64[N] i) => (float[N,4] y, float[N,4] z) { g = Gather(w, i) y = Relu(g) z = Gather(w, i) }"
    reason = "its table is used elsewhere too; a second one would make the file larger"
    assert unchanged(build(graph, w=numbers(rows, 4)), FuseGather()) == {reason}


def test_a_masked_table_stays() -> None:
    module = build(f"{ROWS} {{ g = Gather(w, i) y = Exp(g) }}", w=np.where(TABLE > 0, TABLE, 0).astype(np.float32))
    module.masks["w"] = TABLE > 0
    assert unchanged(module, FuseGather()) == {"its table is pruned, and the mask belongs to the numbers as they are"}
