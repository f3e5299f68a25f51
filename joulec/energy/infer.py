"""Shapes and small values of a bound model, in one walk over its nodes.

ONNX's inference comes first, without its data propagation. Where that leaves holes (a Reshape whose target is computed,
a Loop's body), one walk in graph order alternates shape arithmetic with ONNX's inference of single nodes, so that each
computed shape is known before it is needed. O(nodes), whatever the number of computed shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from joulec.energy import proto_types as types
from joulec.energy.known import constant_of, evaluate, small_array
from joulec.energy.proto_types import Type
from joulec.energy.standins import standin_of
from joulec.ir.shapes import negative_dim, read_as_onnx
from joulec.ir.values import Array
from joulec.ir.walk import ONNX_DOMAINS

_REJECTED = (
    onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError,
    TypeError,
)  # fmt: skip
"""What ONNX raises on a node that it cannot infer."""


@dataclass
class Found:
    """What is known inside one graph.

    Attributes:
        types: value name -> type, with as much of its shape as is known.
        values: value name -> its numbers, where they are few and the same in every run at this shape.
        bodies: (position of the node, attribute name) -> what is known inside that graph.
        outer: the graph around it.
    """

    types: dict[str, Type] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    bodies: dict[tuple[int, str], Found] = field(default_factory=dict)
    outer: Found | None = None

    def type(self, name: str) -> Type | None:
        """The type of `name`, here or in a graph around."""
        scope: Found | None = self
        while scope is not None:
            if name in scope.types:
                return scope.types[name]
            scope = scope.outer
        return None

    def value(self, name: str) -> Array | None:
        """The numbers of `name`, here or in a graph around."""
        scope: Found | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of `name`."""
        return types.static_shape(self.type(name))

    def learn(self, name: str, found: Type | None) -> None:
        """Keep a type where it says at least as much as the one before."""
        if name and found is not None and types.known(found) >= types.known(self.types.get(name)):
            self.types[name] = found


def resolve(model: onnx.ModelProto, symbolic: bool = False) -> Found:
    """All types that can be inferred for `model`: its structure, without large weights.

    Args:
        model: changed: what it declares of standard operators' results is dropped.
        symbolic: a dimension that has a symbol counts as found, as while nothing is bound.

    Raises:
        Whatever ONNX's inference raises on a malformed model.
    """
    read_as_onnx(model)
    _forget_declared(model.graph)
    traps = _has_traps(model.graph) or negative_dim(model) is not None
    inferred = model if traps else onnx.shape_inference.infer_shapes(model, False, False, data_prop=False)
    found = _declared(inferred.graph, None)
    names = (name for node in inferred.graph.node for name in node.output if name)
    done = all(types.is_settled(found.types.get(name), symbolic) for name in names)
    if traps or not done or any(_bodies(node) for node in inferred.graph.node):
        _Walk(inferred, symbolic).graph(inferred.graph, found)
    return found


def _has_traps(graph: onnx.GraphProto) -> bool:
    """Whether a Pad crops, maybe by more than there is: ONNX's whole-model inference then aborts at the next Slice.

    The walk takes negative dimensions out after each node.
    """
    made = {tensor.name: small_array(tensor) for tensor in graph.initializer}
    made |= {node.output[0]: constant_of(node) for node in graph.node if node.op_type == "Constant" and node.output}
    for node in graph.node:
        if node.op_type == "Pad":
            stored = made.get(node.input[1]) if len(node.input) > 1 else None
            pads = [*(stored.reshape(-1) if stored is not None else ()), *(i for a in node.attribute for i in a.ints)]
            if any(pad < 0 for pad in pads):
                return True
        if any(_has_traps(body) for body in _bodies(node).values()):
            return True
    return False


def _forget_declared(graph: onnx.GraphProto) -> None:
    """Drop what the file declares of standard operators' results: it may be stale, and inference would build on it."""
    produced = {name for node in graph.node if node.domain in ONNX_DOMAINS for name in node.output}
    kept = [info for info in graph.value_info if info.name not in produced]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for body in _bodies(node).values():
            _forget_declared(body)


