"""TFLite flatbuffers, float or quantized, through tf2onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.lower.saved_model import reaches_outside
from joulec.ir.lower.tensorflow import LOWERED_OPSET, refuse_unknown, tensorflow
from joulec.ir.lower.tflite_sparse import densify, operator_codes
from joulec.ir.module import Module, Origin
from joulec.ir.onnx_file import read
from joulec.ir.precision import precision_of
from joulec.ir.shapes import first_line
from joulec.ir.values import Array


def from_flatbuffer(
    path: Path, folder: Path, trust_code: bool = False
) -> tuple[Module, Callable[[dict[str, Array]], Mapping[str, Array]], bool]:
    """Lower a flatbuffer; returns the module, the interpreter's own function, and whether it computes in integers.

    Args:
        path: the file.
        folder: where to write one without sparse weights, if need be.
        trust_code: allow operators that reach outside the model.

    Raises:
        InputError: damaged, with operators that reach outside the model or keep state, or not convertible.
    """
    tf = tensorflow()
    from tf2onnx import tfonnx

    source = _prepared(path, folder, trust_code)
    try:
        interpreter = tf.lite.Interpreter(model_path=str(path))
        graph = tfonnx.process_tf_graph(None, opset=LOWERED_OPSET, tflite_path=str(source))
        proto = graph.make_model("lowered by tf2onnx")
    except Exception as error:
        raise InputError(f"{path}: not a TFLite model that tf2onnx can convert: {first_line(error)}") from error
    module = read(ir.to_proto(ir.from_proto(proto)))
    refuse_unknown(module, path)
    module.origin = Origin("tflite", None, module.origin.notes)
    details = interpreter.get_input_details()
    results = interpreter.get_output_details()
    names = [str(value.name) for value in module.graph.outputs]

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        for detail, value in zip(details, feed.values(), strict=True):
            interpreter.resize_tensor_input(detail["index"], value.shape)
        interpreter.allocate_tensors()
        for detail, value in zip(details, feed.values(), strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        return {n: np.asarray(interpreter.get_tensor(r["index"])) for n, r in zip(names, results, strict=True)}

    return module, run, precision_of(module) == "quantized"


def _prepared(path: Path, folder: Path, trust_code: bool) -> Path:
    """The file, or a copy in `folder` that tf2onnx can read; inspected."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = _unpacked(path, schema)
    _refuse(model, path, trust_code, schema)
    try:
        sparse = densify(model, schema)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: a damaged TFLite file ({first_line(error)})") from error
    if not sparse:
        return path
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    dense = folder / "dense.tflite"
    dense.write_bytes(builder.Output())
    return dense


def _unpacked(path: Path, schema: Any) -> Any:
    """The flatbuffer as objects, read in Python, where a bad offset is an exception: the interpreter only crashes."""
    data = path.read_bytes()
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        ends = [int(buffer.offset) + int(buffer.size) for buffer in model.buffers or ()]  # data behind the flatbuffer
    except Exception as error:
        raise InputError(f"{path}: a damaged TFLite file ({first_line(error)})") from error
    if not model.subgraphs or max(ends, default=0) > len(data):
        raise InputError(f"{path}: a damaged TFLite file (it holds no graph, or ends before its weights)")
    return model


def _refuse(model: Any, path: Path, trust_code: bool, schema: Any) -> None:
    kinds = schema.BuiltinOperator
    stateful = {kinds.VAR_HANDLE: "VAR_HANDLE", kinds.READ_VARIABLE: "READ_VARIABLE", kinds.CALL_ONCE: "CALL_ONCE"}
    for kept in [stateful[code] for code in operator_codes(model) if code in stateful]:
        raise InputError(
            f"{path}: keeps state from one run to the next ({kept}), which ONNX has no operators for; convert it "
            "from its source with that state as inputs and outputs"
        )
    for code in (bytes(entry.customCode or b"").decode(errors="replace") for entry in model.operatorCodes or ()):
        what = reaches_outside(code.removeprefix("Flex"))  # TensorFlow's own operators inside TFLite
        if code.startswith("Flex") and what is not None and not trust_code:
            raise InputError(f"{path}: operator '{code}' {what}; --trust-code allows it")
