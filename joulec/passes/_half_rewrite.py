"""Turning the chosen nodes of a graph into 16-bit ones: stored numbers are rounded, one cast stands at each border."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import constant, constant_tensor
from joulec.passes._half_numbers import Half
from joulec.passes._half_places import FLOAT, Places
from joulec.passes._half_plan import Plan
from joulec.passes._qdq_graph import is_dequantize, is_quantize

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16: a scale must not become 0."""


def to_half(rewriter: Rewriter, plan: Plan) -> None:
    """Change every chosen node of `plan`, which was made for the rewriter's module or for a copy in the same order."""
    _Narrowing(rewriter, plan).run()


class _Narrowing:
    def __init__(self, rewriter: Rewriter, plan: Plan) -> None:
        self.rewriter, self.half, self.clamped = rewriter, plan.half, plan.clamped
        nodes = [node for node in rewriter.module.graph if not walk.is_onnx(node, "Constant")]
        pairs = [(ours, theirs) for ours, theirs in zip(nodes, plan.nodes, strict=True) if id(theirs) in plan.chosen]
        self.work = [(ours, plan.places[id(theirs)]) for ours, theirs in pairs]
        self.chosen = {id(ours): found for ours, found in self.work}
        self.made: dict[int, ir.Value] = {}
        self.casts: dict[int, ir.Value] = {}

    def run(self) -> None:
        for node, found in self.work:
            with self.rewriter.rewriting(f"to-{self.half.name}", node):
                for index in found.inputs:
                    self.rewriter.set_input(node, index, self._input(node, index))
                _set_type(self.rewriter, node, found, self.half)
                for index in found.outputs:
                    self._output(node, node.outputs[index])

    def _input(self, node: ir.Node, index: int) -> ir.Value:
        value = node.inputs[index]
        if value is None or value.dtype == self.half.dtype:
            return value  # type: ignore[return-value]
        if id(value) in self.made:
            return self.made[id(value)]
        if constant_tensor(value) is not None:
            is_scale = (is_quantize(node) or is_dequantize(node)) and index == 1
            key = ~id(value) if is_scale else id(value)
            return self.made.get(key) or self.made.setdefault(key, self._stored(node, value, is_scale))
        return self.made.setdefault(id(value), self._cast(value, self.half.dtype, node))

    def _stored(self, node: ir.Node, value: ir.Value, is_scale: bool) -> ir.Value:
        numbers = np.asarray(constant(value), np.float32)
        if is_scale:
            numbers = np.maximum(numbers, SMALLEST_SCALE)
        elif value.name in self.clamped:
            numbers = np.where(np.isfinite(numbers), np.maximum(numbers, -self.half.largest), numbers)
        rounded = self.half.of(numbers)
        return self.rewriter.constant(ir.Tensor(rounded), f"{value.name}_{self.half.name}", at=node, follows=value)

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """One cast right behind what makes the value, for all that read it; of inputs, in front of the first reader."""
        maker = value.producer()
        name, before = f"{value.name}_to_{dtype.name.lower()}", reader if maker is None else None
        (made,) = self.rewriter.add("Cast", [value], {"to": int(dtype)}, name=name, before=before, after=maker)
        made.type, made.shape = ir.TensorType(dtype), value.shape
        return made

    def _output(self, node: ir.Node, value: ir.Value) -> None:
        """The value becomes narrow; who needs it wide gets a cast of it."""
        uses = list(value.uses())
        if value.is_graph_output() or not all(self._narrow(use.node, use.idx) for use in uses):
            made = self._cast(value, FLOAT, node)
            self.rewriter.replace(value, made)
            for use in uses:
                if self._narrow(use.node, use.idx):
                    self.rewriter.set_input(use.node, use.idx, value)
            if (cast := made.producer()) is not None:
                self.rewriter.set_input(cast, 0, value)
        value.type = ir.TensorType(self.half.dtype)  # a new one: copies of a graph share theirs

    def _narrow(self, node: ir.Node, index: int) -> bool:
        found = self.chosen.get(id(node))
        return found is not None and index in found.inputs


def _set_type(rewriter: Rewriter, node: ir.Node, found: Places, half: Half) -> None:
    """Operators whose result's type is an attribute."""
    if not found.outputs:
        return
    if walk.is_onnx(node, "Cast"):
        rewriter.set_attribute(node, "to", int(half.dtype))
    elif walk.is_onnx(node, "ConstantOfShape"):
        value = node.attributes.get("value")
        numbers = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
        rewriter.set_attribute(node, "value", ir.Tensor(half.of(numbers)))
