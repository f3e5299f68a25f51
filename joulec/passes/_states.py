"""Recurrent operators that are given what they take anyhow: states, biases and peepholes of zeros."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, constant, constant_tensor, input_at

OPTIONAL = {"RNN": (3, 5), "GRU": (3, 5), "LSTM": (3, 5, 6, 7)}
"""Which inputs count as zeros where they are left out: bias, initial states, peepholes."""

MOVED = frozenset("Cast Expand Flatten Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze".split())
MAX_STEPS = 16
MAX_READ = 1 << 20
"""Elements of a constant that are looked through for another number."""


class ZeroStates(Rule):
    """LSTM(x, w, r, b, lengths, zeros, zeros) -> LSTM(x, w, r, b, lengths), and so for RNN and GRU."""

    ops = tuple(OPTIONAL)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        idle = [index for index in OPTIONAL[node.op_type] if is_zeros(input_at(node, index))]
        for index in idle:
            rewriter.set_input(node, index, None)
        used = [index for index, value in enumerate(node.inputs) if value is not None]
        if idle and len(node.inputs) > max(used) + 1:
            rewriter.drop_inputs(node, max(used) + 1)


def is_zeros(value: ir.Value | None) -> bool:
    """Whether every element of `value` is certainly 0.0, whatever its shape."""
    for _ in range(MAX_STEPS):
        if value is None:
            return False
        if (tensor := constant_tensor(value)) is not None:
            return 0 < tensor.size <= MAX_READ and _all_zero(constant(value))
        node = value.producer()
        if node is None or not walk.is_onnx(node) or any(a.is_ref() for a in node.attributes.values()):
            return False
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            return given is None or _all_zero(given.as_tensor().numpy())
        if node.op_type not in MOVED:
            return False
        value = node.inputs[0]
    return False


def _all_zero(numbers: Array | None) -> bool:
    if numbers is None or numbers.dtype.kind not in "biuf":
        return False
    return not np.any(numbers) and not (numbers.dtype.kind == "f" and bool(np.any(np.signbit(numbers))))
