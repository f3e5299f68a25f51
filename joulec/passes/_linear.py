"""Linear operators with a constant weight: reading them, and giving them other weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.compact import Compact, compact_constant
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, attribute, input_at, rank
from joulec.passes._affine import LINEAR, vector_constant

MAX_FUSIONS = 64
"""Scales and shifts that one operator takes in; each costs a pass over its weight, and a file may hold any number."""

MAX_COMPACT_BYTES = 1 << 16
"""What a fused weight may add to the file where the old one was computed, in float64; larger ones stay unfused."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Linear:
    """A linear operator with a constant weight.

    Attributes:
        node: the operator.
        weight: its weight's value.
        held: the weight's numbers; where a node computes them, they are kept as compact as it does.
        out_axis: the axis of the weight that runs over output channels (of one group).
        channel_axis: the channel axis of the operator's output, counted from the back.
        groups: groups of a ConvTranspose, whose weight is (in, out / groups, ...).
    """

    node: ir.Node
    weight: ir.Value
    held: Compact
    out_axis: int
    channel_axis: int
    groups: int

    def numbers(self) -> Array:
        """The weight as float64, broadcasting to `numbers_shape`."""
        return self.held.numbers.astype(np.float64)

    def least_rank(self) -> int:
        """The rank that the output has at least, also where inference found none."""
        if self.node.op_type == "MatMul":
            return rank(self.node.outputs[0]) or 1
        return len(self.numbers_shape())

    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.numbers_shape()[self.out_axis]) * self.groups

    def numbers_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.held.shape

    def bias(self) -> ir.Value | None:
        """The bias input, if any."""
        return None if self.node.op_type == "MatMul" else input_at(self.node, 2)


def linear_of(node: ir.Node | None) -> Linear | None:
    """Read `node` as a linear operator with a constant float weight, or None.

    Raises:
        Refused: it is one, but its weight can be fed by the caller, has another rank, or is shared.
    """
    if node is None or not walk.is_onnx(node, *LINEAR) or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    held = compact_constant(weight)
    if weight is None or held is None:
        if weight is not None and weight.is_initializer():
            raise Refused(f"weight '{weight.name}' is a graph input that callers may feed")
        return None
    if held.dtype not in FLOATS:
        return None
    dims = len(held.shape)
    match node.op_type:
        case "Conv":
            return Linear(node, weight, held, 0, 1 - dims, 1)
        case "ConvTranspose":
            return Linear(node, weight, held, 1, 1 - dims, attribute(node, "group", 1))
        case "Gemm":
            return Linear(node, weight, held, 0 if attribute(node, "transB", 0) else 1, -1, 1)
        case _ if dims == 2:
            return Linear(node, weight, held, 1, -1, 1)
    raise Refused(f"its weight has rank {dims}")


def bias_numbers(linear: Linear, channels: int) -> Array | None:
    value = linear.bias()
    if value is None:
        return None
    found = vector_constant(value)
    if found is None:
        raise Refused("its bias is not a constant")
    if found.ndim > 1 and found.shape[-1] != found.size:
        raise Refused(f"its bias has rank {found.ndim}")
    return np.broadcast_to(found.astype(np.float64).reshape(-1), (channels,))


def require_width(flows: ir.Value, axis: int, channels: int) -> None:
    """A constant of many channels broadcasts an input of one; without the constant it would stay at one.

    Raises:
        Refused: that is so, or cannot be ruled out.
    """
    if channels == 1:
        return
    width = None if flows.shape is None else flows.shape[axis]
    if not isinstance(width, int):
        raise Refused(f"its constant of {channels} channels may widen an input of unknown channels")
    if width != channels:
        raise Refused(f"its constant of {channels} channels widens an input of {width}")


def count_fusion(linear: Linear, times: dict[ir.Node, int]) -> None:
    times[linear.node] = times.get(linear.node, 0) + 1
    if times[linear.node] > MAX_FUSIONS:
        raise Refused(f"its weight was rescaled {MAX_FUSIONS} times already")


def _hint(value: ir.Value, suffix: str) -> str:
    """A name that says what was done, once: names do not grow with every fusion."""
    return re.sub(rf"{suffix}(_\d+)?$", "", value.name or "") + suffix


def refit(linear: Linear, weight: Array, bias: Array | None, rewriter: Rewriter) -> None:
    """Give the operator its new weight and bias; a mask stays, since scaling keeps zeros zero.

    Raises:
        Refused: the numbers do not fit the weight's type. Nothing was changed then.
    """
    node, old = linear.node, linear.bias()
    if not linear.held.stored and weight.nbytes > MAX_COMPACT_BYTES:
        raise Refused(f"its weight is computed; the fused one would add {weight.nbytes} bytes to the file")
    mask = rewriter.module.masks.get(linear.weight.name or "")
    stored = _stored(weight if mask is None else np.where(mask, weight, 0.0), linear)
    if np.any(weight) and np.max(np.abs(stored.numpy()), initial=0) < ml_dtypes.finfo(stored.dtype.numpy()).tiny:
        raise Refused("the fused weights would underflow")
    shifts = None if bias is None else _stored(bias, linear)
    same = linear.weight if weight.shape == linear.numbers_shape() else None
    fused = rewriter.constant(stored, _hint(linear.weight, "_scaled"), at=node, mask=mask, follows=same)
    rewriter.set_input(node, 1, _in_full(fused, weight, linear, rewriter))
    if shifts is not None:
        hint = _hint(old, "_shifted") if old is not None else f"{node.name or node.op_type}_bias"
        rewriter.set_input(node, 2, rewriter.constant(shifts, hint, at=node))


def _in_full(fused: ir.Value, weight: Array, linear: Linear, rewriter: Rewriter) -> ir.Value:
    """The fused weight in full shape: by an Expand, which runtimes compute at load, where it was computed before."""
    if weight.shape == linear.numbers_shape():
        return fused
    shape = rewriter.constant(np.array(linear.numbers_shape(), np.int64), f"{fused.name}_shape", at=linear.node)
    (full,) = rewriter.add("Expand", [fused, shape], before=linear.node, name=f"{fused.name}_full")
    full.type, full.shape = ir.TensorType(linear.held.dtype), ir.Shape(linear.numbers_shape())
    return full


def _stored(numbers: Array, linear: Linear) -> ir.TensorProtocol:
    """float64 numbers in the element type of the weight.

    Raises:
        Refused: a number is not finite there.
    """
    dtype: Any = linear.held.dtype.numpy()
    with np.errstate(over="ignore"):
        stored = numbers.astype(dtype)
    if not np.all(np.isfinite(stored.astype(np.float64))):
        raise Refused("the fused weights would not be finite")
    return ir.tensor(stored)
