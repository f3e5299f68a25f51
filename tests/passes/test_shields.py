"""What is kept float stays float: ONNX Runtime would quantize weights between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import int8_kit as kit
import numpy as np
import pytest

from joulec.ir.module import Module

IMAGE, ROW = {"x": (2, 3, 8, 8)}, {"x": (4, 6)}
GRAPHS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "Conv": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
          a = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(a)  b = Conv<pads=[1,1,1,1]>(r, w2, b2)  s = Relu(b)
          y = Conv<pads=[1,1,1,1]>(s, w3)
        }""",
        {"w1": (6, 3, 3, 3), "w2": (4, 6, 3, 3), "b2": (4,), "w3": (4, 4, 3, 3)},
        IMAGE,
    ),
    "Conv of groups": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
          a = Conv<pads=[1,1,1,1]>(x, w1)  b = Conv<pads=[1,1,1,1], group=6>(a, w2)  k = Clip(b, lo, hi)
          y = Conv<pads=[1,1,1,1]>(k, w3)
        }""",
        {"w1": (6, 3, 3, 3), "w2": (6, 1, 3, 3), "w3": (4, 6, 3, 3)},
        IMAGE,
    ),
    "Gemm": (
        """g (float[N,6] x) => (float[N,5] y) {
          a = Gemm<transB=1>(x, w1, b1)  r = Relu(a)  b = Gemm(r, w2, b2)  s = Relu(b)  y = Gemm<transB=1>(s, w3)
        }""",
        {"w1": (8, 6), "b1": (8,), "w2": (8, 7), "b2": (7,), "w3": (5, 7)},
        ROW,
    ),
}


def model(name: str) -> tuple[Module, dict[str, tuple[int, ...]]]:
    graph, shapes, fed = GRAPHS[name]
    weights: dict[str, Any] = kit.random(0, **shapes)
    if "lo" in graph:
        weights |= {"lo": np.float32(0), "hi": np.float32(6)}
    return kit.build(graph, weights), fed


@pytest.mark.parametrize("name", GRAPHS)
def test_the_runtime_computes_in_float_what_is_kept_float(name: str, tmp_path: Path):
    module, fed = model(name)
    made, _ = kit.quantized(module, kit.feeds(**fed), keep_float=("b",))
    op = name.split()[0]
    integer = {"Conv": "QLinearConv", "Gemm": "QGemm"}[op]
    found = kit.kernels(made, tmp_path)
    assert found[integer] == 2, found
    assert found[op] + found[f"Fused{op}"] == 1, found


@pytest.mark.parametrize("name", GRAPHS)
def test_a_shield_changes_no_number(name: str):
    """The runtime with all its optimizations gives what it gives without any, but for the rounding of INT8."""
    module, fed = model(name)
    data = kit.feeds(**fed)
    made, _ = kit.quantized(module, data, keep_float=("b",))
    assert kit.relative_error(module, made, data) < 0.03
    shields = [node for node in made.graph if node.name and node.name.endswith("_shield")]
    assert len(shields) == 1
    scales = shields[0].inputs[1].const_value.numpy()  # type: ignore[union-attr]
    assert scales.ndim == 1 and len(set(scales.tolist())) == 1


def test_what_ends_in_float_needs_no_shield():
    module, fed = model("Conv")
    made, _ = kit.quantized(module, kit.feeds(**fed), keep_float=("y",))
    assert not any(node.name and node.name.endswith("_shield") for node in made.graph)
    whole, _ = kit.quantized(module, kit.feeds(**fed))
    assert not any(node.name and node.name.endswith("_shield") for node in whole.graph)


POOLED = """g (float[N,3,8,8] x) => (float[N,4,4,4] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(a)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
  y = Conv<pads=[1,1,1,1]>(p, w2)
}"""


def test_a_pooling_of_floats_stays_one(tmp_path: Path):
    """ONNX Runtime moves a QuantizeLinear in front of MaxPool, whose kernel for eight bits is many times as slow."""
    module = kit.build(POOLED, kit.random(0, w1=(6, 3, 3, 3), w2=(4, 6, 3, 3)))
    made, _ = kit.quantized(module, kit.feeds(**IMAGE), keep_float=("a",))
    assert kit.types_read(made, kit.feeds(**IMAGE)[0], tmp_path, "MaxPool") == {"float"}
    found = kit.kernels(made, tmp_path)
    assert found["QLinearConv"] == 1 and found["QuantizeLinear"] == 1 and not found["Clip"], found
    assert kit.relative_error(module, made, kit.feeds(**IMAGE)) < 0.03


def test_a_pooling_of_integers_needs_no_shield(tmp_path: Path):
    module = kit.build(POOLED, kit.random(0, w1=(6, 3, 3, 3), w2=(4, 6, 3, 3)))
    made, _ = kit.quantized(module, kit.feeds(**IMAGE))
    assert not any(node.op_type == "Clip" for node in made.graph)
    assert kit.types_read(made, kit.feeds(**IMAGE)[0], tmp_path, "NhwcMaxPool") == {"uint8"}


def test_a_pooling_beside_a_convolution_stays_float(tmp_path: Path):
    """Both read what is computed in float: the integers that the convolution asks for are in no NHWC layout."""
    graph = """g (float[N,3,8,8] x) => (float[N,10,8,8] y) {
      a = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(a)  c = Conv<pads=[1,1,1,1]>(r, w2)
      p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)  d = Conv(p, w3)  k = Concat<axis=1>(c, d)  y = Relu(k)
    }"""
    module = kit.build(graph, kit.random(0, w1=(6, 3, 3, 3), w2=(4, 6, 3, 3), w3=(6, 6, 1, 1)))
    made, _ = kit.quantized(module, kit.feeds(**IMAGE), keep_float=("a",))
    assert kit.types_read(made, kit.feeds(**IMAGE)[0], tmp_path, "MaxPool") == {"float"}


ENDS = {
    "Gemm, Relu": ("a = Gemm<transB=1>(x, w, b)  r = Relu(a)", "QGemm"),
    "Gemm, Clip": ("a = Gemm<transB=1>(x, w, b)  r = Clip(a, lo, hi)", "QGemm"),
    "Gemm": ("r = Gemm<transB=1>(x, w, b)", "QGemm"),
    "MatMul, Relu": ("a = MatMul(x, v)  r = Relu(a)", "QLinearMatMul"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_in_float_behind_a_clamp_does_not_fall_apart(name: str, tmp_path: Path):
    nodes, kernel = ENDS[name]
    weights = {**kit.random(0, w=(5, 6), b=(5,), v=(6, 5)), "lo": np.float32(0), "hi": np.float32(6)}
    module = kit.build(f"g (float[N,6] x) => (float[N,5] y) {{ {nodes}  y = Elu(r) }}", weights)
    made, _ = kit.quantized(module, kit.feeds(x=(4, 6)))
    found = kit.kernels(made, tmp_path)
    assert found[kernel] == 1, found
    assert not found["Gemm"] + found["FusedGemm"] + found["MatMul"], found
