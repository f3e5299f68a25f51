"""Reading Q/DQ out of a graph, whoever put it there: parameters, pairs, constants, and the operators around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})
"""What TensorRT computes together with the convolution before it."""

MOVES = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Identity", "Split"}
)
"""Operators that hand integers on as they are; their first input is the data."""

TAKES_INTEGERS = COMPUTE | MOVES | {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Resize"}
"""Operators that profit where what they read was quantized."""

EIGHT_BITS = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}


@dataclass(frozen=True)
class Scale:
    """Scale and zero-point of one Q or DQ node.

    Attributes:
        scale: float64, a scalar or one number a channel.
        zero_point: int64, of the same shape.
        dtype: of the integers.
        axis: that the channels run along, counted from the front, None for one scale in all.
        stored: the element type of the scale in the file.
    """

    scale: Array
    zero_point: Array
    dtype: ir.DataType
    axis: int | None
    stored: np.dtype[np.generic]

    @property
    def symmetric(self) -> bool:
        """Signed eight bits around zero, the only form that TensorRT takes."""
        return self.dtype == ir.DataType.INT8 and not np.any(self.zero_point)

    @property
    def low(self) -> float:
        """The smallest number that the integers stand for, over all channels."""
        first = EIGHT_BITS.get(self.dtype, (0, 0))[0]
        return float(np.min((first - self.zero_point) * self.scale))

    @property
    def reach(self) -> Array:
        """The largest magnitude that the integers stand for, of the scale's shape."""
        first, last = EIGHT_BITS.get(self.dtype, (0, 0))
        if self.symmetric:
            return np.asarray(self.scale * 127)
        return np.asarray(np.maximum(np.abs(first - self.zero_point), np.abs(last - self.zero_point)) * self.scale)


def is_quantize(node: ir.Node | None) -> bool:
    """A QuantizeLinear of ONNX's own domain or of Microsoft's."""
    return node is not None and node.op_type == QUANTIZE and _known(node)


def is_dequantize(node: ir.Node | None) -> bool:
    """The same for DequantizeLinear."""
    return node is not None and node.op_type == DEQUANTIZE and _known(node)


def _known(node: ir.Node) -> bool:
    return node.domain in (*walk.ONNX_DOMAINS, walk.MICROSOFT_DOMAIN) and len(node.inputs) >= 2


def nodes_of(module: Module) -> Iterator[ir.Node]:
    """The nodes of the main graph: what is inside subgraphs and functions is left alone."""
    yield from list(module.graph)


def scale_of(node: ir.Node) -> Scale | None:
    """The parameters of a Q or DQ node; None where they are not constant, not finite and positive, or in blocks."""
    if attribute(node, "block_size", 0):
        return None
    scale, dtype = constant(node.inputs[1]), integer_type(node)
    if scale is None or dtype is None or scale.ndim > 1 or not _is_float(scale):
        return None
    numbers = scale.astype(np.float64)
    if numbers.size == 0 or not np.all(np.isfinite(numbers)) or np.any(numbers <= 0):
        return None
    given = input_at(node, 2)
    stored = constant(given)
    if given is not None and stored is None:
        return None
    zero = np.zeros(scale.shape, np.int64) if stored is None else stored.astype(np.int64)
    if zero.size not in (1, scale.size):
        return None
    flat: tuple[int, ...] = () if scale.size == 1 else (scale.size,)
    zeros = np.broadcast_to(zero.reshape(() if zero.size == 1 else -1), flat)
    return Scale(numbers.reshape(flat), zeros, dtype, _axis(node) if flat else None, scale.dtype)


def _is_float(scale: Array) -> bool:
    return scale.dtype in (np.float32, np.float16)


def _axis(node: ir.Node) -> int | None:
    axis = int(attribute(node, "axis", 1))
    rank = None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
    return axis if axis >= 0 else None if rank is None else axis + rank


def integer_type(node: ir.Node) -> ir.DataType | None:
    """The element type of the integers of a Q or DQ node."""
    zero = input_at(node, 2)
    if zero is not None and zero.dtype is not None:
        return ir.DataType(zero.dtype)
    if is_quantize(node):
        given = attribute(node, "output_dtype", 0)
        return ir.DataType(given) if given else ir.DataType.UINT8
    data = node.inputs[0]
    if data is None:
        return None
    return data.dtype if data.dtype is not None else _made_type(data)


