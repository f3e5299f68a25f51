"""Accuracy and speed of one quantized model beside the float model it was made from, and its integer kernels.

    python judge.py CASE_FOLDER MODEL.onnx
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort

import joulec
from joulec.data import load_metric

INTEGER = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize")
"""How the operators of ONNX Runtime's integer kernels begin."""


def session(model: Path, **options: str) -> ort.InferenceSession:
    """One thread; `optimized_model_filepath` keeps the graph that really runs."""
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.log_severity_level = 4
    for name, value in options.items():
        setattr(chosen, name, value)
    return ort.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])


def integer_kernels(model: Path) -> int:
    """Nodes with integer arithmetic in the graph that ONNX Runtime makes of the model, those of bodies too."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "runs.onnx")
        session(model, optimized_model_filepath=str(written))
        graphs, count = [onnx.load(written).graph], Counter[str]()
    while graphs:
        for node in graphs.pop().node:
            count[node.op_type] += 1
            graphs += [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return sum(number for op, number in count.items() if op.startswith(INTEGER) and op != "DynamicQuantizeLinear")


def accuracy(model: Path, metric: Path) -> float | None:
    """The case's metric, None where the model is not trained."""
    if not metric.is_file():
        return None
    opened = session(model)
    names = [output.name for output in opened.get_outputs()]
    return load_metric(f"{metric}:accuracy")(lambda feed: dict(zip(names, opened.run(names, dict(feed)), strict=True)))


def main(place: str, model: str) -> None:
    """Print everything about one model."""
    base, made, metric = Path(place, "float.onnx"), Path(model), Path(place, "metric.py")
    timed = joulec.measure(made, base, data=Path(place, "calibration.npz"))
    found = {
        "accuracy": accuracy(made, metric), "baseline": accuracy(base, metric), "integer": integer_kernels(made),
        "ratio": timed.ratio, "low": timed.low, "high": timed.high, "ms": timed.candidate_ms,
        "bytes": made.stat().st_size,
    }  # fmt: skip
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
