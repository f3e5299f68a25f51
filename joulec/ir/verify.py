"""Verification: is the module still a valid program with the same signature, and do masked weights stay zero?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from joulec.errors import CheckError
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.shapes import first_line, skeleton_of
from joulec.ir.values import constant


@dataclass(frozen=True)
class Signature:
    """What callers see: (name, type, shape) of every input and output, in order."""

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, module: Module) -> Signature:
        """Read it off a module."""
        graph = module.graph
        return cls(tuple(map(_describe, graph.inputs)), tuple(map(_describe, graph.outputs)))


def _describe(value: ir.Value) -> tuple[str, str, str]:
    return value.name or "", str(value.type), str(value.shape)


class Verifier:
    """Checks a module against the state it had when the verifier was made.

    What was already wrong then (a file that the ONNX checker rejects, though runtimes accept it) is not held against
    later passes; everything new is.
    """

    def __init__(self, module: Module) -> None:
        self.signature = Signature.of(module)
        self.known_problem = checker_problem(module)

    def verify(self, module: Module) -> None:
        """Check structure, signature, masks and, where the input passed it, the ONNX checker.

        Raises:
            CheckError: the first thing that is wrong, with the node or value it is wrong at.
        """
        for broken in problems(module):
            raise CheckError(broken)
        now = Signature.of(module)
        if now != self.signature:
            raise CheckError(f"the model's signature changed: {_first_difference(self.signature, now)}")
        if self.known_problem is None and (problem := checker_problem(module)) is not None:
            raise CheckError(f"the ONNX checker refuses the model: {problem}")


def problems(module: Module) -> Iterator[str]:
    """Yield what is structurally wrong: undefined or misordered values, duplicate names, broken masks."""
    yield from _scope_problems(module.graph)
    for function in module.model.functions.values():
        yield from _scope_problems(function.graph)
    yield from mask_problems(module)


def _scope_problems(graph: ir.Graph, outer: tuple[set[int], ...] = ()) -> Iterator[str]:
    defined = {id(value) for value in graph.inputs} | {id(value) for value in graph.initializers.values()}
    scopes = (*outer, defined)  # a chain, not a union: a union per subgraph would be quadratic
    names = {value.name for value in graph.inputs} | set(graph.initializers)
    for name, initializer in graph.initializers.items():
        if initializer.const_value is None:
            yield f"initializer '{name}' has no value"
    for node in graph:
        for used in node.inputs:
            if used is not None and not any(id(used) in scope for scope in scopes):
                yield f"{walk.label(node)} uses '{used.name}', which is not defined before it"
        for inner in walk.subgraphs(node):
            yield from _scope_problems(inner, scopes)
        for value in node.outputs:
            defined.add(id(value))
            if value.name and value.name in names:
                yield f"{walk.label(node)} defines '{value.name}' a second time"
            names.add(value.name)
    for value in graph.outputs:
        if not any(id(value) in scope for scope in scopes):
            yield f"graph output '{value.name}' is not computed"


def mask_problems(module: Module) -> Iterator[str]:
    """Yield every mask that names no initializer, has another shape, or whose masked weights are not zero."""
    if not module.masks:
        return
    initializers = {name: value for graph in walk.graphs(module.model) for name, value in graph.initializers.items()}
    for name, mask in module.masks.items():
        value: ir.Value | None = initializers.get(name)
        if value is None or value.const_value is None:
            yield f"mask '{name}' names no initializer"
            continue
        weights = value.const_value.numpy()
        if weights.shape != mask.shape:
            yield f"mask '{name}' has shape {mask.shape}, its initializer {weights.shape}"
        elif np.any((weights != _zero_of(value)) & ~mask):
            yield f"initializer '{name}': a weight that its mask removes is not zero"


def _zero_of(value: ir.Value) -> object:
    """What zero is for a weight: 0, or the zero-point of the DequantizeLinear that reads it."""
    for usage in value.uses():
        node = usage.node
        if walk.is_onnx(node, "DequantizeLinear") and node.inputs[0] is value and len(node.inputs) > 2:
            zero_point = constant(node.inputs[2])
            if zero_point is not None and zero_point.size and np.all(zero_point == zero_point.flat[0]):
                return zero_point.flat[0]
    return 0


def checker_problem(module: Module) -> str | None:
    """What `onnx.checker` says against the model's structure (weights left out), or None."""
    return module.derive("checker", lambda: _ask_checker(module))


def _ask_checker(module: Module) -> str | None:
    try:
        onnx.checker.check_model(skeleton_of(module), full_check=False)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        return first_line(error)
    return None


def _first_difference(before: Signature, after: Signature) -> str:
    for kind, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        if len(old) != len(new):
            return f"{len(old)} {kind}s became {len(new)}"
        for one, other in zip(old, new, strict=True):
            if one != other:
                return f"{kind} {' '.join(one)} became {' '.join(other)}"
    return "no difference"
