"""What two models make of the same feeds, and how far apart that is: one number, as norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array

Outputs = Mapping[str, Sequence[Array]]
"""Output name -> one array a feed."""


def outputs_of(runner: Runner, module: Module, feeds: Sequence[Feed], options: SessionOptions | None = None) -> Outputs:
    """Run `module` on each feed.

    Raises:
        InputError: ONNX Runtime refuses the model, or it fails on a feed.
    """
    handle = runner.load(module, options=options)
    try:
        runs = [runner.run(handle, feed) for feed in feeds]
    finally:
        runner.unload(handle)
    return {name: [run[name] for run in runs] for name in runs[0]}


def distance(expected: Outputs, actual: Outputs) -> float:
    """Of the worst output: the norm of the difference by the norm of what was expected, over all feeds.

    Outputs that are no floats count by the share of their elements that differ. Numbers that are finite on one side
    only make the distance infinite.
    """
    return max((_distance(expected[name], actual[name]) for name in expected), default=0.0)


def _distance(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    floats = isinstance(expected[0], np.ndarray) and expected[0].dtype.kind == "f"
    if not floats or any(one.shape != other.shape for one, other in zip(expected, actual, strict=True)):
        same = [np.mean(np.asarray(one == other)) for one, other in zip(expected, actual, strict=True)]
        return 1.0 - float(np.mean(same))
    one, other = (np.concatenate([a.reshape(-1).astype(np.float64) for a in arrays]) for arrays in (expected, actual))
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return float("inf")
    norm = float(np.linalg.norm(one[finite]))
    difference = float(np.linalg.norm(one[finite] - other[finite]))
    return difference / norm if norm > 0 else difference
