"""Families of kernels whose time follows one law: what a measured profile has coefficients for.

A family is coarse on purpose: enough that a roofline's efficiency is one number, few enough that a ladder of
microbenchmarks of a minute or two covers them all.
"""

from __future__ import annotations

import math

from joulec.energy.ops_elementwise import DIVIDE, MICROSOFT_PER_ELEMENT, PER_ELEMENT
from joulec.energy.ops_linear import MATRIX_CHANNELS
from joulec.energy.view import View, at

_CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcConv", "NhwcFusedConv")
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "NhwcMaxPool")
_SPREADS = ("Softmax", "LogSoftmax", "Hardmax", "QLinearSoftmax")
_COPIES = (
    "Concat", "Split", "Slice", "Pad", "Expand", "Tile", "Gather", "GatherElements", "GatherND", "ScatterND",
    "ScatterElements", "Compress", "SpaceToDepth", "DepthToSpace", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Identity", "Cast", "Where", "QLinearConcat",
)  # fmt: skip
_RESIZES = ("Resize", "Upsample", "GridSample", "RoiAlign")
ROWS = 8
"""Rows from which a matrix product reuses its weights from registers; below, it streams them."""

COSTLY = DIVIDE + 2
"""Operations an element from which an elementwise operator is bound by arithmetic: exp, erf, tanh and their like."""

FAMILIES = (
    "conv", "conv-1x1", "conv-depthwise", "conv-narrow", "matmul", "matvec", "int8-conv", "int8-conv-1x1",
    "int8-conv-depthwise", "int8-conv-narrow", "int8-matmul", "int8-matvec", "recurrent", "pool", "reduce", "softmax",
    "normalization", "elementwise", "transcendental", "transpose", "copy", "resize", "quantize", "int8-elementwise",
    "run",
)  # fmt: skip


def family_of(op: str, view: View, integer: bool) -> str:
    """The family of a kernel, or `other`.

    Args:
        op: the operator whose work formula prices it.
        view: the node; of its shapes, those of weight and rows decide.
        integer: whether its products are int8.
    """
    prefix = "int8-" if integer else ""
    if op in _CONVOLUTIONS:
        return prefix + _convolution(op, view)
    if "MatMul" in op or op in ("Gemm", "FusedGemm", "QGemm", "Einsum", "Attention", "MultiHeadAttention"):
        return prefix + ("matmul" if _rows(view) >= ROWS else "matvec")
    if op in _RECURRENT:
        return "recurrent"
    if op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return "quantize"
    return _light(op)


def _light(op: str) -> str:
    """Families without dense contractions."""
    if op in _POOLS:
        return "pool"
    if op.startswith(("Reduce", "Global", "ArgM", "QLinearGlobal", "QLinearReduce")):
        return "reduce"
    if op in _SPREADS:
        return "softmax"
    if op.endswith("Normalization"):
        return "normalization"
    if op.startswith("QLinear"):
        return "int8-elementwise"
    if op == "Transpose":
        return "transpose"
    if op in _COPIES:
        return "copy"
    if op in _RESIZES:
        return "resize"
    per = PER_ELEMENT.get(op) or MICROSOFT_PER_ELEMENT.get(op)
    if per is None:
        return "elementwise" if op in ("Sum", "Max", "Min", "Mean") else "transcendental" if op == "Pow" else "other"
    return "transcendental" if per >= COSTLY else "elementwise"


def _convolution(op: str, view: View) -> str:
    weight = view.dims(3 if op == "QLinearConv" else 1)
    channels = at(weight, -1) if op.startswith("Nhwc") else at(weight, 1)
    group = view.integer("group", 1)
    if group > 1 and channels < MATRIX_CHANNELS:
        return "conv-depthwise"
    if channels < MATRIX_CHANNELS:
        return "conv-narrow"
    spatial = weight[1:-1] if op.startswith("Nhwc") else weight[2:]
    return "conv-1x1" if math.prod(spatial) == 1 else "conv"


def _rows(view: View) -> int:
    """Rows of the product: those of the left matrix, all of them where the right one is shared by the batch."""
    left, right = view.dims(0), view.dims(3 if view.node.op_type.startswith("QLinear") else 1)
    if view.node.op_type in ("Gemm", "FusedGemm", "QGemm") and view.integer("transA", 0):
        return at(left, 1)
    return math.prod(left[:-1]) if len(right) <= 2 else at(left, -2)
