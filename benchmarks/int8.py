"""INT8 on the demo's models: joulec's artefact beside ONNX Runtime's own quantizer, same data, same metric.

    make bench        (after `make demo`; writes benchmarks/results/int8.json)

Both are timed against the float model in interleaved runs of one process, single-threaded, batch 1; a ratio above 1 is
faster than float. The float model is the input after joulec's exact passes, so that neither gets credit for those.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import joulec
from joulec.data import load_metric
from joulec.key import cpu, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "int8.json"


class Rows(CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows as ONNX Runtime's quantizer wants them."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self._rows: Iterator[Any] = iter(file["image"])

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, None at the end."""
        row = next(self._rows, None)
        return None if row is None else {"image": row[np.newaxis]}


def peer(float_model: Path, data: Path, out: Path) -> None:
    """ONNX Runtime's quantizer as its documentation recommends for CPUs: QDQ, uint8 activations, int8 per channel."""
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(float_model), str(prepared))
    quantize_static(
        str(prepared), str(out), Rows(data), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def accuracy(model: Path, name: str) -> float:
    """Share of held-out digits named right."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    metric = load_metric(f"{ROOT}/examples/digits/metric.py:accuracy_{name}")
    return metric(lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True)))


def compare(name: str, demo: Path, work: Path) -> dict[str, Any]:
    """Both quantizers on one model."""
    base, quantized = work / f"{name}.onnx", work / f"{name}_ort.onnx"
    onnx.save(joulec.simplify(demo / f"{name}.keras"), base)
    data = demo / f"{name}_calibration.npz"
    peer(base, data, quantized)
    rows: dict[str, Any] = {"float": {"accuracy": accuracy(base, name)}}
    for who, model in (("joulec", demo / name / "model.onnx"), ("onnxruntime quantize_static", quantized)):
        timed = joulec.measure(model, base, data=data)
        rows[who] = {
            "accuracy": accuracy(model, name), "float_ms": timed.base_ms, "ms": timed.candidate_ms,
            "ratio": timed.ratio, "low": timed.low, "high": timed.high,
        }  # fmt: skip
    return rows


def main(demo: str = "build/demo") -> None:
    """Print a table and keep the numbers with what they were measured on."""
    with tempfile.TemporaryDirectory() as work:
        found = {name: compare(name, Path(demo), Path(work)) for name in ("small", "wide")}
    RESULTS.parent.mkdir(exist_ok=True)
    kept = {"command": "make bench", "cpu": cpu(), "versions": versions(), "models": found}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for name, rows in found.items():
        for who, row in rows.items():
            speed = f"{row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}]" if "ratio" in row else "1.00x"
            print(f"{name:6} {who:28} accuracy {row['accuracy']:.4f}  speed {speed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