def _made_type(value: ir.Value) -> ir.DataType | None:
    producer = value.producer()
    return integer_type(producer) if producer is not None and is_quantize(producer) else None


def dequantized(node: ir.Node, found: Scale) -> Array | None:
    """The numbers that a DQ of a constant stands for, float64; None where its input is not constant."""
    stored = constant(node.inputs[0])
    if stored is None:
        return None
    scale, zero = (spread(a, stored.ndim, found.axis) for a in (found.scale, found.zero_point))
    if scale is None or zero is None or (found.axis is not None and stored.shape[found.axis] != found.scale.size):
        return None
    result: Array = (stored.astype(np.int64) - zero) * scale
    return result


def spread(numbers: Array, rank: int, axis: int | None) -> Array | None:
    """Numbers of channels, shaped to broadcast along `axis` of a tensor; None where it has no such axis."""
    if axis is None:
        return numbers
    if not 0 <= axis < rank:
        return None
    return numbers.reshape([-1 if i == axis else 1 for i in range(rank)])


def quantized_input(node: ir.Node, index: int) -> ir.Node | None:
    """The DQ that makes input `index` of `node`, if it is one."""
    value = input_at(node, index)
    producer = None if value is None else value.producer()
    return producer if producer is not None and is_dequantize(producer) else None


def pair_before(node: ir.Node, index: int) -> tuple[ir.Node, ir.Node] | None:
    """The Q and DQ that an activation passes before input `index` of `node`, if it does."""
    dequantize = quantized_input(node, index)
    if dequantize is None or dequantize.inputs[0] is None:
        return None
    quantize = dequantize.inputs[0].producer()
    return (quantize, dequantize) if quantize is not None and is_quantize(quantize) else None


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, each once, in a stable order."""
    return list({id(use.node): use.node for use in value.uses()}.values())


def computes(node: ir.Node | None) -> bool:
    """Conv, ConvTranspose, Gemm or MatMul."""
    return node is not None and walk.is_onnx(node, *sorted(COMPUTE))


def weight_numbers(node: ir.Node) -> tuple[int, ...] | None:
    """The shape of the weight of a computing node, quantized or not; None where it is not constant."""
    value = input_at(node, 1)
    for _ in range(2):  # behind DQ, and behind Q where a tool quantizes weights in the graph
        producer = None if value is None else value.producer()
        if producer is None or not (is_dequantize(producer) or is_quantize(producer)):
            break
        value = producer.inputs[0]
    found = constant_tensor(value)
    return None if found is None else tuple(int(size) for size in found.shape.numpy())


def weight_axis(node: ir.Node) -> int | None:
    """The axis of the weight that runs along output channels (TensorRT: 0 for Conv, 1 for ConvTranspose)."""
    shape = weight_numbers(node)
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if attribute(node, "transB", 0) else 1
        case _:
            return None if shape is None or len(shape) < 2 else len(shape) - 1


NARROW = 16
"""Channels below which TensorRT has no fast integer convolution, and ModelOpt leaves it in float."""


def exempt(node: ir.Node) -> str | None:
    """Why a computing node is better left in float on TensorRT, or None."""
    shape = weight_numbers(node)
    if shape is None or len(shape) < 2:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        group = int(attribute(node, "group", 1))
        one, other = shape[0], shape[1] * group
        return f"a convolution from {other} to {one} channels" if min(one, other) < NARROW else None
    columns = shape[weight_axis(node) or 0]
    rows = _rows(node)
    return "a product of a matrix and a vector" if columns == 1 or rows == 1 else None


def _rows(node: ir.Node) -> int | None:
    """Rows of the left operand of a matrix product, leading dimensions counted in; None where unknown."""
    value = node.inputs[0]
    if value is None or value.shape is None or (node.op_type == "Gemm" and attribute(node, "transA", 0)):
        return None
    rows = 1
    for dim in list(value.shape)[:-1]:
        if not isinstance(dim, int):
            return None
        rows *= dim
    return rows
