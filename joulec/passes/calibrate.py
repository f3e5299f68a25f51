"""Calibration: the range of every activation that quantization needs, from the user's data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module, Range
from joulec.ir.precision import precision_of
from joulec.ir.rewrite import Refusal, Rewrite
from joulec.ir.runner import Runner
from joulec.ir.values import Array, bound_shape
from joulec.passes._ranges import Histogram, Observed
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.blocks import Block, survey
from joulec.passes.regions import islands

RUN_BYTES = 256 << 20
"""Activations fetched by one run, at most; a model with more is run several times over the data."""

HALF = frozenset({"float16", "bfloat16"})

UNKNOWN_BYTES = 4 << 20
"""What an activation of unknown shape is taken to need."""


@dataclass(frozen=True)
class Calibrate(Pass):
    """Record the range of each activation that INT8 needs, on the calibration data."""

    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    method: Literal["minmax", "percentile"] = cast(
        Literal["minmax", "percentile"], option("minmax", "minmax, or percentile: cut rare outliers")
    )
    percentile: float = cast(float, option(99.99, "share of each tensor's numbers that the percentile method keeps"))
    samples: int = cast(int, option(512, "feeds used at most"))

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], not {self.percentile}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def run(self, module: Module, context: Context) -> PassResult:
        """Fill `module.ranges`; the graph stays as it is. Memory does not depend on the number of feeds.

        Raises:
            InputError: the data are empty, or a feed does not fit the model.
        """
        reason = _nothing_to_do(module, context)
        if reason is not None or context.feeds is None or context.runner is None:
            return PassResult.nothing(reason or "")
        values = wanted(module, context)
        if not values:
            return PassResult.nothing(
                f"nothing to calibrate: no operator here has an INT8 kernel on {context.target.name}"
            )
        seen, feeds = self._observe(module, context.feeds, context.runner, values, context)
        module.ranges = {name: self._range(one) for name, one in seen.items() if one.count and not one.broken}
        bad = tuple(_refusal(name) for name, one in seen.items() if one.broken)
        recorded = tuple(Rewrite("record-range", name) for name in module.ranges)
        return PassResult(recorded, bad, tuple(self._notes(module, context.feeds, feeds)))

    def _observe(
        self, module: Module, feeds: Feeds, runner: Runner, values: Sequence[ir.Value], context: Context
    ) -> tuple[dict[str, Observed], int]:
        first = next(iter(feeds), None)
        if first is None:
            raise InputError(f"calibration data {feeds.description}: no feeds in it")
        seen = {name: self._observer() for value in values if (name := value.name)}
        parts = chunks(values, bindings_of(module, first))
        total = min(self.samples, feeds.count or self.samples)
        used = 0
        for index, names in enumerate(parts):
            used = 0
            for used, outputs in enumerate(_stream(module, runner, itertools.islice(feeds, self.samples), names), 1):
                for name in names:
                    seen[name].add(outputs[name])
                context.progress("calibrating", min(1.0, (index + used / total) / len(parts)))
        return seen, used

    def _observer(self) -> Observed:
        return Observed(Histogram() if self.method == "percentile" else None)

    def _range(self, one: Observed) -> Range:
        low, high = (one.low, one.high) if one.histogram is None else one.histogram.interval(self.percentile)
        return Range(max(low, one.low), min(high, one.high), self.method)

    def _notes(self, module: Module, feeds: Feeds, used: int) -> Iterator[str]:
        yield f"{len(module.ranges)} tensors calibrated on {used} feeds ({feeds.description}), {self.method}"
        if feeds.kind == "random":
            yield "the ranges come from random data, asked for by name: expect them to miss the real ones"
        if feeds.count is not None and feeds.count > used:
            yield f"{feeds.count - used} further feeds were not used (samples={self.samples})"


def _nothing_to_do(module: Module, context: Context) -> str | None:
    if context.target.quantization is None:
        return f"nothing to calibrate: {context.target.name} has no integer kernels"
    if context.feeds is None or context.feeds.kind == "synthetic":
        return "no calibration data: give --data to unlock INT8 quantization"
    if context.runner is None:
        return "no calibration: nothing to run the model with (install joulec[cpu])"
    return not_quantizable(module)


def not_quantizable(module: Module) -> str | None:
    """Why a model must stay as it is: nothing is quantized twice, and half precision is another form altogether."""
    precision = precision_of(module)
    if precision == "quantized":
        return "the model is quantized already: never quantized twice"
    return f"the model computes in half precision ({precision}): not quantized" if precision in HALF else None


def wanted(module: Module, context: Context) -> list[ir.Value]:
    """The activations around every operator that the target has an INT8 kernel for, once each, in graph order."""
    scheme = context.target.quantization
    if scheme is None:
        return []
    blocks = islands(survey(module, scheme, context.target.name).blocks, scheme).kept
    read = {id(value) for block in blocks for value in block.inputs}
    found: dict[int, ir.Value] = {}
    for block in blocks:
        made = [block.output] if scheme.quantize_outputs and _needs_range(block, read) else []
        for value in (*block.inputs, *made):
            found.setdefault(id(value), value)
    return [value for value in found.values() if value.name]


def _needs_range(block: Block, read: set[int]) -> bool:
    """Whether the result of `block` becomes integers with a scale of their own."""
    if block.kind in ("movement", "rescale"):
        return False
    return id(block.output) in read or not block.may_end_in_float


def bindings_of(module: Module, feed: Feed) -> dict[str, int]:
    """What `feed` says about the symbolic dimensions of the inputs."""
    bindings: dict[str, int] = {}
    for value in module.inputs():
        given = feed.get(value.name or "")
        if given is None or value.shape is None or np.ndim(given) != len(value.shape):
            continue
        for dim, size in zip(value.shape, np.shape(given), strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                bindings[dim.value] = int(size)
    return bindings


def chunks(values: Sequence[ir.Value], bindings: Mapping[str, int], limit: int = RUN_BYTES) -> list[list[str]]:
    """Split value names into runs whose activations stay below `limit` bytes, at least one value a run."""
    parts: list[list[str]] = []
    room = 0
    for value in values:
        need = _bytes(value, bindings)
        if not parts or need > room:
            parts.append([])
            room = limit
        parts[-1].append(value.name or "")
        room -= need
    return parts


def _bytes(value: ir.Value, bindings: Mapping[str, int]) -> int:
    dims = bound_shape(value, bindings)
    if dims is None or None in dims:
        return UNKNOWN_BYTES
    return 4 * int(np.prod([dim for dim in dims if dim is not None], dtype=np.float64))


def _stream(module: Module, runner: Runner, feeds: Iterator[Feed], names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Yield the named values for each feed. Those that are inputs are taken from the feed itself."""
    inputs = {value.name for value in module.graph.inputs}
    handle = runner.load(module, extra_outputs=[name for name in names if name not in inputs])
    try:
        for feed in feeds:
            outputs = runner.run(handle, feed)
            outputs.update((name, np.asarray(feed[name])) for name in names if name in inputs)
            yield outputs
    finally:
        runner.unload(handle)


def _refusal(name: str) -> Refusal:
    return Refusal("calibrate", name, f"'{name}' becomes NaN or Inf on the calibration data")


def to_json(ranges: Mapping[str, Range]) -> str:
    """The text of `calibration.json`: ranges by value name, in order of name."""
    rows = {name: {"low": r.low, "high": r.high, "method": r.method} for name, r in sorted(ranges.items())}
    return json.dumps({"version": 1, "ranges": rows}, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> dict[str, Range]:
    """Read what `to_json` wrote.

    Raises:
        InputError: the text is not such a file.
    """
    try:
        rows = json.loads(text)["ranges"]
        ranges = {str(name): _read(row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"calibration.json: not a file of joulec ({type(error).__name__}: {error})") from error
    for name, one in ranges.items():
        if not (np.isfinite(one.low) and np.isfinite(one.high) and one.low <= one.high):
            raise InputError(f"calibration.json: the range of '{name}' is not an interval")
    return ranges


def _read(row: Mapping[str, object]) -> Range:
    return Range(float(str(row["low"])), float(str(row["high"])), str(row["method"]))
