"""Attributes that refer to those of the function around them: their value is another one at each call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.passes.base import Context, Pass
from joulec.passes.cheapen_activations import CheapenActivations
from joulec.passes.default import simplifying_passes
from joulec.passes.expand_activations import ExpandActivations
from joulec.passes.expand_einsum import ExpandEinsum
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

TARGET = Target("test", "CPUExecutionProvider", 0, 0, None, "generic-server-cpu")
CHOSEN = [UpgradeOpset(to=21), ExpandActivations(), CheapenActivations(), ExpandEinsum()]
PASSES = {one.pass_name(): one for one in [*simplifying_passes(), *CHOSEN]}
RANKS = [4, 2, 1]
GRAPH = onnx.AttributeProto.GRAPH
Parse = Callable[..., Module]


def referring(op: str, opset: int, inputs: list[str], made: str) -> onnx.NodeProto | None:
    """A node all attributes of which refer to some of the function."""
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    node = helper.make_node(op, inputs[: schema.max_input], [made], name=f"n_{made}")
    for name, attribute in schema.attributes.items():
        if int(attribute.type) == GRAPH:
            return None
        node.attribute.add(name=name, type=int(attribute.type), ref_attr_name=name)
    return node if schema.min_output <= 1 and len(node.input) >= schema.min_input else None


def everything(opset: int) -> onnx.ModelProto:
    """A function with every operator twice in a row and, behind it, an operator that could be fused."""
    nodes: list[onnx.NodeProto] = []
    for op in sorted({s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain}):
        for rank in RANKS:
            first = referring(op, opset, [f"x{rank}", *["c"] * 4], f"{op}{rank}")
            second = first and referring(op, opset, [first.output[0], *["c"] * 4], f"{op}{rank}b")
            nodes += [node for node in (first, second) if node is not None]
    names = sorted({attribute.ref_attr_name for node in nodes for attribute in node.attribute})
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    nodes.insert(0, helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((1, 1), np.float32))))
    results = [nodes[-1].output[0], *(node.output[0] for node in nodes[::7])]
    function = helper.make_function(
        "local", "F", [f"x{r}" for r in RANKS], list(dict.fromkeys(results)), nodes, imports, names
    )
    values = [helper.make_tensor_value_info(f"x{r}", TensorProto.FLOAT, [2] * r) for r in RANKS]
    call = helper.make_node("F", [f"x{r}" for r in RANKS], ["y"], domain="local")
    graph = helper.make_graph([call], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)


@pytest.mark.parametrize("one", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("opset", [12, 18])
def test_no_pass_fails_where_every_attribute_is_a_reference(one: Pass, opset: int) -> None:
    module = Module(ir.from_proto(everything(opset)))
    infer_shapes(module)
    one.run(module, Context(TARGET))


def test_an_unused_transpose_by_a_reference_stays_or_goes_but_breaks_nothing() -> None:
    body = [
        helper.make_node("Transpose", ["a"], ["unused"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]),
        helper.make_node("Transpose", ["t"], ["b"], perm=[1, 0]),
    ]
    body[0].attribute.add(name="perm", type=onnx.AttributeProto.INTS, ref_attr_name="perm")
    _simplifies(body, ["perm"], perm=[1, 0])


def test_a_tensor_that_each_call_gives_is_read() -> None:
    """Its reference carries no tensor: there is nothing to check there."""
    body = [helper.make_node("Constant", [], ["c"]), helper.make_node("Add", ["a", "c"], ["b"])]
    body[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="weight")
    _simplifies(body, ["weight"], weight=numpy_helper.from_array(np.full((1, 3), 2, np.float32)))


def _simplifies(body: list[onnx.NodeProto], names: list[str], **given: object) -> None:
    """A function of `body` from a to b, called once, computes the same after all exact passes."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "F", ["a"], ["b"], body, imports, names)
    call = helper.make_node("F", ["x"], ["y"], domain="local", **given)  # type: ignore[arg-type]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = helper.make_graph([call], "g", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
    module = lower(proto).module
    for one in simplifying_passes():
        infer_shapes(module)
        one.run(module, Context(TARGET))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (proto, module.to_proto())
    )
    np.testing.assert_array_equal(before, after)
