"""Operators that multiply what they read with a stored weight, seen as products of a matrix with columns of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.values import Array, attribute, input_at
from joulec.passes._moments import Reading, channels_of, spread


@dataclass(frozen=True)
class Product:
    """y = W x, for each group of channels by itself.

    Attributes:
        node: the operator: Conv, ConvTranspose, Gemm or MatMul.
        name: of the value that x is made of; for Conv x is a patch of it.
        shape: of the weight, as the operator sees it.
        groups: of a Conv, 1 otherwise.
        flipped: whether the weight lies as (outputs, sums...), and not as (sums, outputs...).
        axis: of the value, along which it is summed over; of images that of channels.
    """

    node: ir.Node
    name: str
    shape: tuple[int, ...]
    groups: int
    flipped: bool
    axis: int

    def matrix(self, seen: Array) -> Array:
        """The weight as the operator sees it, or any array laid out like it, as (groups, outputs of one, sums)."""
        rows = seen.reshape(self.shape[0], -1)
        return (rows if self.flipped else rows.T).reshape(self.groups, -1, self.width)

    def seen(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        rows = matrix.reshape(-1, self.width)
        return np.ascontiguousarray(rows if self.flipped else rows.T).reshape(self.shape)

    @property
    def width(self) -> int:
        """Numbers in one sum."""
        rest = int(np.prod(self.shape[1:]))
        return rest if self.flipped else self.shape[0]

    def reading(self) -> Reading:
        """What it multiplies."""
        if self.node.op_type == "Conv":
            return Reading((self.name,), self.groups, self.width, self._patches)
        return channels_of(self.name, self.axis, self.width)

    def _patches(self, array: Array, wanted: int, turn: int) -> Array | None:
        """Patches of images (n, c, ...) at some of the places where the convolution computes."""
        taps = self.shape[2:]
        if array.ndim != len(taps) + 2 or array.shape[1] != self.groups * self.shape[1]:
            return None
        views = _views(self.node, np.asarray(array, np.float32), taps)
        if views is None:
            return None
        places = (len(array), *views.shape[2 : 2 + len(taps)])
        chosen = np.unravel_index(np.arange(int(np.prod(places)))[spread(int(np.prod(places)), wanted, turn)], places)
        rows = np.moveaxis(views, 1, 1 + len(taps))[chosen]  # (rows, channels, taps...)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), self.groups, self.width), 1, 0))


def product_of(node: ir.Node, slot: int, seen: tuple[int, ...]) -> Product | str:
    """`node` with its weight at input `slot`, of the shape that it sees, as a product; or why it is none."""
    data = input_at(node, 1 - slot)
    if not walk.is_onnx(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or data is None or not data.name:
        return f"the sums of {node.op_type} are not those of a product"
    if any(one.is_ref() for one in node.attributes.values()):
        return "an attribute refers to a function attribute"
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        fits = slot == 1 and len(seen) > 2 and groups > 0 and seen[0] % groups == 0
        return Product(node, data.name, seen, groups, True, 1) if fits else "its groups do not fit its weight"
    if node.op_type == "ConvTranspose":
        whole = slot == 1 and attribute(node, "group", 1) == 1
        return Product(node, data.name, seen, 1, False, 1) if whole else "a grouped transposed convolution"
    if len(seen) != 2:
        return f"its weight has rank {len(seen)}"
    across = bool(attribute(node, "transA" if slot == 0 else "transB", 0)) if node.op_type == "Gemm" else False
    other = bool(attribute(node, "transB" if slot == 0 else "transA", 0)) if node.op_type == "Gemm" else False
    return Product(node, data.name, seen, 1, across == (slot == 1), (-1 if other else -2) if slot == 0 else -1 - other)


def _views(node: ir.Node, array: Array, taps: tuple[int, ...]) -> Array | None:
    """Every patch as a view: (n, channels, places..., taps...); None where the image is smaller than a patch."""
    steps = attribute(node, "dilations", None) or [1] * len(taps)
    strides = attribute(node, "strides", None) or [1] * len(taps)
    extents = tuple((size - 1) * int(step) + 1 for size, step in zip(taps, steps, strict=True))
    padded = np.pad(array, [(0, 0), (0, 0), *_pads(node, array.shape[2:], extents, strides)])
    if any(size < extent for size, extent in zip(padded.shape[2:], extents, strict=True)):
        return None
    axes = tuple(range(2, array.ndim))
    views = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=axes)
    places = [slice(None, None, int(stride)) for stride in strides]
    return views[(slice(None), slice(None), *places, *(slice(None, None, int(step)) for step in steps))]


def _pads(node: ir.Node, sizes: tuple[int, ...], extents: tuple[int, ...], strides: list[int]) -> list[tuple[int, int]]:
    """Zeros in front of and behind each spatial axis, as ONNX defines `pads` and `auto_pad`."""
    auto = attribute(node, "auto_pad", "NOTSET")
    given = [int(one) for one in attribute(node, "pads", None) or [0] * (2 * len(sizes))]
    if auto == "VALID":
        return [(0, 0)] * len(sizes)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return list(zip(given[: len(sizes)], given[len(sizes) :], strict=True))
    totals = [
        max((-(-size // stride) - 1) * stride + extent - size, 0)
        for size, extent, stride in zip(sizes, extents, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
