"""Names of sizes that a file tells ONNX Runtime, and what it makes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import attribute, constant, input_at, tensor_shape


def forget_names(module: Module) -> None:
    """Drop the names of sizes of intermediate values; numbers and ranks stay. O(nodes).

    ONNX Runtime 1.32 takes two values for equal in shape where a file says so by name, and then fuses residual Adds
    into SkipLayerNormalization, whose CPU kernel is slower: 0.89x on a small encoder, 1.02x without the names. A
    Reshape that merges dimensions hands a name on where it keeps a size, and none where it fits the same size.
    """
    for node in walk.nodes(module.model):
        for value in node.outputs if node.domain in walk.RUNTIME_DOMAINS else ():
            if value.shape is not None and not value.is_graph_output():
                value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
    merging = [node for node in walk.nodes(module.model) if walk.is_onnx(node, "Reshape") and _merges(node)]
    if merging:
        _fit(merging, Rewriter(module, "size-names"))


def _fit(merging: list[ir.Node], names: Rewriter) -> None:
    """Reshape(x, (1, 0, 64)) -> Reshape(x, (1, -1, 64)), where x has more dimensions, and the size no number."""
    fitted: dict[ir.Value, ir.Value] = {}
    for node in merging:
        target = input_at(node, 1)
        if target is None or not target.is_initializer() or target.graph is None:
            continue
        if target not in fitted:
            numbers = np.asarray(constant(target))
            tensor = ir.Tensor(np.where(numbers == 0, -1, numbers))
            name, kind = names.fresh(f"{target.name}_fitted"), ir.TensorType(tensor.dtype)
            fitted[target] = ir.Value(name=name, shape=tensor_shape(tensor), type=kind, const_value=tensor)
            target.graph.register_initializer(fitted[target])
        node.replace_input_with(1, fitted[target])
        if not target.uses() and not target.is_graph_output() and target.name is not None:
            del target.graph.initializers[target.name]


def _merges(node: ir.Node) -> bool:
    """Whether one size is kept that has no number, all others are told, and dimensions go."""
    x, numbers = node.inputs[0], constant(input_at(node, 1))
    if x is None or x.shape is None or numbers is None or numbers.ndim != 1 or attribute(node, "allowzero", 0):
        return False
    sizes = [int(size) for size in numbers]
    if sizes.count(0) != 1 or min(sizes) < 0 or len(sizes) >= len(x.shape):
        return False
    return not isinstance(x.shape[sizes.index(0)], int)
