"""Rules that pick with Gather what others slice, squeeze and join, and products of rows laid flat.

Split and Squeeze of all parts of one (torch's unbind) stay: Gathers are one node fewer, but ONNX Runtime moves a
Transpose through Split and not through Gather, which made window attention 0.94x as fast.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import slice_bounds
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import attribute, constant, constant_tensor, input_at, sole_consumer
from joulec.passes._reshapes import ShapeRule

MAX_PARTS = 64
MAX_INDICES = 4096
"""Indices that one Gather may have, in place of a few bounds: 32 KiB."""

BLOCK = 32
"""Elements that must lie behind one index for Gather to be faster than Slice and Concat: it copies block by block."""


def _squeezed(node: ir.Node, dims: int) -> list[int] | None:
    """The axes that a Squeeze names, not negative."""
    given = attribute(node, "axes")
    numbers = np.asarray(given) if given is not None else constant(input_at(node, 1))
    return None if numbers is None else [int(axis) % dims for axis in numbers.ravel()]


class PickSlice(ShapeRule):
    """Squeeze(Slice(x, [i], [i + 1])) -> Gather(x, i)."""

    ops = ("Squeeze",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        cut = node.inputs[0].producer() if node.inputs[0] is not None else None
        if cut is None or not walk.is_onnx(cut, "Slice") or sole_consumer(cut.outputs[0]) is not node:
            return
        source, dims = cut.inputs[0], self.dims(cut.inputs[0])
        bounds = slice_bounds(cut, self.facts)
        if source is None or not dims or bounds is None or len(bounds[2]) != 1 or not self.is_main(node, rewriter):
            return
        (start,), (end,), (axis,), (step,) = bounds
        if not isinstance(start, int) or step != 1 or _squeezed(node, len(dims)) != [axis % len(dims)]:
            return
        after = end == start + 1 if start != -1 else isinstance(end, int) and end >= MAX_END
        if not after:
            return
        at = rewriter.constant(np.array(start, np.int64), f"{node.name or 'part'}_index", at=node)
        output, given = node.outputs[0], {"axis": axis % len(dims)}
        (found,) = rewriter.add("Gather", [source, at], given, before=node, name=node.name, like=output)
        self.substitute(node, found, rewriter)
        rewriter.erase(cut)


MAX_END = (1 << 31) - 1


class RollByGather(ShapeRule):
    """Concat(Slice(x, 2, end), Slice(x, 0, 2)) along one axis -> Gather(x, [2, 3, ..., 0, 1])."""

    ops = ("Concat",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        cuts = [None if value is None else value.producer() for value in node.inputs]
        if not 2 <= len(cuts) <= MAX_PARTS or not self.is_main(node, rewriter):
            return
        first = cuts[0]
        source = first.inputs[0] if first is not None and walk.is_onnx(first, "Slice") else None
        dims = self.dims(source)
        if source is None or not dims:
            return
        axis = attribute(node, "axis", 1) % len(dims)
        parts = [self._taken(cut, source, axis, node) for cut in cuts]
        taken = [part for part in parts if part is not None]
        if len(taken) < len(parts):
            return
        indices = np.array([index for part in taken for index in part], np.int64)
        self._guard(indices, dims[axis + 1 :])
        at = rewriter.constant(indices, f"{node.name or 'roll'}_indices", at=node)
        output = node.outputs[0]
        (found,) = rewriter.add("Gather", [source, at], {"axis": axis}, before=node, name=node.name, like=output)
        self.substitute(node, found, rewriter)
        for cut in dict.fromkeys(cut for cut in cuts if cut is not None):
            rewriter.erase(cut)

    def _guard(self, indices: np.ndarray, rest: tuple[object, ...]) -> None:
        sizes = [dim for dim in rest if isinstance(dim, int)]
        if len(sizes) < len(rest) or math.prod(sizes) < BLOCK:
            raise Refused(f"what lies behind one index is not known to be {BLOCK} elements or more")
        if not 0 < indices.size <= MAX_INDICES:
            raise Refused(f"it would need {indices.size} indices")

    def _taken(self, cut: ir.Node | None, source: ir.Value, axis: int, node: ir.Node) -> range | None:
        """The places that a Slice of `source` along `axis` alone takes, if only `node` reads it."""
        if cut is None or not walk.is_onnx(cut, "Slice") or cut.inputs[0] is not source:
            return None
        dims, bounds = self.dims(source) or (), slice_bounds(cut, self.facts)
        size = dims[axis]
        if bounds is None or len(bounds[2]) != 1 or bounds[2][0] % len(dims) != axis or not isinstance(size, int):
            return None
        if cut.outputs[0].is_graph_output() or any(usage.node is not node for usage in cut.outputs[0].uses()):
            return None
        start, end, step = bounds[0][0], bounds[1][0], bounds[3][0]
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int) or step <= 0:
            return None
        return range(size)[start:end:step]


class FlatProduct(ShapeRule):
    """Reshape(Add(MatMul(Reshape(x), w), b)) -> Reshape(Gemm(Reshape(x), w, b)), where nobody sees the rank between."""

    ops = ("MatMul",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = _reshape(node.inputs[0])
        if first is None or first.inputs[0] is None or not self.is_main(node, rewriter):
            return
        users = [usage.node for usage in first.outputs[0].uses()]
        if len(users) > MAX_PARTS or first.outputs[0].is_graph_output() or rewriter.module.opset < 7:
            return
        if not all(self._convertible(user) for user in users):
            return
        weight, (add, bias, last) = node.inputs[1], self._behind(node)
        tensor = constant_tensor(weight)
        if add is None or last is None or tensor is None:
            return
        rows = int(tensor.shape.numpy()[0])
        name = node.name or "product"
        target = rewriter.constant(np.array([-1, rows], np.int64), f"{name}_rows", at=node)
        (flat,) = rewriter.add("Reshape", [first.inputs[0], target], before=node, name=f"{name}_flat")
        flat.dtype, flat.shape = ir.DataType.FLOAT, ir.Shape([None, rows])
        (made,) = rewriter.add("Gemm", [flat, weight, bias], before=add, name=name)
        made.dtype, made.shape = ir.DataType.FLOAT, ir.Shape([None, int(tensor.shape.numpy()[1])])
        rewriter.set_input(last, 0, made)
        rewriter.erase(add)
        rewriter.erase(node)
        if not first.outputs[0].uses():
            rewriter.erase(first)

    def _convertible(self, node: ir.Node) -> bool:
        if not walk.is_onnx(node, "MatMul") or node.inputs[0] is node.inputs[1]:
            return False
        weight = constant_tensor(node.inputs[1])
        if weight is None or len(weight.shape) != 2 or weight.dtype != ir.DataType.FLOAT or 0 in weight.shape.numpy():
            return False
        dims, (_, bias, last) = self.dims(node.outputs[0]), self._behind(node)
        held = constant_tensor(bias)
        if dims is None or len(dims) < 3 or held is None or last is None:
            return False
        shape = tuple(int(dim) for dim in held.shape.numpy())
        return shape in ((), (1,), (int(weight.shape.numpy()[1]),)) and self._plain(last)

    @staticmethod
    def _behind(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None, ir.Node | None]:
        """(Add, its other operand, the Reshape behind it), each the only reader of what is before it."""
        add = sole_consumer(node.outputs[0])
        if add is None or not walk.is_onnx(add, "Add") or add.attributes or add.graph is not node.graph:
            return None, None, None
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        last = sole_consumer(add.outputs[0])
        reshape = last is not None and walk.is_onnx(last, "Reshape") and last.inputs[0] is add.outputs[0]
        return (add, bias, last) if reshape else (add, bias, None)

    @staticmethod
    def _plain(last: ir.Node) -> bool:
        """Whether the target of a Reshape says nothing about the dimensions that it finds."""
        target = constant(input_at(last, 1))
        return target is not None and not np.any(target == 0)


def _reshape(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and walk.is_onnx(node, "Reshape") and len(node.inputs) == 2 else None
