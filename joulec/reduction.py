"""Making a failing model small: first the surroundings of the rewrite in question, then whatever can still go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from joulec.errors import JoulecError
from joulec.ir import walk
from joulec.ir.cut import body_homes, cut, used_values, users
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.values import Array

MAX_TESTS = 400
"""Parts that are tried; each costs a run of one pass and two of the part."""

MAX_RECORDED = 1 << 30
"""Bytes of intermediate values that may become inputs of a part."""


@dataclass(frozen=True)
class Case:
    """A model and what to feed it; None where there is nothing to feed it with."""

    module: Module
    feed: Feed | None


class Reducer:
    """Looks for the smallest part of a model that still fails.

    Args:
        runner: computes the values that become inputs of a part, from the model's own feed.
        fails: whether a part fails as the whole does.
    """

    def __init__(self, runner: Runner | None, fails: Callable[[Case], bool]) -> None:
        self._runner, self._fails, self._left = runner, fails, MAX_TESTS

    def reduce(self, case: Case, seeds: Collection[int]) -> Case | None:
        """The smallest failing part found, or None where not even `case` fails.

        Args:
            case: the whole.
            seeds: positions of the nodes in question in the main graph; the search starts around them.
        """
        found = self._surroundings(case, seeds)
        return None if found is None else self._fewer_outputs(self._shrink(found))

    def _surroundings(self, case: Case, seeds: Collection[int]) -> Case | None:
        """The smallest neighbourhood of the seeds that fails: 0, 1, 2, 4, ... steps along the edges."""
        layers = _layers(case.module.graph, seeds)
        reach = 1
        while reach < len(layers):
            part = self._part(case, [index for layer in layers[:reach] for index in layer])
            if part is not None and self._try(part):
                return part
            reach = 2 * reach if reach > 1 else 2
        return case if self._try(case) else None

    def _shrink(self, case: Case) -> Case:
        """Leave out halves, quarters, ... and at last single nodes, while what is left fails."""
        size = max(1, len(case.module.graph) // 2)
        while True:
            before, case = len(case.module.graph), self._without_runs_of(size, case)
            if size > 1:
                size //= 2
            elif len(case.module.graph) == before:
                return case

    def _without_runs_of(self, size: int, case: Case) -> Case:
        start = 0
        while start < (count := len(case.module.graph)) and count > 1 and self._left > 0:
            smaller = self._part(case, [i for i in range(count) if not start <= i < start + size])
            if smaller is not None and len(smaller.module.graph) < count and self._try(smaller):
                case = smaller
            else:
                start += size
        return case

    def _fewer_outputs(self, case: Case) -> Case:
        """One output, if one is enough."""
        if len(case.module.graph.outputs) < 2:
            return case
        for index in range(len(case.module.graph.outputs)):
            single = case.module.clone()
            single.graph.outputs[:] = [single.graph.outputs[index]]
            if self._try(replace(case, module=single)):
                return replace(case, module=single)
        return case

    def _try(self, case: Case) -> bool:
        self._left -= 1
        return self._fails(case)

    def _part(self, case: Case, kept: Iterable[int]) -> Case | None:
        """The part and its feed; None where it has no outputs, or needs a value that cannot be fed."""
        kept = list(kept)
        part = cut(case.module, kept) if kept and self._left > 0 else None
        if part is None or case.feed is None:
            return None if part is None else Case(part, None)
        new = [value.name or "" for value in part.inputs() if value.name not in case.feed]
        values = self._record(case.module, case.feed, new)
        if values is None:
            return None
        for value in part.inputs():
            if value.dtype is None and (made := values.get(value.name or "")) is not None:
                value.dtype = ir.DataType.from_numpy(made.dtype)
        return Case(part, {v.name or "": values.get(v.name or "", case.feed.get(v.name or "")) for v in part.inputs()})  # type: ignore[misc]

    def _record(self, module: Module, feed: Feed, names: list[str]) -> dict[str, Array] | None:
        """What the values called `names` are on `feed`."""
        if not names:
            return {}
        if self._runner is None:
            return None
        try:
            handle = self._runner.load(module, extra_outputs=names)
            try:
                found = self._runner.run(handle, feed)
            finally:
                self._runner.unload(handle)
        except JoulecError:  # a value that cannot be returned, a sequence for one: another part will do
            return None
        arrays = {name: found.get(name) for name in names}
        if any(not hasattr(array, "nbytes") for array in arrays.values()):
            return None
        kept = {name: array for name, array in arrays.items() if array is not None}
        return kept if sum(array.nbytes for array in kept.values()) <= MAX_RECORDED else None


def _layers(graph: ir.Graph, seeds: Collection[int]) -> list[list[int]]:
    """Positions of nodes by their distance from the seeds; those out of reach in one last layer. O(nodes + edges)."""
    nodes, homes = list(graph), body_homes(graph)
    position = {node: index for index, node in enumerate(nodes)}
    seen = dict.fromkeys(sorted(seeds))
    layers = [list(seen)]
    while layers[-1]:
        found: dict[int, None] = {}
        for index in layers[-1]:
            found.update((position[node], None) for node in _neighbours(nodes[index], homes) if node in position)
        layers.append([index for index in found if index not in seen])
        seen.update(dict.fromkeys(layers[-1]))
    layers[-1] = [index for index in range(len(nodes)) if index not in seen]
    return layers if layers[-1] else layers[:-1]


def _neighbours(node: ir.Node, homes: dict[int, ir.Node]) -> Iterable[ir.Node]:
    for value in used_values(node):
        if (producer := value.producer()) is not None:
            yield producer
    for output in node.outputs:
        yield from users(output, homes)


def differing(before: Module, after: Module, names: Collection[str]) -> list[int]:
    """Positions of the main graph's nodes in `before` that are called one of `names`, or that `after` lacks or holds
    otherwise, themselves or in a body. O(nodes)."""
    held = {_form(node) for node in walk.nodes(after.model)}
    changed = {node for node in walk.nodes(before.model) if node.name in names or _form(node) not in held}
    bodies = {key for key, f in before.model.functions.items() if any(n in changed for n in f.graph.all_nodes())}
    return [
        index
        for index, node in enumerate(before.graph)
        if node in changed or node.op_identifier() in bodies or _holds(node, changed)
    ]


def _holds(node: ir.Node, changed: set[ir.Node]) -> bool:
    return any(inner in changed for graph in walk.subgraphs(node) for inner in graph.all_nodes())


def _form(node: ir.Node) -> tuple[object, ...]:
    """What a rewrite may change of a node; tensors and bodies, which are nodes of their own, by their kind only."""
    inputs = tuple(None if value is None else value.name for value in node.inputs)
    outputs = tuple(value.name for value in node.outputs)
    plain = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING, ir.AttributeType.INTS)
    attributes = tuple((k, str(a.value) if a.type in plain else str(a.type)) for k, a in node.attributes.items())
    return node.op_type, node.domain, node.name, inputs, outputs, attributes
