"""Calibration: the range of every activation that quantization needs, from the user's data."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, cast

import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.feeds import Feeds
from joulec.ir.module import Module, Range
from joulec.ir.precision import precision_of
from joulec.ir.rewrite import Refusal, Rewrite
from joulec.passes._calibration_file import Kept, calibration_key, recall, remember
from joulec.passes._data_checks import Classes, DataCheck, instability
from joulec.passes._importance import importances
from joulec.passes._methods import METHODS, Form
from joulec.passes._observe import observe
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.blocks import Block, survey
from joulec.passes.regions import islands
from joulec.passes.spelling import spell_pass

HALF = frozenset({"float16", "bfloat16"})


@dataclass(frozen=True)
class Calibrate(Pass):
    """Record the range of each activation that INT8 needs, on the calibration data.

    One run over the data serves all methods: `minmax`, `average` (moving averages of each feed's extremes),
    `percentile`, `entropy` (least Kullback-Leibler divergence) and `mse` (least squared error of rounding and
    clipping). `auto` takes for each tensor the one that errs least on the half of the data that its range was not
    made from. The same data and model are calibrated once and then read from the cache.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    method: Literal["auto", "minmax", "average", "percentile", "entropy", "mse"] = cast(
        Literal["auto", "minmax", "average", "percentile", "entropy", "mse"],
        option("auto", "how a range is chosen; auto: by measured error, each tensor its own"),
    )
    percentile: float = cast(float, option(99.99, "share of each tensor's numbers that the percentile method keeps"))
    samples: int = cast(int, option(512, "feeds used at most"))
    methods: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "PATTERN:METHOD, the method of tensors by name, over `method`; the first fits")
    )

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], not {self.percentile}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        for given in self.methods:
            pattern, _, method = given.rpartition(":")
            if not pattern or method not in ("auto", *METHODS):
                raise ValueError(f"methods: write PATTERN:METHOD with one of auto, {', '.join(METHODS)}, not '{given}'")

    def run(self, module: Module, context: Context) -> PassResult:
        """Fill `module.ranges`; the graph stays as it is. Memory does not depend on the number of feeds.

        Raises:
            InputError: the data are empty, or a feed does not fit the model.
        """
        reason = _nothing_to_do(module, context)
        scheme = context.target.quantization
        if reason is not None or context.feeds is None or context.runner is None or scheme is None:
            return PassResult.nothing(reason or "")
        values = wanted(module, context)
        if not values:
            return PassResult.nothing(
                f"nothing to calibrate: no operator here has an INT8 kernel on {context.target.name}"
            )
        check = self._checked(context.feeds, context)
        names = [value.name for value in values if value.name]
        key = calibration_key(module, check.digest(), f"{spell_pass(self)} {scheme.activation} {names}")
        kept = recall(context.cache, key)
        if kept is not None:  # no word of it in the report: a rebuild must read like the first build
            context.progress("taking the ranges of an earlier build: model, data and options are the same", 1.0)
        else:
            kept = self._calibrate(module, context, values, check, scheme.activation)
            remember(context.cache, key, kept)
        module.ranges = {name: kept.ranges[name] for name in names if name in kept.ranges}
        bad = tuple(Refusal("calibrate", name, _said(name, *what)) for name, what in kept.broken.items())
        recorded = tuple(Rewrite("record-range", name) for name in module.ranges)
        return PassResult(recorded, bad, tuple(self._notes(kept, check.count, context.feeds)))

    def _checked(self, feeds: Feeds, context: Context) -> DataCheck:
        """Read the data once without the model: what they are, how many, and what is wrong with them."""
        check, total = DataCheck(), min(self.samples, feeds.count or self.samples)
        for feed in itertools.islice(feeds, self.samples):
            check.add(feed)
            context.progress("checking the calibration data", min(1.0, check.count / total))
        if not check.count:
            raise InputError(f"calibration data {feeds.description}: no feeds in it")
        return check

    def _calibrate(
        self, module: Module, context: Context, values: Sequence[ir.Value], check: DataCheck, form: Form
    ) -> Kept:
        classes, worth = Classes(), importances(_blocks(module, context))
        ranges: dict[str, Range] = {}
        broken: dict[str, tuple[str, int]] = {}
        for name, one in observe(module, context, values, check.count, classes, worth):
            if one.broken is not None:
                broken[name] = one.broken
            elif one.count:
                ranges[name] = one.range(self._method_of(name), self.percentile, form)
            context.progress("choosing ranges", (len(ranges) + len(broken)) / len(values))
        findings = (*check.findings(module.inputs(), context.bindings), *classes.findings(), *instability(ranges))
        return Kept(ranges, broken, findings)

    def _method_of(self, name: str) -> str:
        for given in self.methods:
            pattern, _, method = given.rpartition(":")
            if fnmatchcase(name, pattern):
                return method
        return self.method

    def _notes(self, kept: Kept, used: int, feeds: Feeds) -> Iterator[str]:
        made = Counter(one.method for one in kept.ranges.values())
        said = ", ".join(f"{made[method]} {method}" for method in METHODS if made[method])
        yield f"{len(kept.ranges)} tensors calibrated on {used} feeds ({feeds.description}): {said}"
        if feeds.kind == "random":
            yield "the ranges come from random data, asked for by name: expect them to miss the real ones"
        if feeds.count is not None and feeds.count > used:
            yield f"{feeds.count - used} further feeds were not used (samples={self.samples})"
        yield from kept.notes


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
    blocks = _blocks(module, context)
    read = {id(value) for block in blocks for value in block.inputs}
    found: dict[int, ir.Value] = {}
    for block in blocks:
        made = [block.output] if scheme.quantize_outputs and _needs_range(block, read) else []
        for value in (*block.inputs, *made):
            found.setdefault(id(value), value)
    return [value for value in found.values() if value.name]


def _blocks(module: Module, context: Context) -> tuple[Block, ...]:
    scheme = context.target.quantization
    return () if scheme is None else islands(survey(module, scheme, context.target.name).blocks, scheme).kept


def _needs_range(block: Block, read: set[int]) -> bool:
    """Whether the result of `block` becomes integers with a scale of their own."""
    if block.kind in ("movement", "rescale"):
        return False
    return id(block.output) in read or not block.may_end_in_float


def _said(name: str, what: str, feed: int) -> str:
    return f"'{name}' becomes NaN or Inf on the calibration data ({what} in feed {feed})"
