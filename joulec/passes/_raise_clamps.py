"""Rules that raise clamps: Min, Max and Relu to Clip, and clamped lines to HardSigmoid and HardSwish."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, input_at
from joulec.passes._spelled import can_raise, erase_backwards, near, only, operands, producer, scalar, with_scalar
from joulec.passes._zerosigns import ZeroSigns

HARD_SWISH_OPSET = 14
CLIPPED = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
"""Types of which every runtime has a Clip, in every opset."""


@dataclass(frozen=True)
class Clamp:
    """min(max(source, low), high), as one node or two.

    Attributes:
        node: the last node.
        source: what is clamped.
        low, high: the bounds, low <= high, finite.
        keeps_zeros: whether a -0.0 at a bound of 0 stays one, as Clip has it; Max and Min make 0.0 of it.
    """

    node: ir.Node
    source: ir.Value
    low: float
    high: float
    keeps_zeros: bool


def clamp_of(node: ir.Node | None) -> Clamp | None:
    """Read `node` as a clamp with constant bounds on both sides; what it is made of is used nowhere else."""
    if node is None or not walk.is_onnx(node, "Clip", "Min", "Max", "Relu"):
        return None
    if node.op_type == "Clip":
        bounds = clip_bounds(node)
        return None if bounds is None else _clamp(node, node.inputs[0], *bounds, keeps_zeros=True)
    outer = _bound(node)
    if outer is None:
        return None
    value, side, limit, _ = outer
    first = producer(value, "Max", "Relu") if side == "high" else producer(value, "Min")
    inner = None if first is None or not only(value, node) else _bound(first)
    if inner is None or inner[1] == side:
        return None
    low, high = (inner[2], limit) if side == "high" else (limit, inner[2])
    zero = next(keeps for _, which, number, keeps in (outer, inner) if which == "low") or low != 0.0
    return _clamp(node, inner[0], low, high, keeps_zeros=zero and high != 0.0)


def _bound(node: ir.Node) -> tuple[ir.Value, str, float, bool] | None:
    """(x, side, limit, whether -0.0 stays) of Relu(x), Max(x, c) or Min(x, c)."""
    if node.op_type == "Relu":
        source = node.inputs[0]
        return None if source is None else (source, "low", 0.0, True)
    found = with_scalar(node, "Max", "Min")
    return None if found is None else (found[0], "low" if node.op_type == "Max" else "high", found[1], False)


def _clamp(node: ir.Node, source: ir.Value | None, low: float, high: float, *, keeps_zeros: bool) -> Clamp | None:
    if source is None or not (math.isfinite(low) and math.isfinite(high) and low <= high):
        return None
    return Clamp(node, source, low, high, keeps_zeros)


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Clip, from attributes or inputs; None where one is not a constant."""
    limits = (-math.inf, math.inf)
    found = []
    for index, (name, missing) in enumerate(zip(("min", "max"), limits, strict=True), 1):
        value = input_at(node, index)
        bound = float(attribute(node, name, missing)) if value is None else scalar(value)
        if bound is None:
            return None
        found.append(bound)
    return found[0], found[1]


class RaiseHardSigmoid(Rule):
    """clip(a * x + b, 0, s) * f -> HardSigmoid(x, a/s, b/s), where f = 1/s, also in a product."""

    ops = ("Mul", "Div", "Clip", "Min", "Max", "Relu")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        factor, clamp, product = self._parts(node)
        if clamp is None or clamp.low != 0.0 or not clamp.high > 0.0:
            return
        line = _line(clamp.source)
        if line is None:
            return
        x, slope, shift = line
        if not near(factor * clamp.high, 1.0):
            if node is not clamp.node:
                raise Refused(f"the factor {factor:g} does not undo the upper bound {clamp.high:g}")
            return
        if not only(clamp.source, _first(clamp)):
            raise Refused("what is clipped is used elsewhere too")
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("runtimes have HardSigmoid for float32 only, and this is not known to be")
        self._rewrite(node, clamp, product, x, (slope / clamp.high, shift / clamp.high), rewriter)

    @staticmethod
    def _parts(node: ir.Node) -> tuple[float, Clamp | None, ir.Node | None]:
        """(factor, clamp, product) of f * clip(..), f * (y * clip(..)) or clip(..)."""
        scaled = with_scalar(node, "Mul", "Div")
        if scaled is None:
            return 1.0, clamp_of(node), None
        inside, factor = scaled
        factor = factor if node.op_type == "Mul" else 1.0 / factor if factor else 0.0
        if not only(inside, node):
            return factor, None, None
        if (clamp := clamp_of(inside.producer())) is not None:
            return factor, clamp, None
        product = producer(inside, "Mul")
        for value in () if product is None else product.inputs:
            clamp = None if value is None or product is None or not only(value, product) else clamp_of(value.producer())
            if clamp is not None:
                return factor, clamp, product
        return factor, None, None

    @staticmethod
    def _rewrite(
        node: ir.Node, clamp: Clamp, product: ir.Node | None, x: ir.Value, law: tuple[float, float], rewriter: Rewriter
    ) -> None:
        clamped = clamp.node.outputs[0]
        hint, given = f"{clamp.node.name or 'clip'}_hardsigmoid", {"alpha": law[0], "beta": law[1]}
        (raised,) = rewriter.add("HardSigmoid", [x], given, before=clamp.node, name=hint, like=clamped)
        if product is None:
            rewriter.replace(node.outputs[0], raised)
            erase_backwards(node, rewriter)
            return
        rewriter.set_input(product, list(product.inputs).index(clamped), raised)
        rewriter.replace(node.outputs[0], product.outputs[0])
        rewriter.erase(node)
        erase_backwards(clamp.node, rewriter)


