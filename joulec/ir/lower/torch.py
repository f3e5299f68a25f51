"""PyTorch exports to ONNX, through torch.onnx's own exporter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from joulec.errors import InputError, missing_extra
from joulec.ir.module import Module, Origin
from joulec.ir.onnx_file import read
from joulec.ir.shapes import first_line
from joulec.ir.values import Array

if TYPE_CHECKING:
    from joulec.ir.lower import Lowered


def _torch() -> Any:
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError:
        raise missing_extra("torch and onnxscript", "torch", "lowering a PyTorch model") from None
    return torch


def from_file(path: Path) -> Lowered:
    """Lower a `.pt2` file (torch.export.save). Other torch archives hold code or bare weights, and are refused."""
    torch = _torch()
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        raise InputError(
            f"{path}: not a .pt2 that torch.export.save wrote: {first_line(error)}; export the model first"
        ) from error
    return from_live(program, None, path)


def from_live(source: Any, example_inputs: Any, path: Path | None = None) -> Lowered:
    """Lower an ExportedProgram, or an nn.Module with example inputs."""
    from joulec.ir.lower import Lowered
    from joulec.ir.lower.parity import check

    torch = _torch()
    if isinstance(source, torch.nn.Module):
        if example_inputs is None:
            raise InputError("a torch.nn.Module needs example_inputs=(tensor, ...) to be lowered")
        try:
            source = torch.export.export(source.eval(), tuple(example_inputs))
        except Exception as error:
            raise InputError(f"torch.export cannot export the module: {first_line(error)}") from error
    module = _convert(torch, source, path)
    return Lowered(module, check(module, _runner(torch, source, module)))


def _convert(torch: Any, program: Any, path: Path | None) -> Module:
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        file = Path(folder, "model.onnx")
        try:
            torch.onnx.export(program, f=str(file), dynamo=True, external_data=False, optimize=False, verbose=False)
        except Exception as error:
            raise InputError(f"torch.onnx cannot export the program: {first_line(error)}") from error
        module = read(file.read_bytes())
    module.origin = Origin("torch", path, module.origin.notes)
    return module


def _runner(torch: Any, program: Any, module: Module) -> Callable[[dict[str, Array]], Mapping[str, Array]]:
    function, names = program.module(), [str(value.name) for value in module.graph.outputs]

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            results = function(*(torch.from_numpy(np.array(value)) for value in feed.values()))
        flat, _ = torch.utils._pytree.tree_flatten(results)
        return {name: value.numpy() for name, value in zip(names, flat, strict=True)}

    return run
