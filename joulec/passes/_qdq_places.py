"""Where Q/DQ pairs stand: rules of TensorRT's that are broken, found by predicates and mended by their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, constant, constant_tensor, input_at, is_overridable
from joulec.passes._qdq import quantized, weight_parameters
from joulec.passes._qdq_graph import (
    ACTIVATIONS,
    MOVES,
    TAKES_INTEGERS,
    computes,
    dequantized,
    exempt,
    is_dequantize,
    is_quantize,
    nodes_of,
    pair_before,
    quantized_input,
    readers,
    scale_of,
    weight_axis,
)
from joulec.passes._symmetric import unify

MAX_MOVES = 16
"""Operators that an activation is followed through: what only moves it does not come in longer chains."""

# -- between a convolution and its activation ------------------------------------------------------------------------


def splits_activation(node: ir.Node) -> str | None:
    """Why the pair before an activation keeps it from running inside the convolution before that, or None."""
    if not walk.is_onnx(node, *sorted(ACTIVATIONS)) or (pair := pair_before(node, 0)) is None:
        return None
    maker = _maker(pair[0])
    if maker is None or not (computes(maker) or walk.is_onnx(maker, "Add", "BatchNormalization")):
        return None
    return f"Q/DQ between {maker.op_type} and {node.op_type}: TensorRT computes both in one kernel without it"


def _maker(quantize: ir.Node) -> ir.Node | None:
    return None if quantize.inputs[0] is None else quantize.inputs[0].producer()


def join_activation(rewriter: Rewriter, node: ir.Node) -> None:
    """Conv -> Q -> DQ -> Relu becomes Conv -> Relu, with the pair behind it where an integer operator reads it."""
    pair = pair_before(node, 0)
    if pair is None:
        raise Refused("there is no pair")
    quantize, dequantize = pair
    takers = [one for one in readers(node.outputs[0]) if one.op_type in TAKES_INTEGERS and one.graph is node.graph]
    rewriter.set_input(node, 0, quantize.inputs[0])
    if takers and not any(is_quantize(one) for one in readers(node.outputs[0])):
        value = node.outputs[0]
        parameters = dequantize.inputs[1:]
        (q,) = rewriter.add("QuantizeLinear", [value, *parameters], after=node, name=f"{value.name}_quantize")
        made = q.producer()
        q.type, q.shape = quantize.outputs[0].type, value.shape
        (result,) = rewriter.add(
            "DequantizeLinear", [q, *parameters], after=made, name=f"{value.name}_dequantize", like=value
        )
        for taker in takers:
            for index, given in enumerate(taker.inputs):
                if given is value:
                    rewriter.set_input(taker, index, result)


# -- residual additions ---------------------------------------------------------------------------------------------


def quantizes_both(node: ir.Node) -> str | None:
    """Why both operands of a residual Add should not be quantized, or None."""
    return None if _main_operand(node) is None else "both operands are quantized: only the skip input should be"


def _main_operand(node: ir.Node) -> int | None:
    """Which operand comes straight from a convolution that nobody else reads, where both are quantized."""
    if not walk.is_onnx(node, "Add") or any(pair_before(node, index) is None for index in (0, 1)):
        return None
    for index in (1, 0):
        pair = pair_before(node, index)
        if pair is None or pair[0].inputs[0] is None:
            continue
        alone = len(pair[0].inputs[0].uses()) == len(pair[0].outputs[0].uses()) == len(pair[1].outputs[0].uses()) == 1
        if alone and computes(_maker(pair[0])):
            return index
    return None


def free_main_operand(rewriter: Rewriter, node: ir.Node) -> None:
    """Let the Add read the convolution itself."""
    index = _main_operand(node)
    pair = None if index is None else pair_before(node, index)
    if index is None or pair is None:
        raise Refused("no operand comes straight from a convolution")
    rewriter.set_input(node, index, pair[0].inputs[0])


# -- operators that are better left in float -------------------------------------------------------------------------


def better_in_float(node: ir.Node) -> str | None:
    """Why a quantized operator is slower in INT8 than in float on TensorRT, or None."""
    if not computes(node) or not any(quantized_input(node, index) for index in (0, 1)):
        return None
    reason = exempt(node)
    return None if reason is None else f"{reason}: slower in INT8 than in half precision"


def to_float(rewriter: Rewriter, node: ir.Node) -> None:
    """Let an operator read its float activation and a float weight."""
    weight = quantized_input(node, 1)
    numbers = None if weight is None else _stored(weight)
    if weight is not None and numbers is not None:
        found = scale_of(weight)
        kind = np.dtype(np.float32) if found is None else found.stored
        value = rewriter.constant(numbers.astype(kind), f"{weight.outputs[0].name}_float", at=node)
        rewriter.set_input(node, 1, value)
    for index in (0, 1):
        pair = pair_before(node, index)
        if pair is not None and constant_tensor(pair[0].inputs[0]) is None:
            rewriter.set_input(node, index, pair[0].inputs[0])


def _stored(dequantize: ir.Node) -> Array | None:
    found = scale_of(dequantize)
    return None if found is None else dequantized(dequantize, found)


# -- half-quantized operators ---------------------------------------------------------------------------------------


def quantizes_half(node: ir.Node) -> str | None:
    """Why an operator that looks quantized computes in float, or None."""
    if not computes(node) or exempt(node) is not None:
        return None
    data, weight = _integers_behind(input_at(node, 0)), quantized_input(node, 1)
    if data is None and weight is not None and constant_tensor(weight.inputs[0]) is not None:
        return "only its weight is quantized: TensorRT computes it in float"
    if data is not None and weight is None and constant_tensor(input_at(node, 1)) is not None:
        return "only its activation is quantized: TensorRT computes it in float"
    return None


def _integers_behind(value: ir.Value | None) -> ir.Node | None:
    """The DQ that an activation comes from, through operators that only move it."""
    for _ in range(MAX_MOVES):
        producer = None if value is None else value.producer()
        if producer is None or is_dequantize(producer):
            return producer
        if not walk.is_onnx(producer, "Concat", *sorted(MOVES)):
            return None
        value = producer.inputs[0]
    return None


HALF_SCALES = 19
"""The first opset in which QuantizeLinear and DequantizeLinear take float16."""


def quantize_weight(rewriter: Rewriter, node: ir.Node) -> None:
    """Quantize the float weight of an operator whose activation is quantized, one scale a channel."""
    value = input_at(node, 1)
    numbers = constant(value)
    if value is None or numbers is None or _integers_behind(input_at(node, 0)) is None:
        raise Refused("its activation has no scale: calibrate the float model, joulec optimize --int8 does")
    if numbers.dtype not in (np.float32, np.float16) or numbers.ndim < 2 or not numbers.size:
        raise Refused("its weight is not a matrix of float32 or float16")
    if not np.all(np.isfinite(numbers)):
        raise Refused("its weight is not finite")
    if numbers.dtype == np.float16 and rewriter.module.opset < HALF_SCALES:
        raise Refused(f"float16 scales need opset {HALF_SCALES}")
    axis, kind, wide = weight_axis(node), numbers.dtype, numbers.astype(np.float32)
    made = weight_parameters(wide, axis, 127)
    made = replace(made, scale=np.maximum(made.scale.astype(kind), np.finfo(kind).smallest_subnormal))
    mask = rewriter.module.masks.get(value.name or "")
    integers = quantized(wide, replace(made, scale=made.scale.astype(np.float32)), axis)
    parts = (
        rewriter.constant(integers, f"{value.name}_int8", at=node, mask=mask),
        rewriter.constant(made.scale, f"{value.name}_scale", at=node),
        rewriter.constant(made.zero_point, f"{value.name}_zero_point", at=node),
    )
    (result,) = rewriter.add(
        "DequantizeLinear", parts, {"axis": axis}, before=node, name=f"{value.name}_dequantize", like=value
    )
    rewriter.set_input(node, 1, result)


# -- pairs that nobody needs ----------------------------------------------------------------------------------------


def idle_pair(node: ir.Node) -> str | None:
    """Why a DQ, and the Q before it, only cost time, or None."""
    quantize = node.inputs[0].producer() if is_dequantize(node) and node.inputs[0] is not None else None
    if quantize is None or not is_quantize(quantize) or constant_tensor(quantize.inputs[0]) is not None:
        return None
    users = readers(node.outputs[0])
    if any(one.op_type in TAKES_INTEGERS or one.graph is not node.graph for one in users):
        return None
    return "no operator behind it computes on integers"


def drop_pair(rewriter: Rewriter, node: ir.Node) -> None:
    """Let everyone behind the DQ read what the Q read."""
    quantize = node.inputs[0].producer() if node.inputs[0] is not None else None
    source = None if quantize is None else quantize.inputs[0]
    if source is None or (node.outputs[0].is_graph_output() and is_overridable(source)):
        raise Refused("its float is an input of the model")
    rewriter.replace(node.outputs[0], source)


# -- scales that must agree -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Nodes whose scales must be one, and the operator that asks for it."""

    node: ir.Node
    members: tuple[ir.Node, ...]


