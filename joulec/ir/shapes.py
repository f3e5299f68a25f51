"""Shape inference: what ONNX can infer, merged into the module without touching its signature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
import onnx.inliner
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.skeleton import skeleton
from joulec.ir.values import constant_tensor


def infer_shapes(module: Module) -> str | None:
    """Annotate values with inferred dtypes and shapes, keeping the declared graph inputs and outputs as they are.

    Returns:
        None, or the reason why inference gave nothing (a malformed node, an operator it chokes on).
    """
    return module.derive("shapes", lambda: _infer_into(module))


def _infer_into(module: Module) -> str | None:
    try:
        bare = _undeclared(module)
        inferred = _infer(bare, _may_propagate(module))
    except Exception as error:  # noqa: BLE001 - the C++ side raises several unrelated types; all mean "no shapes"
        return f"shape inference failed: {first_line(error)}"
    _merge(module.graph, inferred.graph)
    return None


def skeleton_of(module: Module) -> onnx.ModelProto:
    """The module's skeleton, made once for all who ask until a rewriter changes the graph. Not to be changed."""
    return module.derive("skeleton", lambda: skeleton(module.model))


def _undeclared(module: Module) -> onnx.ModelProto:
    """A copy of the skeleton in which nothing is said of what the graph computes."""
    bare = onnx.ModelProto()
    bare.CopyFrom(skeleton_of(module))
    read_as_onnx(bare)
    for graph in _graphs(bare.graph):
        _forget_declared(graph)
    return bare


SAME_SHAPE = {"Scaler": "Cast", "Normalizer": "Cast", "Imputer": "Identity"}
"""Operators of ai.onnx.ml of which onnx infers nothing -> the standard one with an output of the same type and shape.

Pipelines of scikit-learn begin with them, and without their shapes nothing behind them has any.
"""


def read_as_onnx(copy: onnx.ModelProto) -> None:
    """Turn operators that onnx's inference knows nothing of into others of the same types; for inference alone."""
    if all(imported.domain not in walk.ONNX_DOMAINS for imported in copy.opset_import):
        return
    for graph in _graphs(copy.graph):
        for node in graph.node:
            if node.domain == "ai.onnx.ml" and node.op_type in SAME_SHAPE:
                node.domain, node.op_type = "", SAME_SHAPE[node.op_type]
                to = [onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT)] if node.op_type == "Cast" else []
                del node.attribute[:]
                node.attribute.extend(to)


def contradiction(module: Module) -> str | None:
    """Why no input can run through `module`, by its ranks and dimensions alone; None where nothing speaks against it.

    What onnx's strict inference refuses, no runtime can execute: an operator gets a rank that it does not take.
    """
    try:
        _infer(_undeclared(module), _may_propagate(module), strict=True)
    except Exception as error:  # noqa: BLE001 - the C++ side raises several unrelated types
        return first_line(error)
    return None


def _infer(bare: onnx.ModelProto, propagate: bool, strict: bool = False) -> onnx.ModelProto:
    """onnx's inference; with data propagation where that is asked for and no long vector could meet it.

    Raises:
        ValueError: a dimension comes out negative.
    """
    for graph in _graphs(bare.graph):
        _open_negative_dims(graph)
    if (name := negative_dim(bare)) is not None:
        raise ValueError(f"'{name}' has a negative dimension")
    known = onnx.shape_inference.infer_shapes(bare, False, strict, data_prop=False)
    if not propagate or _has_long_vectors(known) or _long_when_inlined(bare):
        return known
    return onnx.shape_inference.infer_shapes(bare, False, strict, data_prop=True)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _open_negative_dims(graph: onnx.GraphProto) -> None:
    """Some exporters write -1 for any size."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()


def open_negative_dims(model: ir.Model) -> None:
    """Some exporters (Paddle's) write -1 for any size; nothing read from a file has such a number. O(values)."""
    for graph in walk.graphs(model):
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.outputs, *made):
            if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
                value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape])


def negative_dim(bare: onnx.ModelProto) -> str | None:
    """A value that comes out with a negative dimension, before a Slice sees it: onnx's inference aborts there.

    They come from kernels larger than what they slide over, from Pad, Split and TopK. None if there is no Slice.
    """
    parts = (*_graphs(bare.graph), *bare.functions)
    slices = [node for part in parts for node in part.node if node.op_type == "Slice"]
    if not slices:
        return None
    for node in slices:
        node.op_type = "Opaque"
    try:
        return _negative_before(bare, slices)
    finally:
        for node in slices:
            node.op_type = "Slice"


def _negative_before(bare: onnx.ModelProto, hidden: list[onnx.NodeProto]) -> str | None:
    """Let Slices see what is proven sound, as many in a row as `SLICES` says: a round costs an inference."""
    for _ in range(SLICES):
        known = onnx.shape_inference.infer_shapes(bare, False, False, data_prop=False)
        infos = [info for graph in _graphs(known.graph) for info in (*graph.input, *graph.value_info, *graph.output)]
        for info in infos:
            if any(dim.dim_value < 0 for dim in info.type.tensor_type.shape.dim):
                return str(info.name)
        shaped = {info.name for info in infos if info.type.tensor_type.HasField("shape")}
        sound = [node for node in hidden if node.input and node.input[0] in shaped]
        if not sound:
            break
        for node in sound:
            node.op_type = "Slice"
        hidden = [node for node in hidden if node.op_type == "Opaque"]
    return None


