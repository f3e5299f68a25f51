"""Rules on operators that lay the same elements out anew: Reshape, Squeeze, Unsqueeze, Flatten, and idle Transposes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import Dims
from joulec.ir.partial import ShapeFacts, fits_beside
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import Rule
from joulec.ir.symbolic import Element, Symbols
from joulec.ir.values import attribute, constant, sole_consumer
from joulec.passes._layout import Perm, inverse, perm_of

RELAYOUTS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


class ShapeRule(Rule):
    """A rule that asks for symbolic shapes, and tells those of what it makes."""

    def __init__(self, facts: ShapeFacts) -> None:
        self.facts = facts

    def dims(self, value: ir.Value | None) -> Dims | None:
        """The dimensions of `value`."""
        return self.facts.shape(value)

    def is_main(self, node: ir.Node, rewriter: Rewriter) -> bool:
        """Whether `node` uses the module's opset, so that nodes can be made beside it."""
        return rewriter.module.opset >= 5 and not rewriter.in_function(node)

    def substitute(self, node: ir.Node, new: ir.Value, rewriter: Rewriter) -> None:
        """Put `new` in the place of the first output of `node`, which goes."""
        output = node.outputs[0]
        if (known := self.dims(output)) is not None and new.producer() is not None and id(new) not in self.facts.shapes:
            self.facts.shapes[id(new)] = known
            self.facts.alive.append(new)
        rewriter.replace(output, new)
        rewriter.erase(node)

    def remove(self, node: ir.Node, kept: ir.Value, rewriter: Rewriter) -> None:
        """Use `kept`, which is the same as the output of `node`, where that can be."""
        if rewriter.can_replace(node.outputs[0], kept):
            self.substitute(node, kept, rewriter)


def reshape(
    rule: ShapeRule, node: ir.Node, source: ir.Value, target: Sequence[int], rewriter: Rewriter
) -> None:
    """Make the output of `node` a Reshape of `source` to a constant target."""
    shape = rewriter.constant(np.array(target, np.int64), f"{node.name or 'reshape'}_shape", at=node)
    if walk.is_onnx(node, "Reshape"):
        rewriter.set_input(node, 0, source)
        rewriter.set_input(node, 1, shape)
        if "allowzero" in node.attributes:
            rewriter.set_attribute(node, "allowzero", None)
        return
    output = node.outputs[0]
    (new,) = rewriter.add("Reshape", [source, shape], before=node, name=node.name, like=output)
    rule.substitute(node, new, rewriter)


def target_of(symbols: Symbols, data: Dims, wanted: Dims) -> list[int] | None:
    """A constant target that reshapes `data` to `wanted` whatever the sizes, zero included; None if there is none."""
    found: list[int] = []
    for index, dim in enumerate(wanted):
        kept = index < len(data) and data[index] == dim
        found.append(0 if kept and not isinstance(dim, int) else dim if isinstance(dim, int) else -1)
        if dim == 0 and not kept:
            return None  # 0 would copy another dimension
    fitted = found.count(-1)
    return None if fitted > 1 or (fitted and not fits_beside(symbols, data, found)) else found


class IdleRelayout(ShapeRule):
    """Reshape, Squeeze, Unsqueeze, Flatten, Expand, Tile or Slice to the shape that is there -> nothing."""

    ops = (*RELAYOUTS, "Expand", "Tile", "Slice")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source = node.inputs[0]
        before, after = self.dims(source), self.dims(node.outputs[0])
        if source is None or before is None or before != after:
            return
        if node.op_type == "Slice" and not _steps_of_one(node):
            return
        self.remove(node, source, rewriter)


def _steps_of_one(node: ir.Node) -> bool:
    if len(node.inputs) < 5 or node.inputs[4] is None:
        return True
    steps = constant(node.inputs[4])
    return steps is not None and bool(np.all(steps == 1))


