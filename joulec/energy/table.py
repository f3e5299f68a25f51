"""The table operator -> work formula, put together from the families; what is not in it is unknown, never free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from joulec.energy import (
    ops_attention,
    ops_elementwise,
    ops_linear,
    ops_movement,
    ops_other,
    ops_quant,
    ops_recurrent,
    ops_reduce,
)
from joulec.energy.view import Cost, View
from joulec.ir.walk import MICROSOFT_DOMAIN, ONNX_DOMAINS

Formula = Callable[[View], Cost]

ML_DOMAIN, NCHWC_DOMAIN = "ai.onnx.ml", "com.microsoft.nchwc"
CONTROL = ("If", "Loop", "Scan", "SequenceMap")
"""Operators whose work is that of their bodies; the node itself only dispatches."""


def control(view: View) -> Cost:
    """If, Loop, Scan, SequenceMap: dispatch only; the bodies' nodes are priced on their own."""
    return Cost(touched=dict.fromkeys(range(len(view.node.inputs)), 0), write=0)


_STANDARD: Mapping[str, Formula] = {
    **ops_elementwise.TABLE,
    **ops_linear.TABLE,
    **ops_reduce.TABLE,
    **ops_recurrent.TABLE,
    **ops_attention.TABLE,
    **ops_movement.TABLE,
    **ops_quant.TABLE,
    **ops_other.TABLE,
    **dict.fromkeys(CONTROL, control),
}
FORMULAS: Mapping[str, Mapping[str, Formula]] = {
    "": _STANDARD,
    MICROSOFT_DOMAIN: {
        **ops_elementwise.MICROSOFT,
        **ops_linear.MICROSOFT,
        **ops_reduce.MICROSOFT,
        **ops_recurrent.MICROSOFT,
        **ops_attention.MICROSOFT,
        **ops_movement.MICROSOFT,
        **ops_quant.MICROSOFT,
        **ops_other.MICROSOFT,
    },
    ML_DOMAIN: ops_other.ML,
    NCHWC_DOMAIN: {**ops_linear.NCHWC, **ops_reduce.NCHWC, **ops_movement.NCHWC},
}


def formula_of(node: ir.Node) -> Formula | None:
    """The work formula of `node`'s operator, or None where joulec does not know it."""
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    return FORMULAS.get(domain, {}).get(node.op_type)
