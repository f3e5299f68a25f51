"""Layers whose weights `quantize` will turn into integers, with what the data say about their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at, sole_consumer
from joulec.passes._layers import Layer, layers, put
from joulec.passes._moments import Moments, collect, observed
from joulec.passes._patterns import first_match
from joulec.passes._products import Product, product_of
from joulec.passes._qdq import needs_reduced_range
from joulec.passes._statistics import NO_DATA, has_data
from joulec.passes.base import Context, PassResult
from joulec.passes.calibrate import not_quantizable

WORK = 3e10
"""Multiplications of one sweep over a weight, outputs times the square of the sums, beyond which it is left alone."""


@dataclass(frozen=True)
class Gridded:
    """A layer whose weight is quantized channel by channel.

    Attributes:
        layer: the operator with its weight.
        product: the same as a matrix product.
        bias: node and position of the constant that is added to each channel; None where nothing is.
    """

    layer: Layer
    product: Product
    bias: tuple[ir.Node, int] | None

    def matrix(self) -> Array:
        """The weight, float64 (groups, outputs of one, sums)."""
        return self.product.matrix(self.layer.numbers()).astype(np.float64)

    def set(self, rewriter: Rewriter, made: Array, mean: Array, before: Array) -> None:
        """Give the layer other weights, and its bias what they change in the mean of its outputs."""
        node, name = self.layer.node, self.layer.weight.name
        put(rewriter, node, 1, np.asarray(self.product.seen(made), np.float32), f"{name}_on_grid")
        self.shift(rewriter, np.einsum("gok,gk->go", before - made, mean).ravel())

    def shift(self, rewriter: Rewriter, amount: Array) -> None:
        """Add to the bias of each output channel."""
        if self.bias is None or not np.any(amount):
            return
        node, index = self.bias
        old = constant(input_at(node, index))
        total = amount if old is None else old.astype(np.float64) + amount.reshape(-1)
        put(rewriter, node, index, np.asarray(total, np.float32), f"{self.layer.weight.name}_bias")


def limit(context: Context) -> int:
    """The largest integer that `quantize` will use for weights on this target."""
    return 63 if context.target.name == "cpu" and needs_reduced_range() else 127


def studied(
    module: Module, context: Context, rewriter: Rewriter, keep_float: Sequence[str], rule: str
) -> Iterator[tuple[Gridded, Moments]]:
    """Every layer that can be studied, with the moments of its inputs; the others are refused with the reason.

    Raises:
        InputError: the data do not fit the model.
    """
    names, found = observed(module), []
    for layer in layers(module):
        one = _gridded(layer, names, keep_float)
        if isinstance(one, str):
            rewriter.refuse(rule, layer.node, one)
        else:
            found.append(one)
    for position, moments in collect(module, context, [one.product.reading() for one in found]):
        yield found[position], moments


def _gridded(layer: Layer, names: set[str | None], keep_float: Sequence[str]) -> Gridded | str:
    if (pattern := first_match(layer.node, keep_float)) is not None:
        return f"left alone by keep-float={pattern}"
    if layer.node.op_type == "Gemm" and attribute(layer.node, "beta", 1.0) != 1.0:
        return "its bias has a factor"
    if len(layer.weight.uses()) > 1:
        return f"'{layer.weight.name}' is shared with other operators"
    product = product_of(layer.node, 1, layer.numbers().shape)
    if isinstance(product, str):
        return product
    outputs = layer.matrix().shape[0]
    if product.reading().too_wide or outputs * product.width**2 > WORK:
        return f"sums of {product.width} numbers are too wide"
    if product.name not in names:
        return f"'{product.name}' cannot be observed"
    return Gridded(layer, product, _bias(layer.node, outputs))


def _bias(node: ir.Node, outputs: int) -> tuple[ir.Node, int] | None:
    """Where the bias of an operator is, or can be put."""
    if node.op_type in ("Conv", "Gemm"):
        return (node, 2) if input_at(node, 2) is None or _fits(input_at(node, 2), outputs) else None
    add = sole_consumer(node.outputs[0])
    if add is None or not walk.is_onnx(add, "Add"):
        return None
    index = 0 if add.inputs[1] is node.outputs[0] else 1
    return (add, index) if _fits(add.inputs[index], outputs) else None


def _fits(value: ir.Value | None, outputs: int) -> bool:
    numbers = constant(value)
    return numbers is not None and numbers.shape == (outputs,) and numbers.dtype == np.float32


def said(what: str, shares: Sequence[float], unchanged: int) -> Iterator[str]:
    """What a pass that changed layers has to say: `shares` of the squared error that are left, on other data."""
    if not shares:
        yield f"no layer gains from it ({unchanged} tried)"
        return
    left = 100 * float(np.mean(shares))
    yield f"{len(shares)} of {len(shares) + unchanged} layers {what}: {left:.0f} % of the squared error is left"


Fit = Callable[[Gridded, Moments, Rewriter], float | None]
"""Changes one layer; returns the share of its squared error that is left, or None where it gains nothing."""


def fitted(module: Module, context: Context, rule: str, keep_float: Sequence[str], what: str, fit: Fit) -> PassResult:
    """Fit every layer that can be fitted to the data.

    Args:
        module, context: the model, what runs it on what.
        rule: what changes and refusals are taken down as.
        keep_float: patterns of operators that are left alone.
        what: the change in a word, for the note.
        fit: changes one layer.

    Raises:
        InputError: the data do not fit the model.
    """
    if context.target.quantization is None:
        return PassResult.nothing(f"{context.target.name} has no integer kernels")
    reason = not_quantizable(module) if has_data(context) else NO_DATA
    if reason is not None:
        return PassResult.nothing(reason)
    rewriter = Rewriter(module, rule)
    found = [fit(one, moments, rewriter) for one, moments in studied(module, context, rewriter, keep_float, rule)]
    shares = [share for share in found if share is not None]
    return PassResult.of(rewriter, list(said(what, shares, len(found) - len(shares))))
