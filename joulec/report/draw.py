"""Primitives of the report's pictures: HTML and SVG without scripts, the same data the same bytes.

Positions are shares of the room that a picture gets, so it fills a wide window and a narrow one, with text of one
size. A picture is made of primitives and added to `joulec.report.pictures`; colours are the classes of the page's
style sheet (`KINDS` for categories), which has a light and a dark scheme. Every text passes through `text`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup, escape

from joulec.report import units

KINDS = ("k1", "k2", "k3", "k4", "k5", "k0")
"""Colours of categories, the most important first; the last one is for all others."""

HEADER = 0.055
"""The share of a treemap's height that a group's name takes, as the layout reckons; the page gives it fixed height."""

_T = TypeVar("_T")


class Drawn(Markup):
    """HTML that this module wrote; nothing else reaches a page without being escaped."""


def text(value: object, limit: int = units.MAX_NAME) -> str:
    """A text from anywhere, harmless and escaped."""
    return str(escape(units.safe(value, limit)))


@dataclass(frozen=True)
class Picture:
    """One section of a page.

    Attributes:
        name: the section's id.
        title, lead: what it shows, in words.
        body: made by this module.
        key: (class of a colour, what it stands for).
        label: the picture in one sentence, for those who do not see it.
        timed: whether measured times are in it, so that two builds may differ.
    """

    name: str
    title: str
    lead: str
    body: Drawn
    label: str
    key: tuple[tuple[str, str], ...] = ()
    timed: bool = False


def share(part: float, whole: float = 1.0) -> float:
    """`part` of `whole` in percent, rounded as positions are."""
    return round(100.0 * part / whole, 2) if whole else 0.0


# -- rows of bars ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A bar from `start`, `width` wide, in percent; `kind` is its colour."""

    start: float
    width: float
    kind: str


@dataclass(frozen=True)
class Row:
    """A label, the bars of one row above each other, and what they say in words."""

    label: str
    bars: tuple[Bar, ...]
    value: str
    note: str = ""


def rows(found: Iterable[Row], kind: str = "") -> Drawn:
    """Rows of bars; `kind` may be `fall` for one thicker bar a row."""
    return Drawn("\n".join(_row(one, kind) for one in found))


def _row(one: Row, kind: str) -> str:
    bars = "".join(_bar(bar) for bar in one.bars)
    note = f' <span class="small">{text(one.note)}</span>' if one.note else ""
    return (
        f'<div class="row {kind}"><div class="label">{text(one.label)}</div><div class="track">{bars}</div>'
        f'<div class="value">{text(one.value)}{note}</div></div>'
    )


def _bar(bar: Bar) -> str:
    if not bar.width:
        return '<div class="bar"></div>'
    return f'<div class="bar {bar.kind}" style="margin-left:{bar.start}%;width:{bar.width}%"></div>'


# -- treemap ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A tile whose area is `value`; `title` says all of it, where the tile is too small for `note`."""

    name: str
    value: float
    note: str
    title: str
    kind: str = "k0"


@dataclass(frozen=True)
class Group:
    """Tiles that belong together, under one name."""

    name: str
    note: str
    tiles: tuple[Tile, ...]

    @property
    def value(self) -> float:
        return sum(tile.value for tile in self.tiles)


@dataclass(frozen=True)
class Box:
    """A rectangle, in shares of a plane `aspect` times as wide as high."""

    x: float
    y: float
    width: float
    height: float

    @property
    def style(self) -> str:
        places = (self.x, self.y, self.width, self.height)
        return "left:{}%;top:{}%;width:{}%;height:{}%".format(*map(share, places))


def treemap(groups: Sequence[Group], aspect: float = 2.4) -> Drawn:
    """A treemap of two levels; `aspect` is its width over its height, which the page keeps where there is room."""
    placed = squarify([(group, group.value) for group in groups], aspect)
    return Drawn(f'<div class="treemap">{"".join(_group(group, box, aspect) for group, box in placed)}</div>')


def _group(group: Group, box: Box, aspect: float) -> str:
    inner = aspect * box.width / max(box.height - HEADER, 0.2 * box.height)
    tiles = squarify([(tile, tile.value) for tile in group.tiles], inner)
    return (
        f'<div class="group" style="{box.style}"><div class="head" title="{text(group.name)} {text(group.note)}">'
        f"<b>{text(group.name)}</b> {text(group.note)}</div>"
        f'<div class="tiles">{"".join(_tile(tile, place) for tile, place in tiles)}</div></div>'
    )


def _tile(tile: Tile, box: Box) -> str:
    return (
        f'<div class="tile {tile.kind}" style="{box.style}" title="{text(tile.title, 400)}">'
        f"<span>{text(tile.name)}</span><span>{text(tile.note)}</span></div>"
    )


def squarify(items: Sequence[tuple[_T, float]], aspect: float) -> list[tuple[_T, Box]]:
    """Rectangles as square as can be, their areas as the values (Bruls, Huizing and van Wijk, 2000).

    Args:
        items: things and their values, the largest first; those of no value get no place.
        aspect: width over height of the whole.
    """
    left = [(item, value) for item, value in items if value > 0]
    total = sum(value for _, value in left)
    x, y, wide, high = 0.0, 0.0, aspect, 1.0
    found: list[tuple[_T, Box]] = []
    while left:
        area = wide * high / total
        row = _best_row([value * area for _, value in left], min(wide, high))
        taken, left = left[:row], left[row:]
        spent = sum(value for _, value in taken)
        thick = spent * area / min(wide, high)
        at = 0.0
        for item, value in taken:
            length = value * area / thick
            place = (x, y + at, thick, length) if wide >= high else (x + at, y, length, thick)
            found.append((item, Box(place[0] / aspect, place[1], place[2] / aspect, place[3])))
            at += length
        x, y, wide, high = (x + thick, y, wide - thick, high) if wide >= high else (x, y + thick, wide, high - thick)
        total -= spent
    return found


