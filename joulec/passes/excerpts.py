"""Excerpts: what can be compared of a model that is too large to run, small parts of it before and after a pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from joulec.data import synthetic_feeds
from joulec.errors import JoulecError
from joulec.ir.cut import cut
from joulec.ir.module import Module
from joulec.ir.rewrite import record_name
from joulec.ir.runner import Runner
from joulec.passes.base import Context, Pass, PassResult
from joulec.passes.equivalence import Deviation, Equivalence

NODES, BYTES, EXCERPTS = 12, 1 << 26, 4
"""Nodes of an excerpt, bytes of its weights, and excerpts of one pass."""

WHOLE_LIMIT = 1 << 30
"""Bytes of weights up to which a pass is judged by running the whole model; beyond, by running excerpts of it."""

SIZE = 3
"""What unknown dimensions of an excerpt's inputs count as."""


def too_large(module: Module) -> str | None:
    """Why a module is not run whole after every pass, or None."""
    size = module.weight_bytes()
    return None if size <= WHOLE_LIMIT else f"its weights take {size / (1 << 30):.1f} GiB"


class Excerpts:
    """Runs a pass on small parts of a module alone, and compares what each computes before and after.

    Attributes:
        compared: how many parts were compared so far.
        skipped: how many could not be: their weights are too large, or they do not run by themselves.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.compared = self.skipped = 0

    def compare(self, before: Module, one: Pass, result: PassResult, context: Context) -> Deviation | None:
        """The worst deviation among up to `EXCERPTS` parts around the rewrites of `result`, or None."""
        worst: Deviation | None = None
        for kept in self._places(before, result):
            found = self._excerpt(before, kept, one, context)
            if found is not None and (worst is None or found.value / found.tolerance > worst.value / worst.tolerance):
                worst = found
        return worst

    def _places(self, before: Module, result: PassResult) -> Iterator[list[int]]:
        """Positions of the nodes around some rewrites, spread over all of them."""
        position = {id(node): index for index, node in enumerate(before.graph)}
        named = {record_name(node): node for node in before.graph}
        starts = list(dict.fromkeys(rewrite.node for rewrite in result.rewrites if rewrite.node in named))
        for name in starts[:: max(1, len(starts) // EXCERPTS)][:EXCERPTS]:
            yield sorted(position[id(node)] for node in _around(named[name], position))

    def _excerpt(self, before: Module, kept: Sequence[int], one: Pass, context: Context) -> Deviation | None:
        part = cut(before, kept)
        if part is None or part.weight_bytes() > BYTES:
            self.skipped += 1
            return None
        try:
            return self._compare(part, one, context)
        except JoulecError:
            self.skipped += 1  # a part may not run by itself: an input of unknown rank, a shape nobody computes
            return None

    def _compare(self, part: Module, one: Pass, context: Context) -> Deviation | None:
        shapes = {value.name or "": _sizes(value) for value in part.inputs() if value.shape is not None}
        equivalence = Equivalence(self._runner, list(synthetic_feeds(part.inputs(), shapes, 1, 0)))
        if equivalence.refer_to(part) is not None:
            self.skipped += 1
            return None
        changed = part.clone()
        one.run(changed, context)
        found = equivalence.compare(changed)
        self.compared += 1
        return found


def _sizes(value: ir.Value) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else SIZE for dim in value.shape or ())


def _around(start: ir.Node, inside: dict[int, int]) -> list[ir.Node]:
    """Up to `NODES` nodes of the main graph nearest to `start`, past nothing with large weights."""
    found, queue = {id(start): start}, deque([start])
    while queue and len(found) < NODES:
        node = queue.popleft()
        producers = [value.producer() for value in node.inputs if value is not None]
        users = [usage.node for output in node.outputs for usage in output.uses()]
        for near in (*producers, *users):
            if near is None or id(near) in found or id(near) not in inside or _heavy(near) or len(found) >= NODES:
                continue
            found[id(near)] = near
            queue.append(near)
    return list(found.values())


def _heavy(node: ir.Node) -> bool:
    tensors = (value.const_value for value in node.inputs if value is not None)
    return any(tensor is not None and tensor.nbytes > BYTES for tensor in tensors)
