"""Shapes behind operators of ai.onnx.ml, of which onnx's own inference knows nothing."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import joulec
from joulec.ir import walk
from joulec.ir.onnx_file import read
from joulec.ir.shapes import infer_shapes

FIRST = {
    "Scaler": "<offset: floats = [1.0, 2.0, 3.0], scale: floats = [0.5, 0.5, 2.0]>",
    "Normalizer": '<norm: string = "L2">',
    "Imputer": "<imputed_value_floats: floats = [0.0], replaced_value_float: float = 7.0>",
}


def pipeline(first: str) -> onnx.ModelProto:
    """As skl2onnx writes a StandardScaler in front of a perceptron."""
    weights = "<float[3, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[1, 2] b = {1.0, 2.0}>"
    body = f"s = ai.onnx.ml.{first} {FIRST[first]} (x) c = Cast<to = 1>(s) m = MatMul(c, w) y = Add(m, b)"
    header = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>'
    return onnx.parser.parse_model(f"{header} g (float[n, 3] x) => (float[n, 2] y) {weights} {{ {body} }}")


@pytest.mark.parametrize("first", FIRST)
def test_the_first_step_of_a_pipeline_hides_no_shapes(first: str) -> None:
    module = read(pipeline(first))
    assert infer_shapes(module) is None
    made = {node.op_type: node.outputs[0] for node in walk.nodes(module.model)}
    assert [str(made[op].shape) for op in (first, "Cast", "MatMul")] == ["[n,3]", "[n,3]", "[n,2]"]


@pytest.mark.parametrize("first", FIRST)
def test_what_stands_behind_it_is_fused_and_priced(first: str) -> None:
    proto = pipeline(first)
    small = joulec.simplify(proto)
    assert [node.op_type for node in small.graph.node] == [first, "Gemm"]
    feed = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    before, after = (onnxruntime.InferenceSession(p.SerializeToString()).run(None, feed)[0] for p in (proto, small))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert list(joulec.estimate(proto).assumed) == ["n"]
