"""Shapes of ONNX Runtime's own operators, held against what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from joulec.energy import EnergyModel, load_profile
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner

MODEL = EnergyModel(load_profile())
S, Z = np.float32(0.1), np.uint8(128)
IMAGE, ROWS = np.ones((2, 4, 6, 6), np.uint8), np.ones((3, 8), np.uint8)
FLOATS = np.ones((3, 8), np.float32)
WEIGHT = np.ones((8, 5), np.int8)
WS, WZ = np.float32(0.1), np.int8(0)

CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "QLinearAdd": ([IMAGE, S, Z, np.ones((4, 1, 1), np.uint8), S, Z, S, Z], {}),
    "QLinearMul": ([IMAGE, S, Z, IMAGE, S, Z, S, Z], {}),
    "QLinearSigmoid": ([IMAGE, S, Z, S, Z], {}),
    "QLinearLeakyRelu": ([IMAGE, S, Z, S, Z], {}),
    "QLinearGlobalAveragePool": ([IMAGE, S, Z, S, Z], {}),
    "QLinearAveragePool": ([IMAGE, S, Z, S, Z], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "QLinearConcat": ([S, Z, IMAGE, S, Z, IMAGE, S, Z], {"axis": 1}),
    "QGemm": ([ROWS, S, Z, WEIGHT, WS, WZ], {}),
    "MatMulIntegerToFloat": ([ROWS, WEIGHT, S, WS, Z, WZ], {}),
    "DynamicQuantizeMatMul": ([FLOATS, WEIGHT, WS, WZ], {}),
    "FusedGemm": ([FLOATS, np.ones((8, 5), np.float32)], {"activation": "Relu"}),
    "FusedConv": ([IMAGE.astype(np.float32), np.ones((3, 4, 3, 3), np.float32)], {"activation": "Relu"}),
    "QuickGelu": ([FLOATS], {}),
    "BiasGelu": ([FLOATS, np.ones(8, np.float32)], {}),
    "SkipLayerNormalization": ([np.ones((1, 3, 8), np.float32), np.ones((1, 3, 8), np.float32), np.ones(8, np.float32)], {}),
}  # fmt: skip


def build(op: str) -> onnx.ModelProto:
    """The operator on constants, all but what it computes on."""
    given, attributes = CASES[op]
    data = 2 if op == "QLinearConcat" else 0
    names = [f"i{index}" for index in range(len(given))]
    node = helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, given, strict=True) if n != f"i{data}"]
    dtype = helper.np_dtype_to_tensor_dtype(given[data].dtype)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info(f"i{data}", dtype, given[data].shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8 if op[:7] == "QLinear" else TensorProto.FLOAT, None)],
        constants,
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9
    )


@pytest.mark.parametrize("op", CASES)
def test_sizes_are_those_that_the_runtime_makes(op: str) -> None:
    model = build(op)
    estimate = MODEL.estimate(Module(ir.from_proto(model)))
    assert (estimate.unknown, estimate.assumed) == ((), ())
    given = CASES[op][0][2 if op == "QLinearConcat" else 0]
    with LocalRunner() as runner:
        module = Module(ir.from_proto(model))
        (made,) = runner.run(runner.load(module), {module.graph.inputs[0].name or "": given}).values()
    prepared = Module(ir.from_proto(model))
    MODEL.estimate(prepared, in_place=True)
    (output,) = prepared.graph.outputs
    assert output.shape is not None and tuple(output.shape) == made.shape
    assert output.dtype is not None and output.dtype.numpy() == made.dtype
