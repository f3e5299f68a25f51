"""From integer operators to Q/DQ: QLinearConv and its kin become the float operator between DequantizeLinear and
QuantizeLinear, with the same scales; dynamic quantization, which has no scale before a run, becomes float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, attribute, constant, input_at, rank
from joulec.passes._qdq_graph import MOVES, is_quantize, scale_of
from joulec.passes._spelled import producer

DYNAMIC = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})
MICROSOFT = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "MatMulIntegerToFloat")


@dataclass(frozen=True)
class _Form:
    """Where a QLinear operator of Microsoft's keeps its operands: (data, scale, zero-point) places, result, rest."""

    op_type: str
    operands: tuple[tuple[int, int, int], ...]
    result: tuple[int, int]
    keeps: tuple[str, ...] = ()


_UNARY = ((0, 1, 2),), (3, 4)
_BINARY = ((0, 1, 2), (3, 4, 5)), (6, 7)
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

FORMS: Mapping[str, _Form] = {
    "QLinearAdd": _Form("Add", *_BINARY),
    "QLinearMul": _Form("Mul", *_BINARY),
    "QLinearSigmoid": _Form("Sigmoid", *_UNARY),
    "QLinearLeakyRelu": _Form("LeakyRelu", *_UNARY, ("alpha",)),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", *_UNARY),
    "QLinearAveragePool": _Form("AveragePool", *_UNARY, _POOL),
    "QLinearSoftmax": _Form("Softmax", *_UNARY, ("axis",)),
}


def is_integer_operator(node: ir.Node) -> bool:
    """An operator that computes on integers and is neither Q nor DQ."""
    if node.domain == walk.MICROSOFT_DOMAIN:
        return node.op_type.startswith(MICROSOFT)
    return node.domain in walk.ONNX_DOMAINS and node.op_type in DYNAMIC | {"QLinearConv", "QLinearMatMul"}


def expand(rewriter: Rewriter, node: ir.Node) -> None:
    """Replace one integer operator. A `Refused` says why it stays.

    Raises:
        Refused: before anything is changed.
    """
    found = _MAKERS.get(node.op_type)
    if found is not None:
        found(rewriter, node)
    elif node.domain == walk.MICROSOFT_DOMAIN and node.op_type in FORMS:
        _form(rewriter, node, FORMS[node.op_type])
    elif node.domain == walk.MICROSOFT_DOMAIN and node.op_type == "QLinearConcat":
        _concat(rewriter, node)
    else:
        raise Refused(f"nothing is known to put in the place of {node.op_type}")


def _dequantize(
    rewriter: Rewriter, node: ir.Node, data: int, scale: int, zero: int, axis: int | None = None
) -> ir.Value:
    parts: list[ir.Value | None] = [input_at(node, index) for index in (data, scale, zero)]
    given = {} if axis is None else {"axis": axis}
    inputs = parts if parts[2] is not None else parts[:2]
    (value,) = rewriter.add("DequantizeLinear", inputs, given, before=node, name=f"{node.name}_input{data}")
    value.dtype = ir.DataType.FLOAT
    value.shape = None if parts[0] is None else parts[0].shape
    return value


def _settle(rewriter: Rewriter, node: ir.Node, made: ir.Value, scale: int, zero: int) -> None:
    """Quantize `made` with the operator's own result parameters, and put that in the operator's place."""
    old = node.outputs[0]
    made.dtype, made.shape = ir.DataType.FLOAT, old.shape
    parts = [input_at(node, index) for index in (scale, zero)]
    maker = made.producer()
    inputs = [made, *(part for part in parts if part is not None)]
    (integers,) = rewriter.add("QuantizeLinear", inputs, after=maker, name=f"{node.name}_result", like=old)
    rewriter.replace(old, integers)
    rewriter.erase(node)


def _channel_axis(node: ir.Node, scale: int, axis: int) -> int | None:
    tensor = constant(input_at(node, scale))
    return axis if tensor is not None and tensor.size > 1 else None


def _attributes(node: ir.Node, names: tuple[str, ...] | None = None) -> dict[str, ir.Attr]:
    return {name: value for name, value in node.attributes.items() if names is None or name in names}


