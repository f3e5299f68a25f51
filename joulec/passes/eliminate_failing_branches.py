"""eliminate-failing-branches: an If of which one branch can only fail takes the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import apply_rules
from joulec.ir.shapes import contradiction, infer_shapes
from joulec.ir.values import attribute, constant, rank
from joulec.passes.base import Context, Pass, PassResult, option
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.inline_if import InlineIf

BRANCHES = ("then_branch", "else_branch")


@dataclass(frozen=True)
class EliminateFailingBranches(Pass):
    """Replace an If by one branch where the other one leads to a rank that some operator does not take.

    Exporters write `squeeze` as an If on the size of the dimension. Where what follows takes one rank only, the other
    branch is a run that fails; on every run that succeeds the If is the branch that is left.
    """

    tries: int = option(8, "Ifs that are tried; each costs up to two foldings of the whole model")

    def run(self, module: Module, context: Context) -> PassResult:
        """Suppose one branch on a copy, fold what that decides, and see whether shape inference finds it impossible."""
        rewriter, left = Rewriter(module, self.pass_name()), self.tries
        infer_shapes(module)
        if _next(module, set()) is None or contradiction(module) is not None:
            return PassResult.of(rewriter)
        tried: set[str] = set()
        while left > 0 and (position := _next(module, tried)) is not None:
            left -= 1
            node = _at(module, position)
            tried.add(node.outputs[0].name or "")
            for taken, other in ((True, False), (False, True)):
                if _fails(module, position, other, context):
                    _take(rewriter, node, taken)
                    infer_shapes(module)
                    break
        if not rewriter.rewrites:
            return PassResult.of(rewriter)
        folded = FoldConstants().run(module, context)  # with the rank known, much of what asked for it is
        return PassResult((*rewriter.rewrites, *folded.rewrites), (*rewriter.refusals.values(), *folded.refusals))


def _next(module: Module, tried: set[str]) -> int | None:
    """The position, in walking order, of the first If not yet tried whose branches return different ranks."""
    every = enumerate(walk.nodes(module.model))
    return next((p for p, node in every if _differs(node) and node.outputs[0].name not in tried), None)


def _at(module: Module, position: int) -> ir.Node:
    return next(node for index, node in enumerate(walk.nodes(module.model)) if index == position)


def _differs(node: ir.Node) -> bool:
    if not walk.is_onnx(node, "If") or constant(node.inputs[0]) is not None:
        return False
    branches = [attribute(node, name, None) for name in BRANCHES if name in node.attributes]
    if len(branches) != 2 or any(not isinstance(branch, ir.Graph) for branch in branches):
        return False
    pairs = zip(branches[0].outputs, branches[1].outputs, strict=False)
    ranks = [(rank(one), rank(other)) for one, other in pairs]
    return any(None not in pair and pair[0] != pair[1] for pair in ranks)


def _fails(module: Module, position: int, branch: bool, context: Context) -> bool:
    """Whether no run can succeed in which the If at `position` takes `branch`."""
    supposed = module.clone()
    rewriter = Rewriter(supposed, "suppose")
    _take(rewriter, _at(supposed, position), branch)
    FoldConstants().run(supposed, context)
    return contradiction(supposed) is not None


def _take(rewriter: Rewriter, node: ir.Node, branch: bool) -> None:
    """Inline one branch of `node`."""
    name = "then" if branch else "else"
    with rewriter.rewriting(f"only-{name}-can-run", node):
        rewriter.set_input(node, 0, rewriter.constant(np.array(branch), f"{node.name or 'if'}_taken", at=node))
    apply_rules(rewriter, [InlineIf()])
