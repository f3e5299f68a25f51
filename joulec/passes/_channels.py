"""Labelling the channels of a whole module, and cutting those away that were chosen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, FunctionAttribute, constant_tensor
from joulec.passes._label_moves import MOVES
from joulec.passes._label_rules import RULES, Visit
from joulec.passes._labels import Axes, Kept, Labels

SILENT = frozenset({"Constant"})


def labelled(module: Module) -> Labels:
    """Labels of every value of the main graph. O(nodes + channels)."""
    labels = Labels(untouchable=_untouchable(module))
    for node in module.graph:
        if node.op_type in SILENT and walk.is_onnx(node):
            continue
        visit = Visit(node, labels, module)
        rule = (RULES.get(node.op_type) or MOVES.get(node.op_type)) if walk.is_onnx(node) else None
        try:
            if rule is not None:
                rule(visit)
        except (LookupError, ValueError, TypeError, FunctionAttribute):  # malformed, or known only at run time
            visit.give_up()
        visit.leave()
        if all(value is None or labels.is_weight(value) for value in node.inputs) and not list(walk.subgraphs(node)):
            labels.weights.update(id(output) for output in node.outputs if node.inputs)
        for inner in walk.subgraphs(node):
            _freeze_outer(inner, labels)
    for value in module.graph.outputs:
        labels.freeze(labels.of(value) or [], f"'{value.name}' is an output of the model")
    return labels


def _untouchable(module: Module) -> set[int]:
    """Constants that something beside the main graph's own nodes reads."""
    found = {id(value) for value in (*module.graph.inputs, *module.graph.outputs)}
    for graph in walk.graphs(module.model):
        if graph is not module.graph:
            found.update(id(value) for node in graph for value in node.inputs if value is not None)
            found.update(id(value) for value in graph.outputs)
    return found


def _freeze_outer(graph: ir.Graph, labels: Labels) -> None:
    """What the body of an If, Loop or Scan reads from outside stays."""
    values = [value for node in graph for value in node.inputs if value is not None] + list(graph.outputs)
    for value in values:
        if id(value) in labels.axes:
            labels.freeze(labels.axes[id(value)], f"'{value.name}' is read inside a control-flow body")
    for node in graph:
        for inner in walk.subgraphs(node):
            _freeze_outer(inner, labels)


def unshare(module: Module, rewriter: Rewriter) -> None:
    """Give each reader of a vector (a bias, a scale) or a computed constant its own: equal ones that were merged tie
    channels which have nothing to do with each other."""
    for node in list(module.graph):
        for slot, value in enumerate(node.inputs):
            if value is None or len(value.uses()) < 2 or value.is_graph_output() or id(value.graph) != id(module.graph):
                continue
            tensor, producer = constant_tensor(value), value.producer()
            with rewriter.rewriting("unshare", node):
                if tensor is not None and tensor.size > 1 and max(tensor.shape.numpy()) == tensor.size:
                    if tensor.dtype.is_floating_point():
                        copy = rewriter.constant(tensor, f"{value.name}_own", at=node, follows=value)
                        rewriter.set_input(node, slot, copy)
                elif producer is not None and walk.is_onnx(producer, "ConstantOfShape"):
                    attributes = dict(producer.attributes)
                    (copy,) = rewriter.add("ConstantOfShape", producer.inputs, attributes, after=producer, like=value)
                    rewriter.set_input(node, slot, copy)


def kept_by(labels: Labels, gone: Array) -> Kept:
    """Whether labels stay when these roots go."""
    lost = np.zeros(int(gone.max(initial=-1)) + 1, bool)
    lost[gone] = True

    def kept(some: Array) -> Array:
        roots = labels.roots(some)
        return (
            ~(lost[np.minimum(roots, lost.size - 1)] & (roots < lost.size)) if lost.size else np.ones(some.shape, bool)
        )

    return kept


def cut(module: Module, labels: Labels, gone: Array, rewriter: Rewriter) -> int:
    """Remove the channels of these roots everywhere: from weights, biases, statistics, sizes and shapes.

    Returns:
        How many constants became smaller.
    """
    kept, count = kept_by(labels, gone), 0
    for edit in labels.edits:
        if not kept(edit.labels).all():
            with rewriter.rewriting("follow-channels", edit.node):
                edit.apply(rewriter, kept)
    for key, axes in labels.axes.items():
        value = labels.values[key]
        staying = [None if one is None else kept(one) for one in axes]
        if all(one is None or one.all() for one in staying):
            continue
        if constant_tensor(value) is None:
            _reshape(value, staying)
        else:
            count += 1
            _shrink(value, staying, rewriter)
    return count


def _reshape(value: ir.Value, staying: Iterable[Array | None]) -> None:
    if value.shape is not None:
        dims = zip(value.shape, staying, strict=True)
        value.shape = ir.Shape([dim if one is None else int(one.sum()) for dim, one in dims])


def _shrink(value: ir.Value, staying: list[Array | None], rewriter: Rewriter) -> None:
    """Keep a constant's name where it is an initializer, so that masks and users find it again."""
    tensor = constant_tensor(value)
    if tensor is None:
        return

    def moved(array: Array) -> Array:
        for axis, one in enumerate(staying):
            if one is not None and not one.all():
                array = array.compress(one, axis)
        return np.ascontiguousarray(array)

    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    module, name = rewriter.module, value.name or ""
    node = next(iter(value.uses())).node
    smaller = ir.tensor(moved(tensor.numpy()), dtype=tensor.dtype)
    with rewriter.rewriting("remove-channels", node):
        if not value.is_initializer():
            made = rewriter.constant(smaller, f"{name}_cut", at=node, follows=value, moved=moved)
            producer = value.producer()
            rewriter.replace(value, made)
            if producer is not None:
                rewriter.erase(producer)
            return
        mask, source = module.masks.get(name), module.sources.get(name)
        rewriter.set_tensor(value, smaller, mask=None if mask is None else moved(mask))
        if source is not None:
            module.sources[name] = source.moved(moved, shape)


def without(module: Module, labels: Labels, gone: Array) -> Module | None:
    """A copy of `module` in which nothing reads the channels of these roots: the weights that do are zero there.

    What is left when the channels are cut away must compute the same. None where a channel is read by more than
    stored weights, so that there is no such copy.
    """
    kept = kept_by(labels, gone)
    if any(not kept(one).all() for one in labels.escaped):
        return None
    copy = module.clone()
    for value, axis in labels.reads:
        axes, name = labels.axes[id(value)], value.name or ""
        one, held = axes[axis], copy.graph.initializers.get(name)
        if one is None or kept(one).all():
            continue
        if held is None or held.const_value is None:
            return None
        shape = [-1 if at == axis else 1 for at in range(len(axes))]
        numbers = held.const_value.numpy()
        zeroed = np.where(kept(one).reshape(shape), numbers, np.zeros((), numbers.dtype)).astype(numbers.dtype)
        held.const_value = ir.tensor(zeroed, dtype=held.const_value.dtype)
    copy.changed()
    return copy


def axes_of(labels: Labels) -> Iterable[tuple[ir.Value, Axes]]:
    """Every labelled constant."""
    for key, axes in labels.axes.items():
        value = labels.values[key]
        if constant_tensor(value) is not None and any(one is not None for one in axes):
            yield value, axes
