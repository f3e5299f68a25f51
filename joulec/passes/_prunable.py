"""Weights that can be pruned: found once each, seen as the operator sees them, stored as the file stores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.evaluate import RELAYOUT, relayout
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor
from joulec.passes.materialize_weights import materialize

WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
"""Operators with weights, and the inputs that may hold one. Of products the second is asked first."""

SMALLEST = 64
"""Weights with fewer elements are left alone: there is nothing to gain, and much to lose."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Weight:
    """One weight.

    Attributes:
        value: where it is stored: an initializer, or a Constant node's output.
        node: the first operator that reads it.
        slot: at which of its inputs.
        numbers: as stored.
        index: position in `numbers`, flattened, of what the operator sees; None where it sees `numbers` itself.
        readers: every operator that reads it as a weight, with the input.
    """

    value: ir.Value
    node: ir.Node
    slot: int
    numbers: Array
    index: Array | None
    readers: tuple[tuple[ir.Node, int], ...]

    @property
    def name(self) -> str:
        """The name masks go by."""
        return self.value.name or ""

    def seen(self, stored: Array | None = None) -> Array:
        """What the operator sees: the weight, or any array laid out as it is stored."""
        source = self.numbers if stored is None else stored
        return source if self.index is None else source.reshape(-1)[self.index]

    def unseen(self, seen: Array) -> Array:
        """The inverse of `seen`."""
        if self.index is None:
            return seen
        flat = np.empty(self.numbers.size, seen.dtype)
        flat[self.index.reshape(-1)] = seen.reshape(-1)
        return flat.reshape(self.numbers.shape)


def weights(module: Module, rewriter: Rewriter, ops: frozenset[str] = frozenset(WEIGHTS)) -> Iterator[Weight]:
    """Prunable weights in graph order, each once however often it is used; why others are left alone is recorded.

    A weight that reaches its operator through Transposes and Reshapes of its own is pruned where it is stored; one
    that nodes generate is stored first.
    """
    materialize(rewriter)
    seen: set[int] = set()
    for node in walk.nodes(module.model):
        if not walk.is_onnx(node) or node.op_type not in ops:
            continue
        found = False
        for slot in reversed(WEIGHTS[node.op_type]):
            value = node.inputs[slot] if slot < len(node.inputs) else None
            stored, chain = _stored(value)
            if stored is None or (constant_tensor(stored) is None and not _fed_default(stored)):
                continue
            found = True
            if id(stored) in seen:
                continue
            seen.add(id(stored))
            reason = _reason(stored, chain, rewriter, node)
            if reason is not None:
                rewriter.refuse("prune", node, reason)
                continue
            numbers = constant(stored)
            index = None if numbers is None else _index(numbers.shape, chain, module.opset)
            if numbers is None or (chain and index is None):
                rewriter.refuse("prune", node, f"weight '{stored.name}' is laid out anew in a way that is not known")
                continue
            yield Weight(stored, node, slot, numbers, index, tuple(_readers(stored)))
        if not found:
            rewriter.refuse("prune", node, "its weight is not a constant")


def _fed_default(value: ir.Value) -> bool:
    return value.is_initializer() and value.is_graph_input()


def _stored(value: ir.Value | None) -> tuple[ir.Value | None, tuple[ir.Node, ...]]:
    """Where the numbers of `value` are stored, and the layout operators from there to here."""
    chain: list[ir.Node] = []
    while value is not None and len(chain) < 16:
        node = value.producer()
        if value.is_initializer() or node is None or walk.is_onnx(node, "Constant"):
            return value, tuple(reversed(chain))
        if not walk.is_onnx(node) or node.op_type not in RELAYOUT:
            return None, ()
        chain.append(node)
        value = node.inputs[0]
    return None, ()


