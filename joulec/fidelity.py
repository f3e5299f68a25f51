"""Per-sample evidence beside a score: how often decisions change, and what that says about data not seen.

A score is one number. Whether it holds on other data of the same kind depends on how many samples it was made from,
and on how many of them the two models decide differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from joulec.ir.values import Array

SIGMAS = 1.0
"""Standard errors above the drop that was seen: a normal bound that holds about 5 times in 6."""

RULE_OF_THREE = 3.0
"""Where none of n samples changed, at most 3 / n of all do, 19 times in 20 (Hanley and Lippman-Hand, 1983)."""

MOST = 1 << 22
"""Decisions kept; a metric that makes more of them gets no bound."""


class Decisions:
    """What a model decided, sample by sample: the largest entry of every row of its outputs."""

    def __init__(self) -> None:
        self.rows: list[list[Array]] = []
        self._count = 0

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Record the outputs of one run."""
        decided = [made for value in outputs.values() if (made := _decided(value)) is not None]
        self._count += sum(made.size for made in decided)
        self.rows.append(decided if self._count <= MOST else [])

    def changed(self, other: Decisions) -> Array | None:
        """Share of decisions that differ, per sample; None where the two were not asked the same questions."""
        if len(self.rows) != len(other.rows) or not self.rows:
            return None
        shares = [_shares(one, two) for one, two in zip(self.rows, other.rows, strict=True)]
        known = [share for share in shares if share is not None]
        return np.concatenate(known) if len(known) == len(shares) and known else None


def _decided(value: Any) -> Array | None:
    if not isinstance(value, np.ndarray) or value.ndim < 1 or value.size == 0:
        return None
    if value.dtype.kind in "iub":
        return value.reshape(len(value), -1)
    if value.dtype.kind != "f" or value.shape[-1] < 2:
        return None
    made: Array = np.argmax(np.nan_to_num(value.astype(np.float32)), axis=-1).astype(np.int32)
    return made.reshape(len(value) if value.ndim > 1 else 1, -1)


def _shares(one: Sequence[Array], two: Sequence[Array]) -> Array | None:
    if len(one) != len(two) or not one or any(a.shape != b.shape for a, b in zip(one, two, strict=True)):
        return None
    rows = {len(a) for a in one}
    if len(rows) != 1:
        return None
    worst: Array = np.max([np.mean(a != b, axis=1) for a, b in zip(one, two, strict=True)], axis=0)
    return worst


def bound(drop: float, changes: Array) -> float:
    """What the drop stays below on other data, about 5 times in 6.

    Args:
        drop: what was seen, in absolute points.
        changes: per sample, the most that its part of the score can have changed.
    """
    return drop + SIGMAS * math.sqrt(float(np.mean(np.square(changes))) / len(changes))


def too_few(samples: int, budget: float) -> int | None:
    """How many samples it takes to promise `budget` at all, where `samples` are fewer; else None."""
    needed = math.ceil(RULE_OF_THREE / budget) if budget > 0 else samples
    return needed if samples < needed else None
