"""What can be wrong with calibration data, found while they are read once before the model runs on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.ir.feeds import Feed
from joulec.ir.module import Range
from joulec.ir.values import Array
from joulec.passes._calibration_file import feed_digest, whole_digest

FEW = 32
"""Feeds below which ranges are said to rest on few; quantization toolkits recommend a hundred to a few hundred."""

MOVED = 0.25
"""A range is said to shift where the halves of the data differ by this share of it."""

NAMED = 3
"""Names listed of a finding."""

MAX_SIZES = 64
"""Sizes of one dimension that are kept."""


@dataclass
class _Input:
    """One model input over all feeds."""

    digests: set[bytes] = field(default_factory=set)
    constant: int = 0
    broken: int = 0
    floating: bool = False
    value: str = ""
    sizes: dict[int, set[int]] = field(default_factory=dict)


@dataclass
class DataCheck:
    """Looks at each feed once; keeps digests and sizes, no numbers.

    Attributes:
        digests: one for each feed, in order.
    """

    digests: list[bytes] = field(default_factory=list)
    _inputs: dict[str, _Input] = field(default_factory=dict)

    def add(self, feed: Feed) -> None:
        """Take one feed."""
        self.digests.append(feed_digest(feed))
        for name, value in feed.items():
            self._add(self._inputs.setdefault(name, _Input()), name, np.asarray(value))

    def _add(self, one: _Input, name: str, array: Array) -> None:
        if len(one.digests) < 2:
            one.digests.add(feed_digest({name: array}))
        one.floating = array.dtype.kind == "f"
        one.value = str(array.item()) if array.size == 1 else f"{array.size} numbers"
        for axis, size in enumerate(array.shape):
            sizes = one.sizes.setdefault(axis, set())
            if len(sizes) < MAX_SIZES:
                sizes.add(size)
        if not one.floating or array.size == 0:
            return
        low, high = float(np.min(array)), float(np.max(array))
        one.broken += not (np.isfinite(low) and np.isfinite(high))
        one.constant += low == high and array.size > 1

    @property
    def count(self) -> int:
        """How many feeds there were."""
        return len(self.digests)

    def digest(self) -> str:
        """What the data are."""
        return whole_digest(self.digests)

    def findings(self, inputs: Sequence[ir.Value], bindings: Mapping[str, object]) -> Iterator[str]:
        """One line for each thing that is wrong or thin.

        Args:
            inputs: the model's inputs.
            bindings: the sizes that the user compiles for, by symbol.
        """
        if self.count < FEW:
            feeds = "1 feed" if self.count == 1 else f"{self.count} feeds"
            yield f"data: only {feeds}; a hundred that look like those in use give steadier ranges"
        same = self.count - len(set(self.digests))
        if same:
            yield f"data: {same} of {self.count} feeds repeat an earlier one and say nothing new"
        for name, one in self._inputs.items():
            yield from self._of_input(name, one)
        for value in inputs:
            yield from self._of_sizes(value, bindings)

    def _of_input(self, name: str, one: _Input) -> Iterator[str]:
        if one.broken:
            yield f"data: input '{name}' holds NaN or Inf in {one.broken} of {self.count} feeds"
        if one.constant:
            yield f"data: input '{name}' is one and the same number throughout in {one.constant} of {self.count} feeds"
        if self.count > 1 and len(one.digests) == 1 and len(set(self.digests)) > 1:
            yield f"data: input '{name}' is the same in every feed ({one.value}); ranges for others were not seen"

    def _of_sizes(self, value: ir.Value, bindings: Mapping[str, object]) -> Iterator[str]:
        seen = self._inputs.get(value.name or "")
        for axis, dim in enumerate(value.shape or ()):
            sizes = sorted(seen.sizes.get(axis, ())) if seen is not None else []
            if not isinstance(dim, ir.SymbolicDim) or not sizes or not dim.value:
                continue
            wanted = bindings.get(dim.value)
            if isinstance(wanted, int) and wanted not in sizes and len(sizes) < MAX_SIZES:
                said = sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
                yield f"data: dimension {axis} of '{value.name}' is {said}, never the {wanted} that you compile for"
            elif axis > 0 and len(sizes) == 1 and self.count > 1 and wanted is None:
                yield f"data: open dimension {axis} of '{value.name}' is {sizes[0]} in every feed; others were not seen"


# -- what shows only while the model runs -----------------------------------------------------------------------


@dataclass
class Classes:
    """The classes that a classifier's output names over the data; outputs that are no probabilities are none.

    Attributes:
        seen: output name -> classes named, and how many there are.
    """

    seen: dict[str, tuple[set[int], int]] = field(default_factory=dict)
    _others: set[str] = field(default_factory=set)

    def add(self, outputs: Mapping[str, Array], names: Sequence[str]) -> None:
        """Take the outputs of one feed."""
        for name in names:
            array = outputs.get(name)
            if name in self._others or array is None:
                continue
            if not _is_distribution(array):
                self._others.add(name)
                self.seen.pop(name, None)
                continue
            named, _ = self.seen.setdefault(name, (set(), array.shape[-1]))
            named.update(int(one) for one in np.argmax(array, axis=-1).ravel())

    def findings(self) -> Iterator[str]:
        """Outputs some of whose classes never occurred."""
        for name, (named, count) in self.seen.items():
            if len(named) < count:
                yield (
                    f"data: of the {count} classes of '{name}' they show {len(named)}; "
                    f"ranges for the other {count - len(named)} were not seen"
                )


def _is_distribution(array: Array) -> bool:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[-1] < 2 or array.dtype.kind != "f":
        return False
    return bool(np.all(array >= 0) and np.allclose(array.sum(axis=-1), 1.0, atol=1e-3))


def instability(ranges: Mapping[str, Range]) -> Iterator[str]:
    """How far the ranges of the two halves of the data lie apart, where that is much."""
    moved = sorted(
        ((one.shift, name) for name, one in ranges.items() if one.shift is not None and one.shift > MOVED),
        key=lambda pair: (-pair[0], pair[1]),
    )
    if not moved:
        return
    worst = ", ".join(f"'{name}' by {100 * shift:.0f} %" for shift, name in moved[:NAMED])
    yield (
        f"data: the extremes of {len(moved)} of {len(ranges)} tensors differ between the halves of the data by more "
        f"than {100 * MOVED:.0f} % of their range ({worst}): more data, or in mixed order, would steady them"
    )
