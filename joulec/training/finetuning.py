"""`finetune`: a Keras model tuned under masks, from a file in a child process or live in this one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from joulec.backends.artefact import replacing_file, write_arrays
from joulec.errors import InputError
from joulec.ir import sandbox
from joulec.ir.lower.detect import format_of
from joulec.ir.lower.keras_file import load
from joulec.ir.lower.tensorflow import tensorflow
from joulec.ir.values import Array
from joulec.training import preparing
from joulec.training.examples import Examples, held_back, load_examples
from joulec.training.masked import SMALLEST, prunable, smallest
from joulec.training.masks import masks_for, read_masks, variables
from joulec.training.objectives import objectives
from joulec.training.recipe import Recipe
from joulec.training.trainer import Progress, Trainer
from joulec.training.tuned import Tuned

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits


@dataclass(frozen=True)
class FineTuned:
    """What `finetune` returns.

    Attributes:
        report: what was done.
        masks: those that training chose, weight name -> boolean array, True = kept; empty where it chose none.
        model: the live model; None where a child process tuned it.
    """

    report: Tuned
    masks: dict[str, Array]
    model: Any = None


def finetune(
    model: Any, data: Any, *, masks: Mapping[str, Array] | str | Path | None = None, validation: Any = None,
    teacher: Any = None, out: str | Path | None = None, logs: str | Path | None = None, trust_code: bool = False,
    limits: Limits | None = None, progress: Progress = lambda message, done: None, **recipe: Any,
) -> FineTuned:  # fmt: skip
    """Train a Keras model on, so that it recovers from pruning; what its masks dropped stays exactly zero.

    Args:
        model: a `.keras` or `.h5` file, or a live Keras model, which is tuned in place (and left compiled).
        data: an .npz file, a dict or a pair of arrays, a tf.data.Dataset of (x, y), or `FILE.py:FUNCTION` or a
            function that returns one (see `joulec.training.examples.load_examples`).
        masks: what `masks_source.npz` holds: the file, the artefact's directory, or weight name -> boolean array.
        validation: data that judge, in the same forms; by default a tenth of `data`, drawn at random.
        teacher: the unpruned model, a file or live, whose outputs are learned too.
        out: the `.keras` file to write; masks that training chose go beside it, as `NAME_masks.npz`.
        logs: a folder for TensorBoard.
        trust_code: allow code inside the model (Lambda layers).
        limits: tune a file in a child process with these limits; None tunes it here.
        progress: called as `progress(message, fraction)`.
        recipe: fields of `joulec.training.recipe.Recipe`: `epochs`, `learning_rate`, `sparsity` and so on.

    Raises:
        InputError: model, data, masks or options cannot be used, or training diverged.
        BudgetError: `max_drop` is missed. Nothing was written then, and a live model is as it was.
        UnavailableError: TensorFlow is not installed, or TensorBoard where logs are wanted.
    """
    chosen = _recipe(recipe, masks)
    if out is None:
        if limits is not None:
            raise InputError("limits: what another process tunes has to be written; give out")
        return _here(model, data, masks, validation, teacher, logs, trust_code, chosen, progress)
    with replacing_file(_writable(Path(out))) as staging:
        if limits is None:
            done = _here(model, data, masks, validation, teacher, logs, trust_code, chosen, progress)
            return _saved(done, staging)
        specs = {"model": model, "data": data, "masks": masks, "validation": validation, "teacher": teacher}
        arguments: dict[str, Any] = {name: _text(spec, name) for name, spec in specs.items()}
        arguments |= {"logs": None if logs is None else str(logs), "trust_code": trust_code}
        arguments |= {"recipe": chosen.to_json(), "staging": str(staging)}
        answer = sandbox.call_in_child(f"{__name__}:tune_file", arguments, limits, f"tuning {model}", progress)
        beside = _masks_beside(staging)
        return FineTuned(Tuned.from_json(answer), read_masks(beside, set()) if beside.is_file() else {})


def tune_file(staging: str, recipe: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
    """In the child process: tune a file, and write what came of it to `staging`."""
    done = _here(**arguments, recipe=Recipe.from_json(recipe), progress=sandbox.tell, own_process=True)
    return _saved(done, Path(staging)).report.to_json()


def _recipe(given: Mapping[str, Any], masks: Any) -> Recipe:
    try:
        chosen = Recipe(**given)
    except TypeError as error:
        raise InputError(f"finetune: {error}; joulec.training.recipe.Recipe lists the options") from None
    if chosen.sparsity is not None and masks is not None:
        raise InputError("--sparsity and --masks: give one; masks say already what goes")
    if chosen.gradual is not None and chosen.sparsity is None and masks is None:
        raise InputError("--gradual: there is nothing to prune; give --sparsity or --masks")
    return chosen


def _writable(place: Path) -> Path:
    if place.suffix != ".keras":
        raise InputError(f"{place}: name a file that ends in .keras")
    if not place.absolute().parent.is_dir():
        raise InputError(f"{place}: its folder does not exist")
    return place


def _text(spec: Any, what: str) -> str | None:
    if spec is None or isinstance(spec, str | Path):
        return None if spec is None else str(spec)
    raise InputError(f"limits: {what} must be a file, or FILE.py:FUNCTION, to reach another process")


def _saved(done: FineTuned, staging: Path) -> FineTuned:
    """Write the model, and masks that nobody but training knows beside it."""
    done.model.save(staging)
    files = [staging.name]
    if done.masks:
        beside = _masks_beside(staging)
        write_arrays(beside, done.masks)
        files.append(beside.name)
    return replace(done, report=replace(done.report, files=tuple(files)))


def _masks_beside(staging: Path) -> Path:
    return staging.with_name(f"{staging.stem}_masks.npz")


# -- in this process ----------------------------------------------------------------------------------------------


def _here(
    model: Any, data: Any, masks: Any, validation: Any, teacher: Any, logs: Any, trust_code: bool, recipe: Recipe,
    progress: Progress, own_process: bool = False,
) -> FineTuned:  # fmt: skip
    progress("loading the model", None)
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        live = _live(model, trust_code, Path(folder))
        taught = None if teacher is None else _live(teacher, trust_code, Path(folder))
    _seed(recipe.seed, own_process)
    notes: list[str] = []
    given = {} if masks is None else masks_for(live, masks)
    if recipe.new_head is not None:
        live = preparing.with_new_head(live, recipe.new_head)
        given = _still_fitting(live, given, notes)
    frozen = preparing.freeze(live, recipe.backbone_frozen, recipe.freeze)
    named = variables(live)
    if recipe.sparsity is not None:
        given = _chosen(named, recipe)
    train, judge = _examples(live, data, validation, recipe, notes)
    done = Trainer(
        live, objectives(live, train, recipe.loss), train, judge, given, recipe, named, taught,
        None if logs is None else Path(logs), progress, tuple(frozen), notes,
    )  # fmt: skip
    report = done.run()
    return FineTuned(report, done.masks if recipe.sparsity is not None else {}, live)


def _seed(seed: int, own_process: bool) -> None:
    """Make training repeat itself; the kernels of this process are only touched where nobody else uses them."""
    import keras

    if own_process:
        tensorflow().config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)


def _live(model: Any, trust_code: bool, folder: Path) -> Any:
    """The live model behind a path, or itself."""
    if not isinstance(model, str | Path):
        tensorflow()
        if not hasattr(model, "get_config") or not hasattr(model, "layers"):
            raise InputError(f"cannot tune a {type(model).__name__}; give a Keras model or its file")
        return model
    path = Path(model)
    kind = format_of(path)
    if kind not in ("keras", "h5"):
        raise InputError(f"{path}: only Keras models can be tuned, this is {_FORMATS.get(kind, 'none')}")
    return load(path, kind, folder, trust_code)


_FORMATS = {"saved-model": "a SavedModel", "tflite": "a TFLite model", "torch": "a PyTorch export"}


def _chosen(named: Mapping[str, Any], recipe: Recipe) -> dict[str, Array]:
    """Masks by magnitude at once, or for a schedule: nothing kept, which it never reaches."""
    kernels = {name: np.asarray(variable.numpy()) for name, variable in prunable(named).items()}
    if not kernels:
        raise InputError(f"--sparsity: no kernel of {SMALLEST} weights or more that learns")
    if recipe.gradually:
        return {name: np.zeros(kernel.shape, bool) for name, kernel in kernels.items()}
    return smallest(kernels, recipe.sparsity or 0.0)


def _still_fitting(model: Any, masks: Mapping[str, Array], notes: list[str]) -> dict[str, Array]:
    """The masks of what is left where a head was replaced."""
    shapes = {name: tuple(variable.shape) for name, variable in variables(model).items()}
    kept = {name: mask for name, mask in masks.items() if shapes.get(name) == mask.shape}
    notes += [f"the mask of '{name}' went with the old head" for name in masks if name not in kept]
    return kept


def _examples(
    model: Any, data: Any, validation: Any, recipe: Recipe, notes: list[str]
) -> tuple[Examples, Examples]:  # fmt: skip
    train = load_examples(data, model, recipe.batch)
    if validation is not None:
        return train, load_examples(validation, model, recipe.batch)
    learned, held = held_back(train, recipe.holdout, recipe.seed)
    if held is None:
        notes.append("judged on what it learned from: give --validation, or more samples; training did not stop early")
        return train, train
    return learned, replace(held, said=f"{held.count} of {train.count} samples of {train.said}, held back")
