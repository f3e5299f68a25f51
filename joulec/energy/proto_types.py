"""Questions about ONNX's TypeProto: how much of a shape is known, joined, with one axis more or less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from joulec.ir.values import Array

Type = onnx.TypeProto

MAX_DIM = 1 << 40
"""Larger dimensions are no sizes: no such tensor can exist, and products of them mean nothing."""


def of_array(array: Array) -> Type:
    """The type of an array."""
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))


def _dims(one: Type | None) -> list[int | None] | None:
    """The dimensions, None for each unknown one; None without a rank."""
    if one is None or not one.HasField("tensor_type") or not one.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in one.tensor_type.shape.dim]


def without_nonsense(one: Type) -> Type:
    """`one` without dimensions that cannot be: ONNX derives negative ones from bad targets, and aborts on them."""
    for dim in one.tensor_type.shape.dim if one.HasField("tensor_type") else ():
        if dim.HasField("dim_value") and not 0 <= dim.dim_value <= MAX_DIM:
            dim.Clear()
    return one


def static_shape(one: Type | None) -> tuple[int, ...] | None:
    """The shape if it is fully known."""
    dims = _dims(one)
    if dims is None or any(dim is None for dim in dims):
        return None
    return tuple(dim for dim in dims if dim is not None)


def is_settled(one: Type | None, symbolic: bool = False) -> bool:
    """Whether nothing is left to find out: a tensor of static shape, or no tensor at all (a sequence, an optional).

    With `symbolic`, a dimension with a symbol is as good as a size.
    """
    if one is None or not one.WhichOneof("value"):
        return False
    if not one.HasField("tensor_type"):
        return True
    dims = one.tensor_type.shape.dim
    fields = ("dim_value", "dim_param") if symbolic else ("dim_value",)
    return one.tensor_type.HasField("shape") and all(dim.WhichOneof("value") in fields for dim in dims)


def known(one: Type | None) -> int:
    """How much of a type is known: -2 nothing, -1 no rank, else the number of known dimensions."""
    if one is None or not one.WhichOneof("value"):
        return -2
    dims = _dims(one)
    return -1 if dims is None else sum(dim is not None for dim in dims)


def dim(one: Type | None, axis: int) -> int | None:
    """One dimension, if known."""
    dims = _dims(one)
    return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None


def join(given: Sequence[Type | None]) -> Type | None:
    """What holds of all of `given`: dimensions in which they differ are unknown, the rank too if that differs."""
    first = given[0] if given else None
    shapes = [_dims(one) for one in given]
    if first is None or any(one is None for one in given) or not first.HasField("tensor_type"):
        return first if first is not None and all(one == first for one in given) else None
    if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
        return _tensor(first, None)
    columns = zip(*(shape or [] for shape in shapes), strict=True)
    return _tensor(first, [column[0] if len(set(column)) == 1 else None for column in columns])


def without_axis(one: Type | None, axis: int) -> Type | None:
    """A slice of a scanned input."""
    dims = _dims(one)
    if one is None or dims is None or not -len(dims) <= axis < len(dims):
        return None
    del dims[axis]
    return _tensor(one, dims)


def with_axis(one: Type | None, axis: int, length: int | None) -> Type | None:
    """`length` values stacked along a new `axis`."""
    dims = _dims(one)
    if one is None or dims is None:
        return None
    position = axis if axis >= 0 else axis + len(dims) + 1
    dims.insert(int(np.clip(position, 0, len(dims))), length)
    return _tensor(one, dims)


def _tensor(like: Type, dims: Sequence[int | None] | None) -> Type:
    kept = None if dims is None else [dim if dim is not None and 0 <= dim <= MAX_DIM else None for dim in dims]
    return onnx.helper.make_tensor_type_proto(like.tensor_type.elem_type, kept)


def with_dtype(given: Mapping[str, Type], dtype: int) -> dict[str, Type]:
    """The same shapes, each of elements of `dtype`; what is no tensor is left out."""
    made: dict[str, Type] = {}
    for name, one in given.items():
        if one.HasField("tensor_type"):
            made[name] = Type()
            made[name].CopyFrom(one)
            made[name].tensor_type.elem_type = dtype
    return made


def dtype(one: Type | None) -> int:
    """The element type, 0 where it is unknown."""
    return int(one.tensor_type.elem_type) if one is not None and one.HasField("tensor_type") else 0