def _conv(rewriter: Rewriter, node: ir.Node) -> None:
    bias = _float_bias(node, 8, (1, 4))
    axis = _channel_axis(node, 4, 0)
    inputs = [_dequantize(rewriter, node, 0, 1, 2), _dequantize(rewriter, node, 3, 4, 5, axis)]
    if bias is not None:
        inputs.append(rewriter.constant(bias, f"{node.name}_bias", at=node))
    (made,) = rewriter.add("Conv", inputs, _attributes(node), before=node, name=f"{node.name}_conv")
    _settle(rewriter, node, made, 6, 7)


def _float_bias(node: ir.Node, index: int, scales: tuple[int, int], factor: float = 1.0) -> Array | None:
    """An int32 bias as float32: it counts in steps of scale x times scale w."""
    value = input_at(node, index)
    if value is None:
        return None
    stored = constant(value)
    steps = [constant(input_at(node, place)) for place in scales]
    if stored is None or steps[0] is None or steps[1] is None:
        raise Refused("its bias or scales are not constant")
    size = np.asarray(steps[0].astype(np.float64).reshape(-1) * steps[1].astype(np.float64).reshape(-1) * factor)
    return np.asarray(stored.astype(np.float64) * (size if size.size > 1 else size[0]), np.float32)


def _matmul(rewriter: Rewriter, node: ir.Node) -> None:
    if _channel_axis(node, 1, 0) is not None:
        raise Refused("the left operand has a scale for each row")
    dims = rank(node.inputs[3])
    axis = _channel_axis(node, 4, (dims or 2) - 1)
    if axis is not None and dims is None:
        raise Refused("the rank of its right operand is not known")
    inputs = [_dequantize(rewriter, node, 0, 1, 2), _dequantize(rewriter, node, 3, 4, 5, axis)]
    (made,) = rewriter.add("MatMul", inputs, before=node, name=f"{node.name}_matmul")
    _settle(rewriter, node, made, 6, 7)


def _gemm(rewriter: Rewriter, node: ir.Node) -> None:
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
        raise Refused("transA or alpha is set")
    axis = _channel_axis(node, 4, 0 if attribute(node, "transB", 0) else 1)
    bias = _float_bias(node, 6, (1, 4))
    inputs = [_dequantize(rewriter, node, 0, 1, 2), _dequantize(rewriter, node, 3, 4, 5, axis)]
    if bias is not None:
        inputs.append(rewriter.constant(bias, f"{node.name}_bias", at=node))
    (made,) = rewriter.add("Gemm", inputs, _attributes(node, ("transB",)), before=node, name=f"{node.name}_gemm")
    if input_at(node, 7) is not None:
        _settle(rewriter, node, made, 7, 8)
        return
    made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
    rewriter.replace(node.outputs[0], made)
    rewriter.erase(node)


def _form(rewriter: Rewriter, node: ir.Node, form: _Form) -> None:
    if attribute(node, "channels_last", 0):
        raise Refused("it computes on channels last")
    if form.op_type == "Softmax" and attribute(node, "opset", 13) < 13 and not _is_last(node):
        raise Refused("it flattens its input, as Softmax did before opset 13")
    inputs = [_dequantize(rewriter, node, *places) for places in form.operands]
    (made,) = rewriter.add(
        form.op_type, inputs, _attributes(node, form.keeps), before=node, name=f"{node.name}_{form.op_type.lower()}"
    )
    _settle(rewriter, node, made, *form.result)


def _is_last(node: ir.Node) -> bool:
    dims, axis = rank(node.inputs[0]), int(attribute(node, "axis", -1))
    return axis == -1 or (dims is not None and axis == dims - 1)


def _concat(rewriter: Rewriter, node: ir.Node) -> None:
    count = (len(node.inputs) - 2) // 3
    inputs = [_dequantize(rewriter, node, *range(2 + 3 * i, 5 + 3 * i)) for i in range(count)]
    (made,) = rewriter.add("Concat", inputs, _attributes(node, ("axis",)), before=node, name=f"{node.name}_concat")
    _settle(rewriter, node, made, 0, 1)


