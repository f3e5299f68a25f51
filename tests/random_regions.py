"""Regions of a model put into a function, an If, a Loop or a Scan, and what it takes to find and copy them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from judge_kit import random_values
from onnx import TensorProto, helper, numpy_helper
from random_typed import Model
from random_types import Chooser, tensor

GRAPH = onnx.AttributeProto.GRAPH


# -- looking around ---------------------------------------------------------------------------------------------------


def opset(proto: onnx.ModelProto) -> int:
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def names_of(proto: onnx.ModelProto) -> set[str]:
    """Every name of a value anywhere."""
    found: set[str] = set()
    for graph in graphs(proto.graph):
        found.update(v.name for v in (*graph.input, *graph.output, *graph.initializer))
        found.update(name for node in graph.node for name in (*node.input, *node.output))
    return found


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == GRAPH else attribute.graphs:
                yield from graphs(inner)


def fresh(proto: onnx.ModelProto, hint: str) -> str:
    """A prefix that no name has."""
    names, count = names_of(proto), 0
    while any(name.startswith(f"{hint}{count}") or f"{hint}{count}_" in name for name in names):
        count += 1
    return f"{hint}{count}"


def reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, in its bodies too."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.type == GRAPH else attribute.graphs:
            made = {v.name for v in (*inner.input, *inner.initializer)} | {
                name for n in inner.node for name in n.output
            }
            wanted = [name for n in inner.node for name in reads(n)] + [v.name for v in inner.output]
            found += [name for name in wanted if name not in made]
    return list(dict.fromkeys(found))


def typed(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The types of the values of the main graph, as far as they can be inferred."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001 - then only what is declared is known
        inferred = proto
    graph = inferred.graph
    found = {v.name: v.type for v in (*graph.input, *graph.output, *graph.value_info) if v.type.WhichOneof("value")}
    found.update((t.name, helper.make_tensor_type_proto(t.data_type, list(t.dims))) for t in graph.initializer)
    return found


def untyped(kind: onnx.TypeProto) -> onnx.TypeProto:
    """A type without a shape: rank and dimensions are for whoever runs it."""
    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    if copy.WhichOneof("value") == "tensor_type":
        copy.tensor_type.ClearField("shape")
    return copy


def region(
    choose: Chooser, model: Model, types: dict[str, onnx.TypeProto]
) -> tuple[range, list[str], list[str]] | None:
    """A run of nodes, what it reads, and what of it is read later; None where a type is not known."""
    nodes = model.proto.graph.node
    if not nodes:
        return None
    first = choose.number(0, len(nodes) - 1)
    places = range(first, min(len(nodes), first + choose.number(1, 5)))
    made = {name for i in places for name in nodes[i].output if name}
    outside = {name for i, node in enumerate(nodes) if i not in places for name in reads(node)}
    outside |= {value.name for value in model.proto.graph.output}
    read = list(dict.fromkeys(name for i in places for name in reads(nodes[i]) if name not in made))
    kept = [name for i in places for name in nodes[i].output if name in outside]
    if not kept or any(name not in types for name in (*kept, *read)):
        return None
    return places, read, kept


def replace(graph: onnx.GraphProto, places: range, new: Sequence[onnx.NodeProto]) -> None:
    nodes = [*graph.node[: places.start], *new, *graph.node[places.stop :]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def copied(nodes: Sequence[onnx.NodeProto], renamed: dict[str, str]) -> list[onnx.NodeProto]:
    """Copies with values renamed, in bodies as well."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node in copies:
        rename(node, renamed)
    return copies