def _index(shape: tuple[int, ...], chain: tuple[ir.Node, ...], opset: int) -> Array | None:
    if not chain:
        return None
    found: Array | None = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    for node in chain:
        if found is not None:
            found = relayout(node, found, [found, *(constant(value) for value in node.inputs[1:])], opset)
    return found


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The operators behind layout operators that read `value`, in order; anything else is yielded as itself."""
    for usage in value.uses():
        if walk.is_onnx(usage.node) and usage.node.op_type in RELAYOUT and usage.idx == 0:
            yield from _readers(usage.node.outputs[0])
        else:
            yield usage.node, usage.idx


def _reason(value: ir.Value, chain: tuple[ir.Node, ...], rewriter: Rewriter, node: ir.Node) -> str | None:
    """Why a weight is not pruned, or None."""
    tensor = constant_tensor(value)
    if _fed_default(value):
        return f"weight '{value.name}' is a graph input that callers may feed"
    if tensor is None:
        return "its weight is not a constant"
    if not value.is_initializer() and rewriter.in_function(node):
        return f"weight '{value.name}' stands in a function, which has no initializers to hold a mask for"
    if value.is_graph_output():
        return f"weight '{value.name}' is a graph output, whose numbers callers read"
    if tensor.dtype not in FLOATS:
        return f"weight '{value.name}' is {tensor.dtype.name}, not float"
    if tensor.size < SMALLEST:
        return f"weight '{value.name}' has only {tensor.size} elements"
    for reader, slot in _readers(value):
        if not walk.is_onnx(reader) or slot not in WEIGHTS.get(reader.op_type, ()):
            return f"weight '{value.name}' is also read by {walk.label(reader)}, as something other than a weight"
    if not np.all(np.isfinite(tensor.numpy().astype(np.float32, copy=False))):
        return f"weight '{value.name}' holds NaN or infinity"
    return None


def apply_mask(weight: Weight, mask: Array, rewriter: Rewriter, numbers: Array | None = None) -> None:
    """Zero what `mask` (as stored) removes, beside what an earlier pass removed; `numbers` replace those that stay."""
    earlier = rewriter.module.masks.get(weight.name)
    whole = mask if earlier is None else mask & earlier
    if numbers is None and (np.array_equal(whole, earlier) if earlier is not None else bool(whole.all())):
        return
    tensor = constant_tensor(weight.value)
    if tensor is None:
        return
    with rewriter.rewriting("prune", weight.node):
        kept = weight.numbers if numbers is None else numbers.astype(weight.numbers.dtype)
        pruned = np.where(whole, kept, np.zeros((), kept.dtype)).astype(kept.dtype, copy=False)
        _initializer(weight.value, weight.node, rewriter, ir.tensor(pruned, dtype=tensor.dtype), whole)


def _initializer(value: ir.Value, node: ir.Node, rewriter: Rewriter, tensor: ir.TensorProtocol, mask: Array) -> None:
    """Store pruned numbers; a Constant node becomes an initializer, which masks need."""
    if value.is_initializer():
        rewriter.set_tensor(value, tensor, mask=mask)
        return
    made = rewriter.constant(tensor, f"{value.name}_pruned", at=node, follows=value, mask=mask)
    constant_node = value.producer()
    rewriter.replace(value, made)
    if constant_node is not None:
        rewriter.erase(constant_node)


def matching(name: str, patterns: tuple[tuple[str, float], ...]) -> float | None:
    """The number of the first pattern (`*` and `?` as in file names) that `name` matches."""
    return next((number for pattern, number in patterns if fnmatchcase(name, pattern)), None)


def reduction_axis(weight: Weight) -> int | None:
    """The axis over which the operator sums products with this weight, in the layout that it sees; None: there is none.

    For Conv it is that of input channels: kernels that skip zeros do so along channels, at each tap by itself.
    """
    node, rank = weight.node, weight.seen().ndim
    match node.op_type:
        case "Conv":
            return 1
        case "ConvTranspose":
            return 0
        case "Gemm":
            transposed = bool(attribute(node, "transA" if weight.slot == 0 else "transB", 0))
            return int(transposed == (weight.slot == 1)) if rank == 2 else None
        case "MatMul" if rank >= 2:
            return rank - 2 if weight.slot == 1 else rank - 1
        case _:
            return None
