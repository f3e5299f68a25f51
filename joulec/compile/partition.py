"""Which blocks compute in integers: a minimum cut between what integers save and what borders and rounding cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from joulec.passes.blocks import Block

PICO = 1e12
"""Capacities are whole picoseconds, so that the cut is exact and the same everywhere."""

LARGEST = 2_000
"""Blocks beyond which no cut is looked for: it takes more than linear time."""

_INTEGERS, _FLOAT = "integers", "float"


@dataclass(frozen=True)
class Gain:
    """What INT8 means for one block.

    Attributes:
        seconds: what it saves per inference; negative where the integer kernel is the slower one.
        noise: squared error that it alone brings into the outputs, relative to their squares.
    """

    seconds: float
    noise: float = 0.0


Border = Callable[[ir.Value], float]
"""Seconds of turning one value into integers, or back."""


def best_blocks(blocks: Sequence[Block], gains: Sequence[Gain], border: Border, price: float) -> frozenset[int]:
    """The positions of the blocks that are worth quantizing, where noise costs `price` seconds a unit.

    Minimizes, over all sets of blocks: seconds not saved outside it, plus noise times `price` inside it, plus the
    borders between both. All three are what edges of a graph can say, so the minimum is a minimum s-t cut (Greig,
    Porteous and Seheult, 1989: exact minimum of an energy with pairwise terms).

    Args:
        blocks: in graph order.
        gains: one for each block.
        border: what a border at a value costs.
        price: seconds per unit of noise, 0 to look at time alone.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from((_INTEGERS, _FLOAT))
    saved, lost = _terminals(blocks, gains, price)
    _add_borders(graph, blocks, border, lost)
    for index in range(len(blocks)):
        _add(graph, _INTEGERS, index, saved[index])
        _add(graph, index, _FLOAT, lost[index])
    _, (inside, _) = nx.minimum_cut(graph, _INTEGERS, _FLOAT, flow_func=nx.algorithms.flow.boykov_kolmogorov)
    return frozenset(index for index in inside if index != _INTEGERS)


def _terminals(blocks: Sequence[Block], gains: Sequence[Gain], price: float) -> tuple[list[float], list[float]]:
    """Per block: seconds lost where it stays float, and where it becomes INT8."""
    saved = [max(gain.seconds, 0.0) for gain in gains]
    lost = [max(-gain.seconds, 0.0) + price * gain.noise for gain in gains]
    return saved, lost


def _add_borders(graph: nx.DiGraph, blocks: Sequence[Block], border: Border, lost: list[float]) -> None:
    """Borders between two blocks are edges; those towards what can only be float count against INT8."""
    makers = {id(block.output): index for index, block in enumerate(blocks)}
    readers: dict[int, list[int]] = defaultdict(list)
    for index, block in enumerate(blocks):
        for value in {id(value): value for value in block.inputs}.values():
            readers[id(value)].append(index)
            if id(value) not in makers:
                lost[index] += border(value)
    for index, block in enumerate(blocks):
        value, near = block.output, readers[id(block.output)]
        only_float = value.is_graph_output() or len(value.uses()) > len(near)
        if only_float and not block.may_end_in_float:
            lost[index] += border(value)
        for reader in near:
            cost = border(value) / len(near)
            _add(graph, index, reader, 0.0 if block.may_end_in_float else cost)
            _add(graph, reader, index, cost)


def _add(graph: nx.DiGraph, one: object, other: object, seconds: float) -> None:
    before = graph.get_edge_data(one, other, {"capacity": 0})["capacity"]
    graph.add_edge(one, other, capacity=before + round(seconds * PICO))