# -- dynamic quantization -------------------------------------------------------------------------------------------


def _dynamic(rewriter: Rewriter, node: ir.Node) -> None:
    """Mul(Cast(MatMulInteger(q, w)), scale x * scale w), q = DynamicQuantizeLinear(x)  ->  MatMul(x, w) in float.

    So is w, where it is quantized in the graph too: a weight of ONNX Runtime's convolutions, or an activation.
    """
    source, right = (producer(input_at(node, index), "DynamicQuantizeLinear") for index in (0, 1))
    if source is None or source.inputs[0] is None:
        raise Refused("its input is not quantized in the graph")
    scaled, scale, bias = _scaled(node, source)
    if right is not None and scale is right.outputs[1] and right.inputs[0] is not None:
        weight = right.inputs[0]
    else:
        numbers = _weight(node, np.ones((), np.float32) if scale is None else _constant_scale(scale))
        weight = rewriter.constant(numbers, f"{node.name}_weight", at=node)
    op_type = "MatMul" if node.op_type == "MatMulInteger" else "Conv"
    (made,) = rewriter.add(
        op_type, [source.inputs[0], weight], _attributes(node), before=node, name=f"{node.name}_{op_type.lower()}",
        like=scaled,
    )  # fmt: skip
    if bias is not None:
        made = _biased(rewriter, node, made, *bias)
    rewriter.replace(scaled, made)


def _biased(rewriter: Rewriter, node: ir.Node, made: ir.Value, value: ir.Value, shape: ir.Value | None) -> ir.Value:
    if shape is not None:
        (value,) = rewriter.add("Reshape", [value, shape], before=node, name=f"{node.name}_bias")
        value.dtype = ir.DataType.FLOAT
    (total,) = rewriter.add("Add", [made, value], before=node, name=f"{node.name}_biased", like=made)
    return total


Bias = tuple[ir.Value, ir.Value | None]
"""A float bias, and the shape that it is brought into."""


def _bias(steps: ir.Value | None, scale: ir.Value) -> Bias:
    """The float behind Reshape(Cast(Floor(bias / scale))): older versions of ONNX Runtime round a bias at each run."""
    maker, shape = producer(steps, "Reshape"), None
    if maker is not None:
        steps, shape = maker.inputs[0], maker.inputs[1]
    rounded = producer(_input(producer(steps, "Cast")), "Floor")
    divided = producer(_input(rounded), "Div")
    if divided is None or divided.inputs[0] is None or divided.inputs[1] is None:
        raise Refused("what is added to its result is not a bias that is rounded in the graph")
    if _factors(divided.inputs[1]) != _factors(scale):
        raise Refused("its bias is rounded with another scale")
    return divided.inputs[0], shape


def _input(node: ir.Node | None) -> ir.Value | None:
    return None if node is None else node.inputs[0]


def _factors(value: ir.Value) -> set[ir.Value | None]:
    product = producer(value, "Mul")
    return {value} if product is None else set(product.inputs)


def _scaled(node: ir.Node, source: ir.Node) -> tuple[ir.Value, ir.Value | None, Bias | None]:
    """The float result behind the Cast and the Mul, the scale of the weight (None where that is 1), and a bias that was
    added in between.
    """
    added = _only(node.outputs[0], "Add")
    total = node.outputs[0] if added is None else added.outputs[0]
    cast = _only(total, "Cast")
    mul = None if cast is None else _only(cast.outputs[0], "Mul")
    if cast is None or mul is None:
        raise Refused("it is not followed by the Cast and the Mul that make its result float")
    other = mul.inputs[1] if mul.inputs[0] is cast.outputs[0] else mul.inputs[0]
    if other is None:
        raise Refused("its scale is not the product of the two scales")
    steps = None if added is None else added.inputs[1 - list(added.inputs).index(node.outputs[0])]
    bias = None if added is None else _bias(steps, other)
    if other is source.outputs[1]:
        return mul.outputs[0], None, bias
    product = producer(other, "Mul")
    if product is None or source.outputs[1] not in product.inputs:
        raise Refused("its scale is not the product of the two scales")
    scale = product.inputs[1] if product.inputs[0] is source.outputs[1] else product.inputs[0]
    return mul.outputs[0], scale, bias