SLICES = 3
"""Slices one after another before which dimensions are checked; exporters chain two."""


def forget_shapes(module: Module) -> None:
    """Drop types and shapes of intermediate values that any runtime infers by itself; signatures stay.

    What operators of unknown domains make keeps its declaration: nobody can infer that.
    """
    for graph in walk.graphs(module.model):
        for node in graph:
            if node.domain not in walk.RUNTIME_DOMAINS:
                continue
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type, value.shape = None, None
    module.changed()


def _long_when_inlined(bare: onnx.ModelProto) -> bool:
    """Whether long vectors turn up inside functions: onnx infers their bodies at each call, and tells nothing of it."""
    if not bare.functions:
        return False
    inlined = onnx.inliner.inline_local_functions(bare)
    return _has_long_vectors(onnx.shape_inference.infer_shapes(inlined, False, False, data_prop=False))


PROPAGATED = 1 << 16
"""Elements up to which onnx may propagate data: it stores every element that a node makes, whatever their number."""


def _may_propagate(module: Module) -> bool:
    """Whether no node can ask data propagation for more memory than a shape needs (a file can do so in a few bytes)."""
    return all(_may_propagate_through(node) for node in walk.nodes(module.model))


def _may_propagate_through(node: ir.Node) -> bool:
    if walk.is_onnx(node, "Slice"):  # onnx counts in these steps without a look at where the numbers end
        return len(node.inputs) < 5 or node.inputs[4] is None or _moderate(node.inputs[4])
    if not walk.is_onnx(node, "ConstantOfShape", "Range", "Expand", "Tile"):
        return True
    return all(_small(value) for value in (node.inputs if node.op_type == "Range" else node.inputs[-1:]))


def _moderate(steps: ir.Value) -> bool:
    tensor = constant_tensor(steps)
    return tensor is not None and tensor.size <= 64 and all(abs(int(step)) < 1 << 31 for step in tensor.numpy().ravel())


PROPAGATORS = frozenset("Add Sub Mul Cast Concat Gather Shape Size Slice Squeeze Unsqueeze".split())
"""Operators whose inputs onnx's data propagation spells out, element by element, also where no element is known."""


def _has_long_vectors(known: onnx.ModelProto) -> bool:
    """Whether a vector of more than `PROPAGATED` elements is an input of one of the `PROPAGATORS`."""
    return any(_reads_long_vector(graph, {}) for graph in (known.graph, *known.functions))


def _reads_long_vector(graph: onnx.GraphProto | onnx.FunctionProto, outer: Mapping[str, bool]) -> bool:
    """The same for one graph and those inside it; `outer` says which names of the graphs around it are long."""
    long = {name: True for name, is_long in outer.items() if is_long}
    long |= {info.name: _is_long(info) for info in _declared(graph)}
    for node in graph.node:
        if node.op_type in PROPAGATORS and any(long.get(name) for name in node.input):
            return True
        inner = (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)
        if any(_reads_long_vector(body, long) for body in inner):
            return True
    return False


def _declared(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    if isinstance(graph, onnx.GraphProto):
        yield from graph.input
        yield from graph.output


def _is_long(info: onnx.ValueInfoProto) -> bool:
    dims = info.type.tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > PROPAGATED


def _small(sizes: ir.Value | None) -> bool:
    tensor = constant_tensor(sizes)
    if tensor is None or tensor.size > 64:
        return False
    return math.prod(max(1, abs(float(size))) for size in tensor.numpy().ravel()) <= PROPAGATED


def _forget_declared(graph: onnx.GraphProto) -> None:
    """Drop what the file declares of intermediate values: inference must not build on what may be wrong."""
    produced = {name for node in graph.node for name in node.output if node.domain in walk.ONNX_DOMAINS}
    kept = [info for info in graph.value_info if info.name not in produced]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for output in graph.output:  # what a file says of an output must not become true of what is computed from it
        if output.name in produced and output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages that must stay on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _merge(ours: ir.Graph, theirs: onnx.GraphProto) -> None:
    """Take over what was inferred; nodes stand in the same order in both, because one was serialized from the other."""
    known = {info.name: info for info in theirs.value_info}
    for node, proto in zip(ours, theirs.node, strict=True):
        for value in node.outputs:
            info = known.get(value.name or "")
            if info is not None and not value.is_graph_output():
                _annotate(value, info.type)
        bodies = (body for attribute in proto.attribute for body in _bodies(attribute))
        for inner, body in zip(walk.subgraphs(node), bodies, strict=True):
            _merge(inner, body)


def _bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        yield attribute.g
    yield from attribute.graphs


def _annotate(value: ir.Value, inferred: onnx.TypeProto) -> None:
    kind = ir.serde.deserialize_type_proto_for_type(inferred)
    shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    if kind is not None:
        value.type = kind
    if shape is not None and _says_more(shape, value.shape):
        value.shape = shape


def _says_more(new: ir.Shape, old: ir.Shape | None) -> bool:
    """Whether `new` knows at least as many dimensions as `old` (inference can lose what a file declared)."""
    if old is None or len(old) != len(new):
        return True
    pairs = list(zip(new, old, strict=True))
    if any(isinstance(one, int) and isinstance(other, int) and one != other for one, other in pairs):
        return True  # what a file declares of its intermediate values may be stale
    return sum(isinstance(one, int) for one, _ in pairs) >= sum(isinstance(other, int) for _, other in pairs)
