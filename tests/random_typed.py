"""Random models of every element type and opset: a node is tried on real numbers and stays where it works.

What a node makes is computed as it is added, by onnx's reference implementation, so makers need no shape functions: any
operator of the standard can be drawn from its schema alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from random_types import ALL_TYPES, FLOATS, OFTEN, Chooser, Shape, elem, known, tensor, type_of

MOST = 256
"""Elements of the largest value."""


@dataclass(frozen=True)
class Value:
    """A value of the graph that grows: its name, its type as schemas write it, and what it is on the graph's feed.

    `tainted` values depend on a random operator; `fixed` ones on no input.
    """

    name: str
    type: str
    held: Any
    tainted: bool = False
    fixed: bool = False

    @property
    def shape(self) -> Shape:
        return tuple(np.shape(self.held))

    @property
    def elem(self) -> str:
        return self.type.removeprefix("tensor(").removesuffix(")")


@dataclass
class Typed:
    """A graph that grows; the body of a node grows in one of its own, which sees the values outside."""

    choose: Chooser
    opset: int
    odd: bool
    prefix: str = ""
    outer: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    constants: dict[str, Value] = field(default_factory=dict)
    count: int = 0

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"{self.prefix}{hint}{self.count}"

    def seen(self) -> list[Value]:
        return [*self.outer, *self.values]

    def find(self, types: Sequence[str], ranks: Sequence[int] | None = None, tainted: bool = False) -> Value | None:
        """An existing value of one of the types, most often a recent one."""
        found = [v for v in self.seen() if v.type in types and (tainted or not v.tainted)]
        if ranks is not None:
            found = [v for v in found if len(v.shape) in ranks]
        if not found:
            return None
        return found[-1] if self.choose.one_in(2) else self.choose.pick(found)

    def some(self, kinds: Sequence[str], ranks: Sequence[int] | None = None) -> Value | None:
        """An existing tensor of one of the element types, or now and then a constant one."""
        usable = [kind for kind in kinds if self.usable(kind)]
        value = self.find([f"tensor({kind})" for kind in usable], ranks)
        if value is not None and not self.choose.one_in(8):
            return value
        often = [kind for kind in OFTEN if kind in usable] or usable
        return self.constant(
            self.choose.array(self.choose.pick(often), self.choose.shape(ranks or (0, 1, 2, 3)), self.odd)
        )

    def usable(self, kind: str) -> bool:
        """Whether the opset has the element type at all (Constant takes whatever there is)."""
        return known(kind) and f"tensor({kind})" in _storable(self.opset)

    # -- building -------------------------------------------------------------------------------------------

    def constant(self, held: np.ndarray) -> Value:
        """An initializer or a Constant node; sometimes one of the same numbers that is there already."""
        name = self.fresh("c")
        made = self.constants[name] = Value(name, type_of(held), held, fixed=True)
        if made.type == "tensor(int64)" and held.ndim == 1 and held.size and self.opset >= 12 and self.choose.one_in(4):
            self.nodes.append(helper.make_node("Constant", [], [name], value_ints=held.tolist()))
        elif self.choose.one_in(2) or (self.opset < 9 and made.elem not in ("float", "double", "float16")):
            self.initializers.append(tensor(held, name))
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor(held, "")))
        if self.choose.one_in(3):
            self.values.insert(0, made)
        return made

    def ints(self, *numbers: int) -> str:
        """The name of a constant vector."""
        return self.constant(np.array(numbers, np.int64)).name

    def add(
        self, op: str, inputs: Sequence[Value | str | None], outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[Value] | None:
        """Try a node; it stays where it is valid and computes something small. Names stand for constants just made."""
        values = [self._value(one) for one in inputs]
        if op in ("Div", "Mod") and _may_trap(values):
            return None
        names = [v.name if v is not None else "" for v in values]
        while names and not names[-1] and not self.choose.one_in(3):
            names.pop()  # trailing optional inputs may be left out or empty
        made = [self.fresh(op.lower()) for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None and value != []}
        node = helper.make_node(op, names, made, name=self.fresh("n"), domain=domain, **given)
        results = self.attempt(node, made)
        if results is None:
            return None
        self.nodes.append(node)
        tainted = op in RANDOM or any(v.tainted for v in values if v is not None)
        new = [Value(n, t, held, tainted) for n, (t, held) in zip(made, results, strict=True)]
        self.values += new
        return new

    def _value(self, one: Value | str | None) -> Value | None:
        if not isinstance(one, str):
            return one
        return self.constants.get(one) or next((v for v in self.seen() if v.name == one), None)

    def attempt(self, node: onnx.NodeProto, made: Sequence[str]) -> list[tuple[str, Any]] | None:
        """The types and values of the outputs of a node, or None where it is no valid one."""
        wanted = [v for v in (self._value(name) for name in _read_by(node)) if v is not None]
        inputs = {v.name: v for v in wanted}
        model = _alone(node, list(inputs.values()), made, self.opset)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                types = _types(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
                held = ReferenceEvaluator(model).run(None, {name: v.held for name, v in inputs.items()})
        except Exception:  # noqa: BLE001 - whatever is no valid node is not drawn
            return None
        return _agreed(types, held)

    def body(self, prefix: str) -> Typed:
        """A grower of a graph inside a node."""
        return Typed(self.choose, self.opset, self.odd, prefix, self.seen(), constants=dict(self.constants))


RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)


def _may_trap(operands: Sequence[Value | None]) -> bool:
    """Whether an integer division may stop the process: by 0, or of the lowest number by -1."""
    divisor = operands[-1]
    if divisor is None or divisor.elem in FLOATS:
        return False
    return not divisor.fixed or bool(np.isin(divisor.held.astype(np.float64), (0, -1)).any())


def _storable(opset: int) -> frozenset[str]:
    version = max(v for v in (1, 9, 11, 12, 13, 19, 21, 23, 24, 25) if v <= opset)
    if version not in _STORABLE:
        schema = onnx.defs.get_schema("Constant" if version > 1 else "Identity", version, "")
        allowed = next(iter(schema.type_constraints)).allowed_type_strs
        _STORABLE[version] = frozenset(allowed)
    return _STORABLE[version]


_STORABLE: dict[int, frozenset[str]] = {}


def _read_by(node: onnx.NodeProto) -> list[str]:
    """What a node reads, by itself or in its bodies."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        graphs = [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []
        found += [name for graph in graphs for inner in graph.node for name in _read_by(inner)]
        found += [output.name for graph in graphs for output in graph.output]
    return list(dict.fromkeys(found))


