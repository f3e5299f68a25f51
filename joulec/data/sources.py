"""Feeds from whatever the user points at: .npz files, their own function, an iterable, or `random` by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.data.fit import (
    Notes,
    Shapes,
    Slot,
    check_dtype,
    check_names,
    concrete_shapes,
    feed_bytes,
    fit_feed,
    shape_fits,
    slots,
)
from joulec.data.npz import GIB, NpzFile, NpzLimits
from joulec.data.userfile import UserFunction, is_function_spec, load_function, wrap_function
from joulec.errors import InputError
from joulec.ir.feeds import Feed, Feeds, Kind
from joulec.ir.values import Array

DataSpec = str | Path | Feeds | Mapping[str, Any] | Callable[[], Iterable[Any]] | Iterable[Any]
"""What `--data` and `data=` accept."""

RANDOM_FEEDS = 64
"""How many feeds `--data random` yields."""

BUFFER_LIMIT = 1 * GIB
"""A generator can be read only once, so its feeds are kept in memory; this is where that ends."""

SCAN_LIMIT = 256 << 20
"""How many bytes are looked at before work starts, so that bad data is refused at once and not after minutes."""


def load_feeds(
    spec: DataSpec, inputs: Iterable[ir.Value], *, shapes: Shapes | None = None, seed: int = 0,
    limits: NpzLimits | None = None,
) -> Feeds:  # fmt: skip
    """The feeds that `--data` or `data=` names, checked against the model's inputs.

    Args:
        spec: a directory of .npz files (one feed each, in the order of their names); one .npz whose arrays are
            (N, model shape), or (N, rest) where the model's first dimension is symbolic or 1 (rows become batch 1);
            `FILE.py:FUNCTION` or a function returning an iterable of feeds; an iterable of feeds; a dict of such
            arrays; or `random`.
        inputs: the model's inputs that a caller must feed.
        shapes: sizes of symbolic dimensions, used by `random` only.
        seed: of `random`.
        limits: what .npz files may expand to.

    Returns:
        Feeds that read one feed at a time, whatever the source; each is cast to the model's element types, holds the
        model's inputs only, in their order. Casts, arrays left out and NaN are told in `description`.

    Raises:
        InputError: nothing there, no feed in it, or feeds that do not fit the model. Feeds beyond the first
            `SCAN_LIMIT` bytes, and all but the first of a function, are checked when they are read.
    """
    if isinstance(spec, Feeds):
        return spec
    wanted = slots(inputs)
    if isinstance(spec, str) and spec == "random":
        return _random(wanted, shapes or {}, RANDOM_FEEDS, seed, "random")
    notes = Notes()
    source = _source(spec, wanted, limits or NpzLimits(), notes)
    _scan(source, wanted, notes)
    return Feeds(lambda: _fitted(source, wanted, Notes()), "data", _describe(source, notes), source.count)


def synthetic_feeds(inputs: Iterable[ir.Value], shapes: Shapes | None = None, count: int = 4, seed: int = 0) -> Feeds:
    """Seeded inputs for timing and equivalence, never for calibration or accuracy.

    Raises:
        InputError: an input declares no rank, or needs more memory than one feed may; a seed below 0.
    """
    return _random(slots(inputs), shapes or {}, count, seed, "synthetic")


@dataclass(frozen=True)
class _Source:
    """Raw feeds that can be opened again and again, each with its place for error messages."""

    name: str
    open: Callable[[], Iterator[tuple[str, Mapping[str, object]]]]
    count: int | None
    scan: int = SCAN_LIMIT


def _source(spec: Any, wanted: Mapping[str, Slot], limits: NpzLimits, notes: Notes) -> _Source:
    if isinstance(spec, str) and is_function_spec(spec):
        return _from_function(load_function(spec))
    if isinstance(spec, str) and not spec:
        raise InputError("data: no path given")
    if isinstance(spec, str | Path):
        return _from_path(Path(spec), wanted, limits, notes)
    if isinstance(spec, Mapping):
        return _from_table(_ArrayTable(spec), wanted, notes)
    if callable(spec):
        return _from_function(wrap_function(spec))
    if isinstance(spec, Iterable):
        return _from_iterable(spec)
    raise InputError(f"data: cannot read feeds from a {type(spec).__name__}")


def _from_path(path: Path, wanted: Mapping[str, Slot], limits: NpzLimits, notes: Notes) -> _Source:
    if path.is_dir():
        return _from_directory(path, limits)
    if not path.exists():
        hint = "; to read feeds from a function write FILE.py:FUNCTION" if ".py" in path.name else ""
        raise InputError(f"{path}: no such file or directory{hint}")
    if path.suffix == ".py":
        raise InputError(f"{path}: name the function too: {path.name}:FUNCTION")
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a directory")
    return _from_table(_NpzTable(NpzFile(path, limits)), wanted, notes)


def _from_directory(path: Path, limits: NpzLimits) -> _Source:
    files = sorted((file for file in path.iterdir() if file.suffix == ".npz" and file.is_file()), key=lambda f: f.name)
    if not files:
        raise InputError(f"{path}: holds no .npz files")

    def feeds() -> Iterator[tuple[str, Feed]]:
        for file in files:
            archive = NpzFile(file, limits)
            yield str(file), {name: archive.whole(name) for name in archive.members}

    return _Source(str(path), feeds, len(files))


class _NpzTable:
    """Samples stacked along the first axis, in an .npz file."""

    def __init__(self, file: NpzFile) -> None:
        self.name = str(file.path)
        self.rows = file.rows
        self.columns = {member.name: (member.shape, member.dtype) for member in file.members.values()}


class _ArrayTable:
    """Samples stacked along the first axis, in memory."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.name = "data"
        kept = {str(name): np.asarray(array) for name, array in arrays.items()}
        self.columns = {name: (array.shape, array.dtype) for name, array in kept.items()}
        self.rows: Callable[[str], Iterator[Array]] = lambda name: iter(kept[name])


