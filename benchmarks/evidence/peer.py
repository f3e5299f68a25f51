"""Somebody else's quantized model on the rungs that joulec's TensorRT artefacts climb."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from joulec.backends import backend
from joulec.backends.base import Artefact
from joulec.backends.profiles import fixed_sizes
from joulec.energy.bind import fix_in_place, infer_all
from joulec.errors import JoulecError
from joulec.ir.onnx_file import read
from joulec.ir.runner import LocalRunner
from joulec.passes._qdq_graph import computes
from joulec.shapespec import parse_shapes

RUNGS = ("onnx checker", "lint", "kernel table", "CPU numerics", "TensorRT-RTX engine")


def judged(file: Path, folder: Path, shape: str, feeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The rungs of a model, with the sizes that joulec's artefact has."""
    try:
        module, reference = read(file), read(folder / "float.onnx")
        fix_in_place(module, fixed_sizes(module, parse_shapes(shape)))
        infer_all(module, symbolic=True)
        with tempfile.TemporaryDirectory() as place, LocalRunner() as runner:
            target = backend("tensorrt")
            target.emit(module, Path(place), 1)
            rungs = target.check(Artefact(module, Path(place), runner, None, reference, feeds, "calibration data"))
    except JoulecError as error:
        return {"error": str(error)[:300]}
    found = {one.name: [one.status, one.detail] for one in rungs if one.name in RUNGS}
    return {"rungs": found, "operators": sum(map(computes, module.graph)), "bytes": module.weight_bytes()}


if __name__ == "__main__":
    sys.exit("run `python benchmarks/evidence`")
