"""The sets of operators that were tried in INT8, as rows and as a picture: accuracy against speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from joulec.report import units
from joulec.report.data import Point, Report
from joulec.report.draw import Axis, Dot, Line, Picture, scatter

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


def front(report: Report) -> Picture | None:
    """Drop in accuracy, downwards, against speed, where at least one set was both judged and timed."""
    timed = [one for one in report.points if one.ratio is not None and one.drop is not None]
    if not timed:
        return None
    budget = None if report.accuracy is None else report.accuracy.budget
    across, down = _axes(timed, budget)
    best = frontier(timed)
    trail = sorted((one.ratio or 0.0, one.drop or 0.0) for one in best)
    lines = [Line(tuple(trail), "trail")]
    key = [("kept", "kept"), ("tried", "tried"), ("float", "float")]
    if budget:
        lines.append(Line(((across.low, budget), (across.high, budget)), "budget", "budget"))
        key.append(("limit", "budget: drops below the line are too many"))
    dots = [Dot(1.0, 0.0, "float", "float"), *(_dot(one, one in best) for one in timed)]
    label = f"Drop in accuracy against speed of {units.plural(len(timed), 'set')} of operators in INT8"
    return Picture("front", "", "", scatter(across, down, dots, lines), label, tuple(key), timed=True)


def _axes(timed: Sequence[Point], budget: float | None) -> tuple[Axis, Axis]:
    fastest = max(1.0, *(one.ratio or 0.0 for one in timed))
    drops = [0.0, *(one.drop or 0.0 for one in timed), *([budget] if budget else [])]
    low, high = min(drops), max(max(drops), 1e-4)
    step = 0.5 if fastest > 1.2 else 0.25
    step *= max(1, round(fastest / (8 * step)))
    marks = [index * step for index in range(int(1.05 * fastest / step) + 1)]
    across = Axis(0.0, 1.05 * fastest, "speed, float = 1x", tuple((mark, f"{mark:g}x") for mark in marks))
    room = 0.04 * (high - low)
    drops = [drop for drop in sorted({low, high, 0.0}) if drop in (low, high) or _apart(drop, low, high)]
    ticks = tuple((drop, f"{drop:.4f}") for drop in drops)
    return across, Axis(low - room, high + room, "drop in accuracy", ticks, flipped=True)


def _apart(drop: float, low: float, high: float) -> bool:
    """Whether a tick would not be written over another one."""
    return min(drop - low, high - drop) > 0.08 * (high - low)


def _dot(one: Point, best: bool) -> Dot:
    kind = "kept" if one.kept else "best" if best else "tried"
    said = f"{one.operators} of {one.total} in INT8: {one.ratio:.2f}x, drop {one.drop:.4f}"
    return Dot(one.ratio or 0.0, one.drop or 0.0, kind, said, 6.0 if one.kept else 5.0)
