"""Families of kernels whose time follows one law: what a measured profile has coefficients for.

A family is coarse on purpose: kernels of one build, whose differences their terms express (`joulec.energy.terms`), few
enough that a ladder of microbenchmarks of a minute or two covers them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from joulec.energy.ops_elementwise import MICROSOFT_PER_ELEMENT, PER_ELEMENT, ROOT
from joulec.energy.ops_linear import MATRIX_CHANNELS
from joulec.energy.terms_dense import BLOCK, product_of
from joulec.energy.view import View, at

_CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcConv", "NhwcFusedConv")
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_PRODUCTS = ("Gemm", "FusedGemm", "QGemm", "Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention")
_COPIES = (
    "Concat", "Split", "Slice", "Pad", "Expand", "Tile", "Gather", "GatherElements", "GatherND", "ScatterND",
    "ScatterElements", "Compress", "SpaceToDepth", "DepthToSpace", "QLinearConcat",
)  # fmt: skip
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size")
_VECTORIZED = (
    "Exp", "Sigmoid", "Tanh", "Erf", "Gelu", "Swish", "BiasGelu", "FastGelu", "QuickGelu", "ScaledTanh", "ScaledSiLU",
    "SwiGLU",
)  # fmt: skip
"""Functions that MLAS computes by polynomials, a vector at a time."""
_SIMPLE = ROOT
"""Operations an element up to which an operator is one of the plain vector loops; the rest calls the C library."""

IN_PLACE = frozenset({"elementwise", "transcendental", "scalar"})
"""Families that the runtime lets write over their input."""

ROWS = 8
"""Rows from which a matrix product reuses its weights from registers; below, it streams them."""

_BY_OP: Mapping[str, str] = {
    **dict.fromkeys(_RECURRENT, "recurrent"), **dict.fromkeys(_VIEWS, "view"), **dict.fromkeys(_COPIES, "copy"),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "QLinearAveragePool"), "pool"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "QLinearSoftmax"), "softmax"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "quantize"),
    **dict.fromkeys(("Resize", "Upsample", "GridSample", "RoiAlign"), "resize"),
    **dict.fromkeys(("Sum", "Max", "Min", "Mean", "Cast", "Where"), "elementwise"),
    "Transpose": "transpose", "ConvTranspose": "conv-transposed", "Pow": "scalar",
}  # fmt: skip


def family_of(op: str, view: View, integer: bool) -> str:
    """The family of a kernel, or `other`.

    Args:
        op: the operator whose work formula prices it.
        view: the node; of its shapes, those of weight and rows decide.
        integer: whether it computes on, or moves, int8.
    """
    if op in _CONVOLUTIONS:
        return _convolution(op, view, integer)
    if "MatMul" in op or op in _PRODUCTS:
        product = product_of(op, view)
        return ("int8-" if integer else "") + ("matvec" if product is not None and product.rows < ROWS else "matmul")
    family = _light(op, view)
    return f"int8-{family}" if integer and f"int8-{family}" in FAMILIES else family


def _light(op: str, view: View) -> str:
    """Families without dense contractions."""
    if op == "Pow" and view.integers(1) is not None:
        return "elementwise"
    if op in _BY_OP:
        return _BY_OP[op]
    if op.startswith(("Reduce", "Global", "ArgM", "QLinearGlobal", "QLinearReduce")):
        return "reduce"
    if op.endswith("Normalization"):
        return "skip-normalization" if view.kernel.startswith("Skip") else "normalization"
    if op in ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearWhere"):
        return "int8-lookup"
    if op.startswith("QLinear"):
        return "elementwise"
    per = PER_ELEMENT.get(op) or MICROSOFT_PER_ELEMENT.get(op)
    if per is None:
        return "other"
    return "transcendental" if op in _VECTORIZED else "elementwise" if per <= _SIMPLE else "scalar"


def _convolution(op: str, view: View, integer: bool) -> str:
    weight = view.dims(3 if view.node.op_type == "QLinearConv" else 1)
    last = op.startswith("Nhwc")
    channels, group = at(weight, -1) if last else at(weight, 1), view.integer("group", 1)
    if integer:
        return "int8-" + _shaped(weight, channels, group, last)
    return _shaped(weight, channels, group, last) if last or is_blocked(view) else "conv-gathered"


def _shaped(weight: tuple[int, ...], channels: int, group: int, last: bool) -> str:
    if group > 1 and channels < MATRIX_CHANNELS:
        return "conv-depthwise"
    if channels < BLOCK:
        return "conv-narrow"
    return "conv-1x1" if math.prod(weight[1:-1] if last else weight[2:]) == 1 else "conv"


def is_blocked(view: View) -> bool:
    """Whether ONNX Runtime computes a float convolution in blocks of channels: two dimensions, constant weights, and
    groups that are single channels or whole blocks."""
    weight, group = view.dims(1), view.integer("group", 1)
    if len(weight) != 4 or 1 not in view.fixed:
        return False
    outputs, inputs = weight[0], weight[1]
    if group == 1:
        return inputs < BLOCK or inputs % 4 == 0
    if outputs % 4:
        return False
    return (inputs == 1 and outputs == group) or (inputs % BLOCK == 0 and (outputs // group) % BLOCK == 0)


FAMILIES = (
    "conv", "conv-1x1", "conv-depthwise", "conv-narrow", "conv-gathered", "conv-transposed", "matmul", "matvec",
    "int8-conv", "int8-conv-1x1", "int8-conv-depthwise", "int8-conv-narrow", "int8-matmul", "int8-matvec", "recurrent",
    "int8-recurrent", "pool", "blocked-pool", "int8-pool", "reduce", "blocked-reduce", "int8-reduce", "softmax",
    "int8-softmax", "normalization", "skip-normalization", "elementwise", "transcendental", "scalar",
    "int8-elementwise", "int8-lookup", "transpose", "int8-transpose", "copy", "int8-copy", "resize", "blocked-resize",
    "quantize", "reorder", "turn", "view", "memory", "run",
)  # fmt: skip
