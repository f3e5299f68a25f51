"""TensorFlow functions and Keras models to ONNX, through tf2onnx without its own optimizer.

tf2onnx's optimizer takes most of its time and does what joulec's passes do, with a record; ONNX Runtime runs both
results equally fast. Variables are frozen by tf2onnx's loader; constants that a function captured come out as graph
inputs there, and are bound to their values here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from joulec.errors import InputError, missing_extra
from joulec.ir import walk
from joulec.ir.lower.names import weights_of
from joulec.ir.module import Module, Origin
from joulec.ir.onnx_file import read
from joulec.ir.shapes import first_line
from joulec.ir.values import Array

if TYPE_CHECKING:
    from joulec.ir.lower import Lowered

LOWERED_OPSET = 18
"""The newest opset tf2onnx writes; `upgrade-opset` takes it from there."""


def tensorflow() -> Any:
    """TensorFlow, with its log kept off the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
        import tf2onnx  # noqa: F401
    except ImportError:
        raise missing_extra("tensorflow and tf2onnx", "tensorflow", "lowering a TensorFlow model") from None
    return tf


def from_live(source: Any) -> Lowered:
    """Lower a live Keras model, tf.function or ConcreteFunction."""
    from joulec.ir.lower import Lowered
    from joulec.ir.lower.parity import check

    tf = tensorflow()
    if hasattr(source, "get_config") and hasattr(source, "layers"):
        module, run = lower_keras(source)
    elif hasattr(source, "structured_outputs"):
        module, run = lower_concrete(source)
    elif hasattr(source, "get_concrete_function"):
        if getattr(source, "input_signature", None) is None:
            raise InputError("tf.function without input_signature: give get_concrete_function(...) of it instead")
        module, run = lower_concrete(source.get_concrete_function())
    else:
        raise InputError(f"cannot lower a {type(source).__name__}; give a Keras model or a tf.function")
    del tf
    return Lowered(module, check(module, run))


def lower_keras(model: Any) -> tuple[Module, Callable[[dict[str, Array]], Mapping[str, Array]]]:
    """A Keras model as a module, and its own function from named inputs to named outputs."""
    tf = tensorflow()
    structure, values = _declared_inputs(model)
    names = _unique([str(value.name or f"input_{i}").split(":")[0].replace("/", "_") for i, value in enumerate(values)])
    specs = [
        tf.TensorSpec(tuple(value.shape), value.dtype, name=name) for value, name in zip(values, names, strict=True)
    ]

    @tf.function(input_signature=specs)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return model(structure(inputs), training=False)

    try:
        concrete = call.get_concrete_function()
    except Exception as error:
        raise InputError(f"the Keras model cannot be traced: {first_line(error)}") from error
    outputs, order = _output_names(model, concrete.structured_outputs)
    module, run = lower_function(concrete, names, outputs, "keras", order)
    module.origin = replace(module.origin, weights=weights_of(model, module))
    return module, run


def _declared_inputs(model: Any) -> tuple[Callable[[Sequence[Any]], Any], Sequence[Any]]:
    """How a flat list of inputs becomes the model's argument (a tensor, list or dict), and the inputs in that order."""
    import keras

    if getattr(model, "inputs", None):
        structure = getattr(model, "_inputs_struct", None)
        if isinstance(structure, Mapping):
            return (lambda flat: keras.tree.pack_sequence_as(structure, list(flat))), model.inputs
        return (lambda flat: flat[0] if len(flat) == 1 else list(flat)), model.inputs
    if not getattr(model, "built", False):
        raise InputError("the Keras model is not built; call it on data or give it an Input")
    try:  # a subclassed model: what its first call was given, as Keras's own export finds it
        from keras.src.export.export_utils import get_input_signature

        (signature,) = get_input_signature(model)
        return (lambda flat: keras.tree.pack_sequence_as(signature, list(flat))), keras.tree.flatten(signature)
    except Exception as error:
        raise InputError(
            "the Keras model declares no inputs; wrap it in a tf.function with an input_signature"
        ) from error


