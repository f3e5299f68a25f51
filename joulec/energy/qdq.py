"""Q/DQ patterns that run as integer kernels, per target.

On CPU an operator becomes its integer form when DequantizeLinear stands before its operands and QuantizeLinear behind
its result (a MatMul or Gemm may also end in float). TensorRT asks for the inputs only, and computes what follows a
convolution or a product element by element in the same kernel: activations, the sum with a residual, QuantizeLinear
("layer fusion" and "Q/DQ placement recommendations" in NVIDIA's documentation of TensorRT). CUDA has no such kernels:
there the operator runs in float, and Q and DQ are kernels of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.energy.fusions import Chain, other_operand
from joulec.energy.fusions_matmul import bias_add
from joulec.energy.kernel import Kernel, Plan
from joulec.ir.values import constant, constant_tensor, input_at, rank
from joulec.ir.walk import MICROSOFT_DOMAIN, is_onnx

COMPUTE = ("Conv", "MatMul", "Gemm")
QLINEAR = {
    "Add": "QLinearAdd", "Mul": "QLinearMul", "AveragePool": "QLinearAveragePool", "Where": "QLinearWhere",
    "GlobalAveragePool": "QLinearGlobalAveragePool", "Sigmoid": "QLinearSigmoid", "LeakyRelu": "QLinearLeakyRelu",
    "Softmax": "QLinearSoftmax", "Concat": "QLinearConcat",
}  # fmt: skip
CARRY = (
    "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice", "Resize", "Expand", "Tile",
    "DepthToSpace", "Split",
)  # fmt: skip
"""Operators that pass 8-bit numbers through unchanged."""
ACTIVATIONS = (
    "Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh",
)  # fmt: skip
"""Activations that TensorRT computes in the kernel of what is in front of them."""

_EIGHT_BIT = (ir.DataType.INT8, ir.DataType.UINT8)
_INT_RANGE = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}


def integer_kernel(plan: Plan, node: ir.Node, target: str) -> bool:
    """Make `node` an integer kernel where its surroundings are the pattern for it; says whether it did."""
    if target == "cuda" or not is_onnx(node):
        return False
    if node.op_type in COMPUTE:
        return _contraction(plan, node, on_cpu=target == "cpu")
    if node.op_type in QLINEAR or node.op_type in CARRY:
        return _elementwise(plan, node)
    return _redundant_clip(plan, node) if node.op_type in ("Relu", "Clip") else False


# -- contractions -------------------------------------------------------------------------------------------


def _contraction(plan: Plan, head: ir.Node, on_cpu: bool) -> bool:
    operands = [_dequantized(plan, input_at(head, i)) for i in (0, 1)]
    if any(dq is None for dq in operands):
        return False
    chain = Chain(head, head.outputs[0])
    bias = bias_add(plan, head) if head.op_type == "MatMul" else None
    if bias is not None:
        chain.take(bias[0], counts=False, reads=bias[1])
    if not on_cpu:
        _take_epilogue(plan, chain)
    clip, quantize = _quantized_result(plan, chain.value)
    if quantize is None and on_cpu and not _float_result(plan, head, bias is not None):
        return False
    for node in (*clip, quantize) if quantize is not None else ():
        chain.take(node, counts=False)
    reads = [dq.inputs[0] for dq in operands if dq is not None]
    reads += [*(_bias_source(plan, v) for v in head.inputs[2:]), *chain.extra]
    plan.kernels[head] = Kernel(
        _contraction_name(head, quantize is not None, bias is not None), tuple(reads), (chain.value,),
        compute="int8", epilogue=tuple(chain.epilogue), requantizes=True,
    )  # fmt: skip
    plan.integer.update((head, *chain.epilogue))
    plan.absorb(chain.absorbed, head)
    return True


def _take_epilogue(plan: Plan, chain: Chain) -> None:
    """What TensorRT computes in the kernel of a chain: activations, and one sum, whose other operand is read too."""
    while (node := plan.follower(chain.value)) is not None and is_onnx(node, *ACTIVATIONS, "Add"):
        if node.op_type != "Add":
            chain.take(node)
            continue
        other = other_operand(plan, node, chain.value)
        summed = any(one.op_type == "Add" for one in chain.epilogue)
        if other is None or summed or not _adds_alike(node, other, chain.value):
            return
        dequantize = _dequantized(plan, other)
        chain.take(node, reads=other if dequantize is None else dequantize.inputs[0])


def _adds_alike(add: ir.Node, other: ir.Value, value: ir.Value) -> bool:
    """Whether two values of one shape are added, which is known."""
    return other.shape is not None and other.shape == add.outputs[0].shape == value.shape


def _contraction_name(head: ir.Node, quantized: bool, biased: bool) -> str:
    if head.op_type == "Conv":
        return "QLinearConv"
    if head.op_type == "Gemm" or biased:
        return "QGemm"
    return "QLinearMatMul" if quantized else "MatMulIntegerToFloat"


def _float_result(plan: Plan, head: ir.Node, biased: bool) -> bool:
    """Whether the CPU provider has an integer kernel with a float result: MatMul, and Gemm without a float bias."""
    if head.op_type == "MatMul":
        return not biased
    bias = input_at(head, 2)
    return head.op_type == "Gemm" and (bias is None or is_dequantize(plan.producer(bias)))


def _bias_source(plan: Plan, value: ir.Value | None) -> ir.Value | None:
    node = plan.producer(value)
    return node.inputs[0] if node is not None and is_dequantize(node) else plan.origin(value)


# -- elementwise --------------------------------------------------------------------------------------------


def _elementwise(plan: Plan, node: ir.Node) -> bool:
    data = _data_inputs(node)
    operands = [_dequantized(plan, value) for value in data]
    if not operands or any(dq is None for dq in operands) or len(node.outputs) != 1:
        return False
    clip, quantize = _quantized_result(plan, node.outputs[0])
    if quantize is None or clip:
        return False
    swap = {id(v): dq.inputs[0] for v, dq in zip(data, operands, strict=True) if dq is not None}
    reads = tuple(swap.get(id(v), plan.origin(v)) for v in node.inputs)
    name = QLINEAR.get(node.op_type, node.op_type)
    formula = (MICROSOFT_DOMAIN, name) if node.op_type in QLINEAR else None
    plan.kernels[node] = Kernel(name, reads, (quantize.outputs[0],), compute="int8", formula=formula)
    plan.integer.add(node)
    plan.absorb([quantize], node)
    return True


def _data_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs that are quantized: all for Add, Mul and Concat, not the condition of Where, else the first."""
    if node.op_type in ("Add", "Mul", "Concat"):
        return node.inputs
    return node.inputs[1:3] if node.op_type == "Where" else node.inputs[:1]


