"""Which kernel runs, held against ONNX Runtime's own optimized graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from joulec.energy.kernels import effective_kernels
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(16, 16, 3, 3)).astype(np.float32),
    "wq": RNG.integers(-99, 99, (16, 16, 3, 3)).astype(np.int8),
    "b": np.zeros(16, np.float32),
    "bq": np.zeros(16, np.int32),
    "s": np.float32(0.05),
    "s6": np.float32(6 / 255),
    "z": np.uint8(0),
    "z5": np.uint8(5),
    "ws": np.full(16, 0.01, np.float32),
    "wz": np.zeros(16, np.int8),
    "bs": np.full(16, 0.0005, np.float32),
    "bz": np.zeros(16, np.int32),
    "mw": RNG.normal(size=(16, 16)).astype(np.float32),
    "mwq": np.ones((16, 16), np.int8),
    "mwr": RNG.integers(-99, 99, (16, 16)).astype(np.int8),
    "wz0": np.int8(0),
    "rows": np.ones((4, 16), np.float32),
    "lo": np.float32(0),
    "hi": np.float32(6),
    "full": np.float32(255 * 0.05),
    "ch": np.arange(1, 17, dtype=np.float32).reshape(1, 16, 1, 1),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "last": np.array([-1], np.int64),
    "two": np.float32(2),
    "eps": np.float32(1e-5),
    "root": np.float32(2**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "flat": np.array([-1, 16], np.int64),
}
IMAGE = "g (float[1,16,8,8] x) => (float[1,16,8,8] y)"
ROWS = "g (float[4,16] x) => (float[4,16] y)"
TOKENS = "g (float[1,4,16] x) => (float[1,4,16] y)"
QX = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
QCONV = QX + "W = DequantizeLinear<axis=0>(wq, ws, wz) B = DequantizeLinear<axis=0>(bq, bs, bz) "
QMAT = QX + "W = DequantizeLinear<axis=1>(mwq, ws, wz) "
QBIAS = "B = DequantizeLinear<axis=0>(bq, bs, bz) "
OUT = " o = QuantizeLinear(c, s, z) y = DequantizeLinear(o, s, z)"
POOL = "p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) "
UNQUANTIZED = "y = DequantizeLinear(q, s, z)"
SAME = "<pads=[1,1,1,1]>"
SPELLED_NORM = (
    "m = ReduceMean<keepdims=1>(x, last) c = Sub(x, m) q = Pow(c, two) v = ReduceMean<keepdims=1>(q, last) "
    "f = Add(v, eps) t = Sqrt(f) d = Div(c, t) "
)
DYNAMIC = "q, st, zp = DynamicQuantizeLinear(x) i = MatMulInteger(q, mwq, zp, wz0) f = Cast<to=1>(i) m = Mul(st, s) "

CASES = {
    "conv-relu": (IMAGE, f"c = Conv{SAME}(x, w, b) y = Relu(c)"),
    "conv-clip": (IMAGE, f"c = Conv{SAME}(x, w, b) y = Clip(c, lo, hi)"),
    "conv-scale-shift-relu": (IMAGE, f"c = Conv{SAME}(x, w, b) n = Mul(c, ch) e = Add(n, ch) y = Relu(e)"),
    "conv-bn-relu": (IMAGE, f"c = Conv{SAME}(x, w, b) n = BatchNormalization(c, b, b, b, b) y = Relu(n)"),
    "conv-add-of-input": (IMAGE, f"c = Conv{SAME}(x, w, b) d = Add(c, x) y = Relu(d)"),
    "pad-conv": (IMAGE, "c = Pad(x, pads) y = Conv(c, w, b)"),
    "conv-transpose-relu": (IMAGE, f"c = ConvTranspose{SAME}(x, w, b) y = Relu(c)"),
    "gemm-relu": (ROWS, "c = Gemm(x, mw, b) y = Relu(c)"),
    "matmul-add-relu": (ROWS, "c = MatMul(x, mw) d = Add(c, b) y = Relu(d)"),
    "weight-only-conv": (IMAGE, f"W = DequantizeLinear<axis=0>(wq, ws, wz) y = Conv{SAME}(x, W, b)"),
    "weight-q-dq-conv": (
        IMAGE, f"V = QuantizeLinear<axis=0>(w, ws, wz) W = DequantizeLinear<axis=0>(V, ws, wz) y = Conv{SAME}(x, W, b)",
    ),
    "weight-only-matmul": (ROWS, "W = DequantizeLinear<axis=1>(mwq, ws, wz) y = MatMul(x, W)"),
    "qconv": (IMAGE, QCONV + f"c = Conv{SAME}(d, W, B)" + OUT),
    "qconv-float-bias": (IMAGE, QCONV.split("B =")[0] + f"c = Conv{SAME}(d, W, b)" + OUT),
    "qconv-relu-zero-point-0": (IMAGE, QCONV + f"r = Conv{SAME}(d, W, B) c = Relu(r)" + OUT),
    "qconv-relu-zero-point-5": (
        IMAGE,
        QCONV + f"r = Conv{SAME}(d, W, B) c = Relu(r) o = QuantizeLinear(c, s, z5) y = DequantizeLinear(o, s, z5)",
    ),
    "qconv-clip-wider-than-range": (
        IMAGE,
        QCONV + f"r = Conv{SAME}(d, W, B) c = Clip(r, lo, hi) "
        "o = QuantizeLinear(c, s6, z) y = DequantizeLinear(o, s6, z)",
    ),
    "qconv-clip-narrower": (IMAGE, QCONV + f"r = Conv{SAME}(d, W, B) c = Clip(r, lo, hi)" + OUT),
    "qconv-without-output-q": (IMAGE, QCONV + f"y = Conv{SAME}(d, W, B)"),
    "qconv-input-also-float": (
        IMAGE,
        QCONV + f"c = Conv{SAME}(d, W, B) o = QuantizeLinear(c, s, z) p = DequantizeLinear(o, s, z) "
        "e = Sqrt(d) y = Mul(p, e)",
    ),
    "qadd": (IMAGE, QX + "c = Add(d, d)" + OUT),
    "qadd-with-one-float": (IMAGE, QX + "c = Add(d, x)" + OUT),
    "qmul": (IMAGE, QX + "c = Mul(d, d)" + OUT),
    "qmaxpool": (IMAGE, QX + "c = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(d)" + OUT),
    "qavgpool": (IMAGE, QX + "c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(d)" + OUT),
    "qconcat": (IMAGE, QX + "c = Concat<axis=2>(d, d)" + OUT),
    "qsigmoid": (IMAGE, QX + "c = Sigmoid(d)" + OUT),
    "qrelu": (IMAGE, QX + "c = Relu(d)" + OUT),
    "qreduce-mean": (
        IMAGE, QX + "c = ReduceMean(d) o = QuantizeLinear(c, s, z) e = DequantizeLinear(o, s, z) y = Add(x, e)",
    ),
    "qreshape": (ROWS, QX + "c = Reshape(d, flat)" + OUT),
    "requantize": (IMAGE, QX + "o = QuantizeLinear(d, s6, z5) y = DequantizeLinear(o, s6, z5)"),
    "qmatmul": (ROWS, QMAT + "c = MatMul(d, W)" + OUT),
    "qmatmul-to-float": (ROWS, QMAT + "y = MatMul(d, W)"),
    "qmatmul-bias": (ROWS, QMAT + "m = MatMul(d, W) c = Add(m, b)" + OUT),
    "qgemm": (ROWS, QMAT + QBIAS + "c = Gemm(d, W, B)" + OUT),
    "qgemm-to-float": (ROWS, QMAT + QBIAS + "y = Gemm(d, W, B)"),
    "qgemm-float-bias-to-float": (ROWS, QMAT + "y = Gemm(d, W, b)"),
    "swish": (ROWS, "s2 = Sigmoid(x) y = Mul(x, s2)"),
    "swish-alpha": (ROWS, "a = Mul(x, two) s2 = Sigmoid(a) y = Mul(x, s2)"),
    "layer-norm": (ROWS, SPELLED_NORM + "n = Mul(d, b) y = Add(n, b)"),
    "layer-norm-without-shift": (ROWS, SPELLED_NORM + "y = Mul(d, b)"),
    "gelu": (ROWS, "r2 = Div(x, root) e = Erf(r2) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"),
    "dynamic-matmul": (ROWS, DYNAMIC + "y = Mul(f, m)"),
    "dynamic-matmul-bias-relu": (ROWS, DYNAMIC + "p = Mul(m, f) a = Add(b, p) y = Relu(a)"),
    "dynamic-matmul-matrix-bias": (ROWS, DYNAMIC + "p = Mul(f, m) y = Add(p, rows)"),
    "dynamic-matmul-other-scale": (ROWS, DYNAMIC + "p = Mul(f, s) y = Mul(p, m)"),
    "dynamic-matmul-shared-scale": (ROWS, DYNAMIC + "p = Mul(f, m) y = Add(p, m)"),
    "dynamic-matmul-shared": (
        ROWS, DYNAMIC + "p = Mul(f, m) j = MatMulInteger(q, mwr, zp, wz0) g = Cast<to=1>(j) h = Mul(st, s6) "
        "k = Mul(g, h) y = Add(p, k)",
    ),
    "dynamic-matmul-without-zero": (
        ROWS, "q, st, zp = DynamicQuantizeLinear(x) i = MatMulInteger(q, mwq, zp) f = Cast<to=1>(i) "
        "m = Mul(s, st) y = Mul(f, m)",
    ),
    "tokens-matmul-add": (TOKENS, "c = MatMul(x, mw) y = Add(c, b)"),
    "tokens-matmul-add-relu": (TOKENS, "c = MatMul(x, mw) d = Add(c, b) y = Relu(d)"),
    "tokens-matmul-matrix-bias": (TOKENS, "c = MatMul(x, mw) y = Add(c, rows)"),
    "tokens-of-any-number": ("g (float[n,4,16] x) => (float[n,4,16] y)", "c = MatMul(x, mw) y = Add(c, b)"),
    "sum-norm": (TOKENS, "c = Relu(x) d = Add(c, x) y = LayerNormalization<axis=-1>(d, b, b)"),
    "sum-norm-of-rows": (ROWS, "c = Relu(x) d = Add(c, x) y = LayerNormalization<axis=-1>(d, b, b)"),
    "sum-norm-shared": (TOKENS, "c = Relu(x) d = Add(c, x) n = LayerNormalization<axis=-1>(d, b, b) y = Add(n, d)"),
    "sum-norm-bias": (TOKENS, "c = Relu(x) e = Add(c, b) d = Add(e, x) y = LayerNormalization<axis=-1>(d, b, b)"),
    "scale-behind-matmul": (TOKENS, "t = Sqrt(x) c = MatMul(t, mw) y = Div(c, two)"),
    "scale-before-matmul": (TOKENS, "t = Mul(x, two) y = MatMul(t, mw)"),
    "transposed-operand": (
        "g (float[1,4,16] x) => (float[1,4,4] y)", "t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)",
    ),
    "nhwc-sandwich": (
        "g (float[1,8,8,16] x) => (float[1,8,8,16] y)",
        f"t = Transpose<perm=[0,3,1,2]>(x) c = Conv{SAME}(t, w, b) u = Transpose<perm=[0,2,3,1]>(c) v = Relu(u) "
        f"k = Transpose<perm=[0,3,1,2]>(v) l = Conv{SAME}(k, w, b) y = Transpose<perm=[0,2,3,1]>(l)",
    ),
    "clip to the quantizer's range": (IMAGE, POOL + "c = Clip(p, lo, full) q = QuantizeLinear(c, s, z) " + UNQUANTIZED),
    "clip of less than that": (IMAGE, POOL + "c = Clip(p, lo, hi) q = QuantizeLinear(c, s, z) " + UNQUANTIZED),
}  # fmt: skip


def build(head: str, body: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {head} {{ {body} }}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in WEIGHTS.items())
    return model


def optimized_by_runtime(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("case", CASES)
def test_kernels_are_those_of_the_runtime(case: str, tmp_path: Path) -> None:
    model = build(*CASES[case])
    module = Module(ir.from_proto(model))
    infer_shapes(module)
    kernels = effective_kernels(module)
    ours = Counter(kernels[node].name for node in walk.nodes(module.model) if kernels[node].runs)
    views = sum(kernels[node].views for node in walk.nodes(module.model))
    assert ours + Counter({"Reshape": views}) == optimized_by_runtime(model, tmp_path)


def names(module: Module, target: str = "cpu") -> list[str]:
    infer_shapes(module)
    kernels = effective_kernels(module, target)
    return [kernels[node].name for node in module.graph if kernels[node].runs]


def test_every_node_has_a_kernel() -> None:
    module = Module(ir.from_proto(build(*CASES["qconv-relu-zero-point-0"])))
    assert set(effective_kernels(module)) == set(walk.nodes(module.model))


def test_cuda_has_no_integer_kernels() -> None:
    module = Module(ir.from_proto(build(*CASES["qconv"])))
    assert names(module, "cuda") == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "QuantizeLinear",
        "DequantizeLinear",
    ]  # fmt: skip


def test_tensorrt_needs_no_output_quantizer() -> None:
    assert names(Module(ir.from_proto(build(*CASES["qconv-without-output-q"]))), "tensorrt") == [
        "QuantizeLinear", "QLinearConv",
    ]  # fmt: skip


def test_tensorrt_runs_activation_sum_and_quantizer_in_the_convolution() -> None:
    """A symmetric quantizer does not do what Relu does, so that on a CPU all of these are kernels of their own."""
    body = f"{QCONV} c = Conv<pads=[1,1,1,1]>(d, W, B) a = Add(c, d) r = Relu(a) o = QuantizeLinear(r, s, z5) "
    module = Module(ir.from_proto(build(IMAGE, body + "y = DequantizeLinear(o, s, z5)")))
    infer_shapes(module)
    kernels = effective_kernels(module, "tensorrt")
    nodes = {node.op_type: node for node in module.graph if node.op_type != "DequantizeLinear"}
    conv, quantize = nodes["Conv"], module.graph[-2]
    assert [kernels[node].name for node in module.graph if kernels[node].runs] == [
        "QuantizeLinear", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip
    assert kernels[conv].reads[0] is kernels[conv].reads[-1] is module.graph[0].outputs[0]  # the residual in 8 bits
    assert kernels[conv].writes == (quantize.outputs[0],)
    assert [node.op_type for node in kernels[conv].epilogue] == ["Add", "Relu"]
    assert {"Add", "Relu"} <= set(names(module, "cpu"))


def test_residual_add_runs_in_the_later_convolution(parse: Callable[..., Module]) -> None:
    module = parse(
        "g (float[1,16,8,8] x) => (float[1,16,8,8] y) "
        "{ s = Constant<value_ints=[16,16,1,1]>() k = ConstantOfShape(s) "
        "a = Conv(x, k) b = Conv(a, k) c = Add(a, b) y = Relu(c) }"
    )
    infer_shapes(module)
    kernels = effective_kernels(module)
    first, second, add, relu = list(module.graph)[2:]
    assert kernels[first].name == "Conv" and not kernels[add].runs and not kernels[relu].runs
    assert kernels[second].reads[-1] is first.outputs[0]
    assert kernels[second].writes == (relu.outputs[0],)
    assert kernels[add].name == "fused into Conv ''"


def test_relu_with_two_users_before_is_not_fused(parse: Callable[..., Module]) -> None:
    module = parse("g (float[1,2] x) => (float[1,2] y, float[1,2] c) <float[2,2] k> { c = Gemm(x, k) y = Relu(c) }")
    assert names(module) == ["Gemm", "Relu"]


def test_transposes_that_meet_cancel(parse: Callable[..., Module]) -> None:
    module = parse(
        "g (float[2,3] x) => (float[2,3] y) { a = Transpose<perm=[1,0]>(x) b = Transpose<perm=[1,0]>(a) y = Exp(b) }"
    )
    assert names(module) == ["Exp"]


def test_transpose_whose_value_is_an_output_stays(parse: Callable[..., Module]) -> None:
    module = parse(
        "g (float[2,3] x) => (float[2,3] y, float[3,2] a) "
        "{ a = Transpose<perm=[1,0]>(x) b = Transpose<perm=[1,0]>(a) y = Exp(b) }"
    )
    assert names(module) == ["Transpose", "Transpose", "Exp"]
