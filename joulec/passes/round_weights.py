"""round-weights: which way each weight rounds, so that the layer's outputs err least on the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes._grid import Gridded, fitted, limit
from joulec.passes._moments import Moments
from joulec.passes._rounding import rounded
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Move weights onto the integers that err least together on the data, not one by one. Comes before quantize.

    Errors of neighbouring weights can cancel in a sum. Coordinate descent on the integers of each output channel
    minimizes the squared error of the layer's outputs, from the second moments of its inputs, and the bias takes the
    mean error away. The weights stay floats, on the very grid that `quantize` lays over them. A layer whose rounding,
    found on one half of the data, does not gain on the other is left as it is.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators left alone: patterns of node names or operator types")
    )

    def run(self, module: Module, context: Context) -> PassResult:
        """Round where that gains.

        Raises:
            InputError: the data do not fit the model.
        """

        def turn(one: Gridded, moments: Moments, rewriter: Rewriter) -> float | None:
            before = one.matrix()
            found = rounded(before, moments, limit(context), one.bias is not None)
            if found is None:
                return None
            with rewriter.rewriting("round", one.layer.node):
                one.set(rewriter, found[0], moments.mean, before)
            return found[1]

        return fitted(module, context, self.pass_name(), self.keep_float, "rounded", turn)
