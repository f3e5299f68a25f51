"""Data are held back to judge by, all through the stream, unless there are too few."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from joulec.data import held_out
from joulec.ir.feeds import Feeds


def feeds(count: int) -> Feeds:
    return Feeds.of([{"x": np.array([index])} for index in range(count)], description=f"{count} feeds")


def positions(found: Feeds) -> list[int]:
    return [int(feed["x"][0]) for feed in found]


@pytest.mark.parametrize("count", [8, 9, 11, 12, 256])
def test_every_fourth_feed_is_held_back_and_none_is_in_both(count: int):
    kept, held = held_out(feeds(count))
    assert positions(held) == list(range(3, count, 4))
    assert sorted([*positions(kept), *positions(held)]) == list(range(count))
    assert (kept.count, held.count) == (len(positions(kept)), len(positions(held)))
    assert positions(held) == positions(held), "a part can be read again"
    assert f"{count} feeds" in kept.description and f"{count} feeds" in held.description


def test_too_few_serve_both_ends():
    kept, held = held_out(feeds(7))
    assert positions(kept) == positions(held) == list(range(7))


def test_a_stream_without_an_end_is_split_as_it_comes():
    endless = Feeds(lambda: ({"x": np.array([index])} for index in itertools.count()), "data", "endless")
    kept, held = held_out(endless)
    assert [int(feed["x"][0]) for feed in held.head(3)] == [3, 7, 11]
    assert kept.count is None and len(kept.head(5)) == 5
