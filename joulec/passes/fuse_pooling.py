"""fuse-pooling: the mean over all of an image becomes GlobalAveragePool, which stays in the layout of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, input_at, sole_consumer
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FusePooling(RulePass):
    """Turn the mean over height and width into GlobalAveragePool, with the Reshape that gives the dimensions back."""

    def rules(self, context: Context) -> list[Rule]:
        """One rule."""
        return [MeanIntoPooling()]


class MeanIntoPooling(Rule):
    """ReduceMean(x, spatial axes), and Reshape or Unsqueeze of it to n x c x 1 x 1 -> GlobalAveragePool(x)."""

    ops = ("ReduceMean",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x = node.inputs[0]
        # of rank 3 it is the mean of a layer normalization more often than not, which runtimes fuse by its ReduceMean
        if x is None or x.shape is None or len(x.shape) < 4 or x.dtype is not ir.DataType.FLOAT:
            return
        if _axes(node, len(x.shape)) != set(range(2, len(x.shape))):
            return
        last = node if attribute(node, "keepdims", 1) else _giving_back(node, x.shape)
        if last is None:
            return
        if not all(isinstance(dim, int) and dim > 0 for dim in x.shape[2:]):
            raise Refused("the image's size is not known; an empty one has no mean that all kernels agree on")
        output = last.outputs[0]
        (pooled,) = rewriter.add("GlobalAveragePool", [x], before=node, name=node.name, like=output)
        rewriter.replace(output, pooled)
        if last is not node:
            rewriter.erase(last)
        rewriter.erase(node)


def _axes(node: ir.Node, dims: int) -> set[int] | None:
    """The reduced axes, not negative; None where they are computed, or left out."""
    given = attribute(node, "axes")
    numbers = np.asarray(given) if given is not None else constant(input_at(node, 1))
    return None if numbers is None else {int(axis) % dims for axis in numbers.ravel()}


def _giving_back(node: ir.Node, shape: ir.Shape) -> ir.Node | None:
    """The only reader, if it is a Reshape or Unsqueeze that makes n x c x 1 x 1 of the means; else None."""
    reader = sole_consumer(node.outputs[0])
    if reader is None or not walk.is_onnx(reader, "Reshape", "Unsqueeze") or reader.inputs[0] is not node.outputs[0]:
        return None
    made = reader.outputs[0].shape
    if made is None or len(made) != len(shape) or not isinstance(shape[1], int) or shape[1] == 0:
        return None
    return reader if made[1] == shape[1] and all(dim == 1 for dim in made[2:]) else None
