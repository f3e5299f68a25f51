"""Accuracy on the held-out digits, as joulec's `--metric` wants it: a function of `infer`, higher is better.

The test sets are those that train.py wrote: in the folder that JOULEC_DEMO names, else in build/demo of the repository.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Infer = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
FOLDER = Path(os.environ.get("JOULEC_DEMO", Path(__file__).resolve().parents[2] / "build" / "demo"))
BATCH = 60


def accuracy_small(infer: Infer) -> float:
    """Share of the 8x8 test digits that the model names right."""
    return accuracy(infer, FOLDER / "small_test.npz")


def accuracy_wide(infer: Infer) -> float:
    """Share of the 32x32 test digits that the model names right."""
    return accuracy(infer, FOLDER / "wide_test.npz")


def accuracy(infer: Infer, test: Path) -> float:
    """Share of the digits in `test` that the model names right."""
    with np.load(test, allow_pickle=False) as file:
        images, labels = file["image"], file["label"]
    right = 0
    for start in range(0, len(images), BATCH):
        (scores,) = infer({"image": images[start : start + BATCH]}).values()
        right += int((scores.argmax(axis=1) == labels[start : start + BATCH]).sum())
    return right / len(images)
