"""Operators with a constant weight as matrices, and samples of what enters them: what weight techniques work on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module, Range
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at, is_overridable
from joulec.passes._exposing import branches
from joulec.passes._observe import stream
from joulec.passes._qdq import activation_parameters, quantized, weight_parameters
from joulec.passes.base import Context
from joulec.passes.blocks import channel_axis, weight_refusal

FEEDS = 8
"""Feeds that samples are taken from, the first of them and then at equal distances."""

WINDOW = 1 << 15
"""Numbers kept of one value and feed: 8 feeds of float32 make 1 MiB."""

VALUES = 64
"""Values sampled in one run over the data; more are sampled in further runs."""

ROWS = 1024
"""Rows of a matrix of samples."""


@dataclass(frozen=True)
class Layer:
    """A Conv, MatMul or Gemm with a constant float32 weight.

    Attributes:
        node: the operator.
        data: what it reads.
        weight: its weight.
        groups: of a Conv; 1 otherwise.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    groups: int = 1

    @property
    def axis(self) -> int | None:
        """The axis of the weight that runs along output channels."""
        return channel_axis(self.node)

    @property
    def input_axis(self) -> int:
        """The axis of the data that runs along channels, from the front for Conv, from the back otherwise."""
        return 1 if self.node.op_type == "Conv" else -1

    def numbers(self) -> Array:
        """The weight."""
        return np.asarray(constant(self.weight), np.float32)

    def matrix(self, numbers: Array | None = None) -> Array:
        """The weight, or numbers laid out like it, as (out channels, in channels of a group * taps)."""
        numbers = self.numbers() if numbers is None else numbers
        turned = np.moveaxis(numbers, self.axis or 0, 0)
        return turned.reshape(turned.shape[0], -1)

    def laid_out(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        shape = list(self.numbers().shape)
        outer = shape.pop(self.axis or 0)
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(outer, *shape), 0, self.axis or 0), np.float32)

    def by_input(self, numbers: Array) -> Array:
        """The weight's largest magnitude for each input channel; float64 (channels,)."""
        matrix = np.abs(self.matrix(numbers)).astype(np.float64)
        taps = matrix.shape[1] // self.channels_of_group()
        cells = matrix.reshape(self.groups, -1, self.channels_of_group(), taps)
        largest: Array = cells.max(axis=(1, 3)).ravel()
        return largest

    def scaled(self, factors: Array) -> Array:
        """The weight with each input channel multiplied by its factor."""
        matrix = self.matrix()
        per_group = factors.reshape(self.groups, self.channels_of_group())
        wide = np.repeat(per_group, matrix.shape[0] // self.groups, axis=0)
        taps = matrix.shape[1] // self.channels_of_group()
        return self.laid_out(matrix * np.repeat(wide, taps, axis=1).astype(np.float32))

    def channels_of_group(self) -> int:
        """Input channels that one output channel reads."""
        shape = self.numbers().shape
        return int(shape[1] if self.node.op_type == "Conv" else shape[1 - (self.axis or 0)])

    def rows(self, windows: Sequence[Array]) -> list[Array]:
        """What the samples of `data` look like to each group: float32 (rows, in channels of a group * taps)."""
        if self.node.op_type != "Conv":
            return [thinned(np.concatenate([one.reshape(-1, one.shape[-1]) for one in windows]))]
        taps, steps = self.numbers().shape[2:], attribute(self.node, "dilations", None)
        steps = steps or [1] * len(taps)
        extents = tuple((size - 1) * step + 1 for size, step in zip(taps, steps, strict=True))
        found = [made for one in windows if (made := _patches(one, extents, steps)) is not None]
        if not found:
            return []
        patches = thinned(np.concatenate(found))
        cells = patches.reshape(len(patches), self.groups, -1)
        return [np.ascontiguousarray(cells[:, group]) for group in range(self.groups)]


def _patches(window: Array, extents: tuple[int, ...], steps: Sequence[int]) -> Array | None:
    """All patches inside a window, (places, channels * taps); borders, which are padded with zeros, are left out."""
    if any(size < extent for size, extent in zip(window.shape[2:], extents, strict=True)):
        return None
    axes = tuple(range(2, window.ndim))
    views = np.lib.stride_tricks.sliding_window_view(window, extents, axis=axes)
    for axis, step in enumerate(steps, views.ndim - len(extents)):
        views = np.take(views, range(0, views.shape[axis], int(step)), axis)
    places = np.moveaxis(views, 1, len(extents) + 1)
    return places.reshape(int(np.prod(places.shape[: len(extents) + 1])), -1)


def thinned(rows: Array) -> Array:
    """At most `ROWS` rows, at equal distances."""
    return rows[:: max(1, -(-len(rows) // ROWS))]


def layers(module: Module) -> list[Layer]:
    """Every layer of the main graph and of branches, in graph order."""
    found = (layer_of(node) for graph in branches(module.graph) for node in graph)
    return [one for one in found if one is not None]


def layer_of(node: ir.Node) -> Layer | None:
    """`node` as a layer, or None."""
    data, weight = input_at(node, 0), input_at(node, 1)
    if not walk.is_onnx(node, "Conv", "MatMul", "Gemm") or data is None or weight is None:
        return None
    if any(one.is_ref() for one in node.attributes.values()) or data.dtype != ir.DataType.FLOAT:
        return None
    if constant(data) is not None or weight_refusal(weight) is not None:
        return None
    numbers = np.asarray(constant(weight))
    if numbers.dtype != np.float32 or numbers.ndim < 2 or (node.op_type != "Conv" and numbers.ndim != 2):
        return None
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0):
        return None
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    return None if groups < 1 or numbers.shape[0] % groups else Layer(node, data, weight, groups)


# -- samples --------------------------------------------------------------------------------------------------


def windows(module: Module, context: Context, axes: Mapping[str, int]) -> Iterator[dict[str, list[Array]]]:
    """Samples of values from a few feeds, `VALUES` values at a time; memory is bounded by that.

    Args:
        module, context: the model, what runs it on what.
        axes: value name -> the axis that is kept whole: 1 for images, -1 for rows, which come as (rows, channels).

    Raises:
        InputError: a feed does not fit the model, or the model fails on it.
    """
    if context.feeds is None or context.runner is None:
        return
    names, distance = list(axes), max(1, (context.feeds.count or FEEDS) // FEEDS)
    for start in range(0, len(names), VALUES):
        part = names[start : start + VALUES]
        chosen = itertools.islice(context.feeds, 0, distance * FEEDS, distance)
        taken: dict[str, list[Array]] = {name: [] for name in part}
        for turn, arrays in enumerate(stream(module, context.runner, chosen, part)):
            for name in part:
                taken[name] += [w for array in arrays[name] if (w := _window(array, turn, axes[name])) is not None]
            context.progress("sampling activations", min(1.0, (start + (turn + 1) / FEEDS) / len(names)))
        yield {name: found for name, found in taken.items() if found}


def _window(array: Array, turn: int, axis: int) -> Array | None:
    """A part of an activation: of images a square, of rows every k-th; None of what is not finite."""
    if array.size == 0 or array.dtype != np.float32 or array.ndim < 2 or not np.all(np.isfinite(array)):
        return None
    if axis != -1:
        return array if array.size <= WINDOW else _sliced(array, turn)
    rows, step = array.reshape(-1, array.shape[-1]), -(-array.size // WINDOW)
    return rows[turn % min(step, len(rows)) :: step]


def _sliced(array: Array, turn: int) -> Array:
    """All channels of a part of the places, from another corner each time."""
    share = (WINDOW / (array.size / array.shape[0])) ** (1 / max(array.ndim - 2, 1))
    cuts = [slice(0, 1), slice(None)]
    for size in array.shape[2:]:
        width = max(min(size, 7), int(size * share))
        start = (turn * width) % max(1, size - width + 1)
        cuts.append(slice(start, start + width))
    return np.ascontiguousarray(array[tuple(cuts)])


# -- what integers make of them ---------------------------------------------------------------------------------


def restored_rows(rows: Array, form: str) -> Array:
    """`rows` as 8-bit activations hold them, float64."""
    made = activation_parameters(Range(float(rows.min()), float(rows.max())), "int8" if form == "int8" else "uint8")
    return (quantized(rows, made).astype(np.float64) - float(made.zero_point)) * float(made.scale)


def restored_matrix(matrix: Array, limit: int) -> Array:
    """A weight as 8-bit integers with a scale for each output channel hold it, float64."""
    made = weight_parameters(matrix, 0, limit)
    return quantized(matrix, made, 0).astype(np.float64) * made.scale.astype(np.float64)[:, None]


def put(rewriter: Rewriter, node: ir.Node, index: int, array: Array, hint: str) -> None:
    """Give `node` another constant operand; who shares the old one keeps it, and where nobody does it goes."""
    old = node.inputs[index] if index < len(node.inputs) else None
    before = constant(old)
    follows = old if before is not None and before.shape == array.shape else None
    rewriter.set_input(node, index, rewriter.constant(array, hint, at=node, follows=follows))
    if old is None or old.uses() or old.is_graph_output():
        return
    producer, graph = old.producer(), old.graph
    if producer is not None:
        rewriter.erase(producer)
    elif old.is_initializer() and graph is not None and not is_overridable(old):
        rewriter.erase_initializer(graph, old.name or "")


def decibel(signal: float, error: float) -> float:
    """Signal to noise of two sums of squares."""
    return 200.0 if error <= signal * 1e-20 else 10 * float(np.log10(max(signal, 1e-300) / error))
