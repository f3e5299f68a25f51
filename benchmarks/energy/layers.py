"""Layers as exporters write them, appended to a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 9


class Net:
    """A graph in the making. Methods append layers and return the name of their output."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.channels: dict[str, int] = {}
        self._random = np.random.default_rng(seed)

    # -- plumbing -----------------------------------------------------------------------------------------------------

    def input(self, name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=outputs, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        name = f"n{len(self.nodes):04d}"
        made = [f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, scale: float | None = None) -> str:
        spread = scale if scale is not None else 1 / np.sqrt(max(int(np.prod(shape[1:])), 1))
        return self.constant((self._random.standard_normal(shape) * spread).astype(np.float32))

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def scalar(self, number: float) -> str:
        return self.constant(np.array(number, np.float32))

    def model(self, *outputs: str) -> onnx.ModelProto:
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, made, self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION))

    # -- images -------------------------------------------------------------------------------------------------------

    def conv(
        self, x: str, out: int, kernel: int = 3, stride: int = 1, group: int = 1, act: str = "Relu", norm: bool = True,
        inputs: int = 0,
    ) -> str:  # fmt: skip
        """Conv, BatchNormalization where `norm`, else a bias, then `act`."""
        given = inputs or self.channels[x]
        weight = self.normal(out, given // group, kernel, kernel)
        bias = [] if norm else [self.normal(out, scale=0.1)]
        settings = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group, "kernel_shape": [kernel] * 2}
        y = self.op("Conv", x, weight, *bias, **settings)
        y = self.activate(self.batch_norm(y, out) if norm else y, act)
        self.channels[y] = out
        return y

    def batch_norm(self, x: str, channels: int) -> str:
        near = [self.constant(self._random.uniform(0.8, 1.2, channels).astype(np.float32)) for _ in range(2)]
        zero = [self.constant(self._random.normal(0, 0.1, channels).astype(np.float32)) for _ in range(2)]
        return self.op("BatchNormalization", x, near[0], zero[0], zero[1], near[1])

    def activate(self, x: str, act: str) -> str:
        if act == "":
            return x
        if act == "Relu6":
            return self.op("Clip", x, self.scalar(0.0), self.scalar(6.0))
        if act == "Swish":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return self.gelu(x) if act == "Gelu" else self.op(act, x)

    def squeeze_excite(self, x: str, squeezed: int, gate: str = "Sigmoid", act: str = "Relu") -> str:
        channels = self.channels[x]
        pooled = self.op("ReduceMean", x, axes=[2, 3], keepdims=1)
        hidden = self.conv(pooled, squeezed, 1, act=act, norm=False, inputs=channels)
        y = self.op("Mul", x, self.conv(hidden, channels, 1, act=gate, norm=False))
        self.channels[y] = channels
        return y

    def add(self, a: str, b: str, act: str = "") -> str:
        y = self.activate(self.op("Add", a, b), act)
        self.channels[y] = self.channels[a]
        return y

    def pool(self, x: str, kernel: int = 3, stride: int = 2, kind: str = "MaxPool") -> str:
        pads = [kernel // 2 if kernel % 2 else 0] * 4
        y = self.op(kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        self.channels[y] = self.channels[x]
        return y

    def classify(self, x: str, classes: int = 1000) -> str:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.linear(flat, self.channels[x], classes)

    # -- rows of numbers ----------------------------------------------------------------------------------------------

    def linear(self, x: str, inner: int, outer: int, act: str = "", rank: int = 2) -> str:
        """Gemm on matrices; MatMul and Add on what has a batch and a sequence, as exporters write it."""
        if rank == 2:
            y = self.op("Gemm", x, self.normal(outer, inner), self.normal(outer, scale=0.1), transB=1)
        else:
            weight = self.normal(inner, outer, scale=inner**-0.5)
            y = self.op("Add", self.op("MatMul", x, weight), self.normal(outer, scale=0.1))
        return self.activate(y, act)

    def gelu(self, x: str) -> str:
        inner = self.op("Erf", self.op("Div", x, self.scalar(2**0.5)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", inner, self.scalar(1.0))), self.scalar(0.5))

    def layer_norm(self, x: str, width: int) -> str:
        """Spelled out, as torch exports it below opset 17."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        square = self.op("Pow", centred, self.scalar(2.0))
        variance = self.op("Add", self.op("ReduceMean", square, axes=[-1]), self.scalar(1e-5))
        scaled = self.op("Mul", self.op("Div", centred, self.op("Sqrt", variance)), self.normal(width, scale=0.1))
        return self.op("Add", scaled, self.normal(width, scale=0.1))

    def heads(self, x: str, heads: int, size: int, perm: Sequence[int]) -> str:
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, -1, heads, size)), perm=perm)

    def attention(self, x: str, width: int, heads: int, mask: str = "", past: tuple[str, str] | None = None) -> str:
        """Multi-head self-attention of (batch, tokens, width), spelled out; `past` keys and values come first."""
        size = width // heads
        q, k, v = (self.linear(x, width, width, rank=3) for _ in range(3))
        q = self.heads(q, heads, size, (0, 2, 1, 3))
        k = self.heads(k, heads, size, (0, 2, 3, 1))
        v = self.heads(v, heads, size, (0, 2, 1, 3))
        if past is not None:
            k, v = self.op("Concat", past[0], k, axis=3), self.op("Concat", past[1], v, axis=2)
        scores = self.op("Div", self.op("MatMul", q, k), self.scalar(size**0.5))
        scores = self.op("Add", scores, mask) if mask else scores
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        flat = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, -1, width))
        return self.linear(flat, width, width, rank=3)

    def block(self, x: str, width: int, heads: int, inner: int, mask: str = "", pre: bool = False, **more: Any) -> str:
        """A transformer layer, normalized before (`pre`) or behind its two halves."""
        y = self.op("Add", x, self.attention(self.layer_norm(x, width) if pre else x, width, heads, mask, **more))
        y = y if pre else self.layer_norm(y, width)
        hidden = self.linear(self.layer_norm(y, width) if pre else y, width, inner, "Gelu", rank=3)
        z = self.op("Add", y, self.linear(hidden, inner, width, rank=3))
        return z if pre else self.layer_norm(z, width)

    def recurrent(self, kind: str, x: str, width: int, hidden: int, directions: int = 1) -> str:
        """LSTM or GRU of (steps, batch, width) to (steps, batch, directions * hidden)."""
        gates = {"LSTM": 4, "GRU": 3}[kind]
        shapes = (gates * hidden, width), (gates * hidden, hidden)
        weights = [self.normal(directions, *shape, scale=hidden**-0.5) for shape in shapes]
        weights.append(self.normal(directions, 2 * gates * hidden, scale=0.1))
        more = {"linear_before_reset": 1} if kind == "GRU" else {}
        direction = "bidirectional" if directions == 2 else "forward"
        y = self.op(kind, x, *weights, hidden_size=hidden, direction=direction, **more)
        return self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.ints(0, 0, -1))
