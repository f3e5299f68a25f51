"""Feeds: the inputs a model is run on, and how trustworthy they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from joulec.ir.values import Array

Feed = Mapping[str, Array]
"""One inference's inputs: input name -> array of the model's own shape."""

Kind = Literal["data", "random", "synthetic"]
"""`data`: the user's own. `random`: random because the user asked for it by name. `synthetic`: made by joulec for
timing and equivalence only, never for calibration or accuracy."""


@dataclass(frozen=True)
class Feeds:
    """A stream of feeds that can be iterated again and again, reading one feed at a time.

    Attributes:
        open: returns a fresh iterator over the feeds.
        kind: where they come from.
        description: one line for reports, e.g. `calib.npz (256 feeds)`.
        count: how many there are, or None for an endless or unknown stream.
    """

    open: Callable[[], Iterator[Feed]]
    kind: Kind
    description: str
    count: int | None = None

    def __iter__(self) -> Iterator[Feed]:
        return self.open()

    def head(self, count: int) -> list[Feed]:
        """The first `count` feeds."""
        return list(itertools.islice(self, count))

    def part(self, chosen: Callable[[int], bool], description: str) -> Feeds:
        """The feeds at the positions that are chosen, read as they come."""
        count = None if self.count is None else sum(map(chosen, range(self.count)))

        def opened() -> Iterator[Feed]:
            return (feed for position, feed in enumerate(self) if chosen(position))

        return Feeds(opened, self.kind, description, count)

    @classmethod
    def of(cls, feeds: Iterable[Feed], kind: Kind = "data", description: str = "feeds from Python") -> Feeds:
        """Wrap feeds already in memory."""
        kept = list(feeds)
        return cls(lambda: iter(kept), kind, description, len(kept))
