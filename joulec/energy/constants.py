"""What a runtime computes once, when it loads the model: nodes whose inputs never change."""

from __future__ import annotations

import onnx_ir as ir

from joulec.energy.table import formula_of
from joulec.ir import walk
from joulec.ir.values import constant_tensor, static_shape

_RANDOM = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip
_KEPT = frozenset({"DequantizeLinear"})
"""ONNX Runtime does not fold it: a dequantized weight outside an integer kernel is computed in every run."""

_OVERRIDABLE_SINCE = 4
"""IR version from which a graph input with an initializer is a default that callers may feed; before, all initializers
are graph inputs and ONNX Runtime takes them as constants."""


class Constants:
    """The values of a model that are the same in every run, and the nodes that are therefore folded at load.

    One walk in graph order: O(nodes). A Shape or Size of a value whose shape is static is folded too.
    """

    def __init__(self, model: ir.Model) -> None:
        self._values: set[ir.Value] = set()
        if (model.ir_version or 10) < _OVERRIDABLE_SINCE:
            self._values.update(v for v in model.graph.initializers.values() if v.const_value is not None)
        self.folded: set[ir.Node] = set()
        for graph in walk.graphs(model):
            for node in graph:
                if self._is_folded(node):
                    self.folded.add(node)
                    self._values.update(node.outputs)

    def __contains__(self, value: ir.Value | None) -> bool:
        """Whether `value` is the same in every run."""
        return value is not None and (value in self._values or constant_tensor(value) is not None)

    def _is_folded(self, node: ir.Node) -> bool:
        if node.op_type == "Constant" and walk.is_onnx(node):
            return True
        if node.op_type in _RANDOM | _KEPT or formula_of(node) is None or next(walk.subgraphs(node), None) is not None:
            return False
        given = [value for value in node.inputs if value is not None]
        if walk.is_onnx(node, "Shape", "Size") and given and static_shape(given[0]) is not None:
            return True
        return bool(given) and all(value in self for value in given)
