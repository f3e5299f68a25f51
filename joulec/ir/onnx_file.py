"""Reading ONNX models that nobody vouches for: one door for files, bytes and live objects."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from joulec.errors import InputError
from joulec.ir import onnx_untrusted, verify, walk
from joulec.ir.module import Module, Origin
from joulec.ir.onnx_functions import check_functions
from joulec.ir.onnx_untrusted import Source
from joulec.ir.shapes import first_line, open_negative_dims

SIZE_LIMIT = (1 << 31) - 1
"""Bytes: where protobuf ends. Larger models keep their weights as external data."""

NAN_LIMIT = 1 << 28
"""Bytes of weights that are searched for NaN; what lies beyond is said to be unsearched."""

_NAMED_NANS = 5
_HALF_INFINITY = {ir.DataType.FLOAT16: 0x7C00, ir.DataType.BFLOAT16: 0x7F80}


def read(source: Path | str | bytes | onnx.ModelProto | ir.Model) -> Module:
    """Read an ONNX model; weights in external files stay there, memory-mapped.

    Args:
        source: a file, serialized bytes, or a live model. A live model is not changed.

    Raises:
        InputError: not a readable, well-formed ONNX model, or one that points outside its folder.
    """
    if isinstance(source, ir.Model):
        return _finish(source.clone(), Source("the model", None), None, ())
    if isinstance(source, onnx.ModelProto):
        return from_proto(source, Source("the model", None), None)
    if isinstance(source, bytes):
        return from_proto(parse(source, "the model"), Source("the model", None), None)
    path = Path(source)
    proto = parse(read_bytes(path), str(path))
    return from_proto(proto, Source(str(path), path.parent), path)


def external_files(path: Path) -> list[Path]:
    """The files of external data that the ONNX model at `path` refers to; none if it is no readable ONNX model.

    Raises:
        InputError: external data outside the model's folder, or missing.
    """
    try:
        proto = parse(read_bytes(path), str(path))
    except InputError:
        return []  # another format, or broken: whoever opens it says so
    return onnx_untrusted.external_paths(proto, Source(str(path), path.parent))


def read_bytes(path: Path) -> bytes:
    """The content of a regular file that protobuf could hold.

    Raises:
        InputError: missing, unreadable, not a regular file, empty or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file")
        if status.st_size > SIZE_LIMIT:
            raise InputError(f"{path}: beyond 2 GiB; an ONNX file of this size keeps its weights as external data")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path}: the file is empty")
    return data


def parse(data: bytes, name: str) -> onnx.ModelProto:
    """Parse serialized ONNX.

    Raises:
        InputError: not an ONNX model, or a truncated one.
    """
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise InputError(f"{name}: not an ONNX model, or a damaged one") from None
    if proto.ir_version < 1 or not proto.HasField("graph"):
        raise InputError(f"{name}: not an ONNX model, or a damaged one (it has no graph)")
    return proto


def from_proto(proto: onnx.ModelProto, source: Source, path: Path | None) -> Module:
    """Check `proto` and turn it into a module.

    Raises:
        InputError: what is wrong with it.
    """
    _check_header(proto, source)
    onnx_untrusted.check(proto, source)
    check_functions(proto, source.name)
    onnx_untrusted.refuse_maps(proto, source)
    notes: tuple[str, ...] = ()
    if _has_sparse(proto, source):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto, notes = copy, onnx_untrusted.densify(copy, source)
    if proto.training_info:
        notes += ("training information (training_info) is left out: inference has no use for it",)
    try:
        model = ir.from_proto(proto)
        _declare_inputs(model, proto)
        open_negative_dims(model)
        _write_structure(model)  # some is read and cannot be written: text that is not UTF-8, untyped attributes
    except Exception as error:  # onnx_ir wraps whatever it meets; all of it means a malformed model
        raise InputError(f"{source.name}: malformed model: {_root_cause(error)}") from error
    return _finish(model, source, path, notes)


def _declare_inputs(model: ir.Model, proto: onnx.ModelProto) -> None:
    """An input that is an output as well is one value with two declarations: the input's holds, callers feed by it."""
    declared = {value.name: value for value in proto.graph.input}
    for value in model.graph.inputs:
        if value.is_graph_output() and value.name in declared:
            ir.serde.deserialize_value_info_proto(declared[value.name], value)


def _write_structure(model: ir.Model) -> None:
    """Serialize everything but initializers, documentation and metadata included."""
    graph = model.graph
    view = ir.GraphView(
        graph.inputs, graph.outputs, nodes=graph, opset_imports=graph.opset_imports, name=graph.name,
        doc_string=graph.doc_string, metadata_props=graph.metadata_props,
    )  # fmt: skip
    ir.to_proto(
        ir.Model(
            view,  # type: ignore[arg-type]  # onnx_ir documents a model of a view, and serializes it
            ir_version=model.ir_version, functions=list(model.functions.values()), producer_name=model.producer_name,
            producer_version=model.producer_version, domain=model.domain, model_version=model.model_version,
            doc_string=model.doc_string, metadata_props=model.metadata_props,
        )
    )  # fmt: skip


