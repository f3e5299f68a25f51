"""Lowering of TensorFlow files, run in a child process: inspect, load, convert, compare, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from joulec.errors import InputError
from joulec.ir.lower.parity import check
from joulec.ir.module import Module
from joulec.ir.shapes import first_line


def lower_file(path: str, kind: str, folder: str, trust_code: bool) -> dict[str, Any]:
    """Lower one file into `folder/model.onnx`.

    Args:
        path: the file or directory.
        kind: what `detect.format_of` said.
        folder: where to write.
        trust_code: whether code inside the model may run.

    Returns:
        {"parity": ..., "notes": [...]}.
    """
    source = Path(path)
    if kind in ("keras", "h5"):
        module, run, quantized = *_keras(source, kind, trust_code), False
    elif kind == "saved-model":
        from joulec.ir.lower.saved_model import from_directory

        module, run, quantized = *from_directory(source, trust_code), False
    else:
        from joulec.ir.lower.tflite import from_flatbuffer

        module, run, quantized = from_flatbuffer(source)
    parity = check(module, run, quantized=quantized)
    module.save(Path(folder, "model.onnx"))
    return {"parity": parity.to_json(), "notes": list(module.origin.notes)}


def _keras(path: Path, kind: str, trust_code: bool) -> tuple[Module, Any]:
    from joulec.ir.lower.keras_file import inspect
    from joulec.ir.lower.tensorflow import lower_keras, tensorflow

    inspect(path, kind, trust_code)
    tensorflow()
    import keras

    try:
        # Keras goes by the extension, joulec by the content: give it the name it expects.
        named = path if path.suffix == _SUFFIX[kind] else _linked(path, kind)
        model = keras.models.load_model(named, compile=False, safe_mode=not trust_code)
    except Exception as error:
        raise InputError(f"{path}: Keras cannot load it: {first_line(error)}") from error
    return lower_keras(model)


_SUFFIX = {"keras": ".keras", "h5": ".h5"}


def _linked(path: Path, kind: str) -> Path:
    import tempfile

    link = Path(tempfile.mkdtemp(prefix="joulec-"), f"model{_SUFFIX[kind]}")
    link.symlink_to(path)
    return link
