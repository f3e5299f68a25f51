"""merge-steps: what an unrolled loop does to each slice of a tensor is done once, to the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, constant_tensor, input_at, rank, static_shape
from joulec.passes._linear import FLOATS
from joulec.passes._reshapes import axes_given
from joulec.passes.base import Context, RulePass
from joulec.passes.fuse_gather import ROWWISE


@dataclass(frozen=True)
class MergeSteps(RulePass):
    """Compute what every slice of a tensor goes through at once, where the weights are the same.

    Keras unrolls TimeDistributed, and exporters unroll loops over recurrent cells: one small product a time step,
    each with its own Gather. One product of all steps reads the weights once.
    """

    def rules(self, context: Context) -> list[Rule]:
        """Slices move behind what is done to them, operator by operator, until they are stacked again."""
        return [SameStep(), StackedSteps()]


MAX_READERS = 4096
"""Readers of one tensor that are looked at, so that many of them stay linear."""

Dims = Sequence[Any]


class SameStep(Rule):
    """f(Gather(x, 0), w), f(Gather(x, 1), w), ... -> Gather(f(x, w), 0), Gather(f(x, w), 1), ..., for all of x."""

    ops = ("Gather",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source = node.inputs[0]
        if source is None or source.dtype not in FLOATS or _step(node) != 0:
            return
        if rewriter.in_function(node) or rewriter.module.opset < 7:
            return
        picks = _picks_of_all(source, node)
        if picks is None:
            return
        for first in dict.fromkeys(usage.node for usage in node.outputs[0].uses()):
            if _takes_slices(first, node.outputs[0]) and (steps := _same(first, picks)) is not None:
                _merge(source, picks, steps, rewriter)


def _step(pick: ir.Node) -> int | None:
    """Which slice of its tensor a Gather by one number takes; None for other Gathers."""
    index, dims = constant(pick.inputs[1]), _dims(pick.inputs[0])
    if index is None or index.ndim or not dims:
        return None
    size = dims[_axis(pick)]
    return None if not isinstance(size, int) or not -size <= int(index) < size else int(index) % size


def _dims(value: ir.Value | None) -> Dims:
    return () if value is None or value.shape is None else list(value.shape)


def _axis(pick: ir.Node) -> int:
    return int(attribute(pick, "axis", 0)) % len(_dims(pick.inputs[0]))


def _picks_of_all(source: ir.Value, first: ir.Node) -> list[ir.Node] | None:
    """The Gathers of every slice of `source` along the axis of `first`, in order; None where one is missing."""
    size, graph, maker = _dims(source)[_axis(first)], first.graph, source.producer()
    here = source in graph.inputs if maker is None else maker.graph is graph  # type: ignore[union-attr]
    if not here or not isinstance(size, int) or not 2 <= size <= len(source.uses()) <= MAX_READERS:
        return None
    found: dict[int, ir.Node] = {}
    for usage in source.uses():
        pick = usage.node
        if pick.graph is graph and usage.idx == 0 and walk.is_onnx(pick, "Gather") and _axis(pick) == _axis(first):
            step = _step(pick)
            if step is not None:
                found.setdefault(step, pick)
    return [found[step] for step in range(size)] if len(found) == size else None


def _takes_slices(node: ir.Node, part: ir.Value) -> bool:
    """Whether `node` computes each slice of a stack as it would alone, with weights that are the same for all."""
    if not walk.is_onnx(node) or len(node.outputs) != 1 or rank(node.outputs[0]) is None:
        return False
    dims, others = rank(part), [value for value in node.inputs if value is not None and value is not part]
    if not dims or list(node.inputs).count(part) != 1:
        return False
    if not all(value.is_initializer() and constant_tensor(value) is not None for value in others):
        return False
    if node.op_type == "MatMul":
        return node.inputs[0] is part and rank(node.inputs[1]) == 2
    if node.op_type == "Gemm":
        return node.inputs[0] is part and not attribute(node, "transA", 0) and _is_row(input_at(node, 2))
    plain = "axis" not in node.attributes and "broadcast" not in node.attributes  # before opset 7
    return node.op_type in ROWWISE and plain and all((rank(value) or 0) <= dims for value in others)


def _is_row(bias: ir.Value | None) -> bool:
    shape = () if bias is None else static_shape(bias)
    return shape is not None and (len(shape) < 2 or shape[0] == 1)


def _same(first: ir.Node, picks: Sequence[ir.Node]) -> list[ir.Node] | None:
    """For each slice the operator that does to it what `first` does to the first one."""
    steps = [first]
    for pick in picks[1:]:
        part, whole = pick.outputs[0], picks[0].outputs[0]
        alike = (usage.node for usage in part.uses() if _is_like(usage.node, part, first, whole))
        if (step := next(alike, None)) is None:
            return None
        steps.append(step)
    return steps


def _is_like(node: ir.Node, part: ir.Value, first: ir.Node, whole: ir.Value) -> bool:
    """Whether `node` is to `part` what `first` is to `whole`."""
    if (node.op_type, node.domain, node.graph) != (first.op_type, first.domain, first.graph):
        return False
    if len(node.inputs) != len(first.inputs) or dict(node.attributes) != dict(first.attributes):
        return False
    pairs = zip(node.inputs, first.inputs, strict=True)
    return all((one is part and other is whole) or _equal(one, other) for one, other in pairs)


def _equal(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two values are one, or hold the same numbers: exporters write the weights of each step anew."""
    if one is other:
        return True
    if one is None or other is None or not one.is_initializer():
        return False
    first, second = constant_tensor(one), constant_tensor(other)
    if first is None or second is None or (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return first.tobytes() == second.tobytes()


def _merge(source: ir.Value, picks: Sequence[ir.Node], steps: Sequence[ir.Node], rewriter: Rewriter) -> None:
    """Do what the steps do to all slices at once, directly behind `source`: the weights are there from the start."""
    behind = _Behind(source, picks[0], rewriter)
    whole, axis = _computed(behind, picks[0], steps[0])
    for pick, step in zip(picks, steps, strict=True):
        output, name = step.outputs[0], f"{step.name or step.op_type}_step"
        (part,) = rewriter.add("Gather", [whole, pick.inputs[1]], {"axis": axis}, before=step, name=name, like=output)
        rewriter.replace(output, part)
        rewriter.erase(step)
        if not pick.outputs[0].uses():
            rewriter.erase(pick)


@dataclass
class _Behind:
    """Adds nodes behind a value, in front of everything else that reads it."""

    last: ir.Value
    node: ir.Node
    """Some node of the graph."""
    rewriter: Rewriter

    def add(self, op: str, inputs: Sequence[ir.Value | None], attributes: Any, dims: Dims, name: str) -> ir.Value:
        maker = self.last.producer()
        first = self.node.graph[0] if maker is None and self.node.graph is not None else None
        (made,) = self.rewriter.add(op, inputs, attributes, before=first, after=maker, name=f"{name}_steps")
        made.dtype, made.shape = self.last.dtype, ir.Shape(dims)  # type: ignore[assignment]  # typed: it was gathered
        self.last = made
        return made

    def reshape(self, target: list[int], dims: Dims) -> ir.Value:
        name = self.last.name or "steps"
        shape = self.rewriter.constant(np.array(target, np.int64), f"{name}_shape", at=self.node)
        return self.add("Reshape", [self.last, shape], {}, dims, name)


def _computed(behind: _Behind, pick: ir.Node, step: ir.Node) -> tuple[ir.Value, int]:
    """What `step` does to a slice, done to all of them, and the axis along which they lie in the result.

    The slices stay where they are, in front of the dimensions that the weights meet, or are brought to the front.
    """
    part, axis, dims, name = pick.outputs[0], _axis(pick), _dims(behind.last), step.name or step.op_type
    count = dims[axis]
    if axis > (rank(part) or 0) - _met(step, part):
        order = [axis, *(other for other in range(len(dims)) if other != axis)]
        behind.add("Transpose", [behind.last], {"perm": order}, [dims[other] for other in order], name)
        axis = 0
    whole = list(_dims(step.outputs[0]))
    whole.insert(axis, count)
    if step.op_type != "Gemm":
        inputs = [behind.last if value is part else value for value in step.inputs]
        return behind.add(step.op_type, inputs, step.attributes, whole, name), axis
    weight = static_shape(step.inputs[1]) or ()
    deep, wide = reversed(weight) if attribute(step, "transB", 0) else weight
    flat = behind.reshape([-1, deep], [None, deep])
    behind.add("Gemm", [flat, *step.inputs[1:]], step.attributes, [None, wide], name)
    return behind.reshape([-1, count, wide] if axis else [count, -1, wide], whole), axis


def _met(step: ir.Node, part: ir.Value) -> int:
    """How many dimensions of a slice, counted from the last, the weights of its operator have something to do with."""
    if step.op_type in ("Gemm", "MatMul"):
        return 1
    return max((rank(value) or 0 for value in step.inputs if value is not None and value is not part), default=0)


class StackedSteps(Rule):
    """Concat(Unsqueeze(Gather(x, 0)), Unsqueeze(Gather(x, 1)), ...) of all of x -> x, or Transpose(x)."""

    ops = ("Concat",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found = [part for value in node.inputs if (part := _stacked(value)) is not None]
        if not found or len(found) < len(node.inputs):
            return
        (first, axis), picks = found[0], [pick for pick, _ in found]
        source, cut, dims = first.inputs[0], _axis(first), _dims(first.inputs[0])
        if source is None or any(one.inputs[0] is not source or _axis(one) != cut for one in picks):
            return
        stacked = {axis, int(attribute(node, "axis", 0)) % len(dims), *(at for _, at in found)}
        if len(stacked) > 1 or dims[cut] != len(picks) or [_step(one) for one in picks] != list(range(len(picks))):
            return
        order = [other for other in range(len(dims)) if other != cut]
        order.insert(axis, cut)
        _unstack(node, source, order, rewriter)


def _stacked(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """(Gather, axis) of the slice that an Unsqueeze makes a part of a stack; None where it is none."""
    wide = None if value is None else value.producer()
    if wide is None or not walk.is_onnx(wide, "Unsqueeze") or wide.inputs[0] is None:
        return None
    pick, axes = wide.inputs[0].producer(), axes_given(wide)
    if pick is None or not walk.is_onnx(pick, "Gather") or axes is None or len(axes) != 1 or _step(pick) is None:
        return None
    return pick, axes[0] % len(_dims(pick.inputs[0]))


def _unstack(node: ir.Node, source: ir.Value, order: list[int], rewriter: Rewriter) -> None:
    output = node.outputs[0]
    if order == sorted(order):
        if not rewriter.can_replace(output, source):
            raise Refused(f"'{output.name}' is a graph output, and cannot be renamed")
        found = source
    else:
        (found,) = rewriter.add("Transpose", [source], {"perm": order}, before=node, name=node.name, like=output)
    rewriter.replace(output, found)
    rewriter.erase(node)
