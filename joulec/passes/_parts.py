"""Rules on parts that are cut out of one value: picked with their dimension, or all of them in one Split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.dims import slice_bounds
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import attribute, constant, sole_consumer
from joulec.passes._reshapes import ShapeRule, axes_given

MAX_USERS = 64
"""Readers of one value that are looked at, so that many of them stay linear."""


class KeepPicked(ShapeRule):
    """Unsqueeze(Gather(x, i), axis) -> Gather(x, [i]), where that axis is the one gathered along."""

    ops = ("Unsqueeze",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        pick = node.inputs[0].producer() if node.inputs[0] is not None else None
        if pick is None or not walk.is_onnx(pick, "Gather") or sole_consumer(pick.outputs[0]) is not node:
            return
        index, dims = constant(pick.inputs[1]), self.dims(pick.inputs[0])
        if index is None or index.ndim or not dims or not self.is_main(node, rewriter):
            return
        axis, axes = attribute(pick, "axis", 0) % len(dims), axes_given(node)
        if axes is None or [one % len(dims) for one in axes] != [axis]:
            return
        at = rewriter.constant(index.reshape(1), f"{pick.name or 'part'}_index", at=node)
        inputs, like = [pick.inputs[0], at], node.outputs[0]
        (found,) = rewriter.add("Gather", inputs, {"axis": axis}, before=node, name=pick.name, like=like)
        self.substitute(node, found, rewriter)
        rewriter.erase(pick)


class PartsBySplit(ShapeRule):
    """Slices, or Gathers of neighbours, that cut all of one value along one axis -> Split."""

    ops = ("Slice", "Gather")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        source = node.inputs[0]
        uses = () if source is None else source.uses()
        if source is None or node.graph is None or not 2 <= len(uses) <= MAX_USERS:
            return
        mine = self._part(node, source)
        if mine is None or not self.is_main(node, rewriter):
            return
        users = dict.fromkeys(usage.node for usage in uses if usage.node.graph is node.graph)
        found = [(part, user) for user in users if (part := self._part(user, source)) and part[0] == mine[0]]
        found.sort(key=lambda pair: pair[0][1])
        if len(found) < 2 or not self._tile([part for part, _ in found], source):
            return
        self._split(source, mine[0], [(part[2] - part[1], user) for part, user in found], rewriter)

    def _part(self, node: ir.Node, source: ir.Value) -> tuple[int, int, int] | None:
        """(Axis, first, end) of what `node` cuts out of `source`, keeping the dimension; None for others."""
        dims = self.dims(source)
        if not dims or not walk.is_onnx(node, "Slice", "Gather") or node.inputs[0] is not source:
            return None
        if node.op_type == "Gather":
            indices = constant(node.inputs[1])
            axis = attribute(node, "axis", 0) % len(dims)
            run = None if indices is None or indices.ndim != 1 else _run(indices, dims[axis])
            return None if run is None else (axis, *run)
        bounds = slice_bounds(node, self.facts)
        if bounds is None or len(bounds[2]) != 1 or bounds[3] != (1,):
            return None
        (start,), (end,), axis = bounds[0], bounds[1], bounds[2][0] % len(dims)
        size = dims[axis]
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(size, int)):
            return None
        kept = range(size)[start:end]
        return (axis, kept.start, kept.stop) if len(kept) else None

    def _tile(self, parts: Sequence[tuple[int, int, int]], source: ir.Value) -> bool:
        """Whether each part begins where the one before ended, from the first element to the last."""
        dims = self.dims(source) or ()
        ends = [0, *(end for _, _, end in parts)]
        return all(part[1] == end for part, end in zip(parts, ends, strict=False)) and ends[-1] == dims[parts[0][0]]

    def _split(
        self, source: ir.Value, axis: int, parts: Sequence[tuple[int, ir.Node]], rewriter: Rewriter
    ) -> None:  # fmt: skip
        sizes, users = [size for size, _ in parts], [user for _, user in parts]
        producer, name = source.producer(), users[0].name or "parts"
        here = producer is not None and producer.graph is users[0].graph
        first = None if here else next(iter(users[0].graph or ()))
        attributes: dict[str, object] = {"axis": axis}
        inputs = [source]
        if rewriter.module.opset < 13:
            attributes["split"] = sizes
        else:
            inputs.append(rewriter.constant(np.array(sizes, np.int64), f"{name}_sizes", at=users[0]))
        made = rewriter.add(
            "Split", inputs, attributes, before=first, after=producer if here else None, outputs=len(sizes), name=name
        )  # fmt: skip
        for value, user in zip(made, users, strict=True):
            value.type, value.shape = user.outputs[0].type, user.outputs[0].shape
            self.substitute(user, value, rewriter)


def _run(indices: np.ndarray, size: object) -> tuple[int, int] | None:
    """First and end of indices that follow on each other within a dimension of `size`; None for others."""
    if not isinstance(size, int) or not indices.size:
        return None
    first = int(indices[0]) + (size if indices[0] < 0 else 0)
    end = first + indices.size
    same = np.array_equal(indices + (size if indices[0] < 0 else 0), np.arange(first, end))
    return (first, end) if same and first >= 0 and end <= size else None
