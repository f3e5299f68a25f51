"""TFLite flatbuffers, float or quantized, through tf2onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.lower.saved_model import reaches_outside
from joulec.ir.lower.tensorflow import LOWERED_OPSET, tensorflow
from joulec.ir.module import Module, Origin
from joulec.ir.onnx_file import read
from joulec.ir.precision import precision_of
from joulec.ir.shapes import first_line
from joulec.ir.values import Array


def from_flatbuffer(
    path: Path, trust_code: bool = False
) -> tuple[Module, Callable[[dict[str, Array]], Mapping[str, Array]], bool]:
    """Lower a flatbuffer; returns the module, the interpreter's own function, and whether it computes in integers.

    Raises:
        InputError: damaged, with operators that reach outside the model, or not convertible.
    """
    tf = tensorflow()
    from tf2onnx import tfonnx

    _inspect(path, trust_code)

    try:
        interpreter = tf.lite.Interpreter(model_path=str(path))
        graph = tfonnx.process_tf_graph(None, opset=LOWERED_OPSET, tflite_path=str(path))
        proto = graph.make_model("lowered by tf2onnx")
    except Exception as error:
        raise InputError(f"{path}: not a TFLite model that tf2onnx can convert: {first_line(error)}") from error
    module = read(ir.to_proto(ir.from_proto(proto)))
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


def _inspect(path: Path, trust_code: bool) -> None:
    """Unpack the flatbuffer in Python, where a bad offset is an exception: the interpreter checks none and crashes."""
    from tensorflow.lite.python import schema_py_generated as schema

    data = path.read_bytes()
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        codes = [bytes(code.customCode or b"").decode() for code in model.operatorCodes or ()]
        ends = [int(buffer.offset) + int(buffer.size) for buffer in model.buffers or ()]  # data behind the flatbuffer
    except Exception as error:
        raise InputError(f"{path}: a damaged TFLite file ({first_line(error)})") from error
    if not model.subgraphs or max(ends, default=0) > len(data):
        raise InputError(f"{path}: a damaged TFLite file (it holds no graph, or ends before its weights)")
    for code in codes if not trust_code else ():
        what = reaches_outside(code.removeprefix("Flex"))  # TensorFlow's own operators inside TFLite
        if code.startswith("Flex") and what is not None:
            raise InputError(f"{path}: operator '{code}' {what}; --trust-code allows it")
