"""What changed samples say about data not seen."""

from __future__ import annotations

import numpy as np
import pytest

from joulec.fidelity import Decisions, bound, too_few


def decided(*runs: dict[str, object]) -> Decisions:
    made = Decisions()
    for outputs in runs:
        made.add(outputs)
    return made


def test_changed_samples_are_counted_row_by_row() -> None:
    one = decided({"p": np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)}, {"p": np.array([[0.6, 0.4]], np.float32)})
    two = decided({"p": np.array([[0.8, 0.2], [0.7, 0.3]], np.float32)}, {"p": np.array([[0.9, 0.1]], np.float32)})
    changes = one.changed(two)
    assert changes is not None
    np.testing.assert_array_equal(changes, [0, 1, 0])


def test_other_questions_and_scores_without_decisions_say_nothing() -> None:
    one = decided({"p": np.array([[0.9, 0.1]], np.float32)})
    assert one.changed(decided()) is None
    assert one.changed(decided({"p": np.array([[0.9, 0.1, 0.0]] * 2, np.float32)})) is None
    single = {"p": np.array([[0.9]], np.float32)}
    assert decided(single).changed(decided(single)) is None


def test_sequences_count_the_share_of_their_decisions() -> None:
    before, after = np.zeros((1, 4, 2), np.float32), np.zeros((1, 4, 2), np.float32)
    before[..., 0] = after[..., 0] = 1
    after[0, 0, 1] = 2
    changes = decided({"p": before}).changed(decided({"p": after}))
    assert changes is not None and changes.tolist() == [0.25]


def test_the_bound_shrinks_with_the_samples() -> None:
    few, many = (bound(0.0, np.array([1.0] + [0.0] * (n - 1))) for n in (100, 10_000))
    assert few == pytest.approx(0.01) and many == pytest.approx(0.0001)
    assert bound(0.02, np.zeros(50)) == 0.02


def test_a_promise_takes_three_over_the_budget() -> None:
    assert too_few(100, 0.01) == 300
    assert too_few(300, 0.01) is None
    assert too_few(5, 0.0) is None
