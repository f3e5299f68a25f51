"""Which weight of the source model each stored number came from, so that masks can be put back there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module, NamedWeight, Source
from joulec.ir.values import Array, constant_tensor


def tracked(module: Module) -> Module:
    """A copy of `module` that knows the source of every weight: floating point, of rank 2 at least.

    From here on passes carry `Module.sources` along as they carry masks. Costs 4 bytes per weight once a pass lays it
    out anew, which is why only builds that prune ask for it.
    """
    copy = module.clone()
    for value in _weights(module):
        name, tensor = value.name or "", constant_tensor(value)
        if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) < 2:
            continue
        shape = tuple(int(dim) for dim in tensor.shape.numpy())
        copy.sources[name] = _source(name, shape, module.origin.weights.get(name))
    return copy


def _weights(module: Module) -> Iterator[ir.Value]:
    for graph in walk.graphs(module.model):
        yield from graph.initializers.values()
        for node in graph:
            if walk.is_onnx(node, "Constant"):
                yield node.outputs[0]


def _source(name: str, shape: tuple[int, ...], weight: NamedWeight | None) -> Source:
    if weight is None or np.prod(weight.shape, dtype=np.int64) != np.prod(shape, dtype=np.int64):
        return Source(name, shape)
    whole = Source(weight.name, weight.shape)
    return whole.moved(lambda index: index.transpose(weight.perm).reshape(shape), weight.shape)


def source_masks(module: Module) -> dict[str, Array]:
    """Masks by the names and in the layout of the source model; True where any initializer keeps the number.

    A weight of which everything is kept has no mask. What was removed physically (channels) is False.
    """
    kept: dict[str, Array] = {}
    for graph in walk.graphs(module.model):
        for name, value in graph.initializers.items():
            source, tensor = module.sources.get(name), constant_tensor(value)
            if source is None or tensor is None:
                continue
            index = source.positions(tuple(int(dim) for dim in tensor.shape.numpy()))
            mask = module.masks.get(name)
            flat = kept.setdefault(source.name, np.zeros(source.shape, bool)).reshape(-1)
            flat[(index if mask is None else index[mask]).reshape(-1)] = True
    return {name: mask for name, mask in kept.items() if not mask.all()}