def rename(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    node.input[:] = [renamed.get(name, name) for name in node.input]
    node.output[:] = [renamed.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.type == GRAPH else attribute.graphs:
            hidden = {v.name for v in (*inner.input, *inner.initializer)}
            visible = {old: new for old, new in renamed.items() if old not in hidden}
            for one in inner.node:
                rename(one, visible)
            for output in inner.output:
                output.name = visible.get(output.name, output.name)


def inner(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], kept: Sequence[str], prefix: str
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Copies whose own values have new names, and the new names of those kept."""
    made = [name for node in nodes for name in node.output if name]
    bodies = [g for node in nodes for a in node.attribute if a.type == GRAPH for g in graphs(a.g)]
    renamed = {name: f"{prefix}_{name}" for name in made}
    copies = copied(nodes, renamed)
    if bodies:
        separate(copies, prefix)
    return copies, [renamed[name] for name in kept]


def separate(nodes: Sequence[onnx.NodeProto], prefix: str) -> None:
    """New names for everything that bodies make by themselves: copies must not share them."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == GRAPH else attribute.graphs:
                own = [v.name for v in (*inner.input, *inner.initializer)]
                own += [name for n in inner.node for name in n.output if name]
                renamed = {name: f"{prefix}_{name}" for name in own}
                for value in (*inner.input, *inner.initializer):
                    value.name = renamed[value.name]
                for one in inner.node:
                    rename(one, renamed)
                for output in inner.output:
                    output.name = renamed.get(output.name, output.name)
                separate(list(inner.node), prefix)


def stored(model: Model, array: np.ndarray, name: str) -> str:
    model.proto.graph.initializer.append(tensor(array, name))
    return name


# -- regions put into something ---------------------------------------------------------------------------------------


def into_function(choose: Chooser, model: Model) -> None:
    """A region becomes a function, sometimes called twice, sometimes with an attribute that the call sets."""
    proto = model.proto
    found = region(choose, model, typed(proto))
    if found is None:
        return
    places, read, kept = found
    name = f"F{len(proto.functions)}"
    body, results = inner(proto, [proto.graph.node[i] for i in places], kept, fresh(proto, f"{name}v"))
    attributes = _lifted(choose, body)
    imports = [helper.make_opsetid("", opset(proto)), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", name, read, results, body, imports, attributes=list(attributes))
    proto.functions.append(function)
    if all(entry.domain != "local" for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.ir_version = max(proto.ir_version, 8)
    calls = [_call(name, read, kept, attributes)]
    if choose.one_in(2):
        calls.insert(0, _call(name, read, [fresh(proto, f"unused{i}_") for i, _ in enumerate(kept)], attributes))
    replace(proto.graph, places, calls)


def _lifted(choose: Chooser, body: list[onnx.NodeProto]) -> dict[str, onnx.AttributeProto]:
    """Plain attributes of the body that become the function's own."""
    lifted: dict[str, onnx.AttributeProto] = {}
    for node in body:
        for attribute in node.attribute:
            if attribute.type in (1, 2, 3, 4, 6, 7) and choose.one_in(3):
                name = f"{attribute.name}_{len(lifted)}"
                kept = onnx.AttributeProto.FromString(attribute.SerializeToString())
                kept.name = name
                lifted[name] = kept
                kind, label = attribute.type, attribute.name
                attribute.Clear()
                attribute.name, attribute.type, attribute.ref_attr_name = label, kind, name
    return lifted


def _call(
    name: str, read: list[str], kept: Sequence[str], attributes: dict[str, onnx.AttributeProto]
) -> onnx.NodeProto:
    node = helper.make_node(name, read, list(kept), domain="local")
    node.attribute.extend(attributes.values())
    return node


def into_if(choose: Chooser, model: Model) -> None:
    """A region becomes the branch that is taken; the other computes the same, or other numbers of the same types."""
    proto = model.proto
    types = typed(proto)
    found = region(choose, model, types)
    if found is None or opset(proto) < 11:
        return
    places, _, kept = found
    nodes = [proto.graph.node[i] for i in places]
    name = fresh(proto, "if")
    branches = {}
    for branch in ("then", "else"):
        body, results = inner(proto, nodes, kept, f"{name}{branch}")
        if branch == "else" and choose.one_in(2):
            _negate(body, results, [types[k] for k in kept])
        outputs = [helper.make_value_info(r, untyped(types[k])) for r, k in zip(results, kept, strict=True)]
        branches[f"{branch}_branch"] = helper.make_graph(body, f"{name}{branch}", [], outputs)
    before, condition = _condition(choose, model, name)
    replace(proto.graph, places, [*before, helper.make_node("If", [condition], kept, name=name, **branches)])


def _negate(body: list[onnx.NodeProto], results: list[str], types: list[onnx.TypeProto]) -> None:
    """The first number that the branch returns becomes its opposite."""
    for index, kind in enumerate(types):
        if kind.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32):
            body.append(helper.make_node("Neg", [results[index]], [f"{results[index]}_neg"]))
            results[index] += "_neg"
            return


def _condition(choose: Chooser, model: Model, name: str) -> tuple[list[onnx.NodeProto], str]:
    """A condition that is constant, fed, or computed from a shape; either branch is as good."""
    graph = model.proto.graph
    way = choose.pick(["constant", "fed", "size"])
    if way == "fed":
        graph.input.append(helper.make_tensor_value_info(f"{name}c", TensorProto.BOOL, []))
        model.feed[f"{name}c"] = np.array(choose.pick([True, False]))
        return [], f"{name}c"
    flag = numpy_helper.from_array(np.array(choose.pick([True, False])), f"{name}c")
    arrays = [v.name for v in graph.input if v.type.WhichOneof("value") == "tensor_type" and v.name in model.feed]
    if way == "constant" or not arrays:
        graph.initializer.append(flag)
        return [], f"{name}c"
    graph.initializer.append(numpy_helper.from_array(np.array(choose.pick([0, 1, 4]), np.int64), f"{name}n"))
    size = helper.make_node("Size", [choose.pick(arrays)], [f"{name}s"])
    return [size, helper.make_node("Equal", [f"{name}s", f"{name}n"], [f"{name}c"])], f"{name}c"


def _stackable(kept: Sequence[str], types: dict[str, onnx.TypeProto], proto: onnx.ModelProto) -> bool:
    """Whether rounds may be stacked and the last be picked; ONNX Runtime loses strings when it stacks them."""
    fitting = all(types[name].tensor_type.elem_type not in (0, TensorProto.STRING) for name in kept)
    return fitting and random_values(proto).isdisjoint(kept)


def into_loop(choose: Chooser, model: Model) -> None:
    """A region becomes the body of a Loop of one or two rounds, whose last round is what was there."""
    proto = model.proto
    types = typed(proto)
    found = region(choose, model, types)
    if found is None or opset(proto) < 13:
        return
    places, _, kept = found
    if not _stackable(kept, types, proto):
        return
    name = fresh(proto, "loop")
    body, results = inner(proto, [proto.graph.node[i] for i in places], kept, name)
    body.append(helper.make_node("Identity", [f"{name}go"], [f"{name}on"]))
    flags = [
        helper.make_tensor_value_info(f"{name}{n}", kind, [])
        for n, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))
    ]
    outputs = [helper.make_tensor_value_info(f"{name}on", TensorProto.BOOL, [])]
    outputs += [helper.make_value_info(r, untyped(types[k])) for r, k in zip(results, kept, strict=True)]
    graph = helper.make_graph(body, name, flags, outputs)
    times = stored(model, np.array(choose.pick([1, 1, 2, 3]), np.int64), f"{name}m")
    last = stored(model, np.array(-1, np.int64), f"{name}l")
    stacked = [f"{name}_{k}_all" for k in kept]
    loop = helper.make_node(
        "Loop", [times, choose.pick(["", stored(model, np.array(True), f"{name}t")])], stacked, name=name, body=graph
    )
    picks = [helper.make_node("Gather", [s, last], [k], axis=0) for s, k in zip(stacked, kept, strict=True)]
    replace(proto.graph, places, [loop, *picks])


def into_scan(choose: Chooser, model: Model) -> None:
    """A region becomes the body of a Scan over a vector of two that it does not look at, with a state that it counts."""
    proto = model.proto
    types = typed(proto)
    found = region(choose, model, types)
    if found is None or opset(proto) < 11:
        return
    places, _, kept = found
    if not _stackable(kept, types, proto):
        return
    name = fresh(proto, "scan")
    body, results = inner(proto, [proto.graph.node[i] for i in places], kept, name)
    body.append(helper.make_node("Add", [f"{name}state", f"{name}item"], [f"{name}next"]))
    inputs = [helper.make_tensor_value_info(f"{name}{n}", TensorProto.FLOAT, []) for n in ("state", "item")]
    outputs = [helper.make_tensor_value_info(f"{name}next", TensorProto.FLOAT, [])]
    outputs += [helper.make_value_info(r, untyped(types[k])) for r, k in zip(results, kept, strict=True)]
    graph = helper.make_graph(body, name, inputs, outputs)
    start = stored(model, np.array(0.0, np.float32), f"{name}s")
    items = stored(model, np.array([1.0, 2.0], np.float32), f"{name}x")
    last = stored(model, np.array(1, np.int64), f"{name}l")
    stacked = [f"{name}_{k}_all" for k in kept]
    scan = helper.make_node("Scan", [start, items], [f"{name}end", *stacked], name=name, body=graph, num_scan_inputs=1)
    picks = [helper.make_node("Gather", [s, last], [k], axis=0) for s, k in zip(stacked, kept, strict=True)]
    replace(proto.graph, places, [scan, *picks])
    if choose.one_in(2):
        proto.graph.output.append(helper.make_tensor_value_info(f"{name}end", TensorProto.FLOAT, []))
