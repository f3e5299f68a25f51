"""lower-pooled: what is done with an image of one pixel is done with the row of numbers that it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, constant, constant_tensor, sole_consumer
from joulec.passes.align_channels import UNARY
from joulec.passes.base import Context, RulePass
from joulec.passes.widen_convolutions import BLOCK

BINARY = frozenset("Add Div Mul Sub".split())


@dataclass(frozen=True)
class LowerPooled(RulePass):
    """Pool by ReduceMean to rows, and compute 1x1 convolutions of them as Gemm, where the channels fill no blocks.

    Squeeze-and-excitation is mostly exported as convolutions. ONNX Runtime computes these in blocks of channels; where
    a block is not filled, the pooled image is moved out of that layout, into it again for the first convolution, and
    out for the second, which takes longer than the products of one pixel. GlobalAveragePool out of that layout is
    slower than ReduceMean, too: with the Flatten behind it by 1.0x to 1.4x (`benchmarks/pooling.py`). Where blocks are
    filled the pooling is faster as it is, and is left alone.
    """

    def rules(self, context: Context) -> list[Rule]:
        """One rule."""
        return [PooledConvolutions()]


class PooledConvolutions(Rule):
    """Conv 1x1, activations and Flatten of GlobalAveragePool(x) -> Gemm and activations of ReduceMean(x).

    One Reshape comes behind where no Flatten went.
    """

    ops = ("GlobalAveragePool",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        channels, opset = _channels(node), rewriter.module.opset
        if channels is None or opset < 7 or rewriter.in_function(node):  # older Gemm does not broadcast by itself
            return
        nodes = _behind(node)
        convolutions = [one for one in nodes if one.op_type == "Conv"]
        exits = [one.outputs[0] for one in nodes if _leaves(one, nodes)]
        if not convolutions and not any(_head(one) for one in exits):
            return
        if channels % BLOCK == 0:
            raise Refused(f"its {channels} channels fill blocks of {BLOCK}, and are pooled as they are")
        if opset < 11 and any(len(one.inputs) < 3 for one in convolutions):
            raise Refused("a convolution has no bias, and Gemm needs one before opset 11")
        if len(exits) != 1:
            raise Refused(f"{len(exits)} Reshapes would come to it")
        _lower(nodes, exits[0], rewriter)


def _channels(pool: ir.Node) -> int | None:
    """The channels of what is pooled, if it is a float image; else None. An empty image may become one with a mean of
    0: no kernel pools it.
    """
    x = pool.inputs[0]
    if x is None or x.dtype is not ir.DataType.FLOAT or x.shape is None or len(x.shape) != 4:
        return None
    return x.shape[1] if isinstance(x.shape[1], int) and x.shape[1] > 0 else None


def _behind(pool: ir.Node) -> dict[ir.Node, None]:
    """Operators that see nothing but the pooled image and constants, each behind what it reads; the pooling first."""
    found: dict[ir.Node, None] = {pool: None}
    left = deque(found)
    while left:
        for reader in (usage.node for usage in left.popleft().outputs[0].uses()):
            if reader not in found and reader.graph is pool.graph and _stays(reader, found):
                found[reader] = None
                left.append(reader)
    return found


def _stays(node: ir.Node, found: dict[ir.Node, None]) -> bool:
    """Whether `node` works as well on n x c as on n x c x 1 x 1."""
    if not walk.is_onnx(node) or len(node.outputs) != 1:
        return False
    pooled = [value is not None and value.producer() in found for value in node.inputs]
    if node.op_type in BINARY:
        ours = all(one or _is_scalar(value) for one, value in zip(pooled, node.inputs, strict=True))
        return ours and not node.attributes  # before opset 7, `axis` aligned the operands
    rest = all(value is None or constant_tensor(value) is not None for value in node.inputs[1:])
    return pooled[0] and rest and (node.op_type in UNARY or _is_pointwise(node))


def _is_scalar(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= 2


def _is_pointwise(node: ir.Node) -> bool:
    """Whether a Conv is a matrix product of the channels of an image of one pixel; its weight has no other user."""
    weight = node.inputs[1] if walk.is_onnx(node, "Conv") else None
    tensor = constant_tensor(weight)
    if weight is None or tensor is None or tuple(tensor.shape.numpy()[2:]) != (1, 1) or len(weight.uses()) != 1:
        return False
    return attribute(node, "group", 1) == 1 and not any(attribute(node, "pads", ()))


def _leaves(node: ir.Node, nodes: dict[ir.Node, None]) -> bool:
    """Whether somebody outside `nodes` uses what `node` makes."""
    value = node.outputs[0]
    return value.is_graph_output() or any(usage.node not in nodes for usage in value.uses())


def _lower(nodes: dict[ir.Node, None], leaving: ir.Value, rewriter: Rewriter) -> None:
    """Build the operators anew on n x c, and erase what they replace."""
    pool, *rest = nodes
    flat = {pool.outputs[0]: _mean(pool, rewriter)}
    for node in rest:
        (flat[node.outputs[0]],) = _flattened(node, flat, rewriter)
        _describe(flat[node.outputs[0]], node.outputs[0])
    head, last = _head(leaving), leaving.producer()
    if head is not None and rewriter.can_replace(head.outputs[0], flat[leaving]):
        rewriter.replace(head.outputs[0], flat[leaving])
        nodes = {**nodes, head: None}
    elif last is not None:
        target = rewriter.constant(np.array([0, -1, 1, 1], np.int64), f"{leaving.name}_shape", at=last)
        (image,) = rewriter.add("Reshape", [flat[leaving], target], before=last, like=leaving)
        rewriter.replace(leaving, image)
    for node in reversed(nodes):
        rewriter.erase(node)


def _mean(pool: ir.Node, rewriter: Rewriter) -> ir.Value:
    x, attributes = pool.inputs[0], {"keepdims": 0}
    axes = np.array([2, 3], np.int64)
    if rewriter.module.opset < 18:
        (mean,) = rewriter.add("ReduceMean", [x], {**attributes, "axes": axes.tolist()}, before=pool, name=pool.name)
    else:
        given = rewriter.constant(axes, f"{pool.name}_axes", at=pool)
        (mean,) = rewriter.add("ReduceMean", [x, given], attributes, before=pool, name=pool.name)
    _describe(mean, pool.outputs[0])
    return mean


def _flattened(node: ir.Node, flat: dict[ir.Value, ir.Value], rewriter: Rewriter) -> tuple[ir.Value, ...]:
    """`node` on n x c."""
    inputs = [value if value is None else flat.get(value, value) for value in node.inputs]
    if node.op_type != "Conv":
        return rewriter.add(node.op_type, inputs, dict(node.attributes), before=node, name=node.name)
    weight, numbers = node.inputs[1], constant(node.inputs[1])
    if weight is not None and numbers is not None:
        inputs[1] = rewriter.constant(_matrix(numbers), f"{weight.name}_matrix", at=node, follows=weight, moved=_matrix)
    return rewriter.add("Gemm", inputs, {"transB": 1}, before=node, name=node.name)


def _matrix(weight: Array) -> Array:
    """The weight of a 1x1 convolution without its two dimensions of 1."""
    return weight.reshape(weight.shape[:2])


def _describe(flat: ir.Value, image: ir.Value) -> None:
    flat.dtype = image.dtype  # type: ignore[assignment]
    if image.shape is not None:
        flat.shape = ir.Shape(list(image.shape)[:2])


def _head(image: ir.Value) -> ir.Node | None:
    """The sole reader, if all that it does is to take the two dimensions of 1 away."""
    head = sole_consumer(image)
    return head if head is not None and _flattens(head, image) else None


def _flattens(node: ir.Node, image: ir.Value) -> bool:
    """Whether `node` only takes the two dimensions of 1 away."""
    made = node.outputs[0].shape if walk.is_onnx(node, "Flatten", "Reshape", "Squeeze") else None
    channels = None if image.shape is None else image.shape[1]
    return made is not None and len(made) == 2 and isinstance(channels, int) and made[1] == channels
