"""Transposes that ONNX Runtime's layout optimizer makes vanish when it loads a model.

It moves transposes through operators that do not care about layout until inverse ones meet. This models the outcome:
connected regions of such operators between Transposes of one permutation and their inverses cancel them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from joulec.energy.constants import Constants
from joulec.ir.walk import is_onnx

AGNOSTIC = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu",
    "Softplus", "Softsign", "Erf", "Gelu", "Mish", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Pow", "Add",
    "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Cast", "Identity", "Dropout", "Concat", "Pad", "Floor", "Ceil",
    "Round",
    "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip
_REDUCTIONS = frozenset({
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL2", "Shape", "Size",
})  # fmt: skip
"""Their axes are renumbered instead: they take either layout."""


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose with a plain `perm`, else None."""
    if not is_onnx(node, "Transpose") or not node.inputs:
        return None
    found = node.attributes.get("perm")
    if found is None or found.type != ir.AttributeType.INTS or not node.outputs:
        return None
    return tuple(int(axis) for axis in found.as_ints())


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    undone = [0] * len(perm)
    for position, axis in enumerate(perm):
        if 0 <= axis < len(perm):
            undone[axis] = position
    return tuple(undone)


def vanishing_transposes(graph: ir.Graph, constants: Constants) -> list[ir.Node]:
    """The Transposes of `graph` that cost nothing at run time. O(nodes), up to the inverse of Ackermann's function."""
    regions = _Regions(graph, constants)
    gone = dict.fromkeys(_adjacent(graph))
    for nodes in regions.groups():
        gone.update(dict.fromkeys(_cancelled(nodes, constants)))
    return list(gone)


def _adjacent(graph: ir.Graph) -> Iterable[ir.Node]:
    """Transposes that directly undo the one before; that one too where nobody else uses it."""
    for node in graph:
        perm = permutation(node)
        if perm is None or node.outputs[0].is_graph_output():
            continue
        users = [usage.node for usage in node.outputs[0].uses()]
        undoing = [user for user in users if permutation(user) == inverse(perm)]
        yield from undoing
        if undoing and len(undoing) == len(users):
            yield node


class _Regions:
    """Union-find over the layout-agnostic nodes of one graph."""

    def __init__(self, graph: ir.Graph, constants: Constants) -> None:
        agnostic = (node for node in graph if node.op_type in AGNOSTIC and is_onnx(node))
        self._nodes = [node for node in agnostic if node not in constants.folded]
        self._parent = {node: node for node in self._nodes}
        self._readers: dict[ir.Node, ir.Node] = {}
        for node in self._nodes:
            for value in node.inputs:
                producer = value.producer() if value is not None else None
                if producer is not None:
                    self._join(node, producer)

    def _join(self, node: ir.Node, producer: ir.Node) -> None:
        """One region: a node and its agnostic producer; all the readers of one Transpose."""
        if permutation(producer) is not None:
            producer = self._readers.setdefault(producer, node)
        if producer in self._parent:
            self._parent[self._find(producer)] = self._find(node)

    def _find(self, node: ir.Node) -> ir.Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def groups(self) -> list[list[ir.Node]]:
        found: dict[ir.Node, list[ir.Node]] = defaultdict(list)
        for node in self._nodes:
            found[self._find(node)].append(node)
        return list(found.values())


def _cancelled(nodes: list[ir.Node], constants: Constants) -> list[ir.Node]:
    """The Transposes around one region that vanish; as many stay as other edges would need a new one."""
    inside = set(nodes)
    entering, foreign = _entering(nodes, inside, constants)
    perms = {permutation(node) for node in entering}
    if len(perms) != 1:
        return []
    (perm,) = perms
    leaving, others = _leaving(nodes, inside, inverse(perm or ()))
    whole = [node for node in entering if _only_feeds(node, inside)]
    candidates = [*whole, *leaving]
    inserted = foreign + others
    return candidates[: len(candidates) - inserted] if len(candidates) > inserted else []


def _entering(nodes: list[ir.Node], inside: set[ir.Node], constants: Constants) -> tuple[list[ir.Node], int]:
    transposes: dict[ir.Node, None] = {}
    foreign: set[ir.Value] = set()
    for node in nodes:
        for value in node.inputs:
            if value is None or value in constants:
                continue
            producer = value.producer()
            if producer is not None and permutation(producer) is not None:
                transposes[producer] = None
            elif (producer is None or producer not in inside) and not _is_small(value):
                foreign.add(value)
    return list(transposes), len(foreign)


def _leaving(nodes: list[ir.Node], inside: set[ir.Node], undo: tuple[int, ...]) -> tuple[list[ir.Node], int]:
    transposes: dict[ir.Node, None] = {}
    others = 0
    for node in nodes:
        for value in node.outputs:
            users = [usage.node for usage in value.uses()]
            transposes.update((user, None) for user in users if permutation(user) == undo)
            stays = [u for u in users if u not in inside and permutation(u) != undo and u.op_type not in _REDUCTIONS]
            others += bool(stays) or value.is_graph_output()
    return list(transposes), others


def _only_feeds(node: ir.Node, inside: set[ir.Node]) -> bool:
    """Whether nobody needs the transposed value but the region, reductions, and Transposes that undo it."""
    undo = inverse(permutation(node) or ())
    users = [usage.node for usage in node.outputs[0].uses()]
    return not node.outputs[0].is_graph_output() and all(
        user in inside or user.op_type in _REDUCTIONS or permutation(user) == undo for user in users
    )


def _is_small(value: ir.Value) -> bool:
    """Scalars and per-channel factors, which are reshaped or moved at no cost worth counting."""
    if value.shape is None:
        return False
    return sum(dim != 1 for dim in value.shape) <= 2
