"""onnxsim: onnx-simplifier as an optional external pass, held to the same checks as every other pass."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from joulec.errors import CheckError, missing_extra
from joulec.ir.module import INLINE_LIMIT, Module, inline_proto
from joulec.ir.rewrite import Rewriter
from joulec.ir.shapes import first_line
from joulec.passes.base import Context, Pass, PassResult, option


@dataclass(frozen=True)
class Onnxsim(Pass):
    """Run onnx-simplifier on the whole model (extra `onnxsim`); never part of the default pipeline."""

    size_limit: int = option(1 << 20, "bytes a folded tensor may have, onnx-simplifier's own limit")

    def run(self, module: Module, context: Context) -> PassResult:
        """Replace the model by onnx-simplifier's; verification and comparison happen around this pass as usual."""
        try:
            import onnxsim
        except ImportError:
            raise missing_extra("onnx-simplifier", "onnxsim", "the pass 'onnxsim'") from None
        if module.masks:
            raise CheckError("onnx-simplifier knows no masks; run it before pruning")
        if module.weight_bytes() > INLINE_LIMIT:
            raise CheckError("onnx-simplifier cannot hold models of this size")
        before = module.node_count()
        try:
            simplified, _ = onnxsim.simplify(
                inline_proto(module.model), check_n=0, tensor_size_threshold=f"{self.size_limit}B"
            )
        except Exception as error:
            raise CheckError(f"onnx-simplifier failed: {first_line(error)}") from error
        rewriter = Rewriter(module, self.pass_name())
        with rewriter.rewriting("onnxsim"):
            rewriter.replace_model(ir.from_proto(simplified))
        return PassResult.of(rewriter, [f"onnx-simplifier: {before} nodes became {module.node_count()}"])