def _check_header(proto: onnx.ModelProto, source: Source) -> None:
    if not proto.graph.output:
        raise InputError(f"{source.name}: the model's graph is empty: it has no outputs")
    _check_versions(proto, source)
    for graph in onnx_untrusted.graphs(proto, source):
        _check_initializer_names(graph, source)


def _check_initializer_names(graph: onnx.GraphProto, source: Source) -> None:
    """Of two initializers of one name ONNX Runtime takes the last if they are small, and the first if they are not."""
    seen: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        if not tensor.name:
            raise InputError(f"{source.name}: an initializer of graph '{graph.name}' has no name")
        first = seen.setdefault(tensor.name, tensor)
        if first is not tensor and first != tensor:
            where = f"initializer '{tensor.name}' of graph '{graph.name}'"
            raise InputError(f"{source.name}: {where} is there twice, with different numbers")


def _check_versions(proto: onnx.ModelProto, source: Source) -> None:
    """Operators of a version that the installed onnx does not know cannot be reasoned about."""
    if proto.ir_version > onnx.IR_VERSION:
        newest = f"the installed onnx reads up to {onnx.IR_VERSION}"
        raise InputError(f"{source.name}: IR version {proto.ir_version}, {newest}: update onnx")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise InputError(f"{source.name}: the model imports no operator set; it may be truncated")
    _check_opsets(proto.opset_import, source.name)
    for function in proto.functions:
        _check_opsets(function.opset_import, f"{source.name}: function '{function.name}'")


def _check_opsets(imports: Iterable[onnx.OperatorSetIdProto], where: str) -> None:
    found: dict[str, int] = {}
    newest = onnx.defs.onnx_opset_version()
    for entry in imports:
        domain = "" if entry.domain in walk.ONNX_DOMAINS else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise InputError(f"{where}: imports operator set '{entry.domain}' in two versions")
        if not domain and not 1 <= entry.version <= newest:
            known = f"the installed onnx knows 1 to {newest}: update onnx, or export an older one"
            raise InputError(f"{where}: imports version {entry.version} of the ONNX operators, {known}")


def _has_sparse(proto: onnx.ModelProto, source: Source) -> bool:
    if any(graph.sparse_initializer for graph in onnx_untrusted.graphs(proto, source)):
        return True
    nodes = [node for graph in onnx_untrusted.graphs(proto, source) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    return any(a.type == onnx.AttributeProto.SPARSE_TENSOR for node in nodes for a in node.attribute)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:200]


def _finish(model: ir.Model, source: Source, path: Path | None, notes: tuple[str, ...]) -> Module:
    for tensor in _external_tensors(model):
        if source.folder is not None:
            tensor.base_dir = source.folder.absolute()
    _name_nodes(model)
    _separate_initializers(model)
    _check_splits(model, source)
    module = Module(model, origin=Origin("onnx" if path else "memory", path, notes))
    notes += _modernize(model)
    notes += _order(module, source)
    notes += _nan_notes(model)
    module.origin = Origin(module.origin.format, path, notes)
    return module


def _check_splits(model: ir.Model, source: Source) -> None:
    """ONNX's shape inference does not report a Split with more outputs than it declares: it aborts the process."""
    for node in walk.nodes(model):
        declared = node.attributes.get("num_outputs") if walk.is_onnx(node, "Split") else None
        if declared is None or declared.type != ir.AttributeType.INT or declared.is_ref():
            continue
        if len(node.outputs) > declared.as_int():
            what = f"declares {declared.as_int()} outputs and has {len(node.outputs)}"
            raise InputError(f"{source.name}: {walk.label(node)} {what}")


def _modernize(model: ir.Model) -> tuple[str, ...]:
    """Take initializers off the list of inputs where IR version 3 put them.

    Before IR version 4 every initializer had to be listed as an input, and runtimes let no caller feed it: it is a
    constant, which only newer versions can say.
    """
    if model.ir_version >= 4:
        return ()
    graph = model.graph
    fed = [value for value in graph.inputs if value.name not in graph.initializers]
    listed = len(graph.inputs) - len(fed)
    graph.inputs[:] = fed
    said = f"IR version {model.ir_version} became 4; {listed} initializers are no longer listed as inputs"
    model.ir_version = 4
    return (said,)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in walk.graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            yield from _attribute_externals(node)


def _attribute_externals(node: ir.Node) -> Iterator[ir.ExternalTensor]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        held = attribute.value if attribute.type == ir.AttributeType.TENSORS else [attribute.value]
        yield from (tensor for tensor in held if isinstance(tensor, ir.ExternalTensor))