def _from_table(table: _NpzTable | _ArrayTable, wanted: Mapping[str, Slot], notes: Notes) -> _Source:
    if not table.columns:
        raise InputError(f"{table.name}: holds no arrays")
    check_names(table.columns, wanted, table.name, notes)
    batched = {name: _is_batched(slot, table.columns[name], table.name) for name, slot in wanted.items()}
    count = _count({name: table.columns[name][0] for name in wanted}, table.name)

    def feeds() -> Iterator[tuple[str, Feed]]:
        streams = [table.rows(name) for name in wanted]
        for index, rows in enumerate(zip(*streams, strict=True)):
            feed = {n: row if batched[n] else row[np.newaxis] for n, row in zip(wanted, rows, strict=True)}
            yield f"{table.name}, row {index}", feed

    return _Source(table.name, feeds, count)


def _is_batched(slot: Slot, column: tuple[tuple[int, ...], np.dtype[np.generic]], where: str) -> bool:
    """Whether a row of the array is a whole input, or one without its first (symbolic) dimension."""
    shape, dtype = column
    check_dtype(dtype, slot, where)
    if shape and shape_fits(shape[1:], slot.dims):
        return True
    if shape and _open_first(slot) and shape_fits(shape[1:], (slot.dims or ())[1:]):
        return False
    form = "(N, model shape)"
    if _open_first(slot):
        form += " or (N, model shape without its first dimension)"
    raise InputError(
        f"{where}: array '{slot.name}' has shape {list(shape)}, the model wants {slot.describe()}; "
        f"arrays of one .npz must be {form}"
    )


def _open_first(slot: Slot) -> bool:
    """Whether the first dimension can be 1, so that a sample may come without it."""
    first = slot.dims[0] if slot.dims else 0
    return first == 1 or not isinstance(first, int)