def _best_row(areas: Sequence[float], side: float) -> int:
    """How many of the next areas stand in one row along `side`: until its worst rectangle would get worse."""
    count, spent, best = 0, 0.0, math.inf
    for area in areas:
        spent += area
        most, least = areas[0], area
        worst = max(side * side * most / (spent * spent), spent * spent / (side * side * least))
        if worst > best:
            break
        count, best = count + 1, worst
    return count


# -- flame -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell of a flame: where it starts and how wide it is, as a share, at which depth."""

    name: str
    start: float
    width: float
    depth: int
    title: str
    kind: str = "k0"


def flame(cells: Sequence[Cell]) -> Drawn:
    """Cells hanging from what holds them, the whole at the top."""
    depth = max((cell.depth for cell in cells), default=0) + 1
    return Drawn(f'<div class="flame" style="--rows:{depth}">{"".join(map(_cell, cells))}</div>')


def _cell(cell: Cell) -> str:
    place = f"left:{share(cell.start)}%;width:{share(cell.width)}%;--row:{cell.depth}"
    said = f"<span>{text(cell.name)}</span>"
    return f'<div class="cell {cell.kind}" style="{place}" title="{text(cell.title, 400)}">{said}</div>'


# -- scatter ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """One axis: where it starts and ends, what it is called, and its ticks as (value, text).

    A logarithmic axis takes positive numbers only. `flipped` runs the other way round: down, or to the left.
    """

    low: float
    high: float
    label: str
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    flipped: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis."""
        low, high, found = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        place = share(found - low, high - low)
        return round(100.0 - place, 2) if self.flipped else place


@dataclass(frozen=True)
class Dot:
    """A mark at (x, y); `tag` is written beside it."""

    x: float
    y: float
    kind: str
    title: str
    radius: float = 5.0
    tag: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points; `tag` is written above its end, or below and to the right of `at`."""

    points: tuple[tuple[float, float], ...]
    kind: str
    tag: str = ""
    at: tuple[float, float] | None = None


def scatter(across: Axis, up: Axis, dots: Sequence[Dot], lines: Sequence[Line] = ()) -> Drawn:
    """Dots and lines between two axes."""
    parts = [*_across(across), *_up(up), *(_line(one, across, up) for one in lines)]
    parts += [_dot(one, across, up) for one in dots]
    names = (
        f'<text class="axis" x="100%" y="100%" dy="34" text-anchor="end">{text(across.label)}</text>'
        f'<text class="axis" x="0" y="0" dx="-56" dy="-12">{text(up.label)}</text>'
    )
    head = '<svg width="100%" height="100%" aria-hidden="true">'
    return Drawn(f'<div class="plot">{head}{"".join(parts)}{names}</svg></div>')


def _across(axis: Axis) -> Iterable[str]:
    for value, said in axis.ticks:
        x = axis.at(value)
        yield f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>'
        yield f'<text x="{x}%" y="100%" dy="17" text-anchor="middle">{text(said)}</text>'


def _up(axis: Axis) -> Iterable[str]:
    for value, said in axis.ticks:
        y = round(100.0 - axis.at(value), 2)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y}%" y2="{y}%"/>'
        yield f'<text x="0" y="{y}%" dx="-8" dy="4" text-anchor="end">{text(said)}</text>'


def _line(one: Line, across: Axis, up: Axis) -> str:
    places = [(across.at(x), round(100.0 - up.at(y), 2)) for x, y in one.points]
    made = "".join(
        f'<line class="{one.kind}" x1="{a}%" y1="{b}%" x2="{c}%" y2="{d}%"/>'
        for (a, b), (c, d) in itertools.pairwise(places)
    )
    if one.tag and one.at is None:
        x, y = places[-1]
        made += f'<text class="tag" x="{x}%" y="{y}%" dx="-4" dy="-6" text-anchor="end">{text(one.tag)}</text>'
    elif one.tag and one.at is not None:
        x, y = across.at(one.at[0]), round(100.0 - up.at(one.at[1]), 2)
        made += f'<text class="tag" x="{x}%" y="{y}%" dx="6" dy="14">{text(one.tag)}</text>'
    return made


def _dot(one: Dot, across: Axis, up: Axis) -> str:
    x, y = across.at(one.x), round(100.0 - up.at(one.y), 2)
    said = f"<title>{text(one.title, 400)}</title>"
    made = f'<circle class="dot {one.kind}" cx="{x}%" cy="{y}%" r="{one.radius:g}">{said}</circle>'
    if one.tag:
        made += f'<text class="number" x="{x}%" y="{y}%" dx="{one.radius + 3:g}" dy="4">{text(one.tag)}</text>'
    return made


def decades(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten from the last one at or below `low` to the first at or above `high`, five or fewer to be marked."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first) / 5)
    return tuple(10.0**power for power in range(first, last + 1, step))
