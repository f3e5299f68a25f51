"""A pass of your own, for `joulec optimize --plugin my_passes.py --passes clip-to-relu`."""

from dataclasses import dataclass

import onnx_ir as ir

import joulec
from joulec.ir.values import constant, input_at


class ClipAtZero(joulec.Rule):
    """Clip(x, 0) -> Relu(x)"""

    ops = ("Clip",)

    def apply(self, node: ir.Node, rewriter: joulec.Rewriter) -> None:
        if input_at(node, 1) is None or input_at(node, 2) is not None:
            return  # not the pattern: say nothing
        low = constant(input_at(node, 1))
        if low is None:
            raise joulec.Refused("its lower bound is computed")  # nearly the pattern: say why not
        if low.dtype.kind == "f" and low == 0:
            rewriter.drop_inputs(node, 1)
            rewriter.set_op(node, "Relu")


@dataclass(frozen=True)
class ClipToRelu(joulec.RulePass):
    """Turn a Clip with a lower bound of 0 and no upper one into Relu."""

    def rules(self, context: joulec.Context) -> list[joulec.Rule]:
        """One rule; several are tried in order at each node."""
        return [ClipAtZero()]
