"""What the cases of the benchmark share: the float models, and how their data are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from simplify_models import sources

SEED, CALIBRATION = 0, 256


def float_model(name: str) -> Path:
    """The file of a model of the simplifier's benchmark."""
    return next(source for source in sources() if source.name == name).make()


def shuffled(*columns: np.ndarray) -> list[np.ndarray]:
    """The same rows of every column in one random order."""
    order = np.random.default_rng(SEED).permutation(len(columns[0]))
    return [column[order] for column in columns]


def write(place: Path, inputs: Mapping[str, np.ndarray], calibration: int = CALIBRATION, **truth: np.ndarray) -> None:
    """The first rows become calibration data, the others the test set with the truth about them."""
    np.savez(place / "calibration.npz", **{name: rows[:calibration, None] for name, rows in inputs.items()})
    tested = {name: rows[calibration:] for name, rows in (inputs | truth).items()}
    np.savez(place / "test.npz", **tested)
