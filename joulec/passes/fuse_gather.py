"""fuse-gather: products with one-hot rows become look-ups, and arithmetic on looked-up rows moves into the table."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.evaluate import NotEvaluated, evaluate
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, constant, constant_tensor, rank, sole_consumer
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FuseGather(RulePass):
    """Look rows up in a constant table instead of multiplying it by one-hot rows, and do arithmetic on the table.

    What follows a look-up element by element (a bias, a scale, an activation) is done once, on the table, instead of
    on every row that is looked up.
    """

    def rules(self, context: Context) -> list[Rule]:
        """The look-up first; what stands behind it may then move into its table."""
        return [OneHotProduct(), RowArithmetic()]


MAX_TABLE_BYTES = 1 << 24
"""Larger tables are left alone: reading and rewriting them costs more than the arithmetic on a few rows."""

MAX_GROWTH = 1 << 16
"""Bytes that a second table may add to the file where the old one is used elsewhere too."""

MAX_STEPS = 64
"""Operators that move into one table at most."""

INDICES = (ir.DataType.INT32, ir.DataType.INT64)
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)

ROWWISE = frozenset(
    "Abs Add Ceil Celu Clip Cos Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Max Min Mish Mul Neg "
    "PRelu Pow Reciprocal Relu Selu Sigmoid Sin Softplus Softsign Sqrt Sub Tanh ThresholdedRelu".split()
)
"""Operators that treat each element by itself and keep its type."""


class OneHotProduct(Rule):
    """MatMul(Cast(Equal(i, [0..n-1])), w) -> Gather(w with a row of zeros, i), which no other index reaches."""

    ops = ("MatMul",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found, weight = _one_hot(node.inputs[0]), node.inputs[1]
        tensor = constant_tensor(weight)
        if found is None or weight is None or tensor is None:
            return
        equal, index, classes = found
        if tensor.dtype not in FLOATS or len(tensor.shape) != 2:
            raise Refused(f"its table is {tensor.dtype} of rank {len(tensor.shape)}")
        if rewriter.module.opset < 12 or rewriter.in_function(node):
            raise Refused("indices are clipped by an operator that integers have from opset 12 on")
        table = _readable(weight, tensor, rewriter)
        if table.shape[0] != classes:
            return
        if not np.all(np.isfinite(table)):
            raise Refused("a row that is not finite reaches every product")
        _look_up(node, equal, index, np.concatenate([table, np.zeros_like(table[:1])]) + 0.0, rewriter)


def _one_hot(value: ir.Value | None) -> tuple[ir.Node, ir.Value, int] | None:
    """(Equal, index, classes) of a Cast of comparisons with 0, 1, ..., classes - 1 along the last axis; else None."""
    cast = None if value is None else value.producer()
    if value is None or cast is None or not walk.is_onnx(cast, "Cast") or sole_consumer(value) is None:
        return None
    compared = cast.inputs[0]
    equal = None if compared is None else compared.producer()
    if compared is None or equal is None or not walk.is_onnx(equal, "Equal") or sole_consumer(compared) is None:
        return None
    for index, other in (equal.inputs[:2], reversed(equal.inputs[:2])):
        classes = _counted(other, index)
        if classes is not None and index is not None:
            return equal, index, classes
    return None


def _counted(other: ir.Value | None, index: ir.Value | None) -> int | None:
    """How many classes `other` counts along the last axis, where `index` has one number; None where that is not so."""
    if index is None or index.dtype not in INDICES or index.shape is None or constant_tensor(other) is None:
        return None
    numbers = constant(other)
    if numbers is None or numbers.ndim == 0 or numbers.ndim > len(index.shape) or index.shape[-1] != 1:
        return None
    counted = np.arange(numbers.shape[-1]) if numbers.shape[-1] == numbers.size else np.zeros(0)
    return int(numbers.size) if numbers.size > 1 and np.array_equal(numbers.ravel(), counted) else None


def _look_up(node: ir.Node, equal: ir.Node, index: ir.Value, table: Array, rewriter: Rewriter) -> None:
    """Put the look-up in place of the product. Beyond the classes, and before them, lies the row of zeros."""
    kind = index.dtype.numpy() if index.dtype is not None else np.int64
    bounds = [np.array(bound, kind) for bound in (-1, table.shape[0] - 1)]
    name = node.name or "lookup"
    low, high = (rewriter.constant(bound, f"{name}_bound", at=node) for bound in bounds)
    (inside,) = rewriter.add("Clip", [index, low, high], before=node, name=f"{name}_index", like=index)
    dims = [] if index.shape is None else list(index.shape)
    if rewriter.module.opset < 13:
        (flat,) = rewriter.add("Squeeze", [inside], {"axes": [len(dims) - 1]}, before=node, name=f"{name}_flat")
    else:
        last = rewriter.constant(np.array([len(dims) - 1], np.int64), f"{name}_axis", at=node)
        (flat,) = rewriter.add("Squeeze", [inside, last], before=node, name=f"{name}_flat")
    flat.dtype, flat.shape = index.dtype, ir.Shape(dims[:-1])  # type: ignore[assignment]  # INDICES, never None
    rows = rewriter.constant(table, f"{name}_table", at=node)
    output = node.outputs[0]
    (found,) = rewriter.add("Gather", [rows, flat], {"axis": 0}, before=node, name=name, like=output)
    rewriter.replace(output, found)
    for gone in (node, sole_consumer(equal.outputs[0]), equal):
        if gone is not None:
            rewriter.erase(gone)


def _readable(value: ir.Value, tensor: ir.TensorProtocol, rewriter: Rewriter) -> Array:
    """The numbers of a table that may be rewritten.

    Raises:
        Refused: it is large, masked, or used elsewhere and not small.
    """
    if tensor.nbytes > MAX_TABLE_BYTES:
        raise Refused(f"its table has {tensor.nbytes} bytes, the limit is {MAX_TABLE_BYTES}")
    if value.name in rewriter.module.masks:
        raise Refused("its table is pruned, and the mask belongs to the numbers as they are")
    if tensor.nbytes > MAX_GROWTH and (len(value.uses()) > 1 or value.is_graph_output()):
        raise Refused("its table is used elsewhere too; a second one would make the file larger")
    return tensor.numpy()


class RowArithmetic(Rule):
    """f(Gather(table, i)) -> Gather(f(table), i), where f treats each element by itself."""

    ops = ("Gather",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source, output = node.inputs[0], node.outputs[0]
        tensor = constant_tensor(source)
        if source is None or tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) == 0:
            return
        if attribute(node, "axis", 0) != 0 or rewriter.in_function(node):
            return
        steps = _Steps(output, tuple(int(dim) for dim in tensor.shape.numpy()))
        chain = steps.closed()
        if not chain:
            return
        last = chain[-1].outputs[0] if steps.end is None else steps.end
        if not rewriter.can_replace(last, output):
            raise Refused(f"'{last.name}' is a graph output, and cannot be renamed")
        table = _computed(chain, output, last, _readable(source, tensor, rewriter), rewriter.module.opset)
        rows = rewriter.constant(table, f"{source.name}_computed", at=node)
        rewriter.set_input(node, 0, rows)
        rewriter.replace(last, output)
        for gone in reversed(chain):
            rewriter.erase(gone)


@dataclass
class _Steps:
    """The operators behind a look-up that could be done on its table, found one by one.

    Attributes:
        start: what was looked up.
        dims: the table's shape.
        end: the only value of the longest closed chain that anybody outside uses.
    """

    start: ir.Value
    dims: tuple[int, ...]
    end: ir.Value | None = None
    _open: dict[ir.Value, int] = field(default_factory=dict)
    _found: list[ir.Node] = field(default_factory=list)

    def closed(self) -> list[ir.Node]:
        """The longest chain of which only one value, `end`, is used outside, in an order that can be computed."""
        best = 0
        self._open[self.start] = _readers(self.start)
        queue, waiting = deque([self.start]), 1
        while queue and len(self._found) < MAX_STEPS:
            value = queue.popleft()
            for node in list(dict.fromkeys(usage.node for usage in value.uses())):
                if node.graph is not self.start.graph or not self._takes(node):
                    continue
                waiting += self._take(node)
                queue.append(node.outputs[0])
                if waiting == 1 and self._open[node.outputs[0]]:
                    best, self.end = len(self._found), node.outputs[0]
        return self._found[:best]

    def _take(self, node: ir.Node) -> int:
        """Add a step; returns by how many the values that still have readers became more."""
        self._found.append(node)
        change = 0
        for value in node.inputs:
            if value in self._open:
                self._open[value] -= 1
                change -= self._open[value] == 0
        made = node.outputs[0]
        self._open[made] = _readers(made)
        return change + (self._open[made] > 0)

    def _takes(self, node: ir.Node) -> bool:
        if not walk.is_onnx(node) or node.op_type not in ROWWISE or node.outputs[0] in self._open:
            return False
        if len(node.outputs) != 1 or "axis" in node.attributes or "broadcast" in node.attributes:
            return False
        return all(value is None or value in self._open or self._fits(value) for value in node.inputs)

    def _fits(self, value: ir.Value) -> bool:
        """Whether a constant is the same for every row, and does not widen them."""
        return constant_tensor(value) is not None and self.trimmed(value) is not None

    def trimmed(self, value: ir.Value) -> Array | None:
        """A constant as it broadcasts against the table; None where it does not."""
        tensor, width = constant_tensor(value), self.dims[1:]
        if tensor is None or tensor.size > max(1, int(np.prod(width))):
            return None
        array = tensor.numpy()
        extra = array.ndim - len(width)
        if extra > 0 and (any(dim != 1 for dim in array.shape[:extra]) or array.ndim > (rank(self.start) or 0)):
            return None
        short = array.reshape(array.shape[max(extra, 0) :])
        pairs: Iterable[tuple[int, int]] = zip(reversed(short.shape), reversed(width), strict=False)
        return short if all(one == 1 or one == other for one, other in pairs) else None


def _readers(value: ir.Value) -> int:
    return len(value.uses()) + value.is_graph_output()


def _computed(chain: list[ir.Node], start: ir.Value, end: ir.Value, table: Array, opset: int) -> Array:
    """What `chain` makes of the table.

    Raises:
        Refused: it has no kernel, or takes too long.
    """
    steps, known = _Steps(start, table.shape), {start: table}
    try:
        for node in chain:
            arrays = [None if v is None else known[v] if v in known else steps.trimmed(v) for v in node.inputs]
            (made,) = evaluate(node, arrays, opset)
            if made is None or made.shape != table.shape or made.dtype != table.dtype:
                raise Refused(f"{walk.label(node)} does not keep the table's shape and type")
            known[node.outputs[0]] = made
    except NotEvaluated as reason:
        raise Refused(str(reason)) from reason
    return known[end]
