"""Scales and shifts that follow each other, with no linear operator to take them, become as few as they can be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, rank, sole_consumer
from joulec.passes._affine import AFFINE, affine_of, halves_gelu, is_linear, vector_constant

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
SCALES, SHIFTS = ("Mul", "Div"), ("Add", "Sub")


class IntoBatchNormalization(Rule):
    """affine(BatchNormalization(x, g, b, m, v)) -> BatchNormalization(x, g * scale, b * scale + shift, m, v)."""

    ops = AFFINE

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data = next((v for v in node.inputs if v is not None and _normalizes(v.producer())), None)
        first = None if data is None else data.producer()
        if data is None or first is None or (dims := rank(data)) is None:
            return
        affine = affine_of(node, data, 1 - dims, dims)
        gamma, beta = (vector_constant(first.inputs[index]) for index in (1, 2))
        if affine is None or gamma is None or beta is None:
            return
        if affine_of(first, first.inputs[0], 1 - dims, dims) is None:  # type: ignore[arg-type]  # input 0 is required
            return
        whole = affine.channels(gamma.size)
        if whole is None:
            raise Refused(f"it has {affine.scale.size} channels, the BatchNormalization {gamma.size}")
        _require_sole(data, node, rewriter)
        scale = _stored(gamma.astype(np.float64) * whole.scale, gamma)
        shift = _stored(beta.astype(np.float64) * whole.scale + whole.shift, beta)
        rewriter.set_input(first, 1, rewriter.constant(scale, f"{first.name or 'bn'}_scale", at=first))
        rewriter.set_input(first, 2, rewriter.constant(shift, f"{first.name or 'bn'}_shift", at=first))
        rewriter.replace(node.outputs[0], data)
        rewriter.erase(node)


def _normalizes(node: ir.Node | None) -> bool:
    return node is not None and walk.is_onnx(node, "BatchNormalization") and len(node.outputs) == 1


class MergeConstants(Rule):
    """(x * a) * b -> x * ab, and (x + a) + b -> x + (a + b), for float constants; Div and Sub likewise."""

    ops = SCALES + SHIFTS

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        kind = SCALES if node.op_type in SCALES else SHIFTS
        second = _operand(node)
        inner = None if second is None else second[0].producer()
        first = None if inner is None or not walk.is_onnx(inner, *kind) else _operand(inner)
        if second is None or inner is None or first is None:
            return
        if halves_gelu(inner, first[0]) or halves_gelu(node, second[0]):
            raise Refused("one of them ends a GELU, which runtimes fuse only as a whole")
        _require_sole(second[0], node, rewriter)
        (a, sign_a), (b, sign_b) = first[1:], second[1:]
        with np.errstate(over="ignore", invalid="ignore"):
            joined = a * b if kind is SCALES else sign_b * a + b
        _require_no_growth(joined, a, b)
        if kind is SHIFTS and _rounds(joined, a, b):
            raise Refused("they cancel: adding and subtracting a large number rounds to whole ones")
        _rewrite(node, first[0], joined, sign_a * sign_b, kind[0], rewriter)
        rewriter.erase(inner)


class ScaleBeforeShift(Rule):
    """(f(x) + a) * b -> f(x) * b + ab, where the linear operator or scale f can take the scale in."""

    ops = SCALES

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        scale = _operand(node)
        inner = None if scale is None else scale[0].producer()
        shift = None if inner is None or not walk.is_onnx(inner, *SHIFTS) else _operand(inner)
        if scale is None or inner is None or shift is None or shift[2] != 1:
            return
        source = shift[0].producer()
        if source is None or not _takes_scale(source) or sole_consumer(shift[0]) is not inner:
            return
        _require_sole(scale[0], node, rewriter)
        a, b = shift[1], scale[1]
        carried = a * b
        _require_no_growth(carried, a, b)
        output, x = node.outputs[0], shift[0]
        factor = rewriter.constant(_like(b, x), f"{node.name or 'scale'}_factor", at=inner)
        (scaled,) = rewriter.add("Mul", [x, factor], before=inner, name=f"{node.name or 'scale'}_first")
        scaled.type, scaled.shape = x.type, _kept_shape(x, b)
        shifts = rewriter.constant(_like(carried, x), f"{inner.name or 'shift'}_scaled", at=inner)
        hint = f"{inner.name or 'shift'}_after"
        (moved,) = rewriter.add("Add", [scaled, shifts], before=inner, name=hint, like=output)
        rewriter.replace(output, moved)
        rewriter.erase(node)
        rewriter.erase(inner)


def _kept_shape(x: ir.Value, numbers: Array) -> ir.Shape | None:
    """The shape of x * numbers where it is that of x; None where it is not, or not known to be."""
    if x.shape is None or numbers.ndim > len(x.shape):
        return None
    pairs = zip(numbers.shape, list(x.shape)[len(x.shape) - numbers.ndim :], strict=True)
    return x.shape.copy() if all(one in (1, other) for one, other in pairs) else None


def _takes_scale(node: ir.Node) -> bool:
    if walk.is_onnx(node, *SCALES):
        return _operand(node) is not None
    return is_linear(node) and vector_constant(node.inputs[1]) is not None


def _operand(node: ir.Node) -> tuple[ir.Value, Array, int] | None:
    """(x, c, sign) of a node that computes x * c (Mul, Div) or sign * x + c (Add, Sub), in floats; else None.

    The constant is float64, and finite; a Div by it is a Mul by its reciprocal.
    """
    if len(node.inputs) != 2 or node.attributes:
        return None
    left, right = node.inputs
    numbers = vector_constant(right)
    x, first = (left, True) if numbers is not None else (right, False)
    numbers = numbers if numbers is not None else vector_constant(left)
    if x is None or numbers is None or x.dtype not in FLOATS or vector_constant(x) is not None:
        return None
    wide = numbers.astype(np.float64)
    if not np.all(np.isfinite(wide)) or (node.op_type == "Div" and not (first and np.all(wide != 0))):
        return None
    match node.op_type:
        case "Div":
            return x, 1.0 / wide, 1
        case "Sub":
            return (x, -wide, 1) if first else (x, wide, -1)
        case _:
            return x, wide, 1


def _require_sole(data: ir.Value, node: ir.Node, rewriter: Rewriter) -> None:
    if sole_consumer(data) is not node:
        raise Refused("what stands before it is used elsewhere too")
    if not rewriter.can_replace(node.outputs[0], data):
        raise Refused(f"'{node.outputs[0].name}' is a graph output, and cannot be renamed")


def _require_no_growth(joined: Array, *parts: Array) -> None:
    if joined.size > max(part.size for part in parts):
        raise Refused("the constants broadcast against each other; their product would be larger than both")


def _rounds(joined: Array, a: Array, b: Array) -> bool:
    """Whether x + a + b may be the trick that rounds x: numbers so large that the sum loses x's fraction, and gone."""
    large = np.maximum(np.abs(a), np.abs(b))
    return bool(np.any((large >= 1024) & (np.abs(joined) < large / 16)))


