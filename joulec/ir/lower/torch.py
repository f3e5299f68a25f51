"""PyTorch exports to ONNX, through torch.onnx's own exporter."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from joulec.errors import InputError, missing_extra
from joulec.ir import walk
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
    if getattr(source, "_guards_code", None):
        source._guards_code = []  # text of the file that torch would compile; shapes are checked by joulec
    module = _convert(torch, source, path)
    return Lowered(module, check(module, _runner(torch, source, module)))


def _convert(torch: Any, program: Any, path: Path | None) -> Module:
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        file = Path(folder, "model.onnx")
        try:
            torch.onnx.export(
                program, f=str(file), dynamo=True, external_data=False, optimize=False, verbose=False,
                output_names=_output_names(torch, program),
            )  # fmt: skip
        except Exception as error:
            raise InputError(f"torch.onnx cannot export the program: {first_line(error)}") from error
        module = read(file.read_bytes())
    _name_dimensions(module)
    module.origin = Origin("torch", path, module.origin.notes)
    return module


def _output_names(torch: Any, program: Any) -> list[str] | None:
    """The keys of a dict of outputs, joined by `/` below the first level; None where torch names them as well."""
    spec = program.call_spec.out_spec
    if spec is None or not issubclass(spec.type or object, Mapping):
        return None
    tree = torch.utils._pytree.tree_unflatten(range(spec.num_leaves), spec)
    paths, _ = torch.utils._pytree.tree_flatten_with_path(tree)
    return ["/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]


_SYMBOL = re.compile(r"[su]\d+")


def _name_dimensions(module: Module) -> None:
    """torch calls symbolic sizes s77; a user knows them as `batch`, or by the input and axis where they first stand."""
    names: dict[str, str] = {}
    for value in module.inputs():
        for axis, dim in enumerate(value.shape or ()):
            symbol = getattr(dim, "value", None)
            if isinstance(symbol, str) and _SYMBOL.fullmatch(symbol):
                first = axis == 0 and "batch" not in names.values()
                names.setdefault(symbol, "batch" if first else f"{value.name}_dim{axis}")
    for graph in walk.graphs(module.model):
        for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: Any, names: Mapping[str, str]) -> Any:
    text = getattr(dim, "value", None)
    if not isinstance(text, str):
        return dim
    return _SYMBOL.sub(lambda found: names.get(found[0], found[0]), text)


def _runner(torch: Any, program: Any, module: Module) -> Callable[[dict[str, Array]], Mapping[str, Array]]:
    function, names = program.module(), [str(value.name) for value in module.graph.outputs]

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            results = function(*(torch.from_numpy(np.array(value)) for value in feed.values()))
        flat, _ = torch.utils._pytree.tree_flatten(results)
        return {name: value.numpy() for name, value in zip(names, flat, strict=True)}

    return run
