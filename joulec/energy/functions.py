"""Model-local functions: priced as the runtime runs them, inlined."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from joulec.ir.module import Module
from joulec.ir.shapes import first_line

MAX_INLINED = 200_000
"""Functions that call functions can grow exponentially; beyond this many nodes they stay calls, which are unknown."""

_Key = tuple[str, str, str]


def inline_functions(module: Module) -> str | None:
    """Inline every function call of `module`; returns why not, or None."""
    if not module.model.functions:
        return None
    size = _Sizes(module.model).of_graphs(module.graph)
    if size is None or size > MAX_INLINED:
        return f"functions were not inlined: they expand to more than {MAX_INLINED} nodes, or call themselves"
    try:
        InlinePass()(module.model)
    except Exception as error:  # noqa: BLE001 - a malformed function; its calls then count as unknown
        return f"functions were not inlined: {first_line(error)}"
    return None


class _Sizes:
    """The number of nodes that each function expands to; None for a function that calls itself. O(nodes)."""

    def __init__(self, model: ir.Model) -> None:
        self._functions = model.functions
        self._known: dict[_Key, int | None] = {}

    def of_graphs(self, graph: ir.Graph) -> int | None:
        """The size of `graph` and its subgraphs once inlined."""
        total = 0
        for one in [graph, *graph.subgraphs()]:
            for node in one:
                size = self._of_node(node)
                if size is None:
                    return None
                total += size
        return total

    def _of_node(self, node: ir.Node) -> int | None:
        key = node.op_identifier()
        if key not in self._functions:
            return 1
        if key not in self._known:
            self._known[key] = None  # a call met while its own function is being counted is a recursion
            self._known[key] = self.of_graphs(self._functions[key].graph)
        return self._known[key]
