"""Terminal tables: everything said, nothing wider than asked, no model's name read as markup."""

from __future__ import annotations

import dataclasses
import io

import pytest
from report_sample import EVIL, estimate, node, report
from rich.console import Console

from joulec.report import terminal, words
from joulec.report.data import Accuracy, Decision, Latency, Report


def text(draw, *arguments, width: int = 100) -> str:
    """What `draw` prints on a plain console of `width` columns."""
    out = io.StringIO()
    draw(Console(file=out, width=width, highlight=False, emoji=False, markup=False, no_color=True), *arguments)
    return out.getvalue()


def words_of(printed: str) -> str:
    """The text without line breaks and padding."""
    return " ".join(printed.split())


def test_the_summary_says_what_changed_and_why():
    said = words_of(text(terminal.summary, report()))
    for phrase in [
        "digits_wide.keras → build/digits_wide (cpu)",
        "latency 2.11 ms 1.40 ms 1.51x as fast (1.47 to 1.54)",
        "metric 0.9917 0.9903 drops by 0.0014 (0.01 allowed)",
        "energy 1.15 mJ 449 µJ −61 %",
        "nodes 66 31 −53 %",
        "weights 1.18 MiB 323 KiB −73 %",
        "kept INT8 runs at 1.47x (1.43 to 1.50) the speed of float (accuracy drop 0.0014)",
        "dropped INT8 of convolutions only slower than INT8 everywhere (1.20x as fast, 1.15 to 1.26",
        "fuse-affine applied 3 14 45→40 −140 µJ",
        "fuse-gemm: output 'y' deviates by 0.3, allowed is 1e-05",
        "saves 701 µJ per inference (420 µJ to 1.10 mJ)",
        "real device skipped: no GPU on this machine",
        "lowering matches the source framework on 2 seeded feeds, largest deviation 2.4e-07",
        "report build/digits_wide/report.html",
    ]:
        assert phrase in said


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    for printed in [
        text(terminal.summary, report("n" * 500), width=width),
        text(terminal.estimate_table, "m" * 30, report("n" * 500).energy.after, width=width),
    ]:
        assert max(map(len, printed.splitlines())) <= width


def test_paths_are_printed_whole_so_that_they_can_be_copied():
    place = "/very/long" * 20
    assert f"report    {place}/report.html" in text(
        terminal.summary, dataclasses.replace(report(), directory=place), width=80
    )


def test_hostile_names_are_neither_markup_nor_escape_codes():
    one = dataclasses.replace(report(EVIL), model=EVIL, notes=(EVIL,), decisions=(Decision(EVIL, True, False, EVIL),))
    said = text(terminal.summary, one) + text(terminal.estimate_table, EVIL, one.energy.after)
    assert "\x1b" not in said and "\u202e" not in said
    assert "[red]" in said


def test_up_to_date_is_two_lines():
    said = text(terminal.summary, dataclasses.replace(report(), status="up to date"))
    assert len(said.splitlines()) == 2
    assert "up to date" in said


def test_a_bare_report_prints():
    bare = Report("0.1.0", "m.onnx", "onnx", "simplify", "", "written", (), (), (), 3, 2, 10, 10)
    assert "nodes 3 2 −33 %" in words_of(text(terminal.summary, bare))


def test_estimate_is_sorted_with_unknown_first_and_says_what_is_missing():
    nodes = [node("cheap", "Add", 1e-9), node("dear", "Conv", 1e-3), node("odd", "Odd", None)]
    said = text(terminal.estimate_table, "m.onnx", estimate(nodes, unknown=["Odd"], assumed=["batch"]))
    rows = [
        line.split()[-1]
        for line in said.splitlines()
        if line.endswith(("cheap", "dear", "odd")) or "estimated " in line
    ]
    assert rows[:3] == ["odd", "dear", "cheap"]
    assert "price unknown, not in the total: Odd" in said
    assert "taken as 1 because nobody gave it: batch" in said


@pytest.mark.parametrize(
    ("low", "high", "said", "good"),
    [
        (1.1, 1.3, "1.20x as fast (1.10 to 1.30)", True),
        (0.9, 1.3, "no difference shown", None),
        (0.5, 0.9, "slower", False),
    ],
)
def test_latency_is_a_change_only_if_its_interval_says_so(low, high, said, good):
    fact = words.latency(Latency(2.0, 1.0, (low + high) / 2, low, high, 100, 1))
    assert said in fact.change
    assert fact.good is good


@pytest.mark.parametrize(
    ("drop", "budget", "said", "good"),
    [
        (0.0, 0.01, "unchanged (0.01 allowed)", None),
        (0.005, 0.01, "drops by 0.0050 (0.01 allowed)", None),
        (0.5, 0.01, "drops by 0.5000 (0.01 allowed)", False),
        (0.005, None, "drops by 0.0050 (no budget)", False),
        (-0.005, 0.01, "rises by 0.0050 (0.01 allowed)", True),
    ],
)
def test_accuracy_is_judged_against_its_budget(drop, budget, said, good):
    fact = words.accuracy(Accuracy("metric", 0.9, 0.9 - drop, drop, budget, "held-out"))
    assert (fact.change, fact.good) == (said, good)


def test_energy_that_the_model_cannot_tell_apart_is_not_called_a_saving():
    vague = dataclasses.replace(
        report().energy, change={"joules": 1e-6, "low": -1e-6, "high": 2e-6, "detectable": False}
    )
    assert words.energy(vague).good is None
    assert "within the model's error" in words.energy(vague).change
    assert "no detectable change" in (words.saving(vague) or "")
    assert "no detectable change in energy" in words.headline(dataclasses.replace(report(), energy=vague))


def test_a_comparison():
    found = {"equal": False, "output": "y", "deviation": "inf", "tolerance": 1e-5, "feeds": "2 made up"}
    assert text(terminal.comparison, found).startswith("different\nworst output: y, deviation inf")


def test_fifty_notes_on_an_estimate_are_counted_not_listed():
    notes = [f"If number {index}: the costlier branch is counted" for index in range(50)]
    said = words_of(text(terminal.estimate_table, "m.onnx", estimate([node("a", "Add", 1e-6)], notes=notes)))
    assert "If number 3" in said and "If number 4" not in said
    assert "and 46 more notes on the estimate in --json" in said


def test_each_node_of_an_estimate_is_one_line_with_the_end_of_its_name():
    nodes = [node(f"model/{'scope/' * 20}layer_{index}", "Conv", 1e-6) for index in range(3)]
    lines = text(terminal.estimate_table, "m.onnx", estimate(nodes)).splitlines()
    assert [line[-8:] for line in lines[2:5]] == [f"/layer_{index}" for index in range(3)]


def test_a_long_estimate_lists_the_costliest_and_sums_the_rest():
    nodes = [node(f"n{index}", "Conv" if index % 2 else "Relu", float(10 - index)) for index in range(10)]
    said = words_of(text(terminal.estimate_table, "m.onnx", estimate(nodes), 4))
    assert "n3" in said and "n4" not in said
    assert "and 6 more nodes, 38 % of the energy (--top 0 lists all)" in said
    assert "By operator energy share nodes operator 30.0 J 54.5 % 5 Relu 25.0 J 45.5 % 5 Conv" in said
    assert "more nodes" not in words_of(text(terminal.estimate_table, "m.onnx", estimate(nodes)))
