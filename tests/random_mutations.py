"""Changes of a model that keep what it computes, or say what changed: functions, If, Loop and Scan around what is there,
shared constants, outputs that are inputs, names, symbols, noise. For grown graphs and for real models alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from judge_kit import random_values
from onnx import TensorProto, helper, numpy_helper
from random_regions import (
    fresh,
    inner,
    into_function,
    into_if,
    into_loop,
    into_scan,
    names_of,
    opset,
    reads,
    rename,
    replace,
    stored,
    typed,
)  # fmt: skip
from random_typed import Model
from random_types import Chooser, tensor

Change = Callable[[Chooser, Model], None]


def mutate(choose: Chooser, model: Model, changes: Sequence[Change], times: int) -> Model:
    """A copy of `model` after some of `changes`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    made = Model(proto, dict(model.feed))
    for _ in range(times):
        choose.pick(changes)(choose, made)
    return made


# -- inputs, outputs, constants ---------------------------------------------------------------------------------------


def input_to_constant(choose: Chooser, model: Model) -> None:
    """An input becomes an initializer, as it is fed."""
    graph = model.proto.graph
    usable = [i for i, v in enumerate(graph.input) if isinstance(model.feed.get(v.name), np.ndarray)]
    if len(usable) < 2:
        return
    index = choose.pick(usable)
    name = graph.input[index].name
    if name in {output.name for output in graph.output}:
        return
    kept = [one for one in graph.initializer if one.name != name]  # it may have been a default
    del graph.initializer[:]
    graph.initializer.extend([*kept, tensor(model.feed.pop(name), name)])
    del graph.input[index]


def overridable(choose: Chooser, model: Model) -> None:
    """An initializer becomes a default that callers may override, and sometimes do."""
    graph = model.proto.graph
    fed = {v.name for v in graph.input}
    found = [t for t in graph.initializer if t.name not in fed and t.data_type in (1, 7, 9)]
    if not found or model.proto.ir_version < 4:
        return
    one = choose.pick(found)
    graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
    if one.data_type == TensorProto.FLOAT and choose.one_in(2):
        model.feed[one.name] = numpy_helper.to_array(one) + np.float32(1)


def more_outputs(choose: Chooser, model: Model) -> None:
    """An input, an initializer or a value inside becomes an output as well."""
    graph = model.proto.graph
    types = typed(model.proto)
    present = {output.name for output in graph.output}
    inputs = [v.name for v in graph.input]
    inside = [name for node in graph.node for name in node.output]
    names = choose.pick([inputs, [t.name for t in graph.initializer], inside, inside])
    names = [name for name in names if name in types and name not in present]
    if not names:
        return
    name = choose.pick(names)
    kind = types[name]
    if kind.WhichOneof("value") == "tensor_type" and not kind.tensor_type.HasField("shape"):
        return
    graph.output.append(helper.make_value_info(name, kind))


def shared_constants(choose: Chooser, model: Model) -> None:
    """An initializer gets a twin that one reader reads, or a Constant node becomes an initializer and back."""
    graph = model.proto.graph
    if not graph.initializer:
        return
    one = choose.pick(list(graph.initializer))
    if one.name in {v.name for v in (*graph.output, *graph.input)}:
        return
    places = [(node, i) for node in graph.node for i, name in enumerate(node.input) if name == one.name]
    twin = onnx.TensorProto.FromString(one.SerializeToString())
    twin.name = fresh(model.proto, "twin")
    if choose.one_in(2) and places:
        node, index = choose.pick(places)
        node.input[index] = twin.name
        graph.initializer.append(twin)
        return
    made = helper.make_node("Constant", [], [one.name], value=twin)
    graph.initializer.remove(one)
    graph.node.insert(0, made)


def names(choose: Chooser, model: Model) -> None:
    """Nodes lose their names or share one; values get odd ones."""
    graph = model.proto.graph
    way = choose.pick(["empty", "same", "values"])
    for node in graph.node:
        if way != "values" and choose.one_in(2):
            node.name = "" if way == "empty" else "same"
    if way == "values":
        public = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
        inside = [name for node in graph.node for name in node.output if name and name not in public]
        if inside:
            old = choose.pick(inside)
            new = choose.pick(["a/b:0", "ä ö", "x.y::z", "joulec", "0", "%1", "n_replaced", "same"])
            if new not in names_of(model.proto):
                for one in graph.node:
                    rename(one, {old: new})


def symbols(choose: Chooser, model: Model) -> None:
    """Dimensions of inputs become symbols, one for each size or one for all; or nothing is said of them."""
    way = choose.pick(["by size", "each", "none"])
    for index, value in enumerate(model.proto.graph.input):
        if value.type.WhichOneof("value") != "tensor_type" or value.name not in model.feed:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and choose.one_in(2):
                size = dim.dim_value
                dim.Clear()
                if way != "none":
                    dim.dim_param = f"S{size}" if way == "by size" else f"D{index}_{axis}"
    for value in model.proto.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


# -- nodes ------------------------------------------------------------------------------------------------------------


def twin_node(choose: Chooser, model: Model) -> None:
    """A node is there twice, and some reader reads the second."""
    graph = model.proto.graph
    if not graph.node:
        return
    index = choose.number(0, len(graph.node) - 1)
    node = graph.node[index]
    if node.output and node.output[0] in random_values(model.proto):
        return
    prefix = fresh(model.proto, "again")
    copies, _ = inner(model.proto, [node], [], prefix)
    for later in graph.node[index + 1 :]:
        for place, name in enumerate(later.input):
            if name and name in node.output and choose.one_in(2):
                later.input[place] = f"{prefix}_{name}"
    graph.node.insert(index + 1, copies[0])


