"""convert-float16: what becomes 16 bits wide, what does not and why, and the emulation that rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from joulec.ir.feeds import Feeds
from joulec.ir.runner import LocalRunner
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes._half_emulation import emulated
from joulec.passes.base import Context
from joulec.passes.convert_float16 import ConvertFloat16
from tests.passes.int8_kit import CNN, CUDA, TENSORRT, build, cnn_weights, feeds, quantized, random

HALVES = frozenset({"float16", "bfloat16"})
GPU, RTX = replace(CUDA, halves=HALVES), replace(TENSORRT, halves=HALVES)


def converted(module, data, target=GPU, **options):
    made = module.clone()
    verifier = Verifier(made)
    result = ConvertFloat16(**options).run(made, Context(target, feeds=Feeds.of(data), runner=LocalRunner()))
    assert infer_shapes(made) is None
    verifier.verify(made)
    return made, result


def run(module, feed):
    runner = LocalRunner()
    return runner.run(runner.load(module), feed)


def operators(module):
    return [node.op_type for node in module.graph]


def types(module):
    """Operator -> how many nodes make which type."""
    return {node.op_type: node.outputs[0].dtype.name for node in module.graph}


def reasons(result):
    return {refusal.node: refusal.reason for refusal in result.refusals}


def test_a_network_is_cast_at_its_borders_only():
    module = build(CNN, cnn_weights())
    made, result = converted(module, feeds(x=(1, 3, 12, 12)))
    assert operators(made) == ["Cast", *operators(module), "Cast"]
    assert {value.dtype for value in made.graph.initializers.values() if value.uses()} == {ir.DataType.FLOAT16}
    assert [made.graph.inputs[0].dtype, made.graph.outputs[0].dtype] == [ir.DataType.FLOAT] * 2
    assert result.notes[-1].startswith("12 of 12 nodes compute in float16; emulated")
    feed = feeds(x=(1, 3, 12, 12))[0]
    assert run(emulated(made), feed)["y"] == pytest.approx(run(module, feed)["y"], abs=2e-3)


def test_a_value_that_overflows_stays_with_what_touches_it():
    module = build(
        "g (float[1,8] x) => (float[1,8] y) { a = Relu(x) b = Mul(a, big) c = Mul(b, small) y = Sigmoid(c) }",
        {"big": np.float32(1e5), "small": np.float32(1e-5)},
    )
    made, result = converted(module, feeds(x=(1, 8)))
    assert types(made)["Mul"] == "FLOAT" and types(made)["Sigmoid"] == "FLOAT"
    assert "overflow float16" in reasons(result)["mul1"] and "overflow float16" in reasons(result)["mul2"]


def test_bfloat16_does_not_overflow():
    module = build(
        "g (float[1,8] x) => (float[1,8] y) { a = Relu(x) b = Mul(a, big) c = Mul(b, small) y = Sigmoid(c) }",
        {"big": np.float32(1e5), "small": np.float32(1e-5)},
    )
    made, _ = converted(module, feeds(x=(1, 8)), to="bfloat16", max_error=0.05)
    assert types(made) == {"Cast": "FLOAT", "Relu": "BFLOAT16", "Mul": "BFLOAT16", "Sigmoid": "BFLOAT16"}


def test_headroom_counts():
    weights = {"w": np.float32(20_000)}
    module = build("g (float[1,8] x) => (float[1,8] y) { a = Clip(x, lo, hi) y = Mul(a, w) }",
                   {**weights, "lo": np.float32(-1), "hi": np.float32(1)})  # fmt: skip
    _, result = converted(module, [{"x": np.ones((1, 8), np.float32)}])
    assert "numbers up to 2e+04 overflow" in reasons(result)["mul1"]


def test_an_epsilon_that_would_vanish_stays():
    module = build("g (float[1,8] x) => (float[1,8] y) { a = Mul(x, x) b = Add(a, eps) y = Sqrt(b) }",
                   {"eps": np.float32(1e-12)})  # fmt: skip
    _, result = converted(module, feeds(x=(1, 8)))
    assert reasons(result)["add1"] == "stored numbers around 1e-12 are too small for float16"


def test_a_divisor_that_may_vanish_stays():
    module = build("g (float[1,8] x, float[1,8] d) => (float[1,8] y) { y = Div(x, d) }", {})
    data = [{"x": np.ones((1, 8), np.float32), "d": np.full((1, 8), 1e-6, np.float32)}]
    _, result = converted(module, data)
    assert "numbers down to 1e-06 are lost" in reasons(result)["div0"]


def test_a_mask_saturates_where_only_softmax_sees_it():
    text = "g (float[1,4] x, bool[1,4] hide) => (float[1,4] y) { m = Where(hide, low, zero) s = Add(x, m) y = Softmax(s) }"
    module = build(text, {"low": np.float32(-3.4e38), "zero": np.float32(0)})
    data = [{"x": one["x"], "hide": np.array([[False, True, False, True]])} for one in feeds(x=(1, 4))]
    made, result = converted(module, data)
    assert reasons(result) == {} and types(made)["Where"] == "FLOAT16"
    low = next(v for name, v in made.graph.initializers.items() if name.startswith("low_"))
    assert low.const_value.numpy() == np.float16(-65504)
    assert run(emulated(made), data[0])["y"] == pytest.approx(run(module, data[0])["y"], abs=1e-3)


def test_a_mask_that_somebody_else_reads_does_not():
    text = "g (float[1,4] x) => (float[1,4] y, float[1,4] z) { s = Add(x, low) y = Softmax(s) z = Neg(s) }"
    _, result = converted(build(text, {"low": np.float32(-1e9)}), feeds(x=(1, 4)))
    assert "overflow" in reasons(result)["add0"]


def test_one_cast_serves_all_readers():
    text = "g (float[1,8] x) => (float[1,8] y, float[1,8] z) { a = Relu(x) b = CumSum(a, i) c = CumSum(a, i) d = Add(a, a) y = Add(b, d) z = Add(c, d) }"
    made, result = converted(build(text, {"i": np.int64(1)}), feeds(x=(1, 8)), target=GPU)
    assert reasons(result)["cumsum1"] == "its kernel adds up in float16"
    readers = [use.node.op_type for node in made.graph if node.op_type == "Cast" for use in node.outputs[0].uses()]
    casts = [node for node in made.graph if node.op_type == "Cast"]
    assert len({node.inputs[0].name for node in casts}) == len(casts), readers


def test_a_branch_reads_what_it_read_before():
    text = """g (float[1,8] x, bool p) => (float[1,8] y) { a = Relu(x)
        b = If(p) <then_branch = t () => (float[1,8] u) { u = Neg(a) }, else_branch = e () => (float[1,8] v) { v = Abs(a) }>
        y = Sigmoid(b) }"""
    module = build(text, {})
    data = [{"x": one["x"], "p": np.array(bool(index % 2))} for index, one in enumerate(feeds(x=(1, 8)))]
    made, result = converted(module, data)
    assert reasons(result)["if1"] == "it holds graphs of its own"
    assert run(made, data[0])["y"] == pytest.approx(run(module, data[0])["y"], abs=2e-3)


def test_cancellation_is_found_by_its_effect():
    text = """g (float[1,64] x) => (float[1,64] y) {
        a = Relu(x) b = Add(a, k) c = Sub(b, k) d = Sigmoid(c) e = Mul(d, d) y = Mul(e, c) }"""
    module = build(text, {"k": np.float32(4000)})
    made, result = converted(module, feeds(x=(1, 64)), max_error=0.01)
    assert any("costs most of the error" in reason for reason in reasons(result).values())
    feed = feeds(x=(1, 64))[0]
    before, after = run(module, feed)["y"], run(emulated(made), feed)["y"]
    assert np.linalg.norm(after - before) <= 0.01 * np.linalg.norm(before)
    strict, _ = converted(module, feeds(x=(1, 64)), max_error=1e-7)
    assert "Cast" not in operators(strict)


@pytest.mark.parametrize(("rows", "product"), [(2048, "FLOAT16"), (1, "FLOAT")])
def test_a_cast_in_the_middle_must_pay(rows, product):
    """The cast in front of Softmax costs a launch: a large product saves more than that, a small one does not."""
    module = build(f"g (float[{rows},512] x) => (float[{rows},1024] y) {{ a = MatMul(x, w) y = Softmax(a) }}",
                   random(w=(512, 1024)))  # fmt: skip
    made, result = converted(module, feeds(2, x=(rows, 512)), keep_float=("Softmax", "nothing*"), max_error=0.1)
    assert reasons(result) == {"softmax1": "keep-float=Softmax"}
    assert result.notes[0] == "keep-float=nothing* fits no operator"
    assert types(made)["Softmax"] == "FLOAT" and types(made)["MatMul"] == product


def test_no_cast_stands_behind_a_dequantize():
    module = build(CNN, cnn_weights())
    data = feeds(x=(1, 3, 12, 12))
    int8, _ = quantized(module, data, TENSORRT)
    made, _ = converted(int8, data, RTX)
    pairs = [node for node in made.graph if node.op_type == "DequantizeLinear"]
    assert pairs and all(use.node.op_type != "Cast" for node in pairs for use in node.outputs[0].uses())
    assert {node.inputs[1].dtype for node in pairs} == {ir.DataType.FLOAT16}
    before, after = run(int8, data[0])["y"], run(emulated(made), data[0])["y"]
    assert after == pytest.approx(before, abs=2e-2)


def test_the_two_of_a_pair_have_one_type():
    """The Q reads a value whose maker stays float32, and the DQ feeds an operator that does not."""
    text = """g (float[64,512] x) => (float[64,512] y) {
        a = Mul(x, big) b = Mul(a, small) q = QuantizeLinear(b, s) d = DequantizeLinear(q, s)
        wd = DequantizeLinear(w, s) y = MatMul(d, wd) }"""
    weights = {"big": np.float32(1e5), "small": np.float32(1e-5), "s": np.float32(0.02)}
    module = build(text, {**weights, "w": np.ones((512, 512), np.int8)})
    made, _ = converted(module, feeds(2, x=(64, 512)), RTX, max_error=0.5)
    quantize = next(node for node in made.graph if node.op_type == "QuantizeLinear")
    behind = next(use.node for use in quantize.outputs[0].uses())
    assert quantize.inputs[1].dtype == behind.inputs[1].dtype


def test_the_emulation_rounds_every_value():
    """What numpy computes in float32 and rounds; ONNX Runtime keeps float32 between the operators if left alone."""
    text = "g (float[1,256] x) => (float[1,256] y) { a = Mul(x, c) b = Add(a, x) d = Mul(b, b) y = Sub(d, x) }"
    module = build(text, {"c": np.float32(1.2345678)})
    feed = random(3, x=(1, 256))
    made, _ = converted(module, [feed])
    x, c = np.float16(feed["x"]), np.float16(1.2345678)
    wide = np.float32
    a = np.float16(wide(x) * wide(c))
    b = np.float16(wide(a) + wide(x))
    d = np.float16(wide(b) * wide(b))
    expected = wide(np.float16(wide(d) - wide(x)))
    assert np.array_equal(run(emulated(made), feed)["y"], expected)


def test_float_models_are_not_emulated():
    module = build("g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }", {})
    assert emulated(module) is module


@pytest.mark.parametrize(
    ("target", "data", "said"),
    [
        (CUDA, True, "cuda has no float16 kernels"),
        (GPU, False, "no data to look at: give --data"),
    ],
)
def test_nothing_is_done_without(target, data, said):
    module = build("g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }", {})
    given = Feeds.of(feeds(x=(1, 8))) if data else None
    result = ConvertFloat16().run(module, Context(target, feeds=given, runner=LocalRunner()))
    assert (result.notes, result.changed) == ((said,), False)


@pytest.mark.parametrize("options", [{"max_error": 0.0}, {"samples": 0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="must be"):
        ConvertFloat16(**options)
