"""What numbers a module computes with, so that nothing is quantized twice."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module, tensors

Precision = Literal["float32", "float64", "float16", "bfloat16", "quantized", "other"]

_QUANTIZED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
        "MatMulInteger",
    }
)  # fmt: skip
_QUANTIZED_MICROSOFT = ("QLinear", "QGemm", "QAttention", "QMoE", "QOrdered", "MatMulNBits", "MatMulInteger", "Dynamic")
_FLOATS: dict[ir.DataType, Precision] = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
}


def precision_of(module: Module) -> Precision:
    """The precision of `module`: `quantized` if any node quantizes, else the narrowest float of weights and signature.

    A model without floats (strings, integers) is `other`. O(nodes + initializers); no numbers are read.
    """
    if any(_quantizes(node) for node in walk.nodes(module.model)):
        return "quantized"
    dtypes = {value.dtype for value in (*module.graph.inputs, *module.graph.outputs)}
    dtypes.update(tensor.dtype for tensor in tensors(module.model))
    dtypes.update(output.dtype for node in walk.nodes(module.model) for output in node.outputs)
    return next((name for dtype, name in _FLOATS.items() if dtype in dtypes), "other")


def _quantizes(node: ir.Node) -> bool:
    if node.domain == walk.MICROSOFT_DOMAIN:
        return node.op_type.startswith(_QUANTIZED_MICROSOFT) or node.op_type in _QUANTIZED
    return walk.is_onnx(node) and node.op_type in _QUANTIZED
