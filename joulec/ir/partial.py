"""Partly known shape tensors: what each element of a small integer tensor is, a number or a dimension.

One forward sweep over the graph, O(nodes): `Shape` yields the dimensions of its input, and Gather, Slice, Concat, casts
and their like carry them on. What is not known stays a symbol of its own, equal to nothing but itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, rank

MAX_ELEMENTS = 64
"""Longer integer tensors are data, not shapes."""

_NAME = re.compile(r"[A-Za-z_][\w.\-]*")

Symbol = tuple[object, ...]
"""A dimension whose size is unknown: equal symbols are equal sizes, nothing else is said."""

Element = int | Symbol


@dataclass(frozen=True)
class Known:
    """The elements of a scalar (`rank` 0) or of a vector (`rank` 1)."""

    rank: int
    elements: tuple[Element, ...]

    def numbers(self) -> tuple[int, ...] | None:
        """The elements if all of them are numbers."""
        numbers = tuple(e for e in self.elements if isinstance(e, int))
        return numbers if len(numbers) == len(self.elements) else None


@dataclass
class ShapeFacts:
    """What is known of the integer tensors of a module, by value."""

    facts: dict[int, Known] = field(default_factory=dict)
    alive: list[ir.Value] = field(default_factory=list)

    @classmethod
    def of(cls, module: Module) -> ShapeFacts:
        """Sweep over all graphs of `module`."""
        found = cls()
        for graph in walk.graphs(module.model):
            for node in graph:
                found._visit(node)
        return found

    def get(self, value: ir.Value | None) -> Known | None:
        """What is known of `value`; a small integer constant is known by its numbers."""
        if value is None:
            return None
        return self.facts.get(id(value)) or _known_constant(value)

    def _visit(self, node: ir.Node) -> None:
        rule = _RULES.get(node.op_type)
        if rule is None or not walk.is_onnx(node) or not node.outputs:
            return
        try:
            known = rule(node, self)
        except (LookupError, ValueError):
            return
        if known is not None and len(known.elements) <= MAX_ELEMENTS:
            self.facts[id(node.outputs[0])] = known
            self.alive.append(node.outputs[0])  # keeps its id from being reused


def dimension(value: ir.Value, axis: int) -> Element | None:
    """Dimension `axis` of `value` as an element; None where the rank is unknown."""
    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    if isinstance(dim, int):
        return dim
    if dim.value is not None and _NAME.fullmatch(dim.value):
        return ("symbol", id(value.graph), dim.value)  # a body may use a name of its own for another size
    return ("dim", value.name, axis % len(value.shape))  # no name, or one like '?' that files use for several sizes


def _known_constant(value: ir.Value) -> Known | None:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = tensor.numpy() if tensor.size <= MAX_ELEMENTS else None
    if array is None or array.ndim > 1:
        return None
    return Known(array.ndim, tuple(int(x) for x in array.ravel()))


def _shape(node: ir.Node, facts: ShapeFacts) -> Known | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    axes = range(len(value.shape))[attribute(node, "start", 0) : attribute(node, "end", None)]
    elements = tuple(dimension(value, axis) for axis in axes)
    return Known(1, tuple(e for e in elements if e is not None))


def _same(node: ir.Node, facts: ShapeFacts) -> Known | None:
    return facts.get(node.inputs[0])


def _cast(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known = facts.get(node.inputs[0])
    to = attribute(node, "to")
    if known is None or to not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    # A size beyond 2**31 would wrap; tensors of that many elements in one dimension are left alone.
    numbers = [e for e in known.elements if isinstance(e, int)]
    return known if all(abs(n) < 2**31 for n in numbers) else None


def _gather(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, indices = facts.get(node.inputs[0]), constant(node.inputs[1])
    if known is None or known.rank != 1 or indices is None or indices.ndim > 1 or attribute(node, "axis", 0) != 0:
        return None
    return Known(indices.ndim, tuple(known.elements[int(i)] for i in indices.ravel()))


def _slice(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known = facts.get(node.inputs[0])
    if known is None or known.rank != 1:
        return None
    bounds = _slice_bounds(node)
    if bounds is None or any(part is None or part.size != 1 for part in bounds):
        return None
    start, end, step = (int(part.ravel()[0]) for part in bounds if part is not None)
    return Known(1, known.elements[start:end:step]) if step > 0 else None


def _slice_bounds(node: ir.Node) -> tuple[Array | None, Array | None, Array | None] | None:
    """Starts, ends and steps of a Slice, from attributes or inputs."""
    one = np.ones(1, np.int64)
    if len(node.inputs) == 1:
        return np.asarray(attribute(node, "starts")), np.asarray(attribute(node, "ends")), one
    steps = input_at(node, 4)
    return constant(node.inputs[1]), constant(node.inputs[2]), one if steps is None else constant(steps)


def _squeeze(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known = facts.get(node.inputs[0])
    return Known(0, known.elements) if known is not None and known.rank == 1 and len(known.elements) == 1 else None


def _unsqueeze(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, axes = facts.get(node.inputs[0]), constant(input_at(node, 1))
    given = attribute(node, "axes") if axes is None else axes
    once = given is not None and np.size(given) == 1  # runtimes take a scalar for one axis
    return Known(1, known.elements) if known is not None and known.rank == 0 and once else None


def _concat(node: ir.Node, facts: ShapeFacts) -> Known | None:
    parts = [facts.get(value) for value in node.inputs]
    if any(part is None or part.rank != 1 for part in parts):
        return None
    return Known(1, tuple(e for part in parts if part is not None for e in part.elements))


def _reshape(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, shape = facts.get(node.inputs[0]), constant(input_at(node, 1))
    if known is None or shape is None:
        return None
    if shape.size == 0 and len(known.elements) == 1:
        return Known(0, known.elements)
    return Known(1, known.elements) if shape.tolist() in ([-1], [len(known.elements)]) else None


def _arithmetic(operation: Callable[[int, int], int | None]) -> Callable[[ir.Node, ShapeFacts], Known | None]:
    def apply(node: ir.Node, facts: ShapeFacts) -> Known | None:
        one, other = facts.get(node.inputs[0]), facts.get(node.inputs[1])
        if one is None or other is None:
            return None
        length = max(len(one.elements), len(other.elements))
        if any(len(k.elements) not in (1, length) for k in (one, other)):
            return None
        left, right = (k.elements * length if len(k.elements) == 1 else k.elements for k in (one, other))
        pairs = enumerate(zip(left, right, strict=False))
        return Known(max(one.rank, other.rank), tuple(_combine(operation, node, i, a, b) for i, (a, b) in pairs))

    return apply


def _combine(
    operation: Callable[[int, int], int | None], node: ir.Node, index: int, one: Element, other: Element
) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        result = operation(one, other)
        if result is not None and abs(result) < 2**31:
            return result
    return ("element", node.outputs[0].name, index)


_RULES: dict[str, Callable[[ir.Node, ShapeFacts], Known | None]] = {
    "Shape": _shape,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Reshape": _reshape,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _arithmetic(lambda a, b: a // b if a >= 0 and b > 0 else None),
}


def reshape_target(data: ir.Value, known: Known) -> list[int] | None:
    """The constant shape that reshapes `data` as the partly known target does: 0 keeps a dimension, -1 fits one.

    Returns None where more than one element stays unknown. A fitted -1 beside a kept 0 is not taken either, unless the
    target itself held the -1: with a dimension of size zero it could not be fitted.
    """
    if rank(data) is None or any(isinstance(e, int) and e < -1 for e in known.elements):
        return None
    fitted = -1 in known.elements
    target = [e if isinstance(e, int) else 0 if dimension(data, i) == e else -1 for i, e in enumerate(known.elements)]
    if target.count(-1) > 1 or (-1 in target and 0 in target and not fitted):
        return None
    return target
