"""Which weights go: by share, by threshold, by pattern. Masks are True where a weight is kept."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from joulec.errors import InputError
from joulec.ir.values import Array
from joulec.passes._prunable import matching

MAX_SCHEDULE = 1 << 20
"""Bytes of a schedule; a larger file is some other file."""


def keep_largest(scores: Array, zeros: int) -> Array:
    """A mask with exactly `zeros` False entries, at the smallest scores; among equals, the first go first. O(n)."""
    flat = scores.ravel()
    mask = np.ones(flat.size, bool)
    if zeros <= 0:
        return mask.reshape(scores.shape)
    border = np.partition(flat, zeros - 1)[zeros - 1]
    below = flat < border
    mask[below] = False
    ties = np.flatnonzero(flat == border)[: zeros - int(below.sum())]
    mask[ties] = False
    return mask.reshape(scores.shape)


def keep_n_of_m(scores: Array, n: int, m: int, axis: int) -> Array:
    """A mask that keeps the `n` largest of every `m` consecutive scores along `axis`.

    Of a rest shorter than `m` at most `n` are kept, as if it were filled up with zeros. Among equals the last stay.
    """
    moved = np.moveaxis(scores, axis, -1)
    rest = -moved.shape[-1] % m
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, rest)], constant_values=-1)
    groups = padded.reshape(*padded.shape[:-1], -1, m)
    order = np.argsort(groups, axis=-1, kind="stable")
    mask = np.ones(groups.shape, bool)
    np.put_along_axis(mask, order[..., : m - n], False, axis=-1)
    flat = mask.reshape(padded.shape)[..., : moved.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis))


def has_n_of_m(mask: Array, n: int, m: int, axis: int) -> bool:
    """Whether of every `m` consecutive entries along `axis` at most `n` are kept: the proof of a pattern."""
    moved = np.moveaxis(mask, axis, -1)
    rest = -moved.shape[-1] % m
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, rest)])
    return bool(np.all(padded.reshape(*padded.shape[:-1], -1, m).sum(-1) <= n))


def blocks(array: Array, rows: int, columns: int) -> Array:
    """Sums over blocks of `rows` x `columns` in the last two axes; blocks at the border may be smaller."""
    *_, height, width = array.shape
    pads = [(0, 0)] * (array.ndim - 2) + [(0, -height % rows), (0, -width % columns)]
    padded = np.pad(array, pads)
    shape = (*padded.shape[:-2], padded.shape[-2] // rows, rows, padded.shape[-1] // columns, columns)
    return np.asarray(padded.reshape(shape).sum((-3, -1)))


def keep_blocks(scores: Array, share: float, rows: int, columns: int, axes: tuple[int, int]) -> Array:
    """A mask that drops this share of the blocks with the smallest mean score; `axes` are the blocks' two axes."""
    moved = np.moveaxis(scores, axes, (-2, -1))
    sizes = blocks(np.ones(moved.shape, np.float32), rows, columns)
    means = blocks(moved.astype(np.float32, copy=False), rows, columns) / sizes
    kept = keep_largest(means, round(share * means.size))
    whole = kept.repeat(rows, -2).repeat(columns, -1)[..., : moved.shape[-2], : moved.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(whole, (-2, -1), axes))


@dataclass(frozen=True)
class Plan:
    """How much of what goes.

    Attributes:
        sparsity: share of weights to zero, or None.
        threshold: zero what scores less, or None.
        scope: `global` or `tensor`.
        tensors: (pattern of names, sparsity) that overrule the share, first match first; 0 leaves a tensor alone.
    """

    sparsity: float | None
    threshold: float | None
    scope: str
    tensors: tuple[tuple[str, float], ...] = ()

    def masks(self, names: Sequence[str], scores: Sequence[Array]) -> Iterator[Array]:
        """The mask of each tensor, in order; counts are exact. A tensor with a share of its own is no part of a
        global choice."""
        own = [matching(name, self.tensors) for name in names]
        shared = self._globally([s for s, share in zip(scores, own, strict=True) if share is None])
        for score, share in zip(scores, own, strict=True):
            if share is not None:
                yield keep_largest(score, round(share * score.size))
            else:
                yield next(shared)

    def _globally(self, scores: Sequence[Array]) -> Iterator[Array]:
        if self.threshold is not None:
            yield from (score >= self.threshold for score in scores)
            return
        share = self.sparsity or 0.0
        if self.scope == "tensor" or not scores:
            yield from (keep_largest(score, round(share * score.size)) for score in scores)
            return
        whole = np.concatenate([score.ravel() for score in scores])
        mask = keep_largest(whole, round(share * whole.size))
        parts = np.split(mask, np.cumsum([score.size for score in scores])[:-1])
        yield from (part.reshape(score.shape) for part, score in zip(parts, scores, strict=True))


def overrides(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`("conv1*=0.3", "fc=0.9")` as pairs.

    Raises:
        ValueError: one has no `=` or no share from 0 to 1 behind it.
    """
    return tuple(_override(*text.rpartition("=")) for text in texts)


def _override(pattern: str, equals: str, number: str) -> tuple[str, float]:
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not equals or not pattern or not 0.0 <= share <= 1.0:
        raise ValueError(f"'{pattern}{equals}{number}': write NAME=SHARE, a share from 0 to 1; * and ? match any name")
    return pattern, share


@dataclass(frozen=True)
class Schedule:
    """A schedule file: `sparsity` or `threshold`, `scope`, a table `[tensors]` of name patterns to shares, and
    `steps`, the growing shares of gradual pruning."""

    plan: Plan
    steps: tuple[float, ...] = ()


def read_schedule(path: str | Path) -> Schedule:
    """Read a schedule, a TOML file.

    Raises:
        InputError: no such file, not TOML, unknown keys, or shares outside 0 to 1.
    """
    file = Path(path)
    data = _toml(file)
    if unknown := sorted(set(data) - {"sparsity", "threshold", "scope", "tensors", "steps"}):
        raise InputError(f"{file}: unknown key '{unknown[0]}'; known: sparsity, threshold, scope, tensors, steps")
    tensors, steps = data.get("tensors", {}), data.get("steps", [])
    shares = [*_numbers(file, "tensors", tensors.values() if isinstance(tensors, dict) else [None])]
    rising = tuple(_numbers(file, "steps", steps if isinstance(steps, list) else [None]))
    sparsity = next(_numbers(file, "sparsity", [data["sparsity"]])) if "sparsity" in data else None
    threshold = data.get("threshold")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise InputError(f"{file}: 'threshold' must be a number")
    if data.get("scope", "global") not in ("global", "tensor"):
        raise InputError(f"{file}: 'scope' must be global or tensor")
    pairs = tuple(zip(tensors, shares, strict=True))
    return Schedule(Plan(sparsity, threshold, data.get("scope", "global"), pairs), rising)


def _toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_SCHEDULE + 1)
        if len(data) > MAX_SCHEDULE:
            raise InputError(f"{file}: larger than {MAX_SCHEDULE >> 20} MiB, not a schedule")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid TOML ({str(error).splitlines()[0]})") from error


def _numbers(file: Path, key: str, values: Any) -> Iterator[float]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{file}: '{key}' takes shares from 0 to 1, not {value!r}"[:300])
        yield float(value)
