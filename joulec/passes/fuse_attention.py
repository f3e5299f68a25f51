"""fuse-attention: attention spelled as two products becomes the one operator that the provider has a kernel for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.kernel_table import KernelTable, kernel_table
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, rank, sole_consumer
from joulec.passes._spelled import producer
from joulec.passes.base import Context, RulePass
from joulec.passes.expand_einsum import labels_of

MULTI_HEAD = "MultiHeadAttention"


@dataclass(frozen=True)
class FuseAttention(RulePass):
    """Make Softmax between two products ONNX Runtime's MultiHeadAttention.

    Its CUDA kernels do not write the scores to memory, which are as many as words times words in each head
    (`Dao et al. 2022 <https://arxiv.org/abs/2205.14135>`_). ONNX Runtime finds the spellings of some exporters itself;
    Keras' Einsum is not among them. On its CPU provider the operator is slower than the products
    (`benchmarks/attention.py`), so that of joulec's targets only cuda runs this pass.
    """

    def rules(self, context: Context) -> list[Rule]:
        """One rule; it refuses where the target has no kernel."""
        return [ProductsAsAttention(kernel_table(context.target.name))]


@dataclass(frozen=True)
class Factor:
    """An operand of a product, and a letter for each axis: b batch, n heads, t and s words, h what a head has."""

    value: ir.Value
    labels: str

    def unmoved(self) -> Factor:
        """What it is a transposition of."""
        value, labels = self.value, self.labels
        while (node := producer(value, "Transpose")) is not None and node.inputs[0] is not None:
            perm = list(attribute(node, "perm", None) or reversed(range(len(labels))))
            if sorted(perm) != list(range(len(labels))):
                break
            value, labels = node.inputs[0], "".join(labels[perm.index(axis)] for axis in range(len(labels)))
        return Factor(value, labels)


@dataclass(frozen=True)
class Attention:
    """Operators that compute attention.

    Attributes:
        query, key, value: what they read, (batch, words, heads, size of a head).
        bias: what is added to the scores, or None.
        scale: what the scores are multiplied with.
        nodes: the operators, the last first.
        result: what they make, (batch, words, heads, size of a head).
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    bias: ir.Value | None
    scale: float
    nodes: tuple[ir.Node, ...]
    result: ir.Value


class ProductsAsAttention(Rule):
    """(Softmax(scale q k^T + bias)) v -> MultiHeadAttention(q, k, v), heads side by side in front of it and behind."""

    ops = ("Softmax",)

    def __init__(self, table: KernelTable) -> None:
        self._table = table

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found = None if rewriter.in_function(node) else _attention(node)
        if found is None:
            return
        typed = ir.Value(name="x", type=found.query.type)  # a node of its own would count as a user of the real ones
        probe = ir.Node(walk.MICROSOFT_DOMAIN, MULTI_HEAD, [typed, typed, typed], num_outputs=1)
        if (reason := self._table.refusal(probe, {walk.MICROSOFT_DOMAIN: 1})) is not None:
            raise Refused(reason)
        heads, size = _sizes(found)
        at = found.nodes[0]
        given: list[ir.Value | None] = [_joined(one, at, rewriter) for one in (found.query, found.key, found.value)]
        given += [None, None, found.bias] if found.bias is not None else []
        (made,) = rewriter.add(
            MULTI_HEAD, given, {"num_heads": heads, "scale": found.scale}, before=at, domain=walk.MICROSOFT_DOMAIN,
            name=node.name,
        )  # fmt: skip
        made.type, made.shape = found.query.type, _dims(found.query, heads * size)
        joins = _join_behind(found.result, heads * size)
        if joins is not None and rewriter.can_replace(joins.outputs[0], made):
            rewriter.replace(joins.outputs[0], made)
            rewriter.erase(joins)
        else:
            rewriter.replace(found.result, _reshaped(made, (heads, size), f"{made.name}_heads", at, rewriter))
        for one in found.nodes:
            rewriter.erase(one)


