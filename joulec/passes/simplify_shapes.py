"""simplify-shapes: compute each size once, from the nearest place that has it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import Dims
from joulec.ir.elements import Known
from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts
from joulec.ir.rewrite import Rewriter
from joulec.ir.symbolic import Element, Expr
from joulec.ir.values import constant_tensor
from joulec.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class SimplifyShapes(Pass):
    """Merge shape arithmetic that comes to the same sizes, and gather sizes from one Shape where they are there."""

    def run(self, module: Module, context: Context) -> PassResult:
        """One sweep in graph order, with tables of what was computed before: O(nodes)."""
        facts = ShapeFacts.of(module)
        sweep = _Sweep(facts, Rewriter(module, self.pass_name()))
        for graph in [module.graph, *(function.graph for function in module.model.functions.values())]:
            sweep.graph(graph, _Seen(ChainMap(), ChainMap()))
        return PassResult.of(sweep.rewriter)


@dataclass
class _Seen:
    """What was computed before, here or in the graphs around.

    Attributes:
        values: (dtype, rank, elements) -> the first value that holds them.
        homes: size -> the output of the first Shape that has it among its elements.
    """

    values: ChainMap[Hashable, ir.Value]
    homes: ChainMap[Element, ir.Value]

    def inner(self) -> _Seen:
        return _Seen(self.values.new_child(), self.homes.new_child())


class _Sweep:
    def __init__(self, facts: ShapeFacts, rewriter: Rewriter) -> None:
        self._facts, self.rewriter = facts, rewriter
        self._for_concats: dict[int, bool] = {}

    def graph(self, graph: ir.Graph, seen: _Seen) -> None:
        for node in list(graph):
            for inner in walk.subgraphs(node):
                self.graph(inner, seen.inner())
            known = self._sizes(node)
            if known is not None and not self._merged(node, known, seen):
                self._regathered(node, known, seen)
            elif known is None and walk.is_onnx(node, "Concat"):
                self._runs(node, seen)

    def _sizes(self, node: ir.Node) -> Known | None:
        """The elements of the only output of `node`, if one at least is not just a number."""
        if len(node.outputs) != 1 or not walk.is_onnx(node) or node.outputs[0].dtype is None:
            return None
        known = self._facts.facts.get(id(node.outputs[0]))
        return None if known is None or known.numbers() is not None else known

    def _merged(self, node: ir.Node, known: Known, seen: _Seen) -> bool:
        """Use what was computed before; True where the node is gone or may not be touched."""
        output = node.outputs[0]
        first = seen.values.setdefault((output.dtype, known.rank, known.elements), output)
        if first is output:
            return False
        if not self.rewriter.can_replace(output, first):
            return True
        with self.rewriter.rewriting("same-sizes", node):
            self.rewriter.replace(output, first)
            self.rewriter.erase(node)
        return True

    def _regathered(self, node: ir.Node, known: Known, seen: _Seen) -> None:
        """Take all elements from one Shape: a Gather in place of a Concat, Unsqueeze, Mul, ..."""
        output = node.outputs[0]
        if node.op_type == "Shape":
            for element in known.elements:
                if isinstance(element, Expr):
                    seen.homes.setdefault(element, output)
            return
        if output.dtype != ir.DataType.INT64 or output.is_graph_output() or _reads_shape(node):
            return
        indices = self._indices(known.elements, seen)
        if indices is None:
            if node.op_type == "Concat":
                self._runs(node, seen)
            return
        with self.rewriter.rewriting("sizes-from-one-shape", node):
            gathered = self._gather(node, output, known.rank, *indices)
        seen.values[(ir.DataType.INT64, known.rank, known.elements)] = gathered

    def _gather(self, node: ir.Node, output: ir.Value, dims: int, home: ir.Value, indices: list[int]) -> ir.Value:
        array = np.array(indices, np.int64).reshape(() if dims == 0 else (-1,))
        at = self.rewriter.constant(array, f"{output.name}_indices", at=node)
        (gathered,) = self.rewriter.add("Gather", [home, at], {"axis": 0}, before=node, name=output.name, like=output)
        self._facts.facts[id(gathered)] = self._facts.facts[id(output)]
        self._facts.alive.append(gathered)
        self.rewriter.replace(output, gathered)
        self.rewriter.erase(node)
        return gathered

    def _indices(self, elements: Dims, seen: _Seen) -> tuple[ir.Value, list[int]] | None:
        """A Shape that has all `elements` among its own, and where."""
        homes = (seen.homes.get(element) for element in elements if isinstance(element, Expr))
        for home in dict.fromkeys(home for home in homes if home is not None):
            known = self._facts.facts.get(id(home))
            if known is not None and all(element in known.elements for element in elements):
                return home, [known.elements.index(element) for element in elements]
        return None

    def _runs(self, node: ir.Node, seen: _Seen) -> None:
        """Concat(Unsqueeze(n), Unsqueeze(m), ...) -> Concat(Gather(shape, [i, j]), ...)."""
        run = self._longest_run(node, seen)
        if run is None or node.outputs[0].dtype != ir.DataType.INT64:
            return
        start, stop, home, indices = run
        with self.rewriter.rewriting("run-from-one-shape", node):
            made = self._run(node, home, indices, seen)
            kept = [*node.inputs[:start], made, *node.inputs[stop:]]
            for index, value in enumerate(kept):
                self.rewriter.set_input(node, index, value)
            self.rewriter.drop_inputs(node, len(kept))

    def _run(self, node: ir.Node, home: ir.Value, indices: list[int], seen: _Seen) -> ir.Value:
        """The elements of `home` at `indices`, from before or made now."""
        elements = tuple(self._facts.facts[id(home)].elements[index] for index in indices)
        key = (ir.DataType.INT64, 1, elements)
        if (found := seen.values.get(key)) is not None:
            return found
        hint = node.outputs[0].name or "sizes"
        at = self.rewriter.constant(np.array(indices, np.int64), f"{hint}_indices", at=node)
        (made,) = self.rewriter.add("Gather", [home, at], {"axis": 0}, before=node, name=f"{hint}_sizes")
        made.dtype, made.shape = ir.DataType.INT64, ir.Shape([len(indices)])
        self._facts.facts[id(made)] = Known(1, elements)
        self._facts.alive.append(made)
        seen.values[key] = made
        return made

    def _longest_run(self, node: ir.Node, seen: _Seen) -> tuple[int, int, ir.Value, list[int]] | None:
        best: tuple[int, int, ir.Value, list[int]] | None = None
        start = 0
        while start < len(node.inputs):
            elements: Dims = ()
            stop, found = start, None
            while stop < len(node.inputs) and (known := self._private(node.inputs[stop])) is not None:
                longer = self._indices((*elements, *known.elements), seen)
                if longer is None:
                    break
                stop, elements, found = stop + 1, (*elements, *known.elements), longer
            if found is not None and stop - start > max(1, 0 if best is None else best[1] - best[0]):
                best = (start, stop, *found)
            start = max(stop, start + 1)
        return best

    def _private(self, value: ir.Value | None) -> Known | None:
        """The elements of a value that only Concats use, and that is a step away from a Shape at least."""
        if value is None or constant_tensor(value) is not None or value.is_graph_output():
            return None
        known = self._facts.facts.get(id(value))
        if known is None or known.rank != 1 or known.numbers() is not None:
            return None
        if id(value) not in self._for_concats:  # asked once per value: a size can have many users
            users = (usage.node for usage in value.uses())
            self._for_concats[id(value)] = all(walk.is_onnx(user, "Concat") for user in users)
        return known if self._for_concats[id(value)] else None


def _reads_shape(node: ir.Node) -> bool:
    """Whether `node` is a Gather or Slice of a Shape already."""
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type in ("Gather", "Slice", "Identity") and source is not None and walk.is_onnx(source, "Shape")
