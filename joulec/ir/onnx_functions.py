"""Functions that a model file brings along: they may neither recurse nor multiply without bound when inlined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx

from joulec.errors import InputError
from joulec.ir.walk import ONNX_DOMAINS

MAX_INLINED = 1 << 20
"""Nodes that a model may have once all functions are inlined, as shape inference and every runtime do. A few hundred
bytes of functions that each call the next one twice ask for any number."""

Key = tuple[str, str, str]
"""Domain, name and overload: what a node refers to a function by."""


def check_functions(proto: onnx.ModelProto, name: str) -> None:
    """Check the functions of `proto`. O(nodes).

    Args:
        proto: the model; its graphs are known to be nested no deeper than the limit.
        name: what messages call it.

    Raises:
        InputError: a function that redefines a standard operator, is defined twice, calls itself, directly or through
            others, or a model of more than `MAX_INLINED` nodes when its functions are inlined.
    """
    bodies = _bodies(proto, name)
    if not bodies:
        return
    sizes: dict[Key, int] = {}
    for key in bodies:
        _measure(key, bodies, sizes, name)
    total = _inlined(_calls(proto.graph.node), sizes)
    if total > MAX_INLINED:
        raise InputError(f"{name}: inlining its functions would make {total:.3g} nodes; the limit is {MAX_INLINED:,}")


def _bodies(proto: onnx.ModelProto, name: str) -> dict[Key, Counter[Key]]:
    """What each function calls, and how often."""
    found: dict[Key, Counter[Key]] = {}
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if function.domain in ONNX_DOMAINS:
            raise InputError(f"{name}: function '{function.name}' redefines operators of the ONNX domain")
        if key in found:
            raise InputError(f"{name}: function {_spelled(key)} is defined twice")
        found[key] = _calls(function.node)
    return found


def _calls(nodes: Iterable[onnx.NodeProto]) -> Counter[Key]:
    return Counter((node.domain, node.op_type, node.overload) for node in _all_nodes(nodes))


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending += graph.node


def _measure(start: Key, bodies: Mapping[Key, Counter[Key]], sizes: dict[Key, int], name: str) -> None:
    """Put the number of nodes of `start`, and of all that it calls, into `sizes`; with a stack, as chains are long."""
    stack, open_keys = [start], set[Key]()
    while stack:
        key = stack[-1]
        if key in sizes:
            stack.pop()
            continue
        missing = [callee for callee in bodies[key] if callee in bodies and callee not in sizes]
        if not missing:
            sizes[key] = _inlined(bodies[key], sizes)
            open_keys.discard(key)
            continue
        open_keys.add(key)
        for callee in missing:
            if callee in open_keys:
                raise InputError(f"{name}: function {_spelled(callee)} calls itself")
        stack += missing


def _inlined(calls: Counter[Key], sizes: Mapping[Key, int]) -> int:
    return sum(count * sizes.get(key, 1) for key, count in calls.items())


def _spelled(key: Key) -> str:
    return f"'{'::'.join(part for part in key if part)}'"
