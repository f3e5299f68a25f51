"""Attributes are checked once, at the door: types, those that must be there, and numbers that name something."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

from joulec.errors import InputError
from joulec.ir.onnx_file import read


@pytest.mark.parametrize(
    ("op", "attributes", "said"),
    [
        ("Softmax", {"axis": "one"}, "Softmax 'y': attribute 'axis' is of type STRING, the standard says INT"),
        ("Transpose", {"perm": [1.0]}, "Transpose 'y': attribute 'perm' is of type FLOATS, the standard says INTS"),
        ("Concat", {}, "Concat 'y' lacks its attribute 'axis'"),
        ("Cast", {"to": 2**63 - 1}, "Cast 'y' casts to 9223372036854775807, which is no element type"),
        ("Cast", {"to": 0}, "Cast 'y' casts to 0, which is no element type"),
        ("Split", {"num_outputs": 10**9}, "Split 'y' claims 1000000000 outputs, it has 1"),
    ],
)
@pytest.mark.parametrize("where", ["graph", "function"])
def test_attributes_that_no_runtime_takes_are_refused(op: str, attributes: dict[str, Any], said: str, where: str):
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    functions = [helper.make_function("local", "F", ["x"], ["y"], [node], imports)] if where == "function" else []
    nodes = [helper.make_node("F", ["x"], ["y"], domain="local")] if functions else [node]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    with pytest.raises(InputError) as caught:
        read(helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8))
    assert said in str(caught.value)


def test_attributes_of_other_versions_and_other_domains_are_nobodys_business():
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], axis="one", domain="acme"),
        helper.make_node("Clip", ["a"], ["b"], min=0.0),  # of opset 6, in a model of opset 18
        helper.make_node("Later", ["b"], ["y"], axis="one"),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    read(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=imports, ir_version=8))
