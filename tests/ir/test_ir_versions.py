"""Models from before IR version 4, where every initializer is listed as an input."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from joulec.ir.onnx_file import read
from joulec.ir.values import constant


def model(ir_version: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    inputs = [helper.make_tensor_value_info(name, 1, [2, 2]) for name in ("x", "w")]
    outputs = [helper.make_tensor_value_info("y", 1, [2, 2])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [weight])
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 8)])


def test_before_version_4_a_listed_initializer_is_a_constant() -> None:
    module = read(model(3))
    assert [value.name for value in module.graph.inputs] == ["x"]
    assert module.model.ir_version == 4
    assert constant(module.graph.initializers["w"]) is not None
    assert any("1 initializers are no longer listed" in note for note in module.origin.notes)


def test_from_version_4_on_a_caller_may_feed_it() -> None:
    module = read(model(4))
    assert [value.name for value in module.graph.inputs] == ["x", "w"]
    assert constant(module.graph.initializers["w"]) is None
