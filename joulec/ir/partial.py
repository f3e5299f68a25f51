"""Symbolic shapes: the dimensions of every tensor, and the elements of small integer tensors, as expressions.

One forward sweep over the graph, O(nodes). `Shape` yields the dimensions of its input, shape arithmetic carries them on
(`joulec/ir/elements.py`), and what takes shapes as data turns them into dimensions again (`joulec/ir/dims.py`). What is
not known is an atom of its own, equal to nothing but itself, so that facts say "the same size" without saying which.

Symbols are those of the graph inputs; equal names are equal sizes, as ONNX has it. What a file declares of its other
values and outputs is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from joulec.ir import dims, elements, walk
from joulec.ir.dims import Dims
from joulec.ir.elements import KINDS, MAX_ELEMENTS, Known, known_constant
from joulec.ir.module import Module
from joulec.ir.symbolic import Element, Expr, Symbols, vanishes_with
from joulec.ir.values import constant_tensor

_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_NAMELESS = frozenset({"none", "unk", "unknown", "dynamic", "any", "nan"})
"""What exporters write for sizes that have no name, several in one shape."""


@dataclass
class ShapeFacts:
    """What is known of the values of a module. A fact about a value outlives every rewrite that keeps the value."""

    symbols: Symbols = field(default_factory=Symbols)
    facts: dict[int, Known] = field(default_factory=dict)
    shapes: dict[int, Dims] = field(default_factory=dict)
    alive: list[object] = field(default_factory=list)
    inputs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: Module) -> ShapeFacts:
        """Sweep over all graphs of `module`. Facts belong to its own values, so a copy of it has none of them."""
        named = (dim.value for value in module.graph.inputs for dim in value.shape or () if not isinstance(dim, int))
        found = cls(inputs=frozenset(name for name in named if name is not None and _is_name(name)))
        found._all(module)
        if found._assume_success(module.graph):
            found.facts.clear()
            found.shapes.clear()
            found._all(module)
        return found

    def _all(self, module: Module) -> None:
        for graph in [module.graph, *(function.graph for function in module.model.functions.values())]:
            self._sweep(graph, module.graph)

    def _assume_success(self, main: ir.Graph) -> bool:
        """Take sizes to be positive without which a Reshape that always runs would fail; whether that is news.

        Where such a size is 0 the model stops with an error, so a rewrite may do there what it likes.
        """
        needed = [(node, element) for node in main for element in self._nonzero(node)]
        if not needed:
            return False
        live = _live(main)
        news = [self.symbols.assume_positive(element) for node, element in needed if id(node) in live]
        return any(news)

    def _nonzero(self, node: ir.Node) -> Sequence[Element]:
        """The elements of a Reshape's target that must not be 0: those with nothing to copy, and those beside a -1 with
        nothing but a 0 to copy."""
        if not walk.is_onnx(node, "Reshape") or len(node.inputs) < 2:
            return ()
        zero = node.attributes.get("allowzero")
        if zero is not None and (zero.is_ref() or zero.as_int()):
            return ()
        known, data = self.facts.get(id(node.inputs[1])), self.shape(node.inputs[0])
        if known is None or known.rank != 1 or not all(e == -1 or self.symbols.is_size(e) for e in known.elements):
            return ()
        if data is None:
            return ()
        fits = -1 in known.elements
        pairs = [(e, data[i] if i < len(data) else None) for i, e in enumerate(known.elements)]
        return [
            element for element, copied in pairs
            if isinstance(element, Expr) and (copied is None or (fits and vanishes_with(copied, element)))
        ]  # fmt: skip

    # -- questions ------------------------------------------------------------------------------------------

    def get(self, value: ir.Value | None) -> Known | None:
        """What is known of the elements of `value`; a small integer constant is known by its numbers."""
        if value is None:
            return None
        return self.facts.get(id(value)) or known_constant(value)

    def elements(self, value: ir.Value | None) -> Known | None:
        """Like `get`, with an atom for each element of a small integer vector of which only the length is known."""
        found = self.get(value)
        if found is not None or value is None or value.dtype not in KINDS:
            return found
        shape = self.shape(value)
        if shape is None or len(shape) > 1 or not all(isinstance(d, int) and d <= MAX_ELEMENTS for d in shape):
            return None
        count = self.symbols.product(shape)
        bool_ = 0 if value.dtype == ir.DataType.BOOL else None
        atoms = [self._atom("element", value, index, bool_) for index in range(count if isinstance(count, int) else 0)]
        return Known(len(shape), tuple(atoms))

    def shape(self, value: ir.Value | None) -> Dims | None:
        """The dimensions of `value`; None where not even the rank is known."""
        if value is None:
            return None
        found = self.shapes.get(id(value))
        if found is not None:
            return found
        tensor = constant_tensor(value)
        return None if tensor is None else tuple(int(d) for d in tensor.shape.numpy())

    def unknown(self, value: ir.Value, axis: int) -> Expr:
        """The atom for dimension `axis` of `value`, of which nothing is known."""
        return self._atom("dim", value, axis, 0)

    def _atom(self, kind: str, value: ir.Value, index: int, least: int | None) -> Expr:
        self.alive.append(value)  # keeps its id from being reused
        return self.symbols.atom((kind, id(value), index), least)

    # -- the sweep ------------------------------------------------------------------------------------------

    def _sweep(self, graph: ir.Graph, main: ir.Graph) -> None:
        for value in graph.inputs:
            self._declared(value, graph)
        for node in graph:
            if node.attributes:
                for inner in walk.subgraphs(node):
                    self._sweep(inner, main)
            self._visit(node, graph is main, main)

    def _declared(self, value: ir.Value, graph: ir.Graph) -> None:
        if value.shape is None:
            return
        self.shapes[id(value)] = tuple(self._declared_dim(value, i, graph) for i in range(len(value.shape)))
        self.alive.append(value)

    def _declared_dim(self, value: ir.Value, axis: int, graph: ir.Graph) -> Element:
        dim = value.shape[axis] if value.shape is not None else None
        if isinstance(dim, int):
            return dim if dim >= 0 else self.unknown(value, axis)
        if dim is not None and dim.value is not None and _is_name(dim.value):
            # a body may use a name of its own for another size
            return self.symbols.atom(("symbol", id(graph), dim.value))
        return self.unknown(value, axis)

    def _visit(self, node: ir.Node, outer: bool, main: ir.Graph) -> None:
        op, onnx = node.op_type, walk.is_onnx(node)
        found = _guarded(dims.RULES.get(op), node, self) if onnx else None
        if onnx and op == "If":
            found = self._branches(node)
        for index, output in enumerate(node.outputs):
            self._settle(output, None if found is None or index >= len(found) else found[index], outer, main)
        known = _guarded(elements.RULES.get(op), node, self) if onnx and op in elements.RULES and node.outputs else None
        if known is not None and len(known.elements) <= MAX_ELEMENTS:
            self.facts[id(node.outputs[0])] = known
            self.alive.append(node.outputs[0])

    def _settle(self, value: ir.Value, found: Dims | None, outer: bool, main: ir.Graph) -> None:
        """Store the dimensions of `value`: what its rule found, made exact by the numbers that onnx inferred."""
        inferred = None if value.is_graph_output() else value.shape
        if found is None and inferred is not None:
            found = tuple(self._inferred_dim(value, dim, i, outer, main) for i, dim in enumerate(inferred))
        elif found is not None and inferred is not None and len(inferred) == len(found):
            pairs = zip(found, inferred, strict=True)
            found = tuple(new if isinstance(new, int) and isinstance(old, Expr) else old for old, new in pairs)
        if found is None or any(isinstance(dim, int) and dim < 0 for dim in found):
            return
        self.shapes[id(value)] = found
        self.alive.append(value)
        if outer:  # what exists in a branch need not exist
            for dim in found:
                self.symbols.declare_size(dim)

    def _inferred_dim(self, value: ir.Value, dim: Any, axis: int, outer: bool, main: ir.Graph) -> Element:
        if isinstance(dim, int):
            return dim
        if outer and dim.value in self.inputs:
            return self.symbols.atom(("symbol", id(main), dim.value))
        return self.unknown(value, axis)

    def _branches(self, node: ir.Node) -> Sequence[Dims | None]:
        """The dimensions of an If: what both branches agree on."""
        graphs = list(walk.subgraphs(node))
        results = [[self.shape(value) for value in graph.outputs] for graph in graphs]
        if len(results) != 2:
            return []
        return [
            one if one is not None and one == other and self._is_outer(one) else None
            for one, other in zip(*results, strict=False)
        ]

    def _is_outer(self, found: Dims) -> bool:
        return all(isinstance(dim, int) for dim in found)


def _live(graph: ir.Graph) -> set[int]:
    """The ids of the nodes of `graph` that an output depends on; what depends on none does not run."""
    found: set[int] = set()
    stack = [value.producer() for value in graph.outputs]
    while stack:
        node = stack.pop()
        if node is None or id(node) in found:
            continue
        found.add(id(node))
        inner = (user for body in walk.subgraphs(node) for user in _all_nodes(body))
        stack += [value.producer() for user in (node, *inner) for value in user.inputs if value is not None]
        stack += [value.producer() for body in walk.subgraphs(node) for value in body.outputs]
    return found


def _all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in walk.subgraphs(node):
            yield from _all_nodes(inner)


def _guarded(rule: Callable[[ir.Node, ShapeFacts], Any] | None, node: ir.Node, facts: ShapeFacts) -> Any:
    """What `rule` says of `node`; None where the node is not as its operator's definition wants it."""
    if rule is None:
        return None
    try:
        return rule(node, facts)
    except (LookupError, ValueError, TypeError, ZeroDivisionError, StopIteration):
        return None


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name.lower() not in _NAMELESS


