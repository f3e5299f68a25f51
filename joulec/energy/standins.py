"""Shapes of ONNX Runtime's own operators, which ONNX cannot infer: as a standard operator's on some of their inputs.

Element types are left out of it: the standard operator is asked as if all were float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from joulec.ir.walk import MICROSOFT_DOMAIN


@dataclass(frozen=True)
class Standin:
    """What to infer in place of an operator.

    Attributes:
        op: a standard operator whose first output has the same shape.
        inputs: which inputs it gets.
        attributes: those that it shares.
        dtype: the result's element type where it is not the first input's.
    """

    op: str
    inputs: tuple[int, ...] = (0,)
    attributes: tuple[str, ...] = ()
    dtype: int | None = None

    def node(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The standard node, with the same first output."""
        given = [node.input[i] for i in self.inputs if i < len(node.input)]
        made = onnx.helper.make_node(self.op, given, list(node.output)[:1])
        made.attribute.extend(one for one in node.attribute if one.name in self.attributes)
        return made


_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "ceil_mode", "count_include_pad")
_FLOAT = int(onnx.TensorProto.FLOAT)
_PRODUCT = Standin("MatMul", (0, 1), dtype=_FLOAT)

_STANDINS: Mapping[str, Standin] = {
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), Standin("Add", (0, 3))),
    **dict.fromkeys(
        ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "Gelu", "BiasGelu", "FastGelu", "QuickGelu",
         "BiasSoftmax",
         "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization",
         "MultiHeadAttention", "RotaryEmbedding"),
        Standin("Identity"),
    ),
    "QLinearGlobalAveragePool": Standin("GlobalAveragePool"),
    "QLinearAveragePool": Standin("AveragePool", attributes=_WINDOW),
    "FusedConv": Standin("Conv", (0, 1), _WINDOW),
    "FusedGemm": Standin("Gemm", (0, 1), ("transA", "transB")),
    "QGemm": Standin("Gemm", (0, 3), ("transA", "transB")),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), _PRODUCT),
    "DynamicQuantizeLSTM": Standin("LSTM", (0, 1, 2), ("hidden_size", "direction")),
    "DequantizeLinear": Standin("Identity", dtype=_FLOAT),
}  # fmt: skip


def standin_of(node: onnx.NodeProto) -> Standin | None:
    """What stands for `node`, or None where nothing does or needs to."""
    if node.domain != MICROSOFT_DOMAIN:
        return None
    if node.op_type == "QLinearConcat":  # scale and zero point of the result, then (data, scale, zero point) of each
        return Standin("Concat", tuple(range(2, len(node.input), 3)), ("axis",))
    if node.op_type == "QGemm" and len(node.input) < 8:  # without a scale for the result it is float
        return replace(_STANDINS["QGemm"], dtype=_FLOAT)
    channels_last = any(one.name == "channels_last" and one.i for one in node.attribute)
    return None if channels_last else _STANDINS.get(node.op_type)
