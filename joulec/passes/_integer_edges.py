"""Integers that a model stores and moves (the table of an embedding), takes from its caller or gives to it: floats are
moved instead, and become or stop being integers at the edge. TensorRT takes stored integers right before
DequantizeLinear only, and unsigned ones in a Cast only.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, constant
from joulec.passes._qdq_graph import EIGHT_BITS, Scale, computes, readers, scale_of
from joulec.passes._symmetric import Group, needs_symmetry, set_scale

Table = tuple[ir.Value, bytes, bytes]
"""A stored value, and the scale and zero-point that it is read with."""

# -- where they begin -----------------------------------------------------------------------------------------------


def begins_in_integers(group: Group) -> bool:
    """Whether the integers of a group are stored or given ones, in a form that TensorRT does not take."""
    sources = bool(group.stored) or (bool(group.entering) and needs_symmetry(group))
    return sources and not group.quantize


def begin_in_floats(rewriter: Rewriter, group: Group, made: dict[Table, ir.Value]) -> None:
    """Let floats be moved; what computes behind them reads them through a pair of signed integers.

    Args:
        rewriter: of the module.
        group: for which `begins_in_integers` holds.
        made: float tables by stored value and scale, for groups that share one.

    Raises:
        Refused: before anything is changed.
    """
    found = _common_scale(group)
    tables = {value: _floats(value, found) for value in group.stored}
    entering = dict.fromkeys(group.entering)
    for node in (*group.between, *group.dequantize):
        for index, value in enumerate(node.inputs):
            if value is not None and value in tables:
                rewriter.set_input(node, index, _stored_floats(rewriter, node, value, tables[value], found, made))
            elif value is not None and value in entering:
                entering[value] = entering[value] or _given_floats(rewriter, node, value, found)
                rewriter.set_input(node, index, entering[value])
    for node in group.between:
        for moved in node.outputs:
            moved.dtype = ir.DataType.from_numpy(found.stored)
    reach = [float(np.max(np.abs(table), initial=0.0)) for table in tables.values()]
    reach += [float(np.max(found.reach))] * bool(group.entering)
    for node in group.dequantize:
        _settle(rewriter, node, max(reach) / 127 or 1.0)


def _common_scale(group: Group) -> Scale:
    if group.obstacle is not None or group.leaving:
        raise Refused(group.obstacle or f"'{group.leaving[0].name}' leaves the model as integers")
    scales = [scale_of(node) for node in group.dequantize]
    first = scales[0]
    if first is None or any(one is None or one.axis is not None for one in scales):
        raise Refused("its integers are moved and have no one constant scale")
    if len({(one.scale.tobytes(), one.zero_point.tobytes()) for one in scales if one is not None}) > 1:
        raise Refused("its integers are moved and read with different scales")
    return first


def _floats(value: ir.Value, found: Scale) -> Array:
    numbers = constant(value)
    if numbers is None:
        raise Refused(f"'{value.name}' cannot be read")
    return np.asarray((numbers.astype(np.int64) - found.zero_point) * found.scale, found.stored)


def _stored_floats(
    rewriter: Rewriter, node: ir.Node, value: ir.Value, table: Array, found: Scale, made: dict[Table, ir.Value]
) -> ir.Value:
    key = (value, found.scale.tobytes(), found.zero_point.tobytes())
    if key not in made:
        made[key] = rewriter.constant(table, f"{value.name}_float", at=node, follows=value)
    return made[key]


def _given_floats(rewriter: Rewriter, node: ir.Node, value: ir.Value, found: Scale) -> ir.Value:
    """(Cast(x) - zero-point) * scale; signed integers are dequantized around 0 and then shifted."""
    kind, at = ir.DataType.from_numpy(found.stored), (rewriter, node, value)
    if found.dtype == ir.DataType.INT8:
        around = rewriter.constant(_ZERO, f"{value.name}_zero", at=node)
        made = _then(*at, "DequantizeLinear", [value, _number(*at, "step", found.scale, found), around], kind)
        return _then(*at, "Sub", [made, _number(*at, "shift", found.zero_point * found.scale, found)], kind)
    made = _then(*at, "Cast", [value], kind, {"to": int(kind)})
    made = _then(*at, "Sub", [made, _number(*at, "zero", found.zero_point, found)], kind)
    return _then(*at, "Mul", [made, _number(*at, "step", found.scale, found)], kind)


_ZERO = np.zeros((), np.int8)


def _number(rewriter: Rewriter, node: ir.Node, like: ir.Value, word: str, number: object, found: Scale) -> ir.Value:
    return rewriter.constant(np.asarray(number, found.stored), f"{like.name}_{word}", at=node)


def _then(
    rewriter: Rewriter, node: ir.Node, like: ir.Value, op_type: str, inputs: list[ir.Value], kind: ir.DataType,
    given: dict[str, int] | None = None,
) -> ir.Value:  # fmt: skip
    """One more operator before `node`, elementwise on the shape of `like`."""
    (made,) = rewriter.add(op_type, inputs, given or {}, before=node, name=f"{like.name}_{op_type.lower()}")
    made.dtype, made.shape = kind, like.shape
    return made


def _settle(rewriter: Rewriter, node: ir.Node, scale: float) -> None:
    """A DQ whose input is float now: it goes, or it gets a Q before it where something computes on its integers."""
    value = node.inputs[0]
    if value is None:
        return
    if not any(computes(one) for one in readers(node.outputs[0])):
        rewriter.replace(node.outputs[0], value)
        rewriter.erase(node)
        return
    set_scale(rewriter, node, scale)
    (integers,) = rewriter.add("QuantizeLinear", [value, *node.inputs[1:]], before=node, name=f"{value.name}_quantize")
    integers.dtype, integers.shape = ir.DataType.INT8, value.shape
    rewriter.set_input(node, 0, integers)


# -- where they end -------------------------------------------------------------------------------------------------


def ends_in_integers(group: Group) -> bool:
    """Whether a group gives the caller integers in a form that TensorRT does not take."""
    return bool(group.leaving) and needs_symmetry(group)


def end_in_floats(rewriter: Rewriter, group: Group) -> None:
    """Cast(Clip(Round(x / scale + zero-point))) for the caller, as QuantizeLinear computes it, or a shift and a
    QuantizeLinear around 0 where the integers are signed; the rest reads the Q.

    Raises:
        Refused: before anything is changed.
    """
    if group.obstacle is not None:
        raise Refused(group.obstacle)
    ending = [(node, scale_of(node)) for node in group.quantize if node.outputs[0] in group.leaving]
    if len(ending) != len(group.leaving):
        raise Refused(f"'{group.leaving[0].name}' is moved after it became integers, and leaves the model as such")
    for node, found in ending:
        if found is None or found.axis is not None or found.dtype not in EIGHT_BITS or node.inputs[0] is None:
            raise Refused(f"'{node.outputs[0].name}' leaves the model as integers and has no one constant scale")
    for node, found in ending:
        if found is not None:
            _leave(rewriter, node, found)


def _leave(rewriter: Rewriter, node: ir.Node, found: Scale) -> None:
    value, old = node.inputs[0], node.outputs[0]
    if value is None:
        return
    made = (_shifted if found.dtype == ir.DataType.INT8 else _cast)(rewriter, node, value, found)
    inside = [(use.node, use.idx) for use in old.uses()]
    rewriter.replace(old, made)
    for user, index in inside:
        rewriter.set_input(user, index, old)


def _shifted(rewriter: Rewriter, node: ir.Node, value: ir.Value, found: Scale) -> ir.Value:
    at, kind = (rewriter, node, value), ir.DataType.from_numpy(found.stored)
    made = _then(*at, "Add", [value, _number(*at, "shift", found.zero_point * found.scale, found)], kind)
    around = rewriter.constant(_ZERO, f"{value.name}_zero", at=node)
    return _then(*at, "QuantizeLinear", [made, _number(*at, "step", found.scale, found), around], ir.DataType.INT8)


def _cast(rewriter: Rewriter, node: ir.Node, value: ir.Value, found: Scale) -> ir.Value:
    at, kind = (rewriter, node, value), ir.DataType.from_numpy(found.stored)
    low, high = (_number(*at, "bound", number, found) for number in EIGHT_BITS[found.dtype])
    made = _then(*at, "Div", [value, _number(*at, "step", found.scale, found)], kind)
    made = _then(*at, "Add", [made, _number(*at, "zero", found.zero_point, found)], kind)
    made = _then(*at, "Clip", [_then(*at, "Round", [made], kind), low, high], kind)
    return _then(*at, "Cast", [made], found.dtype, {"to": int(found.dtype)})
