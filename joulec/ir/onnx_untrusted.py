"""What a model's protobuf claims, checked against what is really there, before anything trusts or allocates it."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.onnx_attributes import check_attributes
from joulec.ir.walk import ONNX_DOMAINS

MAX_NESTING = 32
"""Subgraphs within subgraphs; exporters stay below five."""

MAX_RANK = 64
"""Dimensions of one tensor: numpy's own limit; ONNX Runtime's is lower still."""

DENSE_LIMIT = 1 << 28
"""Bytes that all sparse tensors together may grow to when they are stored dense."""


@dataclass(frozen=True)
class Source:
    """What messages call the model, and the folder its external data must lie in (None: it may have none)."""

    name: str
    folder: Path | None


def check(proto: onnx.ModelProto, source: Source) -> None:
    """Check every tensor of `proto`, in all graphs and functions, without reading external numbers. O(model).

    Raises:
        InputError: a tensor whose size contradicts its bytes, external data outside the model's folder, nesting
            beyond `MAX_NESTING`, an attribute that a standard operator does not have so, a value of more dimensions
            than `MAX_RANK`, or an attribute that refers to a function's although it stands in none.
    """
    _check_attributes(proto, source)
    for graph in graphs(proto, source):
        _check_ranks(graph, source)
    for graph in _nested([proto.graph], 0, source):
        _check_references(graph, source)
    sizes: dict[str, int] = {}
    for tensor in tensors(proto, source):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, source, sizes)
        else:
            _check_inline(tensor, source)


def _check_attributes(proto: onnx.ModelProto, source: Source) -> None:
    for graph in _nested([proto.graph], 0, source):
        check_attributes(graph.node, _version(proto.opset_import), source.name)
    for function in proto.functions:
        bodies = _nested(list(_subgraphs(function.node)), 1, source)
        for nodes in (function.node, *(graph.node for graph in bodies)):
            check_attributes(nodes, _version(function.opset_import), source.name)


def _version(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return next((entry.version for entry in imports if entry.domain in ONNX_DOMAINS), 1)


def _check_ranks(graph: onnx.GraphProto, source: Source) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        rank = len(info.type.tensor_type.shape.dim)
        if rank > MAX_RANK:
            raise InputError(f"{source.name}: '{info.name}' declares {rank} dimensions; the limit is {MAX_RANK}")


def _check_references(graph: onnx.GraphProto, source: Source) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                where = f"{node.op_type} '{node.name or next(iter(node.output), '')}'"
                said = f"attribute '{attribute.name}' refers to '{attribute.ref_attr_name}' of a function"
                raise InputError(f"{source.name}: {where}: {said}, but stands in none")


def external_paths(proto: onnx.ModelProto, source: Source) -> list[Path]:
    """The files that hold external data of `proto`, each once, in the order of first use."""
    found: dict[Path, None] = {}
    for tensor in tensors(proto, source):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found[_resolve(_external(tensor), tensor, source)] = None
    return list(found)


def tensors(proto: onnx.ModelProto, source: Source) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor of all graphs and functions: initializers, attributes, the halves of sparse ones."""
    for graph in graphs(proto, source):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)
        yield from _tensors_of(function.attribute_proto)


