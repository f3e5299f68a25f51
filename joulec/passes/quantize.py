"""INT8 quantization: insert QuantizeLinear / DequantizeLinear in the form that the target's kernels fuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module, Range
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, constant, constant_tensor, rank, sole_consumer
from joulec.passes._patterns import first_match, unmatched
from joulec.passes._qdq import (
    WIDEST,
    Bounds,
    Parameters,
    activation_parameters,
    bias_floor,
    bias_parameters,
    needs_reduced_range,
    quantized,
    weight_parameters,
)
from joulec.passes._qdq_graph import exempt
from joulec.passes._shields import shield
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.blocks import Block, Survey, channel_axis, channels, rescaling, survey
from joulec.passes.calibrate import not_quantizable
from joulec.passes.regions import Islands, islands
from joulec.passes.target import QuantizationScheme, Target


@dataclass(frozen=True)
class Quantize(Pass):
    """Compute in INT8 where the target has kernels for it and the ranges are calibrated."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    indivisible: ClassVar[bool] = True
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
        """Insert Q/DQ around every island of quantizable operators; weights and biases become integers."""
        scheme = context.target.quantization
        if scheme is None:
            return PassResult.nothing(f"nothing to quantize: {context.target.name} has no integer kernels")
        reason = self._nothing_to_do(module)
        if reason is not None:
            return PassResult.nothing(reason)
        seen = survey(module, scheme, context.target.name, lambda node: self._veto(node, scheme))
        if seen.blocks and not module.ranges and context.feeds is None:
            return PassResult.nothing(
                "nothing to quantize: no calibrated ranges (calibrate comes first, and needs --data)"
            )
        lost = [f"keep-float={one} fits no operator" for one in unmatched(module.model, self.keep_float)]
        rewriter = Rewriter(module, self.pass_name())
        chosen = self._choose(module, seen, scheme, rewriter)
        reduced = self._reduced(context.target)
        _Insertion(rewriter, scheme, chosen, self.weights == "channel", 63 if reduced else 127).run()
        if context.target.name == "cpu" and module.opset >= 13:
            shield(rewriter)
        return PassResult.of(rewriter, [*lost, *self._notes(chosen, seen, reduced)])

    def _nothing_to_do(self, module: Module) -> str | None:
        if (reason := not_quantizable(module)) is not None:
            return reason
        needed = 13 if self.weights == "channel" else 10
        if module.opset < needed:
            return f"opset {module.opset} cannot express it, {needed} can (upgrade-opset comes first)"
        return None

    def _veto(self, node: ir.Node, scheme: QuantizationScheme) -> str | None:
        if (pattern := first_match(node, self.keep_float)) is not None:
            return f"kept float by keep-float={pattern}"
        if self.only and node.op_type in scheme.compute and node.op_type not in self.only:
            return f"not among only={';'.join(self.only)}"
        reason = exempt(node) if scheme.spares and node.op_type in scheme.compute else None
        return None if reason is None else f"{reason}: slower in INT8 than in half precision"

    def _reduced(self, target: Target) -> bool:
        if self.reduce_range != "auto":
            return self.reduce_range == "on"
        return target.name == "cpu" and needs_reduced_range()

    def _choose(self, module: Module, seen: Survey, scheme: QuantizationScheme, rewriter: Rewriter) -> Islands:
        rule = self.pass_name()
        for node, reason in seen.refused:
            rewriter.refuse(rule, node, reason)
        near = islands(seen.blocks, scheme)
        ready: list[Block] = []
        for block in near.kept:
            problem = _uncalibrated(block, module.ranges, scheme)
            if problem is None:
                ready.append(block)
            else:
                rewriter.refuse(rule, block.node, problem)
        chosen = islands(ready, scheme)
        for block, reason in (*near.dropped, *chosen.dropped):
            rewriter.refuse(rule, block.node, reason)
        return chosen

    def _notes(self, chosen: Islands, seen: Survey, reduced: bool) -> Iterator[str]:
        made = Counter(block.node.op_type for block in chosen.kept)
        if not made:
            yield "nothing was quantized"
            return
        yield "INT8: " + ", ".join(f"{count} {op}" for op, count in sorted(made.items()))
        if reduced:
            yield "weights keep to 7 bits: this CPU adds products in 16 bits (no VNNI)"


