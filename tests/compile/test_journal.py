"""A search that was cut off goes on where it stopped, for the same module only, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compile_kit import PricedRunner, cnn, feeds, is_quantized

from joulec.accuracy import Judge
from joulec.backends import backend
from joulec.compile.journal import Journal
from joulec.compiler import Compiler, Inputs, Orders
from joulec.energy import EnergyModel, load_profile
from joulec.ir.feeds import Feeds
from joulec.ir.lower import lower
from joulec.ir.module import Module


class Counting(Judge):
    """A judge that can be interrupted, and knows how often it was asked."""

    name = "metric"
    baseline = 1.0

    def __init__(self, rule: Callable[[Module], float], last: int = 1_000) -> None:
        self._rule, self._last, self.asked = rule, last, 0

    def score(self, module: Module) -> float:
        if self.asked == self._last:
            raise KeyboardInterrupt
        self.asked += 1
        self.changes = np.zeros(1000)
        return self._rule(module)


def too_much(module: Module) -> float:
    """All of INT8 costs too much; a single operator does not."""
    return 0.5 if sum(node.op_type == "QuantizeLinear" for node in module.graph) > 2 else 1.0


def compiler(model: Module, judge: Judge, journal: Path) -> Compiler:
    given = feeds(8)
    inputs = Inputs(Feeds.of(given), given[:2], {}, judge, journal=journal)
    runner = PricedRunner(lambda module: 1.0 if is_quantized(module) else 2.0)
    energy = EnergyModel(load_profile("generic-server-cpu"), "cpu")
    return Compiler(model, backend("cpu"), Orders(), inputs, runner, energy)


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_what_was_judged_before_the_interrupt_is_not_judged_again(last: int, tmp_path: Path):
    model, journal = lower(cnn(tmp_path / "cnn.onnx")).module, tmp_path / "cache" / "one.json"
    whole = Counting(too_much)
    wanted = compiler(model, whole, tmp_path / "other.json").compile()
    assert whole.asked > 4
    cut = Counting(too_much, last)
    with pytest.raises(KeyboardInterrupt):
        compiler(model, cut, journal).compile()
    rest = Counting(too_much)
    found = compiler(model, rest, journal).compile()
    assert dataclasses.replace(found.decisions, latency=None) == dataclasses.replace(wanted.decisions, latency=None)
    assert not journal.exists() and not list(journal.parent.glob("*"))
    if last > 1:  # the first question is about the exact passes, which is not part of the search
        assert rest.asked < whole.asked


def test_findings_come_back_for_the_same_subject_only(tmp_path: Path):
    path = tmp_path / "deep" / "journal.json"
    Journal(path, "a").note("verdict", drop=0.5, bound=None)
    assert Journal(path, "a").recall("verdict", "drop", "bound") == {"drop": 0.5, "bound": None}
    assert Journal(path, "a").recall("verdict", "drop") is None, "other names"
    assert Journal(path, "a").recall("timing", "drop") is None
    assert Journal(path, "b").recall("verdict", "drop", "bound") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"subject": "a"}', '{"subject": "a", "found": {"v": {"drop": "x"}}}'])
def test_a_damaged_journal_is_empty(text: str, tmp_path: Path):
    path = tmp_path / "journal.json"
    path.write_text(text)
    assert Journal(path, "a").recall("v", "drop") is None


def test_a_journal_that_cannot_be_written_costs_nothing_else(tmp_path: Path):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal.json", "a")
    journal.note("v", drop=1.0)
    assert journal.recall("v", "drop") == {"drop": 1.0}
    journal.close()
