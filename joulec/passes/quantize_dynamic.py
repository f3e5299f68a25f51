"""quantize-dynamic: INT8 arithmetic without calibration, for operators whose float input is quantized at each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.precision import precision_of
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at
from joulec.ir.walk import MICROSOFT_DOMAIN
from joulec.passes._patterns import unmatched
from joulec.passes._qdq import needs_reduced_range, quantized, weight_parameters
from joulec.passes._stored_weights import Product, Store, add_bias, data_refusal, kept_float, places, product_of
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.blocks import weight_refusal
from joulec.passes.calibrate import not_quantizable
from joulec.passes.materialize_weights import materialize

DYNAMIC = ("MatMul", "Gemm", "LSTM")
"""Operators with a kernel that quantizes its input while it runs and is faster for it. Conv has ConvInteger, which is
slower than float (0.2x on a small CNN), and GRU and RNN have none."""

SMALLEST = 1024
"""Weights with fewer numbers stay float: finding the range of the input costs more than is saved."""

OPSET = 11
"""The first with DynamicQuantizeLinear."""


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Compute MatMul, Gemm and LSTM in INT8 with ranges taken from the numbers of each run; needs no data.

    For models that are mostly matrix products (transformers, recurrent ones). Bodies of If, Loop and Scan count too.
    MatMul and Gemm become DynamicQuantizeLinear and MatMulInteger, which any runtime reads; LSTM becomes ONNX
    Runtime's own DynamicQuantizeLSTM.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators that stay float: patterns of node names or operator types")
    )
    only: tuple[str, ...] = cast("tuple[str, ...]", option((), "operator types to quantize; empty means all"))
    weights: Literal["channel", "tensor"] = cast(
        Literal["channel", "tensor"], option("channel", "one weight scale for each output channel, or one in all")
    )
    reduce_range: Literal["auto", "on", "off"] = cast(
        Literal["auto", "on", "off"], option("auto", "7-bit weights for CPUs without VNNI; auto looks at this one")
    )

    def run(self, module: Module, context: Context) -> PassResult:
        """Replace every operator that has a dynamic kernel and a constant weight."""
        reason = _nothing_to_do(module, context)
        if reason is not None:
            return PassResult.nothing(reason)
        lost = [f"keep-float={one} fits no operator" for one in unmatched(module.model, self.keep_float)]
        rewriter = Rewriter(module, self.pass_name())
        materialize(rewriter, ("MatMul", "Gemm"))
        reduced = self.reduce_range == "on" or (self.reduce_range == "auto" and needs_reduced_range())
        work = _Dynamic(rewriter, self.weights == "channel", 63 if reduced else 127)
        for node, held in places(module, DYNAMIC):
            problem = held or self._veto(node) or work.apply(node)
            if problem is not None:
                rewriter.refuse(self.pass_name(), node, problem)
        return PassResult.of(rewriter, [*lost, *work.notes(reduced)])

    def _veto(self, node: ir.Node) -> str | None:
        if (reason := kept_float(node, self.keep_float)) is not None:
            return reason
        return f"not among only={';'.join(self.only)}" if self.only and node.op_type not in self.only else None


def _nothing_to_do(module: Module, context: Context) -> str | None:
    if context.target.name != "cpu":
        return f"nothing to quantize: {context.target.name} has no kernels that quantize their input at each run"
    ours = bool(module.ranges) and precision_of(module) == "quantized"  # by quantize, a step before
    if not ours and (reason := not_quantizable(module)) is not None:
        return reason
    if module.opset < OPSET:
        return f"opset {module.opset} cannot express it, {OPSET} can (upgrade-opset comes first)"
    return None


class _Dynamic:
    """One run of the pass: the inputs quantized so far, and the weights stored."""

    def __init__(self, rewriter: Rewriter, per_channel: bool, limit: int) -> None:
        self.rewriter = rewriter
        self.per_channel = per_channel
        self.limit = limit
        self.store = Store(rewriter)
        self.made: Counter[str] = Counter()
        self._inputs: dict[tuple[int, int], tuple[ir.Value, ...]] = {}

    def apply(self, node: ir.Node) -> str | None:
        """Quantize one operator, or say why not."""
        if node.op_type == "LSTM":
            return self._lstm(node)
        found = product_of(node)
        if isinstance(found, str):
            return found
        if np.asarray(constant(found.weight)).size < SMALLEST:
            return f"its weight has fewer than {SMALLEST} numbers: finding the input's range would cost more"
        with self.rewriter.rewriting(f"dynamic-{node.op_type.lower()}", node):
            self._product(found)
            self.made[node.op_type] += 1
        return None

    def _product(self, found: Product) -> None:
        """x @ w -> Cast(MatMulInteger(q(x), q(w))) * (scale x * scale w), the form that ONNX Runtime fuses."""
        node, add = found.node, self.rewriter.add
        quantized_input, scale, zero = self._input(found.data, node)
        integers, weight_scale = self.store.get(
            found.weight, f"{found.transposed} {found.factor}", node, lambda: self._columns(found)
        )
        name = node.name or node.op_type
        (sums,) = add("MatMulInteger", [quantized_input, integers, zero], before=node, name=f"{name}_integer")
        (floats,) = add("Cast", [sums], {"to": int(ir.DataType.FLOAT)}, before=node, name=f"{name}_float")
        (both,) = add("Mul", [scale, weight_scale], before=node, name=f"{name}_scale")
        (result,) = add("Mul", [floats, both], before=node, name=f"{name}_scaled", like=node.outputs[0])
        result = add_bias(self.rewriter, result, found)
        self.rewriter.replace(node.outputs[0], result)
        self.rewriter.erase(node)
        self.store.drop(found.weight)

    def _input(self, data: ir.Value, node: ir.Node) -> tuple[ir.Value, ...]:
        """Integers, scale and zero-point of `data`; operators of one graph share them."""
        key = id(data), id(node.graph)
        if key not in self._inputs:
            made = self.rewriter.add(
                "DynamicQuantizeLinear", [data], before=node, outputs=3, name=f"{data.name}_quantized"
            )
            made[0].type = ir.TensorType(ir.DataType.UINT8)
            made[0].shape = None if data.shape is None else data.shape.copy()
            self._inputs[key] = made
        return self._inputs[key]

    def _columns(self, found: Product) -> tuple[ir.Value, ...]:
        numbers, weight = found.columns(), found.weight
        made = weight_parameters(numbers, 1 if self.per_channel else None, self.limit)
        integers = quantized(numbers, made, 1)
        self.store.judge(numbers, integers * made.scale.astype(np.float64))
        moved = np.transpose if found.transposed else None
        constants = self.rewriter.constant
        scale = np.asarray(made.scale * np.float32(found.factor), np.float32)
        return (
            constants(integers, f"{weight.name}_quantized", at=found.node, follows=weight, moved=moved),
            constants(scale, f"{weight.name}_scale", at=found.node),
        )

    # -- recurrent ------------------------------------------------------------------------------------------

    def _lstm(self, node: ir.Node) -> str | None:
        reason = _lstm_refusal(node)
        if reason is not None:
            return reason
        inputs = [input_at(node, index) for index in range(8)]
        data, weights = inputs[0], [value for value in inputs[1:3] if value is not None]
        if data is None or len(weights) != 2:
            return "an operand is missing"
        with self.rewriter.rewriting("dynamic-lstm", node):
            stored = [self.store.get(value, "gates", node, lambda v=value: self._gates(v, node)) for value in weights]  # type: ignore[misc]
            (w, w_scale, w_zero), (r, r_scale, r_zero) = stored
            given = {name: one for name, one in node.attributes.items() if name != "layout"}
            results = self.rewriter.add(
                "DynamicQuantizeLSTM", [data, w, r, *inputs[3:], w_scale, w_zero, r_scale, r_zero], given,
                before=node, domain=MICROSOFT_DOMAIN, outputs=len(node.outputs), name=f"{node.name}_dynamic",
            )  # fmt: skip
            for old, new in zip(node.outputs, results, strict=True):
                new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
                self.rewriter.replace(old, new)
            self.rewriter.erase(node)
            for value in weights:
                self.store.drop(value)
            self.made["LSTM"] += 1
        return None

    def _gates(self, weight: ir.Value, node: ir.Node) -> tuple[ir.Value, ...]:
        """(directions, 4 * hidden, in) -> (directions, in, 4 * hidden) in int8, with a scale for each column."""
        numbers = np.ascontiguousarray(np.asarray(constant(weight), np.float32).transpose(0, 2, 1))
        axes = (1,) if self.per_channel else (1, 2)
        largest = np.max(np.abs(numbers), axis=axes, keepdims=True)
        scale = np.maximum(largest / self.limit, np.float32(2.0**-100)).astype(np.float32)
        integers: Array = np.clip(np.rint(numbers / scale), -self.limit, self.limit).astype(np.int8)
        self.store.judge(numbers, integers * scale.astype(np.float64))
        flat = np.squeeze(scale, axes)
        constants = self.rewriter.constant
        return (
            constants(
                integers, f"{weight.name}_quantized", at=node, follows=weight, moved=lambda one: one.transpose(0, 2, 1)
            ),
            constants(flat, f"{weight.name}_scale", at=node),
            constants(np.zeros(flat.shape, np.int8), f"{weight.name}_zero_point", at=node),
        )

    def notes(self, reduced: bool) -> Iterator[str]:
        """What was made, and how well the weights are held."""
        if not self.made:
            yield "nothing was quantized"
            return
        yield "INT8 with ranges of each run: " + ", ".join(f"{n} {op}" for op, n in sorted(self.made.items()))
        yield self.store.said()
        if reduced:
            yield "weights keep to 7 bits: this CPU adds products in 16 bits (no VNNI)"


def _lstm_refusal(node: ir.Node) -> str | None:
    if any(one.is_ref() for one in node.attributes.values()):
        return "an attribute refers to a function attribute"
    if attribute(node, "layout", 0):
        return "its layout is batch first, which the kernel does not take"
    data = input_at(node, 0)
    if data is None:
        return "an operand is missing"
    if (reason := data_refusal(data)) is not None:
        return reason
    for index in (1, 2):
        weight = input_at(node, index)
        if weight is None:
            return "an operand is missing"
        if (reason := weight_refusal(weight)) is not None:
            return reason
        numbers = constant(weight)
        if numbers is None or numbers.ndim != 3:
            return "its weight has not three dimensions"
    return None
