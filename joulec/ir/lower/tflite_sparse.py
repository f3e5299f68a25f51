"""Sparse weights of TFLite files, written out densely: tf2onnx reads every buffer as if it held the whole tensor.

The format is `SparsityParameters` of TFLite's schema, which follows the TACO compiler: the dimensions of a tensor, and
the blocks inside some of them, are levels, one below the other in `traversalOrder`. A dense level has all of its
coordinates; a compressed one lists those that are there (`arrayIndices`), and where the list of each position of the
level above begins (`arraySegments`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from joulec.ir.values import Array


def densify(model: Any, schema: Any) -> bool:
    """Write out each sparse tensor of a TFLite `ModelT`, in place, and drop the operators that would do it at load.

    Returns:
        Whether there was one.

    Raises:
        ValueError, IndexError: sparsity parameters that contradict the tensor's shape or its buffer.
    """
    sparse = [tensor for graph in model.subgraphs for tensor in graph.tensors or () if tensor.sparsity is not None]
    for tensor in sparse:
        model.buffers.append(schema.BufferT(_dense(tensor, model.buffers[tensor.buffer].data)))
        tensor.buffer, tensor.sparsity = len(model.buffers) - 1, None
    for graph in model.subgraphs:
        _drop_converters(graph, model, schema)
    return bool(sparse)


def _dense(tensor: Any, data: Any) -> Array:
    """The bytes of the whole tensor."""
    stored = np.asarray([] if data is None else data, np.uint8)
    shape = tuple(int(size) for size in tensor.shape)
    where = coordinates(tensor.sparsity, len(shape))
    count = len(where[0])
    if not count or not len(stored) or len(stored) % count:
        raise ValueError(f"a sparse tensor has {len(stored)} bytes for {count} values")
    dense = np.zeros((*shape, len(stored) // count), np.uint8)
    dense[where] = stored.reshape(count, -1)
    return dense.reshape(-1)


def coordinates(sparsity: Any, rank: int) -> tuple[Array, ...]:
    """Where each stored value belongs.

    Args:
        sparsity: a `SparsityParametersT`.
        rank: of the dense tensor.

    Returns:
        For each dimension the index of every stored value in it, int64, in the order of the buffer.
    """
    order = [int(level) for level in sparsity.traversalOrder]
    found = dict(zip(order, _levels(sparsity.dimMetadata), strict=True))
    sizes = {level: int(metadata.denseSize) for level, metadata in zip(order, sparsity.dimMetadata, strict=True)}
    indices = [found[dimension] for dimension in range(rank)]
    blocked = [] if sparsity.blockMap is None else [int(dimension) for dimension in sparsity.blockMap]
    for block, dimension in enumerate(blocked, start=rank):
        indices[dimension] = indices[dimension] * sizes[block] + found[block]
    return tuple(indices)


def _levels(levels: Any) -> list[Array]:
    """For each level the coordinate of every stored value, int64."""
    above: list[Array] = []
    positions = np.zeros(1, np.int64)
    for level in levels:
        dense = level.arraySegments is None
        parents, positions, here = _all_of(positions, int(level.denseSize)) if dense else _listed(positions, level)
        above = [*(coordinates[parents] for coordinates in above), here]
    return above


def _all_of(positions: Array, size: int) -> tuple[Array, Array, Array]:
    """Below each position all of `size` coordinates: which position each is of, where it is itself, and its value."""
    here = np.tile(np.arange(size, dtype=np.int64), len(positions))
    return np.repeat(np.arange(len(positions)), size), np.repeat(positions * size, size) + here, here


def _listed(positions: Array, level: Any) -> tuple[Array, Array, Array]:
    """The same where only the coordinates are there that a compressed level lists."""
    segments = np.asarray(level.arraySegments.values, np.int64)
    starts, lengths = segments[positions], segments[positions + 1] - segments[positions]
    if (lengths < 0).any():
        raise ValueError("the segments of a sparse tensor run backwards")
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    inside = np.repeat(starts, lengths) + within
    parents = np.repeat(np.arange(len(positions)), lengths)
    return parents, inside, np.asarray(level.arrayIndices.values, np.int64)[inside]


def _drop_converters(graph: Any, model: Any, schema: Any) -> None:
    """Let everybody who reads what a DENSIFY makes read the tensor itself, which is dense by now."""
    densifies = [code == schema.BuiltinOperator.DENSIFY for code in operator_codes(model)]
    same = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators or ()
        if densifies[operator.opcodeIndex]
    }
    if not same:
        return
    graph.operators = [operator for operator in graph.operators if not densifies[operator.opcodeIndex]]
    for reader in graph.operators:
        reader.inputs = [same.get(int(index), int(index)) for index in reader.inputs]
    graph.outputs = [same.get(int(index), int(index)) for index in graph.outputs]


def operator_codes(model: Any) -> list[int]:
    """`BuiltinOperator` of each entry of the model's table; old files fill one of the two fields, newer the other."""
    return [max(int(entry.deprecatedBuiltinCode), int(entry.builtinCode)) for entry in model.operatorCodes or ()]
