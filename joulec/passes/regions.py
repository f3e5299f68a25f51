"""Which blocks stay together: islands, sets of blocks that hand integers to each other. All of it O(blocks + edges)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx
import onnx_ir as ir

from joulec.passes.blocks import LAYOUT, Block
from joulec.passes.target import QuantizationScheme


@dataclass(frozen=True)
class Islands:
    """The blocks worth quantizing, in graph order, and why the others are not."""

    kept: tuple[Block, ...]
    dropped: tuple[tuple[Block, str], ...]


def islands(blocks: Sequence[Block], scheme: QuantizationScheme) -> Islands:
    """Drop carrying blocks that no integers reach, then islands without an operator that computes.

    The largest consistent set: start from all, drop what is unsupported, look again at its neighbours.
    """
    carrying = "not next to a quantized operator"
    kept = _Support(blocks).settle() if scheme.quantize_outputs else _inputs_only(blocks)
    alive = _with_compute(kept)
    chosen = [block for block in kept if id(block) in alive]
    nodes = {id(block.node) for block in chosen}
    return Islands(tuple(chosen), tuple((block, carrying) for block in blocks if id(block.node) not in nodes))


def _inputs_only(blocks: Sequence[Block]) -> list[Block]:
    """For kernels that take integers and hand out floats: what computes, and residual Adds reading their skip input."""
    order = {id(block.output): index for index, block in enumerate(blocks) if block.kind == "compute"}
    kept: list[Block] = []
    for block in blocks:
        if block.kind == "compute" or _reads_skip(block):
            kept.append(block)
        elif block.node.op_type == "Add" and len(block.operands) == 2 and any(id(v) in order for v in block.inputs):
            main = max(block.operands, key=lambda index: order.get(id(block.node.inputs[index]), -1))
            kept.append(replace(block, operands=tuple(index for index in block.operands if index != main)))
    return kept


def _reads_skip(block: Block) -> bool:
    """Whether `block` is a residual Add that was reduced to its skip input before."""
    return block.node.op_type == "Add" and len(block.operands) == 1 and not block.constants


class _Support:
    """The fixpoint: which blocks are held in the set by the integers around them.

    A block is useful if its result reaches an operator that computes. Integers that are there already are moved as
    far as they go, and two of them added; other arithmetic rounds once more, so it must be useful.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.producer = {id(block.output): block for block in blocks}
        self.readers: dict[int, list[Block]] = defaultdict(list)
        for block in blocks:
            for value in block.inputs:
                self.readers[id(value)].append(block)
        self.kept = {id(block) for block in blocks}
        self.useful = set(self.kept)
        self.kept_readers = Counter({key: len(readers) for key, readers in self.readers.items()})
        self.useful_readers = Counter(self.kept_readers)
        self.computed_on = {key for key, readers in self.readers.items() if any(b.kind == "compute" for b in readers)}

    def settle(self) -> list[Block]:
        """Drop unsupported blocks until all that remain are supported. Each block changes at most twice."""
        work = deque(reversed(self.blocks))
        while work:
            block = work.popleft()
            if id(block) not in self.kept or block.kind == "compute":
                continue
            if id(block) in self.useful and not self.useful_readers[id(block.output)]:
                self._lose_use(block, work)
            if not self._supported(block):
                self._drop(block, work)
        return [block for block in self.blocks if id(block) in self.kept]

    def _lose_use(self, block: Block, work: deque[Block]) -> None:
        self.useful.discard(id(block))
        for value in block.inputs:
            self.useful_readers[id(value)] -= 1
        work.extend(self._producers(block))

    def _drop(self, block: Block, work: deque[Block]) -> None:
        if id(block) in self.useful:
            self._lose_use(block, work)
        self.kept.discard(id(block))
        for value in block.inputs:
            self.kept_readers[id(value)] -= 1
        work.extend(self.readers[id(block.output)])
        work.extend(self._producers(block))

    def _producers(self, block: Block) -> list[Block]:
        return [self.producer[id(value)] for value in block.inputs if id(value) in self.producer]

    def _supported(self, block: Block) -> bool:
        useful = id(block) in self.useful
        made = [self._made_by_kept(value) for value in block.inputs]
        near = [
            one or (id(value) in self.computed_on and block.node.op_type not in SLOW_ALONE)
            for one, value in zip(made, block.inputs, strict=True)
        ]
        integers = all(near) or (any(near) and _rest_is_small(block.inputs, near))
        if integers and (useful or (all(made) and _costs_nothing(block))):
            return True
        return block.node.op_type in LAYOUT and useful and self._all_read_by_kept(block.output)

    def _made_by_kept(self, value: ir.Value) -> bool:
        producer = self.producer.get(id(value))
        return producer is not None and id(producer) in self.kept

    def _all_read_by_kept(self, value: ir.Value) -> bool:
        return self.kept_readers[id(value)] == len(value.uses()) and not value.is_graph_output()


def _costs_nothing(block: Block) -> bool:
    """Whether integers may go on through `block` although nobody computes on them behind it.

    Moving them loses nothing, and a sum of two is turned into floats once, where two operands are turned twice.
    """
    return block.kind in ("movement", "rescale") or (block.node.op_type == "Add" and len(block.operands) == 2)


SLOW_ALONE = frozenset({"MaxPool"})
"""Operators whose integer kernel is fast only on what an integer kernel made (`passes/_shields.py`)."""

SMALL = 16
"""An operand this many times smaller than its sibling (the gate of a channel) is worth quantizing for it."""


def _rest_is_small(values: Sequence[ir.Value], near: Sequence[bool]) -> bool:
    sizes = [_elements(value) for value in values]
    there = max((size for size, one in zip(sizes, near, strict=True) if one and size is not None), default=0)
    return all(one or (size is not None and size * SMALL <= there) for size, one in zip(sizes, near, strict=True))


def _elements(value: ir.Value) -> int | None:
    """Elements of `value`, each symbolic dimension counted as one; None where its rank is unknown."""
    if value.shape is None:
        return None
    return math.prod(dim for dim in value.shape if isinstance(dim, int))


def _with_compute(blocks: Sequence[Block]) -> set[int]:
    """Identities of the blocks whose island holds at least one operator that computes."""
    graph = nx.Graph()
    for block in blocks:
        graph.add_node(("block", id(block)))
        for value in (*block.inputs, block.output):
            graph.add_edge(("block", id(block)), ("value", id(value)))
    computes = {id(block) for block in blocks if block.kind == "compute"}
    alive: set[int] = set()
    for island in nx.connected_components(graph):
        members = {key for kind, key in island if kind == "block"}
        if members & computes:
            alive |= members
    return alive