def reshape_target(
    symbols: Symbols, data: Dims, target: Sequence[Element], result: Dims | None, allow_zero: bool
) -> list[int] | None:
    """The constant target (for `allowzero` 0) that does what a partly known one does: 0 keeps a dimension, -1 fits one.

    Args:
        symbols: knows which sizes are positive.
        data: the dimensions of what is reshaped.
        target: the elements of the target.
        result: the dimensions of the result, which may say what a -1 comes to.
        allow_zero: whether a 0 in `target` means an empty dimension.

    Returns:
        None where more than one element stays unknown. A fitted -1 beside a kept size that may be 0 is not taken
        either, unless the target itself held the -1: it could not be fitted there.
    """
    if any(isinstance(e, int) and e < -1 for e in target):
        return None
    results = [None] * len(target) if result is None else result
    found = [_target_element(data, i, e, results[i], allow_zero) for i, e in enumerate(target)]
    if None in found:
        return None
    whole = [e for e in found if e is not None]
    # where a 0 means an empty dimension, runtimes fit the -1 from the others, and can
    given = not allow_zero and -1 in target and found[list(target).index(-1)] == -1
    if whole.count(-1) > 1 or (-1 in whole and not given and not fits_beside(symbols, data, whole)):
        return None
    return whole


def fits_beside(symbols: Symbols, data: Dims, target: Sequence[int]) -> bool:
    """Whether a -1 in `target` can be fitted whatever the sizes: the dimensions that it keeps are positive."""
    kept = [symbols.least(data[index]) for index, element in enumerate(target) if element == 0 and index < len(data)]
    return all(least is not None and least > 0 for least in kept)


def _target_element(data: Dims, index: int, element: Element, result: Element | None, allow_zero: bool) -> int | None:
    kept = data[index] if index < len(data) else None
    if element == -1 and result is not None and result != 0 and (isinstance(result, int) or result == kept):
        element = result
    if isinstance(element, int):
        if element == 0 and allow_zero:
            return 0 if kept == 0 else None
        return element
    return 0 if element == kept else -1
