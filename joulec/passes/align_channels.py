"""align-channels: images get a number of channels that the runtime's blocked layout holds without a rest."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, sole_consumer
from joulec.passes.base import Context, Pass, PassResult, option


@dataclass(frozen=True)
class AlignChannels(Pass):
    """Pad the channels of images between convolutions with zeros, up to a multiple of the runtime's block.

    ONNX Runtime computes convolutions in blocks of 8 or 16 channels, by processor, and pads to whole blocks anyhow. But
    it leaves that layout, and comes back to it, around poolings and products whose channels do not fill their blocks.
    Whether that pays depends on the processor: `optimize` tries it for the CPU, last, and keeps it where it is faster.
    """

    block: int = option(16, "channels per block: 16 with AVX-512, 8 without")
    most: float = option(1.0, "leave channels alone that would grow by more than this share")

    def run(self, module: Module, context: Context) -> PassResult:
        """One sweep to find images that must agree in their channels, one to pad. O(nodes + weights)."""
        if self.block < 2 or self.most < 0:
            return PassResult.nothing("block must be 2 at least, and most not negative")
        rewriter = Rewriter(module, self.pass_name())
        for group in _groups(module):
            if not group.frozen and 0 < (extra := -group.channels % self.block) <= self.most * group.channels:
                with rewriter.rewriting("align-channels", *group.nodes):
                    _pad(group, extra, rewriter)
        return PassResult.of(rewriter)


UNARY = frozenset(
    "Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish Relu Selu Sigmoid Softplus Softsign Tanh".split()
)
POOLS = frozenset("AveragePool GlobalAveragePool GlobalMaxPool MaxPool".split())
SUMS = frozenset("Add Mul Sub Sum".split())
"""Operators that make finite numbers of the zeros in padded channels, whatever their constants."""


@dataclass
class _Group:
    """Values whose channels must be padded together.

    Attributes:
        channels: how many each has.
        values: all of them.
        makers: convolutions whose output channels they are; depthwise ones too.
        readers: convolutions that sum over them.
        heads: Reshapes and Flattens of images of one pixel, in front of a matrix product.
        nodes: every operator that touches them.
        frozen: whether somebody looks at the channels in another way.
    """

    channels: int
    values: list[ir.Value] = field(default_factory=list)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    heads: list[ir.Node] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    frozen: bool = False


def _groups(module: Module) -> list[_Group]:
    """Groups of images of the main graph that must have the same channels, in graph order."""
    images = {id(v): v for node in module.graph for v in node.outputs if _channels(v) is not None}
    joined = nx.Graph()
    joined.add_nodes_from(images)
    for node in module.graph:
        if _keeps_channels(node):
            ends = [id(v) for v in (*node.inputs, *node.outputs) if v is not None and id(v) in images]
            nx.add_path(joined, ends)
    order = {key: index for index, key in enumerate(images)}
    members = (sorted(component, key=order.__getitem__) for component in nx.connected_components(joined))
    return [_described([images[key] for key in keys], module) for keys in sorted(members, key=lambda k: order[k[0]])]


def _channels(value: ir.Value) -> int | None:
    """Channels of a float image; None for anything else."""
    if value.dtype is not ir.DataType.FLOAT or value.shape is None or len(value.shape) != 4:
        return None
    return value.shape[1] if isinstance(value.shape[1], int) else None


def _weight(node: ir.Node) -> Array | None:
    """The weight of a Conv that may be rewritten: stored, float and its own, the bias too; else None."""
    if not walk.is_onnx(node, "Conv"):
        return None
    fixed = [value for value in node.inputs[1:] if value is not None]
    if any(constant_tensor(value) is None or len(value.uses()) > 1 for value in fixed):
        return None
    return constant(node.inputs[1])


def _is_dense(node: ir.Node) -> bool:
    return attribute(node, "group", 1) == 1 and _weight(node) is not None


def _is_depthwise(node: ir.Node) -> bool:
    weight = _weight(node)
    return weight is not None and weight.shape[1] == 1 and weight.shape[0] == attribute(node, "group", 1) > 1


def _keeps_channels(node: ir.Node) -> bool:
    """Whether `node` treats every channel by itself, and makes finite numbers of channels of zeros."""
    if not walk.is_onnx(node) or len(node.outputs) != 1:
        return False
    return node.op_type in UNARY | POOLS | SUMS or (node.op_type == "Conv" and _is_depthwise(node))


def _described(values: list[ir.Value], module: Module) -> _Group:
    group = _Group(_channels(values[0]) or 0, values)
    seen: dict[ir.Node, None] = {}
    for value in values:
        group.frozen |= value.is_graph_output() or _channels(value) != group.channels
        maker = value.producer()
        if maker is not None and not _keeps_channels(maker):
            group.frozen |= not _is_dense(maker)
        readers = [usage.node for usage in value.uses() if not _fits(usage.node, usage.idx, module)]
        group.frozen |= bool(readers)
        seen.update(dict.fromkeys(([] if maker is None else [maker]) + [usage.node for usage in value.uses()]))
    members = {id(value) for value in values}
    for node in seen:
        group.nodes.append(node)
        _assign(node, members, group, module)
    return group


def _fits(node: ir.Node, index: int, module: Module) -> bool:
    """Whether a reader in the main graph takes padded channels at this input."""
    if node.graph is not module.graph or (index != 0 and node.op_type not in SUMS):
        return False
    return _keeps_channels(node) or _is_dense(node) or _product_behind(node) is not None


def _product_behind(head: ir.Node) -> ir.Node | None:
    """The Gemm or MatMul with a weight of its own that reads what `head` makes of n x c x 1 x 1 in n x c; else None."""
    x, product = head.inputs[0] if head.inputs else None, sole_consumer(head.outputs[0]) if head.outputs else None
    if x is None or x.shape is None or product is None or tuple(x.shape[2:]) != (1, 1):
        return None
    if walk.is_onnx(head, "Flatten"):
        flat = attribute(head, "axis", 1) == 1
    else:
        target = constant(input_at(head, 1)) if walk.is_onnx(head, "Reshape") else None
        flat = (
            target is not None
            and target.size == 2
            and int(target[1]) == x.shape[1]
            and "allowzero" not in head.attributes
        )
    if not flat or not walk.is_onnx(product, "Gemm", "MatMul") or product.inputs[0] is not head.outputs[0]:
        return None
    weight = constant_tensor(product.inputs[1])
    alone = product.inputs[1] is not None and len(product.inputs[1].uses()) == 1
    return (
        product
        if weight is not None and alone and len(weight.shape) == 2 and not attribute(product, "transA", 0)
        else None
    )


def _assign(node: ir.Node, members: set[int], group: _Group, module: Module) -> None:
    """Say what must change in `node`; freeze the group where an operand does not belong to it."""
    if walk.is_onnx(node, "Conv"):
        if id(node.outputs[0]) in members:
            group.makers.append(node)
        if node.inputs[0] is not None and id(node.inputs[0]) in members and not _keeps_channels(node):
            group.readers.append(node)
        group.frozen |= _is_masked(node, module)
    elif node.op_type in SUMS:
        group.frozen |= "axis" in node.attributes or "broadcast" in node.attributes
        for value in node.inputs:
            tensor = constant_tensor(value)
            whole = value is not None and id(value) in members
            group.frozen |= not (whole or (tensor is not None and tensor.size == 1 and len(tensor.shape) <= 4))
    elif (product := _product_behind(node)) is not None:
        group.heads.append(node)
        group.frozen |= _is_masked(product, module)
    else:
        group.frozen |= node.inputs[0] is None or id(node.inputs[0]) not in members


def _is_masked(node: ir.Node, module: Module) -> bool:
    return any(value is not None and value.name in module.masks for value in node.inputs[1:])


def _pad(group: _Group, extra: int, rewriter: Rewriter) -> None:
    for node in group.makers:
        if _keeps_channels(node):
            rewriter.set_attribute(node, "group", group.channels + extra)
        _widen(node, 1, 0, extra, rewriter)
        if input_at(node, 2) is not None:
            _widen(node, 2, 0, extra, rewriter)
    for node in group.readers:
        _widen(node, 1, 1, extra, rewriter)
    for head in group.heads:
        _widen_head(head, group.channels + extra, extra, rewriter)
    for value in group.values:
        if value.shape is not None:
            value.shape = ir.Shape([group.channels + extra if axis == 1 else d for axis, d in enumerate(value.shape)])


def _widen(node: ir.Node, index: int, axis: int, extra: int, rewriter: Rewriter) -> None:
    """Append zeros to a constant of a Conv along one axis."""
    value = node.inputs[index]
    numbers = constant(value)
    if value is None or numbers is None:
        return
    widths = [(0, extra if one == axis else 0) for one in range(numbers.ndim)]
    wider = np.pad(numbers, widths)
    rewriter.set_input(node, index, rewriter.constant(wider, f"{value.name}_aligned", at=node))


def _widen_head(head: ir.Node, channels: int, extra: int, rewriter: Rewriter) -> None:
    """Let a Reshape and the product behind it take `channels` columns, the last of them times zero."""
    product, output = _product_behind(head), head.outputs[0]
    if product is None:
        return
    target = constant(input_at(head, 1))
    if target is not None:
        wider = np.array([target[0], channels], np.int64)
        rewriter.set_input(head, 1, rewriter.constant(wider, f"{head.name or 'head'}_aligned", at=head))
    if output.shape is not None:
        output.shape = ir.Shape([output.shape[0], channels])
    _widen(product, 1, 1 if attribute(product, "transB", 0) else 0, extra, rewriter)
