"""Work of recurrent operators. X is (seq, batch, I), or (batch, seq, I) with layout 1; H = hidden_size."""

from __future__ import annotations

from collections.abc import Callable

from joulec.energy.ops_elementwise import RATIONAL
from joulec.energy.view import Cost, View, flops

# gates, and elementwise operations per hidden unit and step besides biases: nonlinearities and the state update.
GATES = {"RNN": (1, RATIONAL), "GRU": (3, 3 * RATIONAL + 5), "LSTM": (4, 5 * RATIONAL + 4)}

PEEPHOLES = 6
"""A multiply-add of the cell state for each of the input, output and forget gates."""


def recurrent(op: str, matrix: str | None = None) -> Callable[[View], Cost]:
    """Per step and direction: 2 * batch * gates * H * (I + H) for W.x and R.h, biases, nonlinearities.

    Weights are read once: they stay in a cache from step to step. LSTM: 3 logistic + 2 tanh, 4 for c and h.
    """
    gates, elementwise = GATES[op]

    def formula(view: View) -> Cost:
        steps, batch, width = (view.dim(0, axis) for axis in (0, 1, 2))
        hidden = view.integer("hidden_size", view.dim(2, -2) if op == "LSTM" and matrix else view.dim(2, -1))
        directions = 2 if view.attr("direction", "forward") == "bidirectional" else 1
        units = steps * batch * directions * hidden
        products = 2 * units * gates * (width + hidden)
        biases = 2 * gates * units if view.has(3) else 0
        peepholes = PEEPHOLES * units if op == "LSTM" and view.has(7) else 0
        return Cost(flops((matrix or view.matrix, products), (view.vector, biases + peepholes + elementwise * units)))

    return formula


TABLE = {op: recurrent(op) for op in GATES}
MICROSOFT = {"DynamicQuantizeLSTM": recurrent("LSTM", "int8-matrix")}
