"""Which operators do not care about the order of dimensions, and what to change in them when it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, rank

Perm = tuple[int, ...]
"""`v = Transpose(u, perm)`: dimension i of v is dimension perm[i] of u."""

UNARY = frozenset(
    (
    "Abs Acos Asin Atan Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN "
    "LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tanh "
    "ThresholdedRelu"
).split()
)
ELEMENTWISE = frozenset(
    (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or PRelu Pow Sub Sum Where Xor"
).split()
)
REDUCTIONS = frozenset(
    (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
).split()
)


def inverse(perm: Sequence[int]) -> Perm:
    """The permutation that undoes `perm`."""
    return tuple(int(i) for i in np.argsort(perm))


def then(first: Sequence[int], second: Sequence[int]) -> Perm:
    """The one permutation that does what Transpose(Transpose(u, first), second) does."""
    return tuple(first[i] for i in second)


def perm_of(node: ir.Node | None) -> Perm | None:
    """The permutation of a Transpose, if it or the rank is known; None for anything else, and for a malformed one."""
    if node is None or not walk.is_onnx(node, "Transpose"):
        return None
    given, dims = node.attributes.get("perm"), rank(node.inputs[0])
    if given is None:
        return None if dims is None else tuple(reversed(range(dims)))
    if given.is_ref():
        return None  # a function's attribute: another one at each call
    perm = tuple(given.as_ints())
    return perm if sorted(perm) == list(range(len(perm))) and dims in (None, len(perm)) else None


def data_inputs(node: ir.Node, dims: int, opset: int) -> list[int] | None:
    """The indices of the inputs of `node` that change order with its output, or None if it cannot take another order.

    Args:
        node: the operator.
        dims: the rank in question.
        opset: of the module.
    """
    if not walk.is_onnx(node) or not all(rank(output) == dims for output in node.outputs if output.name):
        return None
    indices = _candidates(node, dims, opset)
    if indices is None or not all(_movable(node.inputs[i], dims) for i in indices):
        return None
    # at least one operand must have all dimensions, or there is nothing to reorder
    return indices if any(rank(node.inputs[i]) == dims and not _fixed(node.inputs[i]) for i in indices) else None


def _fixed(value: ir.Value | None) -> bool:
    return constant_tensor(value) is not None


def _movable(value: ir.Value | None, dims: int) -> bool:
    if value is None:
        return False
    tensor = constant_tensor(value)
    if tensor is not None:
        return len(tensor.shape) <= dims
    return rank(value) in (0, dims)


def _candidates(node: ir.Node, dims: int, opset: int) -> list[int] | None:
    op = node.op_type
    if op in UNARY:
        return [0]
    if op in ELEMENTWISE or op == "Concat":
        return list(range(len(node.inputs)))
    if op == "Softmax" or op == "LogSoftmax":
        return [0] if opset >= 13 else None
    if op in REDUCTIONS and attribute(node, "keepdims", 1):
        return [0] if reduced_axes(node, dims) is not None else None
    if op == "Pad":
        return [0] if _pads(node) is not None and input_at(node, 3) is None else None
    if op in ("QuantizeLinear", "DequantizeLinear"):
        scale = constant_tensor(node.inputs[1])
        return [0] if scale is not None and scale.size == 1 else None
    return None


def reduced_axes(node: ir.Node, dims: int) -> tuple[int, ...] | None:
    """The axes a reduction reduces, not negative; None where they are computed, or absent."""
    given = attribute(node, "axes")
    if given is None and input_at(node, 1) is not None:
        numbers = constant(input_at(node, 1))
        given = None if numbers is None else [int(axis) for axis in numbers]
    return None if not given else tuple(axis % dims for axis in given)


def _pads(node: ir.Node) -> Array | None:
    given = attribute(node, "pads")
    return np.asarray(given) if given is not None else constant(input_at(node, 1))


def absorbs(node: ir.Node, index: int, perm: Perm) -> tuple[int, ...] | None:
    """The new axes of a reduction without keepdims that gives the same result on the reordered input, or None.

    Its input is `Transpose(u, perm)`; it may read `u` instead if the dimensions that stay keep their order.
    """
    if not walk.is_onnx(node, *REDUCTIONS) or index != 0 or attribute(node, "keepdims", 1):
        return None
    axes = reduced_axes(node, len(perm))
    if axes is None:
        return None
    kept = [perm[i] for i in range(len(perm)) if i not in axes]
    return tuple(sorted(perm[axis] for axis in axes)) if kept == sorted(kept) else None


def reorder(node: ir.Node, perm: Perm, rewriter: Rewriter) -> None:
    """Adapt the axes of `node`, whose data and result change from `v` to `u` with v = Transpose(u, perm)."""
    adapt = _ADAPT.get("Reduce" if node.op_type in REDUCTIONS else node.op_type)
    if adapt is not None:
        adapt(node, perm, rewriter)


def set_reduced_axes(node: ir.Node, axes: tuple[int, ...], rewriter: Rewriter) -> None:
    """Give a reduction other axes, in the form it already has."""
    if "axes" in node.attributes:
        rewriter.set_attribute(node, "axes", list(axes))
    else:
        hint = f"{node.name}_axes"
        rewriter.set_input(node, 1, rewriter.constant(np.array(axes, np.int64), hint, at=node))


def _reorder_axis(node: ir.Node, perm: Perm, rewriter: Rewriter) -> None:
    default = -1 if node.op_type in ("Softmax", "LogSoftmax") else 0
    rewriter.set_attribute(node, "axis", int(perm[attribute(node, "axis", default) % len(perm)]))


def _reorder_reduction(node: ir.Node, perm: Perm, rewriter: Rewriter) -> None:
    axes = reduced_axes(node, len(perm)) or ()
    set_reduced_axes(node, tuple(sorted(perm[axis] for axis in axes)), rewriter)


def _reorder_pads(node: ir.Node, perm: Perm, rewriter: Rewriter) -> None:
    pads = _pads(node)
    if pads is None:
        return
    order = inverse(perm)
    new = [int(p) for half in np.split(pads, 2) for p in half[list(order)]]
    if "pads" in node.attributes:
        rewriter.set_attribute(node, "pads", new)
    else:
        rewriter.set_input(node, 1, rewriter.constant(np.array(new, np.int64), f"{node.name}_pads", at=node))


_ADAPT: dict[str, Callable[[ir.Node, Perm, Rewriter], None]] = {
    "Concat": _reorder_axis,
    "Softmax": _reorder_axis,
    "LogSoftmax": _reorder_axis,
    "Reduce": _reorder_reduction,
    "Pad": _reorder_pads,
}


def reordered_constant(value: ir.Value, perm: Perm, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """A constant operand for the new order: padded with leading dimensions of 1, then transposed. Scalars stay."""
    tensor = constant_tensor(value)
    if tensor is None or (tensor.size == 1 and len(tensor.shape) == 0):
        return value
    order = inverse(perm)
    array = tensor.numpy()
    lift = (1,) * (len(perm) - array.ndim)

    def moved(elements: Array) -> Array:
        return np.ascontiguousarray(elements.reshape(lift + elements.shape).transpose(order))

    stored = ir.tensor(moved(array), dtype=tensor.dtype)
    return rewriter.constant(stored, f"{value.name}_reordered", at=node, follows=value, moved=moved)
