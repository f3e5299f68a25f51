"""The rule that replaces an If whose condition is known by the branch that is taken; used by fold-constants."""

from __future__ import annotations

import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import constant


class InlineIf(Rule):
    """If(constant) -> the nodes of the branch that is taken."""

    ops = ("If",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        condition = constant(node.inputs[0])
        if condition is None or condition.size != 1:
            return
        attribute = node.attributes.get("then_branch" if bool(condition.ravel()[0]) else "else_branch")
        if attribute is None or attribute.is_ref():
            return
        branch = attribute.as_graph()
        if rewriter.in_function(node) and branch.initializers:
            raise Refused("the branch holds initializers, which a function cannot")
        for output, result in zip(node.outputs, branch.outputs, strict=True):
            fixed = result.graph is not branch or result.is_initializer() or result.producer() is None
            if output.is_graph_output() and fixed:
                raise Refused(f"'{output.name}' is a graph output and the branch does not compute it")
        if len({id(result) for result in branch.outputs}) != len(branch.outputs):
            raise Refused("the branch returns one value twice")
        results = list(branch.outputs)
        rewriter.splice(branch, before=node)
        for output, result in zip(node.outputs, results, strict=True):
            if output.is_graph_output() or output.uses():
                rewriter.replace(output, result)
        rewriter.erase(node)
