"""The sets that were tried in INT8: which of them nothing beats, in which order, and where their dots are."""

from __future__ import annotations

import dataclasses
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import points, report

from joulec.report.data import Point
from joulec.report.points import front, frontier, rows

POINTS = st.lists(
    st.builds(
        Point, st.integers(0, 9), st.just(9), st.floats(-0.1, 0.9), st.just(None),
        st.floats(0.01, 20), st.just(0.1), st.just(3.0), kept=st.booleans(),
    ), min_size=1, max_size=8,
)  # fmt: skip


def test_the_kept_set_stands_first_then_those_that_nothing_beats_then_the_rest():
    found = rows(points())
    assert [(row.verdict, row.operators) for row in found] == [
        ("kept", "5 of 9"), ("best", "6 of 9"), ("best", "2 of 9"), ("tried", "4 of 9"), ("tried", "9 of 9"),
    ]  # fmt: skip
    assert [row.speed for row in found][-2:] == ["1.31x (1.28 to 1.33)", "not timed"]
    assert found[0].drop == "0.0014 (elsewhere up to 0.0031)" and found[0].energy == "449 µJ"


@settings(deadline=None)
@given(POINTS)
def test_nothing_beats_what_is_best_and_something_beats_or_equals_the_rest(found: list[Point]):
    best = frontier(found)
    assert best
    for one in found:
        rivals = [two for two in found if two.ratio >= one.ratio and two.drop <= one.drop and two != one]  # type: ignore[operator]
        beaten = any(two.ratio > one.ratio or two.drop < one.drop for two in rivals)  # type: ignore[operator]
        assert (one in best) != beaten


@settings(deadline=None)
@given(POINTS, st.sampled_from([None, 0.0, 0.01, 0.3]))
def test_every_dot_lies_on_the_picture(found: list[Point], budget: float | None):
    whole = report()
    assert whole.accuracy is not None
    accuracy = dataclasses.replace(whole.accuracy, budget=budget)
    drawn = front(dataclasses.replace(whole, points=tuple(found), accuracy=accuracy))
    assert drawn is not None and drawn.timed
    places = re.findall(r'<circle class="dot [a-z]+" cx="([0-9.e-]+)%" cy="([0-9.e-]+)%"', drawn.body)
    assert len(places) == len(found) + 1
    assert all(0 <= float(x) <= 100 and 0 <= float(y) <= 100 for x, y in places)
    assert drawn.body.count('text-anchor="middle"') >= 2, "ticks of speed"
    assert ('class="budget"' in drawn.body) == bool(budget)


def test_where_nothing_was_timed_predicted_joules_take_the_place_of_speed():
    untimed = tuple(dataclasses.replace(one, ratio=None) for one in points())
    drawn = front(dataclasses.replace(report(), points=untimed))
    assert drawn is not None and not drawn.timed
    assert "predicted joules of 5 sets" in drawn.label and "predicted joules, less to the right" in drawn.body
    places = re.findall(r'<circle class="dot [a-z]+" cx="([0-9.]+)%"', drawn.body)
    assert float(places[0]) > float(places[-1]), "420 µJ stand to the right of 600 µJ"
    assert [row.verdict for row in rows(untimed)].count("best") == 3, "the most accurate, and those that cost less"


def test_without_time_and_joules_there_is_no_picture():
    bare = tuple(dataclasses.replace(one, ratio=None, joules=None) for one in points())
    assert front(dataclasses.replace(report(), points=bare)) is None
