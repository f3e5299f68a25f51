"""One quantizer at its defaults on one model; runs in that quantizer's own environment and prints what it cost.

    python quantize.py TOOL FLOAT.onnx CALIBRATION.npz OUT.onnx
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def rows(data: Path) -> Iterator[dict[str, Any]]:
    """The calibration feeds."""
    with np.load(data, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for index in range(len(next(iter(arrays.values())))):
        yield {name: np.asarray(array[index]) for name, array in arrays.items()}


class Reader:
    """The same feeds as ONNX Runtime's quantizer, and those built on it, want them."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)

    def rewind(self) -> None:
        self._rows = rows(self._data)


def static(model: Path, data: Path, out: Path) -> None:
    """ONNX Runtime as its documentation advises for CPUs: pre-processing, QDQ, uint8 activations, int8 per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(model), str(prepared))
    except Exception:  # noqa: BLE001 (it gives up on some models with any error; quantization can do without it)
        shutil.copyfile(model, prepared)
    reader = type("Rows", (Reader, CalibrationDataReader), {})(data)
    quantize_static(
        str(prepared), str(out), reader, quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def dynamic(model: Path, _data: Path, out: Path) -> None:
    """ONNX Runtime, ranges of activations taken at each run."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(model), str(out))


def neural_compressor(model: Path, data: Path, out: Path) -> None:
    """Intel's neural-compressor 2, post-training static, without its own accuracy loop."""
    from neural_compressor import PostTrainingQuantConfig, quantization

    class Loader:
        batch_size = 1

        def __iter__(self) -> Iterator[Any]:
            for row in rows(data):
                values = list(row.values())
                yield (values[0] if len(values) == 1 else values), 0

    made = quantization.fit(str(model), PostTrainingQuantConfig(approach="static"), calib_dataloader=Loader())
    made.save(str(out))


def nncf(model: Path, data: Path, out: Path) -> None:
    """NNCF's post-training quantization of ONNX models."""
    import nncf
    import onnx

    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(list(rows(data)))), out)


def quark(model: Path, data: Path, out: Path) -> None:
    """AMD Quark for ONNX: its preset for CPUs and GPUs, 8-bit activations and weights."""
    from quark.onnx import ModelQuantizer, QConfig

    ModelQuantizer(QConfig.get_default_config("A8W8")).quantize_model(str(model), str(out), Reader(data))


def modelopt(model: Path, data: Path, out: Path) -> None:
    """NVIDIA ModelOpt's ONNX quantization, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize

    with np.load(data, allow_pickle=False) as file:
        arrays = {name: _joined(file[name]) for name in file.files}
    quantize(
        str(model), calibration_data=arrays, calibration_eps=["cpu"], output_path=str(out), high_precision_dtype="fp32"
    )


def _joined(rows: np.ndarray) -> np.ndarray:
    """Whole inputs, stacked -> one input of all samples."""
    return rows.reshape(-1, *rows.shape[2:]) if rows.ndim > 1 else rows


def olive(model: Path, data: Path, out: Path) -> None:
    """Microsoft Olive: its OnnxStaticQuantization pass at its defaults."""
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.workflows import run

    class Rows(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            return list.__getitem__(self, index)

    @Registry.register_dataloader(name="bench_rows")
    def _bench_rows(dataset: Any = None, **_: Any) -> Any:
        return Rows((row, 0) for row in rows(data))

    data_config = DataConfig(name="calibration", dataloader_config=DataComponentConfig(type="bench_rows"))
    folder = out.with_suffix(".olive")
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    run({
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [cpu]}},
        "host": "here", "target": "here", "data_configs": [data_config],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "output_dir": str(folder), "no_artifacts": True,
    })  # fmt: skip
    made = sorted(folder.rglob("*.onnx"))
    made[0].replace(out)


TOOLS: dict[str, Callable[[Path, Path, Path], None]] = {
    "onnxruntime-static": static, "onnxruntime-dynamic": dynamic, "neural-compressor": neural_compressor,
    "nncf": nncf, "quark": quark, "modelopt": modelopt, "olive": olive,
}  # fmt: skip


def main(tool: str, model: str, data: str, out: str) -> None:
    """Quantize, and print seconds and peak memory."""
    start = time.monotonic()
    TOOLS[tool](Path(model), Path(data), Path(out))
    if not Path(out).is_file():
        raise SystemExit(f"{tool} wrote nothing")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"seconds": time.monotonic() - start, "peak_mib": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
