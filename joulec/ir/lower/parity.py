"""The parity gate: the lowered model against the source framework's own outputs, before any pass runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from joulec.errors import CheckError, InputError
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

ROUNDINGS = 10
"""How many rounding steps of the inputs an output may be off, where that is more than `TOLERANCE`.

The numbers of an ill-conditioned model (a logarithm of what nearly cancels) are rounding noise in its own framework
too: TFLite's two sets of kernels differ by twice of what one such step moves, on a pitch tracker that starts with a
constant-Q transform.
"""

MOST = 1e-2
"""The most that sensitivity to rounding excuses, relative to the largest magnitude."""

BATCHES = (1, 2)
OTHER_SIZES = (16, 256, 4096, 65536)
"""Sizes tried for symbolic dimensions other than the batch, until the model takes one."""

MOST_ELEMENTS = 1 << 22
"""The largest input that is made up."""


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


Run = Callable[[dict[str, Array]], Outputs]


def check(module: Module, source: Run, *, quantized: bool = False) -> Parity:
    """Run both on the same seeded inputs, batch 1 and batch 2 where the batch is symbolic.

    Args:
        module: the lowered model.
        source: the framework's own function, from input name -> array to output name -> array.
        quantized: whether the model computes in integers.

    Raises:
        CheckError: an output differs; the first one, in the model's order, is named.
        InputError: the lowered model takes no feed of any size.
    """
    batches = BATCHES if _symbolic(module) else BATCHES[:1]
    worst: dict[str, float] = {}
    inside = QUANTIZED_TOLERANCE if quantized else TOLERANCE.get(precision_of(module), 0.0)
    with LocalRunner() as runner:
        handle = runner.load(module, options=SessionOptions(optimization="basic"))
        for seed, batch in enumerate(batches):
            feed, found = _first_taken(module, lambda feed: runner.run(handle, feed), batch, seed)
            if feed is None:
                return Parity({}, 0, "not compared: an input is of a type that cannot be made up")
            _compare(found, source, feed, worst, inside)
    return Parity(worst, len(batches))


def _first_taken(module: Module, run: Run, batch: int, seed: int) -> tuple[dict[str, Array] | None, Outputs]:
    """The feed with the smallest sizes that the model takes, and what it makes of it.

    The lowered model goes first: TFLite's interpreter divides by zero where a window is longer than the signal.
    """
    refused: InputError | None = None
    for feed in _feeds(module, batch, seed):
        try:
            return feed, run(feed)
        except InputError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return None, {}


def _compare(lowered: Outputs, source: Run, feed: dict[str, Array], worst: dict[str, float], inside: float) -> None:
    """Compare each output; `inside` is what the precision inside the model allows, whatever its outputs are cast to."""
    reference = source(feed)
    for name, found in lowered.items():
        expected = np.asarray(reference[name])
        if expected.shape != found.shape:
            raise CheckError(f"parity: output '{name}' has shape {found.shape}, the source gives {expected.shape}")
        difference, scale = _difference(found, expected)
        own = TOLERANCE.get(expected.dtype.name, 0.0)
        allowed = max(own, inside) if own else 0.0
        if not difference <= allowed * scale + (FLOOR if allowed else 0.0):
            _excuse(name, difference, scale, allowed, _moved(source, feed, name, expected) if allowed else 0.0)
        worst[name] = max(worst.get(name, 0.0), difference / max(scale, FLOOR))


def _excuse(name: str, difference: float, scale: float, allowed: float, moved: float) -> None:
    """Let pass what the source's own rounding explains.

    Raises:
        CheckError: it does not.
    """
    if not difference <= min(ROUNDINGS * moved, MOST * scale):
        raise CheckError(
            f"parity: output '{name}' differs from the source framework's by {difference:.3g} "
            f"(largest magnitude {scale:.3g}, allowed {allowed:g} of it; "
            f"a rounding step of the inputs moves it by {moved:.3g})"
        )


def _moved(source: Run, feed: dict[str, Array], name: str, expected: Array) -> float:
    """How far the source's own output moves when every float input moves by one unit in the last place, up or down."""
    generator = np.random.default_rng(0)
    moves = []
    for _ in range(2):
        nudged = {key: _nudged(value, generator) for key, value in feed.items()}
        difference, _ = _difference(np.asarray(source(nudged)[name]), expected)
        moves.append(difference if np.isfinite(difference) else 0.0)
    return max(moves)


def _nudged(value: Array, generator: np.random.Generator) -> Array:
    if value.dtype.kind != "f":
        return value
    towards = np.where(generator.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
    return np.asarray(np.nextafter(value, towards))


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


def _feeds(module: Module, batch: int, seed: int) -> Iterator[dict[str, Array]]:
    """Ever larger feeds, one where no dimension but the batch is open; none where they cannot be made up."""
    inputs = [(v.name, v.shape, v.dtype) for v in module.inputs() if v.name and v.shape is not None and v.dtype]
    tried: list[list[int]] = []
    for size in OTHER_SIZES if len(inputs) == len(module.inputs()) else ():
        generator = np.random.default_rng(seed)
        shapes = [[_size(d, axis, batch, size) for axis, d in enumerate(shape)] for _, shape, _ in inputs]
        if shapes == tried or (tried and max(map(math.prod, shapes)) > MOST_ELEMENTS):
            return
        drawn = [_random(generator, s, dtype.numpy()) for s, (_, _, dtype) in zip(shapes, inputs, strict=True)]
        feed = {name: array for (name, _, _), array in zip(inputs, drawn, strict=True) if array is not None}
        if len(feed) < len(inputs):
            return
        tried = shapes
        yield feed


def _size(dimension: object, axis: int, batch: int, size: int) -> int:
    return dimension if isinstance(dimension, int) else batch if axis == 0 else size


def _random(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array | None:
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(bool) if dtype.kind == "b" else None
