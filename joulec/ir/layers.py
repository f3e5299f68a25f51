"""Which layer of the source model a node belongs to, as a path: `encoder/layer.0/attention/MatMul`."""

from __future__ import annotations

import ast

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.provenance import sources_of

TORCH_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata that PyTorch's exporter writes: a list of the modules around a node, each with its full dotted name."""

MAX_SCOPES = 1 << 16
"""Characters of that metadata read; files are not trusted."""


def layers(module: Module, source: Module) -> dict[str, str]:
    """For each node whose layer is not told by its own name: the path of the source model's node it was made from.

    Args:
        module: whose nodes are asked for; they go by their names, or by their first outputs' where they have none.
        source: the model that joulec was given.
    """
    known = {node.name or "": _path(node) for node in walk.nodes(source.model)}
    found: dict[str, str] = {}
    for node in walk.nodes(module.model):
        name, origin = _name(node), sources_of(node)[0]
        path = known.get(origin, origin)
        if path != name:
            found[name] = path
    return found


def _name(node: ir.Node) -> str:
    return node.name or next((str(value.name) for value in node.outputs if value.name), node.op_type)


def _path(node: ir.Node) -> str:
    """Its name; behind the names of the modules that it is in, where PyTorch's exporter says them."""
    modules = _modules(node.metadata_props.get(TORCH_SCOPES, ""))
    return "/".join([*modules, node.name or ""])


def _modules(recorded: str) -> list[str]:
    """`['', 'encoder', 'encoder.layer', 'matmul']` as `encoder`, `layer`: the last entry is the node itself."""
    if not recorded or len(recorded) > MAX_SCOPES:
        return []
    try:
        scopes = ast.literal_eval(recorded)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    named = [scope for scope in scopes if isinstance(scope, str) and scope] if isinstance(scopes, list) else []
    return named[-2].split(".") if len(named) > 1 else []