def _rewrite(node: ir.Node, x: ir.Value, numbers: Array, sign: int, op: str, rewriter: Rewriter) -> None:
    """Make `node` compute x op numbers, or numbers - x for a negative sign."""
    fused = rewriter.constant(_like(numbers, x), f"{node.name or op}_joined", at=node)
    if sign < 0:
        rewriter.set_op(node, "Sub")
        rewriter.set_input(node, 0, fused)
        rewriter.set_input(node, 1, x)
        return
    rewriter.set_op(node, op)
    rewriter.set_input(node, 0, x)
    rewriter.set_input(node, 1, fused)


def _like(numbers: Array, x: ir.Value) -> ir.TensorProtocol:
    """float64 numbers in the element type of `x`.

    Raises:
        Refused: a number does not survive: it overflows, or all of them underflow.
    """
    if x.dtype is None:
        raise Refused("the element type is not known")
    return ir.tensor(_stored(numbers, np.zeros(0, x.dtype.numpy())))


def _stored(numbers: Array, like: Array) -> Array:
    with np.errstate(over="ignore"):
        stored = numbers.astype(like.dtype)
    if not np.all(np.isfinite(stored.astype(np.float64))):
        raise Refused("the joined constants would not be finite")
    if np.any((numbers != 0) & (stored == 0)):
        raise Refused("the joined constants would underflow")
    return stored
