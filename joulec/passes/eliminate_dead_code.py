"""eliminate-dead-code: remove what no output depends on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import input_at
from joulec.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes, initializers, functions and their arguments that no output depends on; graph inputs stay."""

    def run(self, module: Module, context: Context) -> PassResult:
        """O(nodes + edges): erasing a node revisits only what fed it."""
        rewriter = Rewriter(module, self.pass_name())
        dead = deque(node for node in walk.nodes(module.model) if _is_dead(node))
        rewriter.on_touch = lambda node: dead.append(node) if _is_dead(node) else None
        _erase_nodes(dead, rewriter)
        for call, index in _unread_arguments(module):
            with rewriter.rewriting("unread-argument", call):
                rewriter.set_input(call, index, None)
            _erase_nodes(dead, rewriter)
        _erase_initializers(module, rewriter)
        _erase_functions(module, rewriter)
        return PassResult.of(rewriter)


def _is_dead(node: ir.Node) -> bool:
    return node.graph is not None and not any(o.uses() or o.is_graph_output() for o in node.outputs)


def _erase_nodes(dead: deque[ir.Node], rewriter: Rewriter) -> None:
    while dead:
        node = dead.popleft()
        if node.graph is not None:
            with rewriter.rewriting("unused-node", node):
                rewriter.erase(node)


def _unread_arguments(module: Module) -> Iterator[tuple[ir.Node, int]]:
    """What calls pass to functions that do not read it, asked anew for each: callers behind what they call.

    ONNX Runtime refuses an argument of four bits whose type the body does not tell.
    """
    functions = module.model.functions
    if not functions:
        return
    calls: dict[ir.OperatorIdentifier, list[ir.Node]] = {key: [] for key in functions}
    within = nx.DiGraph()
    within.add_nodes_from(functions)
    for node in walk.nodes(module.model):
        if (key := node.op_identifier()) in functions:
            calls[key].append(node)
    for caller, function in functions.items():
        inside = (node.op_identifier() for node in walk.nodes_within(function.graph))
        within.add_edges_from((key, caller) for key in inside if key in functions)
    for key in nx.topological_sort(within):
        unread = [index for index, value in enumerate(functions[key].inputs) if not _is_read(value)]
        for node in calls[key]:
            for index in unread:
                if node.graph is not None and input_at(node, index) is not None:
                    yield node, index


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _erase_initializers(module: Module, rewriter: Rewriter) -> None:
    for graph in walk.graphs(module.model):
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                with rewriter.rewriting("unused-initializer"):
                    rewriter.erase_initializer(graph, name)


def _erase_functions(module: Module, rewriter: Rewriter) -> None:
    """Remove functions that nothing reachable from the main graph calls."""
    functions = module.model.functions
    reached: set[ir.OperatorIdentifier] = set()
    open_graphs: deque[ir.Graph] = deque([module.graph])
    while open_graphs:
        graph = open_graphs.popleft()
        for node in graph:
            open_graphs.extend(walk.subgraphs(node))
            key = node.op_identifier()
            if key in functions and key not in reached:
                reached.add(key)
                open_graphs.append(functions[key].graph)
    for key in [key for key in functions if key not in reached]:
        with rewriter.rewriting("unused-function"):
            rewriter.erase_function(key)
