"""Whether a module may be quantized at all: one that is quantized, or computes in half precision, is left alone."""

from __future__ import annotations

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module

QUANTIZED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
        "MatMulInteger",
    }
)  # fmt: skip
QUANTIZED_MICROSOFT = ("QLinear", "QGemm", "QAttention", "QOrdered", "MatMulNBits", "MatMulInteger", "DynamicQuantize")
HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def not_quantizable(module: Module) -> str | None:
    """Why the module must not be quantized, or None. O(nodes)."""
    for node in walk.nodes(module.model):
        if walk.is_onnx(node, *QUANTIZED) or (
            node.domain == walk.MICROSOFT_DOMAIN and node.op_type.startswith(QUANTIZED_MICROSOFT)
        ):
            return f"the model is quantized already ({walk.label(node)}): never quantized twice"
        if any(value.dtype in HALF for value in node.outputs):
            return f"the model computes in half precision ({walk.label(node)}): not quantized"
    return None
