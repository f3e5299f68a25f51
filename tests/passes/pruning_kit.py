"""Small models with weights of their own, for the tests of pruning."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.passes.base import Context, Pass
from joulec.passes.pipeline import Outcome, Pipeline
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")


def model(text: str, seed: int = 0, opset: int = 17, **weights: tuple[int, ...] | np.ndarray) -> Module:
    """A graph in ONNX text form with seeded normal weights of the shapes given, or the arrays themselves."""
    proto = onnx.ModelProto()
    proto.ir_version = 8
    proto.opset_import.append(helper.make_opsetid("", opset))
    proto.graph.CopyFrom(parser.parse_graph(text))
    generator = np.random.default_rng(seed)
    for name, given in weights.items():
        array = given if isinstance(given, np.ndarray) else generator.standard_normal(given).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return read(proto)


def run(module: Module, *passes: Pass, context: Context | None = None) -> Outcome:
    """Run passes, none of which may be rolled back."""
    outcome = Pipeline(passes).run(module, context or Context(target=TARGET))
    for step in outcome.steps:
        assert step.status != "rolled back", step.reason
    return outcome


def numbers(module: Module, name: str) -> np.ndarray:
    tensor = module.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def compute(module: Module, **feed: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime makes of it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(module.to_proto().SerializeToString(), options, ["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(None, feed)]
