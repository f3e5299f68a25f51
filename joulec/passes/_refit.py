"""Fitting the layers of a cut model, one behind another, to what the same layers of the whole model put out.

What a layer of the cut model reads differs from what it read in the whole one, since the layers before it make up for
removed channels only in part; in residual networks these errors add up. So each layer's weight and bias are fitted anew
by least squares: from what it reads now, W x + b shall be what it put out before. Damping pulls towards the weights
that are there, as strongly as errs least on the half of the data that was not fitted to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, sole_consumer
from joulec.passes._correction import DAMPINGS
from joulec.passes._moments import LEAST_ROWS, PER_COLUMN, WIDEST, Moments, Reading, observed
from joulec.passes._observe import stream
from joulec.passes._products import Product, product_of
from joulec.passes.base import Context

SAMPLES = 192
"""Feeds that layers are fitted on, at most."""

STAGES = 24
"""Runs over the data at most; neighbouring layers of a deeper model are fitted from the same run."""

CONVINCED = 0.98
"""Share of the squared error on other data beyond which a layer stays as it is."""


@dataclass(frozen=True)
class Layer:
    """One layer in both models.

    Attributes:
        node: of the cut model.
        before, after: its product in the whole model and in the cut one.
        old: its weight in the whole model for the outputs that are left, (outputs, sums).
    """

    node: ir.Node
    before: Product
    after: Product
    old: Array

    @property
    def columns(self) -> int:
        """Of a row: what is read now, a one, and what was put out."""
        return self.after.width + 1 + len(self.old)

    def rows(self, whole: Array, cut: Array, wanted: int, turn: int) -> Array | None:
        """Rows at the same places of both models, float32 (1, rows, columns)."""
        read, now = (
            one.reading().rows(array, wanted, turn) for one, array in ((self.before, whole), (self.after, cut))
        )
        if read is None or now is None or read.shape[1] != now.shape[1]:
            return None
        rows = np.concatenate([now[0], np.ones((now.shape[1], 1), np.float32), read[0] @ self.old.T], axis=1)
        return rows[None] if np.all(np.isfinite(rows)) else None


def refit(
    whole: Module, cut: Module, context: Context, outputs: Mapping[str, Array], rewriter: Rewriter,
    before: Container[str] = (),
) -> list[float]:  # fmt: skip
    """Fit the layers of `cut` behind what was removed.

    Args:
        whole: the model before, with the same names.
        cut: the model to change.
        context: the data, and what runs models on them.
        outputs: name of the value that an operator puts out -> bool, which of its channels are left.
        rewriter: of `cut`.
        before: names of values in front of everything that was removed: what makes them stays.

    Returns:
        Of each layer that was fitted, the share of its squared error that is left on data not fitted to.
    """
    found = _layers(whole, cut, outputs)
    layers = [one for one in found if one.node.outputs[0].name not in before]
    left: list[float] = []
    size = max(1, -(-len(layers) // STAGES))
    for start in range(0, len(layers), size):
        stage = layers[start : start + size]
        context.progress("fitting layers to the whole model", start / len(layers))
        for layer, moments in zip(stage, _moments(whole, cut, context, stage), strict=True):
            fitted = _fitted(layer, moments) if all(moments.rows) else None
            if fitted is not None:
                left.append(fitted[2])
                with rewriter.rewriting("refit", layer.node):
                    _put(layer, *fitted[:2], rewriter)
    return left


def said(left: Sequence[float]) -> list[str]:
    """What a person is told of what `refit` returned."""
    if not left:
        return []
    share = 100 * float(np.mean(left))
    return [f"{len(left)} layers fitted to the whole model one by one: {share:.0f} % of their squared error is left"]


def _layers(whole: Module, cut: Module, outputs: Mapping[str, Array]) -> Iterator[Layer]:
    """Layers of one group of channels whose weight and values both models know, in graph order."""
    old = {node.outputs[0].name: node for node in whole.graph if node.outputs}
    known, left = observed(whole), observed(cut)
    for node in cut.graph:
        before, weight = old.get(node.outputs[0].name if node.outputs else None), input_at(node, 1)
        if before is None or weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
            continue
        numbers, smaller = constant(input_at(before, 1)), constant(weight)
        if numbers is None or smaller is None or numbers.dtype != np.float32 or weight.name in cut.masks:
            continue
        first, second = product_of(before, 1, numbers.shape), product_of(node, 1, smaller.shape)
        if isinstance(first, str) or isinstance(second, str) or first.groups != 1 or node.op_type == "ConvTranspose":
            continue
        rows = first.matrix(numbers)[0]
        kept = outputs.get(node.outputs[0].name or "", np.ones(len(rows), bool))
        if kept.size != len(rows) or first.name not in known or second.name not in left:
            continue
        layer = Layer(node, first, second, rows[kept])
        if layer.columns <= WIDEST and _bias_of(layer) is not None:
            yield layer


def _moments(whole: Module, cut: Module, context: Context, stage: Sequence[Layer]) -> list[Moments]:
    """Joint moments of what each layer of a stage reads and put out."""
    nothing: Callable[[Array, int, int], Array | None] = lambda array, wanted, turn: None  # noqa: E731
    found = [Moments.of(Reading((), 1, layer.columns, nothing)) for layer in stage]
    if context.feeds is None or context.runner is None:
        return found
    count = min(context.feeds.count or SAMPLES, SAMPLES)
    before, after = ([getattr(layer, which).name for layer in stage] for which in ("before", "after"))
    feeds = itertools.tee(itertools.islice(context.feeds, SAMPLES))
    runs = zip(
        stream(whole, context.runner, feeds[0], before), stream(cut, context.runner, feeds[1], after), strict=True
    )
    for turn, (old, new) in enumerate(runs):
        for layer, moments in zip(stage, found, strict=True):
            wanted = -(-max(PER_COLUMN * layer.after.width, LEAST_ROWS) // count)
            for pair in zip(old[layer.before.name], new[layer.after.name], strict=True):
                if (rows := layer.rows(*pair, wanted, turn)) is not None:
                    moments.add(rows, turn % 2)
    return found


def _fitted(layer: Layer, moments: Moments) -> tuple[Array, Array, float] | None:
    """Weight (outputs, sums), what is added to the bias (outputs,), the error left; None where nothing is gained."""
    numbers = np.asarray(constant(layer.node.inputs[1]), np.float64)
    now = np.concatenate([layer.after.matrix(numbers)[0], np.zeros((len(layer.old), 1))], axis=1)
    halves = [moments.half(which)[0] for which in (0, 1)]
    plain = sum(_error(now, half) for half in halves)
    errors = [sum(_error(_solved(now, halves[i], share), halves[1 - i]) for i in (0, 1)) for share in DAMPINGS]
    best = int(np.argmin(errors))
    if plain <= 0 or errors[best] > CONVINCED * plain:
        return None
    found = _solved(now, moments.gram[0], DAMPINGS[best])
    return found[:, :-1], found[:, -1], max(errors[best], 0.0) / plain


def _solved(now: Array, gram: Array, share: float) -> Array:
    """The weights nearest to `now` under the damping that give what was put out; both with the bias as last column."""
    width = now.shape[1]
    read, crossed = gram[:width, :width], gram[:width, width:]
    added = share * np.trace(read) / width + np.finfo(np.float32).tiny
    solved: Array = np.linalg.solve(read + added * np.eye(width), crossed + added * now.T).T
    return solved


def _error(weights: Array, gram: Array) -> float:
    """The mean squared distance from what was put out."""
    width = weights.shape[1]
    read, crossed, put_out = gram[:width, :width], gram[:width, width:], gram[width:, width:]
    return float(np.sum((weights @ read) * weights) - 2 * np.sum(weights * crossed.T) + np.trace(put_out))


def _bias_of(layer: Layer) -> tuple[ir.Node, int] | None:
    """Where the layer's bias is, or can be put; None where it has none and can have none."""
    node = layer.node
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return None
    if node.op_type in ("Conv", "Gemm"):
        bias = input_at(node, 2)
        return (node, 2) if bias is None or _is_vector(bias, len(layer.old)) else None
    following = sole_consumer(node.outputs[0])
    if following is None or not walk.is_onnx(following, "Add"):
        return None
    at = next((i for i, value in enumerate(following.inputs) if value is not node.outputs[0]), None)
    fits = at is not None and _is_vector(following.inputs[at], len(layer.old))
    return (following, at) if fits and at is not None else None


def _is_vector(value: ir.Value | None, size: int) -> bool:
    tensor = constant_tensor(value)
    return value is not None and tensor is not None and tensor.size == size and tensor.shape[-1] == size


def _put(layer: Layer, matrix: Array, added: Array, rewriter: Rewriter) -> None:
    weight, place = layer.node.inputs[1], _bias_of(layer)
    if weight is None or place is None:
        return
    rewriter.set_tensor(weight, layer.after.seen(matrix[None]).astype(np.float32))
    node, index = place
    bias = input_at(node, index)
    before = np.zeros(len(added)) if bias is None else np.asarray(constant(bias), np.float64)
    hint = f"{layer.node.name}_bias" if bias is None else f"{bias.name}_refitted"
    numbers = (before + added).astype(np.float32)
    if bias is not None and bias.is_initializer() and len(bias.uses()) == 1:
        rewriter.set_tensor(bias, numbers)
    else:
        rewriter.set_input(node, index, rewriter.constant(numbers, hint, at=node))
