"""Binding symbolic dimensions: what `--shape batch=8,seq=128` or `--shape x=1x3x320x320` means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from joulec.energy.infer import Found, resolve
from joulec.energy.proto_types import MAX_DIM
from joulec.errors import InputError
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.shapes import first_line
from joulec.ir.skeleton import skeleton
from joulec.ir.values import Array, static_shape

Spec = Mapping[str, int | tuple[int, ...]]
"""Symbol -> size, or input name -> all its dimensions. `x[2]` names a dimension without a symbol."""


def symbols(module: Module) -> dict[str, str]:
    """The dimensions a caller may choose: symbol (or `input[axis]` for an unnamed one) -> where it first stands."""
    found: dict[str, str] = {}
    for value in module.inputs():
        for axis, name in _free(value):
            found.setdefault(name, f"dimension {axis} of input '{value.name}'")
    return found


def bind(module: Module, spec: Spec) -> tuple[Module, dict[str, int]]:
    """A copy of `module` with concrete input shapes, and shapes inferred again.

    Args:
        module: left as it is.
        spec: sizes by symbol or by input name; what it leaves open counts as 1.

    Returns:
        The copy, and the dimensions that nobody gave: {symbol: 1}.

    Raises:
        InputError: an unknown name, a dimension below 1, or one that contradicts a fixed one or another.
    """
    bound = module.clone()
    assumed = bind_in_place(bound, spec)
    infer_all(bound)
    return bound, assumed


def bind_in_place(module: Module, spec: Spec) -> dict[str, int]:
    """Like `bind`, on `module` itself, and without inferring shapes again: sizes only replace their symbols."""
    binding = _Binding(module.inputs(), symbols(module))
    for name, size in spec.items():
        binding.add(name, size)
    assumed = {name: 1 for name in binding.known if name not in binding.sizes}
    binding.apply({**assumed, **binding.sizes})
    _substitute(module, {**assumed, **binding.sizes})
    return assumed


def fix_in_place(module: Module, spec: Spec) -> list[str]:
    """Put the sizes that `spec` gives into the signature of `module` for good; those that nobody gave stay open.

    Returns:
        The names of the dimensions that were fixed.
    """
    binding = _Binding(module.inputs(), symbols(module))
    for name, size in spec.items():
        binding.add(name, size)
    binding.apply(binding.sizes)
    _substitute(module, binding.sizes)
    module.changed()
    return list(binding.sizes)


def sizes_of(module: Module, spec: Spec) -> dict[str, int]:
    """What `spec` says of each dimension, by the names of `symbols`; ranges stay ranges.

    Raises:
        InputError: as `bind`.
    """
    binding = _Binding(module.inputs(), symbols(module))
    for name, size in spec.items():
        binding.add(name, size)
    return binding.sizes


def still_open(module: Module, spec: Spec) -> dict[str, int | tuple[int, ...]]:
    """The entries of `spec` that still name something: a dimension that was fixed meanwhile has no symbol any more."""
    known, inputs = symbols(module), {value.name for value in module.inputs()}
    return {name: size for name, size in spec.items() if name in known or name in inputs}


def _values(module: Module) -> Iterator[ir.Value]:
    for graph in walk.graphs(module.model):
        yield from graph.inputs
        yield from graph.outputs
        for node in graph:
            yield from node.outputs


def is_named(dim: int | ir.SymbolicDim) -> bool:
    """Whether a symbolic dimension has a name of its own; exporters write `?` for "some size", each a different one."""
    return not isinstance(dim, int) and isinstance(dim.value, str) and dim.value.strip("?") != ""


def _free(value: ir.Value) -> Iterator[tuple[int, str]]:
    """(axis, name) of each dimension of an input that is not fixed."""
    for axis, dim in enumerate(value.shape or ()):
        if not isinstance(dim, int):
            yield axis, str(dim.value) if is_named(dim) else f"{value.name}[{axis}]"


@dataclass
class _Binding:
    """The sizes given so far, by dimension name; contradictions are refused as they come."""

    inputs: Sequence[ir.Value]
    known: Mapping[str, str]
    sizes: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, name: str, size: int | tuple[int, ...]) -> None:
        """Take one entry of a spec."""
        inputs = {value.name: value for value in self.inputs}
        if isinstance(size, int) and name not in self.known and name in inputs:
            size = (size,)
        if isinstance(size, int) or (name in self.known and name not in inputs and len(size) == 1):
            self._symbol(name, size if isinstance(size, int) else size[0])
        elif name in inputs:
            self._input(inputs[name], tuple(size))
        else:
            raise InputError(self._unknown(name))

    def _symbol(self, name: str, size: int) -> None:
        if name not in self.known:
            raise InputError(self._unknown(name))
        _check(name, size)
        if self.sizes.setdefault(name, size) != size:
            raise InputError(f"shape: '{name}' is given as {self.sizes[name]} and as {size}")

    def _input(self, value: ir.Value, dims: tuple[int, ...]) -> None:
        for dim in dims:
            _check(str(value.name), dim)
        if value.shape is None:
            self.ranks[str(value.name)] = dims
            return
        if len(dims) != len(value.shape):
            rank = len(value.shape)
            raise InputError(f"shape: input '{value.name}' is {value.shape} (rank {rank}), given {_x(dims)}")
        names = dict(_free(value))
        for axis, (given, declared) in enumerate(zip(dims, value.shape, strict=True)):
            if axis in names:
                self._symbol(names[axis], given)
            elif given != declared:
                where = f"dimension {axis} of input '{value.name}'"
                raise InputError(f"shape: {where} is fixed at {declared}, given {given}")

    def _unknown(self, name: str) -> str:
        free = ", ".join(self.known) or "none"
        inputs = ", ".join(f"{value.name} {value.shape}" for value in self.inputs[:8])
        return f"shape: unknown name '{name}'; the symbols are: {free}; the inputs are: {inputs}"

    def apply(self, sizes: Mapping[str, int]) -> None:
        """Give every input its concrete shape."""
        for value in self.inputs:
            if value.shape is None:
                if value.name in self.ranks:
                    value.shape = ir.Shape(self.ranks[value.name])
                continue
            names = dict(_free(value))
            value.shape = ir.Shape([sizes.get(names.get(a, ""), d) for a, d in enumerate(value.shape)])


def _check(name: str, size: int) -> None:
    if isinstance(size, bool) or not 1 <= size <= MAX_DIM:
        raise InputError(f"shape: '{name}' must be at least 1 (and at most 2^40), given {size}")


def _x(dims: Sequence[int]) -> str:
    return "x".join(str(dim) for dim in dims)


def _substitute(module: Module, sizes: Mapping[str, int]) -> None:
    """Replace the bound symbols in every shape of the model; expressions in them are evaluated, each once."""
    evaluated: dict[str, int | None] = {name: size for name, size in sizes.items() if not name.endswith("]")}
    named = {name: size for name, size in evaluated.items() if size is not None}
    for value in _values(module):
        if value.shape is None or all(isinstance(dim, int) for dim in value.shape):
            continue
        for dim in value.shape:
            if not isinstance(dim, int) and dim.value is not None and dim.value not in evaluated:
                evaluated[dim.value] = _evaluate(dim, named)
        value.shape = ir.Shape([_replaced(dim, evaluated) for dim in value.shape])


def _replaced(dim: int | ir.SymbolicDim, sizes: Mapping[str, int | None]) -> int | ir.SymbolicDim:
    size = None if isinstance(dim, int) or dim.value is None else sizes.get(dim.value)
    return dim if size is None else size


def _evaluate(dim: ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    try:
        size = dim.evaluate(sizes)
    except (ValueError, TypeError, ZeroDivisionError):
        return None
    return size if isinstance(size, int) and size >= 0 else None


def is_settled(module: Module) -> bool:
    """Whether every node's outputs have static shapes, and no graph inside a node needs a walk of its own."""
    for node in module.graph:
        if any(value.name and static_shape(value) is None for value in node.outputs):
            return False
        if next(walk.subgraphs(node), None) is not None:
            return False
    return True


