"""What changes layout between kernels, held against the graph that ONNX Runtime runs: its Transposes, counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from joulec.energy.kernels import effective_kernels
from joulec.ir.lower import lower
from joulec.ir.shapes import infer_shapes

RNG = np.random.default_rng(0)
Q = "QuantizeLinear({0}, s, z)"
CONV = "Conv<pads=[1,1,1,1]>({0}, W, B)"
WEIGHTS = {
    "w": RNG.normal(size=(16, 16, 3, 3)).astype(np.float32), "b": np.zeros(16, np.float32),
    "wq": RNG.integers(-99, 99, (16, 16, 3, 3)).astype(np.int8), "ws": np.full(16, 0.01, np.float32),
    "bq": np.zeros(16, np.int32), "bs": np.full(16, 0.0005, np.float32), "s": np.float32(0.05), "z": np.uint8(0),
    "gain": RNG.normal(size=16).astype(np.float32),
}  # fmt: skip


def pair(name: str) -> str:
    """Q and DQ of a value: `a` -> `a_`."""
    return f"{name}q = QuantizeLinear({name}, s, z) {name}_ = DequantizeLinear({name}q, s, z) "


HEAD = f"W = DequantizeLinear<axis=0>(wq, ws) B = DequantizeLinear<axis=0>(bq, bs) {pair('x')}"
FIRST = f"{HEAD} a = {CONV.format('x_')} {pair('a')}"
CASES = {
    "one convolution": f"{FIRST} y = Identity(a_)",
    "two": f"{FIRST} c = {CONV.format('a_')} {pair('c')} y = Identity(c_)",
    "an activation between": f"{FIRST} r = HardSwish(a_) {pair('r')} c = {CONV.format('r_')} {pair('c')} y = Neg(c_)",
    "a residual": f"{FIRST} c = {CONV.format('a_')} {pair('c')} d = Add(c_, a_) {pair('d')} "
    f"e = {CONV.format('d_')} {pair('e')} y = Neg(e_)",
    "a float convolution behind": f"{FIRST} y = Conv<pads=[1,1,1,1]>(a_, w, b)",
    "transposes of its own": f"{FIRST} t = Transpose<perm=[0,2,3,1]>(a_) n = LayerNormalization<axis=-1>(t, gain) "
    f"u = Transpose<perm=[0,3,1,2]>(n) {pair('u')} c = {CONV.format('u_')} {pair('c')} y = Neg(c_)",
    "a pooling": f"{FIRST} p = MaxPool<kernel_shape=[2,2]>(a_) {pair('p')} c = {CONV.format('p_')} {pair('c')} y = Neg(c_)",
}


def model(body: str) -> onnx.ModelProto:
    header = '<ir_version: 9, opset_import: ["": 19]>\ng (float[2,16,8,8] x) => (float[N,C,H,W] y)'
    proto = onnx.parser.parse_model(f"{header} {{ {body} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    return proto


def running(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs, layouts and all."""
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.optimized_model_filepath = 4, str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("case", CASES)
def test_transposes_are_those_of_the_runtime(case: str, tmp_path: Path) -> None:
    proto = model(CASES[case])
    module = lower(proto).module
    infer_shapes(module)
    kernels = effective_kernels(module)
    own = sum(kernel.runs and node.op_type == "Transpose" for node, kernel in kernels.items())
    assert own + sum(len(k.turned) for k in kernels.values()) == running(proto, tmp_path)["Transpose"]


HARD_SWISH = {
    "operator": ("r = HardSwish(c)", True),
    "spelled out": ("h = HardSigmoid<alpha=0.16666667, beta=0.5>(c) r = Mul(h, c)", True),
    "other slope": ("h = HardSigmoid<alpha=0.2, beta=0.5>(c) r = Mul(c, h)", False),
}


@pytest.mark.parametrize("case", HARD_SWISH)
def test_a_hard_swish_runs_in_the_convolution_before_it(case: str, tmp_path: Path) -> None:
    body, fused = HARD_SWISH[case]
    proto = model(f"c = Conv<pads=[1,1,1,1]>(x, w, b) {body} y = Conv<pads=[1,1,1,1]>(r, w, b)")
    module = lower(proto).module
    infer_shapes(module)
    ran = Counter(kernel.name for kernel in effective_kernels(module).values() if kernel.runs)
    found = running(proto, tmp_path)
    assert ("Mul" not in found) == ("HardSigmoid" not in found) == fused
    assert (ran["Conv"] + ran["FusedConv"] == ran.total()) == fused
