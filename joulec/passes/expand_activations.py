"""expand-activations: activations with slow kernels spelled out in operators that have fast ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant
from joulec.passes._spelled import can_raise
from joulec.passes.base import Context, RulePass

SINCE = 8
"""The opset from which Min and Max broadcast."""

MISH_LIMIT = 20.0
"""Beyond it tanh(softplus(x)) is 1 in float32, and Exp(x)^2 is far from overflowing."""


@dataclass(frozen=True)
class ExpandActivations(RulePass):
    """Spell Elu, Celu, Selu, Softplus, Mish and PRelu out, because their kernels are slower than the parts.

    ONNX Runtime's CPU kernels of these compute number by number; those of Exp, Max, Mul and Add compute sixteen at a
    time. Results agree to rounding (1e-6 of the largest), but a zero may change its sign. Whether it pays depends on
    the runtime and the processor, so `optimize` tries it for the CPU and keeps it where it is measured to be faster.
    """

    def rules(self, context: Context) -> list[Rule]:
        """One rule an operator."""
        return [ExpandElu(), ExpandSelu(), ExpandSoftplus(), ExpandMish(), ExpandPRelu()]


class Steps:
    """Operators put before a node one by one.

    Args:
        node: what is spelled out; its float32 result is replaced by `done`.
        rewriter: makes them.

    Raises:
        Refused: the node's numbers are not known to be float32, or stand between quantized ones.
    """

    def __init__(self, node: ir.Node, rewriter: Rewriter) -> None:
        self._node, self._rewriter, self._hint = node, rewriter, node.name or node.op_type.lower()
        require_float(node)
        can_raise("Max", SINCE, node, rewriter)

    def __call__(self, op: str, *values: ir.Value | float) -> ir.Value:
        """The result of `op` on values and numbers."""
        held = [self.number(value) if isinstance(value, float) else value for value in values]
        like = self._node.outputs[0]
        return self._rewriter.add(op, held, before=self._node, name=f"{self._hint}_{op.lower()}", like=like)[0]

    def number(self, number: float) -> ir.Value:
        """A float32 scalar."""
        return self._rewriter.constant(np.array(number, np.float32), f"{self._hint}_number", at=self._node)

    def done(self, value: ir.Value) -> None:
        """Let `value` stand in for the node's result."""
        self._rewriter.replace(self._node.outputs[0], value)
        self._rewriter.erase(self._node)


def require_float(node: ir.Node) -> None:
    """Demand that a node computes in float32, and not between integers, where runtimes look its results up.

    Raises:
        Refused: it does not, or it is not known.
    """
    (source, *_), (output, *_) = node.inputs, node.outputs
    if source is None or source.dtype != ir.DataType.FLOAT:
        raise Refused("it is not known to be float32")
    maker, users = source.producer(), [usage.node for usage in output.uses()]
    integers = maker is not None and maker.op_type == "DequantizeLinear"
    if integers or any(user.op_type == "QuantizeLinear" for user in users):
        raise Refused("it stands between integers, where it is a table of 256 numbers")


class ExpandElu(Rule):
    """Elu(x), Celu(x) -> Max(x, a * (Exp(Min(x, 0) / c) - 1)), with c = 1 for Elu and c = a for Celu."""

    ops = ("Elu", "Celu")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, alpha = _operand(node), float(attribute(node, "alpha", 1.0))
        if not 0.0 < alpha <= (1.0 if node.op_type == "Elu" else 1e6):
            raise Refused(f"with alpha {alpha:g} the branches do not meet in a maximum")
        steps = Steps(node, rewriter)
        below = steps("Min", x, 0.0)
        inner = below if node.op_type == "Elu" or alpha == 1.0 else steps("Mul", below, 1.0 / alpha)
        curve = steps("Sub", steps("Exp", inner), 1.0)
        steps.done(steps("Max", x, curve if alpha == 1.0 else steps("Mul", curve, alpha)))


class ExpandSelu(Rule):
    """Selu(x) -> g * Relu(x) + (g * a * Exp(Min(x, 0)) - g * a)."""

    ops = ("Selu",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x = _operand(node)
        alpha = float(attribute(node, "alpha", 1.67326319217681884765625))
        gamma = float(attribute(node, "gamma", 1.05070102214813232421875))
        steps = Steps(node, rewriter)
        curve = steps("Mul", steps("Exp", steps("Min", x, 0.0)), gamma * alpha)
        steps.done(steps("Add", steps("Mul", steps("Relu", x), gamma), steps("Sub", curve, gamma * alpha)))


class ExpandSoftplus(Rule):
    """Softplus(x) -> Relu(x) + Log(1 + Exp(-|x|)), which never overflows."""

    ops = ("Softplus",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, steps = _operand(node), Steps(node, rewriter)
        small = steps("Exp", steps("Neg", steps("Abs", x)))
        steps.done(steps("Add", steps("Relu", x), steps("Log", steps("Add", small, 1.0))))


class ExpandMish(Rule):
    """Mish(x) -> x * n / (n + 2), where n = e * (e + 2) and e = Exp(x): tanh(log(1 + e)) without a logarithm."""

    ops = ("Mish",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, steps = _operand(node), Steps(node, rewriter)
        e = steps("Exp", steps("Min", x, MISH_LIMIT))
        n = steps("Mul", e, steps("Add", e, 2.0))
        steps.done(steps("Mul", x, steps("Div", n, steps("Add", n, 2.0))))


class ExpandPRelu(Rule):
    """PRelu(x, s) -> LeakyRelu(x) for a single s, Max(x, s * x) where 0 < s <= 1, else Relu(x) + s * Min(x, 0)."""

    ops = ("PRelu",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, slope = _operand(node), node.inputs[1]
        numbers = constant(slope)
        if numbers is None or slope is None:
            raise Refused("its slopes are not constants")
        steps = Steps(node, rewriter)
        if numbers.size == 1:
            given = {"alpha": float(numbers.reshape(-1)[0])}
            hint = f"{node.name or 'prelu'}_leakyrelu"
            steps.done(rewriter.add("LeakyRelu", [x], given, before=node, name=hint, like=node.outputs[0])[0])
        elif np.all((numbers > 0) & (numbers <= 1)):
            steps.done(steps("Max", x, steps("Mul", x, slope)))
        else:
            steps.done(steps("Add", steps("Relu", x), steps("Mul", steps("Min", x, 0.0), slope)))


def _operand(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise Refused("it has no operand")
    return value
