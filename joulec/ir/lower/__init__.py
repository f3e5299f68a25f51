"""Lowering: from what a framework saved, or holds in memory, to a `Module`. One front end a format.

Formats are told apart by content, never by extension. Files of TensorFlow and PyTorch are lowered in a child process
with limits, so that no framework loads here or runs what a file asks for outside the sandbox.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir import sandbox
from joulec.ir.lower.detect import format_of
from joulec.ir.lower.names import weights_from_json
from joulec.ir.lower.parity import Parity
from joulec.ir.module import Module, Origin
from joulec.ir.onnx_file import read
from joulec.ir.sandbox import Limits

__all__ = ["Lowered", "Parity", "lower"]


@dataclass(frozen=True)
class Lowered:
    """A lowered model, and how it compares with its source (None where the source is ONNX itself)."""

    module: Module
    parity: Parity | None = None


def lower(
    source: Any, *, trust_code: bool = False, custom_ops: Sequence[Path] = (), example_inputs: Any = None,
    limits: Limits | None = None,
) -> Lowered:  # fmt: skip
    """Lower a model to ONNX and check it against its source framework.

    Args:
        source: a path to ONNX, `.keras`, `.h5`, SavedModel, `.tflite` or `.pt2`; ONNX bytes; an onnx.ModelProto,
            onnx_ir.Model or Module; a live Keras model, tf.function, torch.nn.Module or ExportedProgram.
        trust_code: allow code inside the model (Lambda layers, Python and file operators).
        custom_ops: shared libraries with custom operators, used whenever the model runs.
        example_inputs: for a torch.nn.Module: a tuple of tensors.
        limits: of the child process that lowers TensorFlow and PyTorch files; the default limits if None.

    Raises:
        InputError: nothing there, not a model, or one that is refused.
        CheckError: the lowered model's outputs differ from the source's.
        UnavailableError: the framework's extra is not installed.
    """
    lowered = _lower(source, trust_code, example_inputs, limits or Limits.default())
    for library in custom_ops:
        if not Path(library).is_file():
            raise InputError(f"--custom-ops {library}: no such file")
    origin = replace(lowered.module.origin, custom_ops=tuple(Path(library) for library in custom_ops))
    lowered.module.origin = origin
    return lowered


def _lower(source: Any, trust_code: bool, example_inputs: Any, limits: Limits) -> Lowered:
    if isinstance(source, Lowered):
        return source
    if isinstance(source, Module):
        return Lowered(source.clone())
    if isinstance(source, str | Path):
        return _from_path(Path(source), trust_code, limits)
    if isinstance(source, bytes | onnx.ModelProto | ir.Model):
        return Lowered(read(source))
    return _from_object(source, example_inputs)


def _from_path(path: Path, trust_code: bool, limits: Limits) -> Lowered:
    kind = format_of(path)
    if kind == "onnx":
        return Lowered(read(path))
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        arguments = {"path": str(path.resolve()), "kind": kind, "folder": folder, "trust_code": trust_code}
        answer = sandbox.call_in_child("joulec.ir.lower.worker:lower_file", arguments, limits, f"lowering {path}")
        module = read(Path(folder, "model.onnx"))
        module.load_weights()
    notes = (*module.origin.notes, *answer["notes"])
    module.origin = Origin(kind, path, tuple(notes), weights=weights_from_json(answer.get("weights", {})))
    return Lowered(module, Parity.from_json(answer["parity"]))


def _from_object(source: Any, example_inputs: Any) -> Lowered:
    """Live objects are recognized by where their classes come from, so that no framework is imported in vain."""
    roots = {kind.__module__.partition(".")[0] for kind in type(source).__mro__}
    if "torch" in roots:
        from joulec.ir.lower.torch import from_live

        return from_live(source, example_inputs)
    if roots & {"keras", "tensorflow", "tf_keras"}:
        from joulec.ir.lower.tensorflow import from_live as from_tensorflow

        return from_tensorflow(source)
    name = f"{type(source).__module__}.{type(source).__qualname__}"
    raise InputError(f"cannot lower a {name}; give a path or a live model")
