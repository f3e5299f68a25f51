"""Which nodes a provider leaves to the CPU, and which values are copied between the two, forecast without a session.

Follows what ONNX Runtime does when it partitions a graph: a node goes to the provider if there is a kernel for it;
sizes (what Shape and Size compute) live on the host, and integer arithmetic on nothing but sizes and constants stays
there. `make test-gpu-evidence` compares the forecast with ONNX Runtime's own partitioning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from joulec.energy import DeviceProfile
from joulec.ir import walk
from joulec.ir.kernel_table import KernelTable, element_type
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import bound_shape, constant_tensor

HOST_OUTPUTS = frozenset({"Shape", "Size"})
"""CUDA kernels whose result lies in host memory."""

HOST_INPUTS: Mapping[str, frozenset[int]] = {
    op: frozenset(places)
    for op, places in {
        "Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Tile": (1,), "Unsqueeze": (1,),
        "Squeeze": (1,), "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
        "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,), "ReduceLogSum": (1,),
        "ReduceLogSumExp": (1,), "TopK": (1,), "Range": (0, 1, 2), "ConstantOfShape": (0,), "Resize": (1, 2, 3),
        "Upsample": (1,), "OneHot": (1, 2), "If": (0,), "Loop": (0, 1), "CumSum": (1,), "Split": (1,), "Clip": (1, 2),
        "Trilu": (1,), "Shape": (0,), "Size": (0,),
    }.items()
}  # fmt: skip
"""Inputs that the CUDA kernels read in host memory; Shape and Size read none of the numbers, wherever they lie."""

_FLOATS = frozenset({"float", "float16", "double", "bfloat16"})
_EITHER = frozenset({"Shape", "Size"})

ELEMENT_BYTES = 4


LINK_JOULES_PER_BYTE = 80e-12
"""PCI Express, both ends and their memory: an estimate of 10 pJ/bit, good to a factor of three."""

LINK_BYTES_PER_SECOND = 25e9
"""What a copy over sixteen lanes of the fourth generation reaches."""

COPY_SECONDS = 10e-6
"""Launch and synchronization of one copy, during which the device waits: an estimate."""


def copy_joules(size: int, profile: DeviceProfile) -> float:
    """Joules of one copy of `size` bytes between host and device: the link, and a device that waits meanwhile."""
    seconds = COPY_SECONDS + size / LINK_BYTES_PER_SECOND
    return size * LINK_JOULES_PER_BYTE + seconds * profile.power["static"].value


@dataclass(frozen=True)
class Fallback:
    """A node that the CPU computes, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Copy:
    """A value that crosses between host and device; `size` in bytes, None where its shape is not known."""

    value: str
    to_device: bool
    size: int | None


@dataclass(frozen=True)
class Placement:
    """The forecast for one module.

    Attributes:
        provider: whose kernels were looked up.
        nodes: how many nodes there are, Constants left out.
        fallbacks: those that the CPU computes.
        copies: values that cross inside the graph; what callers feed and fetch is not among them.
    """

    provider: str
    nodes: int
    fallbacks: tuple[Fallback, ...]
    copies: tuple[Copy, ...]

    def copy_joules(self, profile: DeviceProfile) -> float:
        """Joules a run that the copies cost; those of unknown size count their latency only."""
        return sum(copy_joules(copy.size or 0, profile) for copy in self.copies)

    def said(self) -> str:
        """One line for the ladder of evidence."""
        if not self.fallbacks:
            return f"all {self.nodes} nodes have a {self.provider} kernel, no copies between host and device"
        first = self.fallbacks[0]
        return (
            f"{len(self.fallbacks)} of {self.nodes} nodes fall back to the CPU, {len(self.copies)} copies: "
            f"{first.op_type} '{first.node}': {first.reason}"
        )


def forecast(module: Module, table: KernelTable, bindings: Mapping[str, int] | None = None) -> Placement:
    """Where each node of `module` will run. O(nodes + edges).

    Args:
        module: what is to be emitted; shapes are inferred on it.
        table: the provider's kernels.
        bindings: sizes of symbolic dimensions, for the sizes of copies.
    """
    infer_shapes(module)
    return _Forecast(module, table, bindings or {}).run()


class _Forecast:
    def __init__(self, module: Module, table: KernelTable, bindings: Mapping[str, int]) -> None:
        self.module, self.table, self.bindings = module, table, bindings
        self.functions = {(f.domain, f.name) for f in module.model.functions.values()}
        self.on_cpu: dict[int, str] = {}
        self.host_values: set[int] = set()

    def run(self) -> Placement:
        nodes = [node for node in walk.nodes(self.module.model) if not walk.is_onnx(node, "Constant")]
        for node in nodes:
            self._place(node)
        fallbacks = tuple(
            Fallback(node.name or "", node.op_type, self.on_cpu[id(node)]) for node in nodes if id(node) in self.on_cpu
        )
        copies = tuple(self._copies(nodes)) if self.table.provider != "cpu" else ()
        return Placement(self.table.provider, len(nodes), fallbacks, copies)

    def _place(self, node: ir.Node) -> None:
        if (node.domain, node.op_type) in self.functions:
            return
        reason = self.table.refusal(node, self.module.model.opset_imports)
        if reason is None and self.table.provider == "cuda" and self._counts_sizes(node):
            reason = "arithmetic on sizes, which stay on the host"
        if reason is not None:
            self.on_cpu[id(node)] = reason
        if reason is not None or (walk.is_onnx(node, *HOST_OUTPUTS) and self.table.provider == "cuda"):
            self.host_values.update(map(id, node.outputs))

    def _counts_sizes(self, node: ir.Node) -> bool:
        given = [value for value in node.inputs if value is not None]
        if not any(id(value) in self.host_values for value in given) or walk.is_onnx(node, *_EITHER):
            return False
        kinds = {element_type(value) for value in (*given, *node.outputs)}
        if kinds & _FLOATS:
            return False
        return all(id(value) in self.host_values or _is_stored(value) for value in given)

    # -- copies ---------------------------------------------------------------------------------------------

    def _copies(self, nodes: list[ir.Node]) -> Iterator[Copy]:
        for node in nodes:
            for value in node.outputs:
                made_on_host = id(value) in self.host_values
                sides = {side for usage in value.uses() if (side := self._reads(usage.node, usage.idx)) is not None}
                if (made_on_host and False in sides) or (not made_on_host and True in sides):
                    yield Copy(value.name or "", made_on_host, self._bytes(value))

    def _reads(self, node: ir.Node, index: int) -> bool | None:
        """Whether input `index` of `node` is read on the host; None where either will do."""
        if id(node) in self.on_cpu:
            return True
        if walk.is_onnx(node, *_EITHER):
            return None
        return walk.is_onnx(node) and index in HOST_INPUTS.get(node.op_type, ())

    def _bytes(self, value: ir.Value) -> int | None:
        dims = bound_shape(value, self.bindings)
        if dims is None or None in dims:
            return None
        width = ELEMENT_BYTES if value.dtype is None else max(1, math.ceil(value.dtype.bitwidth / 8))
        return width * math.prod(dim for dim in dims if dim is not None)


def _is_stored(value: ir.Value) -> bool:
    return value.is_initializer() or constant_tensor(value) is not None
