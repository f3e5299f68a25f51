"""Shape arithmetic: what each element of a small integer tensor is, as an expression in sizes.

A rule answers for the only output of its operator; it returns None for what it does not know. An element that has no
normal form is an atom, the same for the same operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from joulec.ir import dims
from joulec.ir.symbolic import MAX_NUMBER, Element, Expr, Symbols
from joulec.ir.values import attribute, constant, constant_tensor

if TYPE_CHECKING:
    from joulec.ir.partial import ShapeFacts

MAX_ELEMENTS = 64
"""Longer integer tensors are data, not shapes."""

KINDS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass(frozen=True)
class Known:
    """The elements of a scalar (`rank` 0) or of a vector (`rank` 1); booleans are 0 and 1."""

    rank: int
    elements: tuple[Element, ...]

    def numbers(self) -> tuple[int, ...] | None:
        """The elements if all of them are numbers."""
        numbers = tuple(e for e in self.elements if isinstance(e, int))
        return numbers if len(numbers) == len(self.elements) else None


def known_constant(value: ir.Value) -> Known | None:
    """The numbers of a small integer or boolean constant."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in KINDS:
        return None
    array = tensor.numpy() if tensor.size <= MAX_ELEMENTS else None
    if array is None or array.ndim > 1:
        return None
    return Known(array.ndim, tuple(int(x) for x in array.ravel()))


def _shape(node: ir.Node, facts: ShapeFacts) -> Known | None:
    shape = facts.shape(node.inputs[0])
    return None if shape is None else Known(1, shape[attribute(node, "start", 0) : attribute(node, "end", None)])


def _size(node: ir.Node, facts: ShapeFacts) -> Known | None:
    shape = facts.shape(node.inputs[0])
    return None if shape is None else Known(0, (facts.symbols.product(shape),))


def _same(node: ir.Node, facts: ShapeFacts) -> Known | None:
    return facts.get(node.inputs[0])