def _redundant_clip(plan: Plan, node: ir.Node) -> bool:
    """Relu -> Q, or Clip -> Q, that the quantizer's own range already does: nothing runs."""
    quantize = plan.follower(node.outputs[0])
    if not is_quantize(quantize) or quantize is None:
        return False
    if not absorbs(plan, node, quantize):
        return False
    integers = _dequantized(plan, node.inputs[0]) is not None
    plan.bypass(node, "removed: the quantizer's range does it")
    if integers:
        _merge_pairs(plan, quantize)
    return True


# -- Q and DQ -----------------------------------------------------------------------------------------------


def is_quantize(node: ir.Node | None) -> bool:
    """Whether `node` is a QuantizeLinear."""
    return node is not None and node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx", MICROSOFT_DOMAIN)


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether `node` is a DequantizeLinear."""
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx", MICROSOFT_DOMAIN)


def _dequantized(plan: Plan, value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of 8-bit numbers with constant scale that makes `value`."""
    node = plan.producer(value)
    if node is None or not is_dequantize(node) or input_at(node, 1) not in plan.constants:
        return None
    source = input_at(node, 0)
    tensor = constant_tensor(source)
    dtype = tensor.dtype if tensor is not None else source.dtype if source is not None else None
    return node if dtype in _EIGHT_BIT or dtype is None else None


def _quantized_result(plan: Plan, value: ir.Value) -> tuple[list[ir.Node], ir.Node | None]:
    """The 8-bit QuantizeLinear that alone uses `value`, and a Relu or Clip before it that its range already does."""
    node = plan.follower(value)
    if node is None:
        return [], None
    if is_quantize(node):
        return [], node if _is_eight_bit(node) else None
    if not is_onnx(node, "Relu", "Clip"):
        return [], None
    behind = plan.follower(node.outputs[0])
    if behind is None or not is_quantize(behind) or not _is_eight_bit(behind) or not absorbs(plan, node, behind):
        return [], None
    return [node], behind


