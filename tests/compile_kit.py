"""What the tests of the compiler and the Python interface share: small models as files, and a runner whose times are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array

CNN = """cnn (float[N,1,12,12] x) => (float[N,5] y) {
  i = Identity(x)
  c1 = Conv<pads=[1,1,1,1]>(i, w1)  n1 = BatchNormalization(c1, scale, bias, mean, var)  r1 = Relu(n1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2)  r2 = Relu(c2)
  g = GlobalAveragePool(r2)  f = Flatten(g)  y = Gemm<transB=1>(f, w3, b3)
}"""
"""Conv+BatchNorm+Relu, Conv+Relu, Gemm, and an Identity: something for every pass to do."""


def cnn(path: Path, width: int = 16) -> Path:
    """Write the CNN with seeded weights; returns `path`."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (width, 1, 3, 3), "scale": (width,), "bias": (width,), "mean": (width,), "var": (width,),
        "w2": (width, width, 3, 3), "w3": (5, width), "b3": (5,),
    }  # fmt: skip
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["var"] = np.abs(weights["var"]) + 0.5
    return write(path, CNN, weights)


def write(path: Path, graph: str, weights: dict[str, Array] | None = None, opset: int = 17) -> Path:
    """Write a model in ONNX text form, its initializers given as arrays, its nodes named; returns `path`."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{graph}')
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}{index}"
    onnx.save(model, path)
    return path


def feeds(count: int = 16) -> list[Feed]:
    """Feeds for the CNN."""
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 1, 12, 12)).astype(np.float32)} for _ in range(count)]


class PricedRunner(LocalRunner):
    """Runs for real, but every timed run of a module takes exactly `seconds(module)`."""

    def __init__(self, seconds: Callable[[Module], float]) -> None:
        super().__init__()
        self._seconds = seconds
        self._modules: dict[int, Module] = {}
        self.timed = 0

    def load(self, module: Module, *, extra_outputs: Sequence[str] = (), options: SessionOptions | None = None) -> int:
        handle = super().load(module, extra_outputs=extra_outputs, options=options)
        self._modules[handle] = module
        return handle

    def profile(
        self, module: Module, feed: Feed, *, rounds: int, options: SessionOptions | None = None
    ) -> dict[str, float]:
        """Every operator that computes takes its share of the whole; what only turns numbers into others, nothing."""
        names = [node.name or "" for node in module.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
        return {name: self._seconds(module) / len(names) for name in names}

    def time(self, handles: Sequence[int], feed: Feed, *, rounds: int) -> Array:
        self.timed += 1
        return np.tile([self._seconds(self._modules[handle]) for handle in handles], (rounds, 1))


def operators(module: Module) -> list[str]:
    """Operators of the main graph, in order."""
    return [node.op_type for node in module.graph]


def is_quantized(module: Module) -> bool:
    return "QuantizeLinear" in operators(module)