def graphs(proto: onnx.ModelProto, source: Source) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and all graphs nested in it or in functions, with an explicit stack.

    Raises:
        InputError: nesting beyond `MAX_NESTING`.
    """
    yield from _nested([proto.graph], 0, source)
    yield from _nested([graph for function in proto.functions for graph in _subgraphs(function.node)], 1, source)


def _nested(roots: list[onnx.GraphProto], level: int, source: Source) -> Iterator[onnx.GraphProto]:
    pending = [(graph, level) for graph in roots]
    while pending:
        graph, depth = pending.pop()
        if depth > MAX_NESTING:
            raise InputError(f"{source.name}: subgraphs are nested more than {MAX_NESTING} deep")
        yield graph
        pending += [(inner, depth + 1) for inner in _subgraphs(graph.node)]


def _subgraphs(nodes: object) -> Iterator[onnx.GraphProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs


def _attribute_tensors(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield from _tensors_of(node.attribute)


def _tensors_of(attributes: object) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:  # type: ignore[attr-defined]
        if attribute.ref_attr_name:  # a function's attribute, whose value stands at each call
            continue
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        elif attribute.type == onnx.AttributeProto.TENSORS:
            yield from attribute.tensors
        elif attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        elif attribute.type == onnx.AttributeProto.SPARSE_TENSORS:
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)


def _label(tensor: onnx.TensorProto, source: Source) -> str:
    return f"{source.name}: tensor '{tensor.name}'"


def _elements(tensor: onnx.TensorProto, source: Source) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{_label(tensor, source)} has a negative dimension: {list(tensor.dims)}")
    if len(tensor.dims) > MAX_RANK:
        raise InputError(f"{_label(tensor, source)} has {len(tensor.dims)} dimensions; the limit is {MAX_RANK}")
    return math.prod(tensor.dims)


def _bits(tensor: onnx.TensorProto, source: Source) -> int:
    try:
        return ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):
        raise InputError(f"{_label(tensor, source)} has an unknown data type ({tensor.data_type})") from None


def _check_inline(tensor: onnx.TensorProto, source: Source) -> None:
    elements = _elements(tensor, source)
    if tensor.HasField("segment"):
        raise InputError(f"{_label(tensor, source)} is stored in segments, which joulec cannot read")
    if tensor.data_type == onnx.TensorProto.STRING:
        stored, wanted = len(tensor.string_data), elements
    elif tensor.HasField("raw_data"):
        stored, wanted = len(tensor.raw_data), math.ceil(elements * _bits(tensor, source) / 8)
    else:
        stored, wanted = _typed_length(tensor), _typed_wanted(tensor, elements, source)
    if stored != wanted:
        shape = "x".join(map(str, tensor.dims)) or "scalar"
        raise InputError(f"{_label(tensor, source)} ({shape}) needs {wanted} stored values or bytes, has {stored}")


def _typed_length(tensor: onnx.TensorProto) -> int:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return sum(map(len, fields))


def _typed_wanted(tensor: onnx.TensorProto, elements: int, source: Source) -> int:
    bits = _bits(tensor, source)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * elements
    return math.ceil(elements * bits / 8) if bits < 8 else elements


@dataclass(frozen=True)
class _External:
    location: str
    offset: int
    length: int | None


def _external(tensor: onnx.TensorProto) -> _External:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = entries.get("length")
    return _External(entries.get("location", ""), int(entries.get("offset") or 0), int(length) if length else None)


def _check_external(tensor: onnx.TensorProto, source: Source, sizes: dict[str, int]) -> None:
    label = _label(tensor, source)
    try:
        external = _external(tensor)
    except ValueError:
        raise InputError(f"{label}: offset or length of its external data is no number") from None
    if tensor.data_type == onnx.TensorProto.STRING:
        raise InputError(f"{label}: strings cannot be external data")
    wanted = math.ceil(_elements(tensor, source) * _bits(tensor, source) / 8)
    if external.length is not None and external.length != wanted:
        raise InputError(f"{label} needs {wanted} bytes, its external data has length {external.length}")
    if external.location not in sizes:
        sizes[external.location] = _resolve(external, tensor, source).stat().st_size
    size = sizes[external.location]
    if external.offset < 0 or external.offset + wanted > size:
        where = f"bytes {external.offset} to {external.offset + wanted}"
        raise InputError(f"{label}: {where} lie beyond the end of '{external.location}' ({size} bytes)")


def _resolve(external: _External, tensor: onnx.TensorProto, source: Source) -> Path:
    """The file that holds `tensor`, proven to be a regular file inside the model's folder."""
    label, location = _label(tensor, source), external.location
    if source.folder is None:
        raise InputError(f"{label} is external data ('{location}'): give joulec the model's path instead")
    if not location or "\0" in location:
        raise InputError(f"{label}: external data without a location")
    outside = f"{label}: external data '{location}' lies outside the model's folder"
    if _leaves(location):
        raise InputError(outside)
    folder = Path(os.path.realpath(source.folder))
    path = Path(os.path.realpath(folder / location))
    if not path.is_relative_to(folder):
        raise InputError(outside)
    _check_regular(path, f"{label}: external data '{location}'")
    return path


def _leaves(location: str) -> bool:
    windows = PureWindowsPath(location)
    absolute = PurePosixPath(location).is_absolute() or bool(windows.drive or windows.root)
    return absolute or ".." in windows.parts


