"""The rule that replaces a Loop that runs a few times, once or never by its body; used by fold-constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import constant, input_at
from joulec.passes.eliminate_common_subexpressions import RANDOM

LONGEST = 64
"""Operators that the turns of one Loop may become. A runtime starts a graph anew for each turn and fuses nothing across
turns, which is most of the time where bodies are short, and little where they are long."""

MOST = 1024
"""Operators that all Loops together may become: nested ones multiply."""

WEIGHTS = 1 << 16
"""Bytes of a body's own weights, times turns, that may be stored anew."""


class InlineLoop(Rule):
    """Loop(n, true, x) -> the nodes of its body, n times; Loop(0, c, x) -> x."""

    ops = ("Loop",)

    def __init__(self) -> None:
        self._left = MOST

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
            return
        if turns > 1:
            self._left -= self._added(node, body, turns, states, rewriter)
        self._inline(node, body, turns, rewriter)

    def _added(self, node: ir.Node, body: ir.Graph, turns: int, states: int, rewriter: Rewriter) -> int:
        """How many operators come to it; refused where they are too many, or would not do the same."""
        inner = list(walk.nodes_within(body))
        scanned = len(node.outputs) - states
        added = turns * (len(inner) + scanned) + scanned
        if added > min(LONGEST, self._left):
            raise Refused(f"{turns} turns would become {added} operators")
        if any(one.op_type in RANDOM for one in inner):
            raise Refused("a random operator goes on from turn to turn")
        tensors = [value.const_value for graph in walk.graphs_within(body) for value in graph.initializers.values()]
        stored = turns * sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if stored > WEIGHTS or any(name in rewriter.module.masks for name in body.initializers):
            raise Refused(f"the weights of its body would be stored {turns} times")
        return added

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
    def _inline(node: ir.Node, body: ir.Graph, turns: int, rewriter: Rewriter) -> None:
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
        made = _unrolled(node, body, turns, rewriter)
        for output, value in zip(node.outputs, made, strict=True):
            if output.is_graph_output() or output.uses():
                rewriter.replace(output, value)
        rewriter.erase(node)


def _unrolled(node: ir.Node, body: ir.Graph, turns: int, rewriter: Rewriter) -> list[ir.Value]:
    """The turns one after another, in front of `node`: the last states, then what was scanned."""
    states = [value for value in node.inputs[2:] if value is not None]
    scanned: list[list[ir.Value]] = [[] for _ in node.outputs[len(states) :]]
    for turn in range(turns):
        one = body if turn == turns - 1 else body.clone(allow_outer_scope_values=True)
        made = _one_turn(one, turn, states, node, rewriter)
        states = made[: len(states)]
        for outputs, value in zip(scanned, made[len(states) :], strict=True):
            outputs.append(value)
    stacks = [
        _stacked(outputs, output, node, rewriter)
        for outputs, output in zip(scanned, node.outputs[len(states) :], strict=True)
    ]
    return [*states, *stacks]


def _one_turn(
    body: ir.Graph, turn: int, states: Sequence[ir.Value], node: ir.Node, rewriter: Rewriter
) -> list[ir.Value]:  # fmt: skip
    """The nodes of one turn in front of `node`; what they return behind the condition."""
    results, name = list(body.outputs)[1:], node.name or "loop"
    number = rewriter.constant(np.array(turn, np.int64), f"{name}_turn", at=node)
    goes_on = rewriter.constant(np.array(True), f"{name}_condition", at=node)
    given = [number, goes_on, *states]
    taken = {id(formal): actual for formal, actual in zip(body.inputs, given, strict=True)}
    body.outputs.clear()  # a state that passes through is an input and an output of the body
    for formal, actual in zip(list(body.inputs), given, strict=True):
        rewriter.replace(formal, actual)
    rewriter.splice(body, before=node)
    return [taken.get(id(result), result) for result in results]


def _turns(node: ir.Node, body: ir.Graph) -> int | None:
    """How often a Loop runs, where that is known; None for others."""
    most, first = _number(input_at(node, 0)), _number(input_at(node, 1))
    if (most is not None and most <= 0) or first == 0:
        return 0
    if any(value is not None and _number(value) is None for value in node.inputs[:2]) or not body.outputs:
        return None
    goes_on = body.outputs[0]
    while (maker := goes_on.producer()) is not None and walk.is_onnx(maker, "Identity") and maker.inputs[0] is not None:
        goes_on = maker.inputs[0]
    told = _number(goes_on)
    if most == 1 or told == 0:
        return 1
    stays = bool(told) or (len(body.inputs) > 1 and goes_on is body.inputs[1])
    return most if stays else None


def _number(value: ir.Value | None) -> int | None:
    """A constant of one element; None where there is none, or it is computed."""
    array = constant(value)
    return int(array.ravel()[0]) if array is not None and array.size == 1 else None


def _stacked(values: Sequence[ir.Value], like: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    """What the turns scan: each value with a dimension in front, behind one another."""
    rows = [_row(value, like, node, rewriter) for value in values]
    if len(rows) == 1:
        return rows[0]
    (made,) = rewriter.add("Concat", rows, {"axis": 0}, before=node, like=like)
    return made


def _row(value: ir.Value, like: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    inputs: list[ir.Value | None] = [value]
    attributes: dict[str, object] = {}
    if rewriter.module.opset < 13:
        attributes["axes"] = [0]
    else:
        inputs.append(rewriter.constant(np.array([0], np.int64), f"{node.name or 'loop'}_axis", at=node))
    (made,) = rewriter.add("Unsqueeze", inputs, attributes, before=node)
    made.dtype = like.dtype  # type: ignore[assignment]
    if like.shape is not None:
        made.shape = ir.Shape([1, *list(like.shape)[1:]])
    return made
