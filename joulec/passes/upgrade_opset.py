"""upgrade-opset: raise the standard operator set, rewriting every node whose meaning or form changed on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refusal, Refused, Rewriter
from joulec.ir.shapes import infer_shapes
from joulec.passes.base import Context, Pass, PassResult, option
from joulec.passes.opset_adapters import ADAPTERS, NEWEST, OLDEST, Step

_ADAPTED = frozenset(op for op, _ in ADAPTERS)


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """Raise the opset to the target's, or to `to`; never lower it. One node that cannot follow stops it all."""

    indivisible: ClassVar[bool] = True

    to: int | None = option(None, "the opset to reach; the target's if left out")

    def run(self, module: Module, context: Context) -> PassResult:
        """Tried on a copy first, so that a refusal half-way leaves nothing half-done. O(versions x nodes)."""
        to = context.target.opset if self.to is None else self.to
        if (note := _nothing_to_do(module, to)) is not None:
            return PassResult.nothing(note)
        infer_shapes(module)
        try:
            _upgrade(Rewriter(module.clone(), self.pass_name()), to)
        except _Stopped as stop:
            note = f"opset stays {module.opset}: {stop.node}: {stop.reason}"
            return PassResult(refusals=(Refusal("upgrade", stop.node, stop.reason),), notes=(note,))
        rewriter, before = Rewriter(module, self.pass_name()), module.opset
        _upgrade(rewriter, to)
        return PassResult.of(rewriter, [f"opset {before} became {to}"])


class _Stopped(Exception):
    """A node cannot follow to the next opset."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


def _nothing_to_do(module: Module, to: int) -> str | None:
    versions = [version for _, version in _roots(module)]
    if all(version == to for version in versions):
        return f"the model has opset {to} already"
    if max(versions) > to:
        return f"the model has opset {max(versions)}, which is not lowered to {to}"
    if min(versions) < OLDEST or to > NEWEST:
        return f"from opset {min(versions)} to {to}: only {OLDEST} to {NEWEST} are known"
    return None


def _roots(module: Module) -> list[tuple[ir.Graph, int]]:
    """The main graph and every function body that imports the standard operators, each with its version."""
    roots = [(module.graph, module.opset)]
    for function in module.model.functions.values():
        imports = function.opset_imports
        version = imports.get("", imports.get("ai.onnx"))
        if version is not None:
            roots.append((function.graph, version))
    return roots


def _upgrade(rewriter: Rewriter, to: int) -> None:
    module = rewriter.module
    for root, version in _roots(module):
        for step in range(version + 1, to + 1):
            for graph in [root, *root.subgraphs()]:
                _adapt(graph, step, Step(rewriter, to))
    with rewriter.rewriting("opset"):
        rewriter.set_opset(to)
        least = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", to)], ignore_unknown=True)
        module.model.ir_version = max(module.model.ir_version, int(least))


def _adapt(graph: ir.Graph, version: int, step: Step) -> None:
    for node in list(graph):
        if node.op_type not in _ADAPTED or not walk.is_onnx(node):
            continue
        adapter = ADAPTERS.get((node.op_type, version))
        if adapter is None:
            continue
        refused: Refused | None = None
        with step.rewriter.rewriting(f"to-{version}", node):
            try:
                adapter(node, step)
            except Refused as reason:
                refused = reason
        if refused is not None:
            raise _Stopped(walk.label(node), str(refused))
