"""fuse-transpose: compose Transposes, and let whole regions change their order of dimensions where that saves some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule, apply_rules
from joulec.ir.values import attribute, constant, constant_tensor, input_at, rank, sole_consumer
from joulec.passes._layout import (
    Perm,
    absorbs,
    data_inputs,
    inverse,
    perm_of,
    reorder,
    reordered_constant,
    set_reduced_axes,
    then,
)
from joulec.passes.base import Context, Pass, PassResult

MAX_ROUNDS = 4
"""Reordering one region can bring Transposes to the border of the next."""


@dataclass(frozen=True)
class FuseTranspose(Pass):
    """Remove pairs of Transposes, also across operators that do not care about the order of dimensions."""

    def run(self, module: Module, context: Context) -> PassResult:
        """Compose, reorder regions, and again while that removes Transposes. O(nodes) per round."""
        rewriter = Rewriter(module, self.pass_name())
        for _ in range(MAX_ROUNDS):
            before = len(rewriter.rewrites)
            apply_rules(rewriter, [ComposeTransposes(), TransposeOfUnitDims()])
            for graph in list(walk.graphs(module.model)):
                _reorder_regions(graph, rewriter)
            _erase_unused(module, rewriter)
            if len(rewriter.rewrites) == before:
                break
        return PassResult.of(rewriter)


def _erase_unused(module: Module, rewriter: Rewriter) -> None:
    """Erase Transposes that nothing uses any more: to the next pass they would look like second users."""
    for node in list(walk.nodes(module.model)):
        output = node.outputs[0] if node.outputs else None
        if perm_of(node) is None or output is None or output.uses() or output.is_graph_output():
            continue
        with rewriter.rewriting("unused-transpose", node):
            rewriter.erase(node)


class ComposeTransposes(Rule):
    """Transpose(Transpose(x)) -> Transpose(x), or x."""

    ops = ("Transpose",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        first, second = perm_of(source), perm_of(node)
        if source is None or first is None or second is None:
            return
        perm, x = then(first, second), source.inputs[0]
        if x is None:
            return
        if _is_identity(perm) and rewriter.can_replace(node.outputs[0], x):
            rewriter.replace(node.outputs[0], x)
            rewriter.erase(node)
        else:
            rewriter.set_input(node, 0, x)
            rewriter.set_attribute(node, "perm", list(perm))
        if not (source.outputs[0].uses() or source.outputs[0].is_graph_output()):
            rewriter.erase(source)


class TransposeOfUnitDims(Rule):
    """Transpose that only moves dimensions of size 1 -> Reshape; merged into a Reshape before it."""

    ops = ("Transpose",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        perm, x = perm_of(node), node.inputs[0]
        if perm is None or x is None or x.shape is None or rewriter.module.opset < 5 or _is_identity(perm):
            return
        dims = list(x.shape)
        moved = [axis for axis in perm if dims[axis] != 1]
        if moved != sorted(moved):
            return
        before = x.producer()
        if before is None or not walk.is_onnx(before, "Reshape") or sole_consumer(x) is not node:
            return  # alone, a Transpose is as cheap as a Reshape, and its neighbours may still remove it
        target = _target(before, perm)
        if target is None:
            raise Refused("the Reshape before it has a computed shape")
        shape = rewriter.constant(np.array(target, np.int64), f"{node.name}_shape", at=node)
        (output,) = rewriter.add("Reshape", [before.inputs[0], shape], before=node, like=node.outputs[0])
        rewriter.replace(node.outputs[0], output)
        rewriter.erase(node)
        rewriter.erase(before)


def _target(reshape: ir.Node, perm: Perm) -> list[int] | None:
    """The constant target of a Reshape in another order; a 0, which copies by position, only where it stays put."""
    target = constant(input_at(reshape, 1))
    if target is None or len(target) != len(perm) or attribute(reshape, "allowzero", 0):
        return None
    if any(target[axis] == 0 and i != axis for i, axis in enumerate(perm)):
        return None
    return [int(target[axis]) for axis in perm]


def _is_identity(perm: Perm) -> bool:
    return perm == tuple(range(len(perm)))


# -- regions ------------------------------------------------------------------------------------------------------


@dataclass
class _Region:
    """Connected operators that do not care about the order of dimensions, all of one rank.

    Attributes:
        nodes: in graph order; node -> indices of the inputs that change order with it.
        dims: the rank.
    """

    dims: int
    nodes: dict[ir.Node, list[int]] = field(default_factory=dict)

    def inputs(self) -> Iterator[ir.Value]:
        """Values from outside that change order, each once; constants and scalars left out."""
        seen: set[int] = set()
        for node, indices in self.nodes.items():
            for index in indices:
                value = node.inputs[index]
                if value is None or id(value) in seen or not _flows(value, self.dims):
                    continue
                if value.producer() not in self.nodes:
                    seen.add(id(value))
                    yield value

    def outputs(self) -> Iterator[ir.Value]:
        """Values that somebody outside uses."""
        for node in self.nodes:
            for value in node.outputs:
                if value.is_graph_output() or any(True for _ in self.outside(value)):
                    yield value

    def outside(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Uses of `value` that do not change order with the region."""
        for usage in value.uses():
            if usage.idx not in self.nodes.get(usage.node, ()):
                yield usage.node, usage.idx

    def saving(self, perm: Perm) -> int:
        """How many Transposes fewer there are if every value v of the region becomes u, with v = Transpose(u, perm)."""
        return sum(self._saved_before(value, perm) for value in self.inputs()) + sum(
            self._saved_behind(value, perm) for value in self.outputs()
        )

    def _saved_before(self, value: ir.Value, perm: Perm) -> int:
        source = value.producer()
        first = perm_of(source)
        if source is None or first is None:
            return -1
        leaves = not value.is_graph_output() and not any(True for _ in self.outside(value))
        if _is_identity(then(first, inverse(perm))):
            return 1 if leaves else 0
        return 0 if leaves else -1

    def _saved_behind(self, value: ir.Value, perm: Perm) -> int:
        saved, needs_one = 0, value.is_graph_output()
        for node, index in self.outside(value):
            second = perm_of(node)
            if second is not None:
                removable = _is_identity(then(perm, second)) and not node.outputs[0].is_graph_output()
                saved += removable
            elif absorbs(node, index, perm) is None:
                needs_one = True
        return saved - needs_one


