"""widen-convolutions: one-dimensional convolutions are computed as two-dimensional ones of height 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import attribute, constant_tensor
from joulec.passes import _widening as widening
from joulec.passes.base import Context, Pass, PassResult, option

BLOCK = 16
"""Channels of a block of ONNX Runtime's fastest convolutions with AVX-512; half of it without."""


@dataclass(frozen=True)
class WidenConvolutions(Pass):
    """Compute 1-D convolutions as 2-D ones of height 1, where a relayout at the border takes the new dimension in.

    ONNX Runtime has blocked and depthwise kernels for images only. On an AMD EPYC with AVX-512 three convolutions of 64
    channels over 4 samples were 1.9x as fast as images, over 100 samples 1.2x, depthwise ones 4.5x; of 24 channels,
    which fill no block, 0.9x (`benchmarks/widening.py`). An Unsqueeze, Squeeze or Reshape that stands at the border
    does the rest; `added` allows some more of them.
    """

    added: int = option(0, "Unsqueezes and Squeezes that a region may cost, at most as many as convolutions that gain")

    def run(self, module: Module, context: Context) -> PassResult:
        """Find regions of rank 3 around convolutions, and widen those that gain. O(nodes + weights)."""
        rewriter = Rewriter(module, self.pass_name())
        for graph in list(walk.graphs(module.model)):
            for region in _regions(graph) if not self._foreign(graph, rewriter) else ():
                with rewriter.rewriting("widen-convolutions", *region.nodes):
                    self._widen(region, rewriter)
        return PassResult.of(rewriter)

    @staticmethod
    def _foreign(graph: ir.Graph, rewriter: Rewriter) -> bool:
        """Functions import opsets of their own, and hold no initializers."""
        first = next(iter(graph), None)
        return first is None or rewriter.in_function(first)

    def _widen(self, region: _Region, rewriter: Rewriter) -> None:
        cost = sum(not one for one in map(region.widens_source, region.inputs()))
        cost += sum(region.needs_squeeze(value) for value in region.outputs())
        if cost > min(self.added, region.gaining()):
            raise Refused(f"{cost} Unsqueezes and Squeezes would come to it")
        entries = {id(value): self._entry(region, value, rewriter) for value in list(region.inputs())}
        border = list(region.outputs())
        for node, indices in region.nodes.items():
            for index in indices:
                value = node.inputs[index]
                if id(value) in entries:
                    rewriter.set_input(node, index, entries[id(value)])
            widening.widen(node, rewriter)
        for value in (value for node in region.nodes for value in node.outputs):
            widening.insert_dimension(value)
        for value in border:
            self._leave(region, value, rewriter)

    @staticmethod
    def _entry(region: _Region, value: ir.Value, rewriter: Rewriter) -> ir.Value:
        """The value from outside with its new dimension."""
        producer = value.producer()
        if producer is not None and region.widens_source(value):
            widening.widen_source(producer, rewriter)
            widening.insert_dimension(value)
            return value
        anchor = next(node for node, indices in region.nodes.items() if any(node.inputs[i] is value for i in indices))
        return widening.relaid("Unsqueeze", value, anchor, rewriter)

    @staticmethod
    def _leave(region: _Region, value: ir.Value, rewriter: Rewriter) -> None:
        """Readers outside the region take the new dimension away, or get a Squeeze in front."""
        kept = [(usage.node, usage.idx) for usage in value.uses()]
        left = [(node, index) for node, index in region.outside(value) if not widening.takes_in(node, index)]
        for node, index in region.outside(value):
            if widening.takes_in(node, index):
                widening.take_in(node, rewriter)
        if not left and not value.is_graph_output():
            return
        last = value.producer()
        if last is None:
            return
        squeezed = widening.relaid("Squeeze", value, last, rewriter, behind=True)
        made, dims = squeezed.producer(), squeezed.shape
        rewriter.replace(value, squeezed)
        squeezed.shape = dims  # a graph output takes over what was told of `value`
        for node, index in kept:
            if (node, index) not in left:
                rewriter.set_input(node, index, value)
        if made is not None:
            rewriter.set_input(made, 0, value)


@dataclass
class _Region:
    """Connected operators on values of rank 3 that work as well with a dimension of 1 more.

    Attributes:
        graph: where they stand.
        nodes: in graph order; node -> indices of the inputs that get the dimension.
    """

    graph: ir.Graph
    nodes: dict[ir.Node, list[int]]

    def inputs(self) -> Iterator[ir.Value]:
        """Values from outside, each once; constants left out."""
        seen: set[int] = set()
        for node, indices in self.nodes.items():
            for value in (node.inputs[index] for index in indices):
                if value is not None and id(value) not in seen and value.producer() not in self.nodes:
                    seen.add(id(value))
                    yield value

    def outputs(self) -> Iterator[ir.Value]:
        """Values that somebody outside uses."""
        for value in (value for node in self.nodes for value in node.outputs):
            if value.is_graph_output() or any(True for _ in self.outside(value)):
                yield value

    def outside(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Uses of `value` that do not get the dimension."""
        return [(one.node, one.idx) for one in value.uses() if one.idx not in self.nodes.get(one.node, ())]

    def widens_source(self, value: ir.Value) -> bool:
        """Whether what makes a value from outside can make it with one dimension more."""
        alone = not value.is_graph_output() and not self.outside(value)
        producer = value.producer()
        return producer is not None and alone and producer.graph is self.graph and widening.widens(producer)

    def needs_squeeze(self, value: ir.Value) -> bool:
        """Whether somebody outside cannot read a value with one dimension more."""
        mine = (node.graph is self.graph and widening.takes_in(node, index) for node, index in self.outside(value))
        return value.is_graph_output() or not all(mine)

    def gaining(self) -> int:
        """Convolutions that have a faster kernel in two dimensions."""
        return sum(map(_gains, self.nodes))


def _gains(node: ir.Node) -> bool:
    """Whether ONNX Runtime computes this convolution in blocks of channels, as an image."""
    if node.op_type != "Conv" or node.inputs[0] is None or node.inputs[0].dtype is not ir.DataType.FLOAT:
        return False
    weight, groups = constant_tensor(node.inputs[1]), attribute(node, "group", 1)
    if weight is None:
        return False
    outputs, inputs = (int(size) for size in weight.shape.numpy()[:2])
    depthwise = inputs == 1 and groups == outputs
    return outputs % BLOCK == 0 and (depthwise or (groups == 1 and inputs % BLOCK == 0))


def _regions(graph: ir.Graph) -> Iterator[_Region]:
    """The regions of a graph in which a convolution gains, in graph order. Nodes join that share a value."""
    members = {node: indices for node in graph if (indices := widening.data_inputs(node)) is not None}
    if not any(map(_gains, members)):
        return
    joined = nx.Graph()
    for node, indices in members.items():
        joined.add_node(node)
        values = [*(node.inputs[index] for index in indices), *node.outputs]
        joined.add_edges_from((node, ("value", id(value))) for value in values)
    order = {node: index for index, node in enumerate(members)}
    for component in list(nx.connected_components(joined)):
        nodes = sorted((item for item in component if isinstance(item, ir.Node)), key=order.__getitem__)
        region = _Region(graph, {node: members[node] for node in nodes})
        if region.gaining():
            yield region