def _output_names(model: Any, outputs: Any) -> tuple[list[str], list[str]]:
    """Public names in the order of the flattened outputs, and in the order that the model declares."""
    if isinstance(outputs, Mapping):
        return _mapped_names(outputs)
    count = len(tensorflow().nest.flatten(outputs))
    names = list(getattr(model, "output_names", None) or [])
    if len(names) != count:
        last = getattr(model, "layers", None)
        names = [last[-1].name if last and count == 1 else f"output_{index}" for index in range(count)]
    found = _unique([str(name) for name in names])
    return found, found


def _mapped_names(outputs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """A dict of outputs: TensorFlow flattens it by sorted keys, the user wrote it in an order of their own."""
    flat = _paths("", {key: outputs[key] for key in sorted(outputs)})
    return flat, _paths("", outputs)


def _paths(path: str, value: Any) -> list[str]:
    """`a`, `b/0`, `b/1` for `{"a": tensor, "b": [tensor, tensor]}`; what is below the first level comes sorted."""
    if isinstance(value, Mapping):
        items = value.items() if not path else sorted(value.items())
        return [found for key, item in items for found in _paths(f"{path}/{key}" if path else str(key), item)]
    if isinstance(value, list | tuple):
        return [found for index, item in enumerate(value) for found in _paths(f"{path}/{index}", item)]
    return [path]


def _unique(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}_{counts[name] - 1}")
    return found


def lower_concrete(
    concrete: Any, kind: str = "tensorflow"
) -> tuple[Module, Callable[[dict[str, Array]], Mapping[str, Array]]]:
    """A ConcreteFunction (also a SavedModel signature); inputs and outputs are named as its signature names them."""
    tf = tensorflow()
    captured = {id(inner) for _, inner in concrete.graph.captures}
    inputs = [t for t in concrete.inputs if id(t) not in captured]
    outputs = concrete.structured_outputs
    if isinstance(outputs, Mapping):
        names, order = _mapped_names(outputs)
        order = sorted(order) if kind == "saved-model" else order  # a protobuf map has no order of its own
    else:
        flat = tf.nest.flatten(outputs)
        names = order = ["output"] if len(flat) == 1 else [f"output_{i}" for i in range(len(flat))]
    return lower_function(concrete, [t.name.split(":")[0] for t in inputs], names, kind, order)


def lower_function(
    concrete: Any, inputs: Sequence[str], outputs: Sequence[str], kind: str, order: Sequence[str]
) -> tuple[Module, Callable[[dict[str, Array]], Mapping[str, Array]]]:
    """Convert a ConcreteFunction.

    Args:
        concrete: the function; its first inputs are those named, the rest is captured.
        inputs: public names, in the order of the function's arguments.
        outputs: public names, in the order of its flattened outputs.
        kind: the origin's format.
        order: the same output names in the order they shall have.
    """
    tf = tensorflow()
    proto = _convert(concrete)
    captured = {inner.name: outer for outer, inner in concrete.graph.captures if inner.dtype != tf.resource}
    model = ir.from_proto(proto)
    _bind_captured(model, captured)
    arguments = [t for t in concrete.inputs if t.name not in captured and t.dtype != tf.resource]
    _rename(model, [t.name for t in arguments], inputs, outputs)
    _name_dimensions(model, arguments, [t for t in concrete.outputs if t is not None])
    _trim_identities(model)
    model.graph.outputs[:] = sorted(model.graph.outputs, key=lambda value: order.index(str(value.name)))
    module = read(ir.to_proto(model))
    refuse_unknown(module, "the model")
    module.origin = Origin(kind, None, module.origin.notes)

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        flat = [tf.constant(feed[name], dtype=t.dtype) for name, t in zip(inputs, arguments, strict=True)]
        results = tf.nest.flatten(concrete(*flat) if _positional(concrete) else concrete(**_keywords(concrete, flat)))
        return {name: np.asarray(value) for name, value in zip(outputs, results, strict=True)}

    return module, run


def _positional(concrete: Any) -> bool:
    return bool(concrete.structured_input_signature[0])


def _keywords(concrete: Any, flat: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(sorted(concrete.structured_input_signature[1]), flat, strict=True))


def _convert(concrete: Any) -> onnx.ModelProto:
    from tf2onnx import tf_loader, tfonnx

    tf = tensorflow()
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    inputs = [t.name for t in concrete.inputs if t.dtype != tf.resource]
    outputs = [t.name for t in concrete.outputs]
    try:
        frozen = tf_loader.from_function(concrete, inputs, outputs)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen, name="")
            with tf_loader.tf_session(graph=graph):
                found = tfonnx.process_tf_graph(
                    graph, opset=LOWERED_OPSET, input_names=inputs, output_names=outputs,
                    custom_op_handlers={"Erfc": (_erfc, [])},
                )  # fmt: skip
        proto: onnx.ModelProto = found.make_model("lowered by tf2onnx")
        return proto
    except Exception as error:
        raise InputError(f"tf2onnx cannot convert the model: {first_line(error)}") from error


