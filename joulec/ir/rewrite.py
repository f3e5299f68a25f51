"""The rewriter: the only door to mutation.

Every change passes through `Rewriter`, so what a pass did is observed, not self-reported; provenance lands on
every node that a rewrite makes or edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.allowance import Spent
from joulec.ir.module import Module
from joulec.ir.provenance import Lineage
from joulec.ir.values import Array, FunctionAttribute, constant_tensor, tensor_shape


class Refused(Exception):
    """Raised by a rule that nearly matched, with the reason it did not apply. Nothing was changed."""


@dataclass(frozen=True)
class Rewrite:
    """One observed change: which rule, at which node, what it removed and made (node names)."""

    rule: str
    node: str
    removed: tuple[str, ...] = ()
    created: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """One rewrite that was not made, and why."""

    rule: str
    node: str
    reason: str


@dataclass
class _Scope:
    """What happens inside one `rewriting` block."""

    rule: str
    node: str
    lineage: Lineage
    removed: list[str] = field(default_factory=list)
    changed: bool = False


class Rewriter:
    """Makes, replaces and erases nodes of one module on behalf of one pass, and keeps the record.

    Args:
        module: the module to change.
        pass_name: stamped on every node made or edited.
    """

    def __init__(self, module: Module, pass_name: str) -> None:
        self.module = module
        self.pass_name = pass_name
        self.rewrites: list[Rewrite] = []
        self.refusals: dict[tuple[str, str, str], Refusal] = {}
        self.on_touch: Callable[[ir.Node], None] = lambda node: None
        self._names = _value_names(module.model)
        self._node_names = {node.name for node in walk.nodes(module.model)}
        self._function_graphs = _function_graphs(module.model)
        self._scope: _Scope | None = None

    # -- the record -----------------------------------------------------------------------------------------

    @contextmanager
    def rewriting(self, rule: str, *nodes: ir.Node) -> Iterator[None]:
        """Group the changes made inside the block into one `Rewrite` of `rule`; without changes, no record."""
        if self._scope is not None:
            raise RuntimeError(f"rewrite '{rule}' inside rewrite '{self._scope.rule}'")
        scope = _Scope(rule, record_name(nodes[0]) if nodes else "", Lineage(nodes))
        self._scope = scope
        try:
            yield
        except Spent:
            pass  # asked for before the first change, so there is nothing to undo and nothing to record
        except (Refused, FunctionAttribute) as refusal:
            self._refuse(scope, str(refusal))
        finally:
            self._scope = None
            if scope.changed:
                self._close(scope)

    def refuse(self, rule: str, node: ir.Node, reason: str) -> None:
        """Record that `rule` was not applied at `node`, and why."""
        self.refusals.setdefault((rule, record_name(node), reason), Refusal(rule, record_name(node), reason))

    def _refuse(self, scope: _Scope, reason: str) -> None:
        if scope.changed:
            raise RuntimeError(f"rule '{scope.rule}' changed the graph at {scope.node}, then refused: {reason}")
        self.refusals.setdefault((scope.rule, scope.node, reason), Refusal(scope.rule, scope.node, reason))

    def _close(self, scope: _Scope) -> None:
        scope.lineage.stamp(self.pass_name, scope.rule)
        created = tuple(record_name(node) for node in scope.lineage.created if node.graph is not None)
        self.rewrites.append(Rewrite(scope.rule, scope.node, tuple(scope.removed), created))

    def _observe(self) -> _Scope:
        if self._scope is None:
            raise RuntimeError(f"pass '{self.pass_name}' changed the graph outside `rewriting`")
        if not self._scope.changed and self.module.allowance is not None:
            self.module.allowance.take(self._scope.rule, self._scope.node)
        if not self._scope.changed:
            self.module.changed()
        self._scope.changed = True
        return self._scope

    # -- making ---------------------------------------------------------------------------------------------

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
        domain: str = "",
        outputs: int = 1,
        name: str | None = None,
        like: ir.Value | None = None,
    ) -> tuple[ir.Value, ...]:
        """Insert a node in front of `before`, or behind `after`, and return its outputs.

        Args:
            op_type: the operator.
            inputs: its inputs; None for an optional one left out.
            attributes: plain Python values, or `ir.Attr`; None values are left out.
            before, after: one of them, an existing node of the graph to insert into.
            domain: the operator's domain.
            outputs: how many outputs it has.
            name: hint for the node's name; the first output is named after it.
            like: a value whose dtype and shape the first output shares.
        """
        scope = self._observe()
        (anchor,) = (node for node in (before, after) if node is not None)
        graph = _graph_of(anchor)
        hint = self._fresh_node(name or f"{anchor.name or op_type}_{op_type.lower()}")
        given = {key: value for key, value in (attributes or {}).items() if value is not None}
        node = ir.node(op_type, list(inputs), given, domain=domain, num_outputs=outputs, name=hint)
        for index, output in enumerate(node.outputs):
            output.name = self.fresh(hint if index == 0 else f"{hint}_{index}")
        if like is not None:
            _take_type(node.outputs[0], like)
        (graph.insert_after if before is None else graph.insert_before)(anchor, node)
        if domain and domain not in graph.opset_imports:
            self.import_domain(domain)
        scope.lineage.created.append(node)
        self.on_touch(node)
        return tuple(node.outputs)

    def constant(
        self, array: Array | ir.TensorProtocol, hint: str, *, at: ir.Node, mask: Array | None = None,
        follows: ir.Value | None = None, moved: Callable[[Array], Array] | None = None,
    ) -> ir.Value:  # fmt: skip
        """Make a constant that `at` can use: an initializer of its graph, or a Constant node in a function.

        Args:
            array: the numbers (a tensor keeps its dtype, a numpy array brings its own).
            hint: the name wished for.
            at: the node that will use it.
            mask: boolean array of the same shape, True where the weight is kept.
            follows: the initializer whose elements these are: its mask and its source go along.
            moved: how they were laid out anew, on any array of the shape of `follows`; None where they were not.
        """
        self._observe()
        if isinstance(array, np.ndarray | np.generic):  # numpy computes a scalar from arrays without dimensions
            array = ir.Tensor(np.asarray(array))
        tensor: ir.TensorProtocol = array
        graph = _graph_of(at)
        if id(graph) in self._function_graphs:
            (value,) = self.add("Constant", [], {"value": tensor}, before=at, name=hint)
            value.dtype, value.shape = tensor.dtype, tensor_shape(tensor)
            return value
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=self.fresh(hint), shape=tensor_shape(tensor), type=kind, const_value=tensor)
        graph.register_initializer(value)
        if mask is not None and value.name is not None:
            self.module.masks[value.name] = mask
        if follows is not None:
            self.follow(value, follows, moved)
        return value

    def follow(self, new: ir.Value, old: ir.Value, moved: Callable[[Array], Array] | None = None) -> None:
        """Let the mask and the source of `old` go along to `new`, which holds the same elements laid out by `moved`."""
        self._observe()
        module, name = self.module, new.name or ""
        if (mask := module.masks.get(old.name or "")) is not None:
            module.masks[name] = mask if moved is None else np.ascontiguousarray(moved(mask))
        source, tensor = module.sources.get(old.name or ""), constant_tensor(old)
        if source is not None and tensor is not None:
            shape = tuple(int(dim) for dim in tensor.shape.numpy())
            module.sources[name] = source if moved is None else source.moved(moved, shape)

    def in_function(self, node: ir.Node) -> bool:
        """Whether `node` stands in the body of a model-local function, where there are no initializers."""
        return id(_graph_of(node)) in self._function_graphs

    def fresh(self, hint: str) -> str:
        """A value name that no graph of the module uses: `hint`, else `hint_1`, `hint_2`, ..."""
        return _fresh(hint, self._names)

    def _fresh_node(self, hint: str) -> str:
        return _fresh(hint, self._node_names)

    def import_domain(self, domain: str, version: int = 1) -> None:
        """Import an operator domain into the main graph and into every function."""
        for imports in self._opset_imports():
            imports.setdefault(domain, version)

    def _opset_imports(self) -> list[dict[str, int]]:
        model = self.module.model
        return [model.opset_imports, *(function.opset_imports for function in model.functions.values())]

    def splice(self, graph: ir.Graph, *, before: ir.Node) -> None:
        """Move all nodes and initializers of a control-flow branch in front of `before`, under fresh names.

        The branch is left empty. Names are made fresh because sibling branches may use the same ones.
        """
        scope = self._observe()
        home = _graph_of(before)
        graph.outputs.clear()
        for value in list(graph.initializers.values()):
            del graph.initializers[value.name or ""]
            self._rename(value)
            home.register_initializer(value)
        for node in list(graph):
            graph.remove(node)
            node.name = self._fresh_node(node.name or node.op_type)
            for output in node.outputs:
                if output.name:
                    self._rename(output)
            home.insert_before(before, node)
            scope.lineage.edited[node] = None
            self.on_touch(node)

    def _rename(self, value: ir.Value) -> None:
        """Give a value that moves to another graph a fresh name, and let its mask follow."""
        old = value.name or "value"
        value.name = self.fresh(old)
        if value.name != old and old in self.module.masks:
            self.module.masks[value.name] = self.module.masks.pop(old)
        if value.name != old and old in self.module.sources:
            self.module.sources[value.name] = self.module.sources.pop(old)

    # -- changing -------------------------------------------------------------------------------------------

    def can_replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Whether `replace` can make every user of `old` use `new`.

        A graph output keeps its name, so a graph input, an initializer, another output, or a value of an
        outer graph cannot take its place.
        """
        if not old.is_graph_output():
            return True
        fixed = new.is_graph_input() or new.is_initializer() or new.is_graph_output()
        return not fixed and new.graph is old.graph

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Make every user of `old`, the graph's outputs included, use `new`; an output keeps its name and type.

        Raises:
            Refused: `old` is a graph output and `new` cannot take its place (see `can_replace`).
        """
        if not self.can_replace(old, new):
            raise Refused(f"'{old.name}' is a graph output and '{new.name}' cannot take its place")
        scope = self._observe()
        users = [usage.node for usage in old.uses()]
        if old.is_graph_output():
            self._take_over_output(old, new)
        else:
            old.replace_all_uses_with(new)
        for user in users:
            self.on_touch(user)
        if (producer := old.producer()) is not None:
            self.on_touch(producer)
            if (maker := new.producer()) is not None:
                scope.lineage.took(maker, producer)

    def _take_over_output(self, old: ir.Value, new: ir.Value) -> None:
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = self.fresh(f"{name}_replaced")
        new.name = name
        _take_type(new, old)
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Make input `index` of `node` be `value`, growing the input list if need be."""
        scope = self._observe()
        previous = node.inputs[index] if index < len(node.inputs) else None
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        self._touch(scope, node, previous)

    def drop_inputs(self, node: ir.Node, count: int) -> None:
        """Keep the first `count` inputs of `node`."""
        scope = self._observe()
        dropped = list(node.inputs[count:])
        node.resize_inputs(count)
        for value in dropped:
            self._touch(scope, node, value)

    def _touch(self, scope: _Scope, node: ir.Node, lost: ir.Value | None) -> None:
        scope.lineage.edited[node] = None
        self.on_touch(node)
        producer = lost.producer() if lost is not None else None
        if producer is not None:
            scope.lineage.took(node, producer)
            self.on_touch(producer)

    def set_attribute(self, node: ir.Node, name: str, value: Any) -> None:
        """Set attribute `name` of `node` to a plain Python value; None removes it."""
        scope = self._observe()
        if value is None:
            node.attributes.pop(name, None)
        elif isinstance(value, list) and not value:  # onnx_ir guesses types by elements; passes set lists of integers
            node.attributes[name] = ir.AttrInt64s(name, ())
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        scope.lineage.edited[node] = None
        self.on_touch(node)

    def set_op(self, node: ir.Node, op_type: str, domain: str = "") -> None:
        """Turn `node` into another operator with the same inputs, outputs and attributes."""
        scope = self._observe()
        node.op_type, node.domain = op_type, domain
        scope.lineage.edited[node] = None
        self.on_touch(node)

    def set_tensor(self, value: ir.Value, array: Array | ir.TensorProtocol, mask: Array | None = None) -> None:
        """Give initializer `value` other numbers; with `mask`, also record which of them are kept."""
        self._observe()
        tensor = ir.Tensor(array) if isinstance(array, np.ndarray) else array
        value.const_value = tensor
        value.dtype, value.shape = tensor.dtype, tensor_shape(tensor)
        if mask is not None and value.name is not None:
            self.module.masks[value.name] = mask

    def set_opset(self, version: int, domain: str = "") -> None:
        """Change the imported version of an operator domain, in the main graph and in every function."""
        self._observe()
        for imports in self._opset_imports():
            imports[domain] = version
            if domain == "":
                imports.pop("ai.onnx", None)

    # -- removing -------------------------------------------------------------------------------------------

    def erase(self, node: ir.Node) -> None:
        """Remove `node` with its bodies; its outputs must be unused. Producers that lose a use are revisited."""
        scope = self._observe()
        read = [value for value in (*node.inputs, *_release_bodies(node)) if value is not None]
        producers = dict.fromkeys(value.producer() for value in read)
        scope.lineage.erase(node)
        scope.removed.append(record_name(node))
        _graph_of(node).remove(node, safe=True)
        for producer in producers:
            if producer is not None and producer.graph is not None:
                self.on_touch(producer)

    def erase_initializer(self, graph: ir.Graph, name: str) -> None:
        """Remove an unused initializer, and its mask."""
        scope = self._observe()
        del graph.initializers[name]
        scope.removed.append(name)
        self.module.masks.pop(name, None)
        self.module.sources.pop(name, None)

    def erase_function(self, key: ir.OperatorIdentifier) -> None:
        """Remove a function that nothing calls."""
        scope = self._observe()
        del self.module.model.functions[key]
        scope.removed.append("::".join(part for part in key if part))

    def replace_model(self, model: ir.Model) -> None:
        """Put another model in place of the whole one, for passes that run an external tool.

        Nothing inside is observed then: the record names all nodes that went and came, and new nodes are stamped.
        """
        scope = self._observe()
        before = {record_name(node) for node in walk.nodes(self.module.model)}
        scope.lineage.created += [node for node in walk.nodes(model) if record_name(node) not in before]
        after = {record_name(node) for node in walk.nodes(model)}
        scope.removed += sorted(before - after)
        self.module.model = model

    def move_mask(self, old: str, new: str, mask: Array) -> None:
        """The weight `old` now lives in initializer `new`, laid out as `mask`."""
        self._observe()
        self.module.masks.pop(old, None)
        self.module.masks[new] = mask


