"""Evaluating one node on constants, with its output's size and work bounded before anything runs.

A model file is untrusted: `ConstantOfShape`, `Expand`, `Tile` and their like can ask for any amount of memory in a few
bytes. The output's shape is therefore inferred first, from the node and its inputs alone (what the file declares is
not believed), and only nodes within `MAX_BYTES` and `MAX_WORK` are run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from joulec.errors import JoulecError
from joulec.ir import walk
from joulec.ir.session import SessionOptions, open_session
from joulec.ir.shapes import first_line
from joulec.ir.values import Array

MAX_BYTES = 1 << 28
"""Largest output of one evaluated node."""

MAX_WORK = 1 << 30
"""Largest number of scalar operations of one evaluated node."""

ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike
    Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf
    IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round Selu
    Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor
"""
LAYOUT = """
    Compress Concat ConstantOfShape CumSum DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND
    Identity NonZero OneHot Pad Range Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice
    SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
"""
REDUCTIONS = """
    ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Softmax LogSoftmax TopK
"""
LINEAR = ("MatMul", "Gemm")

FOLDABLE = frozenset([*f"{ELEMENTWISE} {LAYOUT} {REDUCTIONS}".split(), *LINEAR])
"""Operators that are evaluated: deterministic, without state or subgraphs, and with work that their sizes bound."""

_EXPENSIVE = {"Expand", "Tile", "ConstantOfShape", "Range"}
_KINDS = frozenset("biuf")
_INLINE_ELEMENTS = 4096


class NotEvaluated(Exception):
    """Why a node was not evaluated: not foldable, unbounded, too large, or no kernel."""


@dataclass(frozen=True)
class Bound:
    """What an evaluation will at most produce and cost."""

    bytes: int
    work: int


