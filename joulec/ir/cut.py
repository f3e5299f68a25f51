"""Cutting a part out of a model: some nodes of its main graph, as a model of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module


def cut(module: Module, kept: Collection[int]) -> Module | None:
    """The nodes at positions `kept` of the main graph, and the Constants they read, as a module. O(nodes).

    What they read from nodes left out becomes an input under the same name; what others used of them, or what the
    model returned, becomes an output. Bodies of If, Loop and Scan stay whole; functions stay that are still called.
    Masks follow their weights. `module` is left as it was.

    Returns:
        The part, or None where nothing of it would be returned.
    """
    part = module.clone()
    part.allowance = None
    nodes = list(part.graph)
    inside = _with_constants([nodes[index] for index in sorted(set(kept))], part.graph)
    outputs = _outputs(nodes, inside, part.graph)
    if not outputs:
        return None
    part.graph.outputs.clear()
    entering = _enter(nodes, inside, part.graph)
    _remove([node for node in nodes if node not in inside], part.graph)
    part.graph.outputs.extend(outputs)
    _tidy(part, entering)
    return part


def used_values(node: ir.Node) -> Iterator[ir.Value]:
    """What `node` reads, and what the bodies in it read from anywhere."""
    for inner in (node, *_nested_nodes(node)):
        yield from (value for value in inner.inputs if value is not None)
    for graph in _nested(node):
        yield from graph.outputs


def users(value: ir.Value, homes: dict[int, ir.Node]) -> Iterator[ir.Node]:
    """The nodes of the main graph that use `value`, themselves or in a body; `homes` is `body_homes` of the graph."""
    for usage in value.uses():
        graph = usage.node.graph
        yield homes.get(id(graph), usage.node)


def body_homes(graph: ir.Graph) -> dict[int, ir.Node]:
    """The node of `graph` that holds each nested graph, by the nested graph's id."""
    return {id(inner): node for node in graph for inner in _nested(node)}


def _nested(node: ir.Node) -> Iterator[ir.Graph]:
    pending = list(walk.subgraphs(node))
    while pending:
        graph = pending.pop()
        yield graph
        pending += [inner for held in graph for inner in walk.subgraphs(held)]


def _nested_nodes(node: ir.Node) -> Iterator[ir.Node]:
    return (inner for graph in _nested(node) for inner in graph)


def _with_constants(chosen: Iterable[ir.Node], graph: ir.Graph) -> dict[ir.Node, None]:
    """`chosen` and the Constant nodes they read: as inputs, constants would be none."""
    inside = dict.fromkeys(chosen)
    for node in list(inside):
        for value in used_values(node):
            producer = value.producer()
            if producer is not None and producer.graph is graph and walk.is_onnx(producer, "Constant"):
                inside[producer] = None
    return inside


def _outputs(nodes: list[ir.Node], inside: dict[ir.Node, None], graph: ir.Graph) -> list[ir.Value]:
    """What is returned or used elsewhere; of a part that nobody uses, all that no node of it uses."""
    homes = body_homes(graph)
    made = [value for node in nodes if node in inside for value in node.outputs if value.name]
    read = {id(value) for value in graph.outputs}  # bodies that return an outer value have no use of it
    read.update(id(v) for node in nodes if node not in inside for inner in _nested(node) for v in inner.outputs)
    asked = [v for v in made if id(v) in read or any(user not in inside for user in users(v, homes))]
    return asked or [value for value in made if not value.uses()]


def _enter(nodes: list[ir.Node], inside: dict[ir.Node, None], graph: ir.Graph) -> list[ir.Value]:
    """Put new inputs in place of values that nodes left out compute, in the order of first use."""
    entering: dict[int, ir.Value] = {}
    for node in nodes:
        if node not in inside:
            continue
        for value in list(used_values(node)):
            producer = value.producer()
            if producer is None or producer.graph is not graph or producer in inside or id(value) in entering:
                continue
            shape = None if value.shape is None else value.shape.copy()
            entering[id(value)] = new = ir.Value(name=value.name, shape=shape, type=value.type)
            value.replace_all_uses_with(new, replace_graph_outputs=True)
    return list(entering.values())


def _remove(outside: list[ir.Node], graph: ir.Graph) -> None:
    for node in outside:
        for inner in _nested_nodes(node):  # a body keeps its uses of outer values when its node goes
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    graph.remove(outside, safe=True)


def _tidy(part: Module, entering: list[ir.Value]) -> None:
    graph = part.graph
    returned = {id(value) for inner in walk.graphs(part.model) for value in inner.outputs}
    graph.inputs[:] = [*(v for v in graph.inputs if v.uses() or id(v) in returned), *entering]
    listed = {id(value) for value in graph.inputs}
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or id(value) in returned or id(value) in listed):
            del graph.initializers[name]
    held = {name for inner in walk.graphs(part.model) for name in inner.initializers}
    part.masks = {name: mask for name, mask in part.masks.items() if name in held}
    called, pending = set[ir.OperatorIdentifier](), [graph]
    while pending:
        for node in pending.pop():
            pending += walk.subgraphs(node)
            if node.op_identifier() not in called and node.op_identifier() in part.model.functions:
                called.add(node.op_identifier())
                pending.append(part.model.functions[node.op_identifier()].graph)
    for key in [key for key in part.model.functions if key not in called]:
        del part.model.functions[key]
