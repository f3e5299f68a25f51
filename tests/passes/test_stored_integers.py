"""legalize-qdq: integers that a model stores and does not dequantize on the spot, as other tools leave them."""

from __future__ import annotations

import numpy as np
import pytest

from joulec.backends import BACKENDS
from tests.passes.int8_kit import build, feeds, quantized, random
from tests.passes.test_legalize_qdq import legalized, model, ops, rules, run

TABLE = """g (int64[3] i) => (float[3,5] y) {
    e = Gather(t, i) d = DequantizeLinear(e, s, z) y = MatMul(d, w) }"""
"""The table of an embedding that ONNX Runtime's dynamic quantization leaves in integers."""

ROWS = np.int64([0, 19, 7])
WEIGHT = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)


def scaled(zero: int, dtype: type) -> dict[str, np.ndarray]:
    return {"t": np.arange(80).reshape(20, 4).astype(dtype), "s": np.float32(0.1), "z": np.asarray(zero, dtype)}


def test_a_table_that_is_looked_up_in_integers_becomes_float() -> None:
    made = model(TABLE.replace("MatMul(d, w)", "Gemm(r, w)").replace("y =", "r = Relu(d) y ="), {**scaled(40, np.uint8), "w": WEIGHT})
    assert {"unsigned-integers", "stored-integers"} <= rules(made)
    fixed, result = legalized(made)
    assert ops(fixed) == ["Gather", "Relu", "Gemm"] and not rules(fixed)
    assert [one.rule for one in result.rewrites].count("stored-integers") == 1
    np.testing.assert_allclose(run(fixed, ROWS)[0], run(made, ROWS)[0], rtol=1e-5, atol=1e-5)


