"""Masks for Keras models: read, matched with the model's weights by name, put in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from joulec.data.npz import NpzFile
from joulec.errors import InputError
from joulec.ir.lower.names import named_weights
from joulec.ir.values import Array

MASKS_FILE, SOURCE_MASKS_FILE = "masks.npz", "masks_source.npz"


def apply_masks(model: Any, masks: Mapping[str, Array] | str | Path) -> Any:
    """Set the weights of a Keras model to zero where its masks say so.

    Args:
        model: a built Keras model; changed in place.
        masks: weight name (`conv2d/kernel`) -> boolean array of the weight's shape, True = kept; or `masks_source.npz`,
            or the artefact's directory that holds it.

    Returns:
        The same model.

    Raises:
        InputError: no masks there, or one that fits no weight of the model.
    """
    fitting = masks_for(model, masks)
    for name, variable in variables(model).items():
        if name in fitting:
            variable.assign(np.where(fitting[name], np.asarray(variable.numpy()), 0).astype(str(variable.dtype)))
    return model


def variables(model: Any) -> dict[str, Any]:
    """The variables of a Keras model under the names of `joulec.ir.lower.names.named_weights`."""
    return dict(zip(named_weights(model), model.weights, strict=True))


def masks_for(model: Any, masks: Mapping[str, Array] | str | Path) -> dict[str, Array]:
    """Masks by the names of the model's weights, each of the weight's shape.

    Raises:
        InputError: see `apply_masks`.
    """
    found = dict(masks) if isinstance(masks, Mapping) else read_masks(masks, set(named_weights(model)))
    shapes = {name: array.shape for name, array in named_weights(model).items()}
    for name, mask in found.items():
        if name not in shapes:
            raise InputError(f"mask '{name}' names no weight of the model; it has {_some(shapes)}")
        if mask.dtype != np.bool_ or mask.shape != shapes[name]:
            raise InputError(f"mask '{name}' is {mask.dtype} {mask.shape}, the weight is {shapes[name]}")
    return found


def read_masks(place: str | Path, names: set[str]) -> dict[str, Array]:
    """The masks of a file or an artefact. Where `masks.npz` was named whose names are those of the emitted model, the
    `masks_source.npz` beside it is read instead.

    Raises:
        InputError: there are none.
    """
    path = Path(place)
    if path.is_dir():
        path = path / SOURCE_MASKS_FILE
    found = _arrays(path)
    beside = path.with_name(SOURCE_MASKS_FILE)
    if not names.intersection(found) and path.name == MASKS_FILE and beside.is_file():
        return _arrays(beside)
    return found


def _arrays(path: Path) -> dict[str, Array]:
    file = NpzFile(path)
    if not file.members:
        raise InputError(f"{path}: holds no masks")
    return {name: file.whole(name) for name in file.members}


def _some(shapes: Mapping[str, object]) -> str:
    first = list(shapes)[:5]
    return ", ".join(first) + (", ..." if len(shapes) > len(first) else "")