def bound(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Bound:
    """Bound the size of the outputs of `node` and its work, without running it.

    Raises:
        NotEvaluated: the size cannot be known beforehand.
    """
    if node.op_type in ("NonZero", "Compress"):  # the output's size depends on the numbers, but not beyond the input's
        return Bound(8 * max(1, inputs[0].ndim) * inputs[0].size if inputs[0] is not None else 0, _read(inputs))
    if node.op_type == "Range":
        return _range_bound(inputs)
    shapes = _infer(node, inputs, opset)
    sizes = [math.prod(shape) * itemsize for shape, itemsize in shapes]
    elements = sum(math.prod(shape) for shape, _ in shapes)
    depth = inputs[0].shape[-1] if node.op_type in LINEAR and inputs[0] is not None and inputs[0].ndim else 1
    if node.op_type == "Gemm" and inputs[0] is not None:
        depth = max(inputs[0].shape)
    return Bound(sum(sizes), _read(inputs) + elements * max(depth, 1))


def _range_bound(inputs: Sequence[Array | None]) -> Bound:
    try:
        start, limit, delta = (float(array.item()) for array in inputs if array is not None)
        count = max(0, math.ceil((limit - start) / delta))
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise NotEvaluated(f"its output size is not known: {error}") from error
    return Bound(8 * count, count)


def _read(inputs: Sequence[Array | None]) -> int:
    return sum(array.size for array in inputs if array is not None)


@dataclass
class Limits:
    """What evaluation may still cost.

    Attributes:
        bytes: the largest output of the next node.
        work: scalar operations left to all nodes together.
    """

    bytes: int = MAX_BYTES
    work: int = 4 * MAX_WORK


def evaluate(
    node: ir.Node, inputs: Sequence[Array | None], opset: int, limits: Limits | None = None
) -> list[Array | None]:
    """Evaluate `node` on `inputs` (None for an optional one left out), in the order of its outputs.

    Raises:
        NotEvaluated: it is not foldable, its result would be too large or take too long, or it has no kernel.
    """
    if not walk.is_onnx(node) or node.op_type not in FOLDABLE:
        raise NotEvaluated(f"{node.op_type} is not evaluated")
    if any(a is not None and a.dtype.kind not in _KINDS and node.op_type not in _DIRECT for a in inputs):
        raise NotEvaluated("its element type is not evaluated")
    limits = limits or Limits()
    moved = _move_bound(node, inputs)
    if moved is not None:
        _afford(moved, limits)
    if (direct := _directly(node, inputs, opset)) is not None:
        limits.work -= 0 if moved is None else moved.work
        return [direct]
    if _traps(node, inputs):
        raise NotEvaluated("it divides integers by zero or overflows, which stops the processor")
    cost = bound(node, inputs, opset)
    _afford(cost, limits, MAX_BYTES)
    limits.work -= cost.work
    return _run(node, inputs, opset)


def _afford(cost: Bound, limits: Limits, most: int | None = None) -> None:
    """Refuse what exceeds the limits, and `most` bytes where given (only moving a weight may exceed `MAX_BYTES`)."""
    size = limits.bytes if most is None else min(limits.bytes, most)
    if cost.bytes > size:
        raise NotEvaluated(f"its result would take {cost.bytes} bytes, the limit is {size}")
    if cost.work > min(limits.work, MAX_WORK):
        raise NotEvaluated(f"it would take {cost.work} operations, the limit is {min(limits.work, MAX_WORK)}")


def _traps(node: ir.Node, inputs: Sequence[Array | None]) -> bool:
    """Whether an integer division would raise a signal: x / 0, and the lowest number / -1."""
    if node.op_type not in ("Div", "Mod") or len(inputs) < 2 or inputs[1] is None or inputs[1].dtype.kind not in "iu":
        return False
    if np.any(inputs[1] == 0):
        return True
    lowest = inputs[0] is None or np.any(inputs[0] == np.iinfo(inputs[0].dtype).min)
    return inputs[1].dtype.kind == "i" and bool(lowest and np.any(inputs[1] == -1))


def _proto(node: ir.Node, inputs: Sequence[Array | None], opset: int, *, inline: bool) -> onnx.ModelProto:
    """A model that is just `node`, its inputs named i0, i1, ...; small ones inline as initializers."""
    proto = onnx.NodeProto(op_type=node.op_type, name="n")
    proto.input.extend("" if array is None else f"i{index}" for index, array in enumerate(inputs))
    proto.output.extend(f"o{index}" if value.name else "" for index, value in enumerate(node.outputs))
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    graph = onnx.GraphProto(name="g", node=[proto])
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output if name)
    for index, array in enumerate(inputs):
        if array is None:
            continue
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if inline and array.size <= _INLINE_ELEMENTS:
            graph.initializer.append(onnx.numpy_helper.from_array(array, f"i{index}"))
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(f"i{index}", kind, array.shape))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def _infer(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[tuple[tuple[int, ...], int]]:
    """(shape, bytes per element) of every output, inferred from the node and its inputs alone."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_proto(node, inputs, opset, inline=True))
    except Exception as error:
        raise NotEvaluated(f"its output size cannot be inferred: {first_line(error)}") from error
    found = []
    for value in inferred.graph.output:
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        if not tensor.HasField("shape") or min(dims, default=0) < 0 or tensor.elem_type == 0:
            raise NotEvaluated("its output size is not known beforehand")
        found.append((tuple(dims), max(1, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)))
    return found


def _run(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array | None]:
    feed = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
    try:
        model = _proto(node, inputs, opset, inline=False).SerializeToString()
        session = open_session(model, SessionOptions(optimization="none"))
        outputs = session.get_outputs()
        if any(output.type.startswith("tensor(float8") for output in outputs):  # they come back as bare bytes
            raise NotEvaluated("the element type of its result is not evaluated")
        names = [output.name for output in outputs]
        results = dict(zip(names, session.run(names, feed), strict=True))
    except NotEvaluated:
        raise
    except JoulecError as error:
        raise NotEvaluated(str(error)) from error
    except Exception as error:
        raise NotEvaluated(f"evaluating it failed: {first_line(error)}") from error
    if any(not isinstance(r, np.ndarray) or r.dtype.kind not in _KINDS for r in results.values()):
        raise NotEvaluated("the element type of its result is not evaluated")
    return [results.get(f"o{index}") if value.name else None for index, value in enumerate(node.outputs)]


# -- layout operators and integer arithmetic, done in numpy: the same bits, without a session for each -------------


def _directly(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    """The result of operators that only move elements, or that add and multiply a few integers; None for others."""
    handler = _DIRECT.get(node.op_type)
    first = inputs[0] if inputs else None
    if handler is None or first is None or len(node.outputs) != 1:
        return None
    try:
        return handler(node, inputs, opset)
    except (LookupError, ValueError, TypeError, IndexError, OverflowError):
        return None  # malformed or unusual: the general path decides


_MOVES_PER_WORK = 8
"""Elements that numpy moves in the time of one operation of a kernel, so that large weights can still be laid out."""


def _move_bound(node: ir.Node, inputs: Sequence[Array | None]) -> Bound | None:
    """The exact cost of an operator that only moves elements in numpy; None where `bound` must say it."""
    first = inputs[0] if inputs else None
    if first is None or (node.op_type not in RELAYOUT and node.op_type not in ("Gather", "Concat")):
        return None
    elements = first.size
    if node.op_type == "Concat":
        elements = _read(inputs)
    if node.op_type == "Gather":
        if len(inputs) < 2 or inputs[1] is None or max(first.size, inputs[1].size) > _INLINE_ELEMENTS or not first.ndim:
            return None
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        elements = inputs[1].size * (first.size // max(1, first.shape[axis % first.ndim]))
    moved = 1 if node.op_type in RELAYOUT and node.op_type != "Transpose" else elements // _MOVES_PER_WORK + 1
    return Bound(elements * first.itemsize, moved)


def _transpose(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array:
    perm = node.attributes.get("perm")
    moved = np.transpose(inputs[0], None if perm is None else list(perm.as_ints()))
    return np.ascontiguousarray(moved).reshape(moved.shape)  # numpy makes scalars vectors there


def _reshape(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array | None:
    allow = node.attributes.get("allowzero")
    if len(inputs) < 2 or (allow is not None and allow.as_int()):
        return None
    shape = [inputs[0].shape[i] if dim == 0 else int(dim) for i, dim in enumerate(inputs[1])]
    return np.asarray(np.reshape(inputs[0], shape))


def _axes(node: ir.Node, inputs: Sequence[Any]) -> tuple[int, ...] | None:
    if (attribute := node.attributes.get("axes")) is not None:
        return tuple(attribute.as_ints())
    return None if len(inputs) < 2 or inputs[1] is None else tuple(int(axis) for axis in inputs[1])


def _squeeze(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array:
    return np.asarray(np.squeeze(inputs[0], _axes(node, inputs)))


def _unsqueeze(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], axes)


def _flatten(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = inputs[0].shape
    axis = axis + len(shape) if axis < 0 else axis
    return np.reshape(inputs[0], (math.prod(shape[:axis]), -1 if inputs[0].size else math.prod(shape[axis:])))


def _gather(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array | None:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    data, indices = inputs[0], inputs[1]
    if indices.size > _INLINE_ELEMENTS or data.size > _INLINE_ELEMENTS:
        return None
    return np.asarray(np.take(data, indices, axis, mode="raise"))


def _concat(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array | None:
    if any(a is None or a.dtype != inputs[0].dtype for a in inputs) or _read(inputs) > _INLINE_ELEMENTS:
        return None
    return np.concatenate(inputs, node.attributes["axis"].as_int())


def _integer(operation: Callable[[Any, Any], Any]) -> Callable[[ir.Node, Sequence[Any], int], Array | None]:
    def apply(node: ir.Node, inputs: Sequence[Any], opset: int) -> Array | None:
        one, other = inputs
        if one.dtype != np.int64 or other.dtype != np.int64 or max(one.size, other.size) > 64:
            return None
        return np.asarray(operation(one, other), np.int64)

    return apply


_DIRECT: dict[str, Callable[[ir.Node, Sequence[Any], int], Array | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Identity": lambda node, inputs, opset: inputs[0],
    "Gather": _gather,
    "Concat": _concat,
    "Add": _integer(np.add),
    "Sub": _integer(np.subtract),
    "Mul": _integer(np.multiply),
}

RELAYOUT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators that only lay the same elements out anew: what they do to a weight they do to its mask."""


def relayout(node: ir.Node, mask: Array, inputs: Sequence[Array | None], opset: int) -> Array | None:
    """What a `RELAYOUT` operator does to a mask, or None if it is not one."""
    return _directly(node, [mask, *inputs[1:]], opset) if node.op_type in RELAYOUT else None
