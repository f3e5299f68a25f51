"""Fidelity and metrics: what counts as a drop, over outputs of every kind that ONNX has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from joulec.accuracy import FidelityJudge, MetricJudge
from joulec.data import load_metric
from joulec.errors import InputError
from joulec.ir.feeds import Feeds
from joulec.ir.session import SessionOptions

REFERENCE: Any = "reference"
CANDIDATE: Any = "candidate"


class FakeRunner:
    """Knows what each model answers to each feed, and that every session it opens is closed again."""

    def __init__(self, answers: Mapping[Any, Sequence[Mapping[str, Any]]]) -> None:
        self.answers, self.open = answers, list[Any]()

    def load(self, module: Any, *, extra_outputs: Sequence[str] = (), options: Any = None) -> Any:
        self.open.append(module)
        return module

    def run(self, handle: Any, feed: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.answers[handle][int(feed["i"])]

    def unload(self, handle: Any) -> None:
        self.open.remove(handle)


def judged(expected: Sequence[Mapping[str, Any]], actual: Sequence[Mapping[str, Any]]) -> tuple[float, tuple[str, ...]]:
    runner: Any = FakeRunner({REFERENCE: expected, CANDIDATE: actual})
    feeds = Feeds.of([{"i": np.array(i)} for i in range(len(expected))])
    judge = FidelityJudge(runner, REFERENCE, feeds, SessionOptions())
    score = judge.score(CANDIDATE)
    assert not runner.open
    return score, judge.notes


def one(expected: Any, actual: Any) -> float:
    return judged([{"y": expected}], [{"y": actual}])[0]


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_fidelity_is_one_minus_the_relative_norm_over_all_feeds_of_the_worst_output():
    expected = [{"y": floats(3, 0), "z": floats(1)}, {"y": floats(0, 4), "z": floats(1)}]
    actual = [{"y": floats(3, 0), "z": floats(1)}, {"y": floats(0, 4.5), "z": floats(1)}]
    assert judged(expected, actual)[0] == pytest.approx(1 - math.sqrt(0.25 / 25), abs=1e-12)


@pytest.mark.parametrize(
    ("expected", "actual", "score"),
    [
        (floats(1, math.nan), floats(1, math.nan), 1),
        (floats(1, math.inf), floats(1, math.inf), 1),
        (floats(1, math.inf), floats(1, -math.inf), -math.inf),
        (floats(1, 2), floats(1, math.nan), -math.inf),
        (floats(1, 2), floats(1, 2, 3), 0),
        (np.array([1, 2], np.int64), np.array([1, 2], np.int64), 1),
        (np.array([True, False]), np.array([False, False]), 0),
        (np.array([1, 1], ml_dtypes.bfloat16), np.array([1, 1.5], ml_dtypes.bfloat16), 1 - math.sqrt(0.25 / 2)),
        (np.array([1, 1], np.float16), np.array([1, 1.5], np.float16), 1 - math.sqrt(0.25 / 2)),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), 1),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 0),
        ([np.ones((2, 3)), np.ones((2, 4))], [np.ones((2, 3)), np.ones((2, 4))], 1),
        ([np.ones((2, 3)), np.ones((2, 4))], [np.ones((2, 3)), np.zeros((2, 4))], 0),
        ([np.ones(1)], [np.ones(1), np.ones(1)], 0),
        ([{1: 0.5, 2: 0.25}], [{1: 0.5, 2: 0.25}], 1),
        ([{1: 0.5}], [{1: 0.75}], 0),
        (None, None, 1),
        (np.array([1 + 2j]), np.array([1 + 2j]), 1),
    ],
)  # fmt: skip
def test_outputs_of_every_kind_can_be_compared(expected: Any, actual: Any, score: float):
    assert one(expected, actual) == pytest.approx(score)


@pytest.mark.parametrize("nothing", [floats(0, 0), floats(math.nan, math.inf), floats()])
def test_an_output_that_cannot_be_judged_is_named(nothing: np.ndarray):
    score, notes = judged([{"y": nothing, "z": floats(1)}], [{"y": nothing, "z": floats(1)}])
    assert score == 1
    assert len(notes) == 1 and "fidelity says nothing about it: output 'y'" in notes[0]


def test_zeros_that_become_something_else_are_no_fidelity_at_all():
    assert one(floats(0, 0), floats(0, 1)) == 0


def test_a_metric_is_run_on_the_module_and_its_session_closed_whatever_happens():
    runner: Any = FakeRunner({REFERENCE: [{"y": floats(0.75)}], CANDIDATE: [{"y": floats(0.5)}]})
    feed = {"i": np.array(0)}
    judge = MetricJudge(load_metric(lambda infer: infer(feed)["y"][0]), runner, REFERENCE, SessionOptions())
    assert judge.baseline == 0.75 and judge.drop(CANDIDATE) == 0.25 and not runner.open
    broken = load_metric(lambda infer: infer(feed)["nothing"])
    with pytest.raises(InputError, match="KeyError"):
        MetricJudge(broken, runner, REFERENCE, SessionOptions())
    assert not runner.open
