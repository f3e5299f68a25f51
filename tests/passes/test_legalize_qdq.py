"""legalize-qdq: models that other tools quantized, in TensorRT's form; and the rules that find what is wrong."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, parser

from joulec.backends import BACKENDS
from joulec.ir.kernel_table import kernel_table
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.passes._qdq_lint import RULES, lint
from joulec.passes.base import Context
from joulec.passes.legalize_qdq import LegalizeQdq

RNG = np.random.default_rng(7)


def model(text: str, arrays: dict[str, np.ndarray] | None = None, opset: int = 19) -> onnx.ModelProto:
    found = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]> {text}')
    found.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in (arrays or {}).items())
    return found


def legalized(proto: onnx.ModelProto):
    module = Module(ir.from_proto(proto))
    infer_shapes(module)
    result = LegalizeQdq().run(module, Context(BACKENDS["tensorrt"].target))
    made = module.to_proto()
    onnx.checker.check_model(made, full_check=True)
    return made, result


def rules(proto: onnx.ModelProto, target: str = "tensorrt") -> set[str]:
    return {one.rule for one in lint(Module(ir.from_proto(proto)), kernel_table(target))}


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto, *feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: f for i, f in zip(session.get_inputs(), feeds, strict=True)})


WEIGHT = RNG.normal(size=(32, 16, 3, 3)).astype(np.float32)
Q_WEIGHT = np.clip(np.rint(WEIGHT / 0.03), -128, 127).astype(np.int8)

QDQ = """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    w = DequantizeLinear <axis = 0> (wq, ws, wz) b = DequantizeLinear <axis = 0> (bq, bs, bz)
    c = Conv <pads = [1, 1, 1, 1]> (d, w, b) y = Relu(c) }"""


def constants(zero: int, dtype: type, scale: float = 0.05) -> dict[str, np.ndarray]:
    channels = np.full(32, 0.03, np.float32)
    return {
        "s": np.float32(scale), "z": np.asarray(zero, dtype), "wq": Q_WEIGHT, "ws": channels,
        "wz": np.zeros(32, np.int8), "bq": np.arange(32, dtype=np.int32), "bs": channels * np.float32(scale),
        "bz": np.zeros(32, np.int32),
    }  # fmt: skip


def test_unsigned_asymmetric_integers_become_signed_and_symmetric():
    before = model(QDQ, constants(100, np.uint8))
    assert {"unsigned-integers", "quantized-bias"} <= rules(before)
    after, _ = legalized(before)
    assert rules(after) == set()
    (quantize,) = [n for n in after.graph.node if n.op_type == "QuantizeLinear"]
    arrays = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    assert arrays[quantize.input[2]].dtype == np.int8
    assert arrays[quantize.input[1]] == pytest.approx(155 * 0.05 / 127)
    x = RNG.uniform(-4, 7, size=(1, 16, 8, 8)).astype(np.float32)
    (old,), (new,) = run(before, x), run(after, x)
    assert np.linalg.norm(new - old) < 0.02 * np.linalg.norm(old)


def test_a_bias_becomes_float_exactly():
    after, _ = legalized(model(QDQ, constants(0, np.int8)))
    conv = next(n for n in after.graph.node if n.op_type == "Conv")
    arrays = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_array_equal(
        arrays[conv.input[2]], (np.arange(32) * np.float64(np.float32(0.03) * np.float32(0.05))).astype(np.float32)
    )


def test_a_relu_that_the_zero_point_stood_for_comes_back():
    text = """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)
        y = Conv <pads = [1, 1, 1, 1]> (d, v) }"""
    other = RNG.normal(size=(32, 32, 3, 3)).astype(np.float32)
    before = model(text, {"w": WEIGHT, "v": other, "s": np.float32(0.2), "z": np.uint8(0)})
    after, _ = legalized(before)
    assert ops(after)[:4] == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]
    x = RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)
    (old,), (new,) = run(before, x), run(after, x)
    assert np.linalg.norm(new - old) < 0.03 * np.linalg.norm(old)


def test_a_relu6_that_the_integers_stood_for_stays_where_the_pair_goes():
    text = """g (float[1,16,8,8] x) => (float[1,32,1,1] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)
        y = ReduceMax <keepdims = 1> (d, axes) }"""
    arrays = {"w": WEIGHT, "s": np.float32(6 / 255), "z": np.uint8(0), "axes": np.asarray([2, 3], np.int64)}
    before = model(text, arrays)
    after, _ = legalized(before)
    assert ops(after) == ["Conv", "Clip", "ReduceMax"]
    x = 9 * RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)
    (new,) = run(after, x)
    assert new.max() == pytest.approx(6, rel=1e-6)


def test_no_relu_is_added_in_front_of_an_input():
    after, _ = legalized(model(QDQ, constants(0, np.uint8)))
    assert ops(after).count("Relu") == 1


def test_weights_on_the_wrong_axis_are_rounded_anew_along_the_right_one():
    arrays = constants(0, np.int8) | {"ws": np.linspace(0.02, 0.04, 16, dtype=np.float32), "wz": np.zeros(16, np.int8)}
    before = model(QDQ.replace("<axis = 0> (wq", "<axis = 1> (wq"), arrays)
    assert "channel-axis" in rules(before)
    after, _ = legalized(before)
    dequantize = next(n for n in after.graph.node if n.op_type == "DequantizeLinear" and n.output[0] == "w")
    assert [a.i for a in dequantize.attribute if a.name == "axis"] == [0]
    x = RNG.uniform(-4, 4, size=(1, 16, 8, 8)).astype(np.float32)
    (old,), (new,) = run(before, x), run(after, x)
    assert np.linalg.norm(new - old) < 0.02 * np.linalg.norm(old)


def test_unsigned_weights_around_128_move_without_rounding():
    arrays = constants(0, np.int8) | {
        "wq": (Q_WEIGHT.astype(np.int16) + 128).astype(np.uint8), "ws": np.float32(0.03), "wz": np.uint8(128),
    }  # fmt: skip
    before = model(QDQ.replace("<axis = 0> (wq", "(wq"), arrays)
    after, _ = legalized(before)
    x = RNG.uniform(-4, 4, size=(1, 16, 8, 8)).astype(np.float32)
    (old,), (new,) = run(before, x), run(after, x)
    np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-5)


def test_qlinear_conv_becomes_a_float_conv_between_pairs():
    text = """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
        q = QuantizeLinear(x, s, z) c = QLinearConv <pads = [1, 1, 1, 1]> (q, s, z, wq, ws, wz, t, z, bq)
        y = DequantizeLinear(c, t, z) }"""
    arrays = constants(0, np.int8) | {"t": np.float32(1.5)}
    before = model(text, {k: arrays[k] for k in ("s", "z", "wq", "ws", "wz", "bq", "t")})
    assert "integer-operator" in rules(before)
    after, result = legalized(before)
    assert rules(after) == set()
    assert "QLinearConv" not in ops(after)
    assert not result.refusals
    x = RNG.uniform(-4, 4, size=(1, 16, 8, 8)).astype(np.float32)
    (old,), (new,) = run(before, x), run(after, x)
    assert np.max(np.abs(new - old)) <= 1.5 / 2 + 1e-4  # the rounding at the output, which nobody reads, is gone


def test_dynamic_quantization_becomes_float():
    text = """g (float[4,16] x) => (float[4,32] y) {
        q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, wq, z, wz) f = Cast <to = 1> (m)
        k = Mul(s, ws) y = Mul(f, k) }"""
    weight = RNG.integers(-100, 100, size=(16, 32)).astype(np.int8)
    before = model(text, {"wq": weight, "wz": np.int8(3), "ws": np.float32(0.02)})
    after, _ = legalized(before)
    assert ops(after) == ["MatMul"]
    x = RNG.normal(size=(4, 16)).astype(np.float32)
    (old,), (new,) = run(before, x), run(after, x)
    assert np.linalg.norm(new - old) < 0.02 * np.linalg.norm(old)


def test_a_pair_between_conv_and_relu_moves_behind_the_relu():
    text = """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) r = Relu(d)
        y = Conv <pads = [1, 1, 1, 1]> (r, v) }"""
    other = RNG.normal(size=(32, 32, 3, 3)).astype(np.float32)
    before = model(text, {"w": WEIGHT, "v": other, "s": np.float32(0.2), "z": np.int8(0)})
    assert "qdq-before-activation" in rules(before)
    after, _ = legalized(before)
    assert ops(after)[:4] == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]
    assert rules(after) == set()


def test_of_a_residual_only_the_skip_stays_quantized():
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, s, z)
        c = Conv <pads = [1, 1, 1, 1]> (d, w) cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
        y = Add(cd, d) }"""
    before = model(text, {"wq": Q_WEIGHT[:16], "s": np.float32(0.05), "z": np.int8(0)})
    assert "residual-both-quantized" in rules(before)
    after, _ = legalized(before)
    add = next(n for n in after.graph.node if n.op_type == "Add")
    made = {n.output[0]: n.op_type for n in after.graph.node}
    assert [made[name] for name in add.input] == ["Conv", "DequantizeLinear"]


