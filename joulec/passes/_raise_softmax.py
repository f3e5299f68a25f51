"""Rules that raise softmaxes: exponentials over their sum, with the maximum taken away first."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, input_at, rank
from joulec.passes._spelled import erase_backwards, producer

WITHOUT_MAXIMUM = "without the maximum taken away large numbers overflow, and the operator's do not"


def _last_axis(node: ir.Node | None, dims: int) -> bool:
    """Whether a reduction keeps its dimensions and is over the last axis alone."""
    if node is None or attribute(node, "keepdims", 1) != 1:
        return False
    given = attribute(node, "axes", None) if input_at(node, 1) is None else constant(input_at(node, 1))
    return given is not None and [int(axis) % dims for axis in np.asarray(given).reshape(-1)] == [dims - 1]


def _shifted(value: ir.Value | None) -> tuple[ir.Value, int]:
    """(x, rank) of x - max(x) along the last axis.

    Raises:
        Refused: it is something else.
    """
    subtract = producer(value, "Sub")
    largest = None if subtract is None else producer(subtract.inputs[1], "ReduceMax")
    x = None if subtract is None else subtract.inputs[0]
    dims = rank(x)
    if x is None or largest is None or largest.inputs[0] is not x:
        raise Refused(WITHOUT_MAXIMUM)
    if not dims or not _last_axis(largest, dims):
        raise Refused("it is not over the last axis, where alone runtimes are faster")
    if x.dtype != ir.DataType.FLOAT:
        raise Refused("it is not known to be float32")
    return x, dims


def _sum_of(value: ir.Value | None, exponential: ir.Value | None, dims: int) -> bool:
    total = producer(value, "ReduceSum")
    return total is not None and total.inputs[0] is exponential and _last_axis(total, dims)


def _put(node: ir.Node, op: str, x: ir.Value, dims: int, rewriter: Rewriter) -> None:
    if rewriter.in_function(node):
        raise Refused("functions import opsets of their own")
    hint = f"{node.name or 'raised'}_{op.lower()}"
    (raised,) = rewriter.add(op, [x], {"axis": dims - 1}, before=node, name=hint, like=node.outputs[0])
    rewriter.replace(node.outputs[0], raised)
    erase_backwards(node, rewriter)


class RaiseSoftmax(Rule):
    """e / sum(e), where e = exp(x - max(x)) -> Softmax(x)."""

    ops = ("Div",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        exponential, total = producer(node.inputs[0], "Exp"), producer(node.inputs[1], "ReduceSum")
        if exponential is None or total is None or total.inputs[0] is not node.inputs[0]:
            return
        x, dims = _shifted(exponential.inputs[0])
        if not _sum_of(node.inputs[1], node.inputs[0], dims):
            raise Refused("it is not over the last axis, where alone runtimes are faster")
        _put(node, "Softmax", x, dims, rewriter)


class RaiseLogSoftmax(Rule):
    """s - log(sum(exp(s))), where s = x - max(x) -> LogSoftmax(x)."""

    ops = ("Sub",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        logarithm = producer(node.inputs[1], "Log")
        total = None if logarithm is None else producer(logarithm.inputs[0], "ReduceSum")
        exponential = None if total is None else producer(total.inputs[0], "Exp")
        if logarithm is None or exponential is None or exponential.inputs[0] is not node.inputs[0]:
            return
        x, dims = _shifted(node.inputs[0])
        if not _sum_of(logarithm.inputs[0], exponential.outputs[0], dims):
            raise Refused("it is not over the last axis, where alone runtimes are faster")
        _put(node, "LogSoftmax", x, dims, rewriter)
