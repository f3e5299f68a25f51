"""Sizes that are provably equal get one name in residual additions of images; nothing else is named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from joulec.backends import backend
from joulec.ir.equal_sizes import declare_equal_sizes
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.shapes import infer_shapes

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
W = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
SAME = "Conv<pads=[1,1,1,1]>"


def build(body: str, inputs: str = "float[N,4,H,W] x", result: str = "y") -> Module:
    text = f"{HEAD} agraph ({inputs}) => (float[A,B,C,D] {result}) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    module = Module(ir.from_proto(proto))
    assert infer_shapes(module) is None
    return module


def shapes(module: Module, declared: list[ir.Value]) -> dict[str, list[int | str | None]]:
    return {v.name or "": [d if isinstance(d, int) else d.value for d in v.shape or ()] for v in declared}


RESIDUAL = f"a = {SAME}(x, w) b = {SAME}(a, w) c = Add(a, b) y = Relu(c)"


def test_the_names_are_the_models_own_where_it_has_some() -> None:
    module = build(RESIDUAL)
    assert shapes(module, declare_equal_sizes(module)) == {"a": ["N", 4, "H", "W"], "b": ["N", 4, "H", "W"]}


def test_a_name_that_stands_for_several_sizes_is_not_used() -> None:
    module = build(RESIDUAL, "float[?,4,?,?] x")
    named = shapes(module, declare_equal_sizes(module))
    assert named["a"] == named["b"] == ["size_0", 4, "size_1", "size_2"]


def test_sizes_behind_strides_get_names_that_nobody_has() -> None:
    body = f"a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) b = {SAME}(a, w) c = Sum(a, b) y = Relu(c)"
    module = build(body, "float[N,4,size_1,W] x")
    assert shapes(module, declare_equal_sizes(module))["b"] == ["N", 4, "size_3", "size_4"]


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (f"a = {SAME}(x, w) b = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w) c = Add(a, b) y = Relu(c)", "float[N,4,H,W] x"),
        (f"a = {SAME}(x, w) b = {SAME}(z, w) c = Add(a, b) y = Relu(c)", "float[N,4,H,W] x, float[N,4,K,W] z"),
        (f"a = {SAME}(x, w) b = GlobalAveragePool(a) c = Add(a, b) y = Relu(c)", "float[N,4,H,W] x"),
        (RESIDUAL, "float[2,4,8,8] x"),  # nothing is unknown
        (f"a = {SAME}(x, w) y = Add(a, x)", "float[N,4,H,W] x"),  # an input is declared already
    ],
)  # fmt: skip
def test_nothing_is_declared_that_is_not_proven_and_needed(body: str, inputs: str) -> None:
    assert declare_equal_sizes(build(body, inputs)) == []


def test_outputs_keep_what_they_declare() -> None:
    module = build(f"a = {SAME}(x, w) y = {SAME}(a, w) c = Add(a, y)")
    assert declare_equal_sizes(module) == []


def test_the_cpu_artefact_declares_these_shapes_and_no_others() -> None:
    module = build(RESIDUAL)
    final = backend("cpu").finished(module)
    declared = [v.name for node in final.graph for v in node.outputs if v.shape is not None and not v.is_graph_output()]
    assert declared == ["a", "b"]
    proto = final.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16)])
def test_the_numbers_stay_for_every_size(size: tuple[int, int]) -> None:
    module = build(RESIDUAL, "float[?,4,?,?] x")
    feed = {"x": np.random.default_rng(1).normal(size=(2, 4, *size)).astype(np.float32)}
    with LocalRunner() as runner:
        before = runner.run(runner.load(module), feed)["y"]
        after = runner.run(runner.load(backend("cpu").finished(module)), feed)["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5)
