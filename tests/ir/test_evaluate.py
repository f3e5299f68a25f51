"""Bounded evaluation: what is run, what is refused before it runs, and that both bounds are bounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from joulec.ir import evaluate as home
from joulec.ir.evaluate import FOLDABLE, MAX_BYTES, Bound, Limits, NotEvaluated, bound, evaluate, relayout

OPSET = 19


def node(op_type: str, inputs: Sequence[Any], attributes: dict[str, Any] | None = None, domain: str = "") -> ir.Node:
    values = [None if one is None else ir.Value(name=f"v{i}") for i, one in enumerate(inputs)]
    made = ir.node(op_type, values, attributes or {}, domain=domain)
    made.outputs[0].name = "out"
    return made


def result(op_type: str, inputs: Sequence[Any], attributes: dict[str, Any] | None = None, **limits: int) -> Any:
    arrays = [None if one is None else np.asarray(one) for one in inputs]
    (only,) = evaluate(node(op_type, arrays, attributes), arrays, OPSET, Limits(**limits))
    return only


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may reach a kernel."""

    def fail(*arguments: Any) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(home, "_run", fail)


# -- refused before anything runs ---------------------------------------------------------------------------------

BIG = np.int64(1 << 40)


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("ConstantOfShape", [np.array([BIG])], "bytes, the limit is"),
        ("ConstantOfShape", [np.array([1 << 20, 1 << 20])], "bytes, the limit is"),
        ("Expand", [np.float32(1), np.array([1 << 30])], "bytes, the limit is"),
        ("Tile", [np.ones(4, np.float32), np.array([1 << 28])], "bytes, the limit is"),
        ("Range", [np.int64(0), BIG, np.int64(1)], "bytes, the limit is"),
        ("Range", [np.int64(0), np.int64(1), np.int64(0)], "not known"),
        ("Range", [np.float32(0), np.float32("nan"), np.float32(1)], "not known"),
        ("Range", [np.float32(0), np.float32("inf"), np.float32(1)], "not known"),
        ("MatMul", [np.ones((1024, 1024), np.float32)] * 2, "operations, the limit is"),
        ("Div", [np.array([4]), np.array([0])], "divides integers by zero"),
        ("Mod", [np.array([4]), np.array([0])], "divides integers by zero"),
        ("Div", [np.array([-(2**63)]), np.array([-1])], "overflows"),
        ("Neg", [np.array(["text"])], "element type"),
        ("RandomNormalLike", [np.ones(3, np.float32)], "RandomNormalLike is not evaluated"),
        ("Loop", [np.int64(3)], "Loop is not evaluated"),
    ],
)
def test_refused_and_not_run(op: str, inputs: list[Any], reason: str) -> None:
    start = time.perf_counter()
    with pytest.raises(NotEvaluated, match=reason):
        result(op, inputs)
    assert time.perf_counter() - start < 2.0


@pytest.mark.usefixtures("no_runs")
def test_operators_of_other_domains_are_not_run() -> None:
    array = np.ones(3, np.float32)
    with pytest.raises(NotEvaluated, match="Neg is not evaluated"):
        evaluate(node("Neg", [array], domain="mine"), [array], OPSET)


@pytest.mark.usefixtures("no_runs")
def test_work_is_bounded_where_the_result_is_small() -> None:
    long = np.ones((1, 1 << 16), np.float32)
    with pytest.raises(NotEvaluated, match="operations, the limit is 1000"):
        result("MatMul", [long, long.T.copy()], work=1000)


def test_work_of_all_nodes_together_is_bounded() -> None:
    limits, array = Limits(work=2500), np.ones(500, np.float32)
    for _ in range(2):
        evaluate(node("Neg", [array]), [array], OPSET, limits)
    with pytest.raises(NotEvaluated, match="operations, the limit is 500"):
        evaluate(node("Neg", [array]), [array], OPSET, limits)


