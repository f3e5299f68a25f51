"""The best of several modules that were each weighed against the same other one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from joulec.compile.bench import Bench
from joulec.compile.worth import Worth
from joulec.ir.module import Module

MOST = 4
"""Modules that are weighed against each other, at most."""

_T = TypeVar("_T")


def best_of(bench: Bench, paying: Sequence[tuple[Worth, Module, _T]]) -> _T | None:
    """What belongs to the best module; None of none.

    Those whose intervals overlap are timed against each other, because each time against a third one leaves open which
    of them is faster. Of two that cannot be told apart the one that is predicted to take less energy is better.
    """
    ordered = sorted(paying, key=lambda one: -one[0].rank)
    if not ordered:
        return None
    best = ordered[0]
    for other in ordered[1:MOST] if bench.times_target else ():
        if not _overlap(ordered[0][0], other[0]):
            break
        bench.progress("timing the best sets against each other", None)
        worth = bench.weigh(best[1], other[1])
        equal = not worth.better and not worth.worse
        if worth.better or (equal and _joules(bench, other[1]) < _joules(bench, best[1])):
            best = other
    return best[2]


def _overlap(one: Worth, other: Worth) -> bool:
    return one.paired is not None and other.paired is not None and other.paired.high >= one.paired.low


def _joules(bench: Bench, module: Module) -> float:
    joules = bench.energy.estimate(module, bench.inputs.shapes).total_joules
    return math.inf if joules is None else joules
