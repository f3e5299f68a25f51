"""correct-bias: what rounding its weights shifts in the mean of a layer's outputs is taken off its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes._grid import Gridded, fitted, limit
from joulec.passes._moments import Moments
from joulec.passes._rounding import errors, nearest
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Take off each bias what rounding the weights will add to the mean of the outputs. Comes before quantize.

    The shift is the rounding error of the weights times the mean of what they multiply, which is measured. It is
    corrected where it lowers the squared error of the layer's outputs.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators left alone: patterns of node names or operator types")
    )

    def run(self, module: Module, context: Context) -> PassResult:
        """Correct every bias that can be.

        Raises:
            InputError: the data do not fit the model.
        """

        def correct(one: Gridded, moments: Moments, rewriter: Rewriter) -> float | None:
            change = nearest(one.matrix(), limit(context)) - one.matrix()
            shift = np.einsum("gok,gk->go", change, moments.mean)
            total = float(errors(change, moments.gram).sum())
            if one.bias is None or not total > 0 or not np.any(shift):
                return None
            with rewriter.rewriting("correct", one.layer.node):
                one.shift(rewriter, -shift.ravel())
            return 1 - float(np.sum(shift**2)) / total

        return fitted(module, context, self.pass_name(), self.keep_float, "corrected", correct)
