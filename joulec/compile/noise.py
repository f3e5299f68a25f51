"""How much error quantizing single blocks brings into the outputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from joulec.compile.bench import Bench
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.values import Array

FEEDS, SPREAD = 8, 8
"""Feeds that sensitivity is measured on, and that every how many-th of the data is one."""

LOUDEST = 1e6
"""Noise of a module whose outputs are not finite, or of other shapes."""


class Noise:
    """Compares modules with the float one on a few feeds.

    Args:
        bench: runs modules.
        floating: the module that gives the reference outputs.
    """

    def __init__(self, bench: Bench, floating: Module) -> None:
        self._bench = bench
        data = itertools.islice(bench.inputs.feeds or (), 0, FEEDS * SPREAD, SPREAD)
        self._feeds: list[Feed] = list(data)
        self._expected = self._outputs(floating)

    def of(self, module: Module) -> float:
        """Squared error over the squares of the float outputs, summed over outputs, in the mean of all feeds.

        Raises:
            InputError: the module does not run.
        """
        found = [_noise(one, other) for one, other in zip(self._expected, self._outputs(module), strict=True)]
        return min(float(np.mean(found)), LOUDEST) if found else 0.0

    def _outputs(self, module: Module) -> list[list[Array]]:
        handle = self._bench.runner.load(self._bench.backend.finished(module), options=self._bench.options())
        try:
            return [list(self._bench.runner.run(handle, feed).values()) for feed in self._feeds]
        finally:
            self._bench.runner.unload(handle)


def _noise(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    total = 0.0
    for one, other in zip(expected, actual, strict=True):
        if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
            continue  # what is decided from the float outputs, an index most of all, says little about distance
        if one.shape != np.shape(other) or not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return LOUDEST
        finite = np.isfinite(one)
        exact, found = one[finite].astype(np.float64), np.asarray(other)[finite].astype(np.float64)
        scale = float(np.sum(exact**2))
        total += float(np.sum((exact - found) ** 2)) / scale if scale > 0 else 0.0
    return total
