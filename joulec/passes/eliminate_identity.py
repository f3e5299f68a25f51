"""eliminate-identity: remove nodes that return their input unchanged, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir.dims import END
from joulec.ir.kernel_table import kernel_table
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, input_at, rank, static_shape
from joulec.passes._states import ZeroStates
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class EliminateIdentity(RulePass):
    """Remove Identity, inference Dropout, zero states, and casts, reshapes, pads and slices that change nothing."""

    def rules(self, context: Context) -> list[Rule]:
        """One rule knows when each operator is an identity, one when an input may be left out."""
        return [RemoveIdentity(), ZeroStates()]


class RemoveIdentity(Rule):
    """op(x) -> x, where op changes nothing."""

    ops = (
        "Identity", "Dropout", "Cast", "CastLike", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Pad",
        "Slice", "Concat", "Expand", "Tile", "Mul", "Div", "Sub", "Max", "Min", "Sum", "Mean",
    )  # fmt: skip

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return
        index = _unchanged_input(node, rewriter.module.opset)
        if index is None:
            return
        kept, output = node.inputs[index], node.outputs[0]
        if kept is None or any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
            return
        if output.is_graph_output() and not rewriter.can_replace(output, kept):
            _swap_producer(node, kept, rewriter)
            return
        rewriter.replace(output, kept)
        rewriter.erase(node)


def _swap_producer(node: ir.Node, kept: ir.Value, rewriter: Rewriter) -> None:
    """A graph output must keep its name, and `kept` cannot take it: at least make the node an Identity."""
    if node.op_type == "Identity":
        raise Refused("it gives a graph output its name")
    if len(node.outputs) > 1:
        raise Refused("it gives a graph output its name, and has outputs that Identity lacks")
    if (reason := _no_identity(kept, rewriter.module.opset)) is not None:
        raise Refused(f"it gives a graph output its name, and there is {reason}")
    rewriter.drop_inputs(node, 1) if node.inputs[0] is kept else rewriter.set_input(node, 0, kept)
    if len(node.inputs) > 1:
        rewriter.drop_inputs(node, 1)
    for name in list(node.attributes):
        rewriter.set_attribute(node, name, None)
    rewriter.set_op(node, "Identity")


def _no_identity(value: ir.Value, opset: int) -> str | None:
    """Why ONNX Runtime could not run an Identity of `value`: it moves numbers of 4 bits, but has no kernel for that."""
    return kernel_table("cpu").refusal_of("Identity", [value], opset)


def _unchanged_input(node: ir.Node, opset: int) -> int | None:
    """The index of the input that `node` returns unchanged, or None."""
    match node.op_type:
        case "Identity":
            return 0
        case "Max" | "Min" | "Sum" | "Mean" | "Concat":
            return 0 if len(node.inputs) == 1 else None
        case "Dropout":
            return 0 if _is_inference(node, opset) else None
        case "Cast":
            return 0 if _dtype(node) is not None and _dtype(node) == attribute(node, "to") else None
        case "CastLike":
            same = _dtype(node) is not None and _dtype(node) == getattr(input_at(node, 1), "dtype", None)
            return 0 if same else None
        case "Transpose":
            perm = attribute(node, "perm")
            return 0 if perm is not None and list(perm) == sorted(perm) else None
        case "Mul" | "Div" | "Sub":
            return _neutral_operand(node)
        case "Pad":
            return 0 if _all_zero(_parameter(node, "pads", 1)) else None
        case "Tile":
            repeats = constant(input_at(node, 1))
            return 0 if repeats is not None and bool(np.all(repeats == 1)) else None
        case "Reshape":
            return 0 if _copies_shape(node) or _same_static_shape(node) else None
        case "Slice":
            return 0 if _takes_all(node) or (_same_static_shape(node) and _forward(node)) else None
        case "Flatten":
            two = rank(node.inputs[0]) == 2 and attribute(node, "axis", 1) in (1, -1)
            return 0 if two or _same_static_shape(node) else None
        case "Expand":
            shape, dims = constant(input_at(node, 1)), rank(node.inputs[0])
            ones = shape is not None and dims is not None and shape.size <= dims and bool(np.all(shape == 1))
            return 0 if ones or _same_static_shape(node) else None
        case _:  # Squeeze, Unsqueeze: with the same shape they move nothing
            return 0 if _same_static_shape(node) else None


def _dtype(node: ir.Node) -> ir.DataType | None:
    return None if node.inputs[0] is None else node.inputs[0].dtype


def _is_inference(node: ir.Node, opset: int) -> bool:
    if opset < 7:
        return bool(attribute(node, "is_test", 0))
    training = input_at(node, 2)
    if training is None:
        return True
    value = constant(training)
    return value is not None and value.size == 1 and not value.item()


def _neutral_operand(node: ir.Node) -> int | None:
    """x * 1, 1 * x, x / 1, x - 0. Not x + 0, which turns -0.0 into 0.0. The shape must come from x alone."""
    neutral = 0 if node.op_type == "Sub" else 1
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        scalar, other = node.inputs[index], node.inputs[1 - index]
        if scalar is None or other is None or scalar.shape is None or other.shape is None:
            continue
        shape = static_shape(scalar)
        if shape is None or any(dim != 1 for dim in shape) or len(shape) > len(other.shape):
            continue
        value = constant(scalar)
        if value is not None and value.size == 1 and value.dtype.kind in "iuf" and _is(value, neutral):
            return 1 - index
    return None


def _is(value: np.ndarray, neutral: int) -> bool:
    number = value.ravel()[0]
    return bool(number == neutral) and not (neutral == 0 and bool(np.signbit(number)))


def _parameter(node: ir.Node, name: str, index: int) -> np.ndarray | None:
    given = attribute(node, name)
    return np.asarray(given) if given is not None else constant(input_at(node, index))


def _all_zero(values: np.ndarray | None) -> bool:
    return values is not None and not np.any(values)


def _same_static_shape(node: ir.Node) -> bool:
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return before is not None and before == after


def _copies_shape(node: ir.Node) -> bool:
    """Reshape(x, [0, 0, ..., -1]) with as many entries as x has dimensions keeps the shape."""
    target, value = constant(input_at(node, 1)), node.inputs[0]
    if target is None or value is None or value.shape is None or attribute(node, "allowzero", 0):
        return False
    kept = [t == 0 or (isinstance(d, int) and t == d) for t, d in zip(target, value.shape, strict=False)]
    return len(target) == len(value.shape) and kept.count(False) <= 1 and all(
        keep or t == -1 for keep, t in zip(kept, target, strict=True)
    )  # fmt: skip


def _takes_all(node: ir.Node) -> bool:
    """Whether a Slice goes from the first element to "the end", one by one, along every axis that it names."""
    starts, ends, steps = _parameter(node, "starts", 1), _parameter(node, "ends", 2), constant(input_at(node, 4))
    if starts is None or ends is None or not ends.size or (steps is None and input_at(node, 4) is not None):
        return False
    return not np.any(starts) and int(ends.min()) >= END and (steps is None or bool(np.all(steps == 1)))


def _forward(node: ir.Node) -> bool:
    """Whether every step of a Slice is known and positive: a step of -1 reverses without changing the shape."""
    steps = input_at(node, 4)
    if steps is None:
        return True
    values = constant(steps)
    return values is not None and bool(np.all(values > 0))