def _cast(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, to = facts.get(node.inputs[0]), attribute(node, "to")
    value = node.inputs[0]
    if known is None or value is None or to not in KINDS or (to == ir.DataType.BOOL and value.dtype != to):
        return None
    # A size beyond 2**31 would wrap; tensors of that many elements in one dimension are left alone.
    numbers = [e for e in known.elements if isinstance(e, int)]
    return known if all(abs(n) < MAX_NUMBER for n in numbers) else None


def _gather(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, indices = facts.get(node.inputs[0]), constant(node.inputs[1])
    if known is None or known.rank != 1 or indices is None or indices.ndim > 1 or attribute(node, "axis", 0) != 0:
        return None
    return Known(indices.ndim, tuple(known.elements[int(i)] for i in indices.ravel()))


def _slice(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, bounds = facts.get(node.inputs[0]), dims.slice_bounds(node, facts)
    if known is None or known.rank != 1 or bounds is None:
        return None
    if any(len(part) != 1 or not isinstance(part[0], int) for part in bounds):
        return None
    start, end, _, step = (int(part[0]) for part in bounds)  # type: ignore[arg-type]
    return Known(1, known.elements[start:end:step]) if step > 0 else None


def _split(node: ir.Node, facts: ShapeFacts) -> Known | None:
    """Each output is a run of the input; they are recorded here, because a rule answers for one."""
    known, at = facts.get(node.inputs[0]), 0
    for output in node.outputs if known is not None and known.rank == 1 else ():
        shape = facts.shape(output)
        if shape is None or not isinstance(shape[0], int) or known is None:
            return None
        facts.facts[id(output)] = Known(1, known.elements[at : at + shape[0]])
        facts.alive.append(output)
        at += shape[0]
    return None


def _squeeze(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known = facts.get(node.inputs[0])
    return Known(0, known.elements) if known is not None and known.rank == 1 and len(known.elements) == 1 else None


def _unsqueeze(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, axes = facts.elements(node.inputs[0]), dims.axes_of(node, facts)
    return Known(1, known.elements) if known is not None and known.rank == 0 and axes in ([0], [-1]) else None


def _concat(node: ir.Node, facts: ShapeFacts) -> Known | None:
    parts = [facts.elements(value) for value in node.inputs]
    if any(part is None or part.rank != 1 for part in parts):
        return None
    return Known(1, tuple(e for part in parts if part is not None for e in part.elements))


def _reshape(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, shape = facts.get(node.inputs[0]), facts.shape(node.outputs[0])
    if known is None or shape is None or len(shape) > 1:
        return None
    if len(shape) == 0:
        return Known(0, known.elements)
    return Known(1, known.elements) if shape[0] == len(known.elements) else None


def _filled(node: ir.Node, facts: ShapeFacts) -> Known | None:
    shape, value = facts.shape(node.outputs[0]), node.attributes.get("value")
    if value is None or shape is None or len(shape) > 1 or any(not isinstance(d, int) for d in shape):
        return None
    tensor = value.as_tensor()
    count = int(shape[0]) if shape and isinstance(shape[0], int) else 1
    if tensor.dtype not in KINDS or tensor.size != 1 or count > MAX_ELEMENTS:
        return None
    return Known(len(shape), (int(tensor.numpy().ravel()[0]),) * count)


def _expanded(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, shape = facts.get(node.inputs[0]), facts.shape(node.outputs[0])
    if known is None or shape is None or len(shape) != 1 or len(known.elements) != 1 or not isinstance(shape[0], int):
        return None
    return Known(1, known.elements * shape[0]) if shape[0] <= MAX_ELEMENTS else None


def _where(node: ir.Node, facts: ShapeFacts) -> Known | None:
    parts = _aligned(node, facts)
    if parts is None:
        return None
    rank, (conditions, ones, others) = parts
    chosen = zip(conditions, ones, others, strict=True)
    return Known(rank, tuple(_chosen(node, facts, *elements) for elements in chosen))


def _chosen(node: ir.Node, facts: ShapeFacts, condition: Element, one: Element, other: Element) -> Element:
    if condition == 1 or one == other:
        return one
    return other if condition == 0 else _opaque(node, facts, condition, one, other)


def _opaque(node: ir.Node, facts: ShapeFacts, *operands: Element) -> Element:
    """The element that `node` makes of `operands`: unknown, but the same for the same operands."""
    sizes = node.op_type != "Sub" and all(facts.symbols.is_size(operand) for operand in operands)
    return facts.symbols.atom((node.op_type, node.outputs[0].dtype, *operands), 0 if sizes else None)


def _aligned(node: ir.Node, facts: ShapeFacts) -> tuple[int, list[tuple[Element, ...]]] | None:
    """The elements of all inputs, single ones repeated, and the common rank."""
    parts = [facts.elements(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or all(facts.get(value) is None for value in node.inputs):
        return None
    rank = max(part.rank for part in known)
    lengths = {len(part.elements) for part in known} - {1} or {1}
    if len(lengths) != 1:
        return None
    (length,) = lengths
    return rank, [part.elements * length if len(part.elements) == 1 else part.elements for part in known]


Operation = Callable[[Symbols, Element, Element], Element | bool | None]


def _arithmetic(operation: Operation) -> Callable[[ir.Node, ShapeFacts], Known | None]:
    """Element by element; where `operation` says None, the element is unknown, but the same for the same operands."""

    def apply(node: ir.Node, facts: ShapeFacts) -> Known | None:
        parts = _aligned(node, facts) if len(node.inputs) == 2 else None
        if parts is None:
            return None
        found = []
        for one, other in zip(*parts[1], strict=True):
            result = operation(facts.symbols, one, other)
            opaque = result is None or (isinstance(result, int) and abs(result) >= MAX_NUMBER)
            found.append(_opaque(node, facts, one, other) if opaque else _number(result))
        return Known(parts[0], tuple(found))

    return apply


def _number(result: Element | bool | None) -> Element:
    return result if isinstance(result, Expr) else int(result or 0)


def _logical(decide: Callable[[bool, bool], bool]) -> Operation:
    def apply(symbols: Symbols, one: Element, other: Element) -> Element | None:
        return int(decide(bool(one), bool(other))) if isinstance(one, int) and isinstance(other, int) else None

    return apply


def _not(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known = facts.get(node.inputs[0])
    if known is None:
        return None
    return Known(known.rank, tuple(1 - e if isinstance(e, int) else _opaque(node, facts, e) for e in known.elements))


def _modulo(node: ir.Node, facts: ShapeFacts) -> Known | None:
    return None if attribute(node, "fmod", 0) else _arithmetic(Symbols.modulo)(node, facts)


def _negated(flag: bool | None) -> bool | None:
    return None if flag is None else not flag


def _product(node: ir.Node, facts: ShapeFacts) -> Known | None:
    known, shape = facts.get(node.inputs[0]), facts.shape(node.outputs[0])
    if known is None or known.rank != 1 or shape not in ((), (1,)):
        return None
    return Known(len(shape), (facts.symbols.product(known.elements),))


RULES: dict[str, Callable[[ir.Node, ShapeFacts], Known | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Tile": _expanded,
    "Where": _where,
    "Not": _not,
    "ReduceProd": _product,
    "Add": _arithmetic(Symbols.add),
    "Sub": _arithmetic(Symbols.subtract),
    "Mul": _arithmetic(Symbols.multiply),
    "Div": _arithmetic(Symbols.divide),
    "Mod": _modulo,
    "Max": _arithmetic(Symbols.maximum),
    "Min": _arithmetic(Symbols.minimum),
    "Equal": _arithmetic(Symbols.equal),
    "Less": _arithmetic(Symbols.less),
    "Greater": _arithmetic(lambda s, a, b: s.less(b, a)),
    "LessOrEqual": _arithmetic(lambda s, a, b: _negated(s.less(b, a))),
    "GreaterOrEqual": _arithmetic(lambda s, a, b: _negated(s.less(a, b))),
    "And": _arithmetic(_logical(lambda a, b: a and b)),
    "Or": _arithmetic(_logical(lambda a, b: a or b)),
}
