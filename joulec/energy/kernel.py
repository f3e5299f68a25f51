"""Kernel: what a runtime really executes for a node, and the state shared by the rules that find out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from joulec.energy.constants import Constants
from joulec.ir.values import sole_consumer


@dataclass(frozen=True)
class Kernel:
    """What runs for one node.

    Attributes:
        name: the kernel (`FusedConv`, `QLinearConv`), or why nothing runs (`folded at load`, `fused into Conv 'c'`).
        reads: the values it reads, parallel to the node's inputs, then those of what is fused behind it.
        writes: the values it writes: those of the last node fused behind it.
        compute: the arithmetic class it uses, where that is not its first input's (`int8` for a Q/DQ pattern).
        epilogue: nodes computed in the same kernel; their arithmetic counts here, their bytes nowhere.
        runs: whether anything happens at run time.
        formula: (domain, operator) whose work formula applies instead of the node's own.
        requantizes: whether int32 sums are scaled back to int8 at the end.
        reordered: values whose layout is changed for it, into blocks of channels or out of them.
        views: Reshapes that the runtime puts around it.
        blocked: whether what it writes is in blocks of channels.
        turned: values that are transposed for it, to channels last or back.
    """

    name: str
    reads: tuple[ir.Value | None, ...] = ()
    writes: tuple[ir.Value, ...] = ()
    compute: str | None = None
    epilogue: tuple[ir.Node, ...] = ()
    runs: bool = True
    formula: tuple[str, str] | None = None
    requantizes: bool = False
    reordered: tuple[ir.Value, ...] = ()
    views: int = 0
    blocked: bool = False
    turned: tuple[ir.Value, ...] = ()


@dataclass
class Plan:
    """The kernels found so far.

    Attributes:
        constants: what is computed at load.
        kernels: node -> kernel, for the nodes decided.
        bypassed: eliminated nodes that hand input 0 through as output 0; fusions look through them.
        integer: nodes that run as integer kernels, which swallow the DequantizeLinear in front of them.
        blocked: values in the blocked layout that convolutions hand each other on a CPU.
    """

    constants: Constants
    kernels: dict[ir.Node, Kernel] = field(default_factory=dict)
    bypassed: set[ir.Node] = field(default_factory=set)
    integer: set[ir.Node] = field(default_factory=set)
    blocked: set[ir.Value] = field(default_factory=set)
    _behind: dict[ir.Value, ir.Value | None] = field(default_factory=dict, repr=False)

    def bypass(self, node: ir.Node, why: str) -> None:
        """Nothing runs for `node`: its output is its first input."""
        self.bypassed.add(node)
        self.kernels[node] = Kernel(why, runs=False)

    def absorb(self, nodes: Iterable[ir.Node], head: ir.Node) -> None:
        """`nodes` run inside the kernel of `head`."""
        name = f"fused into {head.op_type} '{head.name}'"
        for node in nodes:
            self.kernels[node] = Kernel(name, runs=False)

    def origin(self, value: ir.Value | None) -> ir.Value | None:
        """The value behind `value` once eliminated nodes are gone.

        Nodes stay eliminated once they are, so how far a walk got is kept: chains of them cost linear time in all.
        """
        asked = value
        while value is not None and (node := value.producer()) is not None and node in self.bypassed:
            value = self._behind.get(value, node.inputs[0])
        if asked is not None and asked is not value:
            self._behind[asked] = value
        return value

    def producer(self, value: ir.Value | None) -> ir.Node | None:
        """The node that computes `value`, eliminated ones skipped."""
        source = self.origin(value)
        return None if source is None else source.producer()

    def follower(self, value: ir.Value) -> ir.Node | None:
        """The only node that uses `value`, eliminated ones skipped, unless it already has a kernel."""
        node = sole_consumer(value)
        while node is not None and node in self.bypassed:
            node = sole_consumer(node.outputs[0])
        return None if node is None or node in self.kernels else node

    def reads(self, node: ir.Node) -> tuple[ir.Value | None, ...]:
        """The inputs of `node`, eliminated nodes skipped."""
        return tuple(self.origin(value) for value in node.inputs)
