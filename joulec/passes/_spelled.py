"""Reading spelled-out arithmetic: numbers, operands in either order, polynomials, and taking a pattern away."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, constant, rank, sole_consumer

CLOSE = 1e-4
"""Relative error up to which a constant counts as the one meant: exporters write 1.4142 and 0.70710677."""

COMMUTATIVE = ("Add", "Mul", "Min", "Max")


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant holds everywhere, where it cannot widen what it meets: one element, any rank."""
    found = constant(value)
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 and found.dtype.kind == "f" else None


def with_scalar(node: ir.Node | None, *ops: str) -> tuple[ir.Value, float] | None:
    """(x, c) of `op`(x, c), also of `op`(c, x) where order does not matter; None where `node` is no such operator."""
    if node is None or not walk.is_onnx(node, *ops) or len(node.inputs) != 2 or node.attributes:
        return None
    for index in (1, 0) if node.op_type in COMMUTATIVE else (1,):
        number, other = scalar(node.inputs[index]), node.inputs[1 - index]
        if number is not None and other is not None and fits(node.inputs[index], other):
            return other, number
    return None


def from_scalar(node: ir.Node | None, *ops: str) -> tuple[float, ir.Value] | None:
    """(c, x) of `op`(c, x); None where `node` is no such operator."""
    if node is None or not walk.is_onnx(node, *ops) or len(node.inputs) != 2 or node.attributes:
        return None
    number, other = scalar(node.inputs[0]), node.inputs[1]
    return (number, other) if number is not None and other is not None and fits(node.inputs[0], other) else None


def fits(number: ir.Value | None, other: ir.Value) -> bool:
    """Whether a constant of one element leaves the rank of `other` as it is."""
    mine, theirs = rank(number), rank(other)
    return mine == 0 or (mine is not None and theirs is not None and mine <= theirs)


def near(number: float | None, meant: float) -> bool:
    """Whether `number` is meant to be `meant`."""
    return number is not None and math.isclose(number, meant, rel_tol=CLOSE)


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node of one of `ops` that computes `value`, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and walk.is_onnx(node, *ops) else None


def only(value: ir.Value | None, user: ir.Node) -> bool:
    """Whether `user` alone reads `value`."""
    return value is not None and sole_consumer(value) is user


def operands(node: ir.Node | None, op: str) -> list[tuple[ir.Value, ir.Value]]:
    """Both ways to read the two operands of a commutative `op`; none where `node` is no such operator."""
    if node is None or not walk.is_onnx(node, op) or len(node.inputs) != 2 or node.attributes:
        return []
    one, other = node.inputs
    return [] if one is None or other is None else [(one, other), (other, one)]


def can_raise(op: str, since: int, node: ir.Node, rewriter: Rewriter) -> None:
    """Demand that `op` exists where `node` stands.

    Raises:
        Refused: the opset is older than `since`, or not known because a function imports its own.
    """
    if rewriter.in_function(node):
        raise Refused("functions import opsets of their own")
    if rewriter.module.opset < since:
        raise Refused(f"{op} needs opset {since}, the model has {rewriter.module.opset}")


# -- polynomials ------------------------------------------------------------------------------------------------------

DEGREE = 3
DEPTH = 8


def polynomial(value: ir.Value | None, x: ir.Value, depth: int = DEPTH) -> Array | None:
    """The coefficients, lowest first, of `value` as a polynomial in `x` of degree 3 at most; None where it is none."""
    if value is x:
        return np.array([0.0, 1.0, 0.0, 0.0])
    if (number := scalar(value)) is not None:
        return np.array([number, 0.0, 0.0, 0.0]) if fits(value, x) else None
    node = producer(value, "Add", "Sub", "Mul", "Div", "Neg", "Pow")
    if node is None or depth == 0 or node.attributes:
        return None
    if node.op_type == "Pow":
        power, base = _power(node.inputs[1]), polynomial(node.inputs[0], x, depth - 1)
        return None if power is None or base is None else _product([base] * power)
    parts = [polynomial(one, x, depth - 1) for one in node.inputs]
    found = [part for part in parts if part is not None]
    return None if len(found) < len(parts) else _combined(node.op_type, found)


def _power(value: ir.Value | None) -> int | None:
    found = constant(value)
    number = float(found.reshape(-1)[0]) if found is not None and found.size == 1 else 0.0
    return int(number) if number in (1.0, 2.0, 3.0) else None


def _combined(op: str, parts: Sequence[Array]) -> Array | None:
    match op:
        case "Neg":
            return -parts[0]
        case "Add":
            return np.asarray(parts[0] + parts[1])
        case "Sub":
            return np.asarray(parts[0] - parts[1])
        case "Mul":
            return _product(parts)
        case _:
            flat = not np.any(parts[1][1:]) and parts[1][0] != 0
            return np.asarray(parts[0] / parts[1][0]) if flat else None


def _product(parts: Sequence[Array]) -> Array | None:
    total = np.array([1.0])
    for part in parts:
        total = np.convolve(total, part)
        if np.any(total[DEGREE + 1 :]):
            return None
        total = total[: DEGREE + 1]
    return np.pad(total, (0, DEGREE + 1 - len(total)))


def is_polynomial(value: ir.Value | None, x: ir.Value, meant: Sequence[float]) -> bool:
    """Whether `value` is meant to be the polynomial in `x` with the coefficients `meant`, lowest first."""
    found = polynomial(value, x)
    return found is not None and all(near(a, b) if b else a == 0.0 for a, b in zip(found, meant, strict=True))


# -- taking away ------------------------------------------------------------------------------------------------------


def erase_backwards(node: ir.Node, rewriter: Rewriter) -> None:
    """Erase `node` and what was computed for it alone."""
    dead = [node]
    while dead:
        gone = dead.pop()
        feeding = dict.fromkeys(value.producer() for value in gone.inputs if value is not None)
        rewriter.erase(gone)
        dead += [
            one for one in feeding
            if one is not None and one.graph is not None and walk.is_onnx(one)
            and not any(output.uses() or output.is_graph_output() for output in one.outputs)
        ]  # fmt: skip
