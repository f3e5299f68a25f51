"""Sizes given with --shape are fixed in artefacts for GPUs, and shape arithmetic folds with them."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import parser

import joulec

TEXT = """<ir_version: 9, opset_import: ["" : 19]> g (float[batch,4,8] x) => (float[batch,M] y)
    <int64 zero = {0}, int64[1] minus = {-1}, int64[1] at = {0}> {
    s = Shape(x) n = Gather(s, zero) k = Unsqueeze(n, at) t = Concat <axis = 0> (k, minus) r = Reshape(x, t) y = Relu(r) }"""


def shapes(path: Path) -> list[list[int | str]]:
    model = onnx.load(path)
    values = [*model.graph.input, *model.graph.output]
    return [[d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim] for value in values]


def test_gpu_artefacts_have_fixed_sizes_and_the_cpu_one_keeps_its_symbols(tmp_path):
    model = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(TEXT), model)
    joulec.optimize(model, tmp_path / "out", target=["cpu", "cuda", "tensorrt"], shape={"batch": 2})
    assert shapes(tmp_path / "out" / "cuda" / "model.onnx") == [[2, 4, 8], [2, 32]]
    assert shapes(tmp_path / "out" / "tensorrt" / "model.onnx") == [[2, 4, 8], [2, 32]]
    assert shapes(tmp_path / "out" / "cpu" / "model.onnx")[0] == ["batch", 4, 8]
    ops = [node.op_type for node in onnx.load(tmp_path / "out" / "cuda" / "model.onnx").graph.node]
    assert ops == ["Reshape", "Relu"]


def test_ranges_stay_open(tmp_path):
    model = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(TEXT), model)
    from joulec.shapespec import parse_shapes

    joulec.optimize(model, tmp_path / "out", target="tensorrt", shape=parse_shapes("batch=1:4:16"))
    assert shapes(tmp_path / "out" / "model.onnx")[0] == ["batch", 4, 8]
    assert '"trt_profile_max_shapes": "x:16x4x8"' in (tmp_path / "out" / "session.json").read_text()
