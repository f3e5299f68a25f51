"""Rungs of elementwise operators, reductions, poolings and data movement in float."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from joulec.energy.rung import Chain, Rung

ELEMENTS, MANY = (1_000, 10_000, 100_000, 1_000_000), 8_000_000
"""Sizes within the caches, and one that no cache holds."""
_WIDTH, REPEATS = 100, 8

_FUNCTIONS = (
    "Relu", "HardSigmoid", "Sqrt", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Exp", "HardSwish", "Log", "Elu", "Softplus",
)  # fmt: skip


def _elementwise() -> Iterator[Rung]:
    for elements in ELEMENTS:
        shape = (elements // _WIDTH, _WIDTH)
        for op in _FUNCTIONS:
            yield _repeated(Chain(shape), op).rung(f"{op} {elements}")
        yield _swish(shape)
        yield _gelu(shape)
        for op in ("Add", "Mul", "Div"):
            for other in ("row", "same", "number"):
                chain = Chain(shape)
                yield _repeated(chain, op, _operand(chain, other)).rung(f"{op} {other} {elements}")
        chain = Chain(shape)
        yield _repeated(chain, "Pow", chain.constant(np.float32(2.0))).rung(f"Pow {elements}")


def _streams() -> Iterator[Rung]:
    """What comes from memory and goes there."""
    for op in ("Relu", "Sigmoid", "Sqrt"):
        yield _repeated(Chain((MANY // _WIDTH, _WIDTH)), op).rung(f"{op} {MANY}")
    for op, other in (("Add", "same"), ("Mul", "number")):
        chain = Chain((MANY // _WIDTH, _WIDTH))
        yield _repeated(chain, op, _operand(chain, other)).rung(f"{op} {other} {MANY}")
    yield _swish((MANY // _WIDTH, _WIDTH))
    yield _swish((2 * MANY // 5 // _WIDTH, _WIDTH))
    for elements in (2_000_000, 4_000_000):
        yield _repeated(Chain((elements // _WIDTH, _WIDTH)), "Relu").rung(f"Relu {elements}")


def _repeated(chain: Chain, op: str, *others: str) -> Chain:
    for _ in range(REPEATS):
        chain.then(op, *others)
    return chain


def _operand(chain: Chain, kind: str) -> str:
    if kind == "same":
        return "x"
    return chain.constant(np.linspace(0.5, 1.5, _WIDTH, dtype=np.float32) if kind == "row" else np.float32(1.5))


def _swish(shape: tuple[int, ...]) -> Rung:
    chain = Chain(shape)
    for _ in range(REPEATS):
        before = chain.last
        chain.then("Sigmoid").then("Mul", before)
    return chain.rung(f"Swish {shape}")


def _gelu(shape: tuple[int, ...]) -> Rung:
    chain = Chain(shape)
    root, one, half = (chain.constant(np.float32(n)) for n in (2**0.5, 1.0, 0.5))
    for _ in range(REPEATS // 2):
        before = chain.last
        chain.then("Div", root).then("Erf").then("Add", one).then("Mul", before).then("Mul", half)
    return chain.rung(f"Gelu {shape}")


def _broadcast() -> Iterator[Rung]:
    """Products with one number a channel, a row or a column: loops of short spans."""
    for shape, other in (
        ((1, 64, 56, 56), (1, 64, 1, 1)), ((1, 240, 14, 14), (1, 240, 1, 1)), ((8, 96, 14, 14), (8, 96, 1, 1)),
        ((1, 960, 7, 7), (1, 960, 1, 1)), ((4, 12, 64, 64), (4, 1, 1, 64)), ((128, 256), (128, 1)),
        ((16, 64, 384), (64, 384)), ((2048, 16), (16,)),
    ):  # fmt: skip
        for op in ("Mul", "Sub"):
            chain = Chain(shape)
            yield _repeated(chain, op, chain.normal(*other)).rung(f"{op} {shape} {other}")


IMAGES = (
    (1, 16, 112, 112), (1, 64, 56, 56), (1, 256, 14, 14), (1, 512, 7, 7), (8, 64, 28, 28), (16, 64, 56, 56),
    (16, 64, 112, 112),
)  # fmt: skip
_TOKENS = ((16, 128), (128, 256), (128, 768), (512, 768), (2048, 64))


def _rows() -> Iterator[Rung]:
    for shape in _TOKENS:
        for op in ("LayerNormalization", "Softmax", "ReduceMean"):
            yield _on_tokens(op, shape)
    for summed in ((1, 16, 128), (1, 128, 256), (1, 197, 192), (16, 64, 384), (1, 512, 768)):
        yield _skipping(summed)
    for scores in ((4, 64, 64), (12, 197, 197), (48, 64, 64), (8, 1, 128)):
        yield _repeated(Chain(scores), "Softmax").rung(f"Softmax {scores}")


def _skipping(shape: tuple[int, ...]) -> Rung:
    """Sums that are normalized."""
    chain = Chain(shape)
    for _ in range(REPEATS // 2):
        chain.then("Add", "x").then("LayerNormalization", chain.normal(shape[-1]), chain.normal(shape[-1]))
    return chain.rung(f"Add and LayerNormalization {shape}")


def _on_tokens(op: str, shape: tuple[int, ...]) -> Rung:
    chain = Chain(shape)
    if op == "ReduceMean":
        axes = chain.constant(np.array([-1], np.int64))
        for _ in range(REPEATS // 2):
            chain.then("ReduceMean", axes).then("Add", "x")
        return chain.rung(f"{op} {shape}")
    for _ in range(REPEATS):
        others = (chain.normal(shape[-1]), chain.normal(shape[-1])) if op == "LayerNormalization" else ()
        chain.then(op, *others)
    return chain.rung(f"{op} {shape}")


def _poolings() -> Iterator[Rung]:
    """Poolings of plain images, and behind a convolution, which works on blocks of channels."""
    for shape in IMAGES:
        for op, size in (("MaxPool", 3), ("AveragePool", 2)):
            yield _branches(Chain(shape), op, kernel_shape=[size] * 2, strides=[2, 2]).rung(f"{op} {shape}")
        yield _branches(Chain(shape), "GlobalAveragePool").rung(f"GlobalAveragePool {shape}")
        chain = Chain(shape)
        yield _branches(chain, "ReduceMean", chain.constant(np.array([2, 3], np.int64))).rung(f"ReduceMean {shape}")
        maximum = _convolved(shape).then("MaxPool", kernel_shape=[3, 3], strides=[2, 2])
        yield maximum.rung(f"blocked MaxPool {shape}")
        yield _convolved(shape).then("GlobalAveragePool").rung(f"blocked GlobalAveragePool {shape}")


def _convolved(shape: tuple[int, ...]) -> Chain:
    chain = Chain(shape)
    return chain.then("Conv", chain.normal(shape[1], shape[1], 1, 1), chain.normal(shape[1]))


def _branches(chain: Chain, op: str, *others: str, **attributes: object) -> Chain:
    """Four of the same on `x`, and one of them as the result: what does not keep its shape is no chain."""
    made = [chain.then(op, *others, first="x", **attributes).last for _ in range(4)]
    return chain.then("Sum", *made[1:], first=made[0])


def _movement() -> Iterator[Rung]:
    for shape in IMAGES:
        for perm in ([0, 2, 3, 1], [0, 3, 1, 2]):
            yield _branches(Chain(shape), "Transpose", perm=perm).rung(f"Transpose {perm} {shape}")
        yield Chain(shape).then("Concat", "x", axis=1).rung(f"Concat {shape}")
        chain = Chain(shape)
        yield _branches(chain, "Slice", *_bounds(chain, 1, 1 << 30, 2)).rung(f"Slice {shape}")
        yield _resized(Chain(shape), "nearest")
        if shape[0] == 1:
            yield _resized(Chain(shape), "linear")
        yield _resized(_convolved(shape), "linear", "blocked ")
        chain = Chain(shape)
        pads = chain.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        yield _branches(chain, "Pad", pads).rung(f"Pad {shape}")


def _bounds(chain: Chain, start: int, end: int, axis: int) -> list[str]:
    return [chain.constant(np.array([n], np.int64)) for n in (start, end, axis)]


def _resized(chain: Chain, mode: str, layout: str = "") -> Rung:
    scales = chain.constant(np.array([1, 1, 2, 2], np.float32))
    return chain.then("Resize", "", scales, mode=mode).rung(f"{layout}Resize {mode} {chain.shape}")


def _token_movement() -> Iterator[Rung]:
    """Transposes as in attention and recurrent layers, shuffled channels, views, splits, concatenations, look-ups."""
    for shape, perm in (
        ((1, 128, 4, 64), [0, 2, 1, 3]), ((16, 64, 12, 32), [0, 2, 1, 3]), ((1, 128, 4, 64), [0, 2, 3, 1]),
        ((1, 197, 3, 64), [0, 2, 3, 1]), ((16, 64, 12, 32), [0, 2, 3, 1]), ((16, 50, 80), [1, 0, 2]),
        ((1, 2, 58, 28, 28), [0, 2, 1, 3, 4]), ((8, 2, 116, 14, 14), [0, 2, 1, 3, 4]), ((1, 192, 196), [0, 2, 1]),
    ):  # fmt: skip
        yield _branches(Chain(shape), "Transpose", perm=perm).rung(f"Transpose {perm} {shape}")
    for shape in ((1, 128, 256), (16, 64, 384), (1, 64, 28, 28)):
        yield _viewed(shape)
        for axis in (1, len(shape) - 1):
            yield Chain(shape).then("Concat", "x", "x", axis=axis).rung(f"Concat {axis} {shape}")
            yield _split(shape, axis)
    for rows, width, picked in ((5000, 64, 40), (5000, 256, 128), (5000, 256, 1000)):
        chain = Chain((rows, width))
        index = chain.integers("int64", rows, picked)
        yield _branches(chain, "Gather", index).rung(f"Gather {picked} of {rows}x{width}")


def _viewed(shape: tuple[int, ...]) -> Rung:
    chain = Chain(shape)
    for _ in range(REPEATS // 2):
        flat, back = (chain.constant(np.array(dims, np.int64)) for dims in ((-1, shape[-1]), shape))
        chain.then("Relu").then("Reshape", flat).then("Relu").then("Reshape", back)
    return chain.rung(f"Reshape {shape}")


def _split(shape: tuple[int, ...], axis: int) -> Rung:
    chain = Chain(shape)
    return chain.halves(axis).rung(f"Split {axis} {shape}")


GROUPS = (_elementwise, _streams, _broadcast, _rows, _poolings, _movement, _token_movement)
