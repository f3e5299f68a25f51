"""Rungs of float convolutions, matrix products and recurrent operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from joulec.energy.rung import PAIRS, Chain, Rung

SQUARE = (
    (16, 16, 56), (32, 32, 56), (64, 64, 56), (64, 64, 28), (24, 24, 28), (128, 128, 28), (48, 96, 14), (128, 128, 14),
    (256, 256, 14), (512, 512, 7), (64, 128, 7), (160, 160, 10), (32, 64, 112),
)  # fmt: skip
POINTWISE = (
    (16, 96, 56), (16, 16, 56), (24, 144, 56), (32, 192, 28), (64, 256, 56), (64, 384, 14), (96, 576, 14),
    (160, 960, 7), (256, 1024, 14), (320, 1280, 7), (512, 2048, 7), (64, 16, 1), (960, 240, 1), (58, 58, 28),
    (16, 64, 112), (512, 64, 14),
)  # fmt: skip
DEPTHWISE = (
    (32, 112, 3), (96, 56, 3), (144, 56, 3), (192, 28, 3), (240, 14, 5), (384, 14, 3), (576, 14, 3), (672, 7, 5),
    (960, 7, 3), (40, 40, 7), (160, 10, 7), (58, 28, 3),
)  # fmt: skip
NARROW = (
    (3, 32, 224, 3, 2), (3, 64, 224, 7, 2), (3, 16, 112, 3, 1), (1, 16, 28, 3, 1), (1, 32, 40, 5, 2),
    (3, 192, 224, 16, 16), (3, 40, 160, 4, 4), (8, 32, 56, 3, 1),
)  # fmt: skip
"""The first convolution of a network: few input channels, a stride, and the largest images."""
WIDTHS = ((64, 64), (256, 256), (768, 768), (768, 3072), (2048, 128), (192, 768), (40, 160))


def _convolutions() -> Iterator[Rung]:
    for kernel, sizes in ((3, SQUARE), (1, POINTWISE), (5, ((32, 32, 28), (64, 64, 14)))):
        for inner, outer, side in sizes:
            yield _convolution(inner, outer, side, kernel)
    for inner, outer, side in ((64, 64, 14), (32, 192, 14)):
        yield _convolution(inner, outer, side, 3, batch=8)
    yield _convolution(64, 256, 14, 1, batch=8)
    for inner, outer, side, kernel in ((16, 96, 112, 1), (64, 64, 56, 1), (64, 64, 56, 3), (256, 64, 28, 1)):
        yield _convolution(inner, outer, side, kernel, batch=16)
    for inner, outer, side in ((64, 128, 56), (256, 512, 14)):
        for kernel in (1, 3):
            yield _strided(inner, outer, side, kernel)


def _convolution(inner: int, outer: int, side: int, kernel: int, group: int = 1, batch: int = 1) -> Rung:
    chain = Chain((batch, inner, side, side))
    for a, b in [(inner, outer), (outer, inner)] * PAIRS:
        weights = chain.normal(b, a // group, kernel, kernel), chain.normal(b)
        chain.then("Conv", *weights, group=group, pads=[kernel // 2] * 4).then("Relu")
    return chain.rung(f"conv{kernel}{'-depthwise' if group > 1 else ''} {batch}x{inner}-{outer}x{side}")


def _strided(inner: int, outer: int, side: int, kernel: int, group: int = 1) -> Rung:
    """Two branches of one input, each with a stride of two."""
    chain = Chain((1, inner, side, side))
    made = []
    for _ in range(2):
        weights = chain.normal(outer, inner // group, kernel, kernel), chain.normal(outer)
        chain.then("Conv", *weights, first="x", group=group, pads=[kernel // 2] * 4, strides=[2, 2])
        made.append(chain.last)
    chain.then("Add", made[0])
    return chain.rung(f"conv{kernel}{'-depthwise' if group > 1 else ''}-strided {inner}-{outer}x{side}")


def _depthwise() -> Iterator[Rung]:
    for width, side, kernel in DEPTHWISE:
        yield _convolution(width, width, side, kernel, group=width)
    for width, side, batch in ((96, 28, 8), (96, 112, 16), (240, 28, 16), (32, 112, 16)):
        yield _convolution(width, width, side, 3, group=width, batch=batch)
    for width, side, kernel in ((96, 112, 3), (240, 28, 5)):
        yield _strided(width, width, side, kernel, group=width)


def _narrow() -> Iterator[Rung]:
    for sizes in NARROW:
        yield _first(1, *sizes)
    for sizes in ((3, 32, 224, 3, 2), (8, 48, 112, 1, 1), (3, 16, 128, 3, 1)):
        yield _first(16, *sizes)


def _first(batch: int, inner: int, outer: int, side: int, kernel: int, stride: int) -> Rung:
    chain = Chain((batch, inner, side, side))
    weights = chain.normal(outer, inner, kernel, kernel), chain.normal(outer)
    pads = [kernel // 2 if stride < kernel else 0] * 4
    chain.then("Conv", *weights, pads=pads, strides=[stride] * 2).then("Relu")
    return chain.rung(f"conv{kernel}-narrow {batch}x{inner}-{outer}x{side}")


def _cold() -> Iterator[Rung]:
    """Products whose weights no cache keeps from run to run."""
    inner, layers = 1024, 16
    for rows in (1, 16):
        chain = Chain((rows, inner))
        for _ in range(layers):
            chain.then("Gemm", chain.normal(inner, inner), chain.normal(inner))
        yield chain.rung(f"matmul cold {rows}x{inner}x{layers}")
    chain = Chain((1, 256, 14, 14))
    for _ in range(24):
        chain.then("Conv", chain.normal(256, 256, 3, 3), chain.normal(256), pads=[1] * 4).then("Relu")
    yield chain.rung("conv3 cold 256x14x24")


def _lines() -> Iterator[Rung]:
    """Convolutions along time, which have no blocked layout, and transposed ones."""
    sizes = (1, 40, 256, 3), (1, 64, 256, 3), (8, 64, 128, 3), (1, 128, 64, 5), (1, 256, 100, 1)
    for batch, width, steps, kernel in sizes:
        chain = Chain((batch, width, steps))
        for _ in range(2 * PAIRS):
            chain.then("Conv", chain.normal(width, width, kernel), chain.normal(width), pads=[kernel // 2] * 2)
        yield chain.rung(f"conv{kernel}-line {batch}x{width}x{steps}")
    for width, side in ((32, 32), (64, 16), (128, 8)):
        chain = Chain((1, width, side, side))
        chain.then("ConvTranspose", chain.normal(width, width // 2, 2, 2), strides=[2, 2])
        yield chain.rung(f"conv2-transposed {width}x{side}")


def _products() -> Iterator[Rung]:
    for rows in (1, 4, 16, 64, 128, 512):
        for inner, outer in WIDTHS:
            chain = Chain((rows, inner))
            for a, b in [(inner, outer), (outer, inner)] * PAIRS:
                chain.then("Gemm", chain.normal(a, b), chain.normal(b))
            yield chain.rung(f"matmul {rows}x{inner}-{outer}")


def _token_products() -> Iterator[Rung]:
    for tokens, inner, outer in ((64, 256, 256), (128, 768, 768), (32, 768, 3072), (197, 192, 192), (128, 256, 1024)):
        for bias in (True, False):
            chain = Chain((1, tokens, inner))
            for a, b in [(inner, outer), (outer, inner)] * PAIRS:
                chain.then("MatMul", chain.normal(a, b))
                if bias:
                    chain.then("Add", chain.normal(b))
            yield chain.rung(f"matmul 1x{tokens}x{inner}-{outer}{' biased' if bias else ''}")


def _attention() -> Iterator[Rung]:
    """Products of activations with activations, as attention has them."""
    sizes = ((4, 64, 32), (12, 64, 64), (12, 128, 64), (12, 256, 64), (8, 512, 64), (3, 197, 64), (48, 64, 32))
    for heads, tokens, width in sizes:
        chain = Chain((heads, tokens, width))
        chain.then("Transpose", perm=[0, 2, 1])
        transposed = chain.last
        chain.then("MatMul", transposed, first="x").then("MatMul", "x").then("MatMul", transposed).then("MatMul", "x")
        yield chain.rung(f"matmul {heads}x{tokens}x{width}")
    for heads, past, width in ((8, 128, 64), (128, 128, 64)):
        chain = Chain((heads, 1, width))
        keys, values = chain.normal(heads, width, past), chain.normal(heads, past, width)
        for _ in range(PAIRS):
            chain.then("MatMul", keys).then("MatMul", values)
        yield chain.rung(f"matmul {heads}x1x{width}-{past}")


def _recurrent() -> Iterator[Rung]:
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        for steps, batch, width, hidden in (
            (1, 1, 128, 128), (16, 1, 64, 64), (64, 1, 64, 128), (64, 1, 256, 256), (32, 1, 512, 512),
            (32, 8, 128, 128), (50, 16, 80, 256), (40, 1, 640, 128),
        ):  # fmt: skip
            chain = Chain((steps, batch, width))
            weights = [chain.normal(1, gates * hidden, n) for n in (width, hidden)]
            more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
            chain.then(op, *weights, chain.normal(1, 2 * gates * hidden), hidden_size=hidden, **more)
            yield chain.rung(f"{op} {steps}x{batch}x{width}-{hidden}")


GROUPS = (_convolutions, _depthwise, _narrow, _lines, _products, _token_products, _cold, _attention, _recurrent)