def type_proto(name: str, shape: Sequence[Any] | None = None) -> onnx.TypeProto:
    """`seq(tensor(float))` as a TypeProto; `shape` for tensors."""
    for prefix, make in (("seq(", helper.make_sequence_type_proto), ("optional(", helper.make_optional_type_proto)):
        if name.startswith(prefix):
            return make(type_proto(name.removeprefix(prefix).removesuffix(")")))
    return helper.make_tensor_type_proto(elem(name.removeprefix("tensor(").removesuffix(")")), shape)


def _alone(node: onnx.NodeProto, inputs: list[Value], made: Sequence[str], opset: int) -> onnx.ModelProto:
    given = [
        helper.make_value_info(v.name, type_proto(v.type, v.shape if v.type.startswith("tensor") else None))
        for v in inputs
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in made]
    graph = helper.make_graph([node], "g", given, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _types(model: onnx.ModelProto) -> list[str]:
    return [_spelled(output.type) for output in model.graph.output]


def _spelled(proto: onnx.TypeProto) -> str:
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        name = onnx.TensorProto.DataType.Name(proto.tensor_type.elem_type).lower()  # type: ignore[arg-type]
        return f"tensor({name})"
    if kind == "sequence_type":
        return f"seq({_spelled(proto.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({_spelled(proto.optional_type.elem_type)})"
    raise ValueError(f"no type for {kind}")


def _agreed(types: list[str], held: list[Any]) -> list[tuple[str, Any]] | None:
    """Types and values, unless the reference implementation strays from the standard's type, or it got large."""
    for name, value in zip(types, held, strict=True):
        if name.startswith("tensor") and (isinstance(value, list) or value is None or type_of(value) != name):
            return None
        parts = value if isinstance(value, list) else [value]
        if len(parts) > 8 or any(part is not None and (np.size(part) > MOST or np.ndim(part) > 6) for part in parts):
            return None
    return list(zip(types, held, strict=True))


# -- whole models ---------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A finished model and its feed."""

    proto: onnx.ModelProto
    feed: dict[str, Any]


OPSETS = tuple(range(7, 25))


def grow(choose: Chooser, makers: Sequence[Any], steps: int) -> Model:
    """A model with a few inputs of any type, about `steps` nodes and a few outputs."""
    opset = choose.pick((13, 17, 18, 21)) if choose.one_in(2) else choose.pick(OPSETS)
    g = Typed(choose, opset, choose.one_in(3))
    feed: dict[str, Any] = {}
    for index in range(choose.number(1, 3)):
        kind = choose.pick(OFTEN) if not choose.one_in(4) else choose.pick(ALL_TYPES)
        kind = kind if g.usable(kind) else "float"
        held = choose.array(kind, choose.shape(), g.odd)
        g.values.append(Value(f"x{index}", type_of(held), held))
        feed[f"x{index}"] = held
    inputs = [helper.make_value_info(v.name, type_proto(v.type, v.shape)) for v in g.values]
    for _ in range(steps):
        choose.pick(makers)(g)
    computed = [v for v in g.values if v.name not in feed and any(v.name in n.output for n in g.nodes)]
    made = [v for v in computed if not v.fixed] or computed or g.values
    chosen = list(dict.fromkeys([made[-1].name, *(choose.pick(made).name for _ in range(choose.number(0, 2)))]))
    by_name = {v.name: v for v in g.values}
    outputs = [_declared(by_name[name], choose) for name in chosen]
    graph = helper.make_graph(g.nodes, "g", inputs, outputs, g.initializers)
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset < 23 else 11
    )
    return Model(proto, feed)


def _declared(value: Value, choose: Chooser) -> onnx.ValueInfoProto:
    """An output with its shape, with names for its dimensions, or without a shape."""
    if not value.type.startswith("tensor"):
        return helper.make_value_info(value.name, type_proto(value.type))
    if choose.one_in(2):
        return helper.make_value_info(value.name, type_proto(value.type, [None] * len(value.shape)))
    shape = list(value.shape) if choose.one_in(2) else [f"{value.name}_{i}" for i in range(len(value.shape))]
    return helper.make_value_info(value.name, type_proto(value.type, shape))
