"""Numbers of every ONNX element type, and random choices that hypothesis and plain campaigns make alike."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper

T = TypeVar("T")
Shape = tuple[int, ...]

FLOATS = ("float", "double", "float16", "bfloat16")
NARROW = (
    "float8e4m3fn",
    "float8e4m3fnuz",
    "float8e5m2",
    "float8e5m2fnuz",
    "float4e2m1",
    "int4",
    "uint4",
    "int2",
    "uint2",
)
SIGNED = ("int64", "int32", "int16", "int8")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
OTHERS = ("bool", "string", "complex64", "complex128")
ALL_TYPES = (*FLOATS, *SIGNED, *UNSIGNED, *OTHERS, *NARROW)
OFTEN = ("float",) * 6 + ("int64",) * 3 + ("float16", "double", "int32", "bool", "uint8", "int8")
"""What real models are made of is drawn most of the time, everything else now and then."""

_FINITE = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 4.0, 0.25, 8.0]
_ODD = [float("nan"), float("inf"), float("-inf")]
_TEXT = ["", "a", "b", "Ä", "a b", "1", "-2.5", "nan"]


def elem(name: str) -> int:
    """The number of an element type called as in schemas, e.g. `float16`."""
    return int(TensorProto.DataType.Value(name.upper()))


def type_name(kind: int) -> str:
    """The inverse of `elem`."""
    return str(TensorProto.DataType.Name(kind).lower())  # type: ignore[arg-type]


def numpy_type(name: str) -> np.dtype[Any]:
    """The numpy (or ml_dtypes) type that holds it; objects for strings."""
    return np.dtype(object) if name == "string" else helper.tensor_dtype_to_np_dtype(elem(name))


def known(name: str) -> bool:
    """Whether the installed onnx has the element type."""
    return name.upper() in {kind for kind, _ in TensorProto.DataType.items()}


class Chooser:
    """Small decisions on top of a `random.Random`, which may be one that hypothesis plays."""

    def __init__(self, source: random.Random) -> None:
        self.source = source

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[self.source.randrange(len(options))]

    def number(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return self.source.randint(low, high)

    def one_in(self, count: int) -> bool:
        """True about every `count`-th time."""
        return self.source.randrange(count) == 0

    def shape(self, ranks: Sequence[int] = (0, 1, 1, 2, 2, 3, 4)) -> Shape:
        """A small shape, now and then with a zero."""
        return tuple(self.pick([1, 2, 3, 2, 3, 4] if not self.one_in(12) else [0]) for _ in range(self.pick(ranks)))

    def array(self, name: str, shape: Shape, odd: bool = False) -> np.ndarray:
        """Numbers of an element type; with `odd` also NaN, infinities and the ends of the range of integers."""
        count = math.prod(shape)
        kind = numpy_type(name)
        flat = [self._element(name, kind, odd) for _ in range(count)]
        if name in ("string", "bool"):
            return np.array(flat, kind).reshape(shape)
        with np.errstate(all="ignore"):
            return (
                np.array(flat, np.dtype(object) if kind.kind in "iu" and kind.isbuiltin == 1 else None)
                .astype(kind)
                .reshape(shape)
            )

    def _element(self, name: str, kind: np.dtype[Any], odd: bool) -> Any:
        if name == "string":
            return self.pick(_TEXT)
        if name == "bool":
            return self.pick([True, False])
        if name in ("int2", "int4"):
            return self.pick([0, 1, -1, -2])
        if name in ("uint2", "uint4"):
            return self.pick([0, 1, 2, 3])
        if kind.kind in "iu" and kind.isbuiltin == 1:
            ends = [int(np.iinfo(kind).min), int(np.iinfo(kind).max)] if odd else []
            return self.pick([0, 1, 2, 3, 7, *([] if kind.kind == "u" else [-1, -2]), *ends])
        if kind.kind == "c":
            return complex(self.pick(_FINITE), self.pick(_FINITE))
        return self.pick([*_FINITE, *(_ODD if odd and name != "float4e2m1" else [])])


def tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
    """A stored tensor, strings included."""
    if array.dtype.kind in "OUS":
        return helper.make_tensor(name, TensorProto.STRING, array.shape, [str(s).encode() for s in array.ravel()])
    return onnx.numpy_helper.from_array(array, name)


def type_of(value: Any) -> str:
    """The type of a run-time value as schemas write it: `tensor(float)`, `seq(tensor(int64))`."""
    if isinstance(value, list):
        return f"seq({type_of(value[0])})" if value else "seq(tensor(float))"
    if value is None:
        return "optional(tensor(float))"
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return "tensor(string)"
    return f"tensor({type_name(helper.np_dtype_to_tensor_dtype(array.dtype))})"
