"""raise-patterns: arithmetic that spells out an operator of the opset becomes that operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, input_at, rank, sole_consumer, static_shape
from joulec.passes.base import Context, RulePass

LAYER_NORM_OPSET, GELU_OPSET = 17, 20
CLOSE = 1e-4
"""Relative error up to which a constant counts as the one meant: exporters write 1.4142 and 0.70710677."""


@dataclass(frozen=True)
class RaisePatterns(RulePass):
    """Raise spelled-out HardSigmoid, LayerNormalization and Gelu to the operator, where the opset has it."""

    def rules(self, context: Context) -> list[Rule]:
        """Each rule knows one operator's spellings."""
        return [RaiseHardSigmoid(), RaiseLayerNormalization(), RaiseGelu()]


# -- reading a graph --------------------------------------------------------------------------------------------------


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant holds everywhere, where it cannot widen what it meets: one element, any rank."""
    found = constant(value)
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 and found.dtype.kind == "f" else None


def with_scalar(node: ir.Node | None, *ops: str) -> tuple[ir.Value, float] | None:
    """(x, c) of `op`(x, c), also of `op`(c, x) for Add and Mul; None where `node` is no such operator."""
    if node is None or not walk.is_onnx(node, *ops) or len(node.inputs) != 2 or node.attributes:
        return None
    for index in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        number, other = scalar(node.inputs[index]), node.inputs[1 - index]
        if number is not None and other is not None and _fits(node.inputs[index], other):
            return other, number
    return None


def _fits(number: ir.Value | None, other: ir.Value) -> bool:
    """Whether a constant of one element leaves the rank of `other` as it is."""
    mine, theirs = rank(number), rank(other)
    return mine == 0 or (mine is not None and theirs is not None and mine <= theirs)


def near(number: float | None, meant: float) -> bool:
    """Whether `number` is meant to be `meant`."""
    return number is not None and math.isclose(number, meant, rel_tol=CLOSE)


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node of one of `ops` that computes `value`, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and walk.is_onnx(node, *ops) else None


def only(value: ir.Value | None, user: ir.Node) -> bool:
    """Whether `user` alone reads `value`."""
    return value is not None and sole_consumer(value) is user


# -- the rules --------------------------------------------------------------------------------------------------------


class RaiseHardSigmoid(Rule):
    """c * clip(x + b, 0, s) -> HardSigmoid(x, 1/s, b/s) * (c * s), where the factors are 1 altogether."""

    ops = ("Mul", "Div")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        scaled = with_scalar(node, "Mul", "Div")
        if scaled is None:
            return
        inside, factor = scaled
        factor = factor if node.op_type == "Mul" else 1.0 / factor if factor else 0.0
        found = self._clip(inside, node)
        if found is None:
            return
        clip, product = found
        bounds = clip_bounds(clip)
        shifted = with_scalar(producer(clip.inputs[0], "Add"), "Add")
        if bounds is None or shifted is None or bounds[0] != 0.0 or not bounds[1] > 0.0:
            return
        x, shift = shifted
        if not near(factor * bounds[1], 1.0):
            raise Refused(f"the factor {factor:g} does not undo the upper bound {bounds[1]:g}")
        if not only(clip.inputs[0], clip):
            raise Refused("what is clipped is used elsewhere too")
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("runtimes have HardSigmoid for float32 only, and this is not known to be")
        self._rewrite(node, clip, product, x, (1.0 / bounds[1], shift / bounds[1]), rewriter)

    @staticmethod
    def _clip(inside: ir.Value, node: ir.Node) -> tuple[ir.Node, ir.Node | None] | None:
        """The Clip in c * clip(..) or c * (y * clip(..)), and the product."""
        if not only(inside, node):
            return None
        if (clip := producer(inside, "Clip")) is not None:
            return clip, None
        product = producer(inside, "Mul")
        for value in () if product is None else product.inputs:
            clip = producer(value, "Clip")
            if clip is not None and product is not None and only(value, product):
                return clip, product
        return None

    @staticmethod
    def _rewrite(
        node: ir.Node, clip: ir.Node, product: ir.Node | None, x: ir.Value, law: tuple[float, float], rewriter: Rewriter
    ) -> None:
        slope, offset = law
        output, clipped = node.outputs[0], clip.outputs[0]
        hint = f"{clip.name or 'clip'}_hardsigmoid"
        given = {"alpha": slope, "beta": offset}
        (raised,) = rewriter.add("HardSigmoid", [x], given, before=clip, name=hint, like=clipped)
        if product is None:
            rewriter.replace(output, raised)
            rewriter.erase(node)
        else:
            rewriter.set_input(product, list(product.inputs).index(clipped), raised)
            rewriter.replace(output, product.outputs[0])
            rewriter.erase(node)
        shifted = clip.inputs[0]
        rewriter.erase(clip)
        if (add := producer(shifted, "Add")) is not None:
            rewriter.erase(add)


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


class RaiseLayerNormalization(Rule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + e) * scale + bias -> LayerNormalization(x, scale, bias)."""

    ops = ("Div",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        centred, root = node.inputs[0], producer(node.inputs[1], "Sqrt")
        padded = None if root is None else with_scalar(producer(root.inputs[0], "Add"), "Add")
        variance = None if padded is None else producer(padded[0], "ReduceMean")
        subtract = producer(centred, "Sub")
        mean = None if subtract is None else producer(subtract.inputs[1], "ReduceMean")
        if padded is None or root is None or variance is None or subtract is None or mean is None or centred is None:
            return
        x, square = subtract.inputs[0], producer(variance.inputs[0], "Pow", "Mul")
        if x is None or square is None or mean.inputs[0] is not x or not _squares(square, centred):
            return
        inner = [mean, subtract, square, variance, producer(root.inputs[0], "Add"), root]
        axis, width = self._axis(x, mean, variance)
        self._guard(rewriter, x, [one for one in inner if one is not None], node)
        scale, bias, last = self._affine(node, width)
        if scale is None:
            ones = np.ones(width, x.dtype.numpy() if x.dtype is not None else np.float32)
            scale = rewriter.constant(ones, f"{node.name or 'norm'}_ones", at=last)
        operands = [x, scale] if bias is None else [x, scale, bias]
        given = {"axis": axis, "epsilon": padded[1]}
        hint = f"{node.name or 'norm'}_layernormalization"
        (raised,) = rewriter.add("LayerNormalization", operands, given, before=last, name=hint, like=last.outputs[0])
        rewriter.replace(last.outputs[0], raised)
        _erase_backwards(last, rewriter)

    @staticmethod
    def _axis(x: ir.Value, mean: ir.Node, variance: ir.Node) -> tuple[int, tuple[int, ...]]:
        """The first normalized axis, from the back, and the sizes normalized over."""
        dims = rank(x)
        first, second = (_axes(one, dims) for one in (mean, variance))
        if dims is None or first is None or first != second:
            raise Refused("the two means are not known to be over the same axes")
        if first != list(range(dims - len(first), dims)):
            raise Refused("it normalizes over axes that are not the last ones")
        sizes = static_shape(ir.Value(name="", shape=ir.Shape(list(x.shape or ())[dims - len(first) :])))
        if sizes is None:
            raise Refused("the sizes that it normalizes over are not known")
        return -len(first), sizes

    @staticmethod
    def _guard(rewriter: Rewriter, x: ir.Value, inner: list[ir.Node], last: ir.Node) -> None:
        if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            raise Refused("the operator computes in float32, and this is not known to be float32 or float16")
        if rewriter.in_function(last):
            raise Refused("functions import opsets of their own")
        if rewriter.module.opset < LAYER_NORM_OPSET:
            raise Refused(f"LayerNormalization needs opset {LAYER_NORM_OPSET}, the model has {rewriter.module.opset}")
        allowed = {id(one) for one in (*inner, last)}
        for one in inner:
            uses = [usage.node for output in one.outputs for usage in output.uses()]
            if any(id(user) not in allowed for user in uses) or any(out.is_graph_output() for out in one.outputs):
                raise Refused(f"{walk.label(one)} inside it is used elsewhere too")

    @staticmethod
    def _affine(node: ir.Node, width: tuple[int, ...]) -> tuple[ir.Value | None, ir.Value | None, ir.Node]:
        """(scale, bias, last node) of the Mul and Add behind the division, where their shapes are exactly `width`."""
        scale, multiply = _operand_behind(node, "Mul", width)
        if multiply is None:
            return None, None, node
        bias, add = _operand_behind(multiply, "Add", width)
        return (scale, None, multiply) if add is None else (scale, bias, add)


def _operand_behind(node: ir.Node, op: str, width: tuple[int, ...]) -> tuple[ir.Value | None, ir.Node | None]:
    """The other operand of the only `op` behind `node`, and that node, where the operand has shape `width`."""
    user = sole_consumer(node.outputs[0])
    if user is None or not walk.is_onnx(user, op) or user.attributes:
        return None, None
    others = [value for value in user.inputs if value is not node.outputs[0]]
    if len(others) != 1 or static_shape(others[0]) != width or others[0] is None:
        return None, None
    available = others[0].producer() is None or others[0].graph is node.graph
    return (others[0], user) if available else (None, None)


def _squares(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is value and node.inputs[1] is value
    found = constant(node.inputs[1])
    return node.inputs[0] is value and found is not None and found.size == 1 and float(found.reshape(-1)[0]) == 2.0


def _axes(node: ir.Node, dims: int | None) -> list[int] | None:
    """The axes of a ReduceMean that keeps its dimensions, sorted; None where it does not or they are not known."""
    if dims is None or attribute(node, "keepdims", 1) != 1 or len(node.inputs) > 2:
        return None
    given = attribute(node, "axes", None) if input_at(node, 1) is None else constant(input_at(node, 1))
    if given is None:
        return None
    return sorted(int(axis) % dims for axis in np.asarray(given).reshape(-1))


class RaiseGelu(Rule):
    """0.5 * x * (1 + erf(x / sqrt(2))) -> Gelu(x), however the factors are grouped."""

    ops = ("Erf",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        inner = producer(node.inputs[0], "Div", "Mul")
        divided = with_scalar(inner, "Div", "Mul")
        if inner is None or divided is None:
            return
        x, factor = divided
        if not near(factor, math.sqrt(2.0) if inner.op_type == "Div" else math.sqrt(0.5)):
            return
        add = sole_consumer(node.outputs[0])
        one = with_scalar(add, "Add")
        if add is None or one is None or not near(one[1], 1.0) or not only(inner.outputs[0], node):
            return
        root = next((top for top in _products(add) if _is_half_of(top, add.outputs[0], x)), None)
        if root is None:
            return
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("runtimes have Gelu for float32 only, and this is not known to be")
        if rewriter.in_function(node):
            raise Refused("functions import opsets of their own")
        if rewriter.module.opset < GELU_OPSET:
            raise Refused(f"Gelu needs opset {GELU_OPSET}, the model has {rewriter.module.opset}")
        hint = f"{root.name or 'erf'}_gelu"
        (raised,) = rewriter.add("Gelu", [x], before=root, name=hint, like=root.outputs[0])
        rewriter.replace(root.outputs[0], raised)
        _erase_backwards(root, rewriter)


def _products(node: ir.Node) -> Iterator[ir.Node]:
    """The Muls above `node`, each the only user of what is below, at most three."""
    for _ in range(3):
        above = sole_consumer(node.outputs[0])
        if above is None or not walk.is_onnx(above, "Mul"):
            return
        yield above
        node = above


def _is_half_of(top: ir.Node, shifted: ir.Value, x: ir.Value) -> bool:
    """Whether `top` is the product of `shifted`, `x` and 0.5."""
    factors = list(_factors(top, 3))
    values = [value for value in factors if scalar(value) is None]
    numbers = [number for value in factors if (number := scalar(value)) is not None]
    same = len(values) == 2 and {id(value) for value in values} == {id(shifted), id(x)}
    return same and near(math.prod(numbers), 0.5) and all((rank(v) or 0) <= (rank(x) or 0) for v in factors)


def _factors(top: ir.Node, depth: int) -> Iterator[ir.Value]:
    for value in top.inputs:
        inner = producer(value, "Mul")
        if value is not None and inner is not None and depth > 0 and only(value, top):
            yield from _factors(inner, depth - 1)
        elif value is not None:
            yield value


def _erase_backwards(node: ir.Node, rewriter: Rewriter) -> None:
    """Erase `node` and what was computed for it alone."""
    dead = [node]
    while dead:
        gone = dead.pop()
        feeding = dict.fromkeys(value.producer() for value in gone.inputs if value is not None)
        rewriter.erase(gone)
        dead += [
            one for one in feeding
            if one is not None and one.graph is not None and walk.is_onnx(one)
            and not any(output.uses() or output.is_graph_output() for output in one.outputs)
        ]  # fmt: skip
