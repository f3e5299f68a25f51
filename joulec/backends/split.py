"""One model on two devices: which nodes run on the host's CPU and which on its GPU, for the fewest joules in time.

A minimum cut (`joulec.ir.halves`) over what the energy model predicts for each node on either device and for each
value that crosses the bus. Under a latency limit the same cut weighs seconds too, as lightly as the limit allows
(Lagrange: the least price of a second at which the answer is fast enough). Nodes are taken to run one after the other.
What a device draws while it waits for the other is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from joulec.backends.placement import COPY_SECONDS, LINK_BYTES_PER_SECOND, copy_joules
from joulec.energy import EnergyModel, Estimate
from joulec.energy.bind import Spec
from joulec.ir import walk
from joulec.ir.halves import Crossing, cheapest
from joulec.ir.kernel_table import kernel_table
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import bound_shape

ANNOTATION, HOST = "layer_ann", "host"
"""Where ONNX Runtime looks for what a node belongs to, and what nodes of the host's are called there."""

ASSIGNMENT = ("session.layer_assignment_settings", f"cpu(={HOST})")
"""The session option that makes ONNX Runtime (1.25 and later) follow the annotations."""

STEPS = 40
"""Bisections of the price of a second."""


@dataclass(frozen=True)
class Split:
    """One way to place the nodes.

    Attributes:
        host: names of the nodes on the CPU, in graph order.
        nodes: how many nodes there are.
        joules, seconds: predicted for one run, copies included.
        copies: values that cross between host and device, inputs and outputs included.
    """

    host: tuple[str, ...]
    nodes: int
    joules: float
    seconds: float
    copies: int


@dataclass(frozen=True)
class _Cost:
    joules: float
    seconds: float

    def at(self, price: float) -> float:
        """Joules, a second costing `price` of them; of nothing but seconds where the price is infinite."""
        return self.seconds if price == math.inf else self.joules + price * self.seconds


@dataclass(frozen=True)
class _Value:
    """A value that may cross: who makes it (None: the caller), who reads it, whether the caller fetches it, bytes."""

    maker: int | None
    readers: tuple[int, ...]
    fetched: bool
    size: int

    def crosses(self, sides: Sequence[bool]) -> bool:
        made = self.maker is not None and sides[self.maker]
        return any(sides[reader] != made for reader in self.readers) or (self.fetched and made)


class Splitter:
    """Places the main graph of `module`.

    Args:
        module: typed; nodes need names of their own.
        host, device: energy models of the CPU and of the GPU.
        bindings: sizes of symbolic dimensions; others count as 1.
    """

    def __init__(self, module: Module, host: EnergyModel, device: EnergyModel, bindings: Spec | None = None) -> None:
        infer_shapes(module)
        self.nodes = [node for node in module.graph if not walk.is_onnx(node, "Constant")]
        self._sizes = {name: size for name, size in (bindings or {}).items() if isinstance(size, int)}
        self._number = {id(node): index for index, node in enumerate(self.nodes)}
        self._host = self._costs(host.estimate(module, bindings))
        self._device = self._costs(device.estimate(module, bindings))
        table = kernel_table("cuda")
        refused = [table.refusal(node, module.model.opset_imports) is not None for node in self.nodes]
        holds = [next(walk.subgraphs(node), None) is not None for node in self.nodes]
        self._stuck = [no or graphs for no, graphs in zip(refused, holds, strict=True)]
        self._profile = device.profile
        self._values = list(self._crossing(module))

    def least(self, seconds: float | None = None) -> Split | None:
        """The placement with the least predicted energy, among those found within `seconds`; None if none is."""
        best = self._at(0.0)
        if seconds is None or best.seconds <= seconds:
            return best
        fastest = self._at(math.inf)
        if fastest.seconds > seconds:
            return None
        low, high, found = 0.0, 1e6, fastest
        for _ in range(STEPS):
            price = math.sqrt(max(low, 1e-6) * high)
            tried = self._at(price)
            low, high, found = (low, price, tried) if tried.seconds <= seconds else (price, high, found)
        return found

    def everywhere(self, device: bool) -> Split:
        """All nodes on one side; those without a kernel stay on the host."""
        return self._told([device and not stuck for stuck in self._stuck])

    def _at(self, price: float) -> Split:
        home = len(self.nodes)  # stands for the caller, who fetches outputs on the host
        on_host = [*(cost.at(price) for cost in self._host), 0.0]
        stuck = [*self._stuck, True]
        device = [*(cost.at(price) for cost in self._device), 0.0]
        on_device = [math.inf if no else cost for no, cost in zip(stuck, device, strict=True)]
        priced = [(one, self._copy(one.size).at(price)) for one in self._values]
        readers = [(*one.readers, home) if one.fetched else one.readers for one, _ in priced]
        values = [Crossing(one.maker, who, cost, cost) for (one, cost), who in zip(priced, readers, strict=True)]
        return self._told(cheapest(on_host, on_device, values)[:-1])

    def _told(self, sides: Sequence[bool]) -> Split:
        spent = [d if side else h for side, h, d in zip(sides, self._host, self._device, strict=True)]
        copied = [self._copy(one.size) for one in self._values if one.crosses(sides)]
        every = [*spent, *copied]
        host = tuple(node.name or node.op_type for node, side in zip(self.nodes, sides, strict=True) if not side)
        joules, seconds = sum(one.joules for one in every), sum(one.seconds for one in every)
        return Split(host, len(self.nodes), joules, seconds, len(copied))

    def _crossing(self, module: Module) -> Iterator[_Value]:
        """Every value that may cross."""
        for value in (*module.inputs(), *(value for node in self.nodes for value in node.outputs)):
            maker = value.producer()
            users = (self._number.get(id(use.node)) for use in value.uses())
            readers = tuple(dict.fromkeys(user for user in users if user is not None))
            made = None if maker is None else self._number[id(maker)]
            if readers or value.is_graph_output():
                yield _Value(made, readers, value.is_graph_output(), self._bytes(value))

    def _bytes(self, value: ir.Value) -> int:
        dims = bound_shape(value, self._sizes) or ()
        width = 4 if value.dtype is None else max(1, value.dtype.bitwidth // 8)
        return width * math.prod(1 if dim is None else dim for dim in dims)

    def _copy(self, size: int) -> _Cost:
        return _Cost(copy_joules(size, self._profile), COPY_SECONDS + size / LINK_BYTES_PER_SECOND)

    def _costs(self, estimate: Estimate) -> list[_Cost]:
        found = {one.name: _Cost(one.energy.joules or 0.0, one.seconds or 0.0) for one in estimate.nodes}
        return [found.get(_name(node), _Cost(0.0, 0.0)) for node in self.nodes]


def _name(node: ir.Node) -> str:
    return node.name or next((str(value.name) for value in node.outputs if value.name), node.op_type)


def annotated(module: Module, split: Split) -> Module:
    """A copy whose nodes say where they belong, as ONNX Runtime reads it."""
    copy, host = module.clone(), set(split.host)
    for node in copy.graph:
        if (node.name or node.op_type) in host:
            node.metadata_props[ANNOTATION] = HOST
    return copy


def named(module: Module) -> Module:
    """A copy in which every node of the main graph has a name of its own."""
    copy = module.clone()
    taken: set[str] = set()
    for index, node in enumerate(copy.graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)
    return copy


Placements = Mapping[str, Split]
"""`cpu`, `gpu` and `split`: all on the host, all on the device, and the best of both."""
