"""Patterns by which a user names operators: a node's name, a name it had in the source model, a value, or a type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.provenance import sources_of


def names_of(node: ir.Node) -> tuple[str, ...]:
    """All that a pattern may name `node` by: its name, its type, the values it makes, and what it was made from."""
    made = (value.name or "" for value in node.outputs)
    return (node.name or "", node.op_type, *made, *sources_of(node))


def first_match(node: ir.Node, patterns: Sequence[str]) -> str | None:
    """The first of `patterns` (`*` and `?` as in file names) that names `node`, or None."""
    if not patterns:
        return None
    names = [name for name in names_of(node) if name]
    return next((pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names)), None)


def literal(name: str) -> str:
    """The pattern that names `name`; characters with a meaning in patterns and lists of them stand for any other."""
    return "".join("?" if char in "*?[];=" else char for char in name)


def unmatched(model: ir.Model, patterns: Iterable[str]) -> list[str]:
    """Those of `patterns` that name no operator anywhere in `model`; a typing error, mostly."""
    left = list(dict.fromkeys(patterns))
    for node in walk.nodes(model):
        if not left:
            break
        left = [pattern for pattern in left if first_match(node, (pattern,)) is None]
    return left
