"""Made-up feeds in several sizes: which ones a model with open dimensions takes is found out by running it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from joulec.data.fit import Shapes, Slot, concrete_shapes, slots
from joulec.data.sources import synthetic_feeds
from joulec.ir.feeds import Feed, Feeds

SIZES = (16, 32, 64, 224, 512, 1024)
"""Tried one after another where a model takes neither ones nor small sizes: windows of sound, images, sentences."""

NUMBERS = 1 << 22
"""Elements of all inputs up to which `SIZES` are tried: an image of 1024 x 1024, and no volume of that side."""


def probing_feeds(inputs: Iterable[ir.Value], shapes: Shapes, seed: int) -> Feeds:
    """One feed for each way of filling the open dimensions, those that tell most first; for equivalence only.

    First all of them 1, which nearly every model takes. Then small ones, each symbol another: only there does it show
    when two symbols were taken for the same, or a size for a number. Then `SIZES`, with 1 in front. Without open
    dimensions two feeds of different numbers.

    Raises:
        InputError: an input declares no rank, or needs more memory than one feed may; a seed below 0.
    """
    values = list(inputs)
    wanted = slots(values)
    ways = [{**shapes, **way} for way in _ways(_open(wanted, shapes))]
    synthetic_feeds(values, ways[0], 1, seed)

    def feeds() -> Iterator[Feed]:
        for number, way in enumerate(ways):
            if number > 1 and _numbers(wanted, way) > NUMBERS:
                return  # what follows is larger still
            yield from synthetic_feeds(values, way, 1, seed + number)

    return Feeds(feeds, "synthetic", f"synthetic numbers (seed {seed})")


def _numbers(wanted: Mapping[str, Slot], shapes: Shapes) -> int:
    return sum(math.prod(sizes) for sizes in concrete_shapes(wanted, shapes).values())


def _open(wanted: Mapping[str, Slot], shapes: Shapes) -> dict[str, int]:
    """What must be given a size, as `--shape` would name it -> the first axis at which it stands."""
    found: dict[str, int] = {}
    for slot in wanted.values():
        if slot.name in shapes:
            continue
        for axis, dim in enumerate(slot.dims or ()):
            key = f"{slot.name}[{axis}]" if dim is None else dim
            if isinstance(key, str) and key not in shapes:
                found.setdefault(key, axis)
    return found


def _ways(open_sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    if not open_sizes:
        yield from ({}, {})
        return
    yield dict.fromkeys(open_sizes, 1)
    yield {key: 2 + index for index, key in enumerate(open_sizes)}
    for size in SIZES:
        yield {key: 1 if axis == 0 else size for key, axis in open_sizes.items()}