def _flows(value: ir.Value, dims: int) -> bool:
    return constant_tensor(value) is None and rank(value) == dims


def _regions(graph: ir.Graph, opset: int) -> list[_Region]:
    """All regions of a graph, in graph order. Nodes join that share a value of their rank."""
    members: dict[ir.Node, tuple[int, list[int]]] = {}
    joined = nx.Graph()
    for node in graph:
        dims = rank(node.outputs[0]) if node.outputs else None
        indices = None if dims is None or dims < 2 else data_inputs(node, dims, opset)
        if dims is None or indices is None:
            continue
        members[node] = (dims, indices)
        joined.add_node(node)
        for index in indices:
            value = node.inputs[index]
            if value is not None and _flows(value, dims):
                joined.add_edge(node, ("value", id(value)))
        for output in node.outputs:
            joined.add_edge(node, ("value", id(output)))
    order = {node: index for index, node in enumerate(members)}
    regions = []
    for component in nx.connected_components(joined):
        nodes = sorted((item for item in component if isinstance(item, ir.Node)), key=order.__getitem__)
        regions.append(_Region(members[nodes[0]][0], {node: members[node][1] for node in nodes}))
    return sorted(regions, key=lambda region: order[next(iter(region.nodes))])


def _reorder_regions(graph: ir.Graph, rewriter: Rewriter) -> None:
    for region in _regions(graph, rewriter.module.opset):
        if any(node.graph is None for node in region.nodes):
            continue
        savings = [(region.saving(perm), perm) for perm in _choices(region)]
        saving, perm = max(savings, key=lambda item: item[0], default=(0, ()))
        if saving > 0:
            with rewriter.rewriting("reorder-region", *region.nodes):
                _reorder(region, perm, rewriter)


