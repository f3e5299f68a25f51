"""expand-einsum: sums of products of two operands become MatMul between Transposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, rank
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class ExpandEinsum(RulePass):
    """Spell an Einsum of two operands as Transpose, MatMul and Transpose, which other passes understand.

    Keras' MultiHeadAttention multiplies by Einsum. Runtimes transpose and multiply inside it all the same; spelled out,
    Transposes can merge with their neighbours, products can be quantized, and `prune-channels` can remove heads. Order
    it before those, and before `fuse-transpose`.
    """

    def rules(self, context: Context) -> list[Rule]:
        """The only rule."""
        return [EinsumAsMatMul()]


class EinsumAsMatMul(Rule):
    """Einsum(a, b) -> Transpose(MatMul(Transpose(a), Transpose(b))), where one label is summed and each side has one
    of its own."""

    ops = ("Einsum",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        one, other, result = labels_of(node)
        operands = [(node.inputs[0], one), (node.inputs[1], other)]
        shared = [label for label in result if label in one and label in other]
        summed = _single([label for label in one if label in other and label not in result], "is summed")
        own = [
            _single([label for label in side if label not in (*shared, summed)], "is a side's own")
            for side in (one, other)
        ]
        if {*shared, *own} != set(result):
            raise Refused("a label stands on one side only and is not in the result")
        if result.index(own[0]) > result.index(own[1]):  # so that the product has the order of the result
            operands, own = operands[::-1], own[::-1]
        left = _moved(*operands[0], [*shared, own[0], summed], node, rewriter)
        right = _moved(*operands[1], [*shared, summed, own[1]], node, rewriter)
        made = _product(left, right, node, rewriter)
        rewriter.replace(node.outputs[0], _moved(made, [*shared, *own], result, node, rewriter))
        rewriter.erase(node)


def labels_of(node: ir.Node) -> tuple[str, str, str]:
    """The labels of both operands and of the result.

    Raises:
        Refused: another number of operands, an ellipsis, a label twice, no explicit result, or an unknown rank.
    """
    equation = attribute(node, "equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    sides, arrow, result = text.partition("->")
    operands = sides.split(",")
    if len(operands) != 2 or len(node.inputs) != 2:
        raise Refused("it has not two operands")
    if not arrow or not all(one.isalpha() and len(set(one)) == len(one) for one in (*operands, result)):
        raise Refused(f"'{text}' is no plain product: it has an ellipsis, a label twice, or no result")
    if any(rank(value) != len(labels) for value, labels in zip(node.inputs, operands, strict=True)):
        raise Refused("the rank of an operand is not known")
    return operands[0], operands[1], result


def _single(found: Sequence[str], what: str) -> str:
    if len(found) != 1:
        raise Refused(f"not one label {what}, but {len(found)}")
    return found[0]


def _moved(
    value: ir.Value | None, labels: Sequence[str], wanted: Sequence[str], node: ir.Node, rewriter: Rewriter
) -> ir.Value:  # fmt: skip
    """A value with its dimensions in another order; itself where that is the same."""
    if value is None:
        raise Refused("an operand is missing")
    perm = [list(labels).index(label) for label in wanted]
    if perm == sorted(perm):
        return value
    (made,) = rewriter.add("Transpose", [value], {"perm": perm}, before=node, name=f"{node.name or 'einsum'}_transpose")
    made.type = value.type
    made.shape = None if value.shape is None else ir.Shape([value.shape[axis] for axis in perm])
    return made


def _product(left: ir.Value, right: ir.Value, node: ir.Node, rewriter: Rewriter) -> ir.Value:
    (made,) = rewriter.add("MatMul", [left, right], before=node, name=f"{node.name or 'einsum'}_matmul")
    made.type = left.type
    if left.shape is not None and right.shape is not None:
        made.shape = ir.Shape([*list(left.shape)[:-1], right.shape[-1]])
    return made