def _is_eight_bit(quantize: ir.Node) -> bool:
    return _output_dtype(quantize) in _EIGHT_BIT and input_at(quantize, 0) is not None


def _output_dtype(quantize: ir.Node) -> ir.DataType | None:
    zero = constant_tensor(input_at(quantize, 2))
    if zero is not None:
        return zero.dtype
    return quantize.outputs[0].dtype or (ir.DataType.UINT8 if input_at(quantize, 2) is None else None)


def absorbs(plan: Plan, clip: ir.Node, quantize: ir.Node) -> bool:
    """Whether `quantize` saturates to within the bounds of the Relu or Clip before it, so that it adds nothing."""
    scale, zero = constant(input_at(quantize, 1)), constant(input_at(quantize, 2))
    limits = _INT_RANGE.get(_output_dtype(quantize) or ir.DataType.UNDEFINED)
    if scale is None or scale.size != 1 or limits is None or (zero is not None and zero.size != 1):
        return False
    step, offset = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) if zero is not None else 0
    low, high = _bounds(clip)
    slack = 1e-3 * step
    return low <= (limits[0] - offset) * step + slack and high >= (limits[1] - offset) * step - slack


def _bounds(clip: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip lets through; an impossible interval where the bounds are not constant."""
    if clip.op_type == "Relu":
        return 0.0, math.inf
    low = _bound(clip, 1, "min", -math.inf)
    high = _bound(clip, 2, "max", math.inf)
    return (math.inf, -math.inf) if low is None or high is None else (low, high)


def _bound(clip: ir.Node, index: int, name: str, default: float) -> float | None:
    value = input_at(clip, index)
    if value is None:
        found = clip.attributes.get(name)
        return default if found is None else None if found.is_ref() else float(found.value)
    number = constant(value)
    return float(np.reshape(number, -1)[0]) if number is not None and number.size == 1 else None


def settle_pairs(plan: Plan, graph: ir.Graph) -> None:
    """DQ -> Q in the middle of Q -> DQ -> Q -> DQ vanishes: the runtime merges the two pairs."""
    for node in graph:
        if node not in plan.kernels and is_quantize(node):
            _merge_pairs(plan, node)


def _merge_pairs(plan: Plan, quantize: ir.Node) -> None:
    before = plan.producer(quantize.inputs[0])
    if before is None or not is_dequantize(before) or not is_quantize(plan.producer(before.inputs[0])):
        return
    plan.bypass(quantize, "merged with the pair before it")
    if len(before.outputs[0].uses()) == 1 and not before.outputs[0].is_graph_output():
        plan.bypass(before, "merged with the pair behind it")


def settle_dequantize(plan: Plan, node: ir.Node) -> bool:
    """A DequantizeLinear whose every user is an integer kernel costs nothing."""
    users = _users(plan, node.outputs[0])
    if not users or not all(user in plan.integer for user in users):
        return False
    plan.kernels[node] = Kernel(f"fused into {users[0].op_type} '{users[0].name}'", runs=False)
    return True


def _users(plan: Plan, value: ir.Value) -> list[ir.Node]:
    """The nodes that use `value`, through eliminated ones; none where a graph output shows it."""
    users: list[ir.Node] = []
    open_values = [value]
    while open_values:
        current = open_values.pop()
        if current.is_graph_output():
            return []
        for usage in current.uses():
            if usage.node in plan.bypassed:
                open_values.append(usage.node.outputs[0])
            else:
                users.append(usage.node)
    return users


def weight_only(plan: Plan, node: ir.Node) -> bool:
    """MatMul by a dequantized constant matrix with a scale per column runs as MatMulNBits, the unpacking inside."""
    unpack = plan.producer(input_at(node, 1))
    if unpack is None or not is_dequantize(unpack) or unpack.inputs[0] not in plan.constants or node in plan.integer:
        return False
    axis = unpack.attributes.get("axis")
    single = len(unpack.outputs[0].uses()) == 1 and not unpack.outputs[0].is_graph_output()
    if not single or rank(unpack.inputs[0]) != 2 or axis is None or axis.is_ref() or axis.value not in (1, -1):
        return False
    reads = (plan.origin(node.inputs[0]), unpack.inputs[0], unpack.inputs[1])
    plan.kernels[node] = Kernel("MatMulNBits", reads, (node.outputs[0],), epilogue=(unpack,))
    plan.absorb([unpack], node)
    return True
