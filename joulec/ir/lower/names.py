"""Which initializer of a lowered model holds which weight of its source, for putting masks back there."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from joulec.ir.module import Module, NamedWeight
from joulec.ir.values import Array

MAX_RANK = 5
"""Kernels of 3D convolutions have rank 5; their 120 transpositions are still few."""

CLOSE = 1e-3


def weights_of(model: Any, module: Module) -> dict[str, NamedWeight]:
    """Find the kernels of a Keras model among the initializers of its lowered form.

    tf2onnx transposes kernels and multiplies batch normalizations into them. An initializer is a kernel's if it equals
    a transposition of it up to one factor per output channel. Where several do, the one that is called like the layer
    is taken. O(weights) per candidate of the same dimensions, most of which a few numbers rule out.
    """
    kernels = named_weights(model)
    candidates: dict[tuple[int, ...], list[str]] = defaultdict(list)
    sizes: dict[int, list[str]] = defaultdict(list)
    held = module.graph.initializers
    for name, value in held.items():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            candidates[_key(tuple(value.const_value.shape.numpy()))].append(name)
            sizes[value.const_value.size].append(name)
    found: dict[str, NamedWeight] = {}
    for path, kernel in kernels.items():
        if not 2 <= kernel.ndim <= MAX_RANK:
            continue
        same = [name for name in candidates[_key(kernel.shape)] if name not in found]
        for name in sorted(same, key=lambda one: not _called_like(one, path)):
            stored = held[name].const_value
            perm = None if stored is None else _transposition(kernel, stored.numpy())
            if perm is not None:
                found[name] = NamedWeight(path, kernel.shape, perm)
                break
        else:
            found |= _reshaped(path, kernel, [name for name in sizes[kernel.size] if name not in found], held)
    return found


def _reshaped(path: str, kernel: Array, names: Sequence[str], held: Mapping[str, Any]) -> dict[str, NamedWeight]:
    """The initializer that holds the very numbers of a kernel in another shape: tf2onnx flattens those of EinsumDense,
    and so of MultiHeadAttention, to matrices."""
    for name in sorted(names, key=lambda one: not _called_like(one, path)):
        stored = held[name].const_value
        if stored is not None and kernel.any() and np.array_equal(stored.numpy().reshape(-1), kernel.reshape(-1)):
            return {name: NamedWeight(path, kernel.shape, tuple(range(kernel.ndim)))}
    return {}


def named_weights(model: Any) -> dict[str, Array]:
    """Every weight of a Keras model by its path, `conv2d/kernel`; a path that is there twice gets a number."""
    counts: Counter[str] = Counter()
    found = {}
    for weight in model.weights:
        path = str(weight.path)
        counts[path] += 1
        found[path if counts[path] == 1 else f"{path}_{counts[path] - 1}"] = np.asarray(weight.numpy())
    return found


def _key(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(int(dim) for dim in shape if dim != 1))


def _called_like(name: str, path: str) -> bool:
    layer = path.split("/")[-2] if "/" in path else path
    return any(part == layer or part.rpartition("_")[0] == layer for part in name.split("/"))


def _transposition(kernel: Array, stored: Array) -> tuple[int, ...] | None:
    """How `kernel` must be transposed to be `stored` up to dimensions of 1 and factors per channel, or None."""
    if kernel.size != stored.size:
        return None
    for perm in sorted(itertools.permutations(range(kernel.ndim)), key=lambda p: _unlikely(p, kernel.ndim)):
        if [kernel.shape[a] for a in perm if kernel.shape[a] != 1] != [d for d in stored.shape if d != 1]:
            continue
        laid = kernel.transpose(perm)
        squeezed = laid.reshape([d for d in laid.shape if d != 1])
        if any(_proportional(squeezed, stored.reshape(squeezed.shape), axis) for axis in _channels(squeezed)):
            return perm
    return None


def _unlikely(perm: tuple[int, ...], rank: int) -> int:
    """The identity and what tf2onnx does to kernels first: equal sizes make several fit in shape."""
    usual = [tuple(range(rank)), (rank - 1, rank - 2, *range(rank - 2)), (rank - 2, rank - 1, *range(rank - 2))]
    return usual.index(perm) if perm in usual else len(usual)


def _channels(array: Array) -> Iterator[int]:
    yield from range(array.ndim)


def _proportional(one: Array, other: Array, axis: int) -> bool:
    """Whether `other` is `one` times a factor for each index along `axis`. A few indices are looked at first."""
    few = np.unique(np.linspace(0, one.shape[axis] - 1, 4).astype(int))
    return _same_ray(one, other, axis, few) and _same_ray(one, other, axis, np.arange(one.shape[axis]))


def _same_ray(one: Array, other: Array, axis: int, indices: Array) -> bool:
    a = np.take(one, indices, axis).astype(np.float64)
    b = np.take(other, indices, axis).astype(np.float64)
    others = tuple(i for i in range(a.ndim) if i != axis)
    energy = (a * a).sum(others, keepdims=True)
    factor = (a * b).sum(others, keepdims=True) / np.where(energy == 0, 1.0, energy)
    scale = np.abs(b).max(initial=0.0)
    return bool(scale > 0 and np.all(np.abs(a * factor - b) <= CLOSE * scale))


def weights_to_json(weights: Mapping[str, NamedWeight]) -> dict[str, Any]:
    """As the child process sends it."""
    return {name: [w.name, list(w.shape), list(w.perm)] for name, w in weights.items()}


def weights_from_json(data: Mapping[str, Any]) -> dict[str, NamedWeight]:
    """The inverse of `weights_to_json`."""
    return {
        str(name): NamedWeight(str(path), tuple(map(int, shape)), tuple(map(int, perm)))
        for name, (path, shape, perm) in data.items()
    }
