"""What the INT8 tests share: modules with weights, calibrating and quantizing them, and ONNX Runtime's own verdict."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module, inline_proto
from joulec.ir.runner import LocalRunner
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, PassResult
from joulec.passes.calibrate import Calibrate
from joulec.passes.quantize import Quantize
from joulec.passes.schemes import CPU_SCHEME, TENSORRT_SCHEME
from joulec.passes.target import Target

CPU = Target("cpu", "CPUExecutionProvider", 19, 9, CPU_SCHEME, "generic-server-cpu")
TENSORRT = Target("tensorrt", "TensorrtExecutionProvider", 19, 9, replace(TENSORRT_SCHEME, spares=False), "h100")
"""With the narrow operators of small test models quantized as well."""

CUDA = Target("cuda", "CUDAExecutionProvider", 19, 9, None, "h100")

CNN = """cnn (float[N,3,12,12] x) => (float[N,5] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)  p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
  c2 = Conv<pads=[1,1,1,1], group=8>(p1, w2, b2)  k2 = Clip(c2, lo, hi)
  c3 = Conv(k2, w3)  s = Add(c3, p1)  r3 = Relu(s)
  g = GlobalAveragePool(r3)  f = Flatten(g)  h = Gemm<transB=1>(f, w4, b4)  y = Softmax(h)
}"""
"""Conv+Relu, MaxPool, depthwise Conv+Clip, residual Add+Relu, pooling, Gemm: every kind of block."""


def cnn_weights() -> dict[str, Any]:
    return {
        **random(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(8, 8, 1, 1), w4=(5, 8), b4=(5,)),
        "lo": np.float32(0),
        "hi": np.float32(6),
    }


def random(seed: int = 0, /, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Seeded normal float32 arrays by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def feeds(count: int = 8, **shapes: tuple[int, ...]) -> list[Feed]:
    return [random(100 + index, **shapes) for index in range(count)]


def build(graph: str, weights: dict[str, Any], opset: int = 19) -> Module:
    """A module from ONNX text, its initializers given as arrays."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]>\n{graph}')
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}{index}"
    module = Module(ir.from_proto(model))
    assert infer_shapes(module) is None
    return module


def context(data: Any, target: Target = CPU) -> Context:
    return Context(target, feeds=data if isinstance(data, Feeds) else Feeds.of(data), runner=LocalRunner())


def quantized(module: Module, data: Any, target: Target = CPU, **options: Any) -> tuple[Module, PassResult]:
    """Calibrate and quantize a copy of `module`, and verify it as the pipeline would."""
    made, given = module.clone(), context(data, target)
    verifier = Verifier(made)
    Calibrate().run(made, given)
    result = Quantize(**{"reduce_range": "off", **options}).run(made, given)
    assert infer_shapes(made) is None
    verifier.verify(made)
    return made, result


def kernels(module: Module, folder: Path) -> Counter[str]:
    """How often each operator occurs in the graph that ONNX Runtime runs (EXTENDED: portable, fused)."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(inline_proto(module.model).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def types_read(module: Module, feed: Feed, folder: Path, op: str) -> set[str]:
    """Element types of what the kernels of `op` read first, by ONNX Runtime's profiler."""
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.enable_profiling = 4, True
    settings.profile_file_prefix = str(folder / "profile")
    model = inline_proto(module.model).SerializeToString()
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    session.run(None, dict(feed))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    told = (one["args"] for one in events if one["name"].endswith("_kernel_time"))
    return {next(iter(one["input_type_shape"][0])) for one in told if one["op_name"] == op}


def run(module: Module, feed: Feed) -> dict[str, Any]:
    with LocalRunner() as runner:
        return runner.run(runner.load(module), feed)


def relative_error(module: Module, other: Module, data: list[Feed]) -> float:
    """Worst ||y' - y|| / ||y|| over feeds and outputs."""
    worst = 0.0
    for feed in data:
        reference, found = run(module, feed), run(other, feed)
        assert list(reference) == list(found)
        for name, array in reference.items():
            worst = max(worst, float(np.linalg.norm(found[name] - array) / np.linalg.norm(array)))
    return worst


def reasons(result: PassResult) -> dict[str, str]:
    """Node name -> why it stayed float."""
    return {refusal.node: refusal.reason for refusal in result.refusals}


def ops(module: Module) -> Counter[str]:
    return Counter(node.op_type for node in module.graph)