def test_a_product_behind_a_table_still_reads_integers() -> None:
    """Signed ones are mended too: TensorRT takes stored integers right before DequantizeLinear only."""
    weight = {"w8": np.clip(np.rint(WEIGHT / 0.03), -128, 127).astype(np.int8), "ws": np.float32(0.03), "wz": np.int8(0)}
    made = model(TABLE.replace("y =", "w = DequantizeLinear(w8, ws, wz) y ="), {**scaled(0, np.int8), **weight})
    assert "stored-integers" in rules(made)
    fixed, _ = legalized(made)
    assert ops(fixed) == ["Gather", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"] and not rules(fixed)
    expected = run(made, ROWS)[0]
    assert np.linalg.norm(run(fixed, ROWS)[0] - expected) < 0.01 * np.linalg.norm(expected)


def test_two_readers_of_a_table_share_its_floats() -> None:
    text = """g (int64[3] i, int64[3] j) => (float[3,4] y) {
        a = Gather(t, i) d = DequantizeLinear(a, s, z) b = Gather(t, j) e = DequantizeLinear(b, s, z) y = Sub(d, e) }"""
    made = model(text, scaled(40, np.uint8))
    fixed, _ = legalized(made)
    assert ops(fixed) == ["Gather", "Gather", "Sub"] and len(fixed.graph.initializer) == 1
    np.testing.assert_allclose(run(fixed, ROWS, ROWS[::-1].copy())[0], run(made, ROWS, ROWS[::-1].copy())[0], rtol=1e-5, atol=1e-5)


def test_a_scale_for_each_row_is_refused_with_the_reason() -> None:
    text = "g (int64[20] i) => (float[20,4] y) { e = Gather(t, i) y = DequantizeLinear <axis = 0> (e, s, z) }"
    given = {"t": np.ones((20, 4), np.int8), "s": np.full(20, 0.1, np.float32), "z": np.zeros(20, np.int8)}
    fixed, result = legalized(model(text, given))
    assert "stored-integers" in rules(fixed)
    assert any("no one constant scale" in one.reason for one in result.refusals)


def test_stored_integers_beside_an_activation_are_refused_with_the_reason() -> None:
    text = """g (float[2,4] x) => (float[22,4] y) {
        q = QuantizeLinear(x, s, z) k = Concat <axis = 0> (q, t) y = DequantizeLinear(k, s, z) }"""
    fixed, result = legalized(model(text, scaled(3, np.uint8)))
    assert "stored-integers" in rules(fixed)
    assert any("beside those of activations" in one.reason for one in result.refusals)


@pytest.mark.parametrize("number", [np.int8(127), np.uint8(255)])
def test_a_single_number_becomes_float(number: np.generic) -> None:
    """Quark keeps the square root in a GELU as an integer; TensorRT-RTX takes none for a constant that nothing reads."""
    made = model(
        "g (float[2,4] x) => (float[2,4] y) { d = DequantizeLinear(c, s, z) y = Div(x, d) }",
        {"c": np.asarray(number), "s": np.float32(0.011), "z": np.zeros((), number.dtype)},
    )
    assert "stored-integers" in rules(made)
    fixed, _ = legalized(made)
    assert ops(fixed) == ["Div"] and not rules(fixed)
    given = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(run(fixed, given)[0], run(made, given)[0], rtol=1e-5)


def test_a_single_number_that_is_quantized_in_the_graph_becomes_float() -> None:
    made = model(
        """g (float[2,4] x) => (float[2,4] y) {
            q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) y = Div(x, d) }""",
        {"c": np.float32(1.414), "s": np.float32(0.011), "z": np.int8(0)},
    )
    fixed, _ = legalized(made)
    assert ops(fixed) == ["Div"]


@pytest.mark.parametrize(("kind", "zero"), [(np.int8, -3), (np.uint8, 140)])
def test_integers_at_the_signature_stay(kind: type, zero: int) -> None:
    """As TensorFlow Lite makes them: who calls gives and gets integers around a zero-point."""
    word = np.dtype(kind).name
    text = f"""g ({word}[2,4] x) => ({word}[2,5] y) {{
        t = Transpose <perm = [0, 1]> (x) d = DequantizeLinear(t, s, z) w = DequantizeLinear(w8, ws, wz)
        m = MatMul(d, w) y = QuantizeLinear(m, s, z) }}"""
    weight = {"w8": np.clip(np.rint(WEIGHT / 0.03), -128, 127).astype(np.int8), "ws": np.float32(0.03), "wz": np.int8(0)}
    made = model(text, {"s": np.float32(0.1), "z": np.asarray(zero, kind), **weight})
    assert rules(made) & {"zero-point", "unsigned-integers"}
    fixed, result = legalized(made)
    assert not rules(fixed) and not result.refusals, (rules(fixed), result.refusals)
    assert {"integer-input", "integer-output"} <= {one.rule for one in result.rewrites}
    assert [fixed.graph.input[0].type, fixed.graph.output[0].type] == [made.graph.input[0].type, made.graph.output[0].type]
    given = np.random.default_rng(0).integers(*((-40, 40) if kind is np.int8 else (100, 180)), (2, 4)).astype(kind)
    off = run(fixed, given)[0].astype(int) - run(made, given)[0].astype(int)
    assert np.abs(off).max() <= 2  # activations in steps of reach / 127 instead of 0.1


def test_what_leaves_as_integers_may_be_read_inside_too() -> None:
    text = """g (float[2,4] x) => (uint8[2,4] q, float[2,5] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(w8, ws, wz) y = MatMul(d, w) }"""
    weight = {"w8": np.clip(np.rint(WEIGHT / 0.03), -128, 127).astype(np.int8), "ws": np.float32(0.03), "wz": np.int8(0)}
    made = model(text, {"s": np.float32(0.02), "z": np.uint8(128), **weight})
    fixed, _ = legalized(made)
    given = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    assert not rules(fixed)
    np.testing.assert_array_equal(run(fixed, given)[0], run(made, given)[0])
    np.testing.assert_allclose(run(fixed, given)[1], run(made, given)[1], atol=0.05)


def test_rounding_by_ranges_of_the_moment_goes() -> None:
    """Dynamic ranges of TensorFlow Lite: DynamicQuantizeLinear and back."""
    text = """g (float[2,4] x) => (float[2,5] y) {
        q, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"""
    made = model(text, {"w": WEIGHT})
    assert "integer-operator" in rules(made)
    fixed, _ = legalized(made)
    assert ops(fixed) == ["MatMul"] and not rules(fixed)


@pytest.mark.parametrize("weight", ["w", "v"])
def test_both_operands_of_an_integer_product_may_be_quantized_in_the_graph(weight: str) -> None:
    """As ONNX Runtime's dynamic quantization leaves weights of Constant nodes, and products of activations."""
    text = f"""g (float[2,4] x, float[4,5] v) => (float[2,5] y) {{
        a, s, z = DynamicQuantizeLinear(x) b, t, u = DynamicQuantizeLinear({weight})
        i = MatMulInteger(a, b, z, u) f = Cast <to = 1> (i) k = Mul(s, t) y = Mul(f, k) }}"""
    made = model(text, {"w": WEIGHT})
    assert "integer-operator" in rules(made)
    fixed, _ = legalized(made)
    assert ops(fixed) == ["MatMul"] and not rules(fixed)
    given = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(run(fixed, given, WEIGHT)[0], given @ WEIGHT, rtol=1e-5, atol=1e-5)


def test_integers_that_are_padded_are_padded_as_floats() -> None:
    """As ONNX Runtime's QOperator form keeps them: padded with the zero-point, between QLinearConv nodes."""
    text = """g (float[1,16,4,4] x) => (float[1,16,4,4] y) {
        q = QuantizeLinear(x, s, z) t = Transpose <perm = [0, 2, 3, 1]> (q) p = Pad(t, pads, z)
        r = Transpose <perm = [0, 3, 1, 2]> (p) d = DequantizeLinear(r, s, z) w = DequantizeLinear(w8, ws, wz)
        y = Conv(d, w) }"""
    numbers = np.random.default_rng(0)
    weight = {"w8": numbers.integers(-127, 127, (16, 16, 3, 3)).astype(np.int8), "ws": np.float32(0.01), "wz": np.int8(0)}
    given = {"s": np.float32(0.03), "z": np.uint8(120), "pads": np.int64([0, 1, 1, 0, 0, 1, 1, 0])}
    made = model(text, {**given, **weight})
    assert "integers-computed-on" in rules(made)
    fixed, result = legalized(made)
    assert not rules(fixed) and not result.refusals, (rules(fixed), result.refusals)
    x = numbers.normal(size=(1, 16, 4, 4)).astype(np.float32)
    expected = run(made, x)[0]
    assert np.linalg.norm(run(fixed, x)[0] - expected) < 0.02 * np.linalg.norm(expected)


def test_what_cannot_be_mended_on_one_side_stays_on_the_other() -> None:
    """Sign computes on the integers: neither what makes them nor what reads them behind it may change type."""
    text = """g (float[2,4] x) => (float[2,4] y) {
        q = QuantizeLinear(x, s, z) n = Sign(q) t = Transpose <perm = [0, 1]> (n) y = DequantizeLinear(t, s, z) }"""
    made = model(text, {"s": np.float32(0.03), "z": np.uint8(120)})
    fixed, result = legalized(made)
    assert any("computes on its integers" in one.reason for one in result.refusals)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(fixed, x)[0], run(made, x)[0])