def noise(choose: Chooser, model: Model) -> None:
    """Something that changes nothing between a value and its readers."""
    proto = model.proto
    graph, types, version = proto.graph, typed(proto), opset(proto)
    inside = [(i, name) for i, node in enumerate(graph.node) for name in node.output if name in types]
    inside = [
        (i, n)
        for i, n in inside
        if types[n].WhichOneof("value") == "tensor_type" and n not in {o.name for o in graph.output}
    ]
    if not inside:
        return
    index, name = choose.pick(inside)
    kind = types[name].tensor_type
    rank = len(kind.shape.dim) if kind.HasField("shape") else None
    new = fresh(proto, "noise")
    chain = _idle(choose, model, name, new, kind.elem_type, rank, version)
    for later in graph.node[index + 1 :]:
        if choose.one_in(2):
            later.input[:] = [chain[-1].output[0] if one == name else one for one in later.input]
    replace(graph, range(index + 1, index + 1), chain)


def _idle(
    choose: Chooser, model: Model, name: str, new: str, kind: int, rank: int | None, opset: int
) -> list[onnx.NodeProto]:
    way = choose.pick(["identity", "cast", "transpose", "squeeze", "reshape", "dropout", "concat", "transpose"])
    number = kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT32, TensorProto.BOOL)
    if way == "cast" and number:
        wide = TensorProto.DOUBLE if kind != TensorProto.BOOL else TensorProto.INT32
        return [helper.make_node("Cast", [name], [new], to=wide), helper.make_node("Cast", [new], [f"{new}b"], to=kind)]
    if way == "transpose" and rank:
        perm = list(range(rank))
        choose.source.shuffle(perm)
        back = [int(i) for i in np.argsort(perm)]
        return [
            helper.make_node("Transpose", [name], [new], perm=perm), helper.make_node("Transpose", [new], [f"{new}b"], perm=back)
        ]  # fmt: skip
    if way == "squeeze" and rank is not None and opset >= 13:
        axes = stored(model, np.array([choose.number(0, rank)], np.int64), f"{new}a")
        return [
            helper.make_node("Unsqueeze", [name, axes], [new]),
            helper.make_node("Squeeze", [new, axes], [f"{new}b"]),
        ]
    if way == "reshape" and rank is not None:
        return [
            helper.make_node("Shape", [name], [f"{new}s"]),
            helper.make_node("Reshape", [name, stored(model, np.array([-1], np.int64), f"{new}a")], [new]),
            helper.make_node("Reshape", [new, f"{new}s"], [f"{new}b"]),
        ]
    if way == "dropout" and kind == TensorProto.FLOAT:
        return [helper.make_node("Dropout", [name], [new])]
    if way == "concat" and rank and opset >= 4:
        return [helper.make_node("Concat", [name], [new], axis=choose.number(0, rank - 1))]
    return [helper.make_node("Identity", [name], [new])]


def another_order(choose: Chooser, model: Model) -> None:
    """The nodes in another order that works."""
    graph = model.proto.graph
    made = {name for node in graph.node for name in node.output if name}
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    done: set[str] = set()
    order: list[onnx.NodeProto] = []
    if len(waiting) > 200:
        return
    while waiting:
        ready = [i for i, node in enumerate(waiting) if all(n in done or n not in made for n in reads(node))]
        if not ready:
            return
        node = waiting.pop(choose.pick(ready))
        done.update(node.output)
        order.append(node)
    del graph.node[:]
    graph.node.extend(order)


def trailing(choose: Chooser, model: Model) -> None:
    """Optional inputs and outputs left empty at the end are spelled out."""
    for node in model.proto.graph.node:
        if node.op_type in ("Clip", "Pad", "Slice", "Dropout", "Gemm", "Conv", "Resize") and choose.one_in(2):
            schema = onnx.defs.get_schema(node.op_type, opset(model.proto), "")
            if len(node.input) < schema.max_input:
                node.input.append("")


def another_opset(choose: Chooser, model: Model) -> None:
    """What onnx's own converter makes of the model for another opset."""
    try:
        made = onnx.version_converter.convert_version(model.proto, choose.pick(range(9, 24)))
    except Exception:  # noqa: BLE001 - it converts what it can
        return
    model.proto.CopyFrom(made)


STRUCTURE: list[Change] = [into_function, into_if, into_loop, into_scan]
CHANGES: list[Change] = [
    *STRUCTURE, *STRUCTURE, input_to_constant, overridable, more_outputs, shared_constants, names, symbols, twin_node, noise,
    noise, another_order, trailing,
]  # fmt: skip


def resized(choose: Chooser, model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """A feed with another size for every symbol, zero included; the model need not run on it."""
    sizes: dict[str, int] = {}
    made = dict(feeds)
    for value in model.proto.graph.input:
        held = feeds.get(value.name)
        if not isinstance(held, np.ndarray) or value.type.WhichOneof("value") != "tensor_type":
            continue
        shape = list(held.shape)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_param"):
                shape[axis] = sizes.setdefault(dim.dim_param, choose.pick([0, 1, 2, 5]))
        made[value.name] = np.resize(held, shape) if held.size else np.zeros(shape, held.dtype)
    return made
