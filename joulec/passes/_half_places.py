"""Which inputs and outputs of a node become 16-bit floats when the node does, and why some nodes never do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.kernel_table import KernelTable, opset_of, schema_of

FLOAT = ir.DataType.FLOAT

SUMS_NARROW = frozenset({"CumSum"})
"""Operators whose CUDA kernels add up in the type of their input. All others with sums in them (products, norms,
Softmax, reductions, poolings) take 16-bit floats and add up in float32, so they need no conversion for it."""

TYPED_BY_ATTRIBUTE = frozenset({"Cast", "ConstantOfShape"})
"""Operators whose result's type is an attribute that the pass sets."""


@dataclass(frozen=True)
class Places:
    """The float32 inputs and outputs of a node that become 16-bit floats, by position."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def places(node: ir.Node, imports: Mapping[str, int], table: KernelTable, half: str) -> Places | str | None:
    """What changes its type if `node` computes in `half`; a reason why it cannot; None where it has no float32.

    Args:
        node: of a graph whose values are typed.
        imports: opsets by domain.
        table: the kernels of the target.
        half: `float16` or `bfloat16`, as the kernel table spells it.
    """
    if walk.is_onnx(node, "Constant") or not any(map(_is_float, (*node.inputs, *node.outputs))):
        return None
    if next(walk.subgraphs(node), None) is not None:
        return "it holds graphs of its own"
    found = _by_schema(node, imports, half) if node.domain in walk.ONNX_DOMAINS else _by_table(node, table, half)
    if isinstance(found, str):
        return found
    if walk.is_onnx(node, *SUMS_NARROW):
        return f"its kernel adds up in {half}"
    if table.refusal(node, imports) is None and (reason := table.refusal(node, imports, {"float": half})) is not None:
        return reason
    return found if found.inputs or found.outputs else None


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT


def _by_schema(node: ir.Node, imports: Mapping[str, int], half: str) -> Places | str:
    opset = opset_of(node, imports)
    schema = schema_of(node.op_type, opset)
    if schema is None:
        return "its operator is not known"
    takes = {one.type_param_str: f"tensor({half})" in one.allowed_type_strs for one in schema.type_constraints}
    inputs = _matched(node.inputs, [formal.type_str for formal in schema.inputs])
    outputs = _matched(node.outputs, [formal.type_str for formal in schema.outputs])
    if any(not takes.get(kind, True) for _, kind in (*inputs, *outputs)):
        return f"its operator takes no {half} in opset {opset}"
    made = tuple(place for place, kind in outputs if kind in takes)
    if made and not _follows(node, {kind for _, kind in inputs}, {kind for _, kind in outputs if kind in takes}):
        return "the type of its result is an attribute"
    return Places(tuple(place for place, kind in inputs if kind in takes), made)


def _matched(values: Sequence[ir.Value | None], kinds: Sequence[str]) -> list[tuple[int, str]]:
    """(Position, type parameter) of every float32 value; what lies beyond the last formal one is like it."""
    found = ((index, value, kinds[min(index, len(kinds) - 1)]) for index, value in enumerate(values) if kinds)
    return [(index, kind) for index, value, kind in found if _is_float(value)]


def _follows(node: ir.Node, given: set[str], made: set[str]) -> bool:
    """Whether the types of the results follow from those of the inputs, or from an attribute that is ours to set."""
    return made <= given or node.op_type in TYPED_BY_ATTRIBUTE


def _by_table(node: ir.Node, table: KernelTable, half: str) -> Places | str:
    """An operator of the runtime's own: where all its type parameters may be `half`, all its floats are."""
    kernels = table.kernels.get((node.domain, node.op_type), ())
    every = [one for kernel in kernels for one in kernel.types if "T" in one]
    alike = [one for one in every if all(half in kinds for kinds in one.values())]
    if not alike:
        return f"its operator is not known to take {half}"
    inputs = tuple(index for index, value in enumerate(node.inputs) if _is_float(value))
    return Places(inputs, tuple(index for index, value in enumerate(node.outputs) if _is_float(value)))
