"""Residual blocks: branches of an addition that can be left out, so that only the shortcut beside them is left.

Of y = s + f(s) the branch f can go: y = s has the same shape. What goes with it is whatever nobody else reads, the
nodes that the end of the branch dominates when edges are followed backwards from the outputs (post-dominators, found by
networkx). A shortcut may hold one layer of its own, as where a block halves the image; then that layer stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts
from joulec.ir.values import constant_tensor
from joulec.passes._prunable import WEIGHTS

LAYERS = (*WEIGHTS, "Einsum")
"""What a branch must hold one of; Keras spells the products of attention as Einsum."""

SHORTEST = 8
"""Nodes of a shortcut at most: a layer with its bias, normalization and layout."""

LARGEST, NORMALIZATION = 512, 16
"""Nodes of a branch beyond which, and nodes above it up to which, is looked for where it comes from."""

_END = "outputs"


@dataclass(frozen=True)
class Residual:
    """A branch that can be left out.

    Attributes:
        add: the addition behind it.
        shortcut: what stays of the sum.
        nodes: what goes with the branch, in graph order.
    """

    add: ir.Node
    shortcut: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The name of the addition; that of its value where it has none."""
        return self.add.name or self.add.outputs[0].name or ""

    @property
    def joined(self) -> ir.Value:
        """The sum."""
        return self.add.outputs[0]

    @property
    def channel_axis(self) -> int:
        """The axis of channels in the sum: where the last layer of the branch has it."""
        layers = [node for node in self.nodes if node.op_type in LAYERS]
        return 1 if layers[-1].op_type in ("Conv", "ConvTranspose") else -1


def residuals(module: Module) -> Iterator[Residual | tuple[ir.Node, str]]:
    """Every branch of the main graph that can be left out, in graph order; of other additions of computed values the
    reason why neither operand can. O(nodes), times the depth of nesting."""
    tree, facts = _PostDominators(module.graph), ShapeFacts.of(module)
    for node in module.graph:
        if walk.is_onnx(node, "Add") and not any(constant_tensor(value) is not None for value in node.inputs):
            found = _residual(node, tree, facts)
            yield (node, found) if isinstance(found, str) else found


def _residual(add: ir.Node, tree: _PostDominators, facts: ShapeFacts) -> Residual | str:
    first, second = add.inputs
    size, reasons = facts.shape(add.outputs[0]), []
    for shortcut, branch in ((first, second), (second, first)):
        if shortcut is None or branch is None or size is None or facts.shape(shortcut) != size:
            reasons.append("without the other operand it has another shape, or one that is not known")
        elif not tree.serves(branch, add):
            reasons.append("more than the addition reads what its operands are made of")
        elif not _is_beside(shortcut, branch, add, tree):
            reasons.append("no operand is a shortcut past layers that the other goes through")
        else:
            return Residual(add, shortcut, tuple(tree.within(branch)))
    return max(reasons)


def _is_beside(shortcut: ir.Value, branch: ir.Value, add: ir.Node, tree: _PostDominators) -> bool:
    """Whether `branch` is a longer way from where `shortcut` comes from: that value itself, or one layer of it."""
    carried = list(_carried(shortcut))
    if any(tree.reads(branch, value) for value in carried) or _comes_from(branch, carried, tree):
        return _layers(tree.within(branch)) > 0
    if not tree.serves(shortcut, add) or tree.size(shortcut) > SHORTEST:
        return False
    projection = tree.within(shortcut)
    sources = [value for node in projection for value in node.inputs if value is not None]
    split = any(tree.reads(branch, value) for value in sources if constant_tensor(value) is None)
    return split and _layers(projection) == 1 < _layers(tree.within(branch))


def _carried(shortcut: ir.Value) -> Iterator[ir.Value]:
    """What a shortcut carries: itself and, where it is a sum, its parts: of x + f(x) + g(x) g can go as f can."""
    yield shortcut
    maker = shortcut.producer()
    if maker is not None and walk.is_onnx(maker, "Add"):
        yield from (value for value in maker.inputs if value is not None and constant_tensor(value) is None)


