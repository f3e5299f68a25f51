"""Accuracy, integer kernels and speed of quantized models beside the float model they were made from.

    python judge.py accuracy CASE_FOLDER MODEL.onnx              (one model: a crash takes no other along)
    python judge.py speed CASE_FOLDER MODEL.onnx MODEL.onnx ...  (all in turns, in one process)
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from joulec.data import load_feeds, load_metric
from joulec.ir.lower import lower
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.payoff import summarize

INTEGER = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize")
"""How the operators of ONNX Runtime's integer kernels begin."""

LOADS, SECONDS, LEAST = 6, 2.5, 40
"""Fresh sessions of every model, seconds a model, and rounds of a load at least."""


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


def accuracy(place: Path, model: Path) -> dict[str, Any]:
    """The case's metric (None where the model is not trained), integer kernels and bytes of one model."""
    metric, opened = place / "metric.py", session(model)
    names = [output.name for output in opened.get_outputs()]
    score = None
    if metric.is_file():
        judge = load_metric(f"{metric}:accuracy")
        score = judge(lambda feed: dict(zip(names, opened.run(names, dict(feed)), strict=True)))
    return {"accuracy": score, "integer": integer_kernels(model), "bytes": model.stat().st_size}


def speed(place: Path, models: list[Path]) -> list[dict[str, Any]]:
    """For every model: how much faster it is than the float model, and than the first of all models."""
    base = lower(place / "float.onnx").module
    modules = [base, *(lower(model).module for model in models)]
    feed = load_feeds(place / "calibration.npz", base.inputs()).head(1)[0]
    times = _in_turns(modules, feed)
    found = []
    for column in range(1, len(modules)):
        float_model = summarize([timed[:, [0, column]] for timed in times], 1)
        first = summarize([timed[:, [column, 1]] for timed in times], 1)
        found.append(
            {
                "ratio": float_model.ratio, "low": float_model.low, "high": float_model.high,
                "ms": float_model.candidate_ms, "behind": first.ratio, "behind_low": first.low,
                "behind_high": first.high,
            }
        )  # fmt: skip
    return found


def _in_turns(modules: list[Any], feed: Any) -> list[Any]:
    """Seconds, one array (rounds, models) a load; every load opens the sessions in another order."""
    loads = []
    with LocalRunner() as runner:
        for load in range(LOADS):
            order = np.roll(np.arange(len(modules)), load)
            handles = [runner.load(modules[index], options=SessionOptions(1)) for index in order]
            warm = runner.time(handles, feed, rounds=4)
            rounds = max(LEAST, int(SECONDS * len(modules) / LOADS / float(np.min(warm.sum(axis=1)))))
            timed = runner.time(handles, feed, rounds=min(rounds, 20_000))
            for handle in handles:
                runner.unload(handle)
            loads.append(timed[:, np.argsort(order)])
    return loads


def main(what: str, place: str, *models: str) -> None:
    """Print what was asked for."""
    paths = [Path(model) for model in models]
    found: Any = accuracy(Path(place), paths[0]) if what == "accuracy" else {"models": speed(Path(place), paths)}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
