"""Float16 for CUDA and TensorRT: chosen by emulated accuracy and predicted energy, ordered, forbidden, repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import joulec
from joulec.errors import BudgetError


def width_for(rows: int) -> int:
    return 2048 if rows > 1 else 64


def product(place: Path, rows: int) -> Path:
    """y = Relu(x W), with x (rows, width)."""
    width = width_for(rows)
    weight = np.random.default_rng(0).normal(0, 0.05, (width, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), place)
    return place


def data(rows: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(rows, width_for(rows))).astype(np.float32)} for _ in range(2)]


def built(folder: Path, rows: int, target: str = "cuda", **options):
    model = product(folder / "model.onnx", rows)
    given = {"data": data(rows), **options}
    report = joulec.optimize(model, folder / "out", target=target, **given).reports[target]
    types = {node.output[0]: node.op_type for node in onnx.load(folder / "out" / "model.onnx").graph.node}
    return next(one for one in report.decisions if one.what == "float16"), "Cast" in types.values()


def test_a_large_product_is_narrowed_and_the_choice_repeats(tmp_path):
    decision, casts = built(tmp_path, 256)
    assert (decision.kept, decision.ordered, casts) == (True, False, True)
    assert decision.drop == pytest.approx(0, abs=1e-3) and decision.drop > 0  # rounding was emulated
    again = joulec.optimize(tmp_path / "model.onnx", tmp_path / "again", target="cuda", data=data(256),
                            decisions=tmp_path / "out" / "decisions.json")  # fmt: skip
    assert again.reports["cuda"].decisions[-1].kept
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_on_cuda_a_small_product_does_not_pay_for_its_casts(tmp_path):
    decision, casts = built(tmp_path, 1)
    assert (decision.kept, casts) == (False, False)
    assert "more against float32, as predicted for h100" in decision.reason


def test_tensorrt_takes_casts_into_its_kernels(tmp_path):
    decision, casts = built(tmp_path, 1, "tensorrt", int8=False)
    assert (decision.kept, casts) == (True, True)


@pytest.mark.parametrize(
    ("options", "kept", "reason"),
    [
        ({"float16": True}, True, "ordered with --float16"),
        ({"float16": False}, False, "forbidden by --no-float16"),
        ({"data": None}, False, "no calibration data: --data would unlock float16"),
        ({"max_drop": 1e-7}, False, "emulated, it costs"),
    ],
)
def test_orders_and_budgets(tmp_path, options, kept, reason):
    rows = 256 if "max_drop" in options else 1
    decision, casts = built(tmp_path, rows, **options)
    assert (decision.kept, casts) == (kept, kept) and reason in decision.reason


def test_an_order_is_judged_by_the_budget_that_was_given(tmp_path):
    with pytest.raises(BudgetError, match="fidelity drops"):
        built(tmp_path, 1, float16=True, max_drop=1e-7)


def test_a_list_of_passes_is_all_that_runs(tmp_path):
    model = product(tmp_path / "model.onnx", 256)
    joulec.optimize(model, tmp_path / "out", target="cuda", data=data(256), passes="fold-constants")
    assert [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node] == ["MatMul", "Relu"]
    joulec.optimize(model, tmp_path / "out", target="cuda", data=data(256), passes="convert-float16{to=bfloat16}")
    made = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [node.op_type for node in made.node] == ["Cast", "MatMul", "Relu", "Cast"]
    assert TensorProto.BFLOAT16 in {one.data_type for one in made.initializer}
