"""The parity gate: the lowered model against the source framework's own outputs, before any pass runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from joulec.errors import CheckError
from joulec.ir.module import Module
from joulec.ir.precision import precision_of
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array

TOLERANCE: Mapping[str, float] = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Allowed |lowered - source| relative to the largest |source| of that output, plus `FLOOR`."""

FLOOR = 1e-5
QUANTIZED_TOLERANCE = 0.1
"""For models that are already quantized: a sum may fall on the other side of a rounding step."""

BATCHES = (1, 2)
OTHER_SIZE = 16
"""Size given to symbolic dimensions other than the batch."""


@dataclass(frozen=True)
class Parity:
    """How far the lowered model is from its source.

    Attributes:
        outputs: output name -> largest deviation relative to the output's largest magnitude.
        feeds: how many seeded feeds were compared.
        note: why nothing was compared, if so.
    """

    outputs: Mapping[str, float]
    feeds: int
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"outputs": dict(self.outputs), "feeds": self.feeds, "note": self.note}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parity:
        """The inverse of `to_json`."""
        return cls(dict(data["outputs"]), int(data["feeds"]), data.get("note"))


Outputs = Mapping[str, Array]


def check(module: Module, source: Callable[[dict[str, Array]], Outputs], *, quantized: bool = False) -> Parity:
    """Run both on the same seeded inputs, batch 1 and batch 2 where the batch is symbolic.

    Args:
        module: the lowered model.
        source: the framework's own function, from input name -> array to output name -> array.
        quantized: whether the model computes in integers.

    Raises:
        CheckError: an output differs; the first one, in the model's order, is named.
    """
    feeds = [_feed(module, batch, seed) for seed, batch in enumerate(BATCHES)]
    if any(feed is None for feed in feeds):
        return Parity({}, 0, "not compared: an input is of a type that cannot be made up")
    worst: dict[str, float] = {}
    inside = QUANTIZED_TOLERANCE if quantized else TOLERANCE.get(precision_of(module), 0.0)
    with LocalRunner() as runner:
        handle = runner.load(module, options=SessionOptions(optimization="basic"))
        for feed in feeds[: 2 if _symbolic(module) else 1]:
            if feed is not None:
                _compare(runner.run(handle, feed), source(feed), worst, inside)
    return Parity(worst, 2 if _symbolic(module) else 1)


def _compare(lowered: Outputs, source: Outputs, worst: dict[str, float], inside: float) -> None:
    """Compare each output; `inside` is what the precision inside the model allows, whatever its outputs are cast to."""
    for name, found in lowered.items():
        expected = np.asarray(source[name])
        if expected.shape != found.shape:
            raise CheckError(f"parity: output '{name}' has shape {found.shape}, the source gives {expected.shape}")
        difference, scale = _difference(found, expected)
        own = TOLERANCE.get(expected.dtype.name, 0.0)
        allowed = max(own, inside) if own else 0.0
        if not difference <= allowed * scale + (FLOOR if allowed else 0.0):
            raise CheckError(
                f"parity: output '{name}' differs from the source framework's by {difference:.3g} "
                f"(largest magnitude {scale:.3g}, allowed {allowed:g} of it)"
            )
        worst[name] = max(worst.get(name, 0.0), difference / max(scale, FLOOR))


def _difference(found: Array, expected: Array) -> tuple[float, float]:
    """Largest absolute difference and largest magnitude; NaN equals NaN."""
    if expected.dtype.kind not in "biuf" and expected.dtype.name != "bfloat16":
        return (0.0 if np.array_equal(found, expected) else np.inf), 1.0
    one, other = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        return np.inf, 1.0
    both = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(one[~both], other[~both], equal_nan=True):
        return np.inf, 1.0
    if not both.any():
        return 0.0, 0.0
    return float(np.abs(one - other)[both].max()), float(np.abs(other[both]).max())


def _symbolic(module: Module) -> bool:
    return any(v.shape is not None and len(v.shape) and not isinstance(v.shape[0], int) for v in module.inputs())


def _feed(module: Module, batch: int, seed: int) -> dict[str, Array] | None:
    generator = np.random.default_rng(seed)
    feed = {}
    for value in module.inputs():
        if value.shape is None or value.dtype is None or value.name is None:
            return None
        shape = [d if isinstance(d, int) else batch if axis == 0 else OTHER_SIZE for axis, d in enumerate(value.shape)]
        array = _random(generator, shape, value.dtype.numpy())
        if array is None:
            return None
        feed[value.name] = array
    return feed


def _random(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array | None:
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(bool) if dtype.kind == "b" else None