class MergeRelayouts(ShapeRule):
    """Reshape(Reshape(x)), Unsqueeze(Unsqueeze(x)), Reshape(Squeeze(x)), ... -> one of them."""

    ops = RELAYOUTS

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or not self.is_main(node, rewriter) or not self._is_relayout(first):
            return
        source, wanted = first.inputs[0], self.dims(node.outputs[0])
        data = self.dims(source)
        if source is None or wanted is None or data is None:
            return
        if data == wanted:
            self.remove(node, source, rewriter)
        elif node.op_type == first.op_type and node.op_type in ("Squeeze", "Unsqueeze"):
            self._merge_axes(node, first, source, rewriter)
        elif (target := target_of(self.facts.symbols, data, wanted)) is not None:
            reshape(self, node, source, target, rewriter)

    def _is_relayout(self, node: ir.Node) -> bool:
        if walk.is_onnx(node, *RELAYOUTS):
            return True
        return walk.is_onnx(node, "Transpose") and is_idle(perm_of(node), self.dims(node.inputs[0]))

    def _merge_axes(self, node: ir.Node, first: ir.Node, source: ir.Value, rewriter: Rewriter) -> None:
        """Axes that both name together, counted on the longer of the outer shapes."""
        inner, outer = axes_given(first), axes_given(node)
        middle = self.dims(first.outputs[0])
        if inner is None or outer is None or middle is None:
            return
        if node.op_type == "Unsqueeze":
            added = {axis % (len(middle) + len(outer)) for axis in outer}
            places = [axis for axis in range(len(middle) + len(outer)) if axis not in added]
            axes = sorted(added | {places[axis % len(middle)] for axis in inner})
        else:
            length = len(middle) + len(inner)
            gone = {axis % length for axis in inner}
            places = [axis for axis in range(length) if axis not in gone]
            axes = sorted(gone | {places[axis % len(middle)] for axis in outer})
        rewriter.set_input(node, 0, source)
        if "axes" in node.attributes:
            rewriter.set_attribute(node, "axes", axes)
        else:
            hint = f"{node.name or 'axes'}_axes"
            rewriter.set_input(node, 1, rewriter.constant(np.array(axes, np.int64), hint, at=node))


def axes_given(node: ir.Node) -> list[int] | None:
    """The axes that an operator names, by attribute or by a constant input; None where it names none."""
    given = attribute(node, "axes")
    if given is None and len(node.inputs) > 1:
        given = constant(node.inputs[1])
    return None if given is None else [int(axis) for axis in np.ravel(given)]


def is_idle(perm: Sequence[int] | None, data: Dims | None) -> bool:
    """Whether a Transpose only moves dimensions of 1, and so no element."""
    if perm is None or data is None or len(perm) != len(data):
        return False
    order = [axis for axis in perm if data[axis] != 1]
    return order == sorted(order)