def _choices(region: _Region) -> list[Perm]:
    """The orders worth trying: those of the Transposes at the border."""
    found = [perm_of(value.producer()) for value in region.inputs()]
    for value in region.outputs():
        found += [inverse(p) for node, _ in region.outside(value) if (p := perm_of(node)) is not None]
    return list(dict.fromkeys(perm for perm in found if perm is not None and not _is_identity(perm)))


def _reorder(region: _Region, perm: Perm, rewriter: Rewriter) -> None:
    """Make every value v of the region u, with v = Transpose(u, perm), and mend the border."""
    moved = {id(value): _moved_input(value, region, perm, rewriter) for value in list(region.inputs())}
    border = list(region.outputs())
    for node, indices in region.nodes.items():
        for index in indices:
            value = node.inputs[index]
            if value is None:
                continue
            if id(value) in moved:
                rewriter.set_input(node, index, moved[id(value)])
            elif constant_tensor(value) is not None:
                rewriter.set_input(node, index, reordered_constant(value, perm, node, rewriter))
        reorder(node, perm, rewriter)
    for node in region.nodes:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([value.shape[axis] for axis in inverse(perm)])
    for value in border:
        _mend(value, region, perm, rewriter)


def _moved_input(value: ir.Value, region: _Region, perm: Perm, rewriter: Rewriter) -> ir.Value:
    """u for a value v that comes from outside."""
    anchor = next(node for node, indices in region.nodes.items() if any(node.inputs[i] is value for i in indices))
    source, order = value.producer(), inverse(perm)
    first = perm_of(source)
    if source is not None and first is not None and source.inputs[0] is not None:
        whole = then(first, order)
        if _is_identity(whole):
            return source.inputs[0]
        value, order = source.inputs[0], whole
    (output,) = rewriter.add("Transpose", [value], {"perm": list(order)}, before=anchor)
    _describe(output, value, order)
    return output


def _describe(output: ir.Value, value: ir.Value, perm: Perm) -> None:
    output.dtype = value.dtype  # type: ignore[assignment]
    if value.shape is not None:
        output.shape = ir.Shape([value.shape[axis] for axis in perm])


def _mend(value: ir.Value, region: _Region, perm: Perm, rewriter: Rewriter) -> None:
    """Users outside the region get v = Transpose(u, perm), Transposes and reductions among them read u directly."""
    left, returned = [], value.is_graph_output()  # asked now: a Transpose below may hand its own place over
    for node, index in list(region.outside(value)):
        second = perm_of(node)
        if second is not None:
            _merge(node, value, then(perm, second), rewriter)
        elif (axes := absorbs(node, index, perm)) is not None:
            set_reduced_axes(node, axes, rewriter)
        else:
            left.append((node, index))
    if not left and not returned:
        return
    direct = [(usage.node, usage.idx) for usage in value.uses() if (usage.node, usage.idx) not in left]
    (output,) = rewriter.add("Transpose", [value], {"perm": list(perm)}, after=value.producer())
    transpose = output.producer()
    rewriter.replace(value, output)
    _describe(output, value, perm)
    for node, index in direct:
        rewriter.set_input(node, index, value)
    if transpose is not None:
        rewriter.set_input(transpose, 0, value)


def _merge(node: ir.Node, value: ir.Value, perm: Perm, rewriter: Rewriter) -> None:
    if _is_identity(perm) and rewriter.can_replace(node.outputs[0], value):
        rewriter.replace(node.outputs[0], value)
        rewriter.erase(node)
    else:
        rewriter.set_attribute(node, "perm", list(perm))

