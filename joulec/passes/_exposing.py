"""Values inside the branches of If, handed out of them so that calibration can see them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module


def branches(graph: ir.Graph) -> Iterator[ir.Graph]:
    """`graph` and the branches of every If in it, nested ones too: what runs at most once in a run of the model."""
    yield graph
    for node in graph:
        if walk.is_onnx(node, "If"):
            for branch in walk.subgraphs(node):
                yield from branches(branch)


def expose(module: Module, names: Collection[str]) -> tuple[Module, dict[str, list[str]]]:
    """A copy of `module` whose main graph computes the named values of If branches, too.

    Each becomes one more output of its If; of a branch that is not taken it is empty. Sibling branches may use a name
    twice, so that one value may have several carriers.

    Returns:
        The copy, or `module` itself where no branch makes any of them; and for each value of a branch the names of the
        values of the main graph that carry it.
    """
    inner = {v.name for graph in branches(module.graph) if graph is not module.graph for v in _made(graph)}
    wanted = {name for name in names if name in inner}
    if not wanted:
        return module, {}
    copy = module.clone()
    carriers: dict[str, list[str]] = {}
    for name, value in _Exposing(copy, wanted).out_of(copy.graph):
        carriers.setdefault(name, []).append(value.name or "")
    return copy, carriers


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    return (value for node in graph for value in node.outputs if value.name)


class _Exposing:
    """One copy of a module being opened up."""

    def __init__(self, module: Module, wanted: set[str]) -> None:
        self.wanted = wanted
        self.count = 0
        self.names: set[str | None] = set()
        for graph in walk.graphs(module.model):
            self.names.update(value.name for value in (*_made(graph), *graph.inputs, *graph.initializers.values()))

    def out_of(self, graph: ir.Graph) -> list[tuple[str, ir.Value]]:
        """Hand everything wanted in the Ifs of `graph` out into it: the wanted names and what carries them."""
        found: list[tuple[str, ir.Value]] = []
        for node in list(graph):
            if not walk.is_onnx(node, "If"):
                continue
            bodies = list(walk.subgraphs(node))
            for body in bodies:
                here = [(v.name or "", v) for v in _made(body) if v.name in self.wanted and _is_float(v)]
                for name, value in (*here, *self.out_of(body)):
                    found.append((name, self._hand_out(node, value, body, bodies)))
        return found

    def _hand_out(self, node: ir.Node, value: ir.Value, body: ir.Graph, bodies: list[ir.Graph]) -> ir.Value:
        for one in bodies:
            made = self._copied(value) if one is body else self._empty(value)
            one.append(made)
            one.outputs.append(made.outputs[0])
        node.resize_outputs(len(node.outputs) + 1)
        carrier = node.outputs[-1]
        carrier.name, carrier.dtype = self._fresh(value), ir.DataType.FLOAT
        return carrier

    def _copied(self, value: ir.Value) -> ir.Node:
        node = ir.node("Identity", [value])
        node.outputs[0].name, node.outputs[0].dtype = self._fresh(value), ir.DataType.FLOAT
        return node

    def _empty(self, value: ir.Value) -> ir.Node:
        """No numbers, in as many dimensions as the value has, so that the If has a rank."""
        dims = (0,) * (1 if value.shape is None else max(len(value.shape), 1))
        node = ir.node("Constant", [], {"value": ir.Tensor(np.zeros(dims, np.float32))})
        node.outputs[0].name, node.outputs[0].dtype = self._fresh(value), ir.DataType.FLOAT
        return node

    def _fresh(self, value: ir.Value) -> str:
        while True:
            self.count += 1
            name = f"{value.name}_seen{self.count}"
            if name not in self.names:
                self.names.add(name)
                return name


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
