"""Telling a runtime which unknown sizes are equal: residual additions of images whose height and width are symbolic.

ONNX Runtime lets a convolution add its other operand while it stores its result, but only where it can prove that both
have one shape. Its own inference gives every computed size a name of its own; these are proven equal as expressions.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import Dims
from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts
from joulec.ir.symbolic import Element

IMAGE = 4
"""Rank of a batch of images. Values of rank 3 are left alone: where their shapes are declared, ONNX Runtime fuses
residual additions of transformers into an operator that is slower on the CPU."""


def declare_equal_sizes(module: Module) -> list[ir.Value]:
    """Give sizes that are provably equal one name, in the operands of additions of images. O(nodes).

    Returns:
        The values whose shapes are declared with these names now.
    """
    found = list(_residuals(module))
    if not found:
        return []
    facts = ShapeFacts.of(module)
    names, taken = _names_of_inputs(module, facts)
    declared: dict[ir.Value, None] = {}
    for operands in found:
        dims = _equal_dims([facts.shape(value) for value in operands])
        if dims is None:
            continue
        shape = [dim if isinstance(dim, int) else _named(dim, names, taken) for dim in dims]
        for value in operands:
            value.shape = ir.Shape(shape)
            declared[value] = None
    return list(declared)


def _residuals(module: Module) -> Iterator[list[ir.Value]]:
    """The operands of every addition in the main graph of images that are computed and partly unknown in size."""
    for node in module.graph:
        if not walk.is_onnx(node, "Add", "Sum") or len(node.inputs) < 2 or node.attributes:
            continue
        operands = [value for value in node.inputs if value is not None and value.producer() is not None]
        open_ = [value for value in operands if value.type is not None and _is_open_image(value)]
        if len(open_) == len(node.inputs) and not any(value.is_graph_output() for value in open_):
            yield open_


def _is_open_image(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == IMAGE and any(not isinstance(d, int) for d in value.shape)


def _equal_dims(shapes: list[Dims | None]) -> Dims | None:
    first = shapes[0]
    if first is None or len(first) != IMAGE or any(other != first for other in shapes[1:]):
        return None
    return None if all(isinstance(dim, int) for dim in first) else first


def _names_of_inputs(module: Module, facts: ShapeFacts) -> tuple[dict[Element, str], set[str]]:
    """The names that the model itself gives to sizes, and all names that are taken."""
    names: dict[Element, str] = {}
    taken: set[str] = set()
    for graph in walk.graphs(module.model):
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            symbols = [] if value.shape is None else [dim.value for dim in value.shape if not isinstance(dim, int)]
            taken.update(symbol for symbol in symbols if symbol)
    known: dict[str, set[Element]] = {}
    for value in module.graph.inputs:
        for dim, element in zip(value.shape or (), facts.shape(value) or (), strict=False):
            if not isinstance(dim, int) and dim.value and not isinstance(element, int):
                known.setdefault(dim.value, set()).add(element)
    for name, elements in known.items():
        if len(elements) == 1:  # exporters write "?" for any size, several times
            names.setdefault(next(iter(elements)), name)
    return names, taken


def _named(element: Element, names: dict[Element, str], taken: set[str]) -> str:
    if element not in names:
        count = len(names)
        while f"size_{count}" in taken:
            count += 1
        names[element] = f"size_{count}"
        taken.add(names[element])
    return names[element]
