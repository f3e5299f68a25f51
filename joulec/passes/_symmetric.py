"""To signed integers around zero: activations group by group, weights with their channels on the right axis, biases
as floats. Each function raises `Refused` before it changes anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, constant, constant_tensor
from joulec.passes._qdq_graph import (
    EIGHT_BITS,
    MOVES,
    Scale,
    computes,
    dequantized,
    is_dequantize,
    is_quantize,
    nodes_of,
    readers,
    scale_of,
    spread,
    weight_axis,
)

POSITIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Sqrt", "Clip"})
"""Operators whose result does not need a Relu where a zero-point of the lowest integer stood for one."""


# -- constants ------------------------------------------------------------------------------------------------------


def legal_constant(rewriter: Rewriter, node: ir.Node) -> None:
    """One DQ of a constant: a bias becomes float, a weight signed and symmetric, with channels where they belong."""
    found = scale_of(node)
    numbers = None if found is None else dequantized(node, found)
    if found is None or numbers is None:
        raise Refused("its scale, zero-point or integers cannot be read")
    users = list(node.outputs[0].uses())
    if found.dtype not in EIGHT_BITS or not users or is_stored_scalar(node):
        _as_float(rewriter, node, numbers, found)
        return
    axis = _wanted_axis(node, users)
    if found.symmetric and (found.axis is None or found.axis == axis):
        return
    kept = found.axis if found.axis in (None, axis) else axis
    _set_integers(rewriter, node, *_requantized(node, numbers, found, kept), kept)


def needs_legalizing(node: ir.Node) -> bool:
    """Whether a DQ of a constant is not in the form that TensorRT takes."""
    found = scale_of(node)
    if found is None or constant_tensor(node.inputs[0]) is None:
        return False
    if is_stored_scalar(node):
        return True
    if found.dtype not in EIGHT_BITS:
        return found.dtype in (ir.DataType.INT32, ir.DataType.INT16, ir.DataType.UINT16)
    return not found.symmetric or (
        found.axis is not None and found.axis != _wanted_axis(node, list(node.outputs[0].uses()))
    )


def is_stored_scalar(node: ir.Node) -> bool:
    """Whether a DQ reads a stored number without dimensions: TensorRT takes it for one that nothing dequantizes."""
    tensor = constant_tensor(node.inputs[0])
    return is_dequantize(node) and tensor is not None and not tensor.shape.dims


def _wanted_axis(node: ir.Node, users: Sequence[Any]) -> int | None:
    """The axis of channels that all users agree on, None where one scale must do."""
    axes = {weight_axis(use.node) if computes(use.node) and use.idx == 1 else None for use in users}
    return axes.pop() if len(axes) == 1 else None


def _as_float(rewriter: Rewriter, node: ir.Node, numbers: Array, found: Scale) -> None:
    value = rewriter.constant(numbers.astype(found.stored), f"{node.outputs[0].name}_float", at=node)
    rewriter.replace(node.outputs[0], value)
    rewriter.erase(node)


def _requantized(node: ir.Node, numbers: Array, found: Scale, axis: int | None) -> tuple[Array, Array]:
    """(int8, scale): the same integers moved by the zero-point where they fit, else rounded anew."""
    stored = constant(node.inputs[0])
    zero = spread(found.zero_point, numbers.ndim, found.axis)
    if stored is not None and zero is not None and axis == found.axis:
        moved = stored.astype(np.int64) - zero
        if moved.size and moved.min() >= -128 and moved.max() <= 127:
            return moved.astype(np.int8), found.scale
    axes = None if axis is None else tuple(i for i in range(numbers.ndim) if i != axis)
    largest = np.asarray(np.max(np.abs(numbers), axis=axes, initial=0.0))
    scale = np.where(largest > 0, largest / 127, 1.0)
    shaped = spread(scale, numbers.ndim, axis)
    return np.clip(np.rint(numbers / shaped), -128, 127).astype(np.int8), scale


def _set_integers(
    rewriter: Rewriter, node: ir.Node, integers: Array, scale: Array, axis: int | None, stored: object = None
) -> None:
    name, old = node.outputs[0].name, node.inputs[0]
    mask = rewriter.module.masks.get((old.name or "") if old is not None else "")
    kind = scale_of(node)
    dtype = np.float32 if kind is None else kind.stored
    rewriter.set_input(node, 0, rewriter.constant(integers, f"{name}_int8", at=node, mask=mask))
    rewriter.set_input(node, 1, rewriter.constant(scale.astype(dtype), f"{name}_scale", at=node))
    zero = np.zeros(scale.shape, np.int8)
    rewriter.set_input(node, 2, rewriter.constant(zero, f"{name}_zero_point", at=node))
    rewriter.set_attribute(node, "axis", axis)


def fold_weight(rewriter: Rewriter, quantize: ir.Node) -> None:
    """QuantizeLinear of a stored weight -> the integers, as an initializer."""
    found, numbers = scale_of(quantize), constant(quantize.inputs[0])
    if found is None or numbers is None or found.dtype not in EIGHT_BITS:
        raise Refused("its scale, zero-point or weight cannot be read")
    scale, zero = (spread(a, numbers.ndim, found.axis) for a in (found.scale, found.zero_point))
    if scale is None or zero is None or not np.all(np.isfinite(numbers)):
        raise Refused("its scale does not fit its weight")
    kind = np.int8 if found.dtype == ir.DataType.INT8 else np.uint8
    steps = np.rint(numbers.astype(np.float64) / scale) + zero
    integers = np.clip(steps, *EIGHT_BITS[found.dtype]).astype(kind)
    old = quantize.inputs[0]
    mask = rewriter.module.masks.get((old.name or "") if old is not None else "")
    made = rewriter.constant(integers, f"{quantize.outputs[0].name}_stored", at=quantize, mask=mask)
    rewriter.replace(quantize.outputs[0], made)
    rewriter.erase(quantize)


# -- activations ----------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """Integers that hang together: what Q nodes make, the model stores or its caller gives, what moves them, and what
    DQ nodes read or the caller gets.
    """

    quantize: list[ir.Node] = field(default_factory=list)
    dequantize: list[ir.Node] = field(default_factory=list)
    between: list[ir.Node] = field(default_factory=list)
    stored: list[ir.Value] = field(default_factory=list)
    entering: list[ir.Value] = field(default_factory=list)
    leaving: list[ir.Value] = field(default_factory=list)
    obstacle: str | None = None

    @property
    def members(self) -> list[ir.Node]:
        """The nodes that hold parameters."""
        return [*self.quantize, *self.dequantize]


def groups(module: Module) -> list[Group]:
    """Every group of the main graph, in graph order. O(nodes + edges)."""
    seen: set[int] = set()
    found = []
    for node in nodes_of(module):
        if (is_quantize(node) or is_dequantize(node)) and id(node) not in seen and not _reads_constant(node):
            found.append(_collect(node, seen))
    return found


def _reads_constant(node: ir.Node) -> bool:
    return constant_tensor(node.inputs[0]) is not None


def _collect(first: ir.Node, seen: set[int]) -> Group:
    group, work = Group(), [first]
    while work:
        node = work.pop()
        if id(node) in seen:
            continue
        if not _carries(node):
            group.obstacle = group.obstacle or f"{walk.label(node)} computes on its integers"
            continue  # not seen: it is in the way of those on its other side too
        seen.add(id(node))
        if is_quantize(node):
            group.quantize.append(node)
            _follow(node.outputs[0], group, work)
        elif is_dequantize(node):
            group.dequantize.append(node)
            _lead(node.inputs[0], group, work)
        else:
            group.between.append(node)
            for made in node.outputs:
                _follow(made, group, work)
            for value in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
                _lead(value, group, work)
    return group


def _carries(node: ir.Node) -> bool:
    return is_quantize(node) or is_dequantize(node) or walk.is_onnx(node, "Concat", *sorted(MOVES))


def _follow(value: ir.Value, group: Group, work: list[ir.Node]) -> None:
    if value.is_graph_output():
        group.leaving.append(value)
    work.extend(readers(value))


def _lead(value: ir.Value | None, group: Group, work: list[ir.Node]) -> None:
    producer = None if value is None else value.producer()
    if value is not None and constant_tensor(value) is not None:
        group.stored.append(value)
    elif producer is not None:
        work.append(producer)
    elif value is not None:
        group.entering.append(value)


def needs_symmetry(group: Group) -> bool:
    """Whether any of its members is not signed and symmetric with one scale."""
    return any((found := scale_of(node)) is None or not found.symmetric or found.axis is not None
               for node in group.members)  # fmt: skip


def make_symmetric(rewriter: Rewriter, group: Group) -> None:
    """Give a group signed integers around zero that reach as far as the old ones; what clipped at 0 gets a Relu."""
    if group.obstacle is not None:
        raise Refused(group.obstacle)
    if beside := (*group.stored, *group.entering, *group.leaving):
        raise Refused(f"'{beside[0].name}' is stored, given or wanted as integers beside those of activations")
    scales = [found for node in group.members if (found := scale_of(node)) is not None]
    if len(scales) != len(group.members) or any(one.dtype not in EIGHT_BITS for one in scales):
        raise Refused("a scale or zero-point is not constant, or its integers do not have eight bits")
    if len({(one.dtype, one.zero_point.tobytes()) for one in scales}) > 1:
        raise Refused("its zero-points differ")
    for node, found in zip(group.members, scales, strict=True):
        if is_quantize(node):
            _keep_clamp(rewriter, node, found)
        set_scale(rewriter, node, float(np.max(found.reach)) / 127)
    kind = ir.DataType.INT8
    for node in [*group.quantize, *group.between]:
        for value in node.outputs:
            value.dtype = kind


def _keep_clamp(rewriter: Rewriter, node: ir.Node, found: Scale) -> None:
    """Integers that began at zero were the Relu or the Relu6 in front of them, where a tool took that away."""
    source = node.inputs[0]
    producer = _origin(source)
    if source is None or producer is None or found.symmetric or found.low < 0 or _is_positive(producer):
        return
    bounds = [
        rewriter.constant(np.asarray(bound, found.stored), f"{source.name}_{word}", at=node)
        for word, bound in (("low", 0.0), ("high", float(np.max(found.reach))))
    ]
    (clamped,) = rewriter.add("Clip", [source, *bounds], before=node, name=f"{source.name}_clamp", like=source)
    rewriter.set_input(node, 0, clamped)


def is_loose_clamp(node: ir.Node) -> bool:
    """Whether a Clip to [0, b] could be a Relu: all that read it are Q nodes that saturate at b or below."""
    if not walk.is_onnx(node, "Clip") or len(node.inputs) != 3 or node.outputs[0].is_graph_output():
        return False
    low, high = constant(node.inputs[1]), constant(node.inputs[2])
    if low is None or high is None or low.size != 1 or high.size != 1 or float(low.reshape(-1)[0]) != 0:
        return False
    bound = float(high.reshape(-1)[0]) * (1 + 1e-6)
    users = readers(node.outputs[0])
    scales = [scale_of(one) if is_quantize(one) else None for one in users]
    return bool(users) and all(
        one is not None and one.symmetric and float(np.max(one.reach)) <= bound for one in scales
    )


def loosen(rewriter: Rewriter, node: ir.Node) -> None:
    """Clip to [0, b] -> Relu, which every kernel fuses."""
    rewriter.drop_inputs(node, 1)
    rewriter.set_op(node, "Relu")


def _origin(value: ir.Value | None) -> ir.Node | None:
    """What computed `value`, behind operators that only move it."""
    producer = None if value is None else value.producer()
    while producer is not None and walk.is_onnx(producer, *sorted(MOVES)) and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer


def _is_positive(node: ir.Node) -> bool:
    return walk.is_onnx(node, *sorted(POSITIVE)) and (node.op_type != "Clip" or _clips_at_zero(node))


def _clips_at_zero(node: ir.Node) -> bool:
    low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return low is not None and low.size == 1 and float(low.reshape(-1)[0]) >= 0


def set_scale(rewriter: Rewriter, node: ir.Node, scale: float) -> None:
    """One scale and zero-point 0, signed, for a Q or DQ node; the node becomes ONNX's own."""
    found, name = scale_of(node), node.outputs[0].name
    kind = np.dtype(np.float32) if found is None else found.stored
    rewriter.set_input(node, 1, rewriter.constant(np.asarray(scale, kind), f"{name}_scale", at=node))
    rewriter.set_input(node, 2, rewriter.constant(np.zeros((), np.int8), f"{name}_zero_point", at=node))
    for attribute in ("axis", "output_dtype"):
        if attribute in node.attributes:
            rewriter.set_attribute(node, attribute, None)
    if node.domain not in walk.ONNX_DOMAINS:
        rewriter.set_op(node, node.op_type)


def unify(rewriter: Rewriter, nodes: Iterable[ir.Node]) -> None:
    """Give symmetric Q and DQ nodes the largest of their scales."""
    members = list(nodes)
    scales = [found for node in members if (found := scale_of(node)) is not None]
    if len(scales) != len(members) or not all(one.symmetric and one.axis is None for one in scales):
        raise Refused("its branches are not all symmetric with one scale")
    largest = max(float(one.scale) for one in scales)
    for node, found in zip(members, scales, strict=True):
        if float(found.scale) != largest:
            set_scale(rewriter, node, largest)
