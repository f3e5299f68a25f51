"""Rules that raise activations: Gelu in both forms, Sigmoid, Softsign, Mish, and squares."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import constant, sole_consumer
from joulec.passes._spelled import (
    can_raise,
    erase_backwards,
    fits,
    from_scalar,
    is_polynomial,
    near,
    only,
    operands,
    producer,
    scalar,
    with_scalar,
)

GELU_OPSET, MISH_OPSET = 20, 18
SLOPE = math.sqrt(2.0 / math.pi)
CURVES = {"Erf": (0.0, math.sqrt(0.5), 0.0, 0.0), "Tanh": (0.0, SLOPE, 0.0, 0.044715 * SLOPE)}
"""What Erf and Tanh are of in the two forms of Gelu, as polynomials in x."""


class RaiseGelu(Rule):
    """0.5 * x * (1 + erf(x / sqrt(2))) -> Gelu(x), also with tanh; before opset 20 the form that runtimes fuse."""

    ops = ("Erf", "Tanh")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found = self._found(node)
        if found is None:
            return
        root, x = found
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("runtimes have Gelu for float32 only, and this is not known to be")
        if node.op_type == "Erf" and rewriter.module.opset < GELU_OPSET and not rewriter.in_function(node):
            self._respell(root, node, x, rewriter)
            return
        can_raise("Gelu", GELU_OPSET, node, rewriter)
        hint, given = f"{root.name or 'erf'}_gelu", {"approximate": "tanh" if node.op_type == "Tanh" else None}
        (raised,) = rewriter.add("Gelu", [x], given, before=root, name=hint, like=root.outputs[0])
        rewriter.replace(root.outputs[0], raised)
        erase_backwards(root, rewriter)

    @staticmethod
    def _found(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
        """The last product, and x; None where it is no Gelu. 1 - erf(-u) is 1 + erf(u)."""
        add = sole_consumer(node.outputs[0])
        added, less = with_scalar(add, "Add"), from_scalar(add, "Sub")
        if add is None or not near(added[1] if added else less[0] if less else None, 1.0):
            return None
        sign = 1.0 if added else -1.0
        meant = [sign * coefficient for coefficient in CURVES[node.op_type]]
        for root in _products(add):
            for x in _factors(root, 3):
                known = scalar(x) is None and x is not add.outputs[0]
                if known and _is_half_of(root, add.outputs[0], x) and is_polynomial(node.inputs[0], x, meant):
                    return root, x
        return None

    def _respell(self, root: ir.Node, erf: ir.Node, x: ir.Value, rewriter: Rewriter) -> None:
        """The spelling that ONNX Runtime fuses: x / sqrt(2), erf, + 1, * x, * 0.5, in this order."""
        if self._is_fused_form(root, erf, x):
            raise Refused(f"Gelu needs opset {GELU_OPSET}, the model has {rewriter.module.opset}")
        hint, output = root.name or "gelu", root.outputs[0]
        numbers = {"sqrt2": math.sqrt(2.0), "one": 1.0, "half": 0.5}
        held = {
            name: rewriter.constant(np.array(number, np.float32), f"{hint}_{name}", at=root)
            for name, number in numbers.items()
        }

        def step(op: str, name: str, *values: ir.Value) -> ir.Value:
            return rewriter.add(op, list(values), before=root, name=f"{hint}_{name}", like=output)[0]

        curve = step("Erf", "erf", step("Div", "scaled", x, held["sqrt2"]))
        product = step("Mul", "product", x, step("Add", "shifted", curve, held["one"]))
        rewriter.replace(output, step("Mul", "gelu", product, held["half"]))
        erase_backwards(root, rewriter)

    @staticmethod
    def _is_fused_form(root: ir.Node, erf: ir.Node, x: ir.Value) -> bool:
        """Whether ONNX Runtime fuses it as it is: a division, a sum, and 0.5 on x or last of all."""
        direct, add = with_scalar(producer(erf.inputs[0], "Div"), "Div"), sole_consumer(erf.outputs[0])
        if direct is None or direct[0] is not x or add is None or not walk.is_onnx(add, "Add"):
            return False
        halved = with_scalar(root, "Mul")
        product = producer(halved[0], "Mul") if halved else next(
            (made for value in root.inputs if (made := producer(value, "Mul")) is not None), None
        )  # fmt: skip
        inner = with_scalar(product, "Mul")
        return product is not None and (inner is None if halved else inner is not None and inner[0] is x)


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
    return same and near(math.prod(numbers), 0.5) and all(fits(v, x) for v in factors if scalar(v) is not None)


def _factors(top: ir.Node, depth: int) -> Iterator[ir.Value]:
    for value in top.inputs:
        inner = producer(value, "Mul")
        if value is not None and inner is not None and depth > 0 and only(value, top):
            yield from _factors(inner, depth - 1)
        elif value is not None:
            yield value


class RaiseSigmoid(Rule):
    """1 / (1 + exp(-x)) -> Sigmoid(x)."""

    ops = ("Exp",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        negated, add = producer(node.inputs[0], "Neg", "Mul"), sole_consumer(node.outputs[0])
        shifted = with_scalar(add, "Add")
        if negated is None or add is None or shifted is None or not near(shifted[1], 1.0):
            return
        scaled = with_scalar(negated, "Mul")
        x = negated.inputs[0] if negated.op_type == "Neg" else scaled[0] if scaled and scaled[1] == -1.0 else None
        last = sole_consumer(add.outputs[0])
        if x is None or last is None or not _is_inverse(last, add.outputs[0]):
            return
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("it is not known to be float32")
        _put(last, "Sigmoid", x, rewriter)


def _is_inverse(node: ir.Node, value: ir.Value) -> bool:
    """Whether `node` is 1 / value."""
    if walk.is_onnx(node, "Reciprocal"):
        return node.inputs[0] is value
    found = from_scalar(node, "Div")
    return found is not None and found[0] == 1.0 and found[1] is value


class RaiseSoftsign(Rule):
    """x / (1 + |x|) -> Softsign(x)."""

    ops = ("Abs",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, add = node.inputs[0], sole_consumer(node.outputs[0])
        shifted = with_scalar(add, "Add")
        if x is None or add is None or shifted is None or not near(shifted[1], 1.0):
            return
        last = sole_consumer(add.outputs[0])
        if last is None or not walk.is_onnx(last, "Div") or last.inputs[0] is not x:
            return
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("it is not known to be float32")
        _put(last, "Softsign", x, rewriter)


class RaiseMish(Rule):
    """x * tanh(softplus(x)) -> Mish(x)."""

    ops = ("Softplus",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, tanh = node.inputs[0], sole_consumer(node.outputs[0])
        last = None if tanh is None or not walk.is_onnx(tanh, "Tanh") else sole_consumer(tanh.outputs[0])
        if x is None or last is None or not any(one is x for one, _ in operands(last, "Mul")):
            return
        if x.dtype != ir.DataType.FLOAT:
            raise Refused("it is not known to be float32")
        can_raise("Mish", MISH_OPSET, node, rewriter)
        _put(last, "Mish", x, rewriter)


def _put(last: ir.Node, op: str, x: ir.Value, rewriter: Rewriter) -> None:
    """Put `op`(x) in the place of `last`, and take away what that leaves without a use."""
    hint = f"{last.name or 'raised'}_{op.lower()}"
    (raised,) = rewriter.add(op, [x], before=last, name=hint, like=last.outputs[0])
    rewriter.replace(last.outputs[0], raised)
    erase_backwards(last, rewriter)


MAX_USERS = 16
"""Users of a square that are looked at, so that many of them stay linear."""


class SquareByProduct(Rule):
    """Pow(x, 2) -> Mul(x, x), but not in a mean of squares, which runtimes fuse by its Pow."""

    ops = ("Pow",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, exponent = node.inputs
        two = constant(exponent)
        if x is None or two is None or two.size != 1 or float(two.reshape(-1)[0]) != 2.0 or not fits(exponent, x):
            return
        if x.dtype != ir.DataType.FLOAT or constant(x) is not None:
            return
        users = [usage.node for usage in node.outputs[0].uses()]
        if len(users) > MAX_USERS or any(walk.is_onnx(user, "ReduceMean", "Cast") for user in users):
            return
        rewriter.set_input(node, 1, x)
        rewriter.set_op(node, "Mul")


class QuotientForReciprocal(Rule):
    """a * Reciprocal(b) -> a / b."""

    ops = ("Mul",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        for value, other in operands(node, "Mul"):
            inverse = producer(other, "Reciprocal")
            divisor = None if inverse is None else inverse.inputs[0]
            if inverse is None or divisor is None or not only(other, node) or constant(value) is not None:
                continue
            if value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
                return
            rewriter.set_input(node, 0, value)
            rewriter.set_input(node, 1, divisor)
            rewriter.set_op(node, "Div")
            rewriter.erase(inverse)
            return