def disagreements(module: Module) -> list[Agreement]:
    """Concat and MaxPool whose branches have different scales, joined where they share one. O(nodes + edges)."""
    sets: dict[int, int] = {}
    owner: dict[int, ir.Node] = {}
    asking: dict[int, ir.Node] = {}
    for node in nodes_of(module):
        if is_quantize(node) and constant_tensor(node.inputs[0]) is None:
            sets[id(node)] = id(node)
            owner[id(node)] = node
    for node in nodes_of(module):
        pairs = [id(one) for one in _shares(node) if id(one) in sets]
        for other in pairs[1:]:
            sets[_root(sets, other)] = _root(sets, pairs[0])
        if len(pairs) > 1:
            asking.setdefault(_root(sets, pairs[0]), node)
    return [found for found in _agreements(sets, owner, asking) if _differ(found)]


def _root(sets: dict[int, int], key: int) -> int:
    while sets[key] != key:
        sets[key] = sets[sets[key]]
        key = sets[key]
    return key


def _shares(node: ir.Node) -> list[ir.Node]:
    """The Q nodes around a Concat or MaxPool that must have one scale; none where a branch is not quantized."""
    if not walk.is_onnx(node, "Concat", "MaxPool"):
        return []
    indices = range(len(node.inputs)) if node.op_type == "Concat" else range(1)
    before = [pair_before(node, index) for index in indices]
    if any(pair is None for pair in before):
        return []
    behind = [one for one in readers(node.outputs[0]) if is_quantize(one)]
    return [*(pair[0] for pair in before if pair is not None), *behind]


