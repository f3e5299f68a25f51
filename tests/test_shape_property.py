"""Random shape arithmetic and data movement: facts and rewrites hold for every size, empty ones included."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.printer
import onnx_ir as ir
from campaign import campaign
from hypothesis import assume, given, note
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.shapes import infer_shapes
from joulec.ir.symbolic import Element
from joulec.ir.verify import Verifier
from joulec.passes.base import Context
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.simplify_movement import SimplifyMovement
from joulec.passes.simplify_shapes import SimplifyShapes
from joulec.passes.target import Target

PLAIN = SessionOptions(optimization="none")
CONTEXT = Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu"))
INT, FLOAT = TensorProto.INT64, TensorProto.FLOAT
SIZES = [{"N": n, "M": m} for n, m in itertools.product((0, 1, 2, 5), repeat=2) if n or m]
"""Not both 0: a computed 0 in a target copies a dimension, which shows only where two sizes are 0 at once."""

GROWN_AT = {"N": 2, "M": 3}
"""Sizes at which a graph is grown; values that are not shared by chance would hide mistakes."""


@dataclass
class Sprout:
    """A graph that grows, with what its values are at `GROWN_AT`."""

    draw: Any
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    data: dict[str, tuple[int, ...]] = field(default_factory=dict)
    vectors: dict[str, list[int]] = field(default_factory=dict)

    def pick(self, options: list[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def constant(self, value: Any, kind: Any = np.int64) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def vector(self, op: str, inputs: list[str], value: Any, **attributes: Any) -> None:
        self.vectors[self.add(op, inputs, **attributes)] = [int(x) for x in value]

    def tensor(self, op: str, inputs: list[str], shape: Any, **attributes: Any) -> None:
        self.data[self.add(op, inputs, **attributes)] = tuple(int(d) for d in shape)


def _shape(g: Sprout) -> None:
    x = g.pick(list(g.data))
    g.vector("Shape", [x], g.data[x])


def _gather(g: Sprout) -> None:
    v = g.pick(list(g.vectors))
    indices = g.draw(st.lists(st.integers(-len(g.vectors[v]), len(g.vectors[v]) - 1), min_size=1, max_size=3))
    g.vector("Gather", [v, g.constant(indices)], [g.vectors[v][i] for i in indices])


def _slice_vector(g: Sprout) -> None:
    v = g.pick(list(g.vectors))
    start = int(g.draw(st.integers(0, len(g.vectors[v]) - 1)))
    end = int(g.pick([start + 1, len(g.vectors[v]), 2**63 - 1]))
    g.vector("Slice", [v, g.constant([start]), g.constant([end])], g.vectors[v][start:end])


def _concat(g: Sprout) -> None:
    parts = [g.pick(list(g.vectors)) for _ in range(2)]
    if sum(len(g.vectors[p]) for p in parts) <= 5:
        g.vector("Concat", parts, [e for p in parts for e in g.vectors[p]], axis=0)


def _arithmetic(g: Sprout) -> None:
    v = g.pick(list(g.vectors))
    op, number = g.pick([("Add", 1), ("Sub", 1), ("Mul", 2), ("Div", 2), ("Mod", 2), ("Max", 1), ("Min", 2), ("Mul", -1)])
    made = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": lambda a, b: (np.abs(a) // b) * np.sign(a),
            "Mod": np.mod, "Max": np.maximum, "Min": np.minimum}[op](np.array(g.vectors[v]), number)  # fmt: skip
    g.vector(op, [v, g.constant([number])], made)


def _product(g: Sprout) -> None:
    v = g.pick(list(g.vectors))
    g.vector("ReduceProd", [v], [int(np.prod(g.vectors[v]))], keepdims=1)


def _where(g: Sprout) -> None:
    v = g.pick(list(g.vectors))
    number = int(g.pick([-1, 0, 1, 2]))
    op = g.pick(["Equal", "Less", "Greater"])
    flags = {"Equal": np.equal, "Less": np.less, "Greater": np.greater}[op](np.array(g.vectors[v]), number)
    condition = g.add(op, [v, g.constant([number])])
    g.vector("Where", [condition, g.constant([7]), v], np.where(flags, 7, g.vectors[v]))


def _reshape(g: Sprout) -> None:
    """To the shape of a vector of the right product, or to one with a -1, or to two of the dimensions exchanged."""
    x = g.pick(list(g.data))
    size = int(np.prod(g.data[x]))
    fitting = [v for v, e in g.vectors.items() if int(np.prod(e)) == size and min(e) > 0]
    if fitting and g.draw(st.booleans()):
        v = g.pick(fitting)
        g.tensor("Reshape", [x, v], g.vectors[v], allowzero=int(g.draw(st.booleans())))
        return
    dividing = [v for v, e in g.vectors.items() if min(e) > 0 and size % int(np.prod(e)) == 0 and len(e) < 4]
    if dividing:
        v = g.pick(dividing)
        rest = g.constant([-1])
        joint = g.add("Concat", [v, rest] if g.draw(st.booleans()) else [rest, v], axis=0)
        fitted = size // int(np.prod(g.vectors[v]))
        first = g.nodes[-1].input[0] == rest
        g.tensor("Reshape", [x, joint], [fitted, *g.vectors[v]] if first else [*g.vectors[v], fitted])


def _relayout(g: Sprout) -> None:
    x = g.pick(list(g.data))
    shape = g.data[x]
    op = g.pick(["Unsqueeze", "Squeeze", "Flatten", "Transpose", "Reshape"])
    if op == "Unsqueeze" and len(shape) < 5:
        axis = int(g.draw(st.integers(0, len(shape))))
        g.tensor(op, [x, g.constant([axis])], (*shape[:axis], 1, *shape[axis:]))
    elif op == "Squeeze" and g.nodes and any(n.output[0] == x and n.op_type == "Unsqueeze" for n in g.nodes):
        axis = shape.index(1)
        g.tensor(op, [x, g.constant([axis])], (*shape[:axis], *shape[axis + 1 :]))
    elif op == "Flatten":
        axis = int(g.draw(st.integers(0, len(shape))))
        g.tensor(op, [x], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))), axis=axis)
    elif op == "Transpose":
        perm = list(g.draw(st.permutations(range(len(shape)))))
        g.tensor(op, [x], [shape[i] for i in perm], perm=perm)
    elif op == "Reshape" and len(shape) > 1:
        g.tensor(op, [x, g.constant([0, -1])], (shape[0], int(np.prod(shape[1:]))))


def _expand(g: Sprout) -> None:
    x = g.pick(list(g.data))
    fitting = []
    for v, e in g.vectors.items():
        if min(e) > 0:
            try:
                fitting.append((v, np.broadcast_shapes(g.data[x], tuple(e))))
            except ValueError:
                continue
    fitting = [(v, shape) for v, shape in fitting if int(np.prod(shape)) < 500 and len(shape) < 6]
    if fitting:
        v, shape = g.pick(fitting)
        g.tensor("Expand", [x, v], shape)


def _binary(g: Sprout) -> None:
    x, y = g.pick(list(g.data)), g.pick(list(g.data))
    try:
        shape = np.broadcast_shapes(g.data[x], g.data[y])
    except ValueError:
        return
    if int(np.prod(shape)) < 500:
        g.tensor(g.pick(["Add", "Mul", "Max"]), [x, y], shape)


def _slice(g: Sprout) -> None:
    x = g.pick(list(g.data))
    axis = int(g.draw(st.integers(0, len(g.data[x]) - 1)))
    single = [v for v, e in g.vectors.items() if len(e) == 1 and e[0] > 0]
    bound, end = g.data[x][axis], g.constant([int(g.pick([1, 2**31 - 1, 2**63 - 1]))])
    kept = min(bound, int(numpy_helper.to_array(g.initializers[-1])[0]))
    if single and g.draw(st.booleans()):
        end = g.pick(single)
        kept = min(bound, g.vectors[end][0])
    start = g.constant([0])
    g.tensor("Slice", [x, start, end, g.constant([axis])], (*g.data[x][:axis], kept, *g.data[x][axis + 1 :]))


def _join(g: Sprout) -> None:
    x = g.pick(list(g.data))
    axis = int(g.draw(st.integers(0, len(g.data[x]) - 1)))
    rest = (g.data[x][:axis], g.data[x][axis + 1 :])
    same = [y for y, s in g.data.items() if len(s) == len(g.data[x]) and (s[:axis], s[axis + 1 :]) == rest]
    y = g.pick(same)
    total = g.data[x][axis] + g.data[y][axis]
    g.tensor("Concat", [x, y], (*g.data[x][:axis], total, *g.data[x][axis + 1 :]), axis=axis)


def _filled(g: Sprout) -> None:
    fitting = [v for v, e in g.vectors.items() if min(e) >= 0 and int(np.prod(e)) < 500]
    if fitting:
        v = g.pick(fitting)
        g.tensor("ConstantOfShape", [v], g.vectors[v], value=helper.make_tensor("t", FLOAT, [1], [2.0]))


VECTORS = [_shape, _gather, _slice_vector, _concat, _arithmetic, _product, _where]
DATA = [_reshape, _relayout, _relayout, _expand, _binary, _slice, _join, _filled]


@st.composite
def models(draw: Any) -> onnx.ModelProto:
    g = Sprout(draw)
    g.data = {"x": (2, 3, 4), "m": (2, 1, 3)}
    _shape(g)
    for _ in range(int(draw(st.integers(4, 14)))):
        g.pick(VECTORS if draw(st.booleans()) else DATA)(g)
    produced = [name for name in [*g.vectors, *g.data] if name.startswith("v")]
    chosen = draw(st.lists(st.sampled_from(produced), min_size=1, max_size=3, unique=True))
    outputs = [helper.make_tensor_value_info(n, INT if n in g.vectors else FLOAT, None) for n in chosen]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", "M", 4]), helper.make_tensor_value_info("m", FLOAT, ["N", 1, "M"])]
    graph = helper.make_graph(g.nodes, "g", inputs, outputs, g.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def feed(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    n, m = sizes["N"], sizes["M"]
    return {
        "x": np.arange(n * m * 4, dtype=np.float32).reshape(n, m, 4) + 1,
        "m": -np.arange(n * m, dtype=np.float32).reshape(n, 1, m),
    }


def run_all(module: Module) -> list[dict[str, np.ndarray] | None]:
    found: list[dict[str, np.ndarray] | None] = []
    with LocalRunner() as runner:
        handle = runner.load(module, options=PLAIN)
        for sizes in SIZES:
            try:
                found.append(runner.run(handle, feed(sizes)))
            except JoulecError:
                found.append(None)
    return found


def value(element: Element, sizes: dict[str, int], facts: ShapeFacts, module: Module) -> int | None:
    """An expression of N and M evaluated; None where it has other atoms."""
    if isinstance(element, int):
        return element
    names = {facts.symbols.atom(("symbol", id(module.graph), name)).terms[0][0][0]: sizes[name] for name in ("N", "M")}
    total = 0
    for term, factor in element.terms:
        for number in term:
            if number not in names:
                return None
            factor *= names[number]
        total += factor
    return total




@campaign(150)
@given(models())
def test_facts_are_what_a_runtime_computes(model: onnx.ModelProto) -> None:
    module = Module(ir.from_proto(model))
    note(onnx.printer.to_text(model))
    try:
        results = run_all(module)
    except JoulecError:
        assume(False)
    infer_shapes(module)
    facts = ShapeFacts.of(module)
    for sizes, outputs in zip(SIZES, results, strict=True):
        for output in module.graph.outputs if outputs is not None else ():
            actual = outputs[output.name or ""]
            known, shape = facts.facts.get(id(output)), facts.shape(output)
            claims = [value(e, sizes, facts, module) for e in shape or ()]
            if shape is not None:
                assert [c if c is not None else d for c, d in zip(claims, actual.shape, strict=True)] == list(actual.shape)
            if known is not None:
                elements = [value(e, sizes, facts, module) for e in known.elements]
                assert [e if e is not None else a for e, a in zip(elements, actual.ravel(), strict=True)] == actual.ravel().tolist()


@campaign(150)
@given(models())
def test_rewrites_hold_for_every_size(model: onnx.ModelProto) -> None:
    module = Module(ir.from_proto(model))
    note(onnx.printer.to_text(model))
    try:
        results = run_all(module)
    except JoulecError:
        assume(False)
    verifier = Verifier(module)
    for one in (FoldConstants(), SimplifyShapes(), EliminateDeadCode(), SimplifyMovement(), EliminateDeadCode()):
        infer_shapes(module)
        one.run(module, CONTEXT)
        verifier.verify(module)
    note(onnx.printer.to_text(module.to_proto()))
    for sizes, before, after in zip(SIZES, results, run_all(module), strict=True):
        if before is None:
            continue
        note(str(sizes))
        assert after is not None
        for name, expected in before.items():
            np.testing.assert_array_equal(after[name], expected, strict=True)