def _check_regular(path: Path, what: str) -> None:
    try:
        status = path.stat()
    except OSError:
        raise InputError(f"{what} does not exist") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{what} is not a regular file")
    if status.st_nlink > 1:  # it may be a file from elsewhere; onnx and onnx_ir refuse these too
        raise InputError(f"{what} has several hard links: copy it")


def densify(proto: onnx.ModelProto, source: Source) -> tuple[str, ...]:
    """Store sparse initializers and sparse constants dense, in place: the tools downstream know nothing else.

    Returns:
        A note per converted tensor.

    Raises:
        InputError: a malformed sparse tensor, or more than `DENSE_LIMIT` bytes when dense.
    """
    notes: list[str] = []
    _check_dense_size(proto, source)
    for graph in list(graphs(proto, source)):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name, source))
            notes.append(f"sparse initializer '{sparse.values.name}' is stored dense")
        del graph.sparse_initializer[:]
        _densify_constants(graph.node, source, notes)
    for function in proto.functions:
        _densify_constants(function.node, source, notes)
    return tuple(notes)


def _check_dense_size(proto: onnx.ModelProto, source: Source) -> None:
    size = 0
    for sparse in _sparse_tensors(proto, source):
        label, shape = f"{source.name}: sparse tensor '{sparse.values.name}'", list(sparse.dims)
        if not shape or min(shape) < 0 or len(shape) > MAX_RANK:
            raise InputError(f"{label} has dimensions {shape[:8]}: malformed")
        size += math.prod(shape) * math.ceil(_bits(sparse.values, source) / 8)
        if size > DENSE_LIMIT:
            raise InputError(f"{label} {shape[:8]}: sparse tensors beyond {DENSE_LIMIT >> 20} MiB when dense")


def _sparse_tensors(proto: onnx.ModelProto, source: Source) -> Iterator[onnx.SparseTensorProto]:
    for graph in graphs(proto, source):
        yield from graph.sparse_initializer
        yield from _sparse_constants(graph.node)
    for function in proto.functions:
        yield from _sparse_constants(function.node)


def _sparse_constants(nodes: object) -> Iterator[onnx.SparseTensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                yield attribute.sparse_tensor


def _densify_constants(nodes: object, source: Source, notes: list[str]) -> None:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type != onnx.AttributeProto.SPARSE_TENSOR or node.op_type != "Constant":
                continue
            tensor = _dense(attribute.sparse_tensor, attribute.sparse_tensor.values.name, source)
            attribute.Clear()
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(tensor)
            notes.append(f"sparse constant '{node.output[0]}' is stored dense")


def _dense(sparse: onnx.SparseTensorProto, name: str, source: Source) -> onnx.TensorProto:
    label = f"{source.name}: sparse tensor '{name}'"
    external = onnx.TensorProto.EXTERNAL
    if external in (sparse.values.data_location, sparse.indices.data_location):
        raise InputError(f"{label} is external data, which joulec cannot read for sparse tensors")
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    flat = _flat_indices(indices, shape, values.size) if indices.dtype == np.int64 and values.ndim == 1 else None
    if flat is None:
        raise InputError(f"{label}: its indices do not fit its dimensions")
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[flat] = values
    return onnx.numpy_helper.from_array(dense.reshape(shape), name)


def _flat_indices(indices: np.ndarray, shape: tuple[int, ...], count: int) -> np.ndarray | None:
    if indices.shape == (count, len(shape)):
        if count and (indices.min() < 0 or np.any(indices >= np.asarray(shape))):
            return None
        return np.ravel_multi_index(tuple(indices.T), shape) if count else np.zeros(0, np.int64)
    if indices.shape != (count,) or (count and (indices.min() < 0 or indices.max() >= math.prod(shape))):
        return None
    return indices


def refuse_maps(proto: onnx.ModelProto, source: Source) -> None:
    """Classifiers of scikit-learn and its kin end in a ZipMap unless told otherwise: a dict of classes for each row.

    Raises:
        InputError: the graph takes or gives such maps.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, kind.WhichOneof("value") or "").elem_type
        if kind.HasField("map_type"):
            raise InputError(
                f"{source.name}: '{value.name}' holds maps, and joulec compiles tensors; convert the model to plain "
                "probabilities instead (skl2onnx: options={'zipmap': False}; onnxmltools: zipmap=False)"
            )
