"""Numeric equivalence: the same outputs, up to float reassociation, on a few probe feeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from joulec.errors import InputError, JoulecError
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.values import Array

TOLERANCE: Mapping[str, float] = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest deviation allowed per output dtype, relative to the output's largest magnitude. Reassociation of float32
sums in networks of 50 to 200 layers was seen to stay below 2e-5; the 16-bit ones follow their epsilon."""

QUANTIZED_TOLERANCE = 5e-2
"""For models that hold QuantizeLinear: a reassociated sum may fall on the other side of a rounding step."""

_FLOOR = 1e-2
"""Magnitudes below this count as this. What a saturated Sigmoid leaves of a number near 1 is rounding: a text
detector's map was 4e-6 at most, right to 2e-7, which is two steps of float32 at 1. With this floor float32 may
deviate by 1e-6."""


@dataclass(frozen=True)
class Deviation:
    """The worst output of a comparison.

    Attributes:
        output: its name.
        value: max |y - y0| / max |y0|; 0 for equal integers, booleans and strings, infinity for unequal ones.
        tolerance: what is allowed.
    """

    output: str
    value: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is within tolerance."""
        return self.value <= self.tolerance


class Equivalence:
    """Compares modules with a reference on fixed feeds, each run through `runner`.

    Outputs that differ between two runs of the reference itself (random operators) are not compared.

    Args:
        runner: runs them.
        feeds: the reference must run on each of them.
        most: with this, `feeds` are only candidates: the first `most` on which the reference runs are taken.
    """

    def __init__(self, runner: Runner, feeds: Iterable[Feed], most: int | None = None) -> None:
        self._runner = runner
        self._candidates, self._most = feeds, most
        self._feeds: Sequence[Feed] = ()
        self._expected: list[dict[str, Array]] = []
        self._quantized = False
        self.unstable: tuple[str, ...] = ()

    def refer_to(self, module: Module) -> str | None:
        """Make `module` the reference; returns why it cannot be one (it does not run), or None."""
        self._expected = []
        try:
            handle = self._runner.load(module)
        except JoulecError as error:
            return str(error)
        try:
            first, second = self._reference(handle)
        except JoulecError as error:
            return str(error)
        finally:
            self._runner.unload(handle)
        names = dict.fromkeys(name for outputs in first for name in outputs)
        pairs = list(zip(first, second, strict=True))
        self.unstable = tuple(n for n in names if any(deviation(a[n], b[n]) > 1e-6 for a, b in pairs))
        self._expected = [{n: v for n, v in outputs.items() if n not in self.unstable} for outputs in first]
        self._quantized = _quantizes(module)
        return None

    def compare(self, module: Module) -> Deviation | None:
        """The worst deviation of `module` from the reference, or None where there is nothing to compare.

        Raises:
            InputError: the module does not run.
        """
        worst: Deviation | None = None
        if not self._expected:
            return None
        for expected, actual in zip(self._expected, self._outputs(module), strict=True):
            for name, reference in expected.items():
                found = Deviation(name, deviation(reference, actual[name]), self._tolerance(reference))
                if worst is None or found.value / found.tolerance > worst.value / worst.tolerance:
                    worst = found
        return worst

    def _reference(self, handle: int) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
        """Choose the feeds, and the reference's outputs for each, twice in one session: random operators go on.

        Raises:
            InputError: it runs on none of the candidates; the first one's error. Or not on all feeds.
        """
        kept: list[Feed] = []
        first: list[dict[str, Array]] = []
        problem: JoulecError | None = None
        for feed in self._candidates:
            if len(kept) == self._most:
                break
            try:
                first.append(self._runner.run(handle, feed))
                kept.append(feed)
            except JoulecError as error:
                problem = problem or error
        if problem is not None and (self._most is None or not kept):
            raise problem
        self._feeds = kept
        return first, [self._runner.run(handle, feed) for feed in kept]

    def _outputs(self, module: Module) -> list[dict[str, Array]]:
        """The outputs for every feed, in a session of its own."""
        handle = self._runner.load(module)
        try:
            return [self._runner.run(handle, feed) for feed in self._feeds]
        finally:
            self._runner.unload(handle)

    def _tolerance(self, reference: Any) -> float:
        if self._quantized:
            return QUANTIZED_TOLERANCE
        return TOLERANCE.get(str(getattr(reference, "dtype", "")), TOLERANCE["float32"])


def deviation(reference: Any, actual: Any) -> float:
    """max |actual - reference| / max |reference|; NaN equals NaN, an infinity only itself.

    Args:
        reference: array of any dtype, or a list of such (a sequence output).
        actual: the same structure.

    Returns:
        0 for equal, infinity for another shape, dtype, or unequal values that are not floats.
    """
    if isinstance(reference, list) and isinstance(actual, list):
        if len(reference) != len(actual):
            return float("inf")
        return max((deviation(a, b) for a, b in zip(reference, actual, strict=True)), default=0.0)
    if reference is None or isinstance(reference, dict):
        return 0.0 if reference == actual else float("inf")
    return _array_deviation(np.asarray(reference), np.asarray(actual))


def _array_deviation(reference: Array, actual: Array) -> float:
    if reference.shape != actual.shape or reference.dtype != actual.dtype:
        return float("inf")
    if reference.dtype.kind in "biuOSU":
        return 0.0 if np.array_equal(reference, actual) else float("inf")
    wide = np.complex128 if reference.dtype.kind == "c" else np.float64
    one, other = reference.astype(wide), actual.astype(wide)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return float("inf")
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.max(np.abs(one - other)[finite]) / max(float(np.max(np.abs(one[finite]))), _FLOOR))


def _quantizes(module: Module) -> bool:
    ops = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
    return any(node.op_type in ops for node in module.model.graph.all_nodes())


def require_equal(
    reference: Module, module: Module, runner: Runner, feeds: Iterable[Feed], most: int | None = None
) -> Deviation | None:
    """Compare two modules once; see `Equivalence`.

    Raises:
        InputError: the reference does not run on the feeds.
    """
    equivalence = Equivalence(runner, feeds, most)
    if (problem := equivalence.refer_to(reference)) is not None:
        raise InputError(problem)
    return equivalence.compare(module)
