"""Pictures: what is drawn where, in shares of the room, and what is said of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import estimate, node, report

from joulec.report.data import Roofs
from joulec.report.draw import Axis, Drawn, Line, decades, scatter, squarify, text
from joulec.report.pictures.by_layer import by_layer, layer_rows
from joulec.report.pictures.by_operator import bars, by_operator
from joulec.report.pictures.passes import falls
from joulec.report.pictures.roofline import roofline

ROOFS = Roofs((("fp32", 1e12),), (("DRAM", 4e10), ("cache", 4e11)))


# -- primitives -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.floats(0.3, 4.0))
def test_a_treemap_fills_its_room_with_areas_in_proportion_and_without_overlap(values: list[float], aspect: float):
    values = sorted(values, reverse=True)
    placed = squarify(list(enumerate(values)), aspect)
    assert [index for index, _ in placed] == list(range(len(values)))
    total = math.fsum(values)
    for index, box in placed:
        assert box.width * box.height == pytest.approx(values[index] / total, rel=1e-6, abs=1e-9)
        assert box.x >= -1e-9 and box.x + box.width <= 1 + 1e-6 and box.y >= -1e-9 and box.y + box.height <= 1 + 1e-6
    for (_, one), (_, two) in itertools.combinations(placed, 2):
        wide = min(one.x + one.width, two.x + two.width) - max(one.x, two.x)
        high = min(one.y + one.height, two.y + two.height) - max(one.y, two.y)
        assert wide <= 1e-6 or high <= 1e-6


def test_equal_values_give_squares():
    boxes = [box for _, box in squarify([(i, 1.0) for i in range(4)], 1.0)]
    assert all((box.width, box.height) == (pytest.approx(0.5), pytest.approx(0.5)) for box in boxes)
    assert squarify([("nothing", 0.0)], 2.0) == []


def test_axes_place_values_linearly_by_decades_and_the_other_way_round():
    assert Axis(0.0, 4.0, "", ()).at(1.0) == 25.0
    assert Axis(1.0, 1e4, "", (), log=True).at(10.0) == 25.0
    assert Axis(0.0, 4.0, "", (), flipped=True).at(1.0) == 75.0


@settings(deadline=None)
@given(st.floats(1e-12, 1e15), st.floats(1.0, 1e12))
def test_decades_enclose_what_they_mark_in_few_steps(low: float, factor: float):
    marks = decades(low, low * factor)
    assert marks[0] <= low * (1 + 1e-9) and 2 <= len(marks) <= 7
    assert all(round(math.log10(mark), 9).is_integer() for mark in marks)


def test_lines_and_ticks_are_placed_in_percent():
    axis = Axis(0.0, 1.0, "name <b>", ((0.5, "half"),))
    drawn = scatter(axis, axis, [], [Line(((0.0, 0.0), (1.0, 0.5)), "roof", "tag")])
    assert '<line class="roof" x1="0.0%" y1="100.0%" x2="100.0%" y2="50.0%"/>' in drawn
    assert ">half</text>" in drawn and ">tag</text>" in drawn and "name &lt;b&gt;" in drawn
    assert isinstance(drawn, Drawn)


def test_texts_are_made_harmless_and_escaped():
    assert text('<a "b">\x1b') == "&lt;a &#34;b&#34;&gt;\\x1b"


# -- joules ---------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_largest():
    energy = report().energy
    assert energy is not None
    found = {row.label: row for row in bars(energy)}
    assert ([bar.width for bar in found["Conv"].bars], found["Conv"].note) == ([100.0, 42.86], "−57\u00a0%")
    assert (found["Relu"].bars[1].width, found["Relu"].value, found["Relu"].note) == (0.0, "40.0 µJ → —", "gone")


def test_the_waterfall_goes_from_the_input_to_the_artefact():
    found = falls(report())
    assert [row.label for row in found] == ["input model", "fold-constants", "fuse-affine", "quantize", "artefact"]
    first, *_ = found
    assert first.bars[0].width == 100.0
    for row, following in itertools.pairwise(found[1:]):
        bar, then = row.bars[0], following.bars[0]
        assert bar.kind == "saved"
        assert bar.start == pytest.approx(then.start + then.width, abs=0.1)


def test_the_treemap_shows_every_joule_and_gathers_what_is_too_small_to_see():
    nodes = [node("conv", "Conv", 1.0), *(node(f"add{i}", "Add", 1e-4) for i in range(50)), node("odd", "Odd", None)]
    picture = by_operator(estimate(nodes))
    assert picture is not None
    assert "50 nodes: 5.00 mJ together" in picture.body and "add0" not in picture.body
    assert "conv (Conv): 1.00 J, 99.5" in picture.body.replace("100\u00a0%", "99.5")
    assert picture.label.startswith("Joules by operator: Conv ") and "1 node without a price" in picture.lead
    assert by_operator(estimate([node("odd", "Odd", None)])) is None


def test_layers_hang_below_what_holds_them_in_order_and_as_wide_as_their_joules():
    nodes = [
        node("net/stem/conv", "Conv", 2.0), node("net/block/a/mul", "MatMul", 1.0), node("net/block/b/mul", "MatMul", 1.0),
    ]  # fmt: skip
    picture = by_layer(estimate(nodes), {})
    assert picture is not None
    cells = re.findall(r'left:([0-9.]+)%;width:([0-9.]+)%;--row:(\d)" title="([^:]+):', picture.body)
    assert cells == [
        ("0.0", "100.0", "0", "the whole model"), ("0.0", "50.0", "1", "stem/conv"), ("50.0", "50.0", "1", "block"),
        ("50.0", "25.0", "2", "block/a/mul"), ("75.0", "25.0", "2", "block/b/mul"),
    ]  # fmt: skip


def test_rewritten_nodes_stand_in_the_layer_they_came_from_and_flat_names_have_no_layers():
    nodes = [node("fused_7", "Conv", 2.0), node("fused_8", "MatMul", 1.0)]
    assert by_layer(estimate(nodes), {}) is None
    picture = by_layer(estimate(nodes), {"fused_7": "encoder/conv", "fused_8": "head/dense"})
    assert picture is not None and picture.label == "Joules by layer: encoder 67\u00a0%, head 33\u00a0% of 3.00 J"


def test_the_roofline_places_kernels_and_roofs():
    slow = node("slow", "Add", 1.0, flops=1000, bytes=1000, seconds=1e-6)
    fast = node("fast", "Conv", 3.0, flops=10**8, bytes=10**6, seconds=2e-4)
    picture = roofline(estimate([slow, fast]), ROOFS)
    assert picture is not None
    assert "100 op/B, 500 Gop/s" in picture.body and "1.0 op/B, 1 Gop/s" in picture.body
    assert picture.body.count('class="roof"') == 3, "two slopes and a flat roof"
    assert "predicted, not measured" in picture.lead
    dots = re.findall(r'class="dot k\d" cx="([0-9.]+)%" cy="([0-9.]+)%" r="([0-9.]+)"', picture.body)
    assert len(dots) == 2 and all(0 <= float(x) <= 100 and 0 <= float(y) <= 100 for x, y, _ in dots)
    assert max(float(r) for *_, r in dots) == 13.0


def test_without_roofs_or_times_there_is_no_roofline():
    timed = [node(name, "Add", 1.0, flops=10, bytes=10, seconds=1.0) for name in "ab"]
    assert roofline(estimate(timed), None) is None
    assert roofline(estimate([dict(one, seconds=None) for one in timed]), ROOFS) is None


def test_numbers_that_would_cover_each_other_stand_side_by_side():
    same = [node(name, "Add", 1.0, flops=10**6, bytes=10**4, seconds=1e-3) for name in "abc"]
    picture = roofline(estimate(same), ROOFS)
    assert picture is not None and picture.body.count('class="number"') == 1 and ">1 2 3</text>" in picture.body


def test_reports_of_older_builds_still_have_a_page():
    old = report().to_json()
    for name in ("layers", "roofs"):
        del old["energy"][name]
    from joulec.report.data import Report
    from joulec.report.html import render

    page = render(Report.from_json(old))
    assert 'id="treemap"' in page and 'id="roofline"' not in page
    assert dataclasses.replace(report(), energy=None) is not None


def test_a_layer_that_has_nearly_everything_is_taken_apart_in_the_table():
    nodes = [
        node("in/cast", "Cast", 0.1), node("net/a/conv", "Conv", 5.0), node("net/b/conv", "Conv", 4.0), node("out", "Add", 0.1),
    ]  # fmt: skip
    assert layer_rows(estimate(nodes)) == [("in", 0.1, 1), ("net/a", 5.0, 1), ("net/b", 4.0, 1), ("out", 0.1, 1)]
    assert layer_rows(estimate([node("a", "Add", 1.0), node("b", "Add", 1.0)])) == []
