"""What changed samples say about data not seen."""

from __future__ import annotations

import numpy as np
import pytest

from joulec.fidelity import Decisions, bound, too_few


def decided(*runs: dict[str, object], like: Decisions | None = None) -> Decisions:
    made = Decisions(like)
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
    words = {"p": np.array([["a"]], object)}
    assert decided(words).changed(decided(words)) is None
    assert decided().changed(decided()) is None


def test_chances_are_yes_or_no_and_what_both_deny_counts_for_nothing() -> None:
    one = decided({"p": np.array([[0.9], [0.2], [0.6]], np.float32)})
    two = decided({"p": np.array([[0.7], [0.3], [0.4]], np.float32)}, like=one)
    changes = one.changed(two)
    assert changes is not None and changes.tolist() == [0, 0, 1]
    page, other = np.full((1, 1, 4, 4), 0.01, np.float32), np.full((1, 1, 4, 4), 0.02, np.float32)
    page[0, 0, 0, :3] = other[0, 0, 0, 1:] = 0.9
    changes = (seen := decided({"map": page})).changed(decided({"map": other}, like=seen))
    assert changes is not None and changes.tolist() == [0.5], "two of the four that either marks"


def test_embeddings_have_no_largest_entry_that_means_anything() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors + np.float32(0.01 / 384**0.5)
    changes = (one := decided({"e": vectors})).changed(decided({"e": near}, like=one))
    assert changes is not None
    np.testing.assert_allclose(changes, 0.01, rtol=1e-3)
    far = one.changed(decided({"e": -vectors}, like=one))
    assert far is not None and far.tolist() == [1] * 5


def test_decisions_count_before_states_of_other_shape() -> None:
    state = np.ones((2, 3, 8), np.float32) * 4
    one = decided({"state": state, "p": np.array([[0.9], [0.2], [0.6]], np.float32)})
    two = decided({"state": state * 2, "p": np.array([[0.9], [0.2], [0.1]], np.float32)}, like=one)
    changes = one.changed(two)
    assert changes is not None and changes.tolist() == [0, 0, 1]


def test_outputs_are_read_as_those_of_the_model_compared_with() -> None:
    """A candidate whose probabilities are broken is still asked for its largest one."""
    one = decided({"p": np.array([[0.9, 0.1]], np.float32)})
    changes = one.changed(decided({"p": np.array([[-5.0, 9.0]], np.float32)}, like=one))
    assert changes is not None and changes.tolist() == [1]


def test_sequences_count_the_share_of_their_decisions() -> None:
    before, after = np.zeros((1, 4, 2), np.float32), np.zeros((1, 4, 2), np.float32)
    before[..., 0] = after[..., 0] = 1
    after[0, 0] = 0, 1
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
