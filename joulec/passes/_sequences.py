"""Rules that take sequences apart where it is known what is in them: tensors stay tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, input_at

MAX_PARTS = 64
"""Tensors of a sequence up to which it is taken apart, so that long chains of inserts stay linear."""


def sequence_rules() -> list[Rule]:
    """All of them."""
    return [ElementOfSequence(), SplitInsteadOfSequence(), LengthOfSequence(), JoinSequence(), CollectSequence()]


def _maker(value: ir.Value | None, *ops: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and walk.is_onnx(node, *ops) else None


def _number(value: ir.Value | None) -> int | None:
    found = constant(value)
    return int(found.reshape(-1)[0]) if found is not None and found.size == 1 else None


def _place(value: ir.Value | None, count: int) -> int | None:
    """The position that a constant names in a sequence of `count`, counted from the front; None where it has none."""
    number = _number(value)
    return None if number is None or not -count <= number < count else number % count


class ElementOfSequence(Rule):
    """SequenceAt(SequenceConstruct(a, b), 1) -> b; of a Split that drops the dimension -> Gather(x, 1)."""

    ops = ("SequenceAt",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        made = _maker(node.inputs[0], "SequenceConstruct", "SplitToSequence")
        if made is None:
            return
        if made.op_type == "SplitToSequence":
            self._gather(node, made, rewriter)
        elif (at := _place(node.inputs[1], len(made.inputs))) is not None:
            self._take(node, made.inputs[at], rewriter)

    @staticmethod
    def _take(node: ir.Node, kept: ir.Value | None, rewriter: Rewriter) -> None:
        output = node.outputs[0]
        if kept is None:
            return
        if not rewriter.can_replace(output, kept):  # the output needs a node that gives it its name
            (kept,) = rewriter.add("Identity", [kept], before=node, name=node.name, like=output)
        rewriter.replace(output, kept)
        rewriter.erase(node)

    @staticmethod
    def _gather(node: ir.Node, split: ir.Node, rewriter: Rewriter) -> None:
        source, at = split.inputs[0], _number(node.inputs[1])
        if at is None or source is None or input_at(split, 1) is not None or attribute(split, "keepdims", 1):
            return
        size = _size(split)
        if size is None or not -size <= at < size:
            raise Refused("it is not known how many parts the sequence has")
        place = rewriter.constant(np.array(at % size, np.int64), f"{node.name or 'part'}_index", at=node)
        given, output = {"axis": attribute(split, "axis", 0)}, node.outputs[0]
        (found,) = rewriter.add("Gather", [source, place], given, before=node, name=node.name, like=output)
        rewriter.replace(output, found)
        rewriter.erase(node)


def _size(split: ir.Node) -> int | None:
    """The size of the dimension that a SplitToSequence splits, where it is known."""
    source = split.inputs[0]
    if source is None or source.shape is None or len(source.shape) == 0:
        return None
    axis = attribute(split, "axis", 0)
    if not -len(source.shape) <= axis < len(source.shape):
        return None
    dim = source.shape[axis]
    return dim if isinstance(dim, int) else None


def _sizes(split: ir.Node) -> list[int] | None:
    """The sizes of the parts of a SplitToSequence that keeps its dimension; None where they are not known."""
    if input_at(split, 1) is None:
        size = _size(split)
        return [1] * size if size is not None and 0 < size <= MAX_PARTS and attribute(split, "keepdims", 1) else None
    given = constant(split.inputs[1])
    if given is None or given.size == 0 or given.min() <= 0:
        return None
    if given.ndim:
        return [int(part) for part in given.reshape(-1)[: MAX_PARTS + 1]]
    step, size = int(given), _size(split)
    if size is None or not 0 < size <= step * MAX_PARTS:
        return None
    return [min(step, size - start) for start in range(0, size, step)]


class SplitInsteadOfSequence(Rule):
    """SplitToSequence(x) of which only known elements are used -> Split(x), or Slice(x) for a single one."""

    ops = ("SplitToSequence",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source, uses = node.inputs[0], list(node.outputs[0].uses())
        sizes = _sizes(node)
        if source is None or sizes is None or not uses or len(sizes) > MAX_PARTS or node.outputs[0].is_graph_output():
            return
        users = list(dict.fromkeys(usage.node for usage in uses))
        places = [_place(user.inputs[1], len(sizes)) for user in users if walk.is_onnx(user, "SequenceAt")]
        wanted = [place for place in places if place is not None]
        if len(wanted) < len(users):
            raise Refused("the sequence is used as a whole")
        named = [place for user, place in zip(users, wanted, strict=True) if user.outputs[0].is_graph_output()]
        if any(wanted.count(place) > 1 for place in named):
            raise Refused("two graph outputs, or an output and a value, would be one")
        if any(user.graph is not node.graph for user in users) or rewriter.in_function(node):
            raise Refused("it is taken apart in another graph, or in a function")
        parts = self._parts(node, source, sizes, sorted(set(wanted)), rewriter)
        for user, place in zip(users, wanted, strict=True):
            rewriter.replace(user.outputs[0], parts[place])
            rewriter.erase(user)
        rewriter.erase(node)

    def _parts(
        self, node: ir.Node, source: ir.Value, sizes: Sequence[int], places: Sequence[int], rewriter: Rewriter
    ) -> dict[int, ir.Value]:
        axis, name = attribute(node, "axis", 0), node.name or "parts"
        if len(places) == 1 and rewriter.module.opset >= 10:
            start = sum(sizes[: places[0]])
            bounds = [np.array([number], np.int64) for number in (start, start + sizes[places[0]], axis)]
            given = [rewriter.constant(array, f"{name}_bound", at=node) for array in bounds]
            found = rewriter.add("Slice", [source, *given], before=node, name=name)
        elif rewriter.module.opset < 13:
            given_sizes = {"axis": axis, "split": list(sizes)}
            found = rewriter.add("Split", [source], given_sizes, before=node, outputs=len(sizes), name=name)
        else:
            lengths = rewriter.constant(np.array(sizes, np.int64), f"{name}_sizes", at=node)
            found = rewriter.add("Split", [source, lengths], {"axis": axis}, before=node, outputs=len(sizes), name=name)
        made = dict(zip(places if len(found) == 1 else range(len(sizes)), found, strict=True))
        for place, value in made.items():
            _describe(value, source, axis, sizes[place])
        return made


def _describe(part: ir.Value, source: ir.Value, axis: int, size: int) -> None:
    """Tell the type and shape of a part of `source`."""
    part.type = source.type
    if source.shape is not None and len(source.shape):
        dims = list(source.shape)
        dims[axis] = size
        part.shape = ir.Shape(dims)


class LengthOfSequence(Rule):
    """SequenceLength(SequenceConstruct(a, b)) -> 2, and of a Split into known parts their number."""

    ops = ("SequenceLength",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        made, output = _maker(node.inputs[0], "SequenceConstruct", "SplitToSequence"), node.outputs[0]
        if made is None or output.is_graph_output():
            return
        if made.op_type == "SequenceConstruct":
            count: int | None = len(made.inputs)
        elif input_at(made, 1) is None:
            count = _size(made)
        else:
            sizes = _sizes(made)
            count = None if sizes is None or len(sizes) > MAX_PARTS else len(sizes)
        if count is None:
            return
        rewriter.replace(output, rewriter.constant(np.array(count, np.int64), output.name or "length", at=node))
        rewriter.erase(node)


class JoinSequence(Rule):
    """ConcatFromSequence(SequenceConstruct(a, b)) -> Concat(a, b), where no dimension is made."""

    ops = ("ConcatFromSequence",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        made = _maker(node.inputs[0], "SequenceConstruct")
        if made is None or len(made.inputs) > MAX_PARTS:
            return
        if attribute(node, "new_axis", 0):
            raise Refused("each part would need an Unsqueeze of its own")
        output, given = node.outputs[0], {"axis": attribute(node, "axis")}
        if rewriter.module.opset < 11 or rewriter.in_function(node):
            raise Refused("functions import opsets of their own")
        (joined,) = rewriter.add("Concat", list(made.inputs), given, before=node, name=node.name, like=output)
        rewriter.replace(output, joined)
        rewriter.erase(node)


class CollectSequence(Rule):
    """SequenceInsert(SequenceConstruct(a), b) -> SequenceConstruct(a, b), and SequenceErase the other way round."""

    ops = ("SequenceInsert", "SequenceErase")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        made = _maker(node.inputs[0], "SequenceConstruct", "SequenceEmpty")
        if made is None or len(made.inputs) >= MAX_PARTS or rewriter.in_function(node):
            return
        kept: list[ir.Value | None] = list(made.inputs)
        given = input_at(node, 2 if node.op_type == "SequenceInsert" else 1)
        if node.op_type == "SequenceInsert":
            at = len(kept) if given is None else self._gap(given, len(kept))
            if at is None:
                return
            kept.insert(at, node.inputs[1])
        else:
            place = len(kept) - 1 if given is None else _place(given, len(kept))
            if place is None or len(kept) < 2:
                return
            del kept[place]
        (whole,) = rewriter.add("SequenceConstruct", kept, before=node, name=node.name)
        whole.type = node.outputs[0].type
        rewriter.replace(node.outputs[0], whole)
        rewriter.erase(node)

    @staticmethod
    def _gap(value: ir.Value, count: int) -> int | None:
        """Where an insert goes: any place of the sequence, or behind its end."""
        number = _number(value)
        if number is None or not -count <= number <= count:
            return None
        return number + count if number < 0 else number
