"""What a model is tuned on: inputs and labels from a file, a function, arrays or a tf.data.Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from joulec.data.npz import NpzFile
from joulec.data.userfile import UserFunction, is_function_spec, load_function, wrap_function
from joulec.errors import InputError
from joulec.ir.values import Array

LABEL = "y"
"""The array of labels in an .npz file; `y_NAME` for the output NAME of a model with several."""

LEAST = 2
"""Samples that must be on either side of a split."""


@dataclass(frozen=True)
class Examples:
    """Data as `keras.Model.fit` takes them.

    Attributes:
        x: arrays as the model takes them, or a batched tf.data.Dataset of (x, y).
        y: labels, None beside a Dataset.
        count: samples, or for a Dataset batches; None where it does not know.
        labels: one batch of labels, or all: what a loss is read off.
        said: for the result.
    """

    x: Any
    y: Any
    count: int | None
    labels: Any
    said: str

    @property
    def weighted(self) -> bool:
        """Whether samples have weights."""
        return self.streamed and len(self.x.element_spec) == 3

    @property
    def streamed(self) -> bool:
        """Whether it is a Dataset."""
        return self.y is None


def load_examples(spec: Any, model: Any, batch: int) -> Examples:
    """The examples that `--data` or `data=` names.

    Args:
        spec: an .npz file or a dict with an array for each input, by name, and `y`; a pair (x, y); a tf.data.Dataset
            of (x, y) or (x, y, weights); or `FILE.py:FUNCTION` or a function that returns any of these but a file.
        model: the Keras model; its inputs are checked against.
        batch: size of the batches of a Dataset that has none.

    Raises:
        InputError: nothing there, or it does not fit the model.
    """
    if isinstance(spec, str) and is_function_spec(spec):
        return _of_function(load_function(spec), model, batch)
    if isinstance(spec, str | Path):
        return _of_file(Path(spec), model)
    if callable(spec) and not hasattr(spec, "element_spec"):
        return _of_function(wrap_function(spec), model, batch)
    return _of_object(spec, model, batch, "data")


def _of_function(function: UserFunction, model: Any, batch: int) -> Examples:
    return _of_object(function(), model, batch, function.name)


def _of_file(path: Path, model: Any) -> Examples:
    if path.suffix == ".py":
        raise InputError(f"{path}: name the function too: {path.name}:FUNCTION")
    file = NpzFile(path)
    return _of_arrays({name: file.whole(name) for name in file.members}, model, path.name)


def _of_object(found: Any, model: Any, batch: int, where: str) -> Examples:
    if hasattr(found, "element_spec"):
        return _of_dataset(found, model, batch, where)
    if isinstance(found, tuple | list) and len(found) == 2:
        x, y = found
        inputs = x if isinstance(x, Mapping) else dict.fromkeys(_input_names(model)[:1], x)
        return _of_arrays({**inputs, LABEL: y}, model, where)
    if isinstance(found, Mapping):
        return _of_arrays(found, model, where)
    raise InputError(
        f"{where}: a {type(found).__name__}; it must be a tf.data.Dataset of (x, y), a dict of arrays or a pair (x, y)"
    )


# -- arrays -------------------------------------------------------------------------------------------------------


def _of_arrays(arrays: Mapping[str, Any], model: Any, where: str) -> Examples:
    named = {str(name): np.asarray(array) for name, array in arrays.items()}
    y = _labels(named, model, where)
    inputs = {name: array for name, array in named.items() if name != LABEL and not name.startswith(f"{LABEL}_")}
    x = _inputs(inputs, model, where)
    counts = {len(array) for array in (*x.values(), *(y.values() if isinstance(y, dict) else [y]))}
    if len(counts) > 1:
        raise InputError(f"{where}: inputs and labels differ in their number of samples: {sorted(counts)}")
    return Examples(_packed(x, model), y, counts.pop(), y, where)


def _labels(named: Mapping[str, Array], model: Any, where: str) -> Any:
    outputs = [str(name) for name in getattr(model, "output_names", None) or [""]]
    if len(outputs) > 1:
        missing = [name for name in outputs if f"{LABEL}_{name}" not in named]
        if missing:
            raise InputError(f"{where}: no labels '{LABEL}_{missing[0]}'; the model has outputs {', '.join(outputs)}")
        return {name: named[f"{LABEL}_{name}"] for name in outputs}
    if LABEL not in named:
        raise InputError(f"{where}: holds no array '{LABEL}' with the labels; it holds {', '.join(named) or 'nothing'}")
    if named[LABEL].ndim == 0:
        raise InputError(f"{where}: '{LABEL}' is a single number, not one label a sample")
    return named[LABEL]


def _inputs(named: Mapping[str, Array], model: Any, where: str) -> dict[str, Array]:
    names = _input_names(model)
    if len(names) == 1 and len(named) == 1 and names[0] not in named:
        named = {names[0]: next(iter(named.values()))}
    missing = [name for name in names if name not in named]
    if missing:
        raise InputError(f"{where}: no array for input '{missing[0]}'; it holds {', '.join(named) or 'no inputs'}")
    return {value: _fitted(named[value], spec, where) for value, spec in zip(names, _specs(model), strict=True)}


def _fitted(array: Array, spec: Any, where: str) -> Array:
    wanted = tuple(spec.shape)
    pairs = zip(wanted[1:], array.shape[1:], strict=False)
    if array.ndim != len(wanted) or not all(dim is None or dim == size for dim, size in pairs):
        shown = ["N" if dim is None else dim for dim in wanted]
        raise InputError(f"{where}: input '{spec.name}' has shape {list(array.shape)}, the model takes {shown}")
    kind = np.dtype(str(spec.dtype)) if array.dtype.kind in "fiub" else array.dtype
    if kind.kind in "iu" and array.dtype.kind == "f":
        raise InputError(f"{where}: input '{spec.name}' is {array.dtype}, the model takes {kind}")
    return array.astype(kind, copy=False)


def _specs(model: Any) -> list[Any]:
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise InputError("the model declares no inputs; give its data as a tf.data.Dataset")
    return list(inputs)


def _input_names(model: Any) -> list[str]:
    """As lowering calls them, so that one file serves both commands."""
    return [str(value.name or f"input_{i}").split(":")[0].replace("/", "_") for i, value in enumerate(_specs(model))]


def _packed(x: Mapping[str, Array], model: Any) -> Any:
    """In the structure that the model is called with."""
    import keras

    structure, flat = getattr(model, "_inputs_struct", None), list(x.values())
    if isinstance(structure, Mapping):
        return keras.tree.pack_sequence_as(structure, flat)
    return flat[0] if len(flat) == 1 else flat


# -- Datasets -----------------------------------------------------------------------------------------------------


def _of_dataset(dataset: Any, model: Any, batch: int, where: str) -> Examples:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise InputError(f"{where}: the Dataset yields no pairs (x, y)")
    if _is_single(spec[0], model):
        dataset = dataset.batch(batch)
    if (count := int(dataset.cardinality())) == -1:
        raise InputError(f"{where}: the Dataset never ends; give it an end with .take(BATCHES)")
    labels = next((element[1] for element in dataset.take(1)), None)
    if labels is None:
        raise InputError(f"{where}: the Dataset is empty")
    import keras

    return Examples(dataset, None, count if count >= 0 else None, keras.tree.map_structure(np.asarray, labels), where)


def _is_single(spec: Any, model: Any) -> bool:
    """Whether elements are samples, not batches: one dimension less than the model's inputs have."""
    import keras

    inputs, rank = getattr(model, "inputs", None) or [], keras.tree.flatten(spec)[0].shape.rank
    return bool(inputs) and rank is not None and rank + 1 == len(inputs[0].shape)


# -- what is held back --------------------------------------------------------------------------------------------


def held_back(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples | None]:
    """Examples to train on and examples to judge by, drawn at random; None for the second where there are too few,
    or where a Dataset streams them: it may be shuffled anew each time, so parts of it would mix."""
    if examples.streamed or examples.count is None or share == 0:
        return examples, None
    held = round(share * examples.count)
    if held < LEAST or examples.count - held < LEAST:
        return examples, None
    order = np.random.default_rng(seed).permutation(examples.count)
    return _part(examples, np.sort(order[held:])), _part(examples, np.sort(order[:held]))


def _part(examples: Examples, rows: Array) -> Examples:
    import keras

    take: Callable[[Any], Any] = lambda array: array[rows]  # noqa: E731
    x, y = keras.tree.map_structure(take, examples.x), keras.tree.map_structure(take, examples.y)
    return Examples(x, y, len(rows), y, examples.said)


def steps_per_epoch(examples: Examples, batch: int) -> int | None:
    """Batches in one run over the data, where that is known."""
    if examples.count is None or examples.streamed:
        return examples.count
    return -(-examples.count // batch)


def flat(labels: Any) -> Sequence[Any]:
    """The labels of each output."""
    import keras

    return list(keras.tree.flatten(labels))
