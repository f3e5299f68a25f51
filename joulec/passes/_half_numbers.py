"""Which numbers 16-bit floats hold: those that are stored, and those that the calibration data make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.values import Array
from joulec.passes._observe import bindings_of, chunks, stream
from joulec.passes.base import Context

HEADROOM = 4.0
"""Data that nobody has seen may be this many times larger than the calibration data before anything overflows."""

ROUNDING = 4.0
"""Stored numbers may lose this many times what rounding normal numbers costs; more means that they are too small."""

DIVISORS = {"Div": (1,), "Reciprocal": (0,), "Log": (0,), "Sqrt": (0,), "Pow": (0,)}
"""Inputs at which a number so small that it becomes 0 changes the result beyond all bounds."""


@dataclass(frozen=True)
class Half:
    """A 16-bit float format: `largest` and the smallest normal number `tiny`, and the unit roundoff."""

    name: str
    dtype: ir.DataType
    largest: float
    tiny: float
    roundoff: float

    def of(self, numbers: Array) -> Array:
        """The numbers rounded to this format."""
        kind = np.float16 if self.name == "float16" else ml_dtypes.bfloat16
        with np.errstate(over="ignore"):
            return numbers.astype(kind)

    def spoiled(self, numbers: Array) -> str | None:
        """Why stored float32 numbers cannot be kept in this format, or None. Infinity is infinity in every format."""
        numbers = numbers[np.isfinite(numbers)]
        wide = numbers.astype(np.float64)
        largest = float(np.max(np.abs(wide), initial=0.0))
        if largest > self.largest:
            return f"stored numbers up to {largest:.3g} overflow {self.name}"
        error, norm = np.linalg.norm(self.of(numbers).astype(np.float64) - wide), np.linalg.norm(wide)
        if norm > 0 and error > ROUNDING * self.roundoff * norm:
            return f"stored numbers around {norm / math.sqrt(wide.size):.2g} are too small for {self.name}"
        return None


FLOAT16 = Half("float16", ir.DataType.FLOAT16, 65504.0, 2.0**-14, 2.0**-11)
BFLOAT16 = Half("bfloat16", ir.DataType.BFLOAT16, 3.38953139e38, 2.0**-126, 2.0**-8)


@dataclass
class Magnitude:
    """What the data made of one float value: its extremes, and the smallest magnitude above 0."""

    low: float = math.inf
    high: float = -math.inf
    smallest: float = math.inf

    def add(self, array: Array) -> None:
        """Look at more numbers; those that are not finite in float32 are so in any format."""
        numbers = array[np.isfinite(array)].astype(np.float32)
        if not numbers.size:
            return
        sizes = np.abs(numbers)
        self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))
        self.smallest = min(self.smallest, float(np.min(sizes, where=sizes > 0, initial=np.inf)))

    @property
    def largest(self) -> float:
        """The largest magnitude, 0 where nothing was seen."""
        return max(self.high, -self.low, 0.0)


def magnitudes(module: Module, context: Context, values: Sequence[ir.Value], samples: int) -> dict[str, Magnitude]:
    """What the data make of `values` of the main graph, by name. Memory is bounded as in calibration.

    Raises:
        InputError: a feed does not fit the model, or the model fails on it.
    """
    if context.runner is None:
        return {}
    given = feeds_of(context, samples)
    parts = chunks(values, bindings_of(module, given[0]))
    found = {name: Magnitude() for names in parts for name in names}
    for index, names in enumerate(parts):
        for turn, arrays in enumerate(stream(module, context.runner, iter(given), names)):
            for name in names:
                for array in arrays[name]:
                    found[name].add(array)
            context.progress("looking at magnitudes", (index + (turn + 1) / len(given)) / len(parts))
    return found


def feeds_of(context: Context, samples: int) -> list[Feed]:
    """The user's data, or the probes where there are none."""
    given: Iterable[Feed] = context.probes if context.feeds is None else context.feeds
    return list(itertools.islice(given, samples))


def spoiled(one: Magnitude, half: Half, *, mask: bool) -> str | None:
    """Why a value cannot be held in 16 bits, or None; below, a `mask` may go to minus infinity."""
    largest = max(one.high, 0.0) if mask else one.largest
    if largest * HEADROOM > half.largest:
        return f"numbers up to {largest:.3g} overflow {half.name}"
    return None


def is_tiny(one: Magnitude, half: Half) -> bool:
    """Whether numbers were seen that become 0, or lose digits."""
    return one.smallest < half.tiny


def masks(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that reach nothing but Softmax, added up or selected: only their order counts, so they may saturate."""
    found: set[int] = set()
    for node in reversed(list(graph)):
        for value in node.inputs:
            if value is not None and id(value) not in found and _only_masks(value, found):
                found.add(id(value))
                yield value


_PASS_ON = frozenset({"Add", "Where", "Expand", "Unsqueeze", "Reshape", "Transpose", "Squeeze", "Slice", "Gather"})


def _only_masks(value: ir.Value, found: set[int]) -> bool:
    if value.is_graph_output() or not value.uses():
        return False
    return all(
        use.node.op_type == "Softmax" or (use.node.op_type in _PASS_ON and id(use.node.outputs[0]) in found)
        for use in value.uses()
    )
