"""Lowering of TensorFlow and PyTorch files, run in a child process: inspect, load, convert, compare, write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from joulec.errors import InputError
from joulec.ir.lower import torch_file
from joulec.ir.lower.names import weights_to_json
from joulec.ir.lower.parity import Parity, check
from joulec.ir.module import Module


def lower_file(path: str, kind: str, folder: str, trust_code: bool) -> dict[str, Any]:
    """Lower one file into `folder/model.onnx`.

    Args:
        path: the file or directory.
        kind: what `detect.format_of` said.
        folder: where to write.
        trust_code: whether code inside the model may run.

    Returns:
        {"parity": ..., "notes": [...], "weights": {...}}.
    """
    source = Path(path)
    if kind == "torch":
        return _torch(source, folder, trust_code)
    if kind in ("keras", "h5"):
        module, run, quantized = *_keras(source, kind, folder, trust_code), False
    elif kind == "saved-model":
        from joulec.ir.lower.saved_model import from_directory

        module, run, quantized = *from_directory(source, Path(folder), trust_code), False
    else:
        from joulec.ir.lower.tflite import from_flatbuffer

        module, run, quantized = from_flatbuffer(source, Path(folder), trust_code)
    return _answer(module, check(module, run, quantized=quantized), folder)


def _answer(module: Module, parity: Parity, folder: str) -> dict[str, Any]:
    module.save(Path(folder, "model.onnx"))
    return {
        "parity": parity.to_json(),
        "notes": list(module.origin.notes),
        "weights": weights_to_json(module.origin.weights),
    }


def _torch(path: Path, folder: str, trust_code: bool) -> dict[str, Any]:
    torch_file.inspect(path, trust_code)
    if not trust_code:
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # of this child, before torch reads anything
    from joulec.ir.lower.torch import from_file

    lowered = from_file(path)
    if lowered.parity is None:
        raise InputError(f"{path}: could not be compared with PyTorch's own outputs")
    return _answer(lowered.module, lowered.parity, folder)


def _keras(path: Path, kind: str, folder: str, trust_code: bool) -> tuple[Module, Any]:
    from joulec.ir.lower.keras_file import load
    from joulec.ir.lower.tensorflow import lower_keras

    return lower_keras(load(path, kind, Path(folder), trust_code))
