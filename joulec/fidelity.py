"""Per-sample evidence beside a score: how often decisions change, and what that says about data not seen.

A score is one number. Whether it holds on other data of the same kind depends on how many samples it was made from,
and on how many of them the two models answer differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from joulec.ir.values import Array

SIGMAS = 1.0
"""Standard errors above the drop that was seen: a normal bound that holds about 5 times in 6."""

RULE_OF_THREE = 3.0
"""Where none of n samples changed, at most 3 / n of all do, 19 times in 20 (Hanley and Lippman-Hand, 1983)."""

MOST = 1 << 22
"""Numbers kept of all answers; a metric that asks for more of them gets no bound."""

HALF = 0.5
"""The probability beyond which the answer is yes."""

Kind = Literal["class", "whole", "chance", "vector"]


class Decisions:
    """What a model answered, sample by sample, as far as it bears on a score.

    Of whole numbers every one is a decision. So is the largest entry of every row of probabilities or, in outputs of
    rank 2, of scores; and of what lies between 0 and 1, whether it exceeds a half. Where an output holds none of
    these (an embedding, hidden states), the vector itself is kept, and the distance is what changes.

    Args:
        like: answers of the model that is compared with, whose outputs are read the same way.
    """

    def __init__(self, like: Decisions | None = None) -> None:
        self.rows: list[list[Array]] = []
        self.kinds: dict[str, Kind] = {} if like is None else like.kinds
        self._count = 0

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Record the outputs of one run."""
        for name, value in outputs.items():
            if name not in self.kinds and (kind := _kind(value)) is not None:
                self.kinds[name] = kind
        read = {name: kind for name, kind in self.kinds.items() if kind != "vector"} or self.kinds
        made = [_answers(outputs[name], kind) for name, kind in read.items() if _kind(outputs.get(name)) is not None]
        self._count += sum(one.size for one in made)
        self.rows.append(made if self._count <= MOST else [])

    def changed(self, other: Decisions) -> Array | None:
        """Share of each sample's answers that differ; None where the two were not asked the same questions."""
        if len(self.rows) != len(other.rows) or not self.rows:
            return None
        shares = [_shares(one, two) for one, two in zip(self.rows, other.rows, strict=True)]
        known = [share for share in shares if share is not None]
        return np.concatenate(known) if len(known) == len(shares) and known else None


def _kind(value: Any) -> Kind | None:
    """What an output holds, judged by its numbers; None where it has no samples."""
    if not isinstance(value, np.ndarray) or value.ndim < 1 or value.size == 0:
        return None
    if value.dtype.kind in "iub":
        return "whole"
    if value.dtype.kind != "f":
        return None
    numbers = np.nan_to_num(value.astype(np.float32))
    unsigned = bool(numbers.min() >= 0 and numbers.max() <= 1 + TOLERANCE)
    several = value.ndim > 1 and value.shape[-1] > 1
    if several and unsigned and np.allclose(numbers.sum(axis=-1), 1, atol=TOLERANCE):
        return "class"
    if unsigned:
        return "chance"
    directions = np.allclose(np.sum(numbers**2, axis=-1), 1, atol=TOLERANCE)
    return "class" if value.ndim == 2 and several and not directions else "vector"


TOLERANCE = 1e-3
"""How far sums of probabilities and lengths of unit vectors may lie from 1."""


def _answers(value: Array, kind: Kind) -> Array:
    """The answers of one output, (samples, ...)."""
    if kind == "whole":
        return value.reshape(len(value), -1)
    numbers = np.nan_to_num(value.astype(np.float32))
    if kind == "class":
        return np.asarray(np.argmax(numbers, axis=-1), np.int32).reshape(len(value), -1)
    return (numbers > HALF if kind == "chance" else numbers).reshape(len(value), -1)


def _shares(one: Sequence[Array], two: Sequence[Array]) -> Array | None:
    """Per sample, the most that the answers to any output differ; of outputs with as many samples as the first."""
    if len(one) != len(two) or not one or any(a.shape != b.shape for a, b in zip(one, two, strict=True)):
        return None
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if len(a) == len(one[0])]
    worst: Array = np.max([_share(a, b) for a, b in pairs], axis=0)
    return worst


def _share(one: Array, other: Array) -> Array:
    """Of classes and numbers how many differ; of yes and no, how much of what either affirms; of vectors how far."""
    if one.dtype == bool:
        either = np.sum(one | other, axis=1)
        return np.asarray(np.sum(one ^ other, axis=1) / np.maximum(either, 1))
    if one.dtype.kind != "f":
        return np.asarray(np.mean(one != other, axis=1))
    length = np.maximum(np.linalg.norm(one, axis=1), np.finfo(np.float32).tiny)
    return np.asarray(np.minimum(np.linalg.norm(one - other, axis=1) / length, 1.0))


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