def infer_all(module: Module, values: dict[ir.Value, Array] | None = None, *, symbolic: bool = False) -> str | None:
    """Infer every shape again, graph outputs included; returns why it could not, else None.

    Args:
        module: its shapes are replaced by what is inferred.
        values: filled with the small numbers that follow from the shapes.
        symbolic: a dimension that has a symbol counts as found (nothing is bound yet).
    """
    try:
        found = resolve(skeleton(module.model), symbolic)
    except Exception as error:  # noqa: BLE001 - onnx's C++ side raises several unrelated types; all mean "no shapes"
        return f"shape inference failed: {first_line(error)}"
    _merge(module.graph, found, {} if values is None else values)
    return None


def _merge(graph: ir.Graph, found: Found, values: dict[ir.Value, Array]) -> None:
    """Hand what was found to the values of `graph` and of the graphs in its nodes."""
    for value in graph.inputs:
        _learn(value, found, values)
    for position, node in enumerate(graph):
        for value in node.outputs:
            _learn(value, found, values)
        for attribute in node.attributes.values():
            inside = found.bodies.get((position, attribute.name))
            if inside is not None and not attribute.is_ref():
                _merge(attribute.as_graph(), inside, values)


def _learn(value: ir.Value, found: Found, values: dict[ir.Value, Array]) -> None:
    if not value.name:
        return
    one = found.types.get(value.name)
    if one is not None and one.HasField("tensor_type"):
        _adopt(value, one.tensor_type)
    elif one is not None and value.type is None:
        value.type = _sequence_type(one)
    if value.name in found.values:
        values[value] = found.values[value.name]


def _sequence_type(one: onnx.TypeProto) -> ir.TypeProtocol | None:
    """A sequence's or an optional's type, whose length is no dimension; None for a malformed one."""
    try:
        return ir.serde.deserialize_type_proto_for_type(one)
    except ir.serde.SerdeError:
        return None


def _adopt(value: ir.Value, found: onnx.TypeProto.Tensor) -> None:
    if found.elem_type and value.dtype != found.elem_type:
        value.dtype = ir.DataType(found.elem_type)
    if not found.HasField("shape") or value.type is None:
        return
    dims = [_dim(dim) for dim in found.shape.dim]
    if value.shape is None or _says_more(dims, tuple(value.shape)):
        value.shape = ir.Shape(dims)


def _says_more(new: Sequence[int | str | None], old: Sequence[int | ir.SymbolicDim]) -> bool:
    """Whether `new` contradicts `old`, which may be stale, or knows at least as many dimensions."""
    pairs = list(zip(new, old, strict=False))
    if len(new) != len(old) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
        return True
    return sum(isinstance(a, int) for a in new) >= sum(isinstance(b, int) for b in old)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None
