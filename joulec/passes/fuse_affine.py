"""fuse-affine: fold per-channel scales and shifts into the linear operator before or behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, rank, sole_consumer
from joulec.passes._affine import (
    AFFINE,
    LINEAR,
    Affine,
    affine_of,
    halves_gelu,
    in_layer_norm,
    is_linear,
    vector_constant,
)
from joulec.passes._affine_chain import IntoBatchNormalization, MergeConstants, ScaleBeforeShift
from joulec.passes._affine_moves import AffineBeforeMovement, AffineUnderTranspose, scale_and_shift
from joulec.passes._linear import Linear, bias_numbers, count_fusion, linear_of, refit, require_width
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FuseAffine(RulePass):
    """Fold BatchNormalization and Mul, Div, Add, Sub by constants into linear operators' weights, or into one another.

    Linear operators are Conv, ConvTranspose, Gemm and MatMul. Where none is near, a chain of scales and shifts becomes
    one BatchNormalization, or one Mul and one Add.
    """

    def rules(self, context: Context) -> list[Rule]:
        """Behind the linear operator first; what then still stands before one is tried after that."""
        times: dict[ir.Node, int] = {}
        return [
            AffineBehind(times), IntoBatchNormalization(), MergeConstants(), ScaleBeforeShift(), AffineBeforeMovement(),
            AffineUnderTranspose(), ScaleBefore(times), ScaleUnderShift(times),
        ]  # fmt: skip


class AffineBehind(Rule):
    """affine(linear(x, w, b)) -> linear(x, w * scale, b * scale + shift)."""

    ops = AFFINE

    def __init__(self, times: dict[ir.Node, int]) -> None:
        self._times = times

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data = next((v for v in node.inputs if v is not None and is_linear(v.producer())), None)
        linear = linear_of(data.producer()) if data is not None else None
        if data is None or linear is None:
            return
        affine = affine_of(node, data, linear.channel_axis, linear.least_rank())
        if affine is None:
            return
        if sole_consumer(data) is not node:
            raise Refused("the linear operator's output is used elsewhere too")
        if not rewriter.can_replace(node.outputs[0], data):
            raise Refused(f"'{node.outputs[0].name}' is a graph output and '{data.name}' cannot take its place")
        if linear.node.op_type == "MatMul" and affine.shifts:
            raise Refused("MatMul has no bias; fuse-gemm takes this shift where ranks allow")
        whole = affine.channels(linear.out_channels())
        if whole is None:
            raise Refused(f"it has {affine.scale.size} channels, the linear operator {linear.out_channels()}")
        count_fusion(linear, self._times)
        refit(linear, *_behind(linear, whole), rewriter)
        rewriter.replace(node.outputs[0], data)
        rewriter.erase(node)


def _behind(linear: Linear, affine: Affine) -> tuple[Array, Array | None]:
    """New weight and bias (None if there is none and none is needed), in float64."""
    numbers = linear.numbers()
    alpha, beta = (attribute(linear.node, name, 1.0) for name in ("alpha", "beta"))
    bias = bias_numbers(linear, affine.scale.size)
    if linear.groups == 1:
        shape = [1] * numbers.ndim
        shape[linear.out_axis] = -1
        weight = numbers * affine.scale.reshape(shape)
    else:  # ConvTranspose: (in, out / groups, ...), input channels run over groups
        per_group = affine.scale.reshape(linear.groups, -1)
        spread = np.repeat(per_group, linear.numbers_shape()[0] // linear.groups, axis=0)
        weight = numbers * spread.reshape(*spread.shape, *[1] * (numbers.ndim - 2))
    del alpha  # scales x * w, so scaling w is enough
    if bias is None and not affine.shifts:
        return weight, None
    scaled = affine.shift if bias is None else bias * affine.scale + affine.shift / (beta or 1.0)
    if beta == 0:
        raise Refused("Gemm has beta = 0")
    return weight, scaled if bias is not None else affine.shift / beta


class ScaleBefore(Rule):
    """linear(affine(x), w, b) -> linear(x, w * scale, b + w . shift); a shift only where nothing is padded."""

    ops = LINEAR

    def __init__(self, times: dict[ir.Node, int]) -> None:
        self._times = times

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data = node.inputs[0]
        source = None if data is None else data.producer()
        if data is None or source is None or not walk.is_onnx(source, *AFFINE) or node.op_type == "ConvTranspose":
            return
        linear = linear_of(node)
        if linear is None or (node.op_type == "Gemm" and attribute(node, "transA", 0)):
            return
        flows = next((v for v in source.inputs if v is not None and vector_constant(v) is None), None)
        if flows is None or (is_linear(flows.producer()) and sole_consumer(flows) is source):
            return  # AffineBehind takes it
        affine = affine_of(source, flows, linear.channel_axis, rank(flows))
        if affine is None:
            return
        if sole_consumer(data) is not node:
            raise Refused(f"{walk.label(source)} before it is used elsewhere too")
        if halves_gelu(source, flows):
            raise Refused(f"{walk.label(source)} ends a GELU, which runtimes fuse only as a whole")
        if in_layer_norm(flows):
            raise Refused(f"{walk.label(source)} ends a layer normalization, which runtimes fuse only as a whole")
        if source.op_type != "BatchNormalization":  # which cannot widen
            require_width(flows, linear.channel_axis, max(affine.scale.size, affine.shift.size))
        count_fusion(linear, self._times)
        refit(linear, *_before(linear, affine), rewriter)
        rewriter.set_input(node, 0, flows)
        rewriter.erase(source)


def _before(linear: Linear, affine: Affine) -> tuple[Array, Array | None]:
    node, numbers, dims = linear.node, linear.numbers(), linear.numbers_shape()
    groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    axis = 1 - linear.out_axis
    inputs = dims[axis] * groups
    whole = affine.channels(inputs)
    if whole is None:
        raise Refused(f"{affine.scale.size} channels before an operator of {inputs}")
    shape = [1] * numbers.ndim
    shape[axis] = -1
    if groups == 1:
        scale, shift = whole.scale.reshape(shape), whole.shift.reshape(shape)
    else:
        repeats, tail = dims[0] // groups, [1] * (numbers.ndim - 2)
        spread = [np.repeat(v.reshape(groups, -1), repeats, axis=0) for v in (whole.scale, whole.shift)]
        scale, shift = (v.reshape(*v.shape, *tail) for v in spread)
    if not affine.shifts:
        return numbers * scale, None
    if node.op_type == "MatMul":
        raise Refused("MatMul has no bias to take the shift")
    if node.op_type == "Conv" and _pads(node):
        raise Refused("a shift before a padded Conv changes its border")
    others = tuple(i for i in range(numbers.ndim) if i != linear.out_axis)
    carried = _sum_of(numbers * shift, dims, others, dims[linear.out_axis])
    existing = bias_numbers(linear, carried.size)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if beta == 0:
        raise Refused("Gemm has beta = 0")
    return numbers * scale, carried * alpha / beta + (0.0 if existing is None else existing)


def _sum_of(terms: Array, dims: tuple[int, ...], axes: tuple[int, ...], channels: int) -> Array:
    """The sum over `axes` of `terms` broadcast to `dims`, without making them that large; float64 (channels,)."""
    repeats = np.prod([dims[axis] // terms.shape[axis] for axis in axes], dtype=np.float64)
    return np.broadcast_to(np.sum(terms, axis=axes) * repeats, (channels,))


def _auto_pads(node: ir.Node) -> bool:
    return attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


LARGEST_SHIFT = 1e18
"""A shift that the scale was taken out of may be this large: added to any float32, it cannot overflow."""


class ScaleUnderShift(Rule):
    """conv(x * s + t, w) -> conv(x + t / s, w * s), where the Conv pads: the shift must stay, the scale need not."""

    ops = ("Conv",)

    def __init__(self, times: dict[ir.Node, int]) -> None:
        self._times = times

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        linear = linear_of(node)
        if linear is None or linear.held.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or not _pads(node):
            return
        found = scale_and_shift(node, linear)
        if found is None:
            return
        shift, scale, x, factor, term = found
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            moved = term / factor
        if not np.all(np.abs(moved) <= LARGEST_SHIFT):
            raise Refused("the scale is zero or so small that the shift would overflow")
        count_fusion(linear, self._times)
        refit(linear, *_before(linear, Affine(factor, np.zeros(1))), rewriter)
        dims = (-1, *[1] * (-linear.channel_axis - 1)) if moved.size > 1 else ()
        numbers = moved.reshape(dims).astype(linear.held.dtype.numpy())
        rewriter.set_op(shift, "Add")
        rewriter.set_input(shift, 0, x)
        rewriter.set_input(shift, 1, rewriter.constant(numbers, f"{shift.name or 'shift'}_unscaled", at=shift))
        rewriter.erase(scale)


def _pads(node: ir.Node) -> bool:
    return any(attribute(node, "pads", [])) or _auto_pads(node)