def test_a_bias_that_is_rounded_at_each_run_is_added_as_it_was() -> None:
    """As older versions of ONNX Runtime quantize a Conv dynamically."""
    text = """g (float[1,3,6,6] x) => (float[1,4,4,4] y) {
        a, s, z = DynamicQuantizeLinear(x) k = Mul(s, ws) h = Mul(s, ws) n = Div(b, h) f = Floor(n)
        i = Cast <to = 6> (f) r = Reshape(i, shape) c = ConvInteger(a, w8, z, wz) t = Add(c, r)
        u = Cast <to = 1> (t) y = Mul(u, k) }"""
    numbers = np.random.default_rng(0)
    weight = numbers.integers(0, 255, (4, 3, 3, 3)).astype(np.uint8)
    bias = numbers.normal(size=4).astype(np.float32)
    given = {"w8": weight, "ws": np.float32(0.01), "wz": np.uint8(120), "b": bias, "shape": np.int64([1, 4, 1, 1])}
    made = model(text, given)
    fixed, result = legalized(made)
    assert not rules(fixed) and not result.refusals, (rules(fixed), result.refusals)
    assert ops(fixed) == ["Conv", "Reshape", "Add"]
    x = numbers.normal(size=(1, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(fixed, x)[0], run(made, x)[0], atol=0.2)
    other = model(text.replace("Floor(n)", "Sqrt(n)"), given)
    _, refused = legalized(other)
    assert any("not a bias that is rounded" in one.reason for one in refused.refusals)


def test_what_tensorrt_wants_in_float_is_not_quantized_in_the_first_place() -> None:
    """Quantized and given back, its weights would have been rounded for nothing."""
    text = "g (float[1,8,8,8] x) => (float[1,32,8,8] y) { a = Conv(x, v) b = Conv(a, w) y = Conv(b, u) }"
    module = build(text, random(v=(16, 8, 1, 1), w=(16, 16, 1, 1), u=(32, 16, 1, 1)))
    made, result = quantized(module, feeds(x=(1, 8, 8, 8)), BACKENDS["tensorrt"].target)
    names = [node.name for node in made.graph if node.op_type == "Conv" and node.inputs[1].producer() is not None]
    assert names == ["conv1", "conv2"]
    assert any(one.node == "conv0" and "slower in INT8" in one.reason for one in result.refusals)
