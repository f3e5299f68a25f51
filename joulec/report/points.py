"""The sets of operators that were tried in INT8, as rows and as a picture: accuracy against speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from joulec.report import units
from joulec.report.data import Point, Report

WIDTH, HEIGHT = 620.0, 240.0
"""Of the picture, in its own units."""

LEFT, RIGHT, TOP, BOTTOM = 64.0, 24.0, 16.0, 40.0
"""Room around the plot for its axes."""

MAX_POINTS = 40
"""Sets shown; the rest is in decisions.json."""


@dataclass(frozen=True)
class Row:
    """One set, in words."""

    verdict: str
    operators: str
    drop: str
    speed: str
    energy: str
    timed: bool


@dataclass(frozen=True)
class Dot:
    """One set in the picture."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, where it is and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Drop in accuracy, downwards, against speed; the float model is a dot too, `budget` the height of the budget."""

    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    down: tuple[Tick, ...]
    budget: float | None
    trail: str


def rows(found: Sequence[Point]) -> list[Row]:
    """The kept one first, then those that nothing beats, each group from the fastest down."""
    best = frontier(found)
    ordered = sorted(found, key=lambda one: (not one.kept, one not in best, -(one.ratio or 0.0), one.drop or 0.0))
    return [_row(one, one in best) for one in ordered[:MAX_POINTS]]


def _row(one: Point, best: bool) -> Row:
    verdict = "kept" if one.kept else "best" if best else "tried"
    drop = "not judged" if one.drop is None else f"{one.drop:.4f}"
    if one.bound is not None and one.drop is not None and one.bound - one.drop >= 5e-5:
        drop += f" (elsewhere up to {one.bound:.4f})"
    speed = "not timed" if one.ratio is None else f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})"
    return Row(
        verdict, f"{one.operators} of {one.total}", drop, speed, units.joules(one.joules), one.ratio is not None
    )


def frontier(found: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in speed without losing accuracy; only what was judged and timed takes part."""
    known = [one for one in found if one.ratio is not None]
    return [one for one in known if not any(_beats(other, one) for other in known)]


def _beats(one: Point, other: Point) -> bool:
    faster, nearer = (one.ratio or 0.0) - (other.ratio or 0.0), (other.drop or 0.0) - (one.drop or 0.0)
    return faster >= 0 and nearer >= 0 and (faster > 0 or nearer > 0)


def chart(report: Report) -> Chart | None:
    """The picture, where at least one set was both judged and timed."""
    timed = [one for one in report.points if one.ratio is not None and one.drop is not None]
    if not timed:
        return None
    budget = None if report.accuracy is None else report.accuracy.budget
    fastest = max(1.0, *(one.ratio or 0.0 for one in timed))
    drops = [0.0, *(one.drop or 0.0 for one in timed), *([budget] if budget else [])]
    low, high = min(drops), max(max(drops), 1e-4)

    def across(ratio: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * ratio / (1.05 * fastest), 1)

    def down(drop: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (drop - low) / (high - low), 1)

    best = frontier(timed)
    dots = [Dot(across(1.0), down(0.0), "float", "float")]
    for one in timed:
        kind, title = "kept" if one.kept else "best" if one in best else "tried", f"{one.operators} of {one.total}"
        dots.append(Dot(across(one.ratio or 0.0), down(one.drop or 0.0), kind, f"{title} in INT8: {one.ratio:.2f}x"))
    line = sorted((across(one.ratio or 0.0), down(one.drop or 0.0)) for one in best)
    step = 0.5 if fastest > 1.2 else 0.25
    marks = [index * step for index in range(int(1.05 * fastest / step) + 1)]
    heights = sorted({low, high, 0.0})
    return Chart(
        tuple(dots),
        tuple(Tick(across(mark), f"{mark:g}x") for mark in marks),
        tuple(Tick(down(drop), f"{drop:.4f}") for drop in heights),
        down(budget) if budget else None,
        " ".join(f"{x},{y}" for x, y in line),
    )