class ReshapeByOnes(ShapeRule):
    """Reshape to a computed shape that only adds or drops dimensions of 1 -> Unsqueeze or Squeeze."""

    ops = ("Reshape",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        before, after = self.dims(node.inputs[0]), self.dims(node.outputs[0])
        if before is None or after is None or not self.is_main(node, rewriter):
            return
        if len(node.inputs) < 2 or constant(node.inputs[1]) is not None:
            return
        op = "Unsqueeze" if len(before) < len(after) else "Squeeze"
        axes = _ones_between(*((before, after) if op == "Unsqueeze" else (after, before)))
        if not axes:
            return
        given = axes if rewriter.module.opset < 13 else None
        inputs = [node.inputs[0]]
        if given is None:
            hint = f"{node.name or op.lower()}_axes"
            inputs.append(rewriter.constant(np.array(axes, np.int64), hint, at=node))
        (new,) = rewriter.add(op, inputs, {"axes": given}, before=node, name=node.name, like=node.outputs[0])
        self.substitute(node, new, rewriter)


def _ones_between(short: Dims, long: Dims) -> list[int] | None:
    """The places in `long` of the ones that `short` lacks; None where there are other differences."""
    axes, at = [], 0
    for axis, dim in enumerate(long):
        left = len(long) - axis > len(short) - at
        if at < len(short) and short[at] == dim and not (dim == 1 and left):
            at += 1
        elif dim == 1:
            axes.append(axis)
        else:
            return None
    return axes if at == len(short) else None


def _turned(node: ir.Node) -> tuple[ir.Node, Perm, ir.Node] | None:
    """The Transpose that `node` reads, its permutation, and the node that it reads itself."""
    turn = node.inputs[0].producer() if node.inputs[0] is not None else None
    perm = perm_of(turn)
    if turn is None or perm is None or turn.inputs[0] is None:
        return None
    first = turn.inputs[0].producer()
    return None if first is None else (turn, perm, first)


class ReshapeAcrossTranspose(ShapeRule):
    """Reshape(Transpose(Reshape(x))) -> Transpose(Reshape(x)), where the last one only splits a dimension back."""

    ops = ("Reshape",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found = _turned(node)
        if found is None or not walk.is_onnx(found[2], *RELAYOUTS):
            return
        turn, perm, first = found
        if sole_consumer(turn.outputs[0]) is not node:
            return
        source, wanted = first.inputs[0], self.dims(node.outputs[0])
        data, middle = self.dims(source), self.dims(turn.outputs[0])
        if source is None or data is None or middle is None or wanted is None or not self.is_main(node, rewriter):
            return
        groups = self._groups(middle, wanted)
        if groups is None:
            return
        back = inverse(perm)
        order = [axis for place in back for axis in groups[place]]  # the new dimensions in the order they have in x
        split = tuple(wanted[axis] for axis in order)
        target = None if split == data else target_of(self.facts.symbols, data, split)
        if split != data and target is None:
            return
        self._rebuild(node, source, target, split, inverse(order), rewriter)

    def _groups(self, middle: Dims, wanted: Dims) -> list[list[int]] | None:
        """Which dimensions of `wanted` each of `middle` is split into, in order; None where it is no split."""
        groups: list[list[int]] = []
        at = 0
        for index, dim in enumerate(middle):
            group: list[int] = []
            product: Element = 1
            last = index == len(middle) - 1
            while at < len(wanted) and (not group or product != dim or last):
                group.append(at)
                product = self.facts.symbols.multiply(product, wanted[at])
                at += 1
            if product != dim:
                return None
            groups.append(group)
        return groups if at == len(wanted) else None

    def _rebuild(
        self, node: ir.Node, source: ir.Value, target: list[int] | None, split: Dims, perm: Sequence[int],
        rewriter: Rewriter,
    ) -> None:  # fmt: skip
        laid = source
        if target is not None:
            shape = rewriter.constant(np.array(target, np.int64), f"{node.name or 'reshape'}_shape", at=node)
            (laid,) = rewriter.add("Reshape", [source, shape], before=node, name=f"{node.name or 'reshape'}_split")
            laid.type, laid.shape = node.outputs[0].type, ir.Shape([d if isinstance(d, int) else None for d in split])
            self.facts.shapes[id(laid)] = split
            self.facts.alive.append(laid)
        output = node.outputs[0]
        (new,) = rewriter.add("Transpose", [laid], {"perm": list(perm)}, before=node, name=node.name, like=output)
        self.substitute(node, new, rewriter)


class UnitTranspose(ShapeRule):
    """Squeeze(Transpose(Unsqueeze(x))) -> Transpose(x)."""

    ops = ("Squeeze", "Reshape")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found = _turned(node)
        if found is None or not walk.is_onnx(found[2], "Unsqueeze", "Reshape"):
            return
        turn, perm, first = found
        if sole_consumer(turn.outputs[0]) is not node:
            return
        source, raised, wanted = first.inputs[0], self.dims(first.outputs[0]), self.dims(node.outputs[0])
        data = self.dims(source)
        if source is None or raised is None or data is None or wanted is None or not self.is_main(node, rewriter):
            return
        kept = [axis for axis in range(len(raised)) if raised[axis] != 1]
        if tuple(raised[axis] for axis in kept) != data or tuple(raised[a] for a in perm if a in kept) != wanted:
            return
        new_perm = [kept.index(axis) for axis in perm if axis in kept]
        output = node.outputs[0]
        (new,) = rewriter.add("Transpose", [source], {"perm": new_perm}, before=node, name=node.name, like=output)
        self.substitute(node, new, rewriter)


class GatherTransposed(ShapeRule):
    """Gather(Transpose(x), scalar) -> Gather(x, scalar), where only the gathered dimension had moved."""

    ops = ("Gather",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        turn = node.inputs[0].producer() if node.inputs[0] is not None else None
        perm, indices = perm_of(turn), self.dims(node.inputs[1])
        if turn is None or not perm or indices != ():
            return
        axis = perm[attribute(node, "axis", 0) % len(perm)]
        rest = [other for other in perm if other != axis]
        if rest != sorted(rest) or not self._only_gathers(turn.outputs[0]):
            return
        rewriter.set_input(node, 0, turn.inputs[0])
        rewriter.set_attribute(node, "axis", int(axis))

    def _only_gathers(self, value: ir.Value) -> bool:
        users = value.uses()
        if value.is_graph_output() or len(users) > MAX_GATHERS:
            return False
        return all(walk.is_onnx(usage.node, "Gather") and usage.idx == 0 for usage in users)


MAX_GATHERS = 16
"""Users of one Transpose that are looked at, so that many of them stay linear."""
