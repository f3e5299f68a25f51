"""Which channels belong together: every index along every axis of a weight gets a label, and operators unite labels.

Labels flow through the graph once, in order. A convolution hands its output the labels of its weight's outputs and
unites its weight's inputs with what it reads; an addition unites its operands; a concatenation concatenates. What an
operator reads in a way that is not known is frozen. Labels that are one in the end go together or stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, constant_tensor

Axes = list[Array | None]
"""Labels per axis; None for an axis whose size stays as it is."""

Kept = Callable[[Array], Array]
"""Labels to booleans: whether each is kept."""


@dataclass(frozen=True)
class Edit:
    """Something of a node that holds sizes, positions or counts of channels, and must follow when some go.

    Attributes:
        node: whose attribute or constant input it is.
        labels: what it depends on.
        apply: makes it right.
    """

    node: ir.Node
    labels: Array
    apply: Callable[[Rewriter, Kept], None]


@dataclass(frozen=True)
class Sum:
    """A sum of products over labelled channels: where removed channels are missed, and can be made up for.

    Attributes:
        node: the operator.
        value: what it reads.
        axis: the axis of `value` that it sums over.
        weight: its weight.
        weight_axis: the same channels there.
        outputs: the axis of `weight` with the operator's outputs.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    weight: ir.Value
    weight_axis: int
    outputs: int


@dataclass
class Group:
    """Channels that must be chosen among together.

    Attributes:
        units: roots of the labels that may go, ascending; each stands for all channels tied to it.
        width: channels that the first maker makes of them; more than `units` where several are tied.
        nodes: the operators that make the channels.
        frozen: why none may go, or None.
    """

    units: Array
    width: int
    nodes: tuple[ir.Node, ...]
    frozen: str | None = None


@dataclass
class Labels:
    """Labels of all axes of all values, and who is one with whom.

    Attributes:
        untouchable: ids of constants that must stay as they are.
        axes, values: labels and value, by the id of the value.
        weights: ids of what is computed from constants alone.
        edits, sums: what must follow, and where channels are summed over.
        reads: every weight that multiplies channels which are then summed, and its axis with them.
        makers: the output labels of every product with a weight, and its node.
        escaped: labels summed over by something that is no stored weight.
    """

    untouchable: set[int] = field(default_factory=set)
    axes: dict[int, Axes] = field(default_factory=dict)
    values: dict[int, ir.Value] = field(default_factory=dict)
    weights: set[int] = field(default_factory=set)
    edits: list[Edit] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    reads: list[tuple[ir.Value, int]] = field(default_factory=list)
    makers: list[tuple[Array, ir.Node]] = field(default_factory=list)
    escaped: list[Array] = field(default_factory=list)
    _parent: Array = field(default_factory=lambda: np.zeros(1024, np.int64))
    _count: int = 0
    _frozen: list[tuple[Array, str]] = field(default_factory=list)

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether a value is the same on every run: stored, or computed from what is stored."""
        return value is not None and (id(value) in self.weights or constant_tensor(value) is not None)

    def of(self, value: ir.Value) -> Axes | None:
        """Labels of a value, one entry per axis; None where its rank is not known. Constants get theirs here."""
        if id(value) not in self.axes:
            tensor = constant_tensor(value)
            if tensor is not None:
                self._label(value, tuple(int(dim) for dim in tensor.shape.numpy()))
            elif value.shape is None:
                return None
            else:
                self.set(value, [None] * len(value.shape))
        return self.axes[id(value)]

    def _label(self, value: ir.Value, shape: tuple[int, ...]) -> None:
        """One-element axes have no labels: they are stretched where they meet longer ones."""
        self.set(value, [self.fresh(size) if size > 1 else None for size in shape])
        if id(value) in self.untouchable:
            self.freeze(self.axes[id(value)], f"'{value.name}' is used where it cannot be changed")

    def set(self, value: ir.Value, axes: Axes) -> None:
        self.axes[id(value)] = axes
        self.values[id(value)] = value

    def fresh(self, size: int) -> Array:
        """New labels, one of none."""
        start, self._count = self._count, self._count + size
        while self._count > self._parent.size:
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        self._parent[start : self._count] = np.arange(start, self._count)
        return np.arange(start, self._count)

    def roots(self, labels: Array) -> Array:
        """The label that stands for each."""
        found = self._parent[labels]
        while not np.array_equal(found, above := self._parent[found]):
            found = above
        return found

    def unite(self, one: Array | None, other: Array | None, reason: str) -> Array | None:
        """Make labels one, index by index. Where only one side has labels, the other never changes: they freeze."""
        if one is None or other is None or one.shape != other.shape:
            self.freeze([one, other], reason)
            return None
        while True:
            a, b = self.roots(one), self.roots(other)
            if np.array_equal(a, b):
                return one
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def freeze(self, axes: Iterable[Array | None], reason: str) -> None:
        """These may not go."""
        self._frozen += [(labels, reason) for labels in axes if labels is not None and labels.size]

    def make(self, labels: Array | None, node: ir.Node) -> None:
        """`node` computes these channels from a weight."""
        if labels is not None:
            self.makers.append((labels, node))

    def escape(self, labels: Array | None) -> None:
        """These are read by more than the sums in `sums`."""
        if labels is not None:
            self.escaped.append(labels)

    def groups(self) -> list[Group]:
        """Channels that the same operators make, or that are united with such, in the order of their makers."""
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for root in np.unique(self.roots(labels)).tolist():
                reasons.setdefault(root, reason)
        graph = nx.Graph()
        rooted = [np.unique(self.roots(labels)).tolist() for labels, _ in self.makers]
        for index, roots in enumerate(rooted):
            graph.add_node(("maker", index))
            graph.add_edges_from((("maker", index), ("root", root)) for root in roots)
        parts = [sorted(name for kind, name in part if kind == "maker") for part in nx.connected_components(graph)]
        return [self._group(part, rooted, reasons) for part in sorted(parts)]

    def _group(self, makers: Sequence[int], rooted: Sequence[Sequence[int]], reasons: dict[int, str]) -> Group:
        roots = sorted({root for maker in makers for root in rooted[maker]})
        free = np.array([root for root in roots if root not in reasons], np.int64)
        nodes = tuple(dict.fromkeys(self.makers[maker][1] for maker in makers))
        width = int(np.isin(self.roots(self.makers[makers[0]][0]), free).sum())
        reason = next((reasons[root] for root in roots if root in reasons), None)
        return Group(free, max(width, free.size), nodes, reason if free.size == 0 else None)
