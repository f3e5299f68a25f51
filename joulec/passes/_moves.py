"""Rules on operators that move elements, or that undo or repeat each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import END, slice_bounds
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, sole_consumer
from joulec.passes._reshapes import MAX_GATHERS, ShapeRule, axes_given


class FlattenConcat(ShapeRule):
    """Concat(Concat(a, b), c) -> Concat(a, b, c), and parts that are empty fall away."""

    ops = ("Concat",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        axis = self._axis(node)
        if axis is None:
            return
        parts: list[ir.Value | None] = []
        for value in node.inputs:
            parts += self._parts(value, node, axis)
        if not parts:  # all empty: one must stay
            parts = [node.inputs[0]]
        if parts == list(node.inputs):
            return
        for index, value in enumerate(parts):
            rewriter.set_input(node, index, value)
        if len(parts) < len(node.inputs):
            rewriter.drop_inputs(node, len(parts))

    def _axis(self, node: ir.Node) -> int | None:
        dims = self.dims(node.outputs[0])
        return attribute(node, "axis", 1) % len(dims) if dims else None

    def _parts(self, value: ir.Value | None, node: ir.Node, axis: int) -> Sequence[ir.Value | None]:
        dims = self.dims(value)
        if value is None or dims is None:
            return [value]
        if dims[axis] == 0:
            return []
        inner = value.producer()
        if inner is None or inner is node or not walk.is_onnx(inner, "Concat") or sole_consumer(value) is not node:
            return [value]
        joined = len(inner.inputs) + len(node.inputs) <= MAX_PARTS and self._axis(inner) == axis
        return list(inner.inputs) if joined else [value]


MAX_PARTS = 64
"""Inputs of a Concat that rules go through, so that long chains stay linear."""


class JoinOfParts(ShapeRule):
    """Concat of all parts of one Split, or of Slices that follow on each other -> what they are parts of."""

    ops = ("Concat",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if len(node.inputs) < 2:
            return
        split = node.inputs[0].producer() if node.inputs[0] is not None else None
        if split is None:
            return
        source = split.inputs[0] if split.inputs else None
        dims = self.dims(source)
        if source is None or not dims:
            return
        axis = attribute(node, "axis", 1) % len(dims)
        whole = walk.is_onnx(split, "Split") and self._all_parts(node, split, axis, len(dims))
        if whole or (walk.is_onnx(split, "Slice") and self._all_slices(node, source, axis)):
            self.remove(node, source, rewriter)

    def _all_parts(self, node: ir.Node, split: ir.Node, axis: int, length: int) -> bool:
        same = attribute(split, "axis", 0) % length == axis and len(node.inputs) == len(split.outputs)
        return same and all(a is b for a, b in zip(node.inputs, split.outputs, strict=True))

    def _all_slices(self, node: ir.Node, source: ir.Value, axis: int) -> bool:
        """Whether each Slice takes up where the one before ended, from the first element to the last."""
        dims, symbols = self.dims(source) or (), self.facts.symbols
        at: object = 0
        for value in node.inputs:
            part = value.producer() if value is not None else None
            if part is None or not walk.is_onnx(part, "Slice") or part.inputs[0] is not source:
                return False
            bounds = slice_bounds(part, self.facts)
            if bounds is None or len(bounds[2]) != 1 or bounds[2][0] % len(dims) != axis or bounds[3] != (1,):
                return False
            if bounds[0][0] != at or not symbols.is_size(bounds[0][0]):
                return False
            at = bounds[1][0]
            within = at == dims[axis] or (isinstance(at, int) and at >= END)
            if not within and (value is node.inputs[-1] or symbols.less(bounds[1][0], bounds[0][0]) is not False):
                return False
            if not within and symbols.less(dims[axis], bounds[1][0]) is not False:
                return False
        return at == dims[axis] or (isinstance(at, int) and at >= END)


class MergeSlices(ShapeRule):
    """Slice(Slice(x)) -> Slice(x), where they cut different dimensions."""

    ops = ("Slice",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or not walk.is_onnx(first, "Slice") or first.outputs[0].is_graph_output():
            return
        dims, users = self.dims(first.inputs[0]), [usage.node for usage in first.outputs[0].uses()]
        if dims is None or rewriter.module.opset < 10 or rewriter.in_function(node) or len(users) > MAX_GATHERS:
            return
        one, other = _constant_bounds(first, len(dims)), _constant_bounds(node, len(dims))
        if one is None or other is None or not all(_cuts_others(user, one[2], len(dims)) for user in users):
            return
        rewriter.set_input(node, 0, first.inputs[0])
        for index, name in enumerate(("starts", "ends", "axes", "steps")):
            array = np.array([*one[index], *other[index]], np.int64)
            rewriter.set_input(node, index + 1, rewriter.constant(array, f"{node.name or 'slice'}_{name}", at=node))


def _cuts_others(user: ir.Node, axes: Sequence[int], dims: int) -> bool:
    """Whether `user` is a Slice with constant bounds that leaves the dimensions `axes` alone."""
    bounds = _constant_bounds(user, dims) if walk.is_onnx(user, "Slice") else None
    return bounds is not None and not set(bounds[2]) & set(axes)


def _constant_bounds(node: ir.Node, dims: int) -> list[list[int]] | None:
    """Starts, ends, axes (not negative) and steps of a Slice whose parameters are constant inputs; None otherwise."""
    given = [constant(input_at(node, index)) for index in range(1, 5)]
    if given[0] is None or given[1] is None:
        return None
    if any(given[i] is None and input_at(node, i + 1) is not None for i in (2, 3)):
        return None
    count = given[0].size
    starts, ends = ([int(x) for x in part.ravel()] for part in (given[0], given[1]))
    axes = list(range(count)) if given[2] is None else [int(x) % dims for x in given[2].ravel()]
    steps = [1] * count if given[3] is None else [int(x) for x in given[3].ravel()]
    return [starts, ends, axes, steps] if len(ends) == len(axes) == len(steps) == count else None


class GatherOfConcat(ShapeRule):
    """Gather(Concat(a, b), i) -> Gather(a, i), where all indices fall into one part whose place is known."""

    ops = ("Gather",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        joint = node.inputs[0].producer() if node.inputs[0] is not None else None
        indices, dims = constant(node.inputs[1]), self.dims(node.inputs[0])
        if joint is None or not walk.is_onnx(joint, "Concat") or indices is None or not dims or indices.size == 0:
            return
        if len(joint.inputs) > MAX_PARTS:
            return
        axis = attribute(node, "axis", 0) % len(dims)
        if attribute(joint, "axis", 1) % len(dims) != axis or int(indices.min()) < 0:
            return
        at = 0
        for value in joint.inputs:
            part = self.dims(value)
            size = None if part is None else part[axis]
            if not isinstance(size, int):
                return
            if at <= int(indices.min()) and int(indices.max()) < at + size:
                rewriter.set_input(node, 0, value)
                if at:
                    moved = rewriter.constant((indices - at).astype(indices.dtype), f"{node.name}_indices", at=node)
                    rewriter.set_input(node, 1, moved)
                return
            at += size


class MergeGathers(ShapeRule):
    """Gather(Gather(x, i), j) -> Gather(x, i[j]), for constant indices along one dimension."""

    ops = ("Gather",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        dims = self.dims(node.inputs[0])
        if first is None or not walk.is_onnx(first, "Gather") or not dims:
            return
        inner, outer = constant(first.inputs[1]), constant(node.inputs[1])
        axis = attribute(node, "axis", 0) % len(dims)
        if inner is None or outer is None or inner.ndim != 1 or outer.dtype != inner.dtype or outer.size > MAX_INDICES:
            return
        outside = bool(np.any(outer >= inner.size) or np.any(outer < -inner.size))
        if outside or attribute(first, "axis", 0) % len(dims) != axis:
            return
        rewriter.set_input(node, 0, first.inputs[0])
        rewriter.set_input(node, 1, rewriter.constant(np.asarray(inner[outer]), f"{node.name}_indices", at=node))


MAX_INDICES = 1024


class MergeCasts(Rule):
    """Cast(Cast(x)) -> Cast(x), where the first loses nothing and the second does not care what it came from."""

    ops = ("Cast",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or not walk.is_onnx(first, "Cast") or first.inputs[0] is None:
            return
        source, between, to = first.inputs[0].dtype, attribute(first, "to"), attribute(node, "to")
        if source is None or not _merges(source, ir.DataType(between), ir.DataType(to)):
            return
        if source != to:
            rewriter.set_input(node, 0, first.inputs[0])
        elif rewriter.can_replace(node.outputs[0], first.inputs[0]):
            rewriter.replace(node.outputs[0], first.inputs[0])
            rewriter.erase(node)


_EXACT: dict[ir.DataType, tuple[str, int]] = {
    ir.DataType.BOOL: ("b", 1), ir.DataType.UINT8: ("u", 8), ir.DataType.UINT16: ("u", 16),
    ir.DataType.UINT32: ("u", 32), ir.DataType.UINT64: ("u", 64), ir.DataType.INT8: ("i", 8),
    ir.DataType.INT16: ("i", 16), ir.DataType.INT32: ("i", 32), ir.DataType.INT64: ("i", 64),
    ir.DataType.FLOAT16: ("f", 11), ir.DataType.FLOAT: ("f", 24), ir.DataType.DOUBLE: ("f", 53),
}  # fmt: skip
"""Kind and bits: integers' width, floats' precision."""


def _merges(source: ir.DataType, between: ir.DataType, to: ir.DataType) -> bool:
    """Whether source -> between -> to is source -> to, bit for bit.

    The first cast must be exact; then the second sees the same number. Where that number may not fit into `to`, what
    comes out depends on the kind it comes from: integers wrap, floats do what the processor does.
    """
    if any(kind not in _EXACT for kind in (source, between, to)):
        return False
    (kind, bits), (middle, room), (last, _) = _EXACT[source], _EXACT[between], _EXACT[to]
    if kind == "b":
        return True
    if kind == middle:
        exact = bits <= room
    elif kind == "u" and middle == "i":
        exact = bits < room
    else:
        exact = kind in "iu" and middle == "f" and bits <= room
    if not exact:
        return False
    if to == ir.DataType.FLOAT16 and kind != "f":
        return False  # runtimes round integers twice there
    return source == to or last == "b" or (last == "f" if kind == "f" or middle == "f" else True)


class Undone(Rule):
    """Neg(Neg(x)), Not(Not(x)) -> x."""

    ops = ("Neg", "Not")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or not walk.is_onnx(first, node.op_type) or first.inputs[0] is None:
            return
        if rewriter.can_replace(node.outputs[0], first.inputs[0]):
            rewriter.replace(node.outputs[0], first.inputs[0])
            rewriter.erase(node)


class Idempotent(Rule):
    """Relu(Relu(x)), Abs(Abs(x)), Ceil(Floor(x)), Sign(Sign(x)) -> the first."""

    ops = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        value = node.inputs[0]
        first = value.producer() if value is not None else None
        whole = node.op_type in ("Ceil", "Floor", "Round")
        same = ("Ceil", "Floor", "Round") if whole else (node.op_type,)
        if first is None or value is None or not walk.is_onnx(first, *same):
            return
        if rewriter.can_replace(node.outputs[0], value):
            rewriter.replace(node.outputs[0], value)
            rewriter.erase(node)


class ReduceNothing(ShapeRule):
    """ReduceMax, ReduceMin, ReduceProd or ReduceMean over dimensions of 1 -> the input, or a Squeeze of it."""

    ops = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source = node.inputs[0]
        before, after = self.dims(source), self.dims(node.outputs[0])
        if source is None or before is None or after is None or source.dtype is None:
            return
        if before == after:
            self.remove(node, source, rewriter)
        elif attribute(node, "keepdims", 1) == 0 and self.is_main(node, rewriter):
            axes = axes_given(node)
            gone = sorted({axis % len(before) for axis in axes or range(len(before))}) if before else []
            if gone and all(before[axis] == 1 for axis in gone):
                self._squeeze(node, source, gone, rewriter)

    def _squeeze(self, node: ir.Node, source: ir.Value, axes: list[int], rewriter: Rewriter) -> None:
        inputs: list[ir.Value | None] = [source]
        if rewriter.module.opset >= 13:
            hint = f"{node.name or 'axes'}_axes"
            inputs.append(rewriter.constant(np.array(axes, np.int64), hint, at=node))
        given = {"axes": axes} if len(inputs) == 1 else {}
        output = node.outputs[0]
        (new,) = rewriter.add("Squeeze", inputs, given, before=node, name=node.name, like=output)
        self.substitute(node, new, rewriter)


class MergePads(ShapeRule):
    """Pad(Pad(x)) -> Pad(x), where both add the same constant and cut nothing."""

    ops = ("Pad",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or not walk.is_onnx(first, "Pad") or sole_consumer(first.outputs[0]) is not node:
            return
        inner, outer = _pads(first), _pads(node)
        if inner is None or outer is None or inner.shape != outer.shape or min(inner.min(), outer.min()) < 0:
            return
        if _padding(first) != _padding(node) or _padding(node) is None:
            return
        total = inner + outer
        rewriter.set_input(node, 0, first.inputs[0])
        if "pads" in node.attributes:
            rewriter.set_attribute(node, "pads", [int(pad) for pad in total])
        else:
            rewriter.set_input(node, 1, rewriter.constant(total, f"{node.name or 'pad'}_pads", at=node))


def _pads(node: ir.Node) -> Array | None:
    """The pads of a constant Pad of all dimensions; None for others."""
    if attribute(node, "mode", "constant") not in ("constant", b"constant") or input_at(node, 3) is not None:
        return None
    given = attribute(node, "pads")
    found = np.asarray(given, np.int64) if given is not None else constant(input_at(node, 1))
    return found if found is not None and found.size else None


def _padding(node: ir.Node) -> bytes | None:
    """The bits of the number that a Pad adds; None where it is computed."""
    if "pads" in node.attributes:
        return np.float32(attribute(node, "value", 0.0)).tobytes()
    given = input_at(node, 2)
    if given is None:
        return b"zero"
    tensor = constant_tensor(given)
    return None if tensor is None else bytes(tensor.tobytes())
