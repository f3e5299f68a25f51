"""Quantization: what ONNX Runtime makes of it, numbers, masks, and every reason to stay float."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import int8_kit as kit
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.ir.feeds import Feeds
from joulec.ir.module import Module, Range
from joulec.ir.verify import mask_problems
from joulec.passes._qdq import (
    activation_parameters,
    bias_floor,
    needs_reduced_range,
    weight_parameters,
)
from joulec.passes._qdq import quantized as integers
from joulec.passes.quantize import Quantize

X = {"x": (1, 3, 12, 12)}


@pytest.fixture
def cnn() -> Module:
    return kit.build(kit.CNN, kit.cnn_weights())


# -- the CPU form -------------------------------------------------------------------------------------------


def test_every_block_becomes_an_integer_kernel(cnn: Module, tmp_path: Path) -> None:
    made, result = kit.quantized(cnn, kit.feeds(**X))
    assert kit.kernels(made, tmp_path) == Counter(
        QuantizeLinear=1, QLinearConv=3, MaxPool=1, QLinearAdd=1, QLinearGlobalAveragePool=1, Flatten=1, QGemm=1,
        Softmax=1,
    )  # fmt: skip
    assert kit.reasons(result) == {"softmax11": "no INT8 kernel on cpu"}
    assert result.notes == ("INT8: 1 Add, 3 Conv, 1 Flatten, 1 Gemm, 1 GlobalAveragePool, 1 MaxPool",)


def test_numbers_stay_close(cnn: Module) -> None:
    data = kit.feeds(**X)
    made, _ = kit.quantized(cnn, data)
    assert 0 < kit.relative_error(cnn, made, data) < 0.05


def test_the_written_form_is_the_one_that_is_documented(cnn: Module) -> None:
    made, _ = kit.quantized(cnn, kit.feeds(**X))
    stored = made.graph.initializers
    weight, scale, bias = (stored[name].const_value for name in ("w1_quantized", "w1_scale", "b1_quantized"))
    assert weight is not None and scale is not None and bias is not None
    assert (weight.dtype.name, scale.dtype.name, bias.dtype.name) == ("INT8", "FLOAT", "INT32")
    assert stored["r1_zero_point"].const_value.numpy() == 0, "zero-point 0 after Relu"  # type: ignore[union-attr]
    assert stored["k2_zero_point"].const_value.numpy() == 0, "zero-point 0 after Clip(0, 6)"  # type: ignore[union-attr]
    assert not {"w1", "b1", "w2", "b2", "w3", "w4", "b4"} & set(stored), "float originals are gone"
    sx, sw = stored["x_scale"].const_value.numpy(), scale.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(stored["b1_scale"].const_value.numpy(), sx * sw)  # type: ignore[union-attr]


def test_weights_round_trip_and_scales_run_along_output_channels(cnn: Module) -> None:
    weights = kit.cnn_weights()
    made, _ = kit.quantized(cnn, kit.feeds(**X))
    for name in ("w1", "w2", "w3", "w4"):
        q = made.graph.initializers[f"{name}_quantized"].const_value.numpy()  # type: ignore[union-attr]
        s = made.graph.initializers[f"{name}_scale"].const_value.numpy()  # type: ignore[union-attr]
        rest = tuple(range(1, q.ndim))
        np.testing.assert_array_equal(np.abs(q).max(axis=rest), 127)
        np.testing.assert_allclose(s, np.abs(weights[name]).max(axis=rest) / 127, rtol=1e-6)
        back = q * s.reshape(-1, *[1] * (q.ndim - 1))
        assert np.all(np.abs(back - weights[name]) <= s.reshape(-1, *[1] * (q.ndim - 1)) * 0.500001)
        np.testing.assert_array_equal(np.rint(back / s.reshape(-1, *[1] * (q.ndim - 1))), q)


def test_the_same_input_gives_the_same_bytes(cnn: Module) -> None:
    one, other = (kit.quantized(cnn, kit.feeds(**X))[0] for _ in range(2))
    assert one.to_proto().SerializeToString(deterministic=True) == other.to_proto().SerializeToString(
        deterministic=True
    )


def test_masks_move_to_the_integers(cnn: Module) -> None:
    mask = np.abs(kit.cnn_weights()["w1"]) > 0.5
    cnn.graph.initializers["w1"].const_value = ir.tensor(kit.cnn_weights()["w1"] * mask, name="w1")
    cnn.masks["w1"] = mask
    made, _ = kit.quantized(cnn, kit.feeds(**X))
    assert list(made.masks) == ["w1_quantized"]
    assert not list(mask_problems(made))


def test_a_transformer_block(tmp_path: Path) -> None:
    """Projections and both attention products run on integers; LayerNorm and Softmax stay float."""
    text = """t (float[1,6,16] x) => (float[1,6,16] y) {
      n = LayerNormalization(x, g, g)
      q0 = MatMul(n, wq) q1 = Reshape(q0, heads) q = Transpose<perm=[0,2,1,3]>(q1)
      k0 = MatMul(n, wk) k1 = Reshape(k0, heads) k = Transpose<perm=[0,2,3,1]>(k1)
      v0 = MatMul(n, wv) v1 = Reshape(v0, heads) v = Transpose<perm=[0,2,1,3]>(v1)
      a = MatMul(q, k) s = Mul(a, c) p = Softmax(s)
      o0 = MatMul(p, v) o1 = Transpose<perm=[0,2,1,3]>(o0) o = Reshape(o1, flat)
      u = MatMul(o, wo) z = Add(u, bo) y = Add(z, x)
    }"""
    random = kit.random(g=(16,), wq=(16, 16), wk=(16, 16), wv=(16, 16), wo=(16, 16), bo=(16,))
    weights = {
        **{name: array / 4 for name, array in random.items()},
        "c": np.float32(0.35), "heads": np.array([1, 6, 4, 4]), "flat": np.array([1, 6, 16]),
    }  # fmt: skip
    data = kit.feeds(x=(1, 6, 16))
    module = kit.build(text, weights)
    made, result = kit.quantized(module, data)
    found = kit.kernels(made, tmp_path)
    assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 6
    assert found["MatMul"] == found["Gemm"] == found["FusedMatMul"] == 0
    assert kit.relative_error(module, made, data) < 0.05
    assert set(kit.reasons(result).values()) == {
        "no INT8 kernel on cpu", "not next to a quantized operator",
    }  # fmt: skip


SINGLE = {
    "a shared weight": (
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, w, b) }",
        {"w": (4, 4, 1, 1), "b": (4,)}, {"QLinearConv": 2},
    ),
    "a result that is read twice": (
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z) { y = Conv(x, w) z = Conv(y, w) }",
        {"w": (4, 4, 1, 1)}, {"QLinearConv": 2},
    ),
    "concat": (
        """g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
          a = Conv(x, w) b = Conv(x, v) c = Concat<axis=1>(a, b) y = Conv(c, u) }""",
        {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "u": (4, 8, 1, 1)}, {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "average pool": (
        """g (float[1,4,6,6] x) => (float[1,4,5,5] y) {
          a = Conv(x, w) b = AveragePool<kernel_shape=[2,2]>(a) y = Conv(b, v) }""",
        {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)}, {"QLinearConv": 2, "QLinearAveragePool": 1},
    ),
    "a gate": (
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) { a = Conv(x, w) s = Sigmoid(a) m = Mul(a, s) y = Conv(m, w) }",
        {"w": (4, 4, 1, 1)}, {"QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "hard swish": (
        """g (float[1,4,6,6] x) => (float[1,4,6,6] y) <float three = {3.0}, float six = {6.0}, float zero = {0.0}> {
          c = Conv(x, w) a = Add(c, three) k = Clip(a, zero, six) m = Mul(c, k) d = Div(m, six) y = Conv(d, w) }""",
        {"w": (4, 4, 1, 1)},
        {"QLinearConv": 2, "QLinearAdd": 1, "QLinearMul": 1, "Clip": 0, "Div": 0, "DequantizeLinear": 1},
    ),
    "a factor and a convolution on one input": (
        """g (float[1,4,6,6] x) => (float[1,4,6,6] y) <float half = {0.5}> {
          m = Mul(x, half) c = Conv(m, w) d = Conv(x, w) s = Add(c, d) y = Conv(s, w) }""",
        {"w": (4, 4, 1, 1)}, {"QLinearConv": 3, "QLinearAdd": 1, "Mul": 0, "QuantizeLinear": 1, "DequantizeLinear": 1},
    ),
    "a factor at a graph output": (
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) <float half = {0.5}> { c = Conv(x, w) y = Mul(half, c) }",
        {"w": (4, 4, 1, 1)}, {"QLinearConv": 1, "Mul": 0},
    ),
    "one output channel": (
        "g (float[1,4,6,6] x) => (float[1,1,6,6] y) { y = Conv(x, w, b) }",
        {"w": (1, 4, 1, 1), "b": (1,)}, {"QLinearConv": 1},
    ),
    "a convolution in 1-D": (
        "g (float[1,4,16] x) => (float[1,4,14] y) { c = Conv(x, w, b) l = LeakyRelu(c) y = Conv(l, v) }",
        {"w": (4, 4, 3), "b": (4,), "v": (4, 4, 1)}, {"QLinearConv": 2, "QLinearLeakyRelu": 1},
    ),
    "matmul with a bias of rank 1": (
        "g (float[4,8] x) => (float[4,4] y) { m = MatMul(x, w) a = Add(m, b) y = Softmax(a) }",
        {"w": (8, 4), "b": (4,)}, {"QGemm": 1},
    ),
    "matmul with a bias of rank 2": (
        "g (float[4,8] x) => (float[4,4] y) { m = MatMul(x, w) a = Add(m, b) y = Softmax(a) }",
        {"w": (8, 4), "b": (1, 4)}, {"QLinearMatMul": 1},
    ),
    "matmul of rank 3 with a bias": (
        "g (float[2,4,8] x) => (float[2,4,4] y) { m = MatMul(x, w) y = Add(m, b) }",
        {"w": (8, 4), "b": (4,)}, {"MatMulIntegerToFloat": 1},
    ),
    "gemm without a bias": (
        "g (float[4,8] x) => (float[4,4] y) { y = Gemm(x, w) }", {"w": (8, 4)}, {"QGemm": 1},
    ),
    "gemm with a bias of rank 2": (
        "g (float[4,8] x) => (float[4,4] y) { m = Gemm(x, w, b) y = Softmax(m) }",
        {"w": (8, 4), "b": (1, 4)}, {"QGemm": 1},
    ),
    "a graph output in the middle": (
        "g (float[1,4,6,6] x) => (float[1,4,6,6] r, float[1,4,6,6] y) { c = Conv(x, w) r = Relu(c) y = Conv(r, w) }",
        {"w": (4, 4, 1, 1)}, {"QLinearConv": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SINGLE)
def test_fused_form(case: str, tmp_path: Path) -> None:
    text, shapes, expected = SINGLE[case]
    module = kit.build(text, kit.random(**shapes))
    value = module.graph.inputs[0]
    data = kit.feeds(x=tuple(int(str(dim)) for dim in value.shape or ()))
    made, _ = kit.quantized(module, data)
    found = kit.kernels(made, tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(found)
    assert kit.relative_error(module, made, data) < 0.06


# -- TensorRT -----------------------------------------------------------------------------------------------


def test_the_tensorrt_form(cnn: Module) -> None:
    made, _ = kit.quantized(cnn, kit.feeds(**X), kit.TENSORRT)
    stored = made.graph.initializers
    zero_points = [v.const_value.numpy() for name, v in stored.items() if name.endswith("_zero_point")]  # type: ignore
    assert all(zp.dtype == np.int8 and not zp.any() for zp in zero_points)
    assert {"b1", "b2", "b4"} <= set(stored), "biases stay float"
    relu = next(node for node in made.graph if node.op_type == "Relu")
    producer = relu.inputs[0].producer()  # type: ignore[union-attr]
    assert producer is not None and producer.op_type == "Conv", "nothing between Conv and Relu"
    add = next(node for node in made.graph if node.op_type == "Add")
    assert [value.producer().op_type for value in add.inputs] == ["Conv", "DequantizeLinear"]  # type: ignore[union-attr]
    assert kit.ops(made)["QuantizeLinear"] == 4  # x, p1 (conv and skip share it), k2, f


# -- what stays float, and why ------------------------------------------------------------------------------

GEMM = "g (float[4,8] x, float[4,4] c) => (float[4,4] y) { y = Gemm%s(x, w%s) }"
CONV = "g (float[1,4,6,6] x%s) => (float[1,4,6,6] y) { %s }"
NAN = np.full((4, 4, 1, 1), np.nan, np.float32)
W, V, K = kit.random(w=(4, 4, 1, 1)), kit.random(w=(8, 4)), kit.random(k=(4, 4))
REFUSED = {
    "alpha": (GEMM % ("<alpha=0.5>", ""), V, "alpha or beta is not 1"),
    "transA": ("g (float[8,4] x) => (float[4,4] y) { y = Gemm<transA=1>(x, w) }", V, "transA is set"),
    "bias": (GEMM % ("", ", c"), V, "bias not constant"),
    "bias shape": (GEMM % ("", ", k"), {**V, **K}, "bias has shape [4, 4], not one number a channel"),
    "fed": (CONV % (", float[4,4,1,1] w", "y = Conv(x, w)"), {}, "weight not constant (fold-constants comes first)"),
    "default": (
        CONV % (", float[4,4,1,1] w", "y = Conv(x, w)"), W, "weight 'w' is a graph input: a caller may replace it",
    ),
    "nan": (CONV % ("", "y = Conv(x, w)"), {"w": NAN}, "weight 'w' holds NaN or Inf"),
    "overflow": (CONV % ("", "z = Exp(x) y = Conv(z, w)"), W, "'z' is not calibrated"),
    "lonely": (CONV % ("", "y = Add(x, x)"), {}, "not next to a quantized operator"),
    "constant": (
        CONV % (", float[4,1,1] k", "z = Conv(x, w) a = Add(z, k) y = Conv(a, w)"), {**W, **kit.random(k=(4, 1, 1))},
        "a constant operand is not finite float32, or a caller may replace it",
    ),
    "clip": (CONV % ("", "y = Clip(x, lo)"), {"lo": np.float32(1)}, "its bounds are not constants around zero"),
    "kernel": (CONV % ("", "y = ConvTranspose(x, w)"), W, "no INT8 kernel on cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case: str) -> None:
    text, weights, reason = REFUSED[case]
    module = kit.build(text, weights)
    scale = 200.0 if case == "overflow" else 1.0
    shapes = {v.name: tuple(int(str(d)) for d in v.shape or ()) for v in module.inputs()}
    data = [{name: array * np.float32(scale) for name, array in feed.items()} for feed in kit.feeds(2, **shapes)]
    made, result = kit.quantized(module, data) if case != "nan" else _with_ranges(module)
    assert reason in kit.reasons(result).values()
    if case != "constant":
        assert not result.changed and kit.ops(made) == kit.ops(module)


def _with_ranges(module: Module):  # type: ignore[no-untyped-def]
    module.ranges = {"x": Range(-1, 1), "y": Range(-1, 1)}
    return module, Quantize().run(module, kit.context([]))


def test_bodies_of_loops_stay_float_and_may_read_quantized_values() -> None:
    text = """g (float[1,4,6,6] x, int64 n, bool t) => (float[1,4,6,6] y) {
      c = Conv(x, w)
      y = Loop(n, t, c) <body = b (int64 i, bool t1, float[1,4,6,6] p) => (bool t2, float[1,4,6,6] q) {
        t2 = Identity(t1)  m = Conv(p, w)  q = Add(m, c)
      }>
    }"""
    module = kit.build(text, W)
    data = [{**kit.random(i, x=(1, 4, 6, 6)), "n": np.array(2), "t": np.array(True)} for i in range(4)]
    made, result = kit.quantized(module, data)
    assert "inside a loop or function: not calibrated" in kit.reasons(result).values()
    assert kit.ops(made) == Counter(QuantizeLinear=2, DequantizeLinear=3, Conv=1, Loop=1)
    assert "w" in made.graph.initializers, "the float weight is still used inside"
    assert kit.relative_error(module, made, data) < 0.03


@pytest.mark.parametrize(
    ("opset", "weights", "note"),
    [(12, "channel", "opset 12 cannot express it, 13 can (upgrade-opset comes first)"), (12, "tensor", "INT8: 1 Conv")],
)
def test_old_opsets(opset: int, weights: str, note: str) -> None:
    module = kit.build(CONV % ("", "y = Conv(x, w, b)"), {**W, **kit.random(b=(4,))}, opset)
    made, result = kit.quantized(module, kit.feeds(x=(1, 4, 6, 6)), weights=weights)
    assert result.notes == (note,)
    assert kit.relative_error(module, made, kit.feeds(2, x=(1, 4, 6, 6))) < 0.02


def test_options_choose_operators(cnn: Module) -> None:
    _, result = kit.quantized(cnn, kit.feeds(**X), keep_float=("conv0", "Gemm"))
    assert kit.reasons(result)["conv0"] == "kept float by keep-float=conv0"
    assert kit.reasons(result)["gemm10"] == "kept float by keep-float=Gemm"
    _, result = kit.quantized(cnn, kit.feeds(**X), only=("Gemm",))
    assert kit.reasons(result)["conv0"] == "not among only=Gemm"
    assert result.notes == ("INT8: 1 Flatten, 1 Gemm",)


def test_nothing_to_quantize_is_said(cnn: Module) -> None:
    assert "no integer kernels" in Quantize().run(cnn, kit.context([], kit.CUDA)).notes[0]
    assert "no calibrated ranges" in Quantize().run(cnn, replace(kit.context([]), feeds=None)).notes[0]
    made, _ = kit.quantized(cnn, kit.feeds(**X))
    assert "never quantized twice" in Quantize().run(made, kit.context([])).notes[0]


def test_random_ranges_still_make_a_valid_model(cnn: Module) -> None:
    made, _ = kit.quantized(cnn, Feeds.of(kit.feeds(**X), "random"))
    assert kit.ops(made)["QuantizeLinear"] == 8


# -- hard numbers -------------------------------------------------------------------------------------------


def test_dead_channels_and_large_biases() -> None:
    """All-zero channels keep their bias, and a bias of 1e6 on tiny weights does not overflow int32."""
    weights = {**W, "b": np.array([0, 1.5, 1e6, -3], np.float32)}
    weights["w"] = weights["w"].copy()
    weights["w"][0], weights["w"][1], weights["w"][2] = 0, 0, 1e-6
    module = kit.build(CONV % ("", "y = Conv(x, w, b)"), weights)
    made, _ = kit.quantized(module, kit.feeds(x=(1, 4, 6, 6)))
    bias = made.graph.initializers["b_quantized"].const_value.numpy()  # type: ignore[union-attr]
    scale = made.graph.initializers["b_scale"].const_value.numpy()  # type: ignore[union-attr]
    assert np.all(np.abs(bias) <= 2**30)
    np.testing.assert_allclose(bias * scale, weights["b"], rtol=1e-2)
    assert kit.relative_error(module, made, kit.feeds(2, x=(1, 4, 6, 6))) < 0.01


numbers = st.floats(-(2.0**99), 2.0**99, width=32)
ranges = st.tuples(numbers, numbers).map(sorted)


@given(ranges)
def test_zero_is_an_integer(seen: list[float]) -> None:
    made = activation_parameters(Range(*seen), "uint8")
    assert made.scale.dtype == np.float32 and made.scale > 0 and np.isfinite(made.scale)
    assert (integers(np.zeros(1), made) == made.zero_point).all()
    covered = (np.array([0, 255]) - float(made.zero_point)) * float(made.scale)
    slack = float(made.scale) * 0.501
    assert covered[0] <= min(seen[0], 0) + slack and covered[1] >= max(seen[1], 0) - slack


@given(ranges, st.tuples(st.floats(-8, 0, width=32), st.floats(0, 8, width=32)))
def test_integers_keep_within_a_clip(seen: list[float], bounds: tuple[float, float]) -> None:
    made = activation_parameters(Range(*seen), "uint8", bounds)
    lowest, highest = (np.float32(q - int(made.zero_point)) * np.float32(made.scale) for q in (0, 255))
    unbounded = made.scale == np.float32(1 / 255)
    assert unbounded or (lowest >= np.float32(bounds[0]) and highest <= np.float32(bounds[1]))


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20), st.floats(1e-10, 1e10))
def test_biases_fit(seed: int, size: float, input_scale: float) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(4, 3)) * size, rng.normal(size=4) * rng.choice([0, 1, 1e12], 4)
    made = weight_parameters(weight.astype(np.float32), 0, 127, bias_floor(bias, input_scale))
    product = np.float32(input_scale) * made.scale
    assert np.all(made.scale > 0) and np.all(product > 0) and np.all(np.abs(bias / product) < 2**31)


def test_seven_bits_without_vnni(cnn: Module, tmp_path: Path) -> None:
    made, result = kit.quantized(cnn, kit.feeds(**X), reduce_range="on")
    largest = np.abs(made.graph.initializers["w1_quantized"].const_value.numpy()).max()  # type: ignore[union-attr]
    assert largest == 63 and "7 bits" in result.notes[1]
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("flags\t\t: sse2 avx2 avx512f\n")
    new.write_text("flags\t\t: sse2 avx2 avx512_vnni\n")
    assert not needs_reduced_range(new)
    assert needs_reduced_range(old) == needs_reduced_range(tmp_path / "missing")


def test_a_pattern_names_a_node_by_its_value_too_and_one_that_fits_nothing_is_said(cnn: Module) -> None:
    _, result = kit.quantized(cnn, kit.feeds(**X), keep_float=("c2", "no-such-*"))
    assert kit.reasons(result)["conv3"] == "kept float by keep-float=c2"
    assert "keep-float=no-such-* fits no operator" in result.notes
