"""Staging: a module as a file that ONNX Runtime opens, without writing anew the weights that lie in files already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from joulec.ir.module import INLINE_LIMIT, Module, tensors
from joulec.ir.session import SessionOptions, open_session

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's setting: where the external data of a model lie that is opened from memory."""


@dataclass(frozen=True)
class Staged:
    """A module as a file.

    Attributes:
        path: the file.
        weights: the folder that its external data lie in, where that is not the file's own.
    """

    path: Path
    weights: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """For a runner in another process."""
        return {"path": str(self.path), "weights": None if self.weights is None else str(self.weights)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Staged:
        """What `to_json` wrote."""
        return cls(Path(data["path"]), None if data["weights"] is None else Path(data["weights"]))

    def source(self) -> str | bytes:
        """What a session is opened from."""
        return str(self.path) if self.weights is None else self.path.read_bytes()

    def options(self, chosen: SessionOptions) -> SessionOptions:
        """`chosen`, and where the weights lie."""
        if self.weights is None:
            return chosen
        return replace(chosen, config={**chosen.config, _WEIGHTS_FOLDER: str(self.weights)})

    def open(self, chosen: SessionOptions) -> Any:
        """Open an `onnxruntime.InferenceSession`.

        Raises:
            InputError: ONNX Runtime refuses the model.
        """
        return open_session(self.source(), self.options(chosen))


def stage(module: Module, folder: Path) -> Staged:
    """Write `module` into `folder`, referring to the input's own external data where they are too large to copy."""
    path = folder / "model.onnx"
    weights = _common_folder(module)
    if weights is None:
        module.save(path)
        return Staged(path)
    path.write_bytes(module.to_proto().SerializeToString(deterministic=True))
    return Staged(path, weights)


def _common_folder(module: Module) -> Path | None:
    """The one folder of all external data, where the whole is too large for one file and the rest is not."""
    if module.weight_bytes() <= INLINE_LIMIT:
        return None
    held = tensors(module.model)
    external = [tensor for tensor in held if isinstance(tensor, ir.ExternalTensor)]
    folders = {str(tensor.base_dir) for tensor in external}
    inside = sum(tensor.nbytes for tensor in held if not isinstance(tensor, ir.ExternalTensor))
    return Path(folders.pop()) if len(folders) == 1 and inside <= INLINE_LIMIT else None