def _separate_initializers(model: ir.Model) -> None:
    """Give initializers of sibling bodies that share a name names of their own: masks go by name.

    A name that a graph further out holds as well is left alone: ONNX does not allow that, and runtimes differ.
    """
    graphs = list(walk.graphs(model))
    around = {id(inner): graph for graph in graphs for node in graph for inner in walk.subgraphs(node)}
    held = [(graph, name) for graph in graphs for name in graph.initializers if not _shadows(graph, name, around)]
    names = {v.name for g in graphs for node in g for v in node.outputs} | {v.name for g in graphs for v in g.inputs}
    names.update(name for graph in graphs for name in graph.initializers)
    taken: dict[str, int] = {}
    for graph, name in held:
        taken[name] = taken.get(name, 0) + 1
        if taken[name] == 1:
            continue
        while (fresh := f"{name}_{taken[name] - 1}") in names:
            taken[name] += 1
        value = graph.initializers.pop(name)
        value.name = fresh
        names.add(fresh)
        graph.register_initializer(value)


def _shadows(graph: ir.Graph, name: str, around: Mapping[int, ir.Graph]) -> bool:
    outer = around.get(id(graph))
    while outer is not None:
        if name in outer.initializers:
            return True
        outer = around.get(id(outer))
    return False


def _name_nodes(model: ir.Model) -> None:
    """Give unnamed nodes names that depend on the graph alone; names that exist, duplicates too, are kept."""
    taken = {node.name for node in walk.nodes(model) if node.name}
    count = 0
    for node in walk.nodes(model):
        if node.name:
            continue
        while (name := f"{node.op_type}_{count}") in taken:
            count += 1
        node.name = name
        count += 1


def _order(module: Module, source: Source) -> tuple[str, ...]:
    """Sort a graph whose nodes are merely misordered; refuse one that no order makes right."""
    if next(verify.problems(module), None) is None:
        return ()
    for root in (module.graph, *(function.graph for function in module.model.functions.values())):
        try:
            root.sort()
        except ValueError:
            node = _in_cycle(root)
            raise InputError(f"{source.name}: the graph has a cycle through {node}") from None
    for problem in verify.problems(module):
        raise InputError(f"{source.name}: malformed graph: {problem}")
    return ("the nodes were not in topological order: sorted",)


def _in_cycle(graph: ir.Graph) -> str:
    """Name a node of a cycle: take away what can be computed, then follow inputs that are left until one repeats."""
    producers = _waiting(graph)
    if not producers:
        return "a subgraph"
    node, seen = next(iter(producers)), set[ir.Node]()
    while node not in seen:
        seen.add(node)
        node = next(iter(producers[node]))
    return walk.label(node)


def _waiting(graph: ir.Graph) -> dict[ir.Node, dict[ir.Node, None]]:
    """Nodes of `graph` that can never run, each with the nodes it waits for. O(nodes + edges)."""
    needs = {node: dict.fromkeys(_needed(node, graph)) for node in graph}
    users: dict[ir.Node, list[ir.Node]] = {node: [] for node in needs}
    for node, wanted in needs.items():
        for producer in wanted:
            users[producer].append(node)
    ready = [node for node, wanted in needs.items() if not wanted]
    while ready:
        done = ready.pop()
        del needs[done]
        for user in users[done]:
            needs[user].pop(done, None)
            if not needs[user]:
                ready.append(user)
    return needs


def _needed(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Node]:
    inner = [
        used for sub in walk.subgraphs(node) for part in (sub, *sub.subgraphs()) for n in part for used in n.inputs
    ]
    for value in (*node.inputs, *inner):
        producer = None if value is None else value.producer()
        if producer is not None and producer.graph is graph:
            yield producer


def _nan_notes(model: ir.Model) -> tuple[str, ...]:
    found: list[str] = []
    budget = NAN_LIMIT
    for graph in walk.graphs(model):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16 or not tensor.size:
                continue
            budget -= tensor.nbytes
            if budget < 0:
                return (*_name_nans(found), "not all weights were searched for NaN: they are too large")
            if _has_nan(tensor):
                found.append(name)
    return _name_nans(found)


def _name_nans(found: list[str]) -> tuple[str, ...]:
    if not found:
        return ()
    names = ", ".join(f"'{name}'" for name in found[:_NAMED_NANS])
    more = f" and {len(found) - _NAMED_NANS} more" if len(found) > _NAMED_NANS else ""
    return (f"the model's weights contain NaN: {names}{more}",)


def _has_nan(tensor: ir.TensorProtocol) -> bool:
    numbers = tensor.numpy()
    infinity = _HALF_INFINITY.get(tensor.dtype)
    if infinity is not None:  # half precision has no fast minimum; its bits do
        return bool((numbers.view(np.uint16) & np.uint16(0x7FFF)).max() > infinity)
    return bool(np.isnan(numbers.min()))  # a minimum passes NaN on, and needs no array of booleans