def _declared(graph: onnx.GraphProto, outer: Found | None) -> Found:
    """What inference wrote into `graph`, and its small stored tensors."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    found = Found({info.name: info.type for info in infos if info.type.WhichOneof("value")}, outer=outer)
    inputs = {info.name for info in graph.input}
    for tensor in graph.initializer:
        found.types.setdefault(tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
        numbers = small_array(tensor) if tensor.name not in inputs else None
        if numbers is not None:
            found.values[tensor.name] = numbers
    return found


def _bodies(node: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    return {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH}


class _Walk:
    """One walk over a model's graphs."""

    def __init__(self, model: onnx.ModelProto, symbolic: bool) -> None:
        self._symbolic = symbolic
        self._opsets = list(model.opset_import)
        self._versions = {"" if o.domain in ONNX_DOMAINS else o.domain: o.version for o in model.opset_import}
        self._ir_version = model.ir_version

    def graph(self, graph: onnx.GraphProto, found: Found) -> Found:
        """Learn the types and values of every node of `graph`, in order."""
        for position, node in enumerate(graph.node):
            self._node(position, node, found)
        return found

    def _node(self, position: int, node: onnx.NodeProto, found: Found) -> None:
        standard = node.domain in ONNX_DOMAINS
        numbers = constant_of(node) if standard and node.op_type == "Constant" and len(node.attribute) == 1 else None
        result = numbers if numbers is not None else evaluate(node, found.value, found.shape)
        if result is not None:
            found.values[node.output[0]] = result
            found.types[node.output[0]] = types.of_array(result)
            return
        if bodies := _bodies(node):
            self._control(position, node, bodies, found)
        elif not all(types.is_settled(found.types.get(name), self._symbolic) for name in node.output if name):
            self._infer(node, found)

    def _infer(self, node: onnx.NodeProto, found: Found) -> None:
        """ONNX's inference of one node, told the numbers of its small inputs."""
        standin = standin_of(node)
        names = [name for name in dict.fromkeys(node.input) if name]
        given = {name: found.type(name) or Type() for name in names}
        data = {name: numpy_helper.from_array(v) for name in names if (v := found.value(name)) is not None}
        if standin is not None:
            made = self._outputs_of(standin.node(node), types.with_dtype(given, onnx.TensorProto.FLOAT), {})
            made = types.with_dtype(made, standin.dtype or types.dtype(given.get(node.input[standin.inputs[0]])))
        else:
            made = self._outputs_of(node, given, data)
        for name, one in made.items():
            found.learn(name, types.without_nonsense(one))

    def _outputs_of(
        self, node: onnx.NodeProto, given: Mapping[str, Type], data: Mapping[str, onnx.TensorProto]
    ) -> dict[str, Type]:  # fmt: skip
        """Output -> type, as ONNX infers it; nothing for what ONNX does not know or refuses: its sizes stay unknown."""
        domain = "" if node.domain in ONNX_DOMAINS else node.domain
        read = {name: one for name, one in given.items() if name in node.input}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions.get(domain, 1), domain)
            return dict(
                onnx.shape_inference.infer_node_outputs(
                    schema, node, read, dict(data), opset_imports=self._opsets, ir_version=self._ir_version
                )
            )
        except _REJECTED:
            return {}

    # -- control flow ---------------------------------------------------------------------------------------

    def _control(
        self, position: int, node: onnx.NodeProto, bodies: Mapping[str, onnx.GraphProto], found: Found
    ) -> None:
        made: list[list[Type | None]] = []
        for name, body in bodies.items():
            inside = _declared(body, found)
            for info, one in zip(body.input, _fed(node, found), strict=False):
                inside.learn(info.name, one)
            found.bodies[position, name] = self.graph(body, inside)
            if name == _taken(node, found, name):
                made.append([inside.type(output.name) for output in body.output])
        for name, one in zip(node.output, _outputs(node, found, made), strict=False):
            found.learn(name, one)


def _taken(node: onnx.NodeProto, found: Found, name: str) -> str:
    """The branch that an If takes where its condition is known; `name` itself otherwise."""
    condition = found.value(node.input[0]) if node.op_type == "If" and node.input else None
    if condition is None or condition.size != 1:
        return name
    return "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"


def _fed(node: onnx.NodeProto, found: Found) -> list[Type | None]:
    """The types of a body's inputs on its first trip; none for If, and for what this does not know."""
    given = [found.type(name) if name else None for name in node.input]
    if node.op_type == "Loop":
        count, condition = types.of_array(np.zeros((), np.int64)), types.of_array(np.zeros((), np.bool_))
        return [count, condition, *given[2:]]
    if (scanned := _scanned(node)) is not None:
        states = len(given) - len(scanned)
        return [*given[:states], *(types.without_axis(t, a) for t, a in zip(given[states:], scanned, strict=True))]
    return []


def _scanned(node: onnx.NodeProto) -> list[int] | None:
    """The axes of a Scan's scanned inputs; None for other operators and for Scan-8, whose inputs are batched."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type != "Scan" or "num_scan_inputs" not in attributes or "directions" in attributes:
        return None
    count = attributes["num_scan_inputs"].i
    axes = list(attributes["scan_input_axes"].ints) if "scan_input_axes" in attributes else []
    return (axes + [0] * count)[:count] if 0 < count <= len(node.input) else None


def _outputs(node: onnx.NodeProto, found: Found, made: Sequence[Sequence[Type | None]]) -> Iterable[Type | None]:
    """The types of a control-flow node's outputs from those of its bodies."""
    if not made:
        return []
    if node.op_type == "If":
        return [types.join(list(branches)) for branches in zip(*made, strict=False)]
    if node.op_type == "Loop":
        carried = len(node.input) - 2
        return _looped(found, node.input[2:], made[0][1:], carried, _trips(node, found), [])
    if (scanned := _scanned(node)) is not None:
        states = len(node.input) - len(scanned)
        length = types.dim(found.type(node.input[states]), scanned[0])
        axes = next((list(a.ints) for a in node.attribute if a.name == "scan_output_axes"), [])
        return _looped(found, node.input[:states], made[0], states, length, axes)
    return []


def _looped(
    found: Found, initial: Sequence[str], made: Sequence[Type | None], states: int, trips: int | None,
    axes: Sequence[int],
) -> list[Type | None]:  # fmt: skip
    """States keep the dimensions that no trip changes; what is scanned out gains one dimension of length `trips`."""
    kept = [types.join([found.type(name), one]) for name, one in zip(initial, made[:states], strict=False)]
    rest = made[states:]
    stacked = [types.with_axis(one, axes[i] if i < len(axes) else 0, trips) for i, one in enumerate(rest)]
    return [*kept, *stacked]


def _trips(node: onnx.NodeProto, found: Found) -> int | None:
    count = found.value(node.input[0]) if node.input and node.input[0] else None
    return int(count.reshape(-1)[0]) if count is not None and count.size == 1 else None
