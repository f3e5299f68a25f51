"""What random graphs are made of: values with their shapes, and a grower that draws and adds nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Draw = Callable[..., Any]
Shape = tuple[int, ...]
Maker = Callable[["Grower"], None]

FLOATS = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 4.0]
ODD = [float("nan"), float("inf"), float("-inf")]
INTEGERS = [0, 1, -1, 2, 3, 7, 2**62, -(2**63), 2**63 - 1]


@dataclass(frozen=True)
class Value:
    """A value of the graph that grows: name, ONNX element type, the shape it has at run time."""

    name: str
    kind: int
    shape: Shape


@dataclass
class Grower:
    """Draws one graph; a branch of an If is drawn by a grower that sees the values of the one outside."""

    draw: Draw
    opset: int
    odd: bool
    prefix: str = ""
    outer: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    # -- drawing --------------------------------------------------------------------------------------------

    def pick(self, options: list[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def one(self, kind: int, least_rank: int = 0) -> Value | None:
        """An existing value, or None where there is none of the kind."""
        found = [v for v in [*self.outer, *self.values] if v.kind == kind and len(v.shape) >= least_rank]
        if found and self.draw(st.booleans()):
            return found[-1]  # long chains are where rewrites meet each other
        return self.pick(found) if found else None

    def numbers(self, shape: Shape, kind: int = FLOAT) -> np.ndarray:
        size = math.prod(shape)
        if kind == BOOL:
            options: list[Any] = [True, False]
        elif kind == INT:
            options = list(INTEGERS)
        else:
            options = [*FLOATS, *(ODD if self.odd else [])]
        flat = self.draw(st.lists(st.sampled_from(options), min_size=size, max_size=size))
        return np.array(flat, helper.tensor_dtype_to_np_dtype(kind)).reshape(shape)

    # -- building -------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        return f"{self.prefix}{hint}{len(self.nodes)}_{len(self.initializers)}_{len(self.values)}"

    def constant(self, array: np.ndarray, keep: bool = False) -> str:
        """An initializer, or now and then a Constant node; sometimes one that is there already."""
        array = np.asarray(array)
        if self.draw(st.booleans()):
            name = self.fresh("w")
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            name = self.fresh("k")
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
        if keep:
            self.values.append(Value(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
        return name

    def emit(self, op: str, inputs: list[str], shape: Shape, kind: int = FLOAT, **attributes: object) -> Value:
        value = Value(self.fresh(op.lower()), kind, shape)
        self.nodes.append(helper.make_node(op, inputs, [value.name], name=f"n_{value.name}", **attributes))
        self.values.append(value)
        return value

    def grow(self, steps: int, makers: Sequence[Maker]) -> None:
        for _ in range(steps):
            self.pick(makers)(self)

    def body(self, prefix: str) -> Grower:
        """A grower of a graph inside a node, which sees every value that is there."""
        return Grower(self.draw, self.opset, self.odd, prefix, [*self.outer, *self.values])
