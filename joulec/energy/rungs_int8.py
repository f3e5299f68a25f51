"""Rungs of integer kernels, between a QuantizeLinear and a DequantizeLinear; activations are uint8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from joulec.energy.rung import MICROSOFT, PAIRS, Chain, Rung
from joulec.energy.rungs_dense import DEPTHWISE, NARROW, POINTWISE, SQUARE, WIDTHS
from joulec.energy.rungs_light import ELEMENTS, IMAGES, REPEATS


class _IntegerChain(Chain):
    """A chain of integer kernels that begins and ends in float."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.activation = self.constant(np.float32(0.02)), self.constant(np.uint8(128))
        self.weight = self.constant(np.float32(0.01)), self.constant(np.int8(0))
        self.then("QuantizeLinear", *self.activation)

    def rung(self, name: str) -> Rung:
        self.then("DequantizeLinear", *self.activation)
        return super().rung(f"int8 {name}")


def _convolutions() -> Iterator[Rung]:
    for kernel, sizes in ((3, SQUARE), (1, POINTWISE)):
        for inner, outer, side in sizes:
            yield _convolution(inner, outer, side, kernel)
    batched = (64, 64, 14, 3, 8), (64, 256, 14, 1, 8), (16, 96, 112, 1, 16), (64, 64, 56, 1, 16)
    for inner, outer, side, kernel, batch in batched:
        yield _convolution(inner, outer, side, kernel, batch=batch)


def _depthwise() -> Iterator[Rung]:
    for width, side, kernel in DEPTHWISE:
        yield _convolution(width, width, side, kernel, group=width)
    for width, side in ((96, 112), (240, 28)):
        yield _convolution(width, width, side, 3, group=width, batch=16)


def _narrow() -> Iterator[Rung]:
    for batch, (inner, outer, side, kernel, stride) in (*((1, one) for one in NARROW), (8, NARROW[0]), (8, NARROW[2])):
        chain = _IntegerChain((batch, inner, side, side))
        _then_convolution(chain, inner, outer, kernel, 2, strides=[stride] * 2)
        yield chain.rung(f"conv{kernel}-narrow {batch}x{inner}-{outer}x{side}")
    for width, steps in ((40, 256), (64, 256), (128, 64)):
        chain = _IntegerChain((1, width, steps))
        for _ in range(2 * PAIRS):
            _then_convolution(chain, width, width, 3, 1)
        yield chain.rung(f"conv3-line {width}x{steps}")