DIRECT: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Transpose", [np.ones((512, 512), np.float32)], {"perm": [1, 0]}),
    ("Concat", [np.ones(2000, np.int64), np.ones(2000, np.int64)], {"axis": 0}),
    ("Gather", [np.ones((1, 4096), np.int64), np.zeros(4096, np.int64)], {"axis": 0}),
]


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize(("op", "inputs", "attributes"), DIRECT)
def test_what_numpy_does_is_bounded_as_well(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(NotEvaluated, match="bytes, the limit is 1000"):
        result(op, inputs, attributes, bytes=1000)
    with pytest.raises(NotEvaluated, match="operations, the limit is 10"):
        result(op, inputs, attributes, work=10)


def test_a_gather_that_multiplies_its_data_allocates_nothing_beyond_the_limit() -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(NotEvaluated):
        result("Gather", [np.ones((1, 4096), np.int64), np.zeros(4096, np.int64)], bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


# -- the bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "inputs", "expected"),
    [
        ("NonZero", [np.ones((3, 4), np.float32)], Bound(8 * 2 * 12, 12)),
        ("Range", [np.int64(0), np.int64(10), np.int64(3)], Bound(8 * 4, 4)),
        ("MatMul", [np.ones((2, 3), np.float32), np.ones((3, 5), np.float32)], Bound(4 * 10, 6 + 15 + 10 * 3)),
        ("Neg", [np.ones((2, 3), np.float64)], Bound(8 * 6, 6 + 6)),
        ("ConstantOfShape", [np.array([2, 3])], Bound(4 * 6, 2 + 6)),
    ],
)
def test_bound(op: str, inputs: list[Any], expected: Bound) -> None:
    assert bound(node(op, inputs), inputs, OPSET) == expected


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Add", [np.ones((4, 1), np.float32), np.ones((1, 5), np.float32)], {}),
        ("Compress", [np.arange(6.0), np.array([True, False, True, True, False, True])], {}),
        ("NonZero", [np.array([[1.0, 0.0], [2.0, 3.0]], np.float32)], {}),
        ("Tile", [np.ones((2, 3), np.float32), np.array([2, 2])], {}),
        ("OneHot", [np.array([0, 2]), np.int64(3), np.array([0.0, 1.0], np.float32)], {}),
        ("ReduceSum", [np.ones((3, 4), np.float32), np.array([1])], {"keepdims": 0}),
        ("Pad", [np.ones(3, np.float32), np.array([2, 1])], {}),
    ],
)
def test_results_stay_inside_their_bound(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert (
        result(op, inputs, attributes).nbytes <= bound(node(op, inputs, attributes), inputs, OPSET).bytes <= MAX_BYTES
    )


# -- the numbers --------------------------------------------------------------------------------------------------

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Transpose", [X], {"perm": [2, 0, 1]}, X.transpose(2, 0, 1)),
        ("Transpose", [X], {}, X.T),
        ("Reshape", [X, np.array([0, -1])], {}, X.reshape(2, 12)),
        ("Flatten", [X], {"axis": -1}, X.reshape(6, 4)),
        ("Flatten", [X], {"axis": 0}, X.reshape(1, 24)),
        ("Flatten", [np.ones((0, 3), np.float32)], {}, np.ones((0, 3), np.float32)),
        ("Squeeze", [X[:1]], {}, X[0]),
        ("Unsqueeze", [X, np.array([0, -1])], {}, X[None, ..., None]),
        ("Gather", [X, np.array([-1, 0])], {"axis": 1}, X[:, [2, 0]]),
        ("Concat", [X, X], {"axis": -1}, np.concatenate([X, X], -1)),
        ("Add", [np.array([2**62]), np.array([2**62])], {}, np.array([-(2**63)])),
        ("Div", [np.array([7, -8]), np.array([-1])], {}, np.array([-7, 8])),
        ("Clip", [X, None, np.float32(5)], {}, np.minimum(X, np.float32(5))),
        ("Erf", [np.zeros(2, np.float32)], {}, np.zeros(2, np.float32)),
        ("Reshape", [np.ones((0, 3), np.float32), np.array([3, 0])], {"allowzero": 1}, np.ones((3, 0), np.float32)),
    ],
)
def test_results(op: str, inputs: list[Any], attributes: dict[str, Any], expected: Any) -> None:
    np.testing.assert_array_equal(result(op, inputs, attributes), expected, strict=True)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Gather", [X, np.array([7])], {}),  # out of range
        ("Reshape", [X, np.array([5, 5])], {}),  # does not fit
        ("Transpose", [X], {"perm": [0, 0, 1]}),
        ("Squeeze", [X, np.array([0])], {}),
        ("Add", [X, np.ones(5, np.float32)], {}),
    ],
)
def test_malformed_nodes_are_refused_not_raised(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(NotEvaluated):
        result(op, inputs, attributes)


def test_masks_follow_layout_and_nothing_else() -> None:
    mask = X > 5
    moved = relayout(node("Transpose", [mask], {"perm": [1, 0, 2]}), mask, [None], OPSET)
    np.testing.assert_array_equal(moved, mask.transpose(1, 0, 2), strict=True)
    assert relayout(node("Gather", [mask, X]), mask, [None, np.array([0])], OPSET) is None


def test_nothing_random_and_nothing_with_a_body_is_foldable() -> None:
    assert not {name for name in FOLDABLE if "Random" in name}
    assert FOLDABLE.isdisjoint({"If", "Loop", "Scan", "Bernoulli", "Multinomial", "Dropout", "LSTM", "SequenceAt"})


def test_a_scalar_stays_one_when_it_is_laid_out_anew():
    """numpy's contiguous copies are vectors at least."""
    moved = result("Transpose", [np.int64(5)])
    assert (moved.shape, moved.tolist()) == ((), 5)


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2])
def test_what_would_come_back_as_bare_bytes_is_not_evaluated(kind: ir.DataType):
    """ONNX Runtime returns float8 as uint8, which is another type."""
    with pytest.raises(NotEvaluated, match="element type of its result"):
        result("Cast", [np.ones(2, np.float32)], {"to": int(kind)})
