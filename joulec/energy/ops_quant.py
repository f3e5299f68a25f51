"""Work of quantization and of the 8-bit elementwise operators (their arithmetic is float or a table look-up)."""

from __future__ import annotations

from collections.abc import Callable

from joulec.energy.ops_reduce import SOFTMAX, global_pool, pool
from joulec.energy.view import Cost, View

QUANTIZE, DEQUANTIZE = 3, 2
"""Multiply, round and add the zero point, clamp; subtract the zero point, multiply."""


def floats(per_output: int) -> Callable[[View], Cost]:
    """`per_output` float operations per output element."""

    def formula(view: View) -> Cost:
        return Cost({"fp32": per_output * view.m()})

    return formula


def dynamic_quantize(view: View) -> Cost:
    """DynamicQuantizeLinear: minimum and maximum (2), then quantize (3) per element."""
    return Cost({"fp32": (2 + QUANTIZE) * view.n()})


def lookup(view: View) -> Cost:
    """QLinearSigmoid, QLinearLeakyRelu: a 256-entry table, one look-up per element."""
    return Cost({"int8": view.m()})


def qlinear_concat(view: View) -> Cost:
    """QLinearConcat: a copy, with a table look-up per element where the scales differ."""
    return Cost({"int8": view.m()})


BINARY = 2 * DEQUANTIZE + 1 + QUANTIZE

TABLE = {
    "QuantizeLinear": floats(QUANTIZE), "DequantizeLinear": floats(DEQUANTIZE),
    "DynamicQuantizeLinear": dynamic_quantize,
}  # fmt: skip
MICROSOFT = {
    "QuantizeLinear": floats(QUANTIZE), "DequantizeLinear": floats(DEQUANTIZE),
    "QLinearAdd": floats(BINARY), "QLinearMul": floats(BINARY), "QLinearWhere": lookup,
    "QLinearSigmoid": lookup, "QLinearLeakyRelu": lookup, "QLinearSoftmax": floats(SOFTMAX),
    "QLinearConcat": qlinear_concat, "QLinearAveragePool": pool, "QLinearGlobalAveragePool": global_pool,
    "QLinearReduceMean": global_pool,
}  # fmt: skip