def _agreements(sets: dict[int, int], owner: dict[int, ir.Node], asking: dict[int, ir.Node]) -> Iterator[Agreement]:
    together: dict[int, list[ir.Node]] = {}
    for key, node in owner.items():
        together.setdefault(_root(sets, key), []).append(node)
    asked = {_root(sets, key): node for key, node in reversed(asking.items())}
    for root, quantizers in together.items():
        if len(quantizers) > 1:
            behind = [one for node in quantizers for one in readers(node.outputs[0]) if is_dequantize(one)]
            yield Agreement(asked[root], (*quantizers, *{id(one): one for one in behind}.values()))


def _differ(found: Agreement) -> bool:
    scales = [scale_of(node) for node in found.members]
    return len({None if one is None else one.scale.tobytes() for one in scales}) > 1


def agree(rewriter: Rewriter, found: Agreement) -> None:
    """Give them all the largest scale."""
    unify(rewriter, found.members)


# -- the rules, by name ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeRule:
    """A rule about one node: what breaks it, and what mends it."""

    name: str
    broken: Callable[[ir.Node], str | None]
    mend: Callable[[Rewriter, ir.Node], None]


NODE_RULES = (
    NodeRule("qdq-before-activation", splits_activation, join_activation),
    NodeRule("residual-both-quantized", quantizes_both, free_main_operand),
    NodeRule("better-in-float", better_in_float, to_float),
    NodeRule("half-quantized", quantizes_half, quantize_weight),
    NodeRule("idle-pair", idle_pair, drop_pair),
)
"""In the order in which they are mended."""
