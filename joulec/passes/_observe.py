"""Running the model over the calibration data and watching its activations stream by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.values import Array, bound_shape
from joulec.passes._data_checks import Classes
from joulec.passes._exposing import expose
from joulec.passes._importance import Importance
from joulec.passes._ranges import MOST, Observed, bits_for
from joulec.passes.base import Context

RUN_BYTES = 256 << 20
"""Activations fetched by one run, at most; a model with more is run several times over the data."""

UNKNOWN_BYTES = 4 << 20
"""What an activation of unknown shape is taken to need."""


def observe(
    module: Module, context: Context, values: Sequence[ir.Value], count: int, classes: Classes,
    worth: Mapping[str, Importance],
) -> Iterator[tuple[str, Observed]]:  # fmt: skip
    """Watch `values` on the first `count` feeds of the context, and yield what was seen of each.

    Memory is bounded whatever the number of feeds: activations of one feed by `RUN_BYTES`, histograms by
    `_ranges.HISTOGRAM_BYTES`. A model that needs more of either is run several times over the data.

    Args:
        module, context, values: the model, what runs it on what, and the float values to watch.
        count: feeds used.
        classes: takes the model's own outputs.
        worth: what errors in the channels of a value are worth, by its name.

    Raises:
        InputError: a feed does not fit the model, or the model fails on it.
    """
    if context.feeds is None or context.runner is None:
        return
    outputs = [value.name for value in module.graph.outputs if value.name]
    parts = chunks(values, bindings_of(module, next(iter(context.feeds))))
    bits = bits_for(max(map(len, parts), default=0))
    for index, names in enumerate(parts):
        seen = {name: Observed(bits, worth.get(name)) for name in names}
        places: dict[str, set[int]] = {name: set() for name in names}
        counts: dict[str, int] = {}
        feeds = itertools.islice(context.feeds, count)
        for turn, arrays in enumerate(stream(module, context.runner, feeds, names)):
            for name, one in seen.items():
                counts[name] = len(arrays[name])
                for place, array in enumerate(arrays[name]):
                    one.add(array, turn, second=2 * turn >= count)
                    places[name] |= {place} if array.size else set()
            if index == 0:
                classes.add({name: arrays[name][0] for name in outputs}, outputs)
            context.progress("calibrating", min(1.0, (index + (turn + 1) / count) / len(parts)))
        # Of a name that several branches use, all must have run: one range serves them all.
        yield from ((name, one) for name, one in seen.items() if len(places[name]) == counts.get(name))


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
    """Split value names into runs of at most `limit` bytes of activations and `MOST` values, and at least one."""
    parts: list[list[str]] = []
    room = 0
    for value in values:
        need = _bytes(value, bindings)
        if not parts or need > room or len(parts[-1]) >= MOST:
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


def stream(
    module: Module, runner: Runner, feeds: Iterator[Feed], names: Sequence[str]
) -> Iterator[dict[str, list[Array]]]:
    """Yield the named values for each feed, and the model's outputs; a value of several branches has several arrays.

    Those that are inputs are taken from the feed itself.
    """
    inputs = {value.name for value in module.graph.inputs}
    opened, carriers = expose(module, names)
    asked = [one for name in names if name not in inputs for one in carriers.get(name, [name])]
    handle = runner.load(opened, extra_outputs=asked)
    try:
        for feed in feeds:
            outputs = runner.run(handle, feed)
            arrays = {name: [array] for name, array in outputs.items()}
            arrays.update((name, [np.asarray(feed[name])]) for name in names if name in inputs)
            arrays.update((name, [outputs[one] for one in carried]) for name, carried in carriers.items())
            yield arrays
    finally:
        runner.unload(handle)