def _convolution(inner: int, outer: int, side: int, kernel: int, group: int = 1, batch: int = 1) -> Rung:
    chain = _IntegerChain((batch, inner, side, side))
    for a, b in [(inner, outer), (outer, inner)] * PAIRS:
        _then_convolution(chain, a // group, b, kernel, 2, group=group)
    return chain.rung(f"conv{kernel}{'-depthwise' if group > 1 else ''} {batch}x{inner}-{outer}x{side}")


def _then_convolution(
    chain: _IntegerChain, inputs: int, outputs: int, kernel: int, rank: int, **attributes: Any
) -> None:  # fmt: skip
    weight = chain.integers("int8", 127, outputs, inputs, *[kernel] * rank)
    bias = chain.integers("int32", 1000, outputs)
    others = (*chain.activation, weight, *chain.weight, *chain.activation, bias)
    chain.then("QLinearConv", *others, pads=[kernel // 2] * 2 * rank, **attributes)


def _products() -> Iterator[Rung]:
    for rows in (1, 4, 16, 64, 128, 512):
        for inner, outer in WIDTHS[1:6]:
            chain = _IntegerChain((rows, inner))
            for a, b in [(inner, outer), (outer, inner)] * PAIRS:
                weight = chain.integers("int8", 127, a, b)
                chain.then("QLinearMatMul", *chain.activation, weight, *chain.weight, *chain.activation)
            yield chain.rung(f"matmul {rows}x{inner}-{outer}")


def _attention() -> Iterator[Rung]:
    """Products of activations with activations."""
    for heads, tokens, width in ((4, 128, 64), (12, 64, 32), (3, 197, 64), (48, 64, 32)):
        chain = _IntegerChain((heads, tokens, width))
        given = chain.last
        chain.then("Transpose", perm=[0, 2, 1])
        turned = chain.last
        for first, other in ((given, turned), (None, given)):
            others = (*chain.activation, other, *chain.activation, *chain.activation)
            chain.then("QLinearMatMul", *others, first=first)
        yield chain.rung(f"matmul {heads}x{tokens}x{width}")


def _dynamic() -> Iterator[Rung]:
    """Products and LSTMs whose input is quantized in every run."""
    for rows in (1, 16, 128):
        for inner, outer in ((256, 256), (768, 768), (256, 1024)):
            chain = Chain((rows, inner))
            for a, b in [(inner, outer), (outer, inner)] * PAIRS:
                weight, scale = chain.integers("int8", 127, a, b), chain.constant(np.float32(0.01))
                chain.then("DynamicQuantizeMatMul", weight, scale, chain.constant(np.int8(0)), domain=MICROSOFT)
            yield chain.rung(f"int8 dynamic matmul {rows}x{inner}-{outer}")
    for steps, batch, width, hidden in (
        (1, 1, 128, 128), (16, 1, 64, 64), (64, 1, 128, 256), (50, 1, 320, 320), (40, 16, 100, 128), (50, 16, 80, 320),
        (64, 4, 256, 64), (32, 1, 512, 512),
    ):  # fmt: skip
        chain = Chain((steps, batch, width))
        weights = [chain.integers("int8", 127, 1, n, 4 * hidden) for n in (width, hidden)]
        pairs = [chain.constant(np.full((1,), value)) for value in (np.float32(0.01), np.int8(0))]
        others = (*weights, chain.normal(1, 8 * hidden), "", "", "", "", *pairs, *pairs)
        chain.then("DynamicQuantizeLSTM", *others, hidden_size=hidden, domain=MICROSOFT)
        yield chain.rung(f"int8 LSTM {steps}x{batch}x{width}-{hidden}")


def _quantization() -> Iterator[Rung]:
    for elements in (*ELEMENTS, 4_000_000):
        chain = Chain((elements,))
        scale, zero = chain.constant(np.float32(0.02)), chain.constant(np.uint8(128))
        for _ in range(PAIRS):
            chain.then("QuantizeLinear", scale, zero).then("DequantizeLinear", scale, zero).then("Relu")
        yield chain.rung(f"quantize {elements}")


def _elementwise() -> Iterator[Rung]:
    for elements in ELEMENTS:
        for op in ("QLinearAdd", "QLinearMul"):
            chain = _IntegerChain((elements // 100, 100))
            given = chain.last
            for _ in range(REPEATS):
                chain.then(op, *chain.activation, given, *chain.activation, *chain.activation, domain=MICROSOFT)
            yield chain.rung(f"{op} {elements}")
        chain = _IntegerChain((elements // 100, 100))
        for _ in range(REPEATS):
            chain.then("QLinearSigmoid", *chain.activation, *chain.activation, domain=MICROSOFT)
        yield chain.rung(f"QLinearSigmoid {elements}")
    for rows, width in ((128, 256), (2048, 64), (8192, 40)):
        chain = _IntegerChain((1, rows, width))
        row = chain.constant(np.full((width,), 99, np.uint8))
        for _ in range(REPEATS):
            chain.then("QLinearAdd", *chain.activation, row, *chain.activation, *chain.activation, domain=MICROSOFT)
        yield chain.rung(f"QLinearAdd row {rows}x{width}")
    for shape in ((1, 64, 56, 56), (1, 240, 14, 14), (1, 960, 7, 7), (8, 32, 56, 56)):
        chain = _convolved(shape)
        gate = chain.constant(np.full((1, shape[1], 1, 1), 99, np.uint8))
        for _ in range(REPEATS):
            chain.then("QLinearMul", *chain.activation, gate, *chain.activation, *chain.activation, domain=MICROSOFT)
        yield chain.rung(f"QLinearMul {shape}")


def _softmax() -> Iterator[Rung]:
    for shape in ((4, 64, 64), (12, 128, 128), (3, 197, 197), (8, 1, 128)):
        chain = _IntegerChain(shape)
        for _ in range(2 * PAIRS):
            settings: dict[str, Any] = {"axis": -1, "opset": 13, "domain": MICROSOFT}
            chain.then("QLinearSoftmax", *chain.activation, *chain.activation, **settings)
        yield chain.rung(f"Softmax {shape}")


def _cold() -> Iterator[Rung]:
    """Products whose weights no cache keeps from run to run."""
    for rows in (1, 16):
        chain = _IntegerChain((rows, 2048))
        for _ in range(16):
            weight = chain.integers("int8", 127, 2048, 2048)
            chain.then("QLinearMatMul", *chain.activation, weight, *chain.weight, *chain.activation)
        yield chain.rung(f"matmul cold {rows}x2048")


def _images() -> Iterator[Rung]:
    """Poolings and concatenations behind a convolution, whose layout they keep: channels last."""
    for shape in IMAGES:
        chain = _convolved(shape)
        yield chain.then("MaxPool", kernel_shape=[3, 3], strides=[2, 2]).rung(f"MaxPool {shape}")
        chain = _convolved(shape)
        pooled = (*chain.activation, *chain.activation)
        yield chain.then("QLinearGlobalAveragePool", *pooled, domain=MICROSOFT).rung(f"GlobalAveragePool {shape}")
        chain = _convolved(shape)
        given = chain.last
        chain.then("QLinearConcat", chain.activation[1], given, *chain.activation, given, *chain.activation,
                   first=chain.activation[0], axis=1, domain=MICROSOFT)  # fmt: skip
        yield chain.rung(f"Concat {shape}")


def _convolved(shape: tuple[int, ...]) -> _IntegerChain:
    chain = _IntegerChain(shape)
    _then_convolution(chain, shape[1], shape[1], 1, 2)
    return chain


def _movement() -> Iterator[Rung]:
    for shape in IMAGES:
        chain = _IntegerChain(shape)
        yield chain.then("Transpose", perm=[0, 2, 3, 1]).rung(f"Transpose {shape}")
    for shape, perm in (((1, 128, 4, 64), [0, 2, 1, 3]), ((16, 64, 12, 32), [0, 2, 3, 1])):
        chain = _IntegerChain(shape)
        yield chain.then("Transpose", perm=perm).rung(f"Transpose {perm} {shape}")


GROUPS = (
    _convolutions, _depthwise, _narrow, _products, _attention, _dynamic, _quantization, _elementwise, _images,
    _movement, _softmax, _cold,
)  # fmt: skip
