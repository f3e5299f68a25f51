"""What a work formula sees of a node: sizes, dtypes and attributes, with every unknown dimension counted and named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from joulec.ir.values import Array, constant_tensor, input_at, tensor_shape

STRING_BYTES = 16
"""Bytes moved per string: the handle. The characters' number is unknown before the run."""

MAX_CONSTANT_ELEMENTS = 4096
"""Constants larger than this are never read for a formula; none of them needs their numbers."""

_INTEGERS = {
    ir.DataType.INT8: "int8", ir.DataType.UINT8: "int8", ir.DataType.BOOL: "int8",
    ir.DataType.INT4: "int8", ir.DataType.UINT4: "int8", ir.DataType.INT16: "int16", ir.DataType.UINT16: "int16",
    ir.DataType.INT32: "int32", ir.DataType.UINT32: "int32", ir.DataType.INT64: "int64", ir.DataType.UINT64: "int64",
}  # fmt: skip
_FLOATS = {
    ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16",
    ir.DataType.DOUBLE: "fp64", ir.DataType.COMPLEX64: "fp32", ir.DataType.COMPLEX128: "fp64",
}  # fmt: skip


class Unpriced(Exception):
    """Raised by a formula that cannot say what a node costs, with the reason. The node is then unknown, not free."""


@dataclass(frozen=True)
class Cost:
    """What a formula says of one node.

    Attributes:
        flops: arithmetic class -> operations; a multiply-add counts as two.
        touched: input index -> bytes really read of it, where that is not all of it (a Gather reads its rows).
        write: bytes written, where that is not the outputs' size (a Reshape writes none).
    """

    flops: Mapping[str, int] = field(default_factory=dict)
    touched: Mapping[int, int] = field(default_factory=dict)
    write: int | None = None


def dtype_class(dtype: ir.DataType | None) -> str:
    """The arithmetic class of a dtype: fp64, fp32, fp16, bf16, fp8, int8, int16, int32 or int64."""
    if dtype is None:
        return "fp32"
    if dtype in _FLOATS:
        return _FLOATS[dtype]
    if dtype in _INTEGERS:
        return _INTEGERS[dtype]
    return "fp8" if dtype.name.startswith("FLOAT") else "int32"


@dataclass
class Sizes:
    """Sizes of values, in elements and bytes.

    Attributes:
        assumed: the dimensions that nobody knows, each counted as 1.
        widen_half: float16 counts four bytes: the CPU provider has no float16 kernels and computes in float32.
        values: small numbers that follow from the shapes (a Loop's trip count that is the length of an input).
    """

    assumed: dict[str, int] = field(default_factory=dict)
    widen_half: bool = False
    values: dict[ir.Value, Array] = field(default_factory=dict)
    _dims: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def numbers(self, value: ir.Value | None) -> Array | None:
        """The numbers of `value` where they are few and known before the run, else None."""
        if value in self.values:
            return self.values[value]
        tensor = constant_tensor(value)
        return None if tensor is None or tensor.size > MAX_CONSTANT_ELEMENTS else tensor.numpy()

    def dims(self, value: ir.Value | None) -> tuple[int, ...]:
        """The dimensions of `value`; () for an absent input, a scalar, or (named in `assumed`) an unknown rank."""
        if value is None:
            return ()
        if value not in self._dims:
            self._dims[value] = self._find_dims(value)
        return self._dims[value]

    def _find_dims(self, value: ir.Value) -> tuple[int, ...]:
        shape = value.shape
        if shape is None:
            tensor = constant_tensor(value)
            if tensor is None:
                self._assume(f"{value.name}[*]", value)
                return ()
            shape = tensor_shape(tensor)
        return tuple(self._dim(value, axis, dim) for axis, dim in enumerate(shape))

    def _dim(self, value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int) and dim >= 0:
            return dim
        self._assume(f"{value.name}[{axis}]", value)
        return 1

    def _assume(self, name: str, value: ir.Value) -> None:
        if not isinstance(value.type, ir.SequenceType | ir.OptionalType):
            self.assumed[name] = 1

    def count(self, value: ir.Value | None) -> int:
        """Elements of `value`; 0 for an absent input."""
        return 0 if value is None else math.prod(self.dims(value))

    def nbytes(self, value: ir.Value | None) -> int:
        """Bytes of `value`, rounded up for sub-byte dtypes; 0 for an absent input."""
        if value is None:
            return 0
        width = bits(value)
        if self.widen_half and value.dtype == ir.DataType.FLOAT16:
            width *= 2
        return (self.count(value) * width + 7) // 8