def test_branches_of_a_concat_get_the_largest_scale():
    text = """g (float[1,16,4,4] x, float[1,16,4,4] u) => (float[1,32,4,4] y) {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) e = QuantizeLinear(u, t, z)
        f = DequantizeLinear(e, t, z) c = Concat <axis = 1> (b, f) w = DequantizeLinear(wq, s, z)
        y = Conv <pads = [1, 1, 1, 1]> (c, w) }"""
    weight = RNG.integers(-100, 100, size=(32, 32, 3, 3)).astype(np.int8)
    before = model(text, {"wq": weight, "s": np.float32(0.05), "t": np.float32(0.08), "z": np.int8(0)})
    assert "scales-differ" in rules(before)
    after, _ = legalized(before)
    arrays = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    scales = {float(arrays[n.input[1]]) for n in after.graph.node if n.op_type == "QuantizeLinear"}
    assert scales == {float(np.float32(0.08))}
    assert rules(after) == set()


@pytest.mark.parametrize(
    ("shape", "message"), [((8, 16, 3, 3), "a convolution from 16 to 8 channels"), ((16, 3, 3, 3), "from 3 to 16")]
)
def test_narrow_convolutions_are_left_in_float(shape, message):
    text = f"""g (float[1,{shape[1]},8,8] x) => (float[1,{shape[0]},8,8] y) {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, s, z)
        y = Conv <pads = [1, 1, 1, 1]> (d, w) }}"""
    weight = RNG.integers(-100, 100, size=shape).astype(np.int8)
    before = model(text, {"wq": weight, "s": np.float32(0.05), "z": np.int8(0)})
    (found,) = lint(Module(ir.from_proto(before)), kernel_table("tensorrt"))
    assert found.rule == "better-in-float"
    assert message in found.message
    after, _ = legalized(before)
    assert ops(after) == ["Conv"]


