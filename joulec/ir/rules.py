"""Rules, and the driver that applies them until none fires."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable
from functools import cache
from typing import ClassVar

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter

MAX_APPLICATIONS = 64
"""Times one node may be rewritten before the driver stops: rules that undo each other end, and are said."""


class Rule(ABC):
    """One rewrite. Its docstring is one line, `before -> after`; `ops` are the operators it starts from.

    `apply` tests guards first, then changes the graph through the rewriter. It returns without a change where the
    pattern is not there, and raises `Refused` where it is there but something forbids the rewrite.
    """

    ops: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        """The rule's name in records: the class name in kebab case."""
        return kebab(type(self).__name__)

    @abstractmethod
    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        """Rewrite at `node` if the pattern is there."""


def apply_rules(rewriter: Rewriter, rules: Iterable[Rule]) -> None:
    """Apply `rules` to every node until none applies.

    A worklist holds the nodes to look at, first all of them in order, then those whose surroundings changed. Rules
    are indexed by operator, so the work is O(nodes + rewrites); `MAX_APPLICATIONS` bounds rules that undo each other.
    """
    by_op: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        for op in rule.ops:
            by_op[op].append(rule)
    work = _Worklist(node for node in walk.nodes(rewriter.module.model) if node.op_type in by_op)
    previous, rewriter.on_touch = rewriter.on_touch, work.add_neighbourhood
    try:
        while (node := work.pop()) is not None:
            for rule in by_op.get(node.op_type, ()):
                if node.graph is None:
                    break
                if not work.may_apply(node):
                    rewriter.refuse(rule.name, node, f"stopped after {MAX_APPLICATIONS} rewrites of this node")
                    break
                _apply(rewriter, rule, node, work)
    finally:
        rewriter.on_touch = previous


def _apply(rewriter: Rewriter, rule: Rule, node: ir.Node, work: _Worklist) -> None:
    if not walk.is_onnx(node):
        return
    before = len(rewriter.rewrites)
    with rewriter.rewriting(rule.name, node):
        rule.apply(node, rewriter)
    if len(rewriter.rewrites) > before:
        work.count(node)


class _Worklist:
    """Nodes to visit, each at most once at a time; a node erased meanwhile is a tombstone and is skipped."""

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        self._queue: deque[ir.Node] = deque(nodes)
        self._queued = {id(node) for node in self._queue}
        self._applied: dict[int, int] = defaultdict(int)
        self._alive: list[ir.Node] = []  # keeps ids of visited nodes from being reused

    def pop(self) -> ir.Node | None:
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(id(node))
            if node.graph is not None:
                return node
        return None

    def add(self, node: ir.Node) -> None:
        if node.graph is not None and id(node) not in self._queued:
            self._queued.add(id(node))
            self._queue.append(node)

    def add_neighbourhood(self, node: ir.Node) -> None:
        """A change at `node` can enable rules that start at it, at what feeds it or at what it feeds."""
        self.add(node)
        for value in node.inputs:
            if value is not None and (producer := value.producer()) is not None:
                self.add(producer)
        for output in node.outputs:
            for usage in output.uses():
                self.add(usage.node)

    def count(self, node: ir.Node) -> None:
        self._applied[id(node)] += 1
        self._alive.append(node)

    def may_apply(self, node: ir.Node) -> bool:
        return self._applied[id(node)] < MAX_APPLICATIONS


@cache
def kebab(name: str) -> str:
    """`FoldConstants` -> `fold-constants`."""
    return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))
