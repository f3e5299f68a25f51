"""clip-weights: the range of each channel of a weight, where rounding what is left gains more than clipping costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes._grid import Gridded, fitted, limit
from joulec.passes._moments import Moments
from joulec.passes._rounding import clipped
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option


@dataclass(frozen=True)
class ClipWeights(Pass):
    """Clip each channel of a weight to the range in which its 8 bits err least on the data. Comes before quantize.

    Eight ranges are tried for each output channel, and judged by the squared error of the layer's outputs, in closed
    form from the second moments of its inputs; one is taken where it errs less than the whole range on both halves of
    the data. The bias takes up what changes in the mean.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators left alone: patterns of node names or operator types")
    )

    def run(self, module: Module, context: Context) -> PassResult:
        """Clip where that gains.

        Raises:
            InputError: the data do not fit the model.
        """

        def clip(one: Gridded, moments: Moments, rewriter: Rewriter) -> float | None:
            before = one.matrix()
            made, left = clipped(before, moments, limit(context), one.bias is not None)
            if left >= 1:
                return None
            with rewriter.rewriting("clip", one.layer.node):
                one.set(rewriter, made, moments.mean, before)
            return left

        return fitted(module, context, self.pass_name(), self.keep_float, "clipped", clip)
