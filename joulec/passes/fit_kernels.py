"""fit-kernels: an operator that the target has no kernel for becomes operators that it has kernels for."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from joulec.ir.kernel_table import KernelTable, element_type, kernel_table
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import input_at
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FitKernels(RulePass):
    """Write an operator without a kernel on the target as others that have one, instead of a way to the CPU and back.

    ONNX Runtime computes what a provider has no kernel for on the CPU, and copies what it reads and makes. The target's
    kernel table says which operators that are.
    """

    def rules(self, context: Context) -> list[Rule]:
        """One rule so far; none for a target whose kernels are not on record."""
        return [ClipAsBounds(kernel_table(context.target.name))]


class ClipAsBounds(Rule):
    """Clip(x, low, high) of integers -> Min(Max(x, low), high), where there is no kernel for the first."""

    ops = ("Clip",)

    def __init__(self, table: KernelTable) -> None:
        self._table = table

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        x, low, high = (input_at(node, index) for index in range(3))
        if x is None or x.dtype is None or not x.dtype.is_integer() or low is high is None:
            return
        imports = rewriter.module.model.opset_imports
        if rewriter.in_function(node) or self._table.refusal(node, imports) is None:
            return
        bounds = [(op, value) for op, value in (("Max", low), ("Min", high)) if value is not None]
        if any(self._table.refusal_of(op, [x, x], rewriter.module.opset) for op, _ in bounds):
            raise Refused(f"there is no kernel for {' and '.join(op for op, _ in bounds)} of {element_type(x)} either")
        made = x
        for op, bound in bounds:
            (made,) = rewriter.add(op, [made, bound], before=node, name=node.name, like=node.outputs[0])
        rewriter.replace(node.outputs[0], made)
        rewriter.erase(node)
