"""Random small graphs for hypothesis: valid ONNX by construction, full of what passes tend to forget.

Numbers are small integers and powers of two, so that float sums are exact and reassociating them costs nothing; NaN,
infinities, -0.0 and integers near overflow come in through inputs and initializers. Shapes are tracked while a graph
grows; every drawn dimension is small, and may be zero or declared as a symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper
from random_kit import BOOL, FLOAT, INT, Draw, Grower, Value
from random_nodes import ALL

REASSOCIATED = frozenset({"Conv", "Gemm", "MatMul", "BatchNormalization", "ReduceSum", "ReduceMean", "Softmax", "CumSum"})


@dataclass
class Grown:
    """A finished graph.

    Attributes:
        model: the model.
        feed: its inputs.
        other: its inputs with other sizes for its symbols; the model need not run on them.
        exact: whether nothing in it may be reassociated, so that outputs must be the same bits.
    """

    model: onnx.ModelProto
    feed: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    exact: bool


@st.composite
def graphs(draw: Draw) -> Grown:
    """A model with one to three inputs, a handful of nodes and one to three outputs."""
    g = Grower(draw, int(draw(st.sampled_from([13, 17, 19, 21]))), bool(draw(st.booleans())))
    inputs, feed, other = [], {}, {}
    for index in range(int(draw(st.integers(1, 2)))):
        _input(g, index, inputs, feed, other)
    inputs.append(helper.make_tensor_value_info("flag", BOOL, []))
    feed["flag"] = np.array(draw(st.booleans()))
    other["flag"] = np.logical_not(feed["flag"], out=np.empty((), bool))
    g.values.append(Value("flag", BOOL, ()))
    g.grow(int(draw(st.integers(1, 8))), ALL)
    chosen = draw(st.lists(st.sampled_from(g.values), max_size=2, unique_by=lambda v: v.name))
    if not chosen or (g.values[-1] not in chosen and draw(st.booleans())):
        chosen = [*chosen, g.values[-1]]
    outputs = [helper.make_tensor_value_info(v.name, v.kind, [None] * len(v.shape)) for v in chosen]
    graph = helper.make_graph(g.nodes, "g", inputs, outputs, g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=9)
    return Grown(model, feed, other, not any(f'op_type: "{op}"' in str(graph) for op in REASSOCIATED))


def _input(
    g: Grower, index: int, inputs: list[onnx.ValueInfoProto], feed: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> None:
    kind = FLOAT if index == 0 else int(g.pick([FLOAT, FLOAT, INT]))
    rank = int(g.pick([4, 4, 4, 2, 2, 3, 1, 0]))
    shape = tuple(int(g.pick([1, 2, 2, 3, 0] if axis == 0 else [1, 2, 3])) for axis in range(rank))
    symbolic = bool(shape) and bool(g.draw(st.booleans()))
    declared = [f"N{index}", *shape[1:]] if symbolic else list(shape)
    inputs.append(helper.make_tensor_value_info(f"x{index}", kind, declared))
    feed[f"x{index}"] = g.numbers(shape, kind)
    other[f"x{index}"] = g.numbers((int(g.pick([0, 1, 3, 4])), *shape[1:]), kind) if symbolic else feed[f"x{index}"]
    g.values.append(Value(f"x{index}", kind, shape))