def record_name(node: ir.Node) -> str:
    """How records call a node: by its name, else by its operator."""
    return node.name or node.op_type


def _graph_of(node: ir.Node) -> ir.Graph:
    if node.graph is None:
        raise RuntimeError(f"{walk.label(node)} is in no graph")
    return node.graph


def _release_bodies(node: ir.Node) -> list[ir.Value]:
    """Give up the uses that the bodies of a node hold on values of graphs around it; returns these values."""
    bodies = [inner for body in walk.subgraphs(node) for inner in [body, *body.subgraphs()]]
    inside, captured = {id(body) for body in bodies}, []
    for one in (one for body in bodies for one in body):
        captured += [value for value in one.inputs if value is not None and id(value.graph) not in inside]
        for index in range(len(one.inputs)):
            one.replace_input_with(index, None)
    return captured


def _take_type(new: ir.Value, old: ir.Value) -> None:
    if old.dtype is not None:  # a type without a dtype could not be written
        new.dtype = old.dtype
    new.shape = _shape(old)


def _shape(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else value.shape.copy()


def _fresh(hint: str, taken: set[str | None]) -> str:
    name, count = hint, 0
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    taken.add(name)
    return name


def _value_names(model: ir.Model) -> set[str | None]:
    names: set[str | None] = set()
    for graph in walk.graphs(model):
        names.update(value.name for value in graph.inputs)
        names.update(graph.initializers)
        for node in graph:
            names.update(value.name for value in node.outputs)
    return names


def _function_graphs(model: ir.Model) -> set[int]:
    found: set[int] = set()
    for function in model.functions.values():
        found.update(id(graph) for graph in [function.graph, *function.graph.subgraphs()])
    return found