def _constant_scale(scale: ir.Value) -> Array:
    step = constant(scale)
    if step is None:
        raise Refused("the scale of its weight is not constant")
    return step


# -- padding --------------------------------------------------------------------------------------------------------


def pads_integers(node: ir.Node) -> bool:
    """A Pad of integers that a QuantizeLinear made, behind operators that only move them."""
    return walk.is_onnx(node, "Pad") and _origin(node) is not None


def _origin(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0]
    while (mover := producer(value, *MOVES)) is not None:
        value = mover.inputs[0]
    maker = None if value is None else value.producer()
    return maker if maker is not None and is_quantize(maker) else None


def pad_floats(rewriter: Rewriter, node: ir.Node) -> None:
    """Pad(q, v)  ->  Q(Pad(DQ(q), (v - zero-point) * scale)): the same integers, and nothing computes on them."""
    quantize = _origin(node)
    found = None if quantize is None else scale_of(quantize)
    if quantize is None or found is None or found.axis is not None:
        raise Refused("it pads integers that have no one constant scale")
    value, filler = node.inputs[0], input_at(node, 2)
    number = np.zeros((), np.int64) if filler is None else constant(filler)
    if value is None or number is None or len(node.inputs) > 3:
        raise Refused("what it pads with is not constant, or it pads some axes only")
    parameters, kind = quantize.inputs[1:], ir.DataType.from_numpy(found.stored)
    (floats,) = rewriter.add("DequantizeLinear", [value, *parameters], before=node, name=f"{node.name}_input")
    floats.dtype, floats.shape = kind, value.shape
    fill = np.asarray((number.reshape(()).astype(np.int64) - found.zero_point) * found.scale, found.stored)
    padding = rewriter.constant(fill, f"{node.name}_value", at=node)
    inputs = [floats, node.inputs[1], padding]
    (made,) = rewriter.add("Pad", inputs, _attributes(node), before=node, name=f"{node.name}_floats")
    made.dtype, made.shape = kind, node.outputs[0].shape
    (integers,) = rewriter.add(
        "QuantizeLinear", [made, *parameters], before=node, name=f"{node.name}_result", like=node.outputs[0]
    )
    rewriter.replace(node.outputs[0], integers)
    rewriter.erase(node)


# -- pairs of ranges of the moment ----------------------------------------------------------------------------------


def is_dynamic_pair(node: ir.Node) -> bool:
    """A DQ of what DynamicQuantizeLinear makes, with its scale and zero-point: rounding, which nothing computes on."""
    makers = {None if value is None else value.producer() for value in node.inputs}
    maker = makers.pop() if len(makers) == 1 and walk.is_onnx(node, "DequantizeLinear") else None
    if maker is None or not walk.is_onnx(maker, "DynamicQuantizeLinear"):
        return False
    return list(node.inputs) == list(maker.outputs)


def _only(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or not walk.is_onnx(uses[0].node, op_type):
        return None
    return uses[0].node


def _weight(node: ir.Node, step: Array) -> Array:
    numbers, zero = constant(node.inputs[1]), input_at(node, 3)
    offset = np.zeros((), np.int64) if zero is None else constant(zero)
    if numbers is None or offset is None:
        raise Refused("its weight is not constant")
    if node.op_type == "ConvInteger":
        step, offset = (a.reshape(-1, *[1] * (numbers.ndim - 1)) if a.size > 1 else a for a in (step, offset))
    if any(a.size > 1 and a.shape[-1] not in (numbers.shape[-1], 1) for a in (step, offset)):
        raise Refused("the scale of its weight does not run along its columns")
    return np.asarray((numbers.astype(np.int64) - offset.astype(np.int64)) * step.astype(np.float64), np.float32)


_MAKERS: Mapping[str, Callable[[Rewriter, ir.Node], None]] = {
    "QLinearConv": _conv, "QLinearMatMul": _matmul, "QGemm": _gemm, "MatMulInteger": _dynamic, "ConvInteger": _dynamic,
}  # fmt: skip
