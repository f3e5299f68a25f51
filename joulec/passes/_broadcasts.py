"""Rules on operators that repeat what the operator behind them would repeat by itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import ELEMENTWISE, Dims, broadcast
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import constant_tensor
from joulec.passes._affine import is_normalized
from joulec.passes._reshapes import ShapeRule

BROADCASTING = frozenset(ELEMENTWISE.split()) - {"Sum", "Mean"}
MAX_USERS = 64


class BroadcastByItself(ShapeRule):
    """Add(Expand(x), y) -> Add(x, y), where y has the dimensions that x lacks; ConstantOfShape becomes its number."""

    ops = ("Expand", "Tile", "ConstantOfShape", "Unsqueeze", "Reshape")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        output = node.outputs[0]
        wide = self.dims(output)
        if wide is None or rewriter.module.opset < 8 or output.is_graph_output() or len(output.uses()) > MAX_USERS:
            return
        fill = node.op_type == "ConstantOfShape"
        narrow: Dims | None = () if fill else self.dims(node.inputs[0])
        if narrow is None or (node.op_type != "Expand" and not fill and not _repeats_ones(narrow, wide)):
            return
        source: ir.Value | None = None
        for user, index in [(usage.node, usage.idx) for usage in output.uses()]:
            if not self._covered(user, index, narrow, wide):
                continue
            if source is None:
                source = self._number(node, rewriter) if fill else node.inputs[0]
            rewriter.set_input(user, index, source)
        if source is not None and not output.uses():
            rewriter.erase(node)

    def _number(self, node: ir.Node, rewriter: Rewriter) -> ir.Value:
        value = node.attributes.get("value")
        tensor = ir.tensor(np.zeros(1, np.float32)) if value is None else value.as_tensor()
        scalar = ir.tensor(tensor.numpy().reshape(()), dtype=tensor.dtype)
        return rewriter.constant(scalar, f"{node.outputs[0].name}_number", at=node)

    def _covered(self, user: ir.Node, index: int, narrow: Dims, wide: Dims) -> bool:
        """Whether `user` makes the same shape of the narrow operand."""
        if walk.is_onnx(user, "Expand") and index == 0:
            result = self.dims(user.outputs[0])
            known = self.facts.get(user.inputs[1])
            if result is None or known is None:
                return False
            return broadcast(narrow, known.elements, self.facts.symbols) == result
        if not walk.is_onnx(user, *BROADCASTING) or "axis" in user.attributes or "broadcast" in user.attributes:
            return False
        others: Dims | None = ()
        for place, value in enumerate(user.inputs):
            dims = self.dims(value)
            if place != index and (dims is None or others is None):
                return False
            if place != index and dims is not None and others is not None:
                others = broadcast(others, dims, self.facts.symbols)
        symbols = self.facts.symbols
        return others is not None and broadcast(others, narrow, symbols) == broadcast(others, wide, symbols)


def _repeats_ones(narrow: Dims, wide: Dims) -> bool:
    """Whether dimensions of 1 are all that is repeated or put in front, as a broadcast does."""
    front = len(wide) - len(narrow)
    if front < 0 or (front and any(dim != 1 for dim in wide[:front])):
        return False
    return all(a in (1, b) for a, b in zip(narrow, wide[front:], strict=True))


class NeutralOperand(ShapeRule):
    """x * ones, x / ones, x - zeros, Where(always, x, y), x and true, where the shape comes from x alone -> x."""

    ops = ("Mul", "Div", "Sub", "Where", "And", "Or", "Pow")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if node.op_type == "Where":
            condition = uniform(node.inputs[0])
            if condition is None:
                return
            kept = node.inputs[1 if condition else 2]
        else:
            kept = self._kept(node)
        if kept is None or self.dims(kept) is None or self.dims(kept) != self.dims(node.outputs[0]):
            return
        if is_normalized(kept):
            raise Refused("runtimes fuse it with the normalization before it")
        self.remove(node, kept, rewriter)

    def _kept(self, node: ir.Node) -> ir.Value | None:
        neutral = {"Sub": 0, "Or": 0}.get(node.op_type, 1)
        for index in (1, 0) if node.op_type in ("Mul", "And", "Or") else (1,):
            value = node.inputs[index]
            number = uniform(value)
            same = value is not None and value.dtype == node.outputs[0].dtype
            if number is not None and number == neutral and same and not (neutral == 0 and np.signbit(number)):
                return node.inputs[1 - index]
        return None


MAX_READ = 1 << 16
"""Elements of a constant that are compared with its first one."""


def uniform(value: ir.Value | None) -> float | None:
    """The 0 or 1 that every element of a constant is, with its sign; None for other constants."""
    tensor = constant_tensor(value)
    if tensor is None or not 0 < tensor.size <= MAX_READ or tensor.dtype == ir.DataType.STRING:
        return None
    array = tensor.numpy().ravel()
    if array.dtype.kind not in "biuf" or array[0] not in (0, 1) or not np.all(array == array[0]):
        return None
    if array.dtype.kind == "f" and np.any(np.signbit(array) != np.signbit(array[0])):
        return None
    return float(array[0])
