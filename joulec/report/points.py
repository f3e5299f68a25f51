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
    """Those that no other one beats without losing accuracy: in speed, or in joules where nothing was timed."""
    known = _comparable(found)
    return [one for one in known if not any(_beats(other, one) for other in known)]


def _comparable(found: Sequence[Point]) -> list[Point]:
    """The sets that were timed; where none was, those whose joules were predicted and whose accuracy was judged."""
    timed = [one for one in found if one.ratio is not None]
    return timed or [one for one in found if one.joules and one.drop is not None]


def _beats(one: Point, other: Point) -> bool:
    cheaper, nearer = _gain(one) - _gain(other), (other.drop or 0.0) - (one.drop or 0.0)
    return cheaper >= 0 and nearer >= 0 and (cheaper > 0 or nearer > 0)


def _gain(one: Point) -> float:
    return one.ratio if one.ratio is not None else -(one.joules or 0.0)


def front(report: Report) -> Picture | None:
    """Drop in accuracy, downwards, against speed, or against joules where nothing was timed; better is to the right."""
    shown = [one for one in _comparable(report.points) if one.drop is not None]
    if not shown:
        return None
    timed = shown[0].ratio is not None
    budget = None if report.accuracy is None else report.accuracy.budget
    across, down = _speed(shown) if timed else _joules(shown), _drop(shown, budget)
    best = frontier(shown)
    trail = sorted(((_place(one), one.drop or 0.0) for one in best), key=lambda place: across.at(place[0]))
    lines = [Line(tuple(trail), "trail")]
    key = [("kept", "kept"), ("tried", "tried"), *([("float", "float")] if timed else [])]
    if budget:
        ends = sorted((across.low, across.high), key=across.at)
        lines.append(Line(tuple((end, budget) for end in ends), "budget", "budget"))
        key.append(("limit", "budget: drops below the line are too many"))
    dots = [*([Dot(1.0, 0.0, "float", "float")] if timed else []), *(_dot(one, one in best) for one in shown)]
    against = "speed" if timed else "predicted joules"
    label = f"Drop in accuracy against {against} of {units.plural(len(shown), 'set')} of operators in INT8"
    return Picture("front", "", "", scatter(across, down, dots, lines), label, tuple(key), timed=timed)


def _place(one: Point) -> float:
    return one.ratio if one.ratio is not None else one.joules or 0.0


def _speed(timed: Sequence[Point]) -> Axis:
    fastest = max(1.0, *(one.ratio or 0.0 for one in timed))
    step = 0.5 if fastest > 1.2 else 0.25
    step *= max(1, round(fastest / (8 * step)))
    marks = [index * step for index in range(int(1.05 * fastest / step) + 1)]
    return Axis(0.0, 1.05 * fastest, "speed, float = 1x", tuple((mark, f"{mark:g}x") for mark in marks))


def _joules(shown: Sequence[Point]) -> Axis:
    spent = [one.joules or 0.0 for one in shown]
    low, high = min(spent), max(spent)
    room = 0.1 * (high - low) or 0.1 * high
    ticks = tuple((joules, units.joules(joules)) for joules in dict.fromkeys((low, high)))
    return Axis(low - room, high + room, "predicted joules, less to the right", ticks, flipped=True)


def _drop(shown: Sequence[Point], budget: float | None) -> Axis:
    drops = [0.0, *(one.drop or 0.0 for one in shown), *([budget] if budget else [])]
    low, high = min(drops), max(max(drops), 1e-4)
    room = 0.04 * (high - low)
    drops = [drop for drop in sorted({low, high, 0.0}) if drop in (low, high) or _apart(drop, low, high)]
    ticks = tuple((drop, f"{drop:.4f}") for drop in drops)
    return Axis(low - room, high + room, "drop in accuracy", ticks, flipped=True)


def _apart(drop: float, low: float, high: float) -> bool:
    """Whether a tick would not be written over another one."""
    return min(drop - low, high - drop) > 0.08 * (high - low)


def _dot(one: Point, best: bool) -> Dot:
    kind = "kept" if one.kept else "best" if best else "tried"
    cost = units.joules(one.joules) if one.ratio is None else f"{one.ratio:.2f}x"
    said = f"{one.operators} of {one.total} in INT8: {cost}, drop {one.drop:.4f}"
    return Dot(_place(one), one.drop or 0.0, kind, said, 6.0 if one.kept else 5.0)