def refuse_unknown(module: Module, source: object) -> None:
    """Stop where tf2onnx passed on an operator that it does not know under its old name.

    Args:
        module: what tf2onnx made.
        source: what it made it of, for the message.

    Raises:
        InputError: such operators, by name.
    """
    operators = {node.op_type for node in walk.nodes(module.model) if node.domain in walk.ONNX_DOMAINS}
    unknown = sorted(name.removeprefix("TFL_") for name in operators if not onnx.defs.has(name))
    if unknown:
        raise InputError(f"{source}: tf2onnx knows no ONNX operators for {', '.join(unknown)}")


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """erfc(x) = 1 - erf(x), which tf2onnx does not know; every exact GELU of Keras holds it."""
    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    one = context.make_const(f"{name}_one", np.ones((), ir.DataType(dtype).numpy()))
    erf = context.make_node("Erf", [node.input[0]], dtypes=[dtype], shapes=[shape])
    context.remove_node(node.name)
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], name=name, outputs=node.output, dtypes=[dtype], shapes=[shape]
    )


def _trim_identities(model: ir.Model) -> None:
    """tf2onnx turns TensorListFromTensor into an Identity and leaves it the list's element shape as a second input."""
    for node in model.graph.all_nodes():
        if node.op_type == "Identity" and node.domain in walk.ONNX_DOMAINS and len(node.inputs) > 1:
            node.resize_inputs(1)


def _bind_captured(model: ir.Model, captured: Mapping[str, Any]) -> None:
    """Turn graph inputs that are captured constants into initializers with their values."""
    for value in list(model.graph.inputs):
        outer = captured.get(value.name or "")
        if outer is None:
            continue
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.asarray(outer), name=value.name)
        value.shape = ir.Shape(np.asarray(outer).shape)
        model.graph.register_initializer(value)


def _rename(model: ir.Model, tensors: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their public names, and whatever else has such a name another one."""
    graph = model.graph
    public = {*inputs, *outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in public:
                value.name = f"{value.name}_inner"
    for value in list(graph.initializers.values()):
        if value.name in public:
            value.name = f"{value.name}_inner"
    by_name = {value.name: value for value in graph.inputs}
    for tensor, name in zip(tensors, inputs, strict=True):
        if tensor in by_name:
            by_name[tensor].name = name
    for index, name in enumerate(outputs):
        _own_output(graph, index)
        graph.outputs[index].name = name


def _own_output(graph: ir.Graph, index: int) -> None:
    """An output that is an input, an initializer or another output gets an Identity, so that it can have a name."""
    value = graph.outputs[index]
    if not (value.is_graph_input() or value.is_initializer() or value in graph.outputs[:index]):
        return
    node = ir.node("Identity", [value], num_outputs=1)
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    graph.append(node)
    graph.outputs[index] = node.outputs[0]


def _name_dimensions(model: ir.Model, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    for values, sources in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, source in zip(values, sources, strict=False):
            if source.shape.rank is None:
                continue
            dims = [
                int(dim) if dim is not None else "batch" if axis == 0 else f"{value.name}_dim{axis}"
                for axis, dim in enumerate(source.shape.as_list())
            ]
            value.shape = ir.Shape(dims)