def _first(clamp: Clamp) -> ir.Node:
    """The node of a clamp that reads its source."""
    if any(value is clamp.source for value in clamp.node.inputs):
        return clamp.node
    return next(
        maker for value in clamp.node.inputs
        if value is not None and (maker := producer(value, "Max", "Min", "Relu")) is not None
    )  # fmt: skip


def _line(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """(x, a, b) of a * x + b, where b is not 0: then no result is -0.0, and nobody sees what a clamp makes of one."""
    shifted = with_scalar(producer(value, "Add", "Sub"), "Add", "Sub")
    if shifted is None or shifted[1] == 0.0 or not math.isfinite(shifted[1]):
        return None
    inside, shift = shifted
    shift = shift if producer(value, "Add") is not None else -shift
    scaled = with_scalar(producer(inside, "Mul", "Div"), "Mul", "Div")
    if scaled is None or not math.isfinite(scaled[1]) or scaled[1] == 0.0:
        return inside, 1.0, shift
    return scaled[0], scaled[1] if producer(inside, "Mul") is not None else 1.0 / scaled[1], shift


class RaiseHardSwish(Rule):
    """x * HardSigmoid(x, 1/6, 1/2) -> HardSwish(x)."""

    ops = ("Mul",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        for x, other in operands(node, "Mul"):
            gate = producer(other, "HardSigmoid")
            if gate is None or gate.inputs[0] is not x or not only(other, node):
                continue
            if not near(attribute(gate, "alpha", 0.2), 1 / 6) or not near(attribute(gate, "beta", 0.5), 0.5):
                return
            if x.dtype != ir.DataType.FLOAT:
                return
            can_raise("HardSwish", HARD_SWISH_OPSET, node, rewriter)
            hint = f"{node.name or 'mul'}_hardswish"
            (raised,) = rewriter.add("HardSwish", [x], before=node, name=hint, like=node.outputs[0])
            rewriter.replace(node.outputs[0], raised)
            erase_backwards(node, rewriter)
            return


class RaiseClip(Rule):
    """Min(Max(x, a), b), Min(Relu(x), b) -> Clip(x, a, b)."""

    ops = ("Min", "Max", "Relu")

    def __init__(self, zeros: ZeroSigns) -> None:
        self._zeros = zeros

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        clamp = clamp_of(node)
        if clamp is None:
            return
        if clamp.source.dtype not in CLIPPED:
            raise Refused("runtimes have Clip for few types, and this is not known to be float32 or float64")
        if not clamp.keeps_zeros and not self._zeros.hidden(node.outputs[0]):
            raise Refused("somebody may see that Clip keeps -0.0")
        _clip(node, clamp.source, (clamp.low, clamp.high), rewriter)


class MergeClips(Rule):
    """Clip(Clip(x)), Relu(Clip(x)), Clip(Relu(x)) -> Clip(x), with the bounds of both."""

    ops = ("Clip", "Relu")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        inner = producer(node.inputs[0], "Clip", "Relu")
        source = None if inner is None else inner.inputs[0]
        if inner is None or source is None or not only(inner.outputs[0], node):
            return
        first, second = _sides(inner), _sides(node)
        if first is None or second is None or source.dtype not in CLIPPED:
            return
        low, high = (min(max(bound, second[0]), second[1]) for bound in first)
        if math.isfinite(low) and math.isfinite(high):
            _clip(node, source, (low, high), rewriter)


def _sides(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Relu or Clip. None for a Clip without one, which has the largest number of its type there, for
    bounds in the wrong order, and for -0.0, of which kernels make what they like."""
    if walk.is_onnx(node, "Relu"):
        return 0.0, math.inf
    found = clip_bounds(node)
    if found is None or not all(map(math.isfinite, found)) or found[0] > found[1]:
        return None
    return None if any(bound == 0.0 and math.copysign(1.0, bound) < 0 for bound in found) else found


def _clip(node: ir.Node, source: ir.Value, bounds: tuple[float, float], rewriter: Rewriter) -> None:
    """Put a Clip of `source` in the place of `node`, and take away what that leaves without a use."""
    can_raise("Clip", 6, node, rewriter)
    hint, output = node.name or "clamp", node.outputs[0]
    given = dict(zip(("min", "max"), bounds, strict=True)) if rewriter.module.opset < 11 else {}
    limits: list[ir.Value] = []
    if not given:
        kind = np.float64 if source.dtype == ir.DataType.DOUBLE else np.float32
        pairs = zip(("low", "high"), bounds, strict=True)
        limits = [rewriter.constant(np.array(bound, kind), f"{hint}_{side}", at=node) for side, bound in pairs]
    (made,) = rewriter.add("Clip", [source, *limits], given, before=node, name=f"{hint}_clip", like=output)
    rewriter.replace(output, made)
    erase_backwards(node, rewriter)
