"""The ladder: small models, each of one family of kernels at one size, whose times fix a profile's coefficients.

Every rung is a chain of equal operators, long enough that starting a run is little beside it, with random weights
(zeros can be faster) and sizes as networks have them: from a few microseconds to tens of milliseconds on one core, and
on both sides of the caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from joulec.ir.values import Array

OPSET, IR_VERSION = 19, 9
PAIRS = 2
"""A chain goes from one width to another and back, this often."""


@dataclass(frozen=True)
class Rung:
    """One microbenchmark.

    Attributes:
        name: family and sizes, e.g. `conv 64-128x28`.
        model: takes float32 `x` and returns `y`.
        shape: the shape of `x`.
    """

    name: str
    model: onnx.ModelProto
    shape: tuple[int, ...]


class _Chain:
    """A model in the making: operators one behind the other, with seeded constants."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(list(shape))

    @property
    def last(self) -> str:
        return self._nodes[-1].output[0] if self._nodes else "x"

    def normal(self, *shape: int) -> str:
        return self.constant((self._random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

    def integers(self, dtype: str, limit: int, *shape: int) -> str:
        return self.constant(self._random.integers(-limit, limit, shape).astype(dtype))

    def constant(self, array: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def then(self, op: str, *others: str, first: str | None = None, **attributes: Any) -> _Chain:
        """Append `op`(last, *others), or `op`(first, ...)."""
        inputs = [self.last if first is None else first, *others]
        self._nodes.append(helper.make_node(op, inputs, [f"v{len(self._nodes)}"], **attributes))
        return self

    def rung(self, name: str) -> Rung:
        self._nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self._nodes, "rung", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], self._constants,
        )  # fmt: skip
        opset = [helper.make_opsetid("", OPSET)]
        return Rung(name, helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), self.shape)


def ladder(quick: bool = False) -> list[Rung]:
    """All rungs, in a fixed order; with `quick` every second one, so that each family keeps several sizes."""
    families = (
        _convolutions, _depthwise, _narrow, _products, _attention, _elementwise, _light, _recurrent,
        _integer_convolutions, _integer_products, _quantization,
    )  # fmt: skip
    found = [list(family()) for family in families]
    return [rung for rungs in found for rung in (rungs[::2] if quick and len(rungs) > 6 else rungs)]


# -- float convolutions -----------------------------------------------------------------------------------------------

_SQUARE = (
    (16, 16, 56), (32, 32, 56), (64, 64, 56), (64, 64, 28), (24, 24, 28), (128, 128, 28), (48, 96, 14), (128, 128, 14),
    (256, 256, 14), (512, 512, 7), (64, 128, 7),
)  # fmt: skip
_POINTWISE = (
    (16, 96, 56), (16, 16, 56), (24, 144, 56), (32, 192, 28), (64, 256, 56), (64, 384, 14), (96, 576, 14),
    (160, 960, 7), (256, 1024, 14), (320, 1280, 7), (512, 2048, 7), (64, 16, 1), (960, 240, 1),
)  # fmt: skip
_DEPTHWISE = (
    (32, 112, 3), (96, 56, 3), (144, 56, 3), (192, 28, 3), (240, 14, 5), (384, 14, 3), (576, 14, 3), (672, 7, 5),
    (960, 7, 3),
)  # fmt: skip


def _convolutions() -> Iterator[Rung]:
    for kernel, sizes in ((3, _SQUARE), (1, _POINTWISE), (5, ((32, 32, 28), (64, 64, 14)))):
        for inner, outer, side in sizes:
            yield _convolution(inner, outer, side, kernel)
    for inner, outer, side in ((64, 64, 14), (32, 192, 14)):
        yield _convolution(inner, outer, side, 3, batch=8)