def _attention(softmax: ir.Node) -> Attention | None:
    """What a Softmax is the middle of; None where it is no attention.

    Raises:
        Refused: it is, in a form that the operator does not take.
    """
    if rank(softmax.inputs[0]) != 4 or attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    behind = sole_consumer(softmax.outputs[0])
    values = None if behind is None else _values(behind, softmax.outputs[0])
    front = _scores(softmax.inputs[0])
    if behind is None or values is None or front is None:
        return None
    scale, bias, between = front
    query, key = _query_and_key(between[-1])
    if any(one.labels != wanted for one, wanted in ((query, "btnh"), (key, "bsnh"), (values[0], "bsnh"))):
        raise Refused("heads are not side by side: Transposes would come to it")
    last, result = _result(behind, values[1])
    if bias is not None and not _broadcasts(bias, between[0].outputs[0]):
        raise Refused("what is added to the scores has not their shape")
    nodes = (*([last] if last is not None else []), behind, softmax, *between)
    return Attention(query.value, key.value, values[0].value, bias, scale, nodes, result)


def _factors(product: ir.Node) -> tuple[Factor, Factor, str] | None:
    """Both operands of a product of rank 4, and the labels of the result; None where it is none."""
    if any(value is None for value in product.inputs) or len(product.inputs) != 2:
        return None
    if walk.is_onnx(product, "Einsum"):
        one, other, result = labels_of(product)
    elif walk.is_onnx(product, "MatMul") and all(rank(value) == 4 for value in product.inputs):
        one, other, result = "bnik", "bnkj", "bnij"
    else:
        return None
    if len(one) != 4 or len(other) != 4 or len(result) != 4:
        return None
    return Factor(product.inputs[0], one), Factor(product.inputs[1], other), result  # type: ignore[arg-type]


def _relabelled(factor: Factor, names: dict[str, str]) -> Factor:
    return Factor(factor.value, "".join(names.get(label, "h") for label in factor.labels)).unmoved()


def _values(product: ir.Node, probabilities: ir.Value) -> tuple[Factor, str] | None:
    """The values that probabilities (b, n, t, s) weigh, and the labels of the result."""
    factors = _factors(product)
    if factors is None:
        return None
    one, other, result = factors
    weights, values = (one, other) if one.value is probabilities else (other, one)
    names = dict(zip(weights.labels, "bnts", strict=True))
    found = "".join(names.get(label, "h") for label in result)
    if weights.value is not probabilities or sorted(found) != sorted("btnh"):
        return None
    return _relabelled(values, names), found


def _query_and_key(product: ir.Node) -> tuple[Factor, Factor]:
    """Query and key of a product that makes scores (b, n, t, s)."""
    factors = _factors(product)
    if factors is None:
        raise Refused("the scores are no product of two operands of rank 4")
    one, other, result = factors
    names = dict(zip(result, "bnts", strict=True))
    found = sorted((_relabelled(one, names), _relabelled(other, names)), key=lambda factor: "t" not in factor.labels)
    return found[0], found[1]


def _scores(value: ir.Value | None) -> tuple[float, ir.Value | None, list[ir.Node]] | None:
    """Scale, bias, and the operators from a value back to the product of query and key; None where there is none."""
    scale, bias, nodes = 1.0, None, []
    while value is not None and (node := value.producer()) is not None and sole_consumer(value) is not None:
        nodes.append(node)
        if walk.is_onnx(node, "Einsum", "MatMul"):
            return scale, bias, nodes
        if walk.is_onnx(node, "Add") and len(nodes) == 1:
            value, bias = _split(node)
        elif walk.is_onnx(node, "Mul", "Div") and (factor := _factor(node)) is not None:
            value, scale = factor[0], scale * factor[1]
        else:
            return None
    return None


