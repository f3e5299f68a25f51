"""Questions about one value: its constant, its shape, who uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from joulec.ir.walk import is_onnx

Array = npt.NDArray[Any]


def tensor_shape(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape of a stored tensor as a value's shape."""
    return ir.Shape([int(dim) for dim in tensor.shape.numpy()])


def is_overridable(value: ir.Value) -> bool:
    """Whether a caller may feed `value`: an initializer that is also a graph input is only a default."""
    return value.is_graph_input()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor `value` always holds, or None: an initializer nobody can feed, or a Constant's output.

    The numbers stay where they are (memory-mapped for external data); call `.numpy()` to read them.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if is_overridable(value) else value.const_value
    node = value.producer()
    if node is None or not is_onnx(node, "Constant") or len(node.attributes) != 1:
        return None
    (attribute,) = node.attributes.values()
    return None if attribute.is_ref() else _constant_attribute(attribute)


def _constant_attribute(attribute: ir.Attr) -> ir.TensorProtocol | None:
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_float" | "value_floats":
            return ir.tensor(np.asarray(attribute.value, np.float32))
        case "value_int" | "value_ints":
            return ir.tensor(np.asarray(attribute.value, np.int64))
        case _:
            return None


def constant(value: ir.Value | None) -> Array | None:
    """Like `constant_tensor`, as a numpy array. Reads the numbers: ask only for what you need."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` if its rank and every dimension are known integers, else None."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return tuple(int(d) for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None


def rank(value: ir.Value | None) -> int | None:
    """The rank of `value`, or None where it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def bound_shape(value: ir.Value, bindings: Mapping[str, int]) -> tuple[int | None, ...] | None:
    """The shape of `value` with symbols replaced from `bindings`; None per dimension that stays unknown."""
    if value.shape is None:
        return None
    return tuple(_bind(dim, bindings) for dim in value.shape)


def _bind(dim: int | ir.SymbolicDim, bindings: Mapping[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    if dim.value is None or dim.value in bindings:
        return bindings.get(dim.value or "")
    try:
        bound = dim.evaluate(bindings)
    except ValueError:  # a name that is no expression, such as '?'
        return None
    return bound if isinstance(bound, int) else None


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that uses `value`, if there is exactly one use and `value` is not a graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


class FunctionAttribute(LookupError):
    """An attribute whose value is the enclosing function's, another one at each call."""


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of attribute `name`, or `default` where it is absent.

    Raises:
        FunctionAttribute: the attribute is a reference to an attribute of the enclosing function.
    """
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise FunctionAttribute(f"attribute '{name}' of {node.op_type} refers to a function attribute")
    return found.value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of `node`, or None where it is absent or left empty."""
    return node.inputs[index] if index < len(node.inputs) else None
