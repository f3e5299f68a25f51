"""Nodes that no runtime would load: exact passes and the opset upgrade leave them alone and do not fail."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from joulec.ir.module import Module
from joulec.passes.base import Context, Pass
from joulec.passes.default import simplifying_passes
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

TARGET = Target("test", "CPUExecutionProvider", 0, 0, None, "generic-server-cpu")
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
FORMS = [(), ("a",), ("a", "b"), ("", "b"), ("a", ""), ("a", "b", "c", "d", "e")]
SHAPES = {"a": [], "b": [1, 2], "c": [1, 2, 3, 4], "d": [1], "e": [1, 2, 3]}
PASSES = {one.pass_name(): one for one in [*simplifying_passes(), UpgradeOpset(to=21)]}


def malformed(inputs: tuple[str, ...], opset: int, *, constant: bool) -> onnx.ModelProto:
    """One node of every operator, without attributes, on inputs of five ranks; all but the first constant if asked."""
    fed = [name for name in dict.fromkeys(inputs) if name]
    fixed = fed[1:] if constant else []
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [f"o_{op}"], name=f"bad_{op}") for op in OPERATORS], "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPES[n]) for n in fed if n not in fixed],
        [helper.make_tensor_value_info(f"o_{OPERATORS[0]}", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(SHAPES[n], np.float32), n) for n in fixed],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("one", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("inputs", FORMS, ids=lambda names: ",".join(n or "-" for n in names) or "none")
def test_no_pass_fails_on_a_malformed_node(one: Pass, inputs: tuple[str, ...], constant: bool) -> None:
    for opset in (9, 17):
        module = Module(ir.from_proto(malformed(inputs, opset, constant=constant)))
        one.run(module, Context(TARGET))


@pytest.mark.parametrize("one", PASSES.values(), ids=PASSES)
def test_no_pass_fails_behind_nodes_that_read_nothing(one: Pass) -> None:
    """Every operator on what a random operator, and one of an unknown domain, make of nothing."""
    nodes = [helper.make_node("RandomNormal", [], ["r"], shape=[1, 2]), helper.make_node("Make", [], ["m"], domain="local")]
    for source in ("r", "m"):
        nodes += [helper.make_node(op, [source] * count, [f"{op}{source}{count}"]) for op in OPERATORS for count in (1, 2)]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("Addr2", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    one.run(Module(ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))), Context(TARGET))


@pytest.mark.parametrize("one", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("perm", [[1], [0, 2], [1, 1], [-1, 0], [2, 1, 0]])
def test_a_perm_that_is_no_permutation_is_left_alone(one: Pass, perm: list[int]) -> None:
    shape = numpy_helper.from_array(np.array([2, 3]), "s")
    nodes = [helper.make_node("Reshape", ["x", "s"], ["a"]), helper.make_node("Transpose", ["a"], ["b"], perm=perm)]
    nodes += [helper.make_node("Transpose", ["b"], ["c"], perm=perm), helper.make_node("Squeeze", ["c"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [shape])
    module = Module(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    (node,) = (node for node in module.graph if node.name == "" and node.outputs[0].name == "a")
    node.outputs[0].shape = ir.Shape([2, 3])
    one.run(module, Context(TARGET))


@pytest.mark.parametrize("one", PASSES.values(), ids=PASSES)
def test_no_pass_fails_where_nodes_return_more_than_they_have(one: Pass) -> None:
    value = numpy_helper.from_array(np.ones(2, np.float32))
    nodes = [helper.make_node("Constant", [], ["c", "y"], value=value)]
    nodes += [helper.make_node(op, ["c", "c"], [f"{op}{i}" for i in range(9)], name=op) for op in OPERATORS]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("y", "Relu1")])
    module = Module(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    one.run(module, Context(TARGET))