def bits(value: ir.Value) -> int:
    """Bits per element; 32 where the dtype is unknown."""
    dtype = _dtype(value)
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return 32
    return 8 * STRING_BYTES if dtype == ir.DataType.STRING else int(dtype.bitwidth)


def _dtype(value: ir.Value) -> ir.DataType | None:
    tensor = constant_tensor(value) if value.dtype is None else None
    return value.dtype if tensor is None else tensor.dtype


class View:
    """One node as a formula sees it.

    Args:
        node: the node; formulas use its own inputs' and outputs' dimensions.
        sizes: sizes of values under the current binding.
        compute: the arithmetic class that the kernel really uses, where it is not the first input's.
        fixed: the inputs that are the same in every run, and can be laid out at load.
        kernel: what runs for it, by name.
    """

    def __init__(
        self, node: ir.Node, sizes: Sizes, compute: str | None = None, fixed: frozenset[int] = frozenset(),
        kernel: str = "",
    ) -> None:  # fmt: skip
        self.node = node
        self.sizes = sizes
        self.fixed = fixed
        self.kernel = kernel or node.op_type
        self._compute = compute

    # -- sizes ----------------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return input_at(self.node, index) is not None

    def need(self, index: int) -> ir.Value:
        """Input `index`, which the operator requires."""
        value = input_at(self.node, index)
        if value is None:
            raise Unpriced(f"input {index} is missing")
        return value

    def dims(self, index: int) -> tuple[int, ...]:
        """Dimensions of input `index`."""
        return self.sizes.dims(input_at(self.node, index))

    def dim(self, index: int, axis: int) -> int:
        """One dimension of input `index`; 1 where its rank is too small (its unknown rank is in `assumed`)."""
        return at(self.dims(index), axis)

    def n(self, index: int = 0) -> int:
        """Elements of input `index`."""
        return self.sizes.count(input_at(self.node, index))

    def nbytes(self, index: int = 0) -> int:
        """Bytes of input `index`."""
        return self.sizes.nbytes(input_at(self.node, index))

    def out_dims(self, index: int = 0) -> tuple[int, ...]:
        """Dimensions of output `index`."""
        return self.sizes.dims(self.node.outputs[index])

    def m(self, index: int = 0) -> int:
        """Elements of output `index`; 0 where it is left out."""
        if index >= len(self.node.outputs) or not self.node.outputs[index].name:
            return 0
        return self.sizes.count(self.node.outputs[index])

    def out_bytes(self, index: int = 0) -> int:
        """Bytes of output `index`."""
        return self.sizes.nbytes(self.node.outputs[index])

    def inputs(self) -> Sequence[ir.Value]:
        """The inputs that are given."""
        return [value for value in self.node.inputs if value is not None]

    # -- attributes and constants ---------------------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        if found.is_ref():
            raise Unpriced(f"attribute '{name}' refers to an attribute of the enclosing function")
        return found.value

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attr(name, default)
        if not isinstance(value, int):
            raise Unpriced(f"attribute '{name}' is not an integer")
        return value

    def integers(self, index: int) -> list[int] | None:
        """Input `index` as integers where it is a small constant, else None."""
        numbers = self.sizes.numbers(input_at(self.node, index))
        return None if numbers is None else [int(x) for x in numbers.reshape(-1)]

    # -- arithmetic classes ---------------------------------------------------------------------------------

    @property
    def vector(self) -> str:
        """The class of elementwise arithmetic on the first input given."""
        if self._compute is not None:
            return self._compute
        given = self.inputs()
        return dtype_class(_dtype(given[0])) if given else dtype_class(self.node.outputs[0].dtype)

    @property
    def matrix(self) -> str:
        """The class of multiply-adds of dense contractions on the first input's dtype."""
        return f"{self.vector}-matrix"

    def cost(self, flops: int, **more: Any) -> Cost:
        """A cost of `flops` elementwise operations."""
        return Cost({self.vector: flops}, **more)


def at(dims: Sequence[int], axis: int) -> int:
    """`dims[axis]`, or 1 out of range."""
    return dims[axis] if -len(dims) <= axis < len(dims) else 1


def flops(*parts: tuple[str, int]) -> dict[str, int]:
    """Sum (class, count) pairs into one mapping, zeros left out."""
    total: dict[str, int] = {}
    for kind, count in parts:
        if count:
            total[kind] = total.get(kind, 0) + count
    return total
