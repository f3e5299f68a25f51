"""How operators make the dimensions of their outputs out of those of their inputs, as expressions.

A rule is only as exact as it must be: it returns None for what it does not know, and a dimension that depends on more
than sizes becomes an atom of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from joulec.ir.symbolic import Element, Expr, Symbols, vanishes_with
from joulec.ir.values import attribute, constant, input_at

if TYPE_CHECKING:
    from joulec.ir.partial import ShapeFacts

Dims = tuple[Element, ...]
Found = Sequence[Dims | None] | None
"""The dimensions of each output, in order; outputs beyond the end are unknown."""

Rule = Callable[[ir.Node, "ShapeFacts"], Found]

END = (1 << 31) - 1
"""A slice that ends here or later ends at the end: exporters write the largest 32-bit or 64-bit number."""


def broadcast(one: Dims, other: Dims, symbols: Symbols) -> Dims:
    """The dimensions of two tensors that are broadcast against each other."""
    length = max(len(one), len(other))
    left, right = ((1,) * (length - len(dims)) + dims for dims in (one, other))
    return tuple(_joint(a, b, symbols) for a, b in zip(left, right, strict=True))


def _joint(one: Element, other: Element, symbols: Symbols) -> Element:
    if one == other or other == 1:
        return one
    if one == 1:
        return other
    if isinstance(other, int):  # the symbol is this number, or 1
        return other
    if isinstance(one, int):
        return one
    first, second = sorted((one, other), key=lambda e: e.terms)
    return symbols.atom(("broadcast", first, second))


def _same(node: ir.Node, facts: ShapeFacts) -> Found:
    return [facts.shape(node.inputs[0])]


def _same_twice(node: ir.Node, facts: ShapeFacts) -> Found:
    return [facts.shape(node.inputs[0])] * 2


def _elementwise(node: ir.Node, facts: ShapeFacts) -> Found:
    if "broadcast" in node.attributes or "axis" in node.attributes:  # before opset 7: the first operand's shape
        return [facts.shape(node.inputs[0])]
    joint: Dims | None = ()
    for value in node.inputs:
        dims = facts.shape(value)
        if dims is None or joint is None:
            return None
        joint = broadcast(joint, dims, facts.symbols)
    return [joint]


def _matmul(node: ir.Node, facts: ShapeFacts) -> Found:
    one, other = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if not one or not other:
        return None
    rows, columns = one[-2:-1] if len(one) > 1 else (), other[-1:] if len(other) > 1 else ()
    return [(*broadcast(one[:-2], other[:-2], facts.symbols), *rows, *columns)]


def _gemm(node: ir.Node, facts: ShapeFacts) -> Found:
    one, other = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if one is None or other is None or len(one) != 2 or len(other) != 2:
        return None
    return [(one[1 if attribute(node, "transA", 0) else 0], other[0 if attribute(node, "transB", 0) else 1])]


def _einsum(node: ir.Node, facts: ShapeFacts) -> Found:
    """By an equation whose letters are written out, the result's too."""
    equation = attribute(node, "equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    sides, _, result = text.partition("->")
    shapes, operands = [facts.shape(value) for value in node.inputs], sides.split(",")
    if not result.isalpha() or len(operands) != len(shapes):
        return None
    sizes: dict[str, Element] = {}
    for letters, dims in zip(operands, shapes, strict=True):
        if not letters.isalpha() or dims is None or len(dims) != len(letters):
            return None
        for letter, dim in zip(letters, dims, strict=True):
            sizes[letter] = _joint(sizes.get(letter, 1), dim, facts.symbols)
    return [tuple(sizes[letter] for letter in result)] if sizes.keys() >= set(result) else None


def _transpose(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    if dims is None:
        return None
    perm = attribute(node, "perm", list(reversed(range(len(dims)))))
    return [tuple(dims[i] for i in perm)]


def axes_of(node: ir.Node, facts: ShapeFacts) -> list[int] | None:
    """The axes given as an attribute or as the second input; None where they are computed or absent."""
    given = attribute(node, "axes")
    if given is not None:
        return [int(axis) for axis in given]
    known = facts.get(input_at(node, 1))
    numbers = None if known is None else known.numbers()
    return None if numbers is None else list(numbers)


def _unsqueeze(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, axes = facts.shape(node.inputs[0]), axes_of(node, facts)
    if dims is None or axes is None:
        return None
    length = len(dims) + len(axes)
    new = {axis % length for axis in axes}
    rest = iter(dims)
    return [tuple(1 if axis in new else next(rest) for axis in range(length))]


def _squeeze(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, axes = facts.shape(node.inputs[0]), axes_of(node, facts)
    if dims is None:
        return None
    if axes is None:
        unclear = input_at(node, 1) is not None or any(isinstance(d, Expr) for d in dims)
        return None if unclear else [tuple(d for d in dims if d != 1)]
    gone = {axis % len(dims) for axis in axes}
    return [tuple(d for axis, d in enumerate(dims) if axis not in gone)]


def _flatten(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    if dims is None:
        return None
    axis = attribute(node, "axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [(facts.symbols.product(dims[:axis]), facts.symbols.product(dims[axis:]))]


def _reshape(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    if "shape" in node.attributes:
        elements: Dims = tuple(int(e) for e in attribute(node, "shape"))
    else:
        known = facts.get(input_at(node, 1))
        if known is None or known.rank != 1:
            return None
        elements = known.elements
    allow = bool(attribute(node, "allowzero", 0))
    alone = None if allow else _alone(elements, facts.symbols)
    found = [_target_dim(node, facts, dims, i, e, alone) for i, e in enumerate(elements)]
    others = [dim for dim in found if dim is not None]
    if len(others) == len(found) - 1 and -1 in elements and dims is not None:
        whole, rest = facts.symbols.product(dims), facts.symbols.product(others)
        if rest == 0:
            return None
        fitted: Element = facts.symbols.divide(whole, rest)
        found[list(elements).index(-1)] = fitted
    return [tuple(facts.unknown(node.outputs[0], i) if d is None else d for i, d in enumerate(found))]


def _alone(elements: Dims, symbols: Symbols) -> list[bool]:
    """For each element of a target, whether no other has to do with it, and none is -1."""
    supports = [symbols.support(element) for element in elements]
    counts = Counter(atom for support in supports for atom in support)
    fitted = -1 in elements or -1 in counts  # atom -1 is everything
    return [not fitted and all(counts[atom] == 1 for atom in support) for support in supports]


def _target_dim(
    node: ir.Node, facts: ShapeFacts, dims: Dims | None, index: int, element: Element, alone: list[bool] | None
) -> Element | None:
    """What an element of a Reshape's target makes; None for -1. `alone` is None where a 0 is just a 0.

    A computed element that turns out 0 copies a dimension where zeros are not allowed. It is taken at its word where
    that cannot be, where what it copies is 0 too, and where no other element can make up for it: then the sizes agree
    only if the tensor is empty for another reason, and it differs only where two independent sizes are 0 at once.
    """
    copied = None if dims is None or index >= len(dims) else dims[index]
    if isinstance(element, int):
        if element == 0 and alone is not None:
            return facts.unknown(node.outputs[0], index) if copied is None else copied
        return None if element == -1 else element
    kept = alone is None or alone[index] or (facts.symbols.least(element) or 0) > 0
    kept = kept or (copied is not None and vanishes_with(copied, element))
    return element if kept and facts.symbols.is_size(element) else facts.unknown(node.outputs[0], index)


def _concat(node: ir.Node, facts: ShapeFacts) -> Found:
    parts = [facts.shape(value) for value in node.inputs]
    first = next((part for part in parts if part is not None), None)
    if first is None:
        return None
    axis = attribute(node, "axis", 1) % len(first)
    total: Element | None = 0
    for part in parts:
        total = None if part is None or total is None else facts.symbols.add(total, part[axis])
    joint = facts.unknown(node.outputs[0], axis) if total is None else total
    return [tuple(joint if i == axis else _agreed([p[i] for p in parts if p is not None]) for i in range(len(first)))]


def _agreed(dims: list[Element]) -> Element:
    """One of several dimensions that must be equal: a number if any is one."""
    return next((dim for dim in dims if isinstance(dim, int)), dims[0])


def _split(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    if dims is None:
        return None
    axis = attribute(node, "axis", 0) % len(dims)
    sizes = _split_sizes(node, facts, dims[axis])
    if sizes is None or len(sizes) != len(node.outputs):
        sizes = [facts.unknown(output, axis) for output in node.outputs]
    return [(*dims[:axis], size, *dims[axis + 1 :]) for size in sizes]


def _split_sizes(node: ir.Node, facts: ShapeFacts, dim: Element) -> list[Element] | None:
    given = attribute(node, "split")
    if given is not None:
        return [int(size) for size in given]
    if input_at(node, 1) is not None:
        known = facts.get(node.inputs[1])
        return None if known is None else list(known.elements)
    count = len(node.outputs)
    equal = facts.symbols.quotient(dim, count) if not isinstance(dim, int) else dim // count
    exact = equal is not None and (not isinstance(dim, int) or dim % count == 0)
    return [equal] * count if exact and equal is not None else None


def _gather(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, indices = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if dims is None or indices is None:
        return None
    axis = attribute(node, "axis", 0) % len(dims)
    return [(*dims[:axis], *indices, *dims[axis + 1 :])]


def _indices(node: ir.Node, facts: ShapeFacts) -> Found:
    return [facts.shape(node.inputs[1])]


def _expand(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, known = facts.shape(node.inputs[0]), facts.get(node.inputs[1])
    if dims is None or known is None:
        return None
    return [broadcast(dims, _sizes(node, facts, known.elements), facts.symbols)]


def _sizes(node: ir.Node, facts: ShapeFacts, elements: Dims) -> Dims:
    """Elements as dimensions of the output; what could be negative is unknown."""
    return tuple(e if facts.symbols.is_size(e) else facts.unknown(node.outputs[0], i) for i, e in enumerate(elements))


def _tile(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, known = facts.shape(node.inputs[0]), facts.get(node.inputs[1])
    if dims is None or known is None or len(known.elements) != len(dims):
        return None
    return [tuple(facts.symbols.multiply(d, r) for d, r in zip(dims, known.elements, strict=True))]


def _of_elements(node: ir.Node, facts: ShapeFacts) -> Found:
    known = facts.get(node.inputs[0])
    if known is None or known.rank != 1:
        return None
    return [_sizes(node, facts, known.elements)]


def _range(node: ir.Node, facts: ShapeFacts) -> Found:
    start, limit, delta = (facts.get(value) for value in node.inputs[:3])
    if start is None or limit is None or delta is None or delta.elements != (1,):
        return [(facts.unknown(node.outputs[0], 0),)]
    length = facts.symbols.subtract(limit.elements[0], start.elements[0])
    return [(length if facts.symbols.is_size(length) else facts.unknown(node.outputs[0], 0),)]


def _shape(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    return None if dims is None else [(len(dims[attribute(node, "start", 0) : attribute(node, "end", None)]),)]


def _scalar(node: ir.Node, facts: ShapeFacts) -> Found:
    return [()]


def _slice(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, bounds = facts.shape(node.inputs[0]), slice_bounds(node, facts)
    if dims is None:
        return None
    if bounds is None:
        return [tuple(facts.unknown(node.outputs[0], axis) for axis in range(len(dims)))]
    found = list(dims)
    for start, end, axis, step in zip(*bounds, strict=True):
        axis = axis % len(dims)
        length = sliced(dims[axis], start, end, step, facts.symbols)
        found[axis] = facts.unknown(node.outputs[0], axis) if length is None else length
    return [tuple(found)]


def slice_bounds(node: ir.Node, facts: ShapeFacts) -> tuple[Dims, Dims, list[int], Dims] | None:
    """Starts, ends, axes and steps of a Slice, one per sliced axis, from attributes or inputs; None if unknown."""
    if "starts" in node.attributes:
        starts, ends = tuple(attribute(node, "starts")), tuple(attribute(node, "ends"))
        return starts, ends, list(attribute(node, "axes", range(len(starts)))), (1,) * len(starts)
    found = [facts.get(value) for value in node.inputs[1:3]]
    if len(found) < 2 or found[0] is None or found[1] is None:
        return None
    count = len(found[0].elements)
    axes, steps = facts.get(input_at(node, 3)), facts.get(input_at(node, 4))
    numbers = axes.numbers() if axes is not None else None
    if (numbers is None and input_at(node, 3) is not None) or (steps is None and input_at(node, 4) is not None):
        return None
    bounds = (
        found[0].elements, found[1].elements,
        list(range(count)) if numbers is None else list(numbers), (1,) * count if steps is None else steps.elements,
    )  # fmt: skip
    return bounds if all(len(part) == count for part in bounds) else None


def sliced(dim: Element, start: Element, end: Element, step: Element, symbols: Symbols) -> Element | None:
    """How much of `dim` a slice keeps; None where it is not known. Bounds are clamped as ONNX says."""
    if step != 1:
        numbers = [part for part in (dim, start, end, step) if isinstance(part, int)]
        if len(numbers) < 4 or numbers[3] <= 0:
            return None
        return len(range(numbers[0])[numbers[1] : numbers[2] : numbers[3]])
    first, last = _clamped(dim, start, symbols), _clamped(dim, end, symbols)
    if first is None or last is None:
        return None
    return symbols.maximum(symbols.subtract(last, first), 0) if first != 0 else last


def _clamped(dim: Element, bound: Element, symbols: Symbols) -> Element | None:
    """A bound of a slice within 0..dim; None where that depends on the sizes."""
    if isinstance(bound, int) and bound >= END:
        return dim
    if symbols.is_size(bound):
        return symbols.minimum(dim, bound)
    if not isinstance(bound, int):
        return None
    return symbols.maximum(symbols.add(dim, bound), 0)


def _reduce(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, axes = facts.shape(node.inputs[0]), axes_of(node, facts)
    if dims is None or (axes is None and input_at(node, 1) is not None):
        return None
    if not axes:
        if attribute(node, "noop_with_empty_axes", 0):
            return [dims]
        axes = list(range(len(dims)))
    return [_reduced(dims, axes, bool(attribute(node, "keepdims", 1)))]


def _arg(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, keep = facts.shape(node.inputs[0]), bool(attribute(node, "keepdims", 1))
    return None if dims is None else [_reduced(dims, [attribute(node, "axis", 0)], keep)]


def _reduced(dims: Dims, axes: Sequence[int], keep: bool) -> Dims:
    gone = {axis % len(dims) for axis in axes}
    return tuple(1 if axis in gone else dim for axis, dim in enumerate(dims) if keep or axis not in gone)


def _pad(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    given = attribute(node, "pads", attribute(node, "paddings"))
    if given is None and input_at(node, 1) is not None and input_at(node, 3) is None:
        known = facts.get(node.inputs[1])
        given = None if known is None else known.elements
    if dims is None or given is None or len(given) != 2 * len(dims):
        return None
    add = facts.symbols.add
    return [tuple(add(add(d, a), b) for d, a, b in zip(dims, given[: len(dims)], given[len(dims) :], strict=True))]


def _window(node: ir.Node, facts: ShapeFacts) -> Found:
    """Conv and pooling: (size + pads - extent) / stride + 1 for each spatial dimension."""
    dims = facts.shape(node.inputs[0])
    weight = facts.shape(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = attribute(node, "kernel_shape", None if weight is None else weight[2:])
    if dims is None or kernel is None or attribute(node, "ceil_mode", 0) or len(kernel) != len(dims) - 2:
        return None
    automatic = attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET")
    if automatic or any(not isinstance(k, int) for k in kernel):
        return None
    channels = weight[0] if weight is not None else dims[1]
    one = [1] * len(kernel)
    pads = attribute(node, "pads", [0] * (2 * len(kernel)))
    strides, dilations = attribute(node, "strides", one), attribute(node, "dilations", one)
    spatial = []
    for i, k in enumerate(kernel):
        room = facts.symbols.add(dims[2 + i], pads[i] + pads[i + len(kernel)] - dilations[i] * (k - 1) - 1)
        spatial.append(facts.symbols.add(facts.symbols.divide(room, strides[i]), 1))
    return [(dims[0], channels, *spatial)]


def _global_pool(node: ir.Node, facts: ShapeFacts) -> Found:
    dims = facts.shape(node.inputs[0])
    return None if dims is None else [(*dims[:2], *(1,) * (len(dims) - 2))]


def _resize(node: ir.Node, facts: ShapeFacts) -> Found:
    known = facts.get(input_at(node, 3))
    dims = facts.shape(node.inputs[0])
    if known is None or dims is None or len(known.elements) != len(dims):
        return None
    if "keep_aspect_ratio_policy" in node.attributes or "axes" in node.attributes:
        return None
    return [tuple(known.elements)] if all(facts.symbols.is_size(e) for e in known.elements) else None


def _one_hot(node: ir.Node, facts: ShapeFacts) -> Found:
    dims, depth = facts.shape(node.inputs[0]), constant(node.inputs[1])
    if dims is None or depth is None or depth.size != 1:
        return None
    axis = attribute(node, "axis", -1) % (len(dims) + 1)
    return [(*dims[:axis], int(depth.item()), *dims[axis:])]


UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh CumSum DequantizeLinear Elu
    Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN
    LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu
    QuantizeLinear RMSNormalization RandomNormalLike RandomUniformLike Bernoulli Reciprocal Relu ReverseSequence Round
    ScatterElements ScatterND Scatter Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu Trilu BatchNormalization
"""
ELEMENTWISE = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or Pow Sub Sum Where Xor
"""
REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY.split(), _same),
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(REDUCTIONS.split(), _reduce),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "AveragePool": _window,
    "Concat": _concat,
    "ConstantOfShape": _of_elements,
    "Conv": _window,
    "Dropout": _same_twice,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _indices,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MatMul": _matmul,
    "MaxPool": _window,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _scalar,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