def _uncalibrated(block: Block, ranges: dict[str, Range], scheme: QuantizationScheme) -> str | None:
    """Why the ranges do not allow `block`, or None. A result that stays float, or shares a scale, needs none."""
    values = block.inputs
    if scheme.quantize_outputs and block.kind in ("compute", "arithmetic") and not block.may_end_in_float:
        values = (*values, block.output)
    for value in values:
        seen = ranges.get(value.name or "")
        if seen is None:
            return f"'{value.name}' is not calibrated"
        if max(-seen.low, seen.high) > WIDEST:
            return f"'{value.name}' reaches {max(-seen.low, seen.high):.1g}: too wide for INT8"
    return None


class _Insertion:
    """One run of the pass over a module: which values are integers, with which parameters, and the changes."""

    def __init__(
        self, rewriter: Rewriter, scheme: QuantizationScheme, chosen: Islands, per_channel: bool, limit: int
    ) -> None:
        self.rewriter = rewriter
        self.scheme = scheme
        self.per_channel = per_channel
        self.limit = limit
        # Values are replaced as the work goes on, so what each block reads, and its range, is noted beforehand.
        self.blocks = [(block, block.inputs) for block in chosen.kept]
        self.readers = {id(value) for _, inputs in self.blocks for value in inputs}
        ranges = rewriter.module.ranges
        values = [value for block, inputs in self.blocks for value in (*inputs, block.output)]
        self.ranges = {id(value): ranges[value.name] for value in values if value.name in ranges}
        self.pairs: dict[tuple[int, int], _Pair] = {}
        """By value and graph: kernels are found within one graph, so a branch has pairs of its own."""
        self.weights: dict[tuple[int, bytes, int], tuple[ir.Value, ...]] = {}

    def run(self) -> None:
        """Quantize every block, in graph order: what a block reads has its parameters before what it makes."""
        for block, inputs in self.blocks:
            for value in dict.fromkeys(inputs):
                self._quantize_input(value, block)
            with self.rewriter.rewriting(f"quantize-{block.node.op_type.lower()}", block.node, *block.tail):
                source = self.pairs[_key(inputs[0], block.node)]
                if block.kind == "rescale":
                    self._rescale(block, source)
                    continue
                for index, value in zip(block.operands, inputs, strict=True):
                    self.rewriter.set_input(block.node, index, self.pairs[_key(value, block.node)].result)
                for index in block.constants:
                    self._quantize_constant(block.node, index)
                if block.weight is not None:
                    self._quantize_weight(block, block.weight, source)
                if self.scheme.quantize_outputs:
                    self._quantize_output(block, source)
        self._sweep()

    def _sweep(self) -> None:
        """Erase pairs that a change of scale left without a reader."""
        for pair in self.pairs.values():
            node = pair.result.producer()
            if node is None or pair.result.uses() or pair.result.is_graph_output():
                continue
            with self.rewriter.rewriting("drop-unused-pair", node):
                self.rewriter.erase(node)

    # -- activations ----------------------------------------------------------------------------------------

    def _quantize_input(self, value: ir.Value, block: Block) -> None:
        """Float value -> Q/DQ that only quantized blocks read."""
        if _key(value, block.node) in self.pairs:
            return
        producer = value.producer()
        outer = None if producer is None else self.pairs.get(_key(value, producer))
        with self.rewriter.rewriting("quantize-input", block.node):
            pair = self._pair(value, *self._constants(value, self._parameters(value, None), block.node), block.node)
            self.rewriter.set_input(pair.quantize, 0, value if outer is None else outer.result)

    def _quantize_output(self, block: Block, source: _Pair) -> None:
        """Result of a block -> Q/DQ; every user of it, graph outputs included, reads the pair."""
        value = block.output
        if block.may_end_in_float and id(value) not in self.readers:
            self._keep_apart(block.node)
            return
        if block.kind == "movement":
            pair = self._pair(value, source.parameters, source.scale, source.zero_point, block.node)
        else:
            made = self._parameters(value, block.within)
            pair = self._pair(value, *self._constants(value, made, block.node), block.node)
        self.rewriter.replace(value, pair.result)
        self.rewriter.set_input(pair.quantize, 0, value)

    def _rescale(self, block: Block, source: _Pair) -> None:
        """Mul(DequantizeLinear(q, s), c) -> DequantizeLinear(q, s * c): the same integers under another scale."""
        value, factor = block.output, rescaling(block.node)
        scaled = np.asarray(float(source.parameters.scale) * (factor or 1.0), np.float32)
        scale = self.rewriter.constant(scaled, f"{value.name}_scale", at=block.node)
        (result,) = self.rewriter.add(
            "DequantizeLinear", [source.quantize.outputs[0], scale, source.zero_point],
            before=block.node, name=f"{value.name}_dequantize", like=value,
        )  # fmt: skip
        made = Parameters(scaled, source.parameters.zero_point)
        self.pairs[_key(value, block.node)] = _Pair(source.quantize, result, made, scale, source.zero_point)
        stored = [one for one in block.node.inputs if one is not None and constant_tensor(one) is not None]
        self.rewriter.replace(value, result)
        self.rewriter.erase(block.node)
        for one in stored:
            self._drop(one)

    def _keep_apart(self, node: ir.Node) -> None:
        """Add(MatMul(x, w), b) of rank 3 -> the same with b of rank 3.

        ONNX Runtime would merge a bias of rank 1 and the MatMul into a Gemm, which then runs in float.
        """
        add = sole_consumer(node.outputs[0])
        if add is None or node.op_type != "MatMul" or not walk.is_onnx(add, "Add") or (rank(node.inputs[0]) or 0) < 3:
            return
        index = 0 if add.inputs[1] is node.outputs[0] else 1
        bias = add.inputs[index]
        numbers = constant(bias)
        if bias is None or numbers is None or numbers.ndim != 1 or bias.dtype != ir.DataType.FLOAT:
            return
        wide = self.rewriter.constant(numbers.reshape(1, 1, -1), f"{bias.name}_wide", at=add)
        self.rewriter.set_input(add, index, wide)
        self._drop(bias)

    def _parameters(self, value: ir.Value, within: Bounds | None) -> Parameters:
        return activation_parameters(self.ranges[id(value)], self.scheme.activation, within)

    def _constants(self, value: ir.Value, made: Parameters, at: ir.Node) -> tuple[Parameters, ir.Value, ir.Value]:
        scale = self.rewriter.constant(made.scale, f"{value.name}_scale", at=at)
        return made, scale, self.rewriter.constant(made.zero_point, f"{value.name}_zero_point", at=at)

    def _pair(
        self, value: ir.Value, made: Parameters, scale: ir.Value, zero_point: ir.Value, reader: ir.Node
    ) -> _Pair:
        """Insert Q and DQ for `value` in the graph of `reader`, right behind its producer where that is there too.

        What Q reads is set by the caller.
        """
        producer, name, graph = value.producer(), value.name, reader.graph
        if graph is None:
            raise RuntimeError(f"{reader.name} is in no graph")
        producer = producer if producer is not None and producer.graph is graph else None
        before = graph[0] if producer is None else None
        (q,) = self.rewriter.add(
            "QuantizeLinear", [None, scale, zero_point], before=before, after=producer, name=f"{name}_quantize"
        )
        quantize = _producer(q)
        (result,) = self.rewriter.add(
            "DequantizeLinear", [q, scale, zero_point], after=quantize, name=f"{name}_dequantize", like=value
        )
        self.pairs[_key(value, reader)] = made_pair = _Pair(quantize, result, made, scale, zero_point)
        return made_pair

    # -- weights --------------------------------------------------------------------------------------------

    def _quantize_weight(self, block: Block, weight: ir.Value, source: _Pair) -> None:
        """Float weight and bias -> integers with DequantizeLinear; originals that nobody uses any more go."""
        node, bias, array = block.node, block.bias, constant(weight)
        numbers = constant(bias) if self.scheme.bias == "int32" else None
        if numbers is not None:
            numbers = np.ascontiguousarray(np.broadcast_to(numbers.reshape(-1), (channels(node),)))
        axis = channel_axis(node) if self.per_channel else None
        floor = bias_floor(numbers, float(source.parameters.scale))
        made = weight_parameters(np.asarray(array), axis, self.limit, floor if axis is not None else np.max(floor))
        self.rewriter.set_input(node, 1, self._dequantized_weight(weight, np.asarray(array), made, axis, node))
        self._drop(weight)
        if bias is not None and numbers is not None:
            self.rewriter.set_input(node, 2, self._dequantized_bias(bias, numbers, source, made, node))
            self._drop(bias)

    def _quantize_constant(self, node: ir.Node, index: int) -> None:
        """Constant operand of a carrying operator -> integers, per tensor, like an activation."""
        value = node.inputs[index]
        numbers = constant(value)
        if value is None or numbers is None:
            return
        made = activation_parameters(Range(float(numbers.min()), float(numbers.max())), self.scheme.activation)
        key = id(value), b"operand", id(node.graph)
        if key not in self.weights:
            integers = quantized(numbers, made)
            stored = self.rewriter.constant(integers, f"{value.name}_quantized", at=node, follows=value)
            self.weights[key] = (stored, *self._constants(value, made, node)[1:])
        result = self._dequantize(self.weights[key], None, node, f"{value.name}_dequantize", value)
        self.rewriter.set_input(node, index, result)
        self._drop(value)

    def _dequantized_weight(
        self, weight: ir.Value, array: Array, made: Parameters, axis: int | None, node: ir.Node
    ) -> ir.Value:
        key = id(weight), made.scale.tobytes(), id(node.graph)
        if key not in self.weights:
            constants = self.rewriter.constant
            self.weights[key] = (
                constants(quantized(array, made, axis), f"{weight.name}_quantized", at=node, follows=weight),
                constants(made.scale, f"{weight.name}_scale", at=node),
                constants(made.zero_point, f"{weight.name}_zero_point", at=node),
            )
        return self._dequantize(self.weights[key], axis, node, f"{weight.name}_dequantize", weight)

    def _dequantized_bias(
        self, bias: ir.Value, numbers: Array, source: _Pair, weight: Parameters, node: ir.Node
    ) -> ir.Value:
        made = bias_parameters(source.parameters.scale, weight.scale)
        axis = 0 if made.scale.ndim else None
        stored = (
            self.rewriter.constant(quantized(numbers, made, axis), f"{bias.name}_quantized", at=node),
            self.rewriter.constant(made.scale, f"{bias.name}_scale", at=node),
            self.rewriter.constant(made.zero_point, f"{bias.name}_zero_point", at=node),
        )
        return self._dequantize(stored, axis, node, f"{bias.name}_dequantize", None)

    def _dequantize(
        self, stored: Sequence[ir.Value], axis: int | None, node: ir.Node, name: str, like: ir.Value | None
    ) -> ir.Value:
        given = {} if axis is None else {"axis": axis}
        (value,) = self.rewriter.add("DequantizeLinear", stored, given, before=node, name=name, like=like)
        return value

    def _drop(self, value: ir.Value) -> None:
        if value.uses() or value.is_graph_output():
            return
        producer = value.producer()
        if producer is not None:
            self.rewriter.erase(producer)
        elif value.is_initializer() and value.graph is not None and not value.is_graph_input():
            self.rewriter.erase_initializer(value.graph, value.name or "")


@dataclass(frozen=True)
class _Pair:
    """The Q/DQ of one value: its Q node, the value behind its DQ, and its parameters as numbers and as constants."""

    quantize: ir.Node
    result: ir.Value
    parameters: Parameters
    scale: ir.Value
    zero_point: ir.Value


def _key(value: ir.Value, node: ir.Node) -> tuple[int, int]:
    return id(value), id(node.graph)


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise RuntimeError(f"'{value.name}' is made by no node")
    return node
