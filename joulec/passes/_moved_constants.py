"""Integers that are stored, and moved before they become floats (the table of an embedding): TensorRT takes stored
integers right before DequantizeLinear only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, constant
from joulec.passes._qdq_graph import Scale, computes, readers, scale_of
from joulec.passes._symmetric import Group, set_scale

Table = tuple[ir.Value, bytes, bytes]
"""A stored value, and the scale and zero-point that it is read with."""


def moves_constants(group: Group) -> bool:
    """Whether the integers of a group are all stored ones."""
    return bool(group.stored) and not group.quantize


def float_constants(rewriter: Rewriter, group: Group, made: dict[Table, ir.Value]) -> None:
    """Let floats be moved instead; what computes behind them reads them through a pair of signed integers.

    Args:
        rewriter: of the module.
        group: whose integers are all stored.
        made: float tables by stored value and scale, for groups that share one.

    Raises:
        Refused: before anything is changed.
    """
    found = _common_scale(group)
    tables = {value: _floats(value, found) for value in group.stored}
    for node in group.between:
        for index, value in enumerate(node.inputs):
            if value in tables:
                key = (value, found.scale.tobytes(), found.zero_point.tobytes())
                if key not in made:
                    made[key] = rewriter.constant(tables[value], f"{value.name}_float", at=node, follows=value)
                rewriter.set_input(node, index, made[key])
        for moved in node.outputs:
            moved.dtype = ir.DataType.from_numpy(found.stored)
    reach = max(float(np.max(np.abs(table), initial=0.0)) for table in tables.values())
    for node in group.dequantize:
        _settle(rewriter, node, reach / 127 or 1.0)


def _common_scale(group: Group) -> Scale:
    if group.obstacle is not None:
        raise Refused(group.obstacle)
    scales = [scale_of(node) for node in group.dequantize]
    first = scales[0]
    if first is None or any(one is None or one.axis is not None for one in scales):
        raise Refused("its stored integers are moved and have no one constant scale")
    if len({(one.scale.tobytes(), one.zero_point.tobytes()) for one in scales if one is not None}) > 1:
        raise Refused("its stored integers are moved and read with different scales")
    return first


def _floats(value: ir.Value, found: Scale) -> Array:
    numbers = constant(value)
    if numbers is None:
        raise Refused(f"'{value.name}' cannot be read")
    return np.asarray((numbers.astype(np.int64) - found.zero_point) * found.scale, found.stored)


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
    (integers,) = rewriter.add(
        "QuantizeLinear", [value, *node.inputs[1:]], before=node, name=f"{value.name}_quantize"
    )
    integers.dtype, integers.shape = ir.DataType.INT8, value.shape
    rewriter.set_input(node, 0, integers)