def test_integers_that_leave_the_model_after_a_move_stay_and_say_so():
    text = "g (float[2,2] x) => (uint8[4] y) { q = QuantizeLinear(x, s, z) y = Reshape(q, n) }"
    _, result = legalized(model(text, {"s": np.float32(0.05), "z": np.uint8(7), "n": np.int64([4])}))
    assert any("leaves the model as such" in one.reason for one in result.refusals)


def test_computed_scales_are_refused_with_their_reason():
    text = "g (float[4] x, float s) => (float[4] y) <uint8 z = {3}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    proto = model(text)
    assert "scale-not-constant" in rules(proto)
    after, result = legalized(proto)
    assert ops(after) == ["QuantizeLinear", "DequantizeLinear"] or ops(after) == []
    assert any("not constant" in one.reason for one in result.refusals) or ops(after) == []


def test_a_scale_of_zero_is_an_error():
    text = "g (float[4] x) => (float[4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    assert "scale-not-positive" in rules(model(text, {"s": np.float32(0), "z": np.int8(0)}))


def test_constant_nodes_become_initializers():
    weight = helper.make_node("Constant", [], ["wq"], value=numpy_helper.from_array(Q_WEIGHT))
    arrays = constants(0, np.int8)
    del arrays["wq"]
    before = model(QDQ, arrays)
    before.graph.node.insert(0, weight)
    assert "weights-in-nodes" in rules(before)
    after, _ = legalized(before)
    assert "Constant" not in ops(after)
    assert rules(after) == set()


def test_float_models_are_left_alone():
    proto = model("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    after, result = legalized(proto)
    assert result.notes == ("nothing here is quantized",)
    assert ops(after) == ["Relu"]


def test_half_of_the_weights_zero_is_noted():
    weight = WEIGHT.copy()
    np.moveaxis(weight, 1, -1).reshape(-1, 4)  # a view where numpy can
    weight[:, 0::4] = 0
    weight[:, 1::4] = 0
    proto = model("g (float[1,16,8,8] x) => (float[1,32,6,6] y) { y = Conv(x, w) }", {"w": weight})
    assert rules(proto) == {"sparse-weights"}


def test_every_rule_has_words_and_a_known_severity():
    assert all(severity in ("error", "warning", "note") and text for severity, text, _ in RULES.values())


def test_cuda_says_that_it_computes_in_float():
    assert rules(model(QDQ, constants(0, np.int8)), "cuda") == {"computed-in-float", "no-kernel"}  # of int32


def test_running_it_twice_changes_nothing_more():
    once, _ = legalized(model(QDQ, constants(100, np.uint8)))
    twice, result = legalized(once)
    assert ops(twice) == ops(once)
    assert not result.rewrites
