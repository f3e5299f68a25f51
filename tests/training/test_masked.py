"""The schedule of pruning, what goes first, and what a recipe refuses: all that needs no TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from joulec.errors import InputError
from joulec.report.training_tables import curve
from joulec.training.masked import Schedule, smallest
from joulec.training.recipe import Recipe


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (25, 0.8 * (1 - 0.75**3)), (50, 0.7), (100, 0.8), (900, 0.8)])
def test_sparsity_follows_zhu_and_gupta(step: int, share: float) -> None:
    assert Schedule.over(0.8, 100).at(step) == pytest.approx(share, rel=1e-12)


def test_a_schedule_prunes_about_a_hundred_times_and_at_its_end() -> None:
    schedule = Schedule.over(0.5, 1037)
    due = [step for step in range(3000) if schedule.due(step)]
    assert len(due) == 105
    assert due[-1] == 1037


@settings(deadline=None)
@given(
    st.lists(arrays.arrays(np.float32, st.integers(0, 9), elements=st.floats(-9, 9, width=32)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_exactly_the_smallest_share_goes(found: list[np.ndarray], share: float) -> None:
    weights = {f"w{at}": array for at, array in enumerate(found)}
    masks = smallest(weights, share)
    total = sum(array.size for array in found)
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(share * total)
    gone = [abs(weights[n][~m]) for n, m in masks.items()]
    kept = [abs(weights[n][m]) for n, m in masks.items()]
    assert max(np.concatenate(gone), default=0.0) <= min(np.concatenate(kept), default=np.inf)


def test_only_what_is_free_goes() -> None:
    weights = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([0.5, 9.0])}
    free = {"a": np.array([[False, True], [True, True]]), "b": np.array([False, True])}
    masks = smallest(weights, 0.5, free)
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "--epochs 0: write a number from 1 to 1e"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"sparsity": 1.0}, "--sparsity 1.0: write a number from 0 to 0.999"),
        ({"optimizer": "lion"}, "--optimizer lion: write adamw, adam or sgd"),
        ({"precision": "float8"}, "--precision float8: write float32, mixed_float16 or mixed_bfloat16"),
        ({"batch": "many"}, "--batch many"),
        ({"epochs": None}, "--epochs None"),
    ],
)
def test_recipes_that_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Recipe(**wrong)  # type: ignore[arg-type]


def test_a_recipe_survives_the_way_to_a_child() -> None:
    recipe = Recipe(epochs=3, freeze=("a*", "b"), sparsity=0.5, dropout=0.0)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.gradually
    assert not Recipe(freeze_backbone=False, new_head=3).backbone_frozen


def test_a_curve_of_numbers() -> None:
    assert curve([0.0, 0.5, 1.0, "nan"]) == "▁▅█ "
    assert curve([0.3, 0.3]) == "██"
    assert len(curve([float(i) for i in range(1000)])) <= 60
