"""eliminate-common-subexpressions: compute the same thing once, store the same numbers once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes.base import Context, Pass, PassResult

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)
"""Operators of which two equal ones need not return the same."""

LARGE = 1 << 20
"""External tensors beyond this are compared by their place in the file, not by reading them."""


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge nodes with the same operator, attributes and inputs, and initializers with the same numbers.

    Inside branches and loop bodies too, with what the graphs around them compute; what both branches of an If compute
    moves in front of it.
    """

    def run(self, module: Module, context: Context) -> PassResult:
        """One sweep in graph order with a hash table: O(nodes + bytes of initializers that share a size)."""
        rewriter = Rewriter(module, self.pass_name())
        _merge_initializers(module, rewriter)
        for root in [module.graph, *(function.graph for function in module.model.functions.values())]:
            _merge_nodes(root, {}, rewriter)
        return PassResult.of(rewriter)


def _merge_initializers(module: Module, rewriter: Rewriter) -> None:
    """Those of the main graph, and of the graphs inside: equal ones of two of these are stored around them."""
    graphs = list(walk.graphs_within(module.graph))
    values = [v for one in graphs for v in one.initializers.values() if v.const_value is not None]
    values = [value for value in values if not value.is_graph_input()]
    sizes = Counter(map(_size_key, values))
    groups: dict[Hashable, list[ir.Value]] = {}
    for value in values:
        if sizes[_size_key(value)] > 1 and not value.is_graph_output():
            key = (_size_key(value), _content_key(value), _mask_key(module, value))
            groups.setdefault(key, []).append(value)
    for equal in groups.values():
        _merge_equal(module, equal, rewriter)


def _merge_equal(module: Module, equal: list[ir.Value], rewriter: Rewriter) -> None:
    """One of them for all; in the main graph where several graphs hold one."""
    home = equal[0]
    if any(value.graph is not home.graph for value in equal) and home.graph is not module.graph:
        with rewriter.rewriting("lift-initializer"):
            tensor, anchor = home.const_value, next(iter(module.graph))
            home = home if tensor is None else rewriter.constant(tensor, home.name or "shared", at=anchor, follows=home)
    for value in equal:
        if value is not home and value.graph is not None and value.name is not None:
            with rewriter.rewriting("same-initializer"):
                graph = value.graph
                rewriter.replace(value, home)
                rewriter.erase_initializer(graph, value.name)


def _size_key(value: ir.Value) -> Hashable:
    tensor = value.const_value
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape.numpy()))


def _content_key(value: ir.Value) -> Hashable:
    tensor = value.const_value
    if tensor is None:
        return id(value)
    if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > LARGE:
        return (str(tensor.path), tensor.offset, tensor.length)
    if tensor.dtype == ir.DataType.STRING:
        return tuple(bytes(item) for item in tensor.numpy().ravel())
    return hashlib.sha256(tensor.tobytes()).digest()


def _mask_key(module: Module, value: ir.Value) -> Hashable:
    mask = module.masks.get(value.name or "")
    return None if mask is None else mask.tobytes()


def _merge_nodes(graph: ir.Graph, outer: Mapping[Hashable, ir.Node], rewriter: Rewriter) -> None:
    seen: dict[Hashable, ir.Node] = {}
    for node in list(graph):
        if (key := _key(node)) is not None:
            first = seen.get(key) or outer.get(key)
            if first is None:
                seen[key] = node
            elif _mergeable(node, first, rewriter):
                with rewriter.rewriting("same-node", first, node):
                    for output, kept in zip(node.outputs, first.outputs, strict=True):
                        rewriter.replace(output, kept)
                    rewriter.erase(node)
                continue
        for inner in walk.subgraphs(node):
            _merge_nodes(inner, _Chain(seen, outer), rewriter)
        if walk.is_onnx(node, "If"):
            _hoist(node, rewriter)


def _hoist(decision: ir.Node, rewriter: Rewriter) -> None:
    """What both branches of an If compute is computed in front of it, once in the file. O(nodes + edges)."""
    branches = list(walk.subgraphs(decision))
    if len(branches) != 2:
        return
    ours, theirs = branches
    twins = {key: node for node in theirs if (key := _free_key(node)) is not None}
    for node in list(ours):
        twin = twins.get(_free_key(node))
        if twin is None or twin.graph is not theirs or not _movable(node, twin):
            continue
        with rewriter.rewriting("both-branches", node, twin):
            made = rewriter.add(
                node.op_type, list(node.inputs), dict(node.attributes), before=decision, domain=node.domain,
                outputs=len(node.outputs), name=node.name,
            )  # fmt: skip
            readers = [usage.node for output in twin.outputs for usage in output.uses()]
            for one in (node, twin):
                for old, new in zip(one.outputs, made, strict=True):
                    new.type, new.shape = old.type, old.shape
                    rewriter.replace(old, new)
                rewriter.erase(one)
        twins.update({key: reader for reader in readers if (key := _free_key(reader)) is not None})


def _free_key(node: ir.Node) -> Hashable | None:
    """The key of a node that reads nothing of its own graph; None for others."""
    bound = any(value is not None and value.graph is node.graph for value in node.inputs)
    return None if bound or node.graph is None else _key(node)


def _movable(node: ir.Node, twin: ir.Node) -> bool:
    outputs = [*node.outputs, *twin.outputs]
    return all(output.name and not output.is_graph_output() for output in outputs)


class _Chain(Mapping[Hashable, ir.Node]):
    """Nodes of this graph before the subgraph, then of the graphs around it; a view, so that nesting costs nothing."""

    def __init__(self, inner: Mapping[Hashable, ir.Node], outer: Mapping[Hashable, ir.Node]) -> None:
        self._maps = (inner, outer)

    def __getitem__(self, key: Hashable) -> ir.Node:
        for one in self._maps:
            if key in one:
                return one[key]
        raise KeyError(key)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(dict.fromkeys(key for one in self._maps for key in one))

    def __len__(self) -> int:
        return len({key for one in self._maps for key in one})


def _mergeable(node: ir.Node, first: ir.Node, rewriter: Rewriter) -> bool:
    pairs = list(zip(node.outputs, first.outputs, strict=False))
    return len(node.outputs) == len(first.outputs) and all(rewriter.can_replace(old, new) for old, new in pairs)


def _key(node: ir.Node) -> Hashable | None:
    """What makes two nodes compute the same, or None for nodes that are never merged."""
    if not walk.is_onnx(node) or node.op_type in RANDOM or next(iter(walk.subgraphs(node)), None) is not None:
        return None
    attributes = []
    for name in sorted(node.attributes):
        found = _attribute_key(node.attributes[name])
        if found is None:
            return None
        attributes.append((name, found))
    present = tuple(bool(output.name) for output in node.outputs)
    inputs = tuple(None if value is None else id(value) for value in node.inputs)
    return (node.op_type, node.overload, tuple(attributes), inputs, present)


def _attribute_key(attribute: ir.Attr) -> Hashable | None:
    if attribute.is_ref():
        return ("ref", attribute.ref_attr_name)
    value = attribute.value
    match attribute.type:
        case ir.AttributeType.FLOAT:
            return ("float", float(value).hex())
        case ir.AttributeType.FLOATS:
            return ("floats", tuple(float(item).hex() for item in value))
        case ir.AttributeType.INT | ir.AttributeType.STRING:
            return (attribute.type, value)
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return (attribute.type, tuple(value))
        case ir.AttributeType.TENSOR if value.dtype != ir.DataType.STRING and value.nbytes <= LARGE:
            return (value.dtype, tuple(value.shape.numpy()), value.tobytes())
        case _:
            return None