def _comes_from(branch: ir.Value, carried: Sequence[ir.Value], tree: _PostDominators) -> bool:
    """Whether a branch reads one of these through a few operators that another branch reads too: a normalization."""
    if tree.size(branch) > LARGEST:
        return False
    wanted, steps, inside = {id(value) for value in carried}, 0, tree.within(branch)
    made = {id(value) for node in inside for value in node.outputs}
    waiting = [value for node in inside for value in node.inputs if value is not None and id(value) not in made]
    seen = {id(value) for value in waiting}
    for value in waiting:
        maker = value.producer()
        if id(value) in wanted:
            return True
        if maker is None or steps > NORMALIZATION or walk.is_onnx(maker, "Add", *LAYERS):
            continue
        steps += 1
        more = [one for one in maker.inputs if one is not None and id(one) not in seen]
        seen.update(map(id, more))
        waiting += more
    return False


def _layers(nodes: Iterable[ir.Node]) -> int:
    return sum(walk.is_onnx(node, *LAYERS) for node in nodes)


class _PostDominators:
    """Which nodes serve a value and nothing else. O(nodes + edges) to make, for graphs as models have them.

    Args:
        graph: the main graph of a model; what a control-flow body reads from outside is read by its node.
    """

    def __init__(self, graph: ir.Graph) -> None:
        backwards: nx.DiGraph = nx.DiGraph()
        self._nodes = list(graph)
        self._at = {id(node): index for index, node in enumerate(self._nodes)}
        self._readers: dict[int, list[int]] = {}
        backwards.add_node(_END)
        for value in graph.outputs:
            self._edge(backwards, _END, value)
        for index, node in enumerate(self._nodes):
            for value in _read(node):
                self._readers.setdefault(id(value), []).append(index)
                self._edge(backwards, index, value)
        self._above: dict[object, object] = nx.immediate_dominators(backwards, _END)
        self._number()

    def _edge(self, backwards: nx.DiGraph, reader: object, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None and id(producer) in self._at:
            backwards.add_edge(reader, self._at[id(producer)])

    def _number(self) -> None:
        """Numbers in preorder: a subtree is an interval of them."""
        tree: nx.DiGraph = nx.DiGraph((above, node) for node, above in self._above.items())
        tree.add_node(_END)
        self._order = list(nx.dfs_preorder_nodes(tree, _END))
        self._number_of = {node: number for number, node in enumerate(self._order)}
        sizes = dict.fromkeys(self._order, 1)
        for node in reversed(self._order):
            if node in self._above:
                sizes[self._above[node]] += sizes[node]
        self._sizes = sizes

    def _maker(self, value: ir.Value) -> int | None:
        producer = value.producer()
        index = None if producer is None else self._at.get(id(producer))
        return index if index in self._number_of else None

    def serves(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether `node` is the only reader of `value`, and its maker makes nothing else."""
        maker, reader = self._maker(value), self._at[id(node)]
        return maker is not None and self._above[maker] == reader and self._readers.get(id(value)) == [reader]

    def size(self, value: ir.Value) -> int:
        """How many nodes serve `value` and nothing else, its maker among them."""
        maker = self._maker(value)
        return 0 if maker is None else self._sizes[maker]

    def within(self, value: ir.Value) -> Sequence[ir.Node]:
        """The nodes that serve `value` and nothing else, in graph order."""
        maker = self._maker(value)
        if maker is None:
            return ()
        start = self._number_of[maker]
        return [self._nodes[index] for index in sorted(self._order[start : start + self._sizes[maker]])]

    def reads(self, value: ir.Value, source: ir.Value) -> bool:
        """Whether a node that serves `value` and nothing else reads `source`."""
        maker = self._maker(value)
        if maker is None:
            return False
        start, stop = self._number_of[maker], self._number_of[maker] + self._sizes[maker]
        numbers = (self._number_of.get(index, -1) for index in self._readers.get(id(source), ()))
        return any(start <= number < stop for number in numbers)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, also inside its bodies."""
    yield from (value for value in node.inputs if value is not None)
    for graph in walk.subgraphs(node):
        yield from graph.outputs
        for inner in graph:
            yield from _read(inner)
