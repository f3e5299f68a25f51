"""How much an error in each channel of a tensor matters: by the weights that it is multiplied with next.

An operator y = W x turns an error e of channel c into W[:, c] e, so its squared error weighs |W[:, c]|^2. Channels of
small numbers are often multiplied with large weights (a folded BatchNormalization makes them so), and an error measure
without these weights would give the range of the whole tensor to its loudest channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir.values import Array, attribute, constant, rank
from joulec.passes.blocks import Block

KEEPING = frozenset({"Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})
"""Operators that leave channels where they are: what their result is worth, their input is."""


@dataclass(frozen=True)
class Importance:
    """Weights along one axis of a tensor.

    Attributes:
        axis: from the front (0, 1, ...) or, negative, from the back.
        weights: float64 (channels,), of mean 1.
    """

    axis: int
    weights: Array

    def along(self, shape: Sequence[int]) -> tuple[int, Array] | None:
        """For an array of `shape`: how many numbers in a row share a channel, and the weights; None where none fit."""
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] != self.weights.size:
            return None
        return int(np.prod(shape[self.axis % len(shape) + 1 :], dtype=np.int64)), self.weights


def importances(blocks: Sequence[Block]) -> dict[str, Importance]:
    """What each channel of the activations that `blocks` read is worth, by value name; O(weights)."""
    sums: dict[int, tuple[int, Array]] = {}
    names: dict[int, str] = {}
    for block in reversed(blocks):  # readers first, so that what they say reaches back through what keeps channels
        found = _of_reader(block, sums)
        if found is None or not block.inputs:
            continue
        value = block.inputs[0]
        axis, weights = found
        before = sums.get(id(value))
        if before is not None and (before[0] != axis or before[1].size != weights.size):
            continue
        sums[id(value)] = (axis, weights if before is None else weights + before[1])
        names[id(value)] = value.name or ""
    return {names[key]: made for key, (axis, weights) in sums.items() if (made := _normal(axis, weights)) is not None}


def _normal(axis: int, weights: Array) -> Importance | None:
    mean = float(weights.mean()) if weights.size else 0.0
    if not np.isfinite(mean) or mean <= 0.0:
        return None
    return Importance(axis, np.maximum(weights / mean, 1e-6))  # never nothing: other readers may see the channel


def _of_reader(block: Block, sums: dict[int, tuple[int, Array]]) -> tuple[int, Array] | None:
    if block.node.op_type in KEEPING:
        found = sums.get(id(block.output))
        return found if found is not None and found[0] == 1 else None
    numbers = None if block.weight is None else constant(block.weight)
    if numbers is None or not np.issubdtype(numbers.dtype, np.floating):
        return None
    squares = np.square(numbers, dtype=np.float64)
    return _conv(block.node, squares) if block.node.op_type == "Conv" else _product(block.node, squares)


def _conv(node: ir.Node, squares: Array) -> tuple[int, Array] | None:
    groups = int(attribute(node, "group", 1))
    if squares.ndim < 3 or squares.shape[0] % max(groups, 1):
        return None
    taps = squares.sum(axis=tuple(range(2, squares.ndim)))
    return 1, taps.reshape(groups, -1, taps.shape[1]).sum(axis=1).ravel()


def _product(node: ir.Node, squares: Array) -> tuple[int, Array] | None:
    if node.op_type not in ("MatMul", "Gemm") or squares.ndim != 2 or rank(node.inputs[0]) is None:
        return None
    transposed = node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    return -1, squares.sum(axis=0 if transposed else 1)
