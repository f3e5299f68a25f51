"""equalize-weights: neighbouring layers share the range of each channel between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array
from joulec.passes._absorb import Absorber, absorber, power_of_two
from joulec.passes._layers import Layer, layer_of, layers, put
from joulec.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class EqualizeWeights(Pass):
    """Balance the channels between two layers, so that one scale serves them all better; the function stays.

    The factor of a channel is sqrt(r1 / r2), r1 and r2 the largest magnitudes of its weights before and behind
    (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019), rounded to
    a power of two, with which nothing is rounded. Relu, LeakyRelu and pooling may stand between; a Clip may not.
    """

    def run(self, module: Module, context: Context) -> PassResult:
        """Balance every pair of layers whose activation nobody else reads."""
        rewriter = Rewriter(module, self.pass_name())
        done: list[tuple[float, float]] = []
        for value in dict.fromkeys(layer.data for layer in layers(module)):
            found = readers(value)
            if isinstance(found, str):
                continue
            made = absorber(value, found[0].input_axis, channels_of(found[0]))
            if isinstance(made, str) or made.layer is None:
                reason = made if isinstance(made, str) else "no layer before it"
                rewriter.refuse(self.pass_name(), found[0].node, reason)
                continue
            self._balance(rewriter, value, found, made, made.layer, done)
        return PassResult.of(rewriter, _notes(done))

    def _balance(
        self, rewriter: Rewriter, value: ir.Value, behind: list[Layer], made: Absorber, before: Layer,
        done: list[tuple[float, float]],
    ) -> None:  # fmt: skip
        first = np.abs(before.matrix()).max(axis=1).astype(np.float64)
        second = np.max([one.by_input(one.numbers()) for one in behind], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = power_of_two(np.sqrt(first / second))
        factors[(first <= 0) | (second <= 0)] = 1.0
        if np.all(factors == factors[0]):
            return
        with rewriter.rewriting("equalize", behind[0].node, before.node):
            divide(rewriter, made, behind, factors)
        done.append((_spread(first), _spread(first / factors)))


def readers(value: ir.Value) -> list[Layer] | str:
    """The layers that read `value` as their data, of one kind of axis; or why there are others."""
    found: list[Layer] = []
    for use in value.uses():
        layer = layer_of(use.node) if use.idx == 0 else None
        if layer is None:
            return f"'{value.name}' is read by {use.node.op_type}, too"
        found.append(layer)
    if not found or value.is_graph_output():
        return f"'{value.name}' is an output"
    first = found[0]
    if any(one.input_axis != first.input_axis or channels_of(one) != channels_of(first) for one in found):
        return f"'{value.name}' is read along different axes"
    return sorted(found, key=lambda one: one.node.name or "")


def channels_of(layer: Layer) -> int:
    """Channels of what `layer` reads."""
    return layer.groups * layer.channels_of_group()


def divide(rewriter: Rewriter, made: Absorber, behind: list[Layer], factors: Array) -> None:
    """Divide the activation by `factors`, and multiply the weights that read it."""
    made.apply(rewriter, factors)
    for one in behind:
        put(rewriter, one.node, 1, one.scaled(factors), f"{one.weight.name}_balanced")


def _spread(ranges: Array) -> float:
    """The largest range of a channel over the median one."""
    there = ranges[ranges > 0]
    return float(there.max() / np.median(there)) if there.size else 1.0


def _notes(done: list[tuple[float, float]]) -> Iterator[str]:
    if not done:
        yield "no two layers could be balanced"
        return
    before, after = np.mean(done, axis=0)
    yield f"{len(done)} activations balanced; the widest channel was {before:.1f} x the median, is {after:.1f} x now"
