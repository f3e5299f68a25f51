"""Constants that are cheap to compute and large to store, read without storing them: ConstantOfShape and Expand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir.values import Array, attribute, constant, constant_tensor
from joulec.ir.walk import is_onnx

MAX_RANK = 64
"""Dimensions that numpy can hold."""

MAX_ELEMENTS = 1 << 40
"""A generator that promises more than this is not read: its numbers could not be used anyhow."""


@dataclass(frozen=True)
class Compact:
    """A constant, as numbers that broadcast to its shape.

    Attributes:
        numbers: array of the constant's rank; a dimension of 1 may stand for any number of equal entries.
        shape: the constant's own shape.
        dtype: its element type.
        stored: whether the numbers lie in the model as they are; otherwise a node computes them.
    """

    numbers: Array
    shape: tuple[int, ...]
    dtype: ir.DataType
    stored: bool

    def dense(self) -> Array:
        """The numbers in full shape, as a view."""
        return np.broadcast_to(self.numbers, self.shape)

    @property
    def size(self) -> int:
        """Elements in full shape."""
        return math.prod(self.shape)


def compact_constant(value: ir.Value | None) -> Compact | None:
    """Read a constant that is stored, or that ConstantOfShape or Expand computes from stored ones; else None.

    Reads the numbers of stored constants: ask only for what you need.
    """
    if (tensor := constant_tensor(value)) is not None:
        numbers = tensor.numpy()
        return Compact(numbers, numbers.shape, tensor.dtype, True)
    node = None if value is None else value.producer()
    if node is None or any(one.is_ref() for one in node.attributes.values()):
        return None
    if is_onnx(node, "ConstantOfShape"):
        return _filled(node)
    return _expanded(node) if is_onnx(node, "Expand") else None


def _filled(node: ir.Node) -> Compact | None:
    shape = _dims(node, 0)
    fill = attribute(node, "value", None)
    tensor = fill if fill is not None else ir.tensor(np.zeros(1, np.float32))
    if shape is None or tensor.size != 1:
        return None
    return Compact(tensor.numpy().reshape((1,) * len(shape)), shape, tensor.dtype, False)


def _expanded(node: ir.Node) -> Compact | None:
    wanted, tensor = _dims(node, 1), constant_tensor(node.inputs[0])
    if wanted is None or tensor is None:
        return None
    numbers = tensor.numpy()
    try:
        shape = np.broadcast_shapes(numbers.shape, wanted)
    except ValueError:
        return None
    return Compact(numbers.reshape((1,) * (len(shape) - numbers.ndim) + numbers.shape), shape, tensor.dtype, False)


def _dims(node: ir.Node, index: int) -> tuple[int, ...] | None:
    given = constant(node.inputs[index])
    if given is None or given.ndim != 1 or given.size > MAX_RANK or np.any(given < 0):
        return None
    dims = tuple(int(dim) for dim in given)
    return dims if math.prod(dims) <= MAX_ELEMENTS else None
