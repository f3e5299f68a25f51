"""The ladder: small models, each of one family of kernels at one size, whose times fix a profile's coefficients.

Every rung is a chain of equal operators, long enough that starting a run is little beside it, with random weights
(zeros can be faster) and sizes as networks have them: from a few microseconds to tens of milliseconds on one core, and
on both sides of the caches.
"""

from __future__ import annotations

from joulec.energy import rungs_dense, rungs_int8, rungs_light
from joulec.energy.rung import Rung, feed_of

__all__ = ["Rung", "feed_of", "ladder"]

FEW = 6
"""Groups of up to this many rungs are kept whole with `quick`."""


def ladder(quick: bool = False) -> list[Rung]:
    """All rungs, in a fixed order; with `quick` every second one, so that each family keeps several sizes."""
    groups = (*rungs_dense.GROUPS, *rungs_light.GROUPS, *rungs_int8.GROUPS)
    found = [list(group()) for group in groups]
    return [rung for rungs in found for rung in (_half(rungs) if quick and len(rungs) > FEW else rungs)]


def _half(rungs: list[Rung]) -> list[Rung]:
    """Every second one, now the even and now the odd ones: what alternates keeps both of its kinds."""
    return [rung for index, rung in enumerate(rungs) if (index + index // FEW) % 2 == 0]
