"""The text of `--shape`: `batch=8,seq=128`, `x=1x3x320x320`, or a range, `batch=1:8:32` or `batch=1..32`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from joulec.errors import InputError

Spec = dict[str, int | tuple[int, ...]]
"""Symbol or `input[axis]` -> size, or input name -> all its dimensions."""

MAX_DIM = (1 << 31) - 1
"""Larger dimensions are typing errors."""

_DIMS = re.compile(r"[0-9]+(:[0-9]+){0,2}(x[0-9]+(:[0-9]+){0,2})*")
_FORM = "write NAME=8 for a symbol, NAME=1x3x320x320 for an input, or NAME=1:8:32 (or NAME=1..32) for a range"


class SizeRange(int):
    """A dimension that stays open between two sizes. As a number it is the size to optimize for.

    Attributes:
        low, high: the smallest and the largest size that the artefact must take.
    """

    low: int
    high: int

    def __new__(cls, low: int, best: int, high: int) -> SizeRange:
        """The range from `low` to `high`, at its best at `best`."""
        made = super().__new__(cls, best)
        made.low, made.high = low, high
        return made

    def __reduce__(self) -> tuple[type[SizeRange], tuple[int, int, int]]:
        return SizeRange, (self.low, int(self), self.high)

    def __str__(self) -> str:
        return f"{self.low}:{int(self)}:{self.high}"

    __repr__ = __str__


def span_of(size: int) -> tuple[int, int, int]:
    """(Smallest, best, largest) of a size, which is the same number three times unless it is a range."""
    return (size.low, int(size), size.high) if isinstance(size, SizeRange) else (size, size, size)


def spelled_size(size: int | tuple[int, ...]) -> str:
    """A size, or all the dimensions of an input, as `parse_shapes` reads them."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def sweep(spec: Spec) -> list[Spec]:
    """The sizes at which a range is looked at: its smallest, doubled until its largest, which is the last one.

    Raises:
        InputError: more than one entry is a range.
    """
    ranges = [name for name, size in spec.items() if isinstance(size, SizeRange) and size.low < size.high]
    if len(ranges) > 1:
        raise InputError(f"--shape: one range at a time is swept, given are {', '.join(ranges)}")
    return [{**spec, name: size} for name in ranges for size in _doubled(spec[name])]


def _doubled(span: int | tuple[int, ...]) -> list[int]:
    if not isinstance(span, SizeRange):
        return []
    sizes = [span.low]
    while 2 * sizes[-1] < span.high:
        sizes.append(2 * sizes[-1])
    return [*sizes, span.high]


def parse_shapes(texts: str | Iterable[str]) -> Spec:
    """Parse every `--shape` given; several entries in one are separated by commas.

    Raises:
        InputError: an entry is malformed, a size is below 1, or a name is given two different sizes.
    """
    found: Spec = {}
    for text in [texts] if isinstance(texts, str) else texts:
        for entry in text.split(","):
            _add(found, *_split(entry.strip(), text))
    return found


def shapes_from_table(table: Mapping[str, object]) -> Spec:
    """The same from a table in TOML or Python: `{batch = 8, x = [1, 3, 320, 320]}`; strings are parsed as above.

    Raises:
        InputError: an entry is neither a size nor a list of sizes.
    """
    found: Spec = {}
    for name, given in table.items():
        _add(found, name, _from_object(name, given))
    return found


def format_shapes(spec: Mapping[str, int | tuple[int, ...]]) -> str:
    """The text that parses to `spec`."""
    return ",".join(f"{name}={_text(size)}" for name, size in spec.items())


def _text(size: int | tuple[int, ...]) -> str:
    # One dimension needs a mark of its own, or it would read as a symbol's size: both mean the same to a rank-1 input.
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def _split(entry: str, text: str) -> tuple[str, int | tuple[int, ...]]:
    name, equals, size = (part.strip() for part in entry.rpartition("="))
    if not equals or not name:
        raise InputError(f"--shape '{text}': '{entry}' is not NAME=SIZE; {_FORM}")
    return name, _size(name, size)


def _size(name: str, text: str) -> int | tuple[int, ...]:
    lowered = text.lower().replace("..", ":")
    if not _DIMS.fullmatch(lowered):
        raise InputError(f"--shape {name}={text}: '{text}' is not a size; {_FORM}")
    dims = tuple(_checked(name, part) for part in lowered.split("x"))
    return dims[0] if len(dims) == 1 else dims


def _checked(name: str, part: str | int) -> int:
    if isinstance(part, SizeRange) or (isinstance(part, str) and ":" in part):
        return _range(name, str(part))
    part = int(part) if isinstance(part, int) else part
    size = int(part) if len(str(part)) <= 10 else MAX_DIM + 1
    if not 1 <= size <= MAX_DIM:
        raise InputError(f"--shape {name}: size {part} is not between 1 and {MAX_DIM}")
    return size


def _range(name: str, text: str) -> SizeRange:
    sizes = [_checked(name, part) for part in text.split(":")]
    low, best, high = (sizes[0], sizes[-1], sizes[-1]) if len(sizes) == 2 else sizes
    if not low <= best <= high:
        raise InputError(f"--shape {name}={text}: a range is smallest:best:largest, as in 1:8:32")
    return SizeRange(low, best, high)


def _from_object(name: str, given: object) -> int | tuple[int, ...]:
    if isinstance(given, str):
        return _size(name, given)
    if isinstance(given, int) and not isinstance(given, bool):
        return _checked(name, given)
    if isinstance(given, list | tuple) and given and all(type(dim) in (int, SizeRange) for dim in given):
        return tuple(_checked(name, dim) for dim in given)
    raise InputError(f"shape {name}: {given!r} is neither a size nor a list of sizes")


def _add(found: Spec, name: str, size: int | tuple[int, ...]) -> None:
    if _text(found.setdefault(name, size)) != _text(size):
        raise InputError(f"--shape: '{name}' is given twice, as {_text(found[name])} and as {_text(size)}")