def _split(add: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The scores, and what is added to them."""
    one, other = add.inputs
    computed = producer(one, "Mul", "Div", "Einsum", "MatMul") is not None
    return (one, other) if computed else (other, one)


def _factor(node: ir.Node) -> tuple[ir.Value | None, float] | None:
    """What a Mul or Div scales by one number, and the number."""
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        number = constant(node.inputs[index])
        by = float(number.reshape(-1)[0]) if number is not None and number.size == 1 else 0.0
        if by != 0 and np.isfinite(by):
            return node.inputs[1 - index], by if node.op_type == "Mul" else 1.0 / by
    return None


def _result(product: ir.Node, labels: str) -> tuple[ir.Node | None, ir.Value]:
    """The Transpose that lays heads side by side, if there has to be one, and what is (b, t, n, h) then."""
    if labels == "btnh":
        return None, product.outputs[0]
    following = sole_consumer(product.outputs[0])
    moves = following is not None and walk.is_onnx(following, "Transpose")
    perm = attribute(following, "perm", None) if following is not None and moves else None
    if following is None or perm is None or "".join(labels[axis] for axis in perm) != "btnh":
        raise Refused("heads are not side by side behind it: a Transpose would come to it")
    return following, following.outputs[0]


def _broadcasts(bias: ir.Value, scores: ir.Value) -> bool:
    """Whether a bias is (b or 1, n or 1, t, s), as the operator wants it."""
    if bias.shape is None or scores.shape is None or len(bias.shape) != 4 or bias.dtype != scores.dtype:
        return False
    pairs = list(zip(bias.shape, scores.shape, strict=True))
    return all(one in (1, all_) for one, all_ in pairs[:2]) and all(one == all_ for one, all_ in pairs[2:])


def _sizes(found: Attention) -> tuple[int, int]:
    """Heads, and what one has of the values.

    Raises:
        Refused: not known.
    """
    shapes = [one.shape for one in (found.query, found.key, found.value)]
    if any(shape is None or not all(isinstance(dim, int) for dim in shape[2:]) for shape in shapes):
        raise Refused("the number of heads or their size is not known")
    heads, size = list(found.value.shape or ())[2:]
    return int(heads), int(size)  # type: ignore[arg-type]


def _joined(value: ir.Value, before: ir.Node, rewriter: Rewriter) -> ir.Value:
    """(batch, words, heads, size) as (batch, words, heads * size); what split the heads, and scaled or shifted them by
    constants then, is done on what was split."""
    heads, size = (int(dim) for dim in list(value.shape or ())[2:])  # type: ignore[arg-type]
    if (whole := _unsplit(value, heads * size)) is not None:
        return whole
    node = producer(value, "Add", "Div", "Mul", "Sub")
    if node is not None and sole_consumer(value) is not None:
        flat = [_flat(one, (heads, size), before, rewriter) for one in node.inputs]
        moving = [index for index, one in enumerate(flat) if one is None]
        inner = node.inputs[moving[0]] if len(moving) == 1 else None
        if inner is not None and inner.shape == value.shape:
            flat[moving[0]] = _joined(inner, before, rewriter)
            (made,) = rewriter.add(node.op_type, flat, before=before, name=node.name)
            made.type, made.shape = value.type, _dims(value, heads * size)
            return made
    return _reshaped(value, (heads * size,), f"{value.name}_joined", before, rewriter)


def _flat(value: ir.Value | None, split: tuple[int, int], before: ir.Node, rewriter: Rewriter) -> ir.Value | None:
    """A constant (..., heads, size) as (heads * size,), or as it is where it is one number; None for anything else."""
    numbers = constant(value)
    if value is None or numbers is None or (numbers.size != 1 and numbers.shape[-2:] != split):
        return None
    if numbers.size == 1 or numbers.size != split[0] * split[1]:
        return value if numbers.size == 1 and numbers.ndim <= 3 else None
    return rewriter.constant(numbers.reshape(-1), f"{value.name}_joined", at=before, follows=value, moved=np.ravel)


def _unsplit(value: ir.Value, width: int) -> ir.Value | None:
    """What a Reshape makes (batch, words, heads, size) of, if that is (batch, words, heads * size); else None."""
    reshape = producer(value, "Reshape")
    x = None if reshape is None else reshape.inputs[0]
    if x is None or x.shape is None or value.shape is None:
        return None
    ranks = len(x.shape), len(value.shape)
    return x if ranks == (3, 4) and x.shape[2] == width and x.shape[1] == value.shape[1] else None


def _join_behind(value: ir.Value, width: int) -> ir.Node | None:
    """The Reshape to (batch, words, heads * size) that alone reads `value`, if that is what does."""
    node = sole_consumer(value)
    if node is None or not walk.is_onnx(node, "Reshape") or node.inputs[0] is not value:
        return None
    made = node.outputs[0].shape
    fits = made is not None and value.shape is not None and len(made) == 3
    return node if fits and made[2] == width and made[1] == value.shape[1] else None  # type: ignore[index]


def _reshaped(value: ir.Value, rest: tuple[int, ...], hint: str, before: ir.Node, rewriter: Rewriter) -> ir.Value:
    """(batch, words, ...) as (batch, words, *rest)."""
    target = rewriter.constant(np.array([0, 0, *rest], np.int64), hint, at=before)
    (made,) = rewriter.add("Reshape", [value, target], before=before)
    made.type, made.shape = value.type, _dims(value, *rest)
    return made


def _dims(value: ir.Value, *rest: int) -> ir.Shape:
    dims: Sequence[int | ir.SymbolicDim] = list(value.shape or ())[:2]
    return ir.Shape([*dims, *rest])
