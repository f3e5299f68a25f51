"""The rule that replaces a Loop that runs never, or once, by its body; used by fold-constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import constant, input_at


class InlineLoop(Rule):
    """Loop(1, true, x) -> the nodes of its body; Loop(0, c, x) -> x.

    Loops that run more often stay: their bodies would stand there as often, and the model would grow.
    """

    ops = ("Loop",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        attribute = node.attributes.get("body")
        if attribute is None or attribute.is_ref():
            return
        body = attribute.as_graph()
        turns = _turns(node, body)
        if turns is None or len(body.inputs) != len(node.inputs):
            return
        states = len(node.inputs) - 2
        if turns == 0:
            self._skip(node, states, rewriter)
        elif turns == 1:
            self._inline(node, body, states, rewriter)

    @staticmethod
    def _skip(node: ir.Node, states: int, rewriter: Rewriter) -> None:
        """No turn: the states stay as they were; nothing is scanned."""
        if any(output.uses() or output.is_graph_output() for output in node.outputs[states:]):
            raise Refused("what it scans would be empty")
        pairs = list(zip(node.outputs[:states], node.inputs[2:], strict=True))
        if any(initial is None or not rewriter.can_replace(output, initial) for output, initial in pairs):
            raise Refused("a graph output is one of its initial states")
        for output, initial in pairs:
            if initial is not None:
                rewriter.replace(output, initial)
        rewriter.erase(node)

    @staticmethod
    def _inline(node: ir.Node, body: ir.Graph, states: int, rewriter: Rewriter) -> None:
        results = list(body.outputs)[1:]
        if rewriter.in_function(node):
            raise Refused("functions import opsets of their own")
        if any(value is None for value in node.inputs[2:]) or len(results) != len(node.outputs):
            return
        for output, result in zip(node.outputs, results, strict=True):
            fixed = result.graph is not body or result.producer() is None
            if output.is_graph_output() and fixed:
                raise Refused(f"'{output.name}' is a graph output and the body does not compute it")
        if len({id(result) for result in results}) != len(results):
            raise Refused("the body returns one value twice")
        name = node.name or "loop"
        turn = rewriter.constant(np.array(0, np.int64), f"{name}_turn", at=node)
        goes_on = rewriter.constant(np.array(True), f"{name}_condition", at=node)
        given: list[ir.Value] = [turn, goes_on, *(value for value in node.inputs[2:] if value is not None)]
        taken = {id(formal): actual for formal, actual in zip(body.inputs, given, strict=True)}
        body.outputs.clear()  # a state that passes through is an input and an output of the body
        for formal, actual in zip(list(body.inputs), given, strict=True):
            rewriter.replace(formal, actual)
        rewriter.splice(body, before=node)
        for index, (output, result) in enumerate(zip(node.outputs, results, strict=True)):
            made = taken.get(id(result), result)
            if index >= states:
                made = _stacked(made, output, node, rewriter)
            if output.is_graph_output() or output.uses():
                rewriter.replace(output, made)
        rewriter.erase(node)


def _turns(node: ir.Node, body: ir.Graph) -> int | None:
    """How often a Loop runs where that is never or once; None for others."""
    most, first = _number(input_at(node, 0)), _number(input_at(node, 1))
    if (most is not None and most <= 0) or first == 0:
        return 0
    if any(value is not None and _number(value) is None for value in node.inputs[:2]) or not body.outputs:
        return None
    return 1 if most == 1 or _number(body.outputs[0]) == 0 else None


def _number(value: ir.Value | None) -> int | None:
    """A constant of one element; None where there is none, or it is computed."""
    array = constant(value)
    return int(array.ravel()[0]) if array is not None and array.size == 1 else None


def _stacked(value: ir.Value, like: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """What a single turn scans: the value with a dimension in front."""
    inputs: list[ir.Value | None] = [value]
    attributes: dict[str, object] = {}
    if rewriter.module.opset < 13:
        attributes["axes"] = [0]
    else:
        inputs.append(rewriter.constant(np.array([0], np.int64), f"{node.name or 'loop'}_axis", at=node))
    (made,) = rewriter.add("Unsqueeze", inputs, attributes, before=node, like=like)
    return made