def _convolution(inner: int, outer: int, side: int, kernel: int, group: int = 1, batch: int = 1) -> Rung:
    chain = _Chain((batch, inner, side, side))
    for a, b in [(inner, outer), (outer, inner)] * PAIRS:
        weights = chain.normal(b, a // group, kernel, kernel), chain.normal(b)
        chain.then("Conv", *weights, group=group, pads=[kernel // 2] * 4).then("Relu")
    return chain.rung(f"conv{kernel}{'-depthwise' if group > 1 else ''} {batch}x{inner}-{outer}x{side}")


def _depthwise() -> Iterator[Rung]:
    for width, side, kernel in _DEPTHWISE:
        yield _convolution(width, width, side, kernel, group=width)


_NARROW = ((3, 32, 224, 3), (3, 64, 224, 7), (3, 16, 112, 3), (1, 16, 28, 3), (1, 32, 32, 3))


def _narrow() -> Iterator[Rung]:
    """The first convolution of a network: few input channels, a stride, and the largest images."""
    for inner, outer, side, kernel in _NARROW:
        chain = _Chain((1, inner, side, side))
        weights = chain.normal(outer, inner, kernel, kernel), chain.normal(outer)
        chain.then("Conv", *weights, pads=[kernel // 2] * 4, strides=[2, 2]).then("Relu")
        yield chain.rung(f"conv{kernel}-narrow {inner}-{outer}x{side}")


# -- float matrix products --------------------------------------------------------------------------------------------

_WIDTHS = ((64, 64), (256, 256), (768, 768), (768, 3072), (2048, 128))


def _products() -> Iterator[Rung]:
    for rows in (1, 4, 16, 64, 128, 512):
        for inner, outer in _WIDTHS:
            chain = _Chain((rows, inner))
            for a, b in [(inner, outer), (outer, inner)] * PAIRS:
                chain.then("Gemm", chain.normal(a, b), chain.normal(b))
            yield chain.rung(f"matmul {rows}x{inner}-{outer}")
    for tokens, inner, outer in ((64, 256, 256), (128, 768, 768), (32, 768, 3072)):
        chain = _Chain((1, tokens, inner))
        for a, b in [(inner, outer), (outer, inner)] * PAIRS:
            chain.then("MatMul", chain.normal(a, b)).then("Add", chain.normal(b))
        yield chain.rung(f"matmul 1x{tokens}x{inner}-{outer}")


def _attention() -> Iterator[Rung]:
    """Products of activations with activations, as attention has them."""
    for heads, tokens, width in ((4, 64, 32), (12, 64, 64), (12, 128, 64), (12, 256, 64), (8, 512, 64)):
        chain = _Chain((heads, tokens, width))
        chain.then("Transpose", perm=[0, 2, 1])
        transposed = chain.last
        chain.then("MatMul", transposed, first="x").then("MatMul", "x").then("MatMul", transposed).then("MatMul", "x")
        yield chain.rung(f"matmul {heads}x{tokens}x{width}")


# -- everything else --------------------------------------------------------------------------------------------------

_ELEMENTS = (1_000, 10_000, 100_000, 1_000_000)
_WIDTH, _REPEATS = 100, 8


def _elementwise() -> Iterator[Rung]:
    for elements in _ELEMENTS:
        shape = (elements // _WIDTH, _WIDTH)
        for op in ("Relu", "HardSigmoid", "Sqrt", "Sigmoid", "Tanh", "Erf", "Exp"):
            chain = _Chain(shape)
            for _ in range(_REPEATS):
                chain.then(op)
            yield chain.rung(f"{op} {elements}")
        for op in ("Add", "Mul", "Div"):
            for other in ("row", "same"):
                chain = _Chain(shape)
                operand = chain.constant(np.linspace(0.5, 1.5, _WIDTH, dtype=np.float32)) if other == "row" else "x"
                for _ in range(_REPEATS):
                    chain.then(op, operand)
                yield chain.rung(f"{op} {other} {elements}")


_IMAGES = ((1, 16, 112, 112), (1, 64, 56, 56), (1, 256, 14, 14), (1, 512, 7, 7))
_TOKENS = ((16, 128), (128, 256), (128, 768), (512, 768))


def _light() -> Iterator[Rung]:
    for shape in _TOKENS:
        for op in ("LayerNormalization", "Softmax", "ReduceMean"):
            yield _on_tokens(op, shape)
    yield from _on_images()


def _on_images() -> Iterator[Rung]:
    for shape in _IMAGES:
        yield _Chain(shape).then("MaxPool", kernel_shape=[3, 3], strides=[2, 2]).rung(f"MaxPool {shape}")
        yield _Chain(shape).then("AveragePool", kernel_shape=[2, 2], strides=[2, 2]).rung(f"AveragePool {shape}")
        yield _Chain(shape).then("GlobalAveragePool").rung(f"GlobalAveragePool {shape}")
        yield _Chain(shape).then("Transpose", perm=[0, 2, 3, 1]).rung(f"Transpose {shape}")
        yield _Chain(shape).then("Concat", "x", axis=1).rung(f"Concat {shape}")
        chain = _Chain(shape)
        bounds = [chain.constant(np.array([n], np.int64)) for n in (1, 1 << 30, 2)]
        yield chain.then("Slice", *bounds).rung(f"Slice {shape}")
        chain = _Chain(shape)
        scales = chain.constant(np.array([1, 1, 2, 2], np.float32))
        yield chain.then("Resize", "", scales, mode="nearest").rung(f"Resize {shape}")


def _on_tokens(op: str, shape: tuple[int, ...]) -> Rung:
    chain = _Chain(shape)
    if op == "ReduceMean":
        axes = chain.constant(np.array([-1], np.int64))
        for _ in range(_REPEATS // 2):
            chain.then("ReduceMean", axes).then("Add", "x")
        return chain.rung(f"{op} {shape}")
    for _ in range(_REPEATS):
        others = (chain.normal(shape[-1]), chain.normal(shape[-1])) if op == "LayerNormalization" else ()
        chain.then(op, *others)
    return chain.rung(f"{op} {shape}")


def _recurrent() -> Iterator[Rung]:
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        for steps, width, hidden in ((1, 128, 128), (16, 64, 64), (64, 64, 128), (64, 256, 256), (32, 512, 512)):
            chain = _Chain((steps, 1, width))
            weights = [chain.normal(1, gates * hidden, n) for n in (width, hidden)]
            chain.then(op, *weights, chain.normal(1, 2 * gates * hidden), hidden_size=hidden)
            yield chain.rung(f"{op} {steps}x{width}-{hidden}")


# -- int8 -------------------------------------------------------------------------------------------------------------


class _IntegerChain(_Chain):
    """A chain of integer kernels between a QuantizeLinear and a DequantizeLinear; activations are uint8."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.activation = self.constant(np.float32(0.02)), self.constant(np.uint8(128))
        self.weight = self.constant(np.float32(0.01)), self.constant(np.int8(0))
        self.then("QuantizeLinear", *self.activation)

    def rung(self, name: str) -> Rung:
        self.then("DequantizeLinear", *self.activation)
        return super().rung(name)


def _integer_convolutions() -> Iterator[Rung]:
    for kernel, sizes in ((3, _SQUARE), (1, _POINTWISE)):
        for inner, outer, side in sizes:
            yield _integer_convolution(inner, outer, side, kernel)
    for width, side, kernel in _DEPTHWISE:
        yield _integer_convolution(width, width, side, kernel, group=width)
    for inner, outer, side, kernel in _NARROW[::2]:
        chain = _IntegerChain((1, inner, side, side))
        _then_convolution(chain, inner, outer, kernel, strides=[2, 2])
        yield chain.rung(f"int8 conv{kernel}-narrow {inner}-{outer}x{side}")


def _integer_convolution(inner: int, outer: int, side: int, kernel: int, group: int = 1) -> Rung:
    chain = _IntegerChain((1, inner, side, side))
    for a, b in [(inner, outer), (outer, inner)] * PAIRS:
        _then_convolution(chain, a // group, b, kernel, group=group)
    return chain.rung(f"int8 conv{kernel}{'-depthwise' if group > 1 else ''} {inner}-{outer}x{side}")


def _then_convolution(chain: _IntegerChain, inputs: int, outputs: int, kernel: int, **attributes: Any) -> None:
    weight = chain.integers("int8", 127, outputs, inputs, kernel, kernel)
    bias = chain.integers("int32", 1000, outputs)
    others = (*chain.activation, weight, *chain.weight, *chain.activation, bias)
    chain.then("QLinearConv", *others, pads=[kernel // 2] * 4, **attributes)


def _integer_products() -> Iterator[Rung]:
    for rows in (1, 4, 16, 64, 128, 512):
        for inner, outer in _WIDTHS[1:4]:
            chain = _IntegerChain((rows, inner))
            for a, b in [(inner, outer), (outer, inner)] * PAIRS:
                weight = chain.integers("int8", 127, a, b)
                chain.then("QLinearMatMul", *chain.activation, weight, *chain.weight, *chain.activation)
            yield chain.rung(f"int8 matmul {rows}x{inner}-{outer}")


def _quantization() -> Iterator[Rung]:
    for elements in _ELEMENTS:
        chain = _Chain((elements,))
        scale, zero = chain.constant(np.float32(0.02)), chain.constant(np.uint8(128))
        for _ in range(PAIRS):
            chain.then("QuantizeLinear", scale, zero).then("DequantizeLinear", scale, zero).then("Relu")
        yield chain.rung(f"quantize {elements}")


def feed_of(rung: Rung) -> dict[str, Array]:
    """Seeded normal numbers for `x`."""
    return {"x": np.random.default_rng(0).standard_normal(rung.shape).astype(np.float32)}