def _count(shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise InputError(f"{where}: arrays differ in their number of samples: {said}")
    return next(iter(counts.values()), 0)


def _from_function(function: UserFunction) -> _Source:
    def feeds() -> Iterator[tuple[str, Mapping[str, object]]]:
        with function.told():
            made = function.function()
        if isinstance(made, Mapping) or not isinstance(made, Iterable):
            raise InputError(f"{function.name} returned a {type(made).__name__}; it must yield dicts of arrays")
        iterator = iter(made)
        for index in itertools.count():
            with function.told():
                try:
                    feed = next(iterator)
                except StopIteration:
                    return
            yield f"{function.name}, feed {index}", feed

    return _Source(function.name, feeds, None, scan=0)


def _from_iterable(spec: Iterable[Any]) -> _Source:
    name = "data"
    if iter(spec) is spec:
        kept: Iterable[Any] = _buffered(spec, name)
    else:
        kept = spec
    count = len(kept) if isinstance(kept, list | tuple) else None
    return _Source(name, lambda: ((f"{name}, feed {i}", feed) for i, feed in enumerate(kept)), count)


def _buffered(feeds: Iterable[Any], name: str) -> list[Any]:
    """What a generator yields, kept: calibration and accuracy each read it again."""
    kept, size = [], 0
    for feed in feeds:
        kept.append(feed)
        size += sum(np.asarray(array).nbytes for array in feed.values()) if isinstance(feed, Mapping) else 0
        if size > BUFFER_LIMIT:
            raise InputError(
                f"{name}: a generator can be read only once and this one exceeds {BUFFER_LIMIT / GIB:.0f} GiB; "
                "pass the function that makes it, or a directory of .npz files"
            )
    return kept


def _fitted(source: _Source, wanted: Mapping[str, Slot], notes: Notes) -> Iterator[Feed]:
    for where, feed in source.open():
        if not isinstance(feed, Mapping):
            raise InputError(f"{where}: is of type {type(feed).__name__}; a feed is a dict of input name to array")
        yield fit_feed(feed, wanted, where, notes)


def _scan(source: _Source, wanted: Mapping[str, Slot], notes: Notes) -> None:
    """Look at the first feeds now: emptiness and misfits are refused before any work, and casts are noted."""
    seen = -1
    for feed in _fitted(source, wanted, notes):
        seen = max(seen, 0) + feed_bytes(feed)
        if seen >= source.scan:
            return
    if seen < 0:
        raise InputError(f"{source.name}: holds no feeds")


def _describe(source: _Source, notes: Notes) -> str:
    name = Path(source.name).name or source.name
    count = "" if source.count is None else f"{source.count} feed{'s' if source.count != 1 else ''}"
    said = "; ".join(part for part in (count, *notes.lines) if part)
    return f"{name} ({said})" if said else name


def _random(wanted: Mapping[str, Slot], shapes: Shapes, count: int, seed: int, kind: Kind) -> Feeds:
    if seed < 0:
        raise InputError(f"seed {seed}: must be 0 or larger")
    sizes = concrete_shapes(wanted, shapes)
    # numpy counts what it would need without the dimensions that are 0
    counts = {name: math.prod(dim for dim in size if dim) for name, size in sizes.items()}
    total = sum(counts[name] * max(slot.dtype.itemsize, 1) for name, slot in wanted.items())
    if total > NpzLimits().piece:
        raise InputError(f"one {kind} feed needs {total / GIB:.1f} GiB; give smaller dimensions with --shape")

    def feeds() -> Iterator[Feed]:
        generator = np.random.default_rng(seed)
        for _ in range(count):
            yield {name: _draw(generator, slot, sizes[name]) for name, slot in wanted.items()}

    said = f"{kind} numbers (seed {seed}, {count} feed{'s' if count != 1 else ''})"
    return Feeds(feeds, kind, said, count)


def _draw(generator: np.random.Generator, slot: Slot, shape: tuple[int, ...]) -> Array:
    """Normal floats; 0 or 1 for integers, which are indices and masks more often than quantities."""
    if slot.dtype.hasobject:
        return np.full(shape, "", object)
    if slot.dtype.kind in "iub" or "int" in slot.dtype.name:  # ml_dtypes files its small integers under `V`
        return np.asarray(generator.integers(0, 2, shape)).astype(slot.dtype)
    if slot.dtype.kind == "c":
        return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(slot.dtype)
    return np.asarray(generator.standard_normal(shape, np.float32)).astype(slot.dtype)
