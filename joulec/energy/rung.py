"""A rung of the ladder: a small model, and how one is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from joulec.ir.values import Array

OPSET, IR_VERSION = 19, 9
MICROSOFT = "com.microsoft"
PAIRS = 2
"""A chain goes from one width to another and back, this often."""


@dataclass(frozen=True)
class Rung:
    """One microbenchmark.

    Attributes:
        name: family and sizes, e.g. `conv 64-128x28`.
        model: takes float32 `x` and returns `y`.
        shape: the shape of `x`.
    """

    name: str
    model: onnx.ModelProto
    shape: tuple[int, ...]


class Chain:
    """A model in the making: operators one behind the other, with seeded constants."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(list(shape))

    @property
    def last(self) -> str:
        return self._nodes[-1].output[0] if self._nodes else "x"

    def normal(self, *shape: int) -> str:
        return self.constant((self._random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

    def integers(self, dtype: str, limit: int, *shape: int) -> str:
        return self.constant(self._random.integers(-limit, limit, shape).astype(dtype))

    def constant(self, array: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def then(self, op: str, *others: str, first: str | None = None, **attributes: Any) -> Chain:
        """Append `op`(last, *others), or `op`(first, ...)."""
        inputs = [self.last if first is None else first, *others]
        self._nodes.append(helper.make_node(op, inputs, [f"v{len(self._nodes)}"], **attributes))
        return self

    def halves(self, axis: int) -> Chain:
        """Append a Split into two along `axis`, and the sum of both."""
        halves = [f"v{len(self._nodes)}", f"v{len(self._nodes)}b"]
        self._nodes.append(helper.make_node("Split", [self.last], halves, axis=axis, num_outputs=2))
        return self.then("Add", halves[1])

    def rung(self, name: str) -> Rung:
        self._nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self._nodes, "rung", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], self._constants,
        )  # fmt: skip
        opset = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return Rung(name, helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), self.shape)


def feed_of(rung: Rung) -> dict[str, Array]:
    """Seeded normal numbers for `x`."""
    return {"x": np.random.default_rng(0).standard_normal(rung.shape).astype(np.float32)}
